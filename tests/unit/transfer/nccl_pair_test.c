/* A pair moves bytes between two devices, and says so when something goes wrong in use, whatever it is.
 * Over fake_nccl and fake_memory. Limits that are to expire are short, all others a minute. */
#include <sched.h>
#include <string.h>

#include "base/rng.h"
#include "tests/unit/transfer/nccl_pair_sides.h"

/* ---- what works ------------------------------------------------------------------------------- */

/* Bytes arrive whole and in the order of the calls, whatever slots they go through; both ends hear of each, and slots are
 * used over and over. Random, against what was written. */
static void bytes_arrive_in_order(void **state)
{
    (void)state;
    struct two two;
    const uint64_t seed = 20261122;
    struct rng rng = rng_init(seed);
    print_message("seed %llu\n", (unsigned long long)seed);
    begin(&two);
    uint32_t of_p[SLOTS] = {0}, of_d[SLOTS] = {0}, number = 0;
    for (int round = 0; round < 60; round++) {
        uint32_t count = 1 + (uint32_t)rng_below(&rng, SLOTS), first_p = (uint32_t)rng_below(&rng, SLOTS), first_d = (uint32_t)rng_below(&rng, SLOTS);
        size_t bytes[SLOTS];
        for (uint32_t i = 0; i < count; i++) {
            bytes[i] = 1 + rng_below(&rng, SLOT_BYTES);
            fill(&two.p, (first_p + i) % SLOTS, number + i, bytes[i]);
        }
        for (uint32_t i = 0; i < count; i++) { move(&two, (first_p + i) % SLOTS, (first_d + i) % SLOTS, bytes[i]); }
        for (uint32_t i = 0; i < count; i++) {
            uint32_t slot_p = (first_p + i) % SLOTS, slot_d = (first_d + i) % SLOTS;
            of_p[slot_p]++;
            of_d[slot_d]++;
            AWAIT(&two.p, two.p.passed[slot_p] == of_p[slot_p]);
            AWAIT(&two.d, two.d.passed[slot_d] == of_d[slot_d]);
            assert_true(holds(&two.d, slot_d, number + i, bytes[i]));
        }
        number += count;
    }
    assert_false(two.p.is_broken);
    assert_false(two.d.is_broken);
    close_two(&two);
}

/* A pair that is idle has nothing that could stall, however short the limit, and ends without its peer, to which that
 * shows as a rank that has gone. */
static void idle_pair_stays_and_ends_alone(void **state)
{
    (void)state;
    struct two two;
    begin_with(&two, MINUTE, 1);
    AWAIT(&two.p, two.p.is_up);
    AWAIT(&two.d, two.d.is_up);
    uint64_t looks = fake_nccl_counts().looks + 6; /* at least two of each */
    while (fake_nccl_counts().looks < looks) { sched_yield(); }
    assert_false(two.p.is_broken || two.d.is_broken);
    end(&two.p);
    AWAIT(&two.d, two.d.is_broken);
    assert_int_equal(two.d.status.code, ST_UNAVAILABLE);
    assert_int_equal(two.d.status.cause, NCCL_REMOTE_ERROR);
    end(&two.d);
    nothing_is_left(&two);
}

/* ---- what goes wrong in use ------------------------------------------------------------------------ */

/* An async error and a hang at the third transfer: what came before has passed, the third never does, on neither side, and
 * BROKEN says which of the two it was. */
static void failures_in_use_are_told(void **state)
{
    (void)state;
    for (int hangs = 0; hangs < 2; hangs++) {
        struct two two;
        options(hangs ? (struct fake_nccl_options){.hang_at = 4} : (struct fake_nccl_options){.error_at = 4}); /* 1: the first bytes */
        begin_with(&two, MINUTE, NS_PER_S);
        AWAIT(&two.p, two.p.is_up);
        AWAIT(&two.d, two.d.is_up);
        for (uint32_t i = 0; i < 4; i++) {
            fill(&two.p, i, i, 2000);
            move(&two, i, i, 2000);
            if (i < 2) { AWAIT(&two.d, two.d.passed[i] == 1); }
        }
        AWAIT(&two.d, two.d.is_broken);
        AWAIT(&two.p, two.p.is_broken);
        assert_int_equal(two.d.status.code, hangs ? ST_DEADLINE_EXCEEDED : ST_UNAVAILABLE);
        assert_non_null(strstr(two.d.text, hangs ? "2 transfers have not moved for 1000 ms" : "remote process exited"));
        assert_int_equal(two.d.passed_all, 2);
        assert_true(two.p.passed_all <= 2);
        nccl_pair_transfer(two.d.pair, 0, 2000); /* a cable that has not heard yet */
        close_two(&two);
        assert_int_equal(two.d.passed_all, 2);
    }
}

/* Transfers that an abort cuts short do not pass, though their queue goes on: neither one that is on the device, nor those
 * behind it. */
static void cut_transfers_do_not_pass(void **state)
{
    (void)state;
    for (uint32_t count = 1; count <= SLOTS; count += SLOTS - 1) {
        struct two two;
        begin(&two);
        for (uint32_t i = 0; i < count; i++) { nccl_pair_transfer(two.d.pair, i, 512); } /* that nobody sends */
        while (fake_memory_under_way(two.memory_d) < count) { sched_yield(); } /* the PASSED of each */
        end(&two.d);
        assert_int_equal(two.d.passed_all, 0);
        assert_false(two.d.is_broken);
        end(&two.p);
        nothing_is_left(&two);
    }
}

