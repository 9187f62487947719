/* The ucx cable between pools on devices: nothing of theirs is touched by the CPU (it would fault), puts wait for
 * the device's sums, and what the device is still at is waited for, whatever becomes of the link. */
#include "transfer/cable_ucx.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/transfer/cable_ucx_sides.h"
#include "transfer/ucx_wire.h"

enum { WIDE = BLOCKS * LAYERS }; /* frames of one slice that a grant of all blocks takes */

static const struct fake_memory_config quick = {.device = 1, .seed = 7};
static const struct fake_memory_config late = {.device = 1, .seed = 11, .delay_us_max = 2000};

static void both_open_on(const struct fake_memory_config *d_device, const struct fake_memory_config *p_device)
{
    assert_false(failed(side_open_on(&d, true, d_device)));
    assert_false(failed(side_open_on(&p, false, p_device)));
    assert_true(join());
}

/* Slices of all of D's blocks, in pushes of one slice: numbers [from, to) of WIDE. */
static void push_some(uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        pushes[i] = (struct kv_cable_push){.frame = {.grant_epoch = 9, .layer = i / BLOCKS, .first = i % BLOCKS, .count = 1}, .send_slot = 5};
        pushes[i].blocks[0] = i % BLOCKS;
        kv_cable_ucx.push(p.cable, 1, &pushes[i]);
    }
}

static void push_wide(void) { push_some(0, WIDE); }

/* The device has done what it was given; the loop has not heard of it. */
static void device_wait(struct kv_memory *memory)
{
    uint64_t end_ns = clock_now_ns() + 10 * NS_PER_S;
    while (fake_memory_under_way(memory) > 0) { assert_true(clock_now_ns() < end_ns); }
}

/* Between two devices, and between a device and host memory either way round: the bytes that land are the bytes
 * that were sent, each sum is made where the pool lies, and UCX is told what memory it is. */
static void a_transfer_lands_whole(void **state)
{
    (void)state;
    for (int way = 0; way < 12; way++) {
        const struct fake_memory_config *at_d = way % 3 != 1 ? &late : NULL, *at_p = way % 3 != 2 ? &late : NULL;
        api = fake_ucx_begin();
        fake_ucx.at_once = way / 3 & 1;
        both_open_on(at_d, at_p);
        assert_string_equal(fake_ucx.tls, at_p ? "rc,dc,ud,cuda_copy" : "rc,dc,ud"); /* P's, which was opened last */
        assert_int_equal(fake_ucx.maps_cuda, (at_d != NULL) + (at_p != NULL));
        assert_ptr_equal(fake_memory_bound(), at_p ? p.memory : d.memory);
        if (way >= 6) { push_all(); }
        settle();
        assert_true(pool_is_untouched()); /* without D's word P does not know where to put */
        grant_open();
        if (way < 6) { push_all(); }
        until(&d.landed, LAYERS * 4);
        until(&p.pushes_done, LAYERS);
        assert_int_equal(p.dropped, 0);
        assert_int_equal(d.bad_sums, 0);
        assert_true(all_is_there());
        if (at_p) { assert_int_equal(fake_memory_ops(p.memory), LAYERS); }
        if (at_d) { assert_int_equal(fake_memory_ops(d.memory), LAYERS); }
        assert_int_equal(d.let_go, at_d ? LAYERS : 0);
        both_close();
        assert_true(fake_ucx_end());
    }
}

static void fill_block(void *block)
{
    memset(p.pool + kv_layout_slice_offset(&layout, (uint32_t)(uintptr_t)block, 0), 0x77, kv_layout_slice_bytes(&layout));
}

/* A layer that is pushed while it is still being computed is put when its mark has passed, not before. */
static void a_put_waits_for_its_mark(void **state)
{
    (void)state;
    both_open_on(&quick, &late);
    grant_open();
    fake_memory_hold_marks(p.memory, true);
    uint64_t mark = fake_memory_mark(p.memory, fill_block, (void *)(uintptr_t)2);
    push_all_after(mark);
    settle_ms(20); /* for what should not come */
    assert_int_equal(fake_memory_under_way(p.memory), LAYERS);
    assert_int_equal(fake_ucx.puts_posted, 0);
    fake_memory_hold_marks(p.memory, false);
    until(&d.landed, LAYERS * 4);
    assert_true(all_is_there());
    assert_int_equal(d.pool[kv_layout_slice_offset(&layout, d.blocks[2], 0)], 0x77);
}

