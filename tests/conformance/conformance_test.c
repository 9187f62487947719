/* conformance_test: what every cable must hold, with real processes that are killed, stopped,
 * cut off and lied to. Run with the cable's name: conformance_test tcp.
 * With _device behind the name the pools of both sides lie on a fake device.
 * A cable joins by its name in kv_cables[] and, for the forged frames, a case in forger.c. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/conformance/driver.h"
#include "tests/conformance/forger.h"
#include "tests/conformance/peer.h"
#include "tests/conformance/ucx_library.h"
#include "tests/conformance/wire_proxy.h"

static struct proc d, p;

static uint64_t elapsed_ms(uint64_t start_ns) { return (clock_now_ns() - start_ns) / NS_PER_MS; }

static void pair_quit(void)
{
    audit_quiet(&d);
    audit_quiet(&p);
    proc_quit(&p);
    proc_quit(&d);
}

/* P is in the middle of a transfer: half of the layers are with D. */
static void half_way(uint64_t xfer, uint32_t count, uint32_t lease_ms)
{
    unsigned long long id = xfer;
    uint64_t before = stat_of(&d, "slices_landed");
    tell(&p, "send %016llx %llx %s half", id, id + 5, grant(&d, xfer, count, lease_ms));
    (void)expect(&p, "half %016llx", id);
    stat_wait(&d, "slices_landed", before + count);
}

/* A grant fails with this code and its blocks are free: at once where D places the bytes, after the
 * sender's word where he does. */
static void expect_failed_fenced(unsigned long long id, const char *code)
{
    const char *how = expect(&d, "failed %016llx", id);
    assert_int_equal(strncmp(how, code, strlen(code)), 0);
    how += strlen(code);
    bool is_one_sided = strcmp(cable_name, "ucx") == 0;
    if (is_one_sided && strncmp(how, " unfenced", 9) == 0) {
        (void)expect(&d, "fenced %016llx", id);
    } else {
        assert_int_equal(strncmp(how, " fenced", 7), 0);
    }
}

/* Whatever the shape of blocks and grants, the bytes that land are the bytes that were sent. */
static void all_shapes_land_whole(void **state)
{
    (void)state;
    static const struct { int layers, heads, dim, blocks; uint32_t counts[4]; } shapes[] = {
        {1, 1, 8, 64, {1, 2, 63, 64}},      /* slices of 512 bytes */
        {2, 1, 64, 300, {1, 48, 49, 300}},  /* 4 KiB: more blocks than a push or a frame carries */
        {3, 3, 40, 40, {1, 7, 39, 40}},     /* no power of two anywhere */
        {4, 8, 128, 64, {1, 16, 17, 64}},   /* 64 KiB, the shape of Llama 8B */
        {61, 1, 16, 20, {1, 5, 19, 20}},    /* many thin layers */
        {1, 64, 512, 6, {1, 2, 5, 6}},      /* a slice of 2 MiB, larger than a frame's aim */
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        char args[128];
        snprintf(args, sizeof args, "role=d layers=%d heads=%d dim=%d blocks=%d", shapes[i].layers, shapes[i].heads,
                 shapes[i].dim, shapes[i].blocks);
        proc_start(&d, NULL, args);
        args[5] = 'p';
        proc_start(&p, NULL, args);
        for (uint32_t k = 0; k < 4; k++) { transfer_checked(&d, &p, 100 * i + k + 1, shapes[i].counts[k]); }
        pair_quit();
    }
}

/* Many transfers at once over one link do not mix. */
static void transfers_side_by_side_do_not_mix(void **state)
{
    (void)state;
    proc_start(&d, NULL, "role=d layers=4 blocks=640");
    proc_start(&p, NULL, "role=p layers=4 blocks=640");
    static char tickets[33][LINE_MAX_CHARS];
    for (unsigned i = 1; i <= 32; i++) { snprintf(tickets[i], sizeof tickets[i], "%s", grant(&d, i, i % 20 + 1, 30000)); }
    for (unsigned i = 1; i <= 32; i++) { tell(&p, "send %016x %x %s full", i, i * 3, tickets[i]); }
    for (unsigned i = 1; i <= 32; i++) { assert_int_equal(strncmp(expect(&d, "landed ") + 17, "good", 4), 0); }
    stat_wait(&p, "acked", 32);
    assert_int_equal(stat_of(&d, "landed"), 32);
    pair_quit();
}