/* Bytes that come after a pair was given up come into its slot, and nobody hears of them. */
static void late_bytes_are_not_told(void **state)
{
    (void)state;
    struct two two;
    begin_with(&two, MINUTE, NS_PER_S / 10);
    AWAIT(&two.p, two.p.is_up);
    AWAIT(&two.d, two.d.is_up);
    nccl_pair_transfer(two.d.pair, 0, 512);
    AWAIT(&two.d, two.d.is_broken);
    assert_int_equal(two.d.status.code, ST_DEADLINE_EXCEEDED);
    fill(&two.p, 3, 1, 512);
    nccl_pair_transfer(two.p.pair, 3, 512);
    while (fake_memory_under_way(two.memory_d) > 0) { sched_yield(); }
    assert_true(holds(&two.d, 0, 1, 512));
    assert_int_equal(two.d.passed_all, 0);
    close_two(&two);
}

/* The device is lost: so is the pair, and it ends all the same. */
static void lost_device_breaks_the_pair(void **state)
{
    (void)state;
    struct two two;
    begin(&two);
    fake_memory_lose(two.memory_d);
    move(&two, 0, 0, 512);
    AWAIT(&two.d, two.d.is_broken);
    assert_int_equal(two.d.status.code, ST_INTERNAL);
    assert_int_equal(two.d.status.scope, SCOPE_NODE);
    end(&two.d);
    end(&two.p);
    assert_true(fake_nccl_end());
    fake_memory_destroy(two.memory_p);
    fake_memory_destroy(two.memory_d);
}

/* ---- what NCCL does not give back -------------------------------------------------------------------- */

/* An abort that does not return: the pair is stuck after its limit and not before, its memory stays taken, and others are
 * made, work and end meanwhile. Should it return after all, the pair ends. */
static void abort_that_hangs_holds_up_nobody(void **state)
{
    (void)state;
    struct two stuck, other;
    options((struct fake_nccl_options){.abort_hangs = true});
    begin(&stuck);
    nccl_pair_transfer(stuck.d.pair, 0, 512);
    while (fake_nccl_counts().kernels < 1) { sched_yield(); }
    assert_false(nccl_pair_is_stuck(stuck.d.pair, clock_now_ns()));
    nccl_pair_end(stuck.d.pair);
    while (fake_nccl_counts().hanging < 1) { sched_yield(); }
    assert_false(nccl_pair_is_stuck(stuck.d.pair, clock_now_ns() - NS_PER_S));
    assert_true(nccl_pair_is_stuck(stuck.d.pair, clock_now_ns() + NCCL_ABORT_NS));
    assert_false(nccl_pair_is_stuck(stuck.p.pair, clock_now_ns()));

    options((struct fake_nccl_options){.version = 0});
    begin(&other);
    fill(&other.p, 0, 8, 512);
    move(&other, 0, 0, 512);
    AWAIT(&other.d, other.d.passed[0] == 1);
    assert_true(holds(&other.d, 0, 8, 512));
    nccl_pair_end(other.p.pair);
    nccl_pair_end(other.d.pair);
    finish(&other.p);
    finish(&other.d);
    assert_int_equal(left_of(other.memory_d), other.left);
    fake_memory_destroy(other.memory_p);
    fake_memory_destroy(other.memory_d);

    assert_false(stuck.d.is_ended);
    assert_int_equal(left_of(stuck.memory_d), stuck.left - COMM_BYTES - SLOTS * SLOT_BYTES);
    nccl_pair_end(stuck.p.pair);
    fake_nccl_let_go();
    AWAIT(&stuck.d, stuck.d.is_ended);
    assert_false(nccl_pair_is_stuck(stuck.d.pair, clock_now_ns() + MINUTE));
    finish(&stuck.d);
    finish(&stuck.p);
    nothing_is_left(&stuck);
}

/* A call that does not return makes a pair stuck as well, before anybody told it to end. */
static void call_that_hangs_is_stuck(void **state)
{
    (void)state;
    struct two two;
    options((struct fake_nccl_options){.call_hangs_at = 2});
    begin(&two);
    nccl_pair_transfer(two.d.pair, 0, 512);
    while (fake_nccl_counts().hanging < 1) { sched_yield(); }
    assert_false(nccl_pair_is_stuck(two.d.pair, clock_now_ns()));
    assert_true(nccl_pair_is_stuck(two.d.pair, clock_now_ns() + NCCL_ABORT_NS));
    assert_false(nccl_pair_is_stuck(two.p.pair, clock_now_ns()));
    fake_nccl_let_go();
    close_two(&two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_arrive_in_order),
        cmocka_unit_test(idle_pair_stays_and_ends_alone),
        cmocka_unit_test(failures_in_use_are_told),
        cmocka_unit_test(cut_transfers_do_not_pass),
        cmocka_unit_test(late_bytes_are_not_told),
        cmocka_unit_test(lost_device_breaks_the_pair),
        cmocka_unit_test(abort_that_hangs_holds_up_nobody),
        cmocka_unit_test(call_that_hangs_is_stuck),
    };
    return cmocka_run_group_tests(tests, sides_setup, NULL);
}
