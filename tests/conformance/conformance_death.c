/* conformance_death: the one side is killed, stopped, slow, cut off or gives up; the other side finds out, and loses nothing. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/conformance/peer.h"
#include "tests/conformance/conformance.h" /* last: it names the peers d and p */

/* When P is killed in mid-transfer, D knows in well under a heartbeat's patience, and the
 * blocks are its own again. */
void killed_sender_frees_the_blocks(void **state)
{
    (void)state;
    proc_start(&d, NULL, "role=d layers=8 blocks=64");
    proc_start(&p, NULL, "role=p layers=8 blocks=64 epoch=1");
    half_way(1, 64, 30000);
    uint64_t start_ns = clock_now_ns();
    proc_kill(&p, SIGKILL);
    const char *how = expect(&d, "failed %016llx", 1ULL);
    assert_int_equal(strncmp(how, "UNAVAILABLE fenced", 18), 0);
    assert_true(elapsed_ms(start_ns) < 2500); /* heartbeats would have taken 3 s */
    printf("  seen and free after %lu ms\n", (unsigned long)elapsed_ms(start_ns));
    audit_quiet(&d);
    proc_start(&p, NULL, "role=p layers=8 blocks=64 epoch=2"); /* all blocks, at once */
    transfer_checked(&d, &p, 2, 64);
    pair_quit();
}

/* When D is killed, P knows as quickly; D's successor at the same address refuses the tickets
 * of the dead one and serves its own. */
void killed_receiver_and_its_successor(void **state)
{
    (void)state;
    char address[64], args[128], old_ticket[LINE_MAX_CHARS];
    proc_start(&d, NULL, "role=d layers=8 blocks=64 epoch=1");
    proc_start(&p, NULL, "role=p layers=8 blocks=128");
    snprintf(address, sizeof address, "%s", d.link_address);
    half_way(1, 32, 30000);
    snprintf(old_ticket, sizeof old_ticket, "%s", grant(&d, 2, 8, 30000));
    uint64_t start_ns = clock_now_ns();
    proc_kill(&d, SIGKILL);
    assert_int_equal(strncmp(expect(&p, "send_failed %016llx", 1ULL), "UNAVAILABLE", 11), 0);
    assert_true(elapsed_ms(start_ns) < 2500);
    printf("  seen and free after %lu ms\n", (unsigned long)elapsed_ms(start_ns));
    snprintf(args, sizeof args, "role=d layers=8 blocks=64 epoch=2 listen=%s", address);
    proc_start(&d, NULL, args);
    transfer_checked(&d, &p, 3, 64);
    /* The suspicion against the dead one passes; then its ticket is tried, and refused. */
    const char *how = "UNAVAILABLE";
    for (unsigned i = 0; i < 100 && strncmp(how, "UNAVAILABLE", 11) == 0; i++) {
        clock_sleep_ns(100 * NS_PER_MS);
        tell(&p, "send %016x 1 %s full", 2, old_ticket);
        how = expect(&p, "send_failed %016llx", 2ULL);
    }
    assert_int_equal(strncmp(how, "FAILED_PRECONDITION", 19), 0);
    assert_int_equal(stat_of(&d, "landed"), 1);
    pair_quit();
}

/* Until so many sends of P have ended, one way or the other. */
static void sends_end(uint32_t count)
{
    char line[LINE_MAX_CHARS];
    while (count > 0) {
        if (!line_next(&p, WAIT_S * 1000, line)) { fail_msg("%u sends of P have not ended", count); }
        if (strncmp(line, "send_failed ", 12) == 0 || strncmp(line, "acked ", 6) == 0) { count--; }
    }
}

/* A stopped P is given up after the heartbeat's patience. When it wakes, nothing that it still
 * sends lands: the blocks, free again, keep their canary. */