/* When P is killed in mid-transfer, D knows in well under a heartbeat's patience, and the
 * blocks are its own again. */
static void killed_sender_frees_the_blocks(void **state)
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
    audit_quiet(&d);
    proc_start(&p, NULL, "role=p layers=8 blocks=64 epoch=2"); /* all blocks, at once */
    transfer_checked(&d, &p, 2, 64);
    pair_quit();
}

/* When D is killed, P knows as quickly; D's successor at the same address refuses the tickets
 * of the dead one and serves its own. */
static void killed_receiver_and_its_successor(void **state)
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

/* A stopped P is given up after the heartbeat's patience. When it wakes, nothing that it still
 * sends lands: the blocks, free again, keep their canary. */
static void stopped_sender_writes_nothing_when_it_wakes(void **state)
{
    (void)state;
    proc_start(&d, NULL, "role=d layers=16 heads=8 dim=64 blocks=200");
    proc_start(&p, NULL, "role=p layers=16 heads=8 dim=64 blocks=200");
    half_way(1, 100, 30000);
    tell(&p, "send %016x 9 %s full", 2, grant(&d, 2, 100, 30000)); /* 50 MiB, under way as it stops */
    proc_kill(&p, SIGSTOP);
    assert_int_equal(strncmp(expect(&d, "failed "), "0000", 4), 0);
    stat_wait(&d, "free_blocks", 100);
    bool second_landed = stat_of(&d, "landed") == 1; /* it may have been quicker than the stop */
    stat_wait(&d, "free_blocks", 200);
    proc_kill(&p, SIGCONT);
    (void)expect(&p, "send_failed %016llx", 1ULL);
    if (!second_landed) { stat_wait(&p, "sends_live", 0); }
    clock_sleep_ns(300 * NS_PER_MS); /* for anything late to arrive and show in the canaries */
    pair_quit();
}

/* A stopped D is given up too; when it wakes, it finds the transfer over, and nothing lands. */
static void stopped_receiver_finds_the_transfer_over(void **state)
{
    (void)state;
    proc_start(&d, NULL, "role=d layers=8 blocks=64");
    proc_start(&p, NULL, "role=p layers=8 blocks=64");
    half_way(1, 64, 30000);
    proc_kill(&d, SIGSTOP);
    assert_int_equal(strncmp(expect(&p, "send_failed %016llx", 1ULL), "UNAVAILABLE", 11), 0);
    stat_wait(&p, "free_blocks", 64);
    proc_kill(&d, SIGCONT);
    (void)expect(&d, "failed %016llx", 1ULL);
    pair_quit();
}

/* A D that runs a fifth of the time gets everything; P's memory stays bounded, since pushes
 * are refused while 32 are under way. */
static void slow_reader_gets_everything(void **state)
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
static void lease_ends_a_grant(void **state)
{
    (void)state;
    proc_start(&d, NULL, "role=d layers=4 blocks=32");
    proc_start(&p, NULL, "role=p layers=4 blocks=32");
    (void)grant(&d, 1, 16, 200);
    assert_int_equal(strncmp(expect(&d, "failed %016llx", 1ULL), "DEADLINE_EXCEEDED fenced", 24), 0);
    half_way(2, 16, 600);
    expect_failed_fenced(2, "DEADLINE_EXCEEDED");
    assert_int_equal(strncmp(expect(&p, "send_failed %016llx", 2ULL), "DEADLINE_EXCEEDED", 17), 0);
    pair_quit();
}

/* Aborts from either side, at any moment, ten thousand times: every grant and every send ends
 * once, no byte lands in a block that was given back, and what landed is right. */
static void abort_storm(void **state)
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

/* Nothing that a liar says on link or cable puts a byte into D's pool, or spoils the transfer of
 * the one who holds the ticket. */
