/* conformance_nccl: what a communicator may do to those that use it: hang, fail, come too late, never go away, or be
 * one too many. The fake of NCCL does it on purpose: faults= of a peer. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/conformance/forger_nccl.h"
#include "tests/conformance/conformance.h" /* last: it names the peers d and p */

static bool is_nccl(void)
{
    if (strcmp(cable_name, "nccl") == 0) { return true; }
    print_message("  runs with nccl\n");
    return false;
}

static void stat_falls(struct proc *proc, const char *name, uint64_t value)
{
    uint64_t end_ns = clock_now_ns() + WAIT_S * NS_PER_S;
    while (stat_of(proc, name) > value) {
        if (clock_now_ns() > end_ns) { fail_msg("%s never fell to %llu", name, (unsigned long long)value); }
        clock_sleep_ns(2 * NS_PER_MS);
    }
}

void nccl_carries(struct proc *from, uint64_t *xfer)
{
    uint64_t end_ns = clock_now_ns() + WAIT_S * NS_PER_S;
    do {
        if (clock_now_ns() > end_ns) { fail_msg("nccl never carries anything"); }
        transfer_checked(&d, from, (*xfer)++, 1);
    } while (strcmp(carried_by, "nccl") != 0);
}

/* A transfer of all 64 blocks that breaks half way: both sides say so, and D's blocks are its own again. */
static void transfer_breaks(uint64_t xfer, const char *what)
{
    unsigned long long id = xfer;
    tell(&p, "send %016llx 9 %s full", id, grant(&d, xfer, 64, 60000));
    uint64_t start_ns = clock_now_ns();
    const char *how = expect(&d, "failed %016llx", id);
    uint64_t seen_ms = elapsed_ms(start_ns);
    assert_true(strncmp(how, "UNAVAILABLE fenced", 18) == 0 || strncmp(how, "ABORTED fenced", 14) == 0);
    assert_int_equal(stat_of(&d, "free_blocks"), 64);
    assert_int_equal(strncmp(expect(&p, "send_failed %016llx", id), "UNAVAILABLE", 11), 0);
    stat_wait(&p, "free_blocks", 64);
    printf("  %s: seen and D's blocks free after %lu ms, P's after %lu ms\n", what, (unsigned long)seen_ms, (unsigned long)elapsed_ms(start_ns));
}

/* Beside tcp the link has not noticed, and tcp carries at once; alone the link is made anew. */
static void transfer_goes_on(uint64_t xfer)
{
    if (cable_beside) {
        transfer_checked(&d, &p, xfer, 64);
        assert_int_equal(stat_of(&p, "links_lost"), 0);
        assert_int_equal(stat_of(&d, "links_lost"), 0);
        return;
    }
    uint64_t end_ns = clock_now_ns() + WAIT_S * NS_PER_S;
    for (unsigned long long id = xfer;; id++) {
        if (clock_now_ns() > end_ns) { fail_msg("the link never comes back"); }
        tell(&p, "send %016llx 9 %s full", id, grant(&d, id, 1, 60000));
        char line[LINE_MAX_CHARS];
        while (!line_next(&p, WAIT_S * 1000, line) || (strncmp(line, "acked", 5) != 0 && strncmp(line, "send_failed", 11) != 0)) {
            if (clock_now_ns() > end_ns) { fail_msg("P says nothing"); }
        }
        if (line[0] == 'a') {
            assert_int_equal(strncmp(expect(&d, "landed %016llx", id), "good", 4), 0);
            return;
        }
        tell(&d, "revoke %016llx", id); /* the peer that broke is left alone for a while */
        stat_falls(&d, "blocks_live", 0);
        clock_sleep_ns(100 * NS_PER_MS);
    }
}

/* Whatever goes wrong with a communicator in mid-transfer ends that transfer on both sides within the pair's limits, and
 * nothing else: a kernel that hangs, at P or at D, an error that NCCL tells, an abort that takes its time. All that it
 * took of the device comes back. The eighth send or receive is in the second transfer: the first of all is the pair's own,
 * four are the first transfer's. */
