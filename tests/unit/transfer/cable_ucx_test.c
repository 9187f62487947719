/* The ucx cable's two halves against a fake UCX: what a network cannot be made to do on demand. Pools on a device:
 * cable_ucx_device_test. Over a real UCX: tests/conformance. */
#include "transfer/cable_ucx.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/transfer/cable_ucx_sides.h"
#include "transfer/ucx_wire.h"

/* A transfer lands whole, whether UCX ends its work at once or later, and whether P pushes before or after it
 * hears of the grant. Only RDMA lanes are asked for. */
static void a_transfer_lands_whole(void **state)
{
    (void)state;
    for (int way = 0; way < 4; way++) {
        api = fake_ucx_begin();
        fake_ucx.at_once = way & 1;
        both_open();
        assert_string_equal(fake_ucx.tls, "rc,dc,ud");
        if (way & 2) { push_all(); }
        settle();
        assert_true(pool_is_untouched()); /* without D's word P does not know where to put */
        grant_open();
        if (!(way & 2)) { push_all(); }
        settle();
        assert_int_equal(d.landed, LAYERS * 4);
        assert_int_equal(p.pushes_done, LAYERS);
        assert_int_equal(p.dropped, 0);
        assert_true(all_is_there());
        struct kv_endpoint_stats stats = {0};
        kv_cable_ucx.stats(p.cable, &stats);
        assert_int_equal(stats.ucx.puts, LAYERS * 4);
        assert_int_equal(stats.ucx.connections_rdma, 1);
        both_close();
        assert_true(fake_ucx_end());
    }
}

/* Whichever call of UCX fails first, of all that a transfer makes: nothing hangs, nothing leaks, no byte
 * lands outside the grant, and P is told of every push. Also when every later call fails too. */
static void any_call_may_fail(void **state)
{
    (void)state;
    uint32_t whole = 0, broken = 0;
    for (int all_later = 0; all_later < 2; all_later++) {
        uint64_t calls = UINT64_MAX;
        for (uint64_t k = 1; k <= calls; k++) {
            api = fake_ucx_begin();
            if (all_later) { fake_ucx.refuse_from = k; } else { fake_ucx.fail_at = k; }
            bool up = !failed(side_open(&d, true)) && !failed(side_open(&p, false)) && join();
            if (up) {
                grant_open();
                push_all();
                settle();
                if (d.lost || p.lost) { /* the link ends on both sides then */
                    kv_cable_ucx.fence(d.cable, 1);
                    kv_cable_ucx.fence(p.cable, 1);
                }
                bool landed = d.landed == LAYERS * 4;
                if (landed) { assert_true(all_is_there()); }
                assert_true(landed || d.lost || p.lost);
                assert_int_equal(p.pushes_done, LAYERS);
                whole += landed;
            }
            broken += d.landed != LAYERS * 4;
            uint64_t made = fake_ucx.calls;
            both_close();
            if (!fake_ucx_end()) { fail_msg("call %lu left something", (unsigned long)k); }
            if (k > made) { calls = k; } /* it was not reached: the transfer makes no more calls */
        }
    }
    assert_true(whole > 0);
    assert_true(broken > 60);
}

/* An error callback at any point of a transfer ends the connection on that side, and what was pushed
 * comes back. */
static void errors_at_any_point_end_the_connection(void **state)
{
    (void)state;
    for (int point = 0; point < 12; point++) {
        api = fake_ucx_begin();
        assert_false(failed(side_open(&d, true)));
        assert_false(failed(side_open(&p, false)));
        struct kv_cable_offer offer = {.size = 0};
        assert_false(failed(kv_cable_ucx.offer(d.cable, 1, &offer)));
        assert_false(failed(kv_cable_ucx.connect(p.cable, 1, "", offer.bytes, offer.size, token)));
        for (int i = 0; i < point; i++) { kv_loop_run_once(loop, 0); }
        bool pushed = p.connected && d.connected;
        if (pushed) {
            grant_open();
            push_all();
            for (int i = 6; i < point; i++) { kv_loop_run_once(loop, 0); }
        }
        fake_ucx_break(-25);
        settle();
        assert_int_equal(p.lost, 1);
        assert_non_null(strstr(p.text, "a fake failure"));
        if (pushed) { assert_int_equal(p.pushes_done, LAYERS); }
        both_close();
        assert_true(fake_ucx_end());
    }
}

/* A put that finds the connection broken may end, from inside its call, all that is under way: then no frame is done with
 * twice, whichever of its puts it is. */
static void a_put_may_end_those_before_it(void **state)
{
    (void)state;
    for (uint64_t put = 1; put <= LAYERS * 4; put++) {
        api = fake_ucx_begin();
        both_open();
        grant_open();
        settle();
        fake_ucx.break_in_put = put;
        push_all();
        settle();
        assert_int_equal(p.lost, 1);
        assert_int_equal(p.pushes_done, LAYERS);
        assert_true(p.dropped > 0);
        both_close();
        assert_true(fake_ucx_end());
    }
}