static void forged_frames_land_nowhere(void **state)
{
    (void)state;
    const struct kv_layout layout = {.block_tokens = 16, .layer_count = 2, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_BF16};
    struct forger liar;
    struct link_msg msg;
    proc_start(&d, NULL, "role=d layers=2 blocks=32");
    forger_open(&liar, grant(&d, 1, 8, 60000), &layout);
    assert_int_equal(liar.ack.code, ST_OK);

    /* A wrong token opens no cable, and the true one still does. */
    uint8_t token[KV_CABLE_TOKEN_BYTES];
    memcpy(token, liar.ack.token, sizeof token);
    token[31] ^= 1;
    assert_false(forger_cable(&liar, cable_name, token));
    assert_true(forger_cable(&liar, cable_name, liar.ack.token));

    /* Slices before the begin. */
    uint64_t refused = 0;
    struct kv_frame frame = {.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .layer = 0, .first = 0, .count = 8};
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 8);

    /* Begins with a wrong secret, a wrong epoch, a wrong size, an unknown id. */
    struct link_xfer begin = {.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .block_count = 8};
    memcpy(begin.secret, liar.ticket.secret, sizeof begin.secret);
    static const uint32_t codes[] = {ST_PERMISSION_DENIED, ST_NOT_FOUND, ST_INVALID_ARGUMENT, ST_NOT_FOUND};
    for (int i = 0; i < 4; i++) {
        struct link_xfer wrong = begin;
        if (i == 0) { wrong.secret[0] ^= 1; }
        if (i == 1) { wrong.grant_epoch++; }
        if (i == 2) { wrong.block_count++; }
        if (i == 3) { wrong.xfer_id.bytes[3] ^= 1; }
        forger_say(&liar, LINK_BEGIN, wrong);
        assert_true(forger_hear(&liar, &msg));
        assert_int_equal(msg.kind, LINK_BEGIN_ACK);
        assert_int_equal(msg.body.xfer.code, codes[i]);
        assert_true(forger_frame(&liar, cable_name, &frame, 666, 0)); /* and it changed nothing */
        stat_wait(&d, "slices_refused", refused += 8);
    }
    assert_int_equal(stat_of(&d, "secrets_refused"), 1);
    assert_int_equal(stat_of(&d, "canary_bad"), 0);

    /* With the ticket's secret, the grant opens; frames outside it still land nowhere. */
    forger_say(&liar, LINK_BEGIN, begin);
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.body.xfer.code, ST_OK);
    const struct kv_frame outside[] = {
        {.layer = 2, .first = 0, .count = 1},  {.layer = UINT32_MAX, .first = 0, .count = 1},
        {.layer = 0, .first = 8, .count = 1},  {.layer = 0, .first = 7, .count = 2},
        {.layer = 0, .first = UINT32_MAX, .count = 2}, {.layer = 0, .first = UINT32_MAX - 3, .count = 8},
    };
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        frame = outside[i];
        frame.xfer_id = liar.ticket.xfer_id;
        frame.grant_epoch = liar.ticket.grant_epoch;
        assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
        stat_wait(&d, "slices_refused", refused += frame.count);
    }
    frame = (struct kv_frame){.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch + 1, .count = 8};
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 8);

    /* True slices land; the same again, or overlapping, with other bytes, do not. */
    frame.grant_epoch--;
    frame.count = 4;
    assert_true(forger_frame(&liar, cable_name, &frame, 5, 0));
    stat_wait(&d, "slices_landed", 4);
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 4);
    frame.first = 3;
    frame.count = 5;
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 5);

    /* The rest, and the commit: what lies there is what was sent first, whole. */
    frame.first = 4;
    frame.count = 4;
    assert_true(forger_frame(&liar, cable_name, &frame, 5, 0));
    frame.layer = 1;
    frame.first = 0;
    frame.count = 8;
    const uint32_t layer_slices[2] = {8, 8};
    const uint64_t payload[2] = {5, 1};
    struct link_xfer commit = {.xfer_id = begin.xfer_id, .grant_epoch = begin.grant_epoch, .layer_slices = layer_slices,
                               .layer_count = 2, .bytes_total = 16 * 4096, .payload = (const uint8_t *)payload, .payload_bytes = 16};
    forger_say(&liar, LINK_COMMIT, commit); /* before the last slices: it waits for them */
    assert_true(forger_frame(&liar, cable_name, &frame, 5, 0));
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.kind, LINK_ACK);
    assert_int_equal(strncmp(expect(&d, "landed %016llx", 1ULL), "good", 4), 0);

    /* Late frames and a second commit of a transfer that is over are counted, and that is all. */
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 8);
    forger_say(&liar, LINK_COMMIT, commit);
    forger_say(&liar, LINK_ABORT, begin);
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.kind, LINK_ABORT_ACK);
    forger_close(&liar);
    audit_quiet(&d);
    proc_quit(&d);
}