void broken_pairs_end_what_they_carried(void **state)
{
    (void)state;
    if (!is_nccl()) { skip(); }
    static const struct { const char *what, *d, *p; uint64_t abort_us_min; } faults[] = {
        {"a send hangs", "", "faults=hang_at=8", 0},
        {"a receive hangs", "faults=hang_at=8", "", 0},
        {"an error of the sender's", "", "faults=error_at=8", 0},
        {"an error of the receiver's", "faults=error_at=8", "", 0},
        {"a call that does not return", "", "faults=call_hangs_at=8", 0},
        {"a late abort", "", "faults=hang_at=8,abort_ms=1500", 1500000},
    };
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        char args[160];
        uint64_t xfer = 1;
        snprintf(args, sizeof args, "role=d layers=4 heads=8 dim=128 blocks=64 stall_ms=2000 %s", faults[i].d);
        proc_start(&d, NULL, args);
        snprintf(args, sizeof args, "role=p layers=4 heads=8 dim=128 blocks=64 stall_ms=2000 %s", faults[i].p);
        proc_start(&p, NULL, args);
        nccl_carries(&p, &xfer);
        transfer_breaks(xfer++, faults[i].what);
        assert_true(stat_of(&p, "nccl_broken") + stat_of(&d, "nccl_broken") >= 1); /* alone, the other sees the link's end */
        if (strstr(faults[i].p, "call_hangs")) { tell(&p, "letgo 0"); }
        if (faults[i].abort_us_min) {
            uint64_t end_ns = clock_now_ns() + WAIT_S * NS_PER_S;
            while (stat_of(&p, "nccl_abort_us") < faults[i].abort_us_min) {
                if (clock_now_ns() > end_ns) { fail_msg("the abort never ends"); }
                clock_sleep_ns(10 * NS_PER_MS);
            }
        }
        transfer_goes_on(xfer);
        pair_quit();
    }
}

/* An abort that never returns keeps its memory counted, and nothing else: blocks come back at once, the next P gets a
 * pair of its own, and a process that is told to end ends. */
void an_abort_that_never_returns_holds_up_nobody(void **state)
{
    (void)state;
    if (!is_nccl()) { skip(); }
    for (int lets_go = 0; lets_go < 2; lets_go++) {
        uint64_t xfer = 1;
        proc_start(&d, NULL, "role=d layers=8 blocks=64 faults=abort_hangs");
        proc_start(&p, NULL, "role=p layers=8 blocks=64 epoch=1");
        nccl_carries(&p, &xfer);
        half_way(xfer, 64, 60000);
        uint64_t start_ns = clock_now_ns();
        proc_kill(&p, SIGKILL);
        assert_int_equal(strncmp(expect(&d, "failed %016llx", (unsigned long long)xfer++), "UNAVAILABLE fenced", 18), 0);
        uint64_t seen_ms = elapsed_ms(start_ns);
        audit_quiet(&d);
        stat_wait(&d, "nccl_stuck", 1);
        printf("  the death is seen after %lu ms, the abort called stuck after %lu ms\n", (unsigned long)seen_ms, (unsigned long)elapsed_ms(start_ns));
        uint64_t stuck_bytes = stat_of(&d, "nccl_memory");
        assert_true(stuck_bytes > 0);
        proc_start(&p, NULL, "role=p layers=8 blocks=64 epoch=2");
        nccl_carries(&p, &xfer);
        assert_true(stat_of(&d, "nccl_memory") > stuck_bytes);
        transfer_checked(&d, &p, xfer++, 64);
        if (lets_go) {
            tell(&d, "letgo 0");
            stat_falls(&d, "nccl_stuck", 0);
            assert_true(stat_of(&d, "nccl_memory") > 0); /* of the second */
        }
        pair_quit();
    }
}

/* A pair that does not come up in its time is given up, and asked for again after a pause. Beside tcp nobody waits for
 * it; alone the transfer fails, with a word that tells why. */