/* While a put is under way P's push is not done, not even after an abort; so P does not say "quiet". */
static void an_abort_waits_for_its_puts(void **state)
{
    (void)state;
    both_open();
    grant_open();
    settle();
    fake_ucx.hold = true;
    push_all();
    settle();
    assert_true(fake_ucx.puts_posted > 0);
    kv_cable_ucx.abort(p.cable, 1, 5);
    settle();
    assert_int_equal(p.pushes_done, 0);
    fake_ucx_release();
    settle();
    assert_int_equal(p.pushes_done, LAYERS);
    assert_int_equal(p.dropped, LAYERS);
    assert_int_equal(d.landed, 0); /* no notice for what was aborted */
    both_close();
    assert_true(fake_ucx_end());
}

/* When D has fenced, puts that were under way land nowhere, whenever they end. */
static void nothing_lands_after_the_fence(void **state)
{
    (void)state;
    both_open();
    grant_open();
    settle();
    fake_ucx.hold = true;
    push_all();
    settle();
    assert_true(fake_ucx.puts_posted > 0);
    const struct kv_landing landing = the_grant();
    assert_false(kv_cable_ucx.revoke(d.cable, 1, &landing)); /* it does not know: P's word or a fence */
    d.accepts = false;
    fake_ucx.hold = false; /* D's own messages */
    kv_cable_ucx.fence(d.cable, 1);
    assert_true(kv_cable_ucx.revoke(d.cable, 1, &landing));
    assert_true(pool_is_untouched());
    fake_ucx_release();
    settle();
    assert_true(fake_ucx.puts_dropped > 0);
    assert_int_equal(fake_ucx.puts_landed, 0);
    assert_true(pool_is_untouched());
    /* The next link of the same pair works, and its old puts still do not. */
    kv_cable_ucx.fence(p.cable, 1);
    d.connected = p.connected = 0;
    assert_true(join());
    grant_open();
    push_all();
    settle();
    assert_int_equal(d.landed, LAYERS * 4);
    both_close();
    assert_true(fake_ucx_end());
}

/* A worker of D that does not drain is not destroyed: the pool's registration goes instead, so that
 * nothing lands all the same, other links end, and new ones work. */
static void a_worker_that_does_not_drain_costs_the_registration(void **state)
{
    (void)state;
    both_open();
    grant_open();
    settle();
    fake_ucx.hold = fake_ucx.hold_for_ever = true;
    push_all();
    settle();
    const struct kv_landing landing = the_grant();
    (void)kv_cable_ucx.revoke(d.cable, 1, &landing); /* D's message hangs */
    uint64_t maps = fake_ucx.maps;
    kv_cable_ucx.fence(d.cable, 1);
    assert_int_equal(fake_ucx.maps, maps + 1);
    struct kv_endpoint_stats stats = {0};
    kv_cable_ucx.stats(d.cable, &stats);
    assert_int_equal(stats.ucx.drains_forced, 1);
    assert_int_equal(stats.ucx.workers_kept, 1);
    /* P's own end hangs as well: the push is done when UCX lets go of it, not before. */
    kv_cable_ucx.fence(p.cable, 1);
    assert_int_equal(p.pushes_done, 0);
    fake_ucx_release();
    settle_ms(120); /* the cable's clock */
    assert_int_equal(p.pushes_done, LAYERS);
    assert_int_equal(fake_ucx.puts_landed, 0);
    assert_true(pool_is_untouched());
    d.connected = p.connected = 0;
    d.lost = p.lost = 0;
    assert_true(join());
    grant_open();
    push_all();
    settle();
    assert_int_equal(d.landed, LAYERS * 4);
    both_close();
}

/* The endpoint may answer a report with a fence, from inside it. */
static void a_fence_from_inside_a_report(void **state)
{
    (void)state;
    both_open();
    d.fence_in_landed = true;
    grant_open();
    push_all();
    settle();
    assert_true(d.landed >= 4);
    assert_true(d.landed < LAYERS * 4);
    kv_cable_ucx.fence(p.cable, 1);
    assert_int_equal(p.pushes_done, LAYERS);
    both_close();
    assert_true(fake_ucx_end());
}

/* Bytes that change between P's sum and D's are seen. */
static void a_changed_slice_is_seen(void **state)
{
    (void)state;
    both_open();
    grant_open();
    settle();
    fake_ucx.hold = true;
    push_all();
    settle();
    p.pool[kv_layout_slice_offset(&layout, 2, 0) + 3] ^= 4;
    fake_ucx_release();
    settle();
    assert_int_equal(d.bad_sums, 1);
    assert_int_equal(d.landed, (LAYERS - 1) * 4);
    both_close();
}