void stopped_sender_writes_nothing_when_it_wakes(void **state)
{
    (void)state;
    proc_start(&d, NULL, "role=d layers=16 heads=8 dim=64 blocks=200");
    proc_start(&p, NULL, "role=p layers=16 heads=8 dim=64 blocks=200");
    /* The second is under way as P stops: 50 MiB of it, or what half a second moves where that is less, since in an emulated
     * machine 50 MiB keep the transfer threads from their heartbeats for longer than peers wait. */
    transfer_checked(&d, &p, 3, 1);
    uint64_t start_ns = clock_now_ns();
    transfer_checked(&d, &p, 4, 1);
    uint64_t block_ms = elapsed_ms(start_ns) + 1;
    uint32_t count = block_ms <= 5 ? 100 : (uint32_t)(500 / block_ms) + 1;
    half_way(1, count, 60000);
    stat_wait(&d, "slices_landed", 2 * 16 + 8 * count); /* all of that half */
    tell(&p, "send %016x 9 %s full", 2, grant(&d, 2, count, 60000));
    /* D has heard of it: else nothing but the lease would end its grant. */
    stat_wait(&d, "slices_landed", 2 * 16 + 8 * count + 1);
    start_ns = clock_now_ns();
    proc_kill(&p, SIGSTOP);
    assert_int_equal(strncmp(expect(&d, "failed "), "0000", 4), 0);
    printf("  seen after %lu ms, ", (unsigned long)elapsed_ms(start_ns));
    stat_wait(&d, "free_blocks", 200); /* the second too: it failed, or was quicker than the stop and landed */
    printf("free after %lu ms\n", (unsigned long)elapsed_ms(start_ns));
    proc_kill(&p, SIGCONT);
    sends_end(2);
    clock_sleep_ns((300 + block_ms * count) * NS_PER_MS); /* for anything late to arrive and show in the canaries */
    pair_quit();
}

/* A stopped D is given up too; when it wakes, it finds the transfer over, and nothing lands. */
void stopped_receiver_finds_the_transfer_over(void **state)
{
    (void)state;
    proc_start(&d, NULL, "role=d layers=8 blocks=64");
    proc_start(&p, NULL, "role=p layers=8 blocks=64");
    half_way(1, 64, 30000);
    uint64_t start_ns = clock_now_ns();
    proc_kill(&d, SIGSTOP);
    assert_int_equal(strncmp(expect(&p, "send_failed %016llx", 1ULL), "UNAVAILABLE", 11), 0);
    stat_wait(&p, "free_blocks", 64);
    printf("  seen and free after %lu ms\n", (unsigned long)elapsed_ms(start_ns));
    proc_kill(&d, SIGCONT);
    (void)expect(&d, "failed %016llx", 1ULL);
    pair_quit();
}

/* A D that runs a fifth of the time gets everything; P's memory stays bounded, since pushes
 * are refused while 32 are under way. */
void slow_reader_gets_everything(void **state)
{
    (void)state;
    proc_start(&d, NULL, "role=d layers=8 heads=8 dim=128 blocks=64");
    proc_start(&p, NULL, "role=p layers=8 heads=8 dim=128 blocks=64 pushes=32");
    transfer_checked(&d, &p, 1, 1);
    tell(&p, "send %016x 77 %s full", 2, grant(&d, 2, 64, 30000)); /* 32 MiB */
    for (int i = 0; i < 6; i++) {
        proc_kill(&d, SIGSTOP);
        clock_sleep_ns(200 * NS_PER_MS);
        proc_kill(&d, SIGCONT);
        clock_sleep_ns(2 * NS_PER_MS);
    }
    assert_int_equal(strncmp(expect(&d, "landed %016llx", 2ULL), "good", 4), 0);
    (void)expect(&p, "acked %016llx", 2ULL);
    pair_quit();
}

/* A grant that nobody comes for lapses; a begun one lapses when the slices stop, and P is told. */
void lease_ends_a_grant(void **state)
{
    (void)state;
    proc_start(&d, NULL, "role=d layers=4 blocks=32");
    proc_start(&p, NULL, "role=p layers=4 blocks=32");
    (void)grant(&d, 1, 16, 200);
    assert_int_equal(strncmp(expect(&d, "failed %016llx", 1ULL), "DEADLINE_EXCEEDED fenced", 24), 0);
    /* What begins must be quicker than its lease: the link is there before, and how long a transfer takes on it is measured. */
    transfer_checked(&d, &p, 2, 16);
    uint64_t start_ns = clock_now_ns();
    transfer_checked(&d, &p, 3, 16);
    uint64_t took_ms = elapsed_ms(start_ns);
    half_way(4, 16, (uint32_t)(600 + 8 * took_ms));
    expect_failed_fenced(4, "DEADLINE_EXCEEDED");
    assert_int_equal(strncmp(expect(&p, "send_failed %016llx", 4ULL), "DEADLINE_EXCEEDED", 17), 0);
    pair_quit();
}