void a_pair_that_does_not_come_up_is_given_up(void **state)
{
    (void)state;
    if (!is_nccl()) { skip(); }
    static const char *const sides[2][2] = {{"", "faults=init_hangs"}, {"faults=init_hangs", ""}};
    for (int side = 0; side < 2; side++) {
        char args[128];
        snprintf(args, sizeof args, "role=d layers=2 blocks=16 init_ms=400 %s", sides[side][0]);
        proc_start(&d, NULL, args);
        snprintf(args, sizeof args, "role=p layers=2 blocks=16 init_ms=400 %s", sides[side][1]);
        proc_start(&p, NULL, args);
        if (cable_beside) {
            uint64_t xfer = 1, end_ns = clock_now_ns() + WAIT_S * NS_PER_S;
            while (stat_of(&p, "nccl_broken") < 2) { /* the second after the first one's pause */
                if (clock_now_ns() > end_ns) { fail_msg("the pair is never given up"); }
                transfer_checked(&d, &p, xfer++, 16);
                assert_string_equal(carried_by, "tcp");
            }
        } else {
            tell(&p, "send %016x 5 %s full", 1, grant(&d, 1, 16, 60000));
            const char *how = expect(&p, "send_failed %016llx", 1ULL);
            assert_int_equal(strncmp(how, "UNAVAILABLE", 11), 0);
            tell(&d, "revoke %016x", 1);
            (void)expect(&d, "fenced %016llx", 1ULL);
        }
        stat_falls(&p, "nccl_comms", 0);
        stat_falls(&d, "nccl_comms", 0);
        pair_quit();
    }
}

/* With room for two pairs and five senders all transfers land, never more than two pairs are there, and those that idle
 * make room; at the end nothing is left. */
void few_pairs_serve_many_links(void **state)
{
    (void)state;
    enum { SENDERS = 5 };
    if (!is_nccl()) { skip(); }
    if (!cable_beside) {
        print_message("  a link without a pair needs another cable\n");
        skip();
    }
    static struct proc senders[SENDERS];
    bool was_carried[SENDERS] = {false};
    uint32_t carried = 0;
    proc_start(&d, NULL, "role=d layers=2 blocks=64 pairs=2");
    for (int i = 0; i < SENDERS; i++) {
        char args[96];
        snprintf(args, sizeof args, "role=p layers=2 blocks=64 node=p%d device=%d", i, i + 2);
        proc_start(&senders[i], NULL, args);
    }
    uint64_t end_ns = clock_now_ns() + 2 * WAIT_S * NS_PER_S;
    uint32_t rounds = 0;
    for (uint64_t xfer = 1; carried < SENDERS || rounds < 20; rounds++) {
        if (clock_now_ns() > end_ns) { fail_msg("only %u of %d ever had a pair", carried, SENDERS); }
        /* One sender at a time, for a while: the others idle. */
        int sender = (int)(rounds % SENDERS);
        uint64_t turn_end_ns = clock_now_ns() + 2 * NS_PER_S;
        do {
            transfer_checked(&d, &senders[sender], xfer++, 8);
            assert_true(stat_of(&d, "nccl_up") + stat_of(&d, "nccl_opening") <= 2);
        } while (!was_carried[sender] && strcmp(carried_by, "nccl") != 0 && clock_now_ns() < turn_end_ns);
        if (strcmp(carried_by, "nccl") == 0 && !was_carried[sender]) {
            was_carried[sender] = true;
            carried++;
        }
    }
    printf("  %u turns, %llu pairs closed for room\n", rounds, (unsigned long long)stat_of(&d, "nccl_closed"));
    assert_true(stat_of(&d, "nccl_closed") >= SENDERS - 2);
    for (int i = 0; i < SENDERS; i++) {
        audit_quiet(&senders[i]);
        proc_quit(&senders[i]);
    }
    stat_falls(&d, "nccl_memory", 0);
    stat_falls(&d, "nccl_comms", 0);
    audit_quiet(&d);
    proc_quit(&d);
}