/* A send that is aborted while its slices are summed holds them until that is over; then nothing is put. */
static void an_abort_waits_for_its_sums(void **state)
{
    (void)state;
    both_open_on(&quick, &quick);
    grant_open_of(BLOCKS);
    fake_memory_set_held(p.memory, true);
    push_wide();
    settle();
    uint32_t at_device = fake_memory_under_way(p.memory);
    assert_in_range(at_device, 1, WIDE - 1); /* the rest waits for a record */
    kv_cable_ucx.abort(p.cable, 1, 5);
    settle();
    assert_int_equal(p.pushes_done, WIDE - at_device);
    fake_memory_set_held(p.memory, false);
    until(&p.pushes_done, WIDE);
    assert_int_equal(p.dropped, WIDE);
    assert_int_equal(fake_ucx.puts_posted, 0);
    /* Another send is not concerned, and finds the records free. */
    push_all();
    until(&d.landed, LAYERS * 4);
}

/* P's link ends while its device sums: what waits comes back at once, what is summed when that is over, long after
 * the fence; the next link of the pair does not notice. */
static void sums_of_a_fenced_sender_end_late(void **state)
{
    (void)state;
    both_open_on(&quick, &quick);
    grant_open_of(BLOCKS);
    fake_memory_set_held(p.memory, true);
    push_wide();
    settle();
    uint32_t at_device = fake_memory_under_way(p.memory);
    kv_cable_ucx.fence(p.cable, 1);
    kv_cable_ucx.fence(d.cable, 1);
    assert_int_equal(p.pushes_done, WIDE - at_device);
    assert_int_equal(fake_ucx.workers, 0); /* UCX is done with, the device is not */
    d.connected = p.connected = 0;
    assert_true(join());
    fake_memory_set_held(p.memory, false);
    until(&p.pushes_done, WIDE);
    assert_int_equal(p.dropped, WIDE);
    assert_int_equal(fake_ucx.puts_posted, 0);
    grant_open();
    push_all();
    until(&d.landed, LAYERS * 4);
    assert_true(all_is_there());
    assert_int_equal(d.lost + p.lost, 0);
}

/* D holds what its device still sums, through the end of grant and link; what ends after that is not told of. */
static void sums_of_a_fenced_receiver_hold_their_blocks(void **state)
{
    (void)state;
    both_open_on(&quick, &quick);
    grant_open();
    fake_memory_set_held(d.memory, true);
    push_all();
    until(&d.held, LAYERS);
    until(&p.pushes_done, LAYERS); /* P's part is done */
    assert_int_equal(d.landed, 0);
    const struct kv_landing landing = the_grant();
    d.accepts = false;
    (void)kv_cable_ucx.revoke(d.cable, 1, &landing);
    kv_cable_ucx.fence(d.cable, 1);
    kv_cable_ucx.fence(p.cable, 1);
    settle();
    assert_int_equal(d.let_go, 0);
    fake_memory_set_held(d.memory, false);
    until(&d.let_go, LAYERS);
    settle();
    assert_int_equal(d.landed + d.bad_sums + d.lost, 0);
    d.connected = p.connected = 0;
    assert_true(join());
    grant_open();
    push_all();
    until(&d.landed, LAYERS * 4);
}

/* A D whose device is behind takes as many frames as it has records for; the rest waits in UCX, P with it, and
 * nobody turns in circles meanwhile. */