/* Who does not show the link's token is not let in; a peer that does not answer is given up in time for the
 * next cable to be tried. */
static void a_wrong_token_and_a_silent_peer(void **state)
{
    (void)state;
    uint8_t wrong[KV_CABLE_TOKEN_BYTES] = {7, 7, 8};
    assert_false(failed(side_open(&d, true)));
    assert_false(failed(side_open(&p, false)));
    struct kv_cable_offer offer = {.size = 0};
    assert_false(failed(kv_cable_ucx.offer(d.cable, 1, &offer)));
    assert_false(failed(kv_cable_ucx.connect(p.cable, 1, "", offer.bytes, offer.size, wrong)));
    settle();
    assert_int_equal(d.connected + p.connected, 0);
    for (int i = 0; i < 100 && !p.lost; i++) { settle_ms(50); }
    assert_int_equal(p.lost, 1);
    assert_non_null(strstr(p.text, "did not answer in time"));
    both_close();
    assert_true(fake_ucx_end());
}

/* Offers that were cut, stretched or are of something else are refused before UCX sees a byte of them. */
static void offers_are_checked(void **state)
{
    (void)state;
    assert_false(failed(side_open(&d, true)));
    assert_false(failed(side_open(&p, false)));
    struct kv_cable_offer offer = {.size = 0};
    assert_false(failed(kv_cable_ucx.offer(d.cable, 1, &offer)));
    uint64_t calls = fake_ucx.calls;
    for (uint32_t size = 0; size < offer.size; size++) {
        assert_int_equal(kv_cable_ucx.connect(p.cable, 2, "", offer.bytes, size, token).code, ST_INVALID_ARGUMENT);
    }
    offer.bytes[offer.size] = 0;
    assert_int_equal(kv_cable_ucx.connect(p.cable, 2, "", offer.bytes, offer.size + 1, token).code, ST_INVALID_ARGUMENT);
    offer.bytes[0] ^= 1;
    assert_int_equal(kv_cable_ucx.connect(p.cable, 2, "", offer.bytes, offer.size, token).code, ST_INVALID_ARGUMENT);
    assert_int_equal(fake_ucx.calls, calls);
    both_close();
    assert_true(fake_ucx_end());
}

/* A library that is too old is refused by its version, one that is missing by name, and a cable that is off says
 * how it is turned on. */
static void what_cannot_be_used_is_named(void **state)
{
    (void)state;
    fake_ucx.version_minor = 18;
    assert_int_equal(side_open(&d, true).code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(d.text, "this is UCX 1.18.0. UCX 1.19 or newer is needed"));
    both_close();
    struct kv_ucx_config config = {.mode = KV_UCX_RDMA, .library = "/nowhere/libucp.so.0"};
    struct diag diag = {.text = ""};
    assert_int_equal(kv_ucx_prepare(&config, &diag).code, ST_UNAVAILABLE);
    assert_non_null(strstr(diag.text, "/nowhere/libucp.so.0"));
    assert_non_null(strstr(diag.text, "--ucx-library"));
    config.mode = KV_UCX_OFF;
    assert_false(failed(kv_ucx_prepare(&config, &diag)));
    struct kv_cable_host off = {.endpoint = NULL};
    assert_int_equal(kv_cable_ucx.open(&off, &diag, &d.cable).code, ST_UNIMPLEMENTED);
    assert_non_null(strstr(diag.text, "--ucx=rdma"));
    assert_true(fake_ucx_end());
}

/* Sixty-four rounds of joining and leaving, with and without transfers, leave nothing behind, and no more workers
 * live than links. */
static void joining_and_leaving_leaks_nothing(void **state)
{
    (void)state;
    assert_false(failed(side_open(&d, true)));
    assert_false(failed(side_open(&p, false)));
    for (int round = 0; round < 64; round++) {
        d.connected = p.connected = d.landed = 0;
        assert_true(join());
        if (round % 3) {
            grant_open();
            push_all();
            settle();
            assert_int_equal(d.landed, LAYERS * 4);
        }
        if (round % 2) { fake_ucx_break(-25); }
        settle();
        kv_cable_ucx.fence(d.cable, 1);
        kv_cable_ucx.fence(p.cable, 1);
        assert_int_equal(fake_ucx.workers, 0);
    }
    assert_int_equal(fake_ucx.workers_most, 2);
    both_close();
    assert_true(fake_ucx_end());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_cannot_be_used_is_named, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(offers_are_checked, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(any_call_may_fail, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(errors_at_any_point_end_the_connection, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_put_may_end_those_before_it, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(an_abort_waits_for_its_puts, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(nothing_lands_after_the_fence, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_worker_that_does_not_drain_costs_the_registration, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_fence_from_inside_a_report, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_changed_slice_is_seen, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_wrong_token_and_a_silent_peer, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_transfer_lands_whole, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(joining_and_leaving_leaks_nothing, sides_set_up, sides_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