static size_t slice_bytes_of(const char *format)
{
    struct kv_layout layout = {.block_tokens = 16, .layer_count = 3, .kv_heads = 2, .head_dim = 64, .dtype = DTYPE_BF16};
    if (strncmp(format, "fp8", 3) == 0) { layout.dtype = DTYPE_FP8_E4M3; }
    if (strncmp(format, "f32", 3) == 0) { layout.dtype = DTYPE_F32; }
    return kv_layout_slice_bytes(&layout);
}

/* Of two pools that keep their values in two ways, and both say so, D's bytes are what kv_convert makes of P's, what
 * travels is the smaller form, with its own sums, and nccl carries from the first transfer on, whatever else there is. */
void pools_of_two_formats_are_converted(void **state)
{
    (void)state;
    enum { BLOCKS = 50, LAYERS = 3 };
    if (!is_nccl()) { skip(); }
    static const struct { const char *from, *to; } ways[] = {{"bf16", "fp8"}, {"fp8", "bf16"}, {"bf16", "bf16-rows"}, {"f32-rows", "fp8"}};
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        char args[160];
        size_t from = slice_bytes_of(ways[i].from), to = slice_bytes_of(ways[i].to);
        snprintf(args, sizeof args, "role=d layers=3 heads=2 blocks=64 from=%s to=%s", ways[i].from, ways[i].to);
        proc_start(&d, NULL, args);
        args[5] = 'p';
        proc_start(&p, NULL, args);
        for (uint64_t xfer = 1; xfer <= 3; xfer++) {
            transfer_checked(&d, &p, xfer, BLOCKS);
            assert_string_equal(carried_by, "nccl");
        }
        uint64_t want = 3 * BLOCKS * LAYERS * (uint64_t)(from < to ? from : to);
        assert_int_equal(stat_of(&p, "nccl_bytes"), want);
        assert_int_equal(stat_of(&d, "nccl_bytes"), want);
        assert_int_equal(stat_of(&d, "bytes_landed"), 3 * BLOCKS * LAYERS * to);
        assert_int_equal(stat_of(&d, "crc_errors"), 0);
        half_way(4, BLOCKS, 60000); /* and one that is given up leaves nothing */
        tell(&p, "abort %016x", 4);
        (void)expect(&d, "failed %016llx", 4ULL);
        (void)expect(&p, "send_failed %016llx", 4ULL);
        pair_quit();
    }
}

/* What only one of the two would convert is refused before a byte moves, as pools that nobody converts; and one that
 * would meets its like without a difference, over any cable. */
void a_format_is_converted_only_where_both_say_so(void **state)
{
    (void)state;
    if (!is_nccl()) { skip(); }
    static const char *const says[3][2] = {{"no", "no"}, {"yes", "no"}, {"no", "yes"}};
    for (int i = 0; i < 3; i++) {
        char args[160];
        snprintf(args, sizeof args, "role=d layers=2 blocks=16 from=bf16 to=fp8 says=%s", says[i][0]);
        proc_start(&d, NULL, args);
        snprintf(args, sizeof args, "role=p layers=2 blocks=16 from=bf16 to=fp8 says=%s", says[i][1]);
        proc_start(&p, NULL, args);
        tell(&p, "send %016x 5 %s full", 1, grant(&d, 1, 8, 60000));
        const char *how = expect(&p, "refused %016llx", 1ULL);
        assert_int_equal(strncmp(how, "FAILED_PRECONDITION", 19), 0);
        assert_non_null(strstr(how, "another layout"));
        tell(&d, "revoke %016x", 1);
        (void)expect(&d, "fenced %016llx", 1ULL);
        pair_quit();
        snprintf(args, sizeof args, "role=d layers=2 blocks=16 from=bf16 to=bf16 says=%s", says[i][0]);
        proc_start(&d, NULL, args);
        snprintf(args, sizeof args, "role=p layers=2 blocks=16 from=bf16 to=bf16 says=%s", says[i][1]);
        proc_start(&p, NULL, args);
        transfer_checked(&d, &p, 1, 8);
        pair_quit();
    }
}

/* Nonsense on the link's messages of this cable, of any kind, size and generation, at any moment, breaks at most the
 * liar's own pair: no byte lands, nothing stays, and an honest sender beside him is served. */