static void a_device_that_is_behind_stops_the_sender(void **state)
{
    (void)state;
    both_open_on(&quick, &quick);
    grant_open_of(BLOCKS);
    fake_memory_set_held(d.memory, true);
    push_some(0, 40);
    until(&d.held, 32);
    until(&p.pushes_done, 40);
    settle();
    push_some(40, WIDE);
    until(&p.pushes_done, WIDE); /* all have been put, in this UCX whose messages wait for nobody */
    settle();
    assert_int_equal(d.held, 32);
    /* A loop that finds something ready at once, again and again, is one that turns in circles. */
    uint64_t longest_ns = 0;
    for (int i = 0; i < 20 && longest_ns < 25 * NS_PER_MS; i++) {
        uint64_t start_ns = clock_now_ns();
        kv_loop_run_once(loop, 30);
        longest_ns = clock_now_ns() - start_ns > longest_ns ? clock_now_ns() - start_ns : longest_ns;
    }
    assert_true(longest_ns >= 25 * NS_PER_MS);
    fake_memory_set_held(d.memory, false);
    until(&d.landed, WIDE);
    assert_true(all_is_there());
    assert_int_equal(d.held, WIDE);
}

/* Bytes that were changed on the way are seen, by the second sum as by the first. */
static void a_changed_slice_is_seen(void **state)
{
    (void)state;
    both_open_on(&quick, &quick);
    grant_open();
    fake_ucx.flips = 1;
    push_all();
    until(&d.frames, LAYERS);
    assert_int_equal(d.bad_sums, 1);
    assert_int_equal(d.landed, (LAYERS - 1) * 4);
    assert_int_equal(fake_memory_ops(d.memory), LAYERS + 1);
    assert_int_equal(d.let_go, d.held);
}

/* Bytes that a card's notice has overtaken are waited for: one more sum. */
static void an_overtaken_slice_is_summed_again(void **state)
{
    (void)state;
    both_open_on(&quick, &quick);
    grant_open();
    fake_memory_set_held(d.memory, true);
    push_all();
    until(&d.held, LAYERS);
    uint8_t *byte = d.pool + kv_layout_slice_offset(&layout, d.blocks[1], 2) + 9;
    *byte ^= 1; /* it has not come yet */
    fake_memory_set_held(d.memory, false);
    device_wait(d.memory);
    *byte ^= 1;
    until(&d.frames, LAYERS);
    assert_int_equal(d.bad_sums, 0);
    assert_int_equal(d.landed, LAYERS * 4);
    assert_int_equal(fake_memory_ops(d.memory), LAYERS + 1);
    assert_int_equal(d.let_go, LAYERS);
    assert_int_equal(d.held, LAYERS);
}

/* A device that is lost ends the link on its side, with its own code; every push comes back, and every hold. */
static void a_lost_device_ends_the_link(void **state)
{
    (void)state;
    for (int way = 0; way < 2; way++) {
        struct side *side = way == 0 ? &p : &d;
        api = fake_ucx_begin();
        both_open_on(&late, &late);
        grant_open();
        fake_memory_lose(side->memory);
        push_all();
        until(&side->lost, 1);
        assert_int_equal(side->lost_status.code, ST_INTERNAL);
        assert_non_null(strstr(side->text, way == 0 ? "our device could not read the slices" : "our device could not read what has landed"));
        kv_cable_ucx.fence(p.cable, 1);
        kv_cable_ucx.fence(d.cable, 1);
        until(&p.pushes_done, LAYERS);
        until(&d.let_go, d.held);
        settle();
        assert_int_equal(d.landed, 0);
        assert_int_equal(d.lost + p.lost, 1);
        both_close();
        assert_true(fake_ucx_end());
    }
}

/* Closing a cable waits for what its device is at. */
static void the_end_waits_for_the_device(void **state)
{
    (void)state;
    both_open_on(&late, &late);
    grant_open();
    push_all();
    until(&d.held, 1);
    kv_cable_ucx.close(p.cable);
    p.cable = NULL;
    assert_int_equal(p.pushes_done, LAYERS);
    assert_int_equal(fake_memory_under_way(p.memory), 0);
    kv_cable_ucx.close(d.cable);
    d.cable = NULL;
    assert_int_equal(d.let_go, d.held);
    assert_int_equal(fake_memory_under_way(d.memory), 0);
    both_close(); /* a fake device that is freed with work under way ends the process */
    assert_true(fake_ucx_end());
}