/* Aborts from either side, at any moment, ten thousand times: every grant and every send ends
 * once, no byte lands in a block that was given back, and what landed is right. */
void abort_storm(void **state)
{
    (void)state;
    enum { TRANSFERS = 10000, TOGETHER = 24 };
    static struct { bool d_open, p_open; } table[TRANSFERS + 1];
    unsigned seed = (unsigned)clock_wall_ns();
    const char *given = getenv("BATON_TEST_SEED");
    if (given) { seed = (unsigned)strtoul(given, NULL, 10); }
    printf("  seed %u\n", seed);
    uint32_t total = getenv("BATON_TEST_STORM") ? (uint32_t)atoi(getenv("BATON_TEST_STORM")) : TRANSFERS;
    proc_start(&d, NULL, "role=d layers=2 blocks=256");
    proc_start(&p, NULL, "role=p layers=2 blocks=256");
    memset(table, 0, sizeof table);
    uint32_t begun = 0, d_ended = 0, p_ended = 0, landed = 0, oldest = 1;
    uint64_t end_ns = clock_now_ns() + 240 * NS_PER_S;
    while (d_ended < total || p_ended < total) {
        if (clock_now_ns() > end_ns) { fail_msg("stuck: %u begun, D ended %u, P ended %u", begun, d_ended, p_ended); }
        while (begun < total && begun + 1 - oldest < TOGETHER) {
            begun++;
            table[begun].d_open = table[begun].p_open = true;
            tell(&d, "grant %016x %u 60000", begun, rand_r(&seed) % 8 + 1);
        }
        while (oldest <= begun && !table[oldest].d_open && !table[oldest].p_open) { oldest++; }
        char line[LINE_MAX_CHARS], verb[32], ticket[LINE_MAX_CHARS];
        unsigned id = 0;
        struct proc *const sides[2] = {&d, &p};
        bool any = false;
        for (int side = 0; side < 2; side++) {
            while (line_next(sides[side], any ? 0 : 1, line)) {
                any = true;
                verb[0] = ticket[0] = '\0';
                if (sscanf(line, "%31s %x %4095s", verb, &id, ticket) < 2 || id == 0 || id > total) { fail_msg("odd line: %s", line); }
                if (strcmp(verb, "ticket") == 0) {
                    tell(&p, "send %016x %x %s %s", id, id, ticket, rand_r(&seed) % 4 ? "full" : "half");
                    if (rand_r(&seed) % 3 == 0) { tell(&d, "revoke %016x", id); }
                } else if (strcmp(verb, "begun") == 0 || strcmp(verb, "half") == 0) {
                    if (rand_r(&seed) % 3 == 0 || verb[0] == 'h') { tell(&p, "abort %016x", id); }
                    if (rand_r(&seed) % 3 == 0) { tell(&d, "revoke %016x", id); }
                    /* A half that is told of too late to be aborted is ended by D. */
                    if (verb[0] == 'h') { tell(&d, "revoke %016x", id); }
                } else if (strcmp(verb, "landed") == 0 || strcmp(verb, "fenced") == 0 || strcmp(verb, "failed") == 0) {
                    if (!table[id].d_open) { fail_msg("a second end: %s", line); }
                    if (verb[0] == 'l' && strncmp(ticket, "good", 4) != 0) { fail_msg("wrong bytes: %s", line); }
                    table[id].d_open = false;
                    d_ended++;
                    landed += verb[0] == 'l';
                } else if (strcmp(verb, "acked") == 0 || strcmp(verb, "send_failed") == 0) {
                    if (!table[id].p_open) { fail_msg("a second end: %s", line); }
                    table[id].p_open = false;
                    p_ended++;
                    /* P gave up before D had heard of it: then D's node is told by the router. */
                    if (verb[0] == 's' && table[id].d_open) { tell(&d, "revoke %016x", id); }
                } else {
                    fail_msg("odd line: %s", line);
                }
            }
        }
    }
    printf("  %u of %u landed\n", landed, total);
    assert_true(landed > 0);
    assert_true(landed < total);
    transfer_checked(&d, &p, 1000000, 200);
    pair_quit();
}