/* A commit that does not add up, and a slice whose checksum is wrong, are DATA_LOSS; the blocks
 * are free again, and the link goes on. */
static void wrong_sums_are_data_loss(void **state)
{
    (void)state;
    const struct kv_layout layout = {.block_tokens = 16, .layer_count = 2, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_BF16};
    struct forger liar;
    struct link_msg msg;
    proc_start(&d, NULL, "role=d layers=2 blocks=32");
    forger_open(&liar, grant(&d, 1, 8, 60000), &layout);
    assert_true(forger_cable(&liar, cable_name, liar.ack.token));
    struct link_xfer about = {.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .block_count = 8};
    memcpy(about.secret, liar.ticket.secret, sizeof about.secret);
    forger_say(&liar, LINK_BEGIN, about);
    assert_true(forger_hear(&liar, &msg));
    struct kv_frame frame = {.xfer_id = about.xfer_id, .grant_epoch = about.grant_epoch, .layer = 1, .first = 2, .count = 3};
    assert_true(forger_frame(&liar, cable_name, &frame, 5, 1));
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.kind, LINK_ABORT);
    assert_int_equal(msg.body.xfer.code, ST_DATA_LOSS);
    forger_say(&liar, LINK_ABORT_ACK, about);
    expect_failed_fenced(1, "DATA_LOSS");
    assert_int_equal(stat_of(&d, "crc_errors"), 1);

    uint8_t ticket[KV_TICKET_BYTES_MAX];
    size_t size = hex_decode(grant(&d, 2, 4, 60000), ticket, sizeof ticket);
    assert_false(failed(kv_ticket_decode(ticket, size, NULL, &liar.ticket)));
    about = (struct link_xfer){.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .block_count = 4};
    memcpy(about.secret, liar.ticket.secret, sizeof about.secret);
    forger_say(&liar, LINK_BEGIN, about);
    assert_true(forger_hear(&liar, &msg));
    const uint32_t layer_slices[2] = {4, 3};
    about.layer_slices = layer_slices;
    about.layer_count = 2;
    about.bytes_total = 7 * 4096;
    forger_say(&liar, LINK_COMMIT, about);
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.kind, LINK_ABORT);
    forger_say(&liar, LINK_ABORT_ACK, about);
    expect_failed_fenced(2, "DATA_LOSS");
    forger_close(&liar);
    audit_quiet(&d);
    proc_quit(&d);
}

/* One bit flipped on the wire, anywhere in header, checksums or slices, is DATA_LOSS at D. */
static void flipped_bits_are_seen(void **state)
{
    (void)state;
    if (strcmp(cable_name, "tcp") != 0) {
        print_message("  %s has no wire to flip bits on\n", cable_name);
        skip();
    }
    /* The token takes 40 bytes; the first frame's head is 48 + 4 * 8. */
    static const uint64_t where[] = {40, 50, 70, 84, 90, 40 + 80, 40 + 80 + 4096, 40 + 80 + 8 * 4096 + 20, 40 + 2 * (80 + 8 * 4096) - 1};
    for (size_t i = 0; i < sizeof where / sizeof where[0]; i++) {
        char ticket_hex[LINE_MAX_CHARS];
        uint8_t bytes[KV_TICKET_BYTES_MAX];
        struct kv_ticket ticket;
        proc_start(&d, NULL, "role=d layers=2 blocks=8");
        proc_start(&p, NULL, "role=p layers=2 blocks=8");
        struct wire_proxy *proxy = wire_proxy_create(d.link_address, d.tcp_address, where[i]);
        size_t size = hex_decode(grant(&d, 1, 8, 20000), bytes, sizeof bytes);
        assert_false(failed(kv_ticket_decode(bytes, size, NULL, &ticket)));
        snprintf(ticket.link_address, sizeof ticket.link_address, "%s", wire_proxy_link_address(proxy));
        kv_ticket_encode(&ticket, bytes, &size);
        hex_encode(bytes, size, ticket_hex);
        tell(&p, "send %016x 5 %s full", 1, ticket_hex);
        const char *how = expect(&d, "failed %016llx", 1ULL);
        if (strncmp(how, "DATA_LOSS fenced", 16) != 0) { fail_msg("byte %llu: %s", (unsigned long long)where[i], how); }
        (void)expect(&p, "send_failed %016llx", 1ULL);
        pair_quit();
        wire_proxy_destroy(proxy);
    }
}

