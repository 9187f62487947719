/* conformance_test: what every cable must hold, with real processes that are killed, stopped,
 * cut off and lied to. Run with the cable's name: conformance_test tcp.
 * With _device behind the name the pools of both sides lie on a fake device.
 * A cable joins by its name in kv_cables[] and, for the forged frames, a case in forger.c. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/conformance/peer.h"
#include "tests/conformance/ucx_library.h"
#include "tests/conformance/conformance.h" /* last: it names the peers d and p */

struct proc d, p;

uint64_t elapsed_ms(uint64_t start_ns) { return (clock_now_ns() - start_ns) / NS_PER_MS; }

void pair_quit(void)
{
    audit_quiet(&d);
    audit_quiet(&p);
    proc_quit(&p);
    proc_quit(&d);
}

void half_way(uint64_t xfer, uint32_t count, uint32_t lease_ms)
{
    unsigned long long id = xfer;
    uint64_t before = stat_of(&d, "slices_landed");
    tell(&p, "send %016llx %llx %s half", id, id + 5, grant(&d, xfer, count, lease_ms));
    (void)expect(&p, "half %016llx", id);
    stat_wait(&d, "slices_landed", before + count);
}

void expect_failed_fenced(unsigned long long id, const char *code)
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
        if (strncmp(name, "nccl", 4) == 0) { /* always between devices; "nccl_tcp": beside tcp */
            pools_on_device = true;
            if (strcmp(name, "nccl_tcp") == 0) { cable_beside = "tcp"; }
            name[4] = '\0';
        }
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
        cmocka_unit_test_teardown(forged_messages_break_at_most_their_own_pair, procs_end),
        cmocka_unit_test_teardown(broken_pairs_end_what_they_carried, procs_end),
        cmocka_unit_test_teardown(an_abort_that_never_returns_holds_up_nobody, procs_end),
        cmocka_unit_test_teardown(a_pair_that_does_not_come_up_is_given_up, procs_end),
        cmocka_unit_test_teardown(few_pairs_serve_many_links, procs_end),
        cmocka_unit_test_teardown(pools_of_two_formats_are_converted, procs_end),
        cmocka_unit_test_teardown(a_format_is_converted_only_where_both_say_so, procs_end),
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
