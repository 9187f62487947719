/* conformance_device: what pools on a device ask of a cable beyond the rest. */
#include <signal.h>

#include "tests/conformance/peer.h"
#include "tests/conformance/conformance.h" /* last: it names the peers d and p */

/* Blocks that the device still copies into are not given back, whatever has happened to the grant
 * or the link; when the copies have ended, they are, and nothing has been written that should not. */
void copies_under_way_hold_their_blocks(void **state)
{
    (void)state;
    if (!pools_on_device) {
        print_message("  copies in host memory end where they began\n");
        skip();
    }
    for (int way = 0; way < 3; way++) {
        proc_start(&d, NULL, "role=d layers=4 heads=8 dim=128 blocks=64");
        proc_start(&p, NULL, "role=p layers=4 heads=8 dim=128 blocks=64");
        bool is_nccl = strcmp(cable_name, "nccl") == 0;
        uint64_t xfer = 100;
        if (is_nccl) { nccl_carries(&p, &xfer); }
        transfer_checked(&d, &p, 1, 3);
        uint64_t frames = stat_of(&d, "nccl_frames");
        tell(&d, "hold 0");
        tell(&p, "send %016x 9 %s full", 2, grant(&d, 2, 64, 60000));
        if (is_nccl) { stat_wait(&d, "nccl_frames", frames + 1); } /* then one is being copied, and not only waited for */
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
void slices_leave_after_their_mark(void **state)
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
void a_pool_ends_after_its_last_reader(void **state)
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
    proc_ends(&p); /* the fake ends a process whose pool is freed under a reader */
    audit_quiet(&d);
    proc_quit(&d);
}

/* A device that is lost on either side ends the transfers and the link, with its own code there and
 * UNAVAILABLE at the peer; nothing hangs, and both sides can end. */
void a_lost_device_ends_the_link(void **state)
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
        const char *how = expect(&d, "failed %016llx", 2ULL);
        /* Beside another cable the link lives on, and P may say that it gave up before D has had a frame. */
        bool is_told = cable_beside && strncmp(how, "ABORTED fenced", 14) == 0;
        if (!is_told) { assert_int_equal(strncmp(how, at_d, strlen(at_d)), 0); }
        assert_int_equal(strncmp(expect(&p, "send_failed %016llx", 2ULL), at_p, strlen(at_p)), 0);
        pair_quit();
    }
}