/* Blocks that the device still copies into are not given back, whatever has happened to the grant
 * or the link; when the copies have ended, they are, and nothing has been written that should not. */
static void copies_under_way_hold_their_blocks(void **state)
{
    (void)state;
    if (!pools_on_device) {
        print_message("  copies in host memory end where they began\n");
        skip();
    }
    for (int way = 0; way < 3; way++) {
        proc_start(&d, NULL, "role=d layers=4 heads=8 dim=128 blocks=64");
        proc_start(&p, NULL, "role=p layers=4 heads=8 dim=128 blocks=64");
        transfer_checked(&d, &p, 1, 3);
        tell(&d, "hold 0");
        tell(&p, "send %016x 9 %s full", 2, grant(&d, 2, 64, 60000));
        stat_wait(&d, "ops_under_way", 1);
        uint64_t start_ns = clock_now_ns();
        if (way == 0) {
            proc_kill(&p, SIGKILL);
        } else {
            tell(way == 1 ? &d : &p, "%s %016x", way == 1 ? "revoke" : "abort", 2);
        }
        char line[LINE_MAX_CHARS];
        stat_wait(&d, way == 1 ? "revoked" : "failed", 1);
        assert_false(line_next(&d, 100, line)); /* it is over, and not told yet */
        assert_int_equal(stat_of(&d, "free_blocks"), 0);
        assert_true(elapsed_ms(start_ns) < 10000);
        tell(&d, "unhold 0");
        if (way == 1) {
            (void)expect(&d, "fenced %016llx", 2ULL);
        } else {
            const char *how = expect(&d, "failed %016llx", 2ULL);
            assert_non_null(strstr(how, "fenced"));
            assert_int_equal(strncmp(how, way == 0 ? "UNAVAILABLE" : "ABORTED", 7), 0);
        }
        if (way != 0) { (void)expect(&p, "send_failed %016llx", 2ULL); }
        audit_quiet(&d);
        if (way == 0) { proc_start(&p, NULL, "role=p layers=4 heads=8 dim=128 blocks=64 epoch=2"); }
        transfer_checked(&d, &p, 3, 64);
        pair_quit();
    }
}

/* A layer that is pushed while it is still being computed leaves when it is final, not before. */
static void slices_leave_after_their_mark(void **state)
{
    (void)state;
    if (!pools_on_device) {
        print_message("  host memory has no marks\n");
        skip();
    }
    proc_start(&d, NULL, "role=d layers=4 blocks=64");
    proc_start(&p, NULL, "role=p layers=4 blocks=64");
    transfer_checked(&d, &p, 1, 3);
    uint64_t before = stat_of(&d, "slices_landed");
    tell(&p, "compute 0");
    tell(&p, "send %016x 9 %s full", 2, grant(&d, 2, 40, 60000));
    stat_wait(&p, "ops_under_way", 1); /* asked for, and waiting for the mark */
    clock_sleep_ns(100 * NS_PER_MS);   /* for what should not come */
    assert_int_equal(stat_of(&d, "slices_landed"), before);
    assert_true(stat_of(&p, "ops_under_way") > 0);
    tell(&p, "compute 1");
    assert_int_equal(strncmp(expect(&d, "landed %016llx", 2ULL), "good", 4), 0);
    (void)expect(&p, "acked %016llx", 2ULL);
    pair_quit();
}