void forged_messages_break_at_most_their_own_pair(void **state)
{
    (void)state;
    if (!is_nccl()) { skip(); }
    const struct kv_layout layout = {.block_tokens = 16, .layer_count = 2, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_BF16};
    unsigned seed = (unsigned)clock_wall_ns();
    const char *given = getenv("BATON_TEST_SEED");
    if (given) { seed = (unsigned)strtoul(given, NULL, 10); }
    printf("  seed %u\n", seed);
    proc_start(&d, NULL, "role=d layers=2 blocks=64 dead_ms=60000");
    proc_start(&p, NULL, "role=p layers=2 blocks=64");
    transfer_checked(&d, &p, 1, 8);
    for (int round = 0; round < 6; round++) {
        struct forger liar;
        uint64_t gen = UINT64_C(1) << 40; /* above what the forger's own pairs have */
        forger_open(&liar, grant(&d, 10 + (unsigned)round, 8, 60000), &layout);
        if (round % 2) { /* from within a true pair, and a grant that is open */
            struct link_xfer begin = {.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .block_count = 8};
            struct link_msg msg;
            memcpy(begin.secret, liar.ticket.secret, sizeof begin.secret);
            assert_true(forger_cable(&liar, "nccl", liar.ack.token));
            forger_say(&liar, LINK_BEGIN, begin);
            assert_true(forger_hear(&liar, &msg));
            assert_int_equal(msg.body.xfer.code, ST_OK);
        }
        for (int i = 0; i < 300; i++) {
            static const size_t sizes[] = {0, 1, 15, 16, 17, 20, 40, 56, 60, 144, 312, 500, KV_CABLE_MESSAGE_BYTES_MAX};
            struct nccl_wire_msg msg = {.kind = (enum nccl_wire_kind)(NCCL_WIRE_OPEN + rand_r(&seed) % NCCL_WIRE_BROKEN),
                .gen = rand_r(&seed) % 4 ? gen : gen - (uint64_t)rand_r(&seed) % 3, .open = forger_nccl_terms(&liar), .slot = (uint32_t)rand_r(&seed) % 12};
            if (msg.kind == NCCL_WIRE_OPEN) { msg.gen = rand_r(&seed) % 3 ? ++gen : (uint64_t)rand_r(&seed); }
            if (rand_r(&seed) % 8 == 0) { msg.open.slot_count = (uint32_t)rand_r(&seed); }
            msg.frame = (struct kv_frame){.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .layer = (uint32_t)rand_r(&seed) % 3,
                                          .first = (uint32_t)rand_r(&seed) % 9, .count = (uint32_t)rand_r(&seed) % KV_FRAME_BLOCKS_MAX + 1};
            msg.code = (uint32_t)rand_r(&seed);
            snprintf(msg.text, sizeof msg.text, "lies");
            if (rand_r(&seed) % 5) {
                forger_nccl_say(&liar, &msg);
            } else {
                uint8_t bytes[KV_CABLE_MESSAGE_BYTES_MAX];
                size_t count = nccl_wire_write(&msg, bytes);
                size_t cut = sizes[rand_r(&seed) % (sizeof sizes / sizeof sizes[0])];
                for (size_t at = count; at < cut; at++) { bytes[at] = (uint8_t)rand_r(&seed); }
                if (rand_r(&seed) % 2) { bytes[rand_r(&seed) % 16] ^= (uint8_t)(1u << rand_r(&seed) % 8); }
                forger_nccl_say_bytes(&liar, bytes, cut);
            }
        }
        forger_close(&liar);
        tell(&d, "revoke %016x", 10 + round); /* where nobody had begun */
        stat_falls(&d, "blocks_live", 0);
        stat_falls(&d, "blocks_quarantined", 0);
        transfer_checked(&d, &p, 100 + (unsigned)round, 8);
    }
    assert_int_equal(stat_of(&d, "links_up") >= 1, 1);
    assert_int_equal(stat_of(&p, "links_lost"), 0);
    stat_falls(&d, "nccl_comms", 1);
    pair_quit();
}