/* Puts that are under way when D fences land nowhere, on a device as little as in host memory; a worker that does
 * not drain costs the registration, and the new one serves. */
static void nothing_lands_after_the_fence(void **state)
{
    (void)state;
    for (int forced = 0; forced < 2; forced++) {
        api = fake_ucx_begin();
        both_open_on(&quick, &quick);
        grant_open();
        settle();
        fake_ucx.hold = true;
        fake_ucx.hold_for_ever = forced;
        push_all();
        for (int i = 0; i < 1000 && fake_ucx.puts_posted < LAYERS * 4; i++) { kv_loop_run_once(loop, 5); }
        assert_int_equal(fake_ucx.puts_posted, LAYERS * 4);
        const struct kv_landing landing = the_grant();
        d.accepts = false;
        if (forced) { (void)kv_cable_ucx.revoke(d.cable, 1, &landing); } /* D's message hangs */
        fake_ucx.hold = forced;
        kv_cable_ucx.fence(d.cable, 1);
        assert_int_equal(fake_ucx.maps_cuda, 2 + forced);
        kv_cable_ucx.fence(p.cable, 1);
        assert_int_equal(p.pushes_done, forced ? 0 : LAYERS);
        fake_ucx_release();
        settle_ms(forced ? 120 : 1); /* the cable's clock */
        assert_int_equal(p.pushes_done, LAYERS);
        assert_int_equal(fake_ucx.puts_landed, 0);
        assert_true(pool_is_untouched());
        d.connected = p.connected = 0;
        assert_true(join());
        grant_open();
        push_all();
        until(&d.landed, LAYERS * 4);
        assert_true(all_is_there());
        both_close();
        if (!forced) { assert_true(fake_ucx_end()); }
    }
}

/* A UCX without CUDA, and a machine whose cards cannot be given a GPU's memory, are refused in words: the cable is there,
 * offers nothing, tells P's links why, and has nothing of UCX open. For host memory neither matters. */