/* P's last act is to wait until D reads its pool no more. */
static void a_pool_ends_after_its_last_reader(void **state)
{
    (void)state;
    if (!pools_on_device || strcmp(cable_name, "shm") != 0) {
        print_message("  no pool is lent on a device\n");
        skip();
    }
    proc_start(&d, NULL, "role=d layers=4 heads=8 dim=128 blocks=64");
    proc_start(&p, NULL, "role=p layers=4 heads=8 dim=128 blocks=64");
    transfer_checked(&d, &p, 1, 3);
    assert_int_equal(stat_of(&p, "imports"), 1);
    tell(&d, "hold 0");
    tell(&p, "send %016x 9 %s full", 2, grant(&d, 2, 64, 60000));
    stat_wait(&d, "ops_under_way", 1);
    tell(&p, "quit 0");
    stat_wait(&d, "failed", 1); /* P's link has ended, P itself has not */
    tell(&d, "unhold 0");
    (void)expect(&d, "failed %016llx", 2ULL);
    proc_quit(&p); /* the fake ends a process whose pool is freed under a reader */
    audit_quiet(&d);
    proc_quit(&d);
}

/* A device that is lost on either side ends the transfers and the link, with its own code there and
 * UNAVAILABLE at the peer; nothing hangs, and both sides can end. */
static void a_lost_device_ends_the_link(void **state)
{
    (void)state;
    if (!pools_on_device) {
        print_message("  no device to lose\n");
        skip();
    }
    for (int side = 0; side < 2; side++) {
        proc_start(&d, NULL, "role=d layers=4 heads=8 dim=128 blocks=64");
        proc_start(&p, NULL, "role=p layers=4 heads=8 dim=128 blocks=64");
        transfer_checked(&d, &p, 1, 3);
        tell(side == 0 ? &d : &p, "lose 0");
        tell(&p, "send %016x 9 %s full", 2, grant(&d, 2, 64, 60000));
        const char *at_d = side == 0 ? "INTERNAL fenced" : "UNAVAILABLE fenced";
        const char *at_p = side == 0 ? "UNAVAILABLE" : "INTERNAL";
        assert_int_equal(strncmp(expect(&d, "failed %016llx", 2ULL), at_d, strlen(at_d)), 0);
        assert_int_equal(strncmp(expect(&p, "send_failed %016llx", 2ULL), at_p, strlen(at_p)), 0);
        pair_quit();
    }
}

/* Nodes with different layouts never exchange a block, and the refusal names the difference. */
static void different_layouts_are_refused(void **state)
{
    (void)state;
    uint8_t bytes[KV_TICKET_BYTES_MAX];
    char ticket_hex[LINE_MAX_CHARS];
    struct kv_ticket ticket;
    struct kv_fingerprint fingerprint;
    const struct kv_layout layout = {.block_tokens = 16, .layer_count = 4, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_BF16};
    const uint8_t model_hash[32] = {42};
    proc_start(&d, NULL, "role=d layers=2 blocks=8");
    proc_start(&p, NULL, "role=p layers=4 blocks=8");
    size_t size = hex_decode(grant(&d, 1, 8, 20000), bytes, sizeof bytes);
    hex_encode(bytes, size, ticket_hex);
    tell(&p, "send %016x 5 %s full", 1, ticket_hex);
    assert_int_equal(strncmp(expect(&p, "refused %016llx", 1ULL), "FAILED_PRECONDITION", 19), 0);
    /* Even with a ticket that lies about the layout, the link's hello tells. */
    assert_false(failed(kv_ticket_decode(bytes, size, NULL, &ticket)));
    kv_fingerprint_init(&fingerprint, model_hash, &layout, "test-1");
    kv_fingerprint_hash(&fingerprint, ticket.fingerprint_hash);
    kv_ticket_encode(&ticket, bytes, &size);
    hex_encode(bytes, size, ticket_hex);
    tell(&p, "send %016x 5 %s full", 1, ticket_hex);
    const char *how = expect(&p, "send_failed %016llx", 1ULL);
    assert_int_equal(strncmp(how, "FAILED_PRECONDITION", 19), 0);
    if (!strstr(how, "layer_count: ours 4, theirs 2")) { fail_msg("the refusal does not say why: %s", how); }
    tell(&d, "revoke %016x", 1);
    (void)expect(&d, "fenced %016llx", 1ULL);
    pair_quit();
}