static bool shell(const char *format, const char *a, const char *b)
{
    char command[512], full[600];
    snprintf(command, sizeof command, format, a, b);
    snprintf(full, sizeof full, "(%s) >/dev/null 2>&1", command);
    return system(full) == 0;
}

/* A cut link is seen on both sides within seconds, not after the kernel's quarter of an hour;
 * D's blocks are free again, and when the link is back nothing late lands. */
void cut_link_is_seen(void **state)
{
    (void)state;
    if (strcmp(cable_name, "shm") == 0) {
        print_message("  %s crosses no network\n", cable_name);
        skip();
    }
    if (strcmp(cable_name, "nccl") == 0 && !cable_beside) {
        print_message("  the fake of NCCL crosses no network; nccl_tcp does\n");
        skip();
    }
    char a[32], b[32];
    snprintf(a, sizeof a, "bta%d", (int)getpid() % 1000000);
    snprintf(b, sizeof b, "btb%d", (int)getpid() % 1000000);
    if (geteuid() != 0 || !shell("ip netns add %s && ip netns add %s", a, b)) {
        print_message("  needs root and network namespaces\n");
        skip();
    }
    bool made = shell("ip link add %1$s type veth peer name %2$s && ip link set %1$s netns %1$s && ip link set %2$s netns %2$s", a, b) &&
                shell("ip netns exec %1$s ip addr add 10.231.7.1/24 dev %1$s && ip netns exec %1$s ip link set %1$s up", a, b) &&
                shell("ip netns exec %2$s ip addr add 10.231.7.2/24 dev %2$s && ip netns exec %2$s ip link set %2$s up", a, b);
    if (!made) {
        (void)shell("ip netns del %s; ip netns del %s", a, b);
        print_message("  needs veth devices\n");
        skip();
    }
    proc_start(&d, b, "role=d layers=16 heads=8 dim=128 blocks=64 listen=10.231.7.2:0 tcp=10.231.7.2:0");
    proc_start(&p, a, "role=p layers=16 heads=8 dim=128 blocks=64");
    transfer_checked(&d, &p, 1, 4);
    uint64_t before = stat_of(&d, "slices_landed");
    half_way(2, 32, 60000);
    tell(&p, "send %016x 9 %s half", 3, grant(&d, 3, 32, 60000));
    /* Half of 2 is 32 blocks of 8 layers; one slice more is of 3. Before that D may know nothing of
     * 3 but its grant, which the lease ends and not the link. */
    stat_wait(&d, "slices_landed", before + 32 * 8 + 1);
    uint64_t start_ns = clock_now_ns();
    bool cut = shell("ip netns exec %2$s ip link set %2$s down", a, b);
    (void)expect(&d, "failed ");
    (void)expect(&d, "failed ");
    stat_wait(&p, "send_failed", 2);
    uint64_t seen_ms = elapsed_ms(start_ns);
    bool back = shell("ip netns exec %2$s ip link set %2$s up", a, b);
    clock_sleep_ns(500 * NS_PER_MS); /* whatever TCP wants to send again comes now */
    audit_quiet(&d);
    audit_quiet(&p);
    proc_quit(&p);
    proc_quit(&d);
    (void)shell("ip netns del %s; ip netns del %s", a, b);
    assert_true(cut);
    assert_true(back);
    if (seen_ms > 10000) { fail_msg("the cut was seen only after %llu ms", (unsigned long long)seen_ms); }
    print_message("  seen after %llu ms\n", (unsigned long long)seen_ms);
}