static void what_cannot_be_used_is_named(void **state)
{
    (void)state;
    static const struct { bool knows_cuda, is_direct, maps_no_cuda; const char *says[3]; } cases[] = {
        {false, true, false, {"the KV pool lies on a GPU, and this UCX knows no CUDA memory", "libuct_cuda.so", "libucx-cu13"}},
        {true, false, false, {"no network card can be given the GPU's KV pool", "nvidia-peermem", "dma-buf"}},
        {true, true, true, {"no network card can be given the GPU's KV pool", "GPUDirect RDMA", "a fake failure"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        api = fake_ucx_begin();
        fake_ucx.knows_cuda = cases[i].knows_cuda;
        fake_ucx.is_direct = cases[i].is_direct;
        fake_ucx.maps_no_cuda = cases[i].maps_no_cuda;
        struct kv_cable_offer offer = {.size = 0};
        assert_false(failed(side_open_on(&d, true, &quick)));
        assert_true(fake_ucx_end());
        assert_int_equal(kv_cable_ucx.offer(d.cable, 1, &offer).code, ST_UNIMPLEMENTED);
        const char *why = kv_cable_ucx.mismatch(d.cable, offer.bytes, offer.size);
        for (int k = 0; k < 3; k++) {
            if (!why || !strstr(why, cases[i].says[k])) { fail_msg("case %zu: \"%s\" is not in: %s", i, cases[i].says[k], why); }
        }
        assert_true(failed(kv_cable_ucx.connect(d.cable, 1, "", offer.bytes, offer.size, token)));
        struct kv_endpoint_stats stats = {.grants = 0};
        kv_cable_ucx.stats(d.cable, &stats);
        assert_int_equal(stats.ucx.registered_bytes, 0);
        both_close();
        assert_true(fake_ucx_end());
        api = fake_ucx_begin();
        fake_ucx.knows_cuda = cases[i].knows_cuda;
        fake_ucx.is_direct = cases[i].is_direct;
        assert_false(failed(side_open(&d, true)));
        assert_false(failed(kv_cable_ucx.offer(d.cable, 1, &offer)));
        assert_null(kv_cable_ucx.mismatch(d.cable, offer.bytes, offer.size));
        both_close();
        assert_true(fake_ucx_end());
    }
}

/* Whichever call of UCX fails first: nothing hangs, nothing leaks, every push comes back, every hold is let go of. */
static void any_call_may_fail(void **state)
{
    (void)state;
    uint32_t whole = 0, broken = 0;
    uint64_t calls = UINT64_MAX;
    for (uint64_t k = 1; k <= calls; k++) {
        api = fake_ucx_begin();
        fake_ucx.fail_at = k;
        bool up = !failed(side_open_on(&d, true, &quick)) && !failed(side_open_on(&p, false, &quick)) && join();
        if (up) {
            grant_open();
            push_all();
            uint64_t end_ns = clock_now_ns() + 10 * NS_PER_S;
            while (d.landed < LAYERS * 4 && d.lost + p.lost == 0) {
                kv_loop_run_once(loop, 5);
                if (clock_now_ns() > end_ns) { fail_msg("stuck with call %lu", (unsigned long)k); }
            }
            if (d.lost || p.lost) { /* the link ends on both sides then */
                kv_cable_ucx.fence(d.cable, 1);
                kv_cable_ucx.fence(p.cable, 1);
            }
            until(&p.pushes_done, LAYERS);
            until(&d.let_go, d.held);
            if (d.landed == LAYERS * 4) { assert_true(all_is_there()); }
            assert_int_equal(d.bad_sums, 0);
            whole += d.landed == LAYERS * 4;
        }
        broken += d.landed != LAYERS * 4;
        uint64_t made = fake_ucx.calls;
        both_close();
        if (!fake_ucx_end()) { fail_msg("call %lu left something", (unsigned long)k); }
        if (k > made) { calls = k; } /* it was not reached: the transfer makes no more calls */
    }
    assert_true(whole > 0);
    assert_true(broken > 30);
}

/* What a packed key says is believed only if all of it reads. */
static void keys_are_read_to_their_end(void **state)
{
    (void)state;
    /* Domains 0 and 2: one with no key, one with four bytes; behind them a byte of something else. */
    uint8_t key[16] = {5, 0, 0, 0, 0, 0, 0, 0, UCX_MEMORY_TYPE_CUDA, 0, 4, 1, 2, 3, 4, 0x80};
    assert_true(ucx_rkey_is_registered(key, 16, UCX_MEMORY_TYPE_CUDA));
    assert_true(ucx_rkey_is_registered(key, 15, UCX_MEMORY_TYPE_CUDA));
    assert_false(ucx_rkey_is_registered(key, 16, UCX_MEMORY_TYPE_HOST));
    for (size_t size = 0; size < 15; size++) {
        uint8_t *cut = malloc(size + 1); /* so that a sanitizer sees a byte too far */
        memcpy(cut + 1, key, size);
        assert_false(ucx_rkey_is_registered(cut + 1, size, UCX_MEMORY_TYPE_CUDA));
        free(cut);
    }
    key[10] = 0; /* both without: nobody but the host's own copies */
    assert_false(ucx_rkey_is_registered(key, 16, UCX_MEMORY_TYPE_CUDA));
    key[0] = 0;
    assert_false(ucx_rkey_is_registered(key, 9, UCX_MEMORY_TYPE_CUDA));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_cannot_be_used_is_named, sides_set_up, sides_tear_down),
        cmocka_unit_test(keys_are_read_to_their_end),
        cmocka_unit_test_setup_teardown(any_call_may_fail, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_put_waits_for_its_mark, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(an_abort_waits_for_its_sums, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(sums_of_a_fenced_sender_end_late, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(sums_of_a_fenced_receiver_hold_their_blocks, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_device_that_is_behind_stops_the_sender, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(nothing_lands_after_the_fence, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_changed_slice_is_seen, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(an_overtaken_slice_is_summed_again, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_lost_device_ends_the_link, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(the_end_waits_for_the_device, sides_set_up, sides_tear_down),
        cmocka_unit_test_setup_teardown(a_transfer_lands_whole, sides_set_up, sides_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