/* Where the better cable is missing on one side, tcp is used, and the reason is told. */
static void falls_back_to_tcp(void **state)
{
    (void)state;
    if (strcmp(cable_name, "tcp") != 0) {
        print_message("  runs with tcp\n");
        skip();
    }
    proc_start(&d, NULL, "role=d layers=2 blocks=8 cables=tcp");
    proc_start(&p, NULL, "role=p layers=2 blocks=8 cables=auto");
    tell(&p, "send %016x 5 %s full", 1, grant(&d, 1, 8, 20000));
    const char *how = expect(&p, "acked %016llx", 1ULL);
    assert_int_equal(strncmp(how, "tcp", 3), 0);
    assert_non_null(strstr(how, "shm is not offered by the receiver"));
    (void)expect(&d, "landed %016llx", 1ULL);
    pair_quit();
}

/* Pools that cannot be copied from one to the other on a device use tcp, and the reason is told. */
static void mixed_pools_fall_back_to_tcp(void **state)
{
    (void)state;
    if (!pools_on_device || strcmp(cable_name, "tcp") != 0) {
        print_message("  runs with tcp and devices\n");
        skip();
    }
    static const struct { const char *d, *p, *why; } pairs[] = {
        {"memory=host", "memory=fake", "the receiver's is not on a device"},
        {"memory=fake", "memory=host", "the receiver's is on a device"},
        {"memory=fake device=1", "memory=fake device=2", "these are on two"},
        {"memory=fake device=0", "memory=fake device=0", "shm is not offered by the receiver"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        char args[128];
        snprintf(args, sizeof args, "role=d layers=2 blocks=8 cables=auto %s", pairs[i].d);
        proc_start(&d, NULL, args);
        snprintf(args, sizeof args, "role=p layers=2 blocks=8 cables=auto %s", pairs[i].p);
        proc_start(&p, NULL, args);
        tell(&p, "send %016x 5 %s full", 1, grant(&d, 1, 8, 20000));
        const char *how = expect(&p, "acked %016llx", 1ULL);
        if (strncmp(how, "tcp", 3) != 0 || !strstr(how, pairs[i].why)) { fail_msg("pair %zu: %s", i, how); }
        assert_int_equal(strncmp(expect(&d, "landed %016llx", 1ULL), "good", 4), 0);
        pair_quit();
    }
}

/* With certificates the tcp cable is TLS; a stranger's certificate, or none, gets no cable. */
static void tls_cable(void **state)
{
    (void)state;
    if (strcmp(cable_name, "tcp") != 0) {
        print_message("  %s has no TLS\n", cable_name);
        skip();
    }
    char dirs[2][64], command[1024], args[160];
    for (int i = 0; i < 2; i++) {
        snprintf(dirs[i], sizeof dirs[i], "/tmp/baton-tls-%d-XXXXXX", i);
        assert_non_null(mkdtemp(dirs[i]));
        snprintf(command, sizeof command,
                 "cd %s && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=baton "
                 "-keyout key.pem -out cert.pem >/dev/null 2>&1 && cp cert.pem ca.pem", dirs[i]);
        if (system(command) != 0) {
            print_message("  the openssl command is missing\n");
            skip();
        }
    }
    snprintf(args, sizeof args, "role=d layers=4 heads=2 dim=128 blocks=64 tls=%s", dirs[0]);
    proc_start(&d, NULL, args);
    args[5] = 'p';
    proc_start(&p, NULL, args);
    transfer_checked(&d, &p, 1, 64);
    half_way(2, 64, 20000);
    tell(&d, "revoke %016x", 2);
    (void)expect(&d, "fenced %016llx", 2ULL);
    (void)expect(&p, "send_failed %016llx", 2ULL);
    transfer_checked(&d, &p, 3, 17);
    audit_quiet(&p);
    proc_quit(&p);
    snprintf(args, sizeof args, "role=p layers=4 heads=2 dim=128 blocks=64 tls=%s", dirs[1]);
    const char *const strangers[2] = {args, "role=p layers=4 heads=2 dim=128 blocks=64"};
    for (unsigned i = 0; i < 2; i++) {
        proc_start(&p, NULL, strangers[i]);
        tell(&p, "send %016x 5 %s full", 4 + i, grant(&d, 4 + i, 8, 20000));
        assert_int_equal(strncmp(expect(&p, "send_failed %016llx", 4ULL + i), "UNA", 3), 0); /* UNAVAILABLE, UNAUTHENTICATED */
        tell(&d, "revoke %016x", 4 + i);
        (void)expect(&d, "fenced %016llx", 4ULL + i);
        audit_quiet(&p);
        proc_quit(&p);
    }
    audit_quiet(&d);
    proc_quit(&d);
    snprintf(command, sizeof command, "rm -r %s %s", dirs[0], dirs[1]);
    assert_int_equal(system(command), 0);
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
static void cut_link_is_seen(void **state)
{
    (void)state;
    if (strcmp(cable_name, "shm") == 0) {
        print_message("  %s crosses no network\n", cable_name);
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

/* The ucx cable over TCP lanes, which need no hardware; tests/ucx/soft_roce.sh has it over RDMA. */
static bool ucx_is_here(void)
{
    char library[512], text[512];
    if (getenv("BATON_UCX_MODE")) { return true; } /* the caller knows what is here */
    if (!ucx_library_find(library, sizeof library, text, sizeof text)) {
        printf("skipped: %s\n", text);
        return false;
    }
    printf("  %s\n", library);
    setenv("BATON_UCX_LIBRARY", library, 1);
    setenv("BATON_UCX_MODE", "2", 1); /* KV_UCX_TRUST_NETWORK */
    return true;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "peer") == 0) { return peer_main(argc - 1, argv + 1); }
    char name[32] = "";
    if (argc > 1) {
        snprintf(name, sizeof name, "%s", argv[1]);
        char *suffix = strstr(name, "_device");
        pools_on_device = suffix != NULL;
        if (suffix) { *suffix = '\0'; }
        cable_name = name;
    }
    if (strcmp(cable_name, "ucx") == 0 && !ucx_is_here()) { return 0; }
    if (argc > 2) { cmocka_set_test_filter(argv[2]); }
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IONBF, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(all_shapes_land_whole, procs_end),
        cmocka_unit_test_teardown(transfers_side_by_side_do_not_mix, procs_end),
        cmocka_unit_test_teardown(different_layouts_are_refused, procs_end),
        cmocka_unit_test_teardown(falls_back_to_tcp, procs_end),
        cmocka_unit_test_teardown(mixed_pools_fall_back_to_tcp, procs_end),
        cmocka_unit_test_teardown(copies_under_way_hold_their_blocks, procs_end),
        cmocka_unit_test_teardown(slices_leave_after_their_mark, procs_end),
        cmocka_unit_test_teardown(a_pool_ends_after_its_last_reader, procs_end),
        cmocka_unit_test_teardown(a_lost_device_ends_the_link, procs_end),
        cmocka_unit_test_teardown(forged_frames_land_nowhere, procs_end),
        cmocka_unit_test_teardown(wrong_sums_are_data_loss, procs_end),
        cmocka_unit_test_teardown(flipped_bits_are_seen, procs_end),
        cmocka_unit_test_teardown(tls_cable, procs_end),
        cmocka_unit_test_teardown(lease_ends_a_grant, procs_end),
        cmocka_unit_test_teardown(killed_sender_frees_the_blocks, procs_end),
        cmocka_unit_test_teardown(killed_receiver_and_its_successor, procs_end),
        cmocka_unit_test_teardown(stopped_sender_writes_nothing_when_it_wakes, procs_end),
        cmocka_unit_test_teardown(stopped_receiver_finds_the_transfer_over, procs_end),
        cmocka_unit_test_teardown(slow_reader_gets_everything, procs_end),
        cmocka_unit_test_teardown(cut_link_is_seen, procs_end),
        cmocka_unit_test_teardown(abort_storm, procs_end),
    };
    return cmocka_run_group_tests_name(argc > 1 ? argv[1] : cable_name, tests, NULL, NULL);
}
