/* The NCCL pairs of simulated clusters. The checks are in the run itself (sim/sim_pairs.h says which): one that fails
 * aborts, with the seed and the command that replays it. What is asserted here is what comes of many runs. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sim/sim_pairs.h"

#define MIB (UINT64_C(1) << 20)
#define S UINT64_C(1000000000)

static uint64_t seed_count = 1000;

static struct sim_pairs_result run(struct sim_pairs_options options)
{
    struct sim_pairs_result result;
    sim_pairs_run(&options, &result);
    return result;
}

/* 64 prefill nodes and 64 decode nodes; a pair takes 56 MiB of each. */
static struct sim_pairs_options large(uint64_t seed)
{
    return (struct sim_pairs_options){
        .seed = seed,
        .prefill_count = 64,
        .decode_count = 64,
        .memory_max = 2048 * MIB,
        .slots_bytes = 16 * MIB,
        .nccl_bytes = 40 * MIB,
        .nccl_bytes_first = 40 * MIB,
        .transfers_per_min = 120,
        .span_ns = 120 * S,
    };
}

/* No seed breaks a promise, and together they reach everything that a seed is there to reach. */
static void seeds_keep_every_promise(void **state)
{
    (void)state;
    struct sim_pairs_result sum = {0};
    for (uint64_t seed = 1; seed <= seed_count; seed++) {
        struct sim_pairs_result result = run((struct sim_pairs_options){.seed = seed});
        sim_pairs_result_add(&sum, &result);
    }
    sim_pairs_result_print(&sum, seed_count, stdout);
    const struct { const char *name; uint64_t count; } reached[] = {
        {"by_nccl", sum.by_nccl}, {"by_other", sum.by_other}, {"pair_broke_under", sum.pair_broke_under},
        {"pair_closed_under", sum.pair_closed_under}, {"came_up", sum.came_up}, {"closed_for_room", sum.closed_for_room},
        {"broke", sum.broke}, {"denied", sum.denied}, {"overran", sum.overran}, {"stuck", sum.stuck},
        {"stuck_ended", sum.stuck_ended}, {"kills", sum.kills}, {"leaves", sum.leaves}, {"cuts", sum.cuts},
        {"shifts", sum.shifts}, {"stale_messages", sum.stale_messages},
    };
    for (size_t i = 0; i < sizeof reached / sizeof reached[0]; i++) {
        if (reached[i].count > seed_count / 20) { continue; }
        print_error("%s: reached %llu times\n", reached[i].name, (unsigned long long)reached[i].count);
        fail();
    }
}

/* The same seed is the same run, event by event; another is another. */
static void a_seed_is_one_run(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct sim_pairs_result one = run((struct sim_pairs_options){.seed = seed});
        struct sim_pairs_result same = run((struct sim_pairs_options){.seed = seed});
        struct sim_pairs_result other = run((struct sim_pairs_options){.seed = seed + 1});
        assert_memory_equal(&one, &same, sizeof one);
        assert_true(one.hash != other.hash);
    }
}

/* 64 x 64 nodes, killed, leaving and coming back all the time: memory stays under the cap, which is for about half of
 * the pairs there could be, and is used; most of what is opened comes up. */
static void many_nodes_come_and_go_under_the_cap(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct sim_pairs_result result = run(large(seed));
        sim_pairs_result_print(&result, 1, stdout);
        assert_true(result.kills + result.leaves > 150);
        assert_int_equal(result.memory_most_prefill, 36 * 56 * MIB);
        assert_int_equal(result.memory_most_decode, 36 * 56 * MIB);
        assert_int_equal(result.overran, 0);
        assert_true(result.came_up * 10 > result.opened * 8);
        assert_true(result.by_nccl * 10 > result.transfers * 3);
    }
}

/* Steady traffic is carried by NCCL: what goes by the other cable is what came before the pairs were up, and the
 * one transfer in twenty that goes to anybody. And where nothing fails, nothing breaks. */
static void steady_traffic_goes_by_nccl(void **state)
{
    (void)state;
    struct sim_pairs_options options = large(1);
    options.calm = true;
    options.hot_count = 4;
    struct sim_pairs_result result = run(options);
    sim_pairs_result_print(&result, 1, stdout);
    uint64_t early = result.transfers - result.late_transfers, early_by_other = result.by_other - result.late_by_other;
    assert_true(result.late_by_other * 20 < result.late_transfers);
    assert_true(result.late_by_other * early < early_by_other * result.late_transfers);
    assert_int_equal(result.broke + result.stuck + result.pair_broke_under, 0);
}

/* A cap for half the links that are used alike gives about half of the transfers to NCCL, and those that have a pair keep
 * it: few are closed for others. */
static void links_used_alike_do_not_chase_each_other(void **state)
{
    (void)state;
    struct sim_pairs_options options = large(1);
    options.calm = true;
    struct sim_pairs_result result = run(options);
    sim_pairs_result_print(&result, 1, stdout);
    assert_true(result.late_by_other * 100 < result.late_transfers * 55);
    /* 4 at once and 24 in two minutes, at each of 128 nodes. */
    assert_true(result.closed_for_room <= 128 * 28);
    assert_true(result.closed_for_room * 4 < result.transfers);
}

/* Where traffic moves every minute, pairs move after it. */
static void pairs_follow_traffic(void **state)
{
    (void)state;
    struct sim_pairs_options options = large(1);
    options.calm = true;
    options.hot_count = 4;
    options.shift_ns = 60 * S;
    options.span_ns = 300 * S;
    options.memory_max = 9 * 56 * MIB;
    struct sim_pairs_result result = run(options);
    sim_pairs_result_print(&result, 1, stdout);
    assert_true(result.shifts > 64 * 4);
    assert_true(result.late_by_other * 100 < result.late_transfers * 18);
}

static void on_abort(int signal_number)
{
    (void)signal_number;
    sim_pairs_print_failure(stderr);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strncmp(argv[1], "--seeds=", 8) == 0) { seed_count = strtoull(argv[1] + 8, NULL, 10); }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seeds_keep_every_promise),
        cmocka_unit_test(a_seed_is_one_run),
        cmocka_unit_test(many_nodes_come_and_go_under_the_cap),
        cmocka_unit_test(steady_traffic_goes_by_nccl),
        cmocka_unit_test(links_used_alike_do_not_chase_each_other),
        cmocka_unit_test(pairs_follow_traffic),
    };
    signal(SIGABRT, on_abort);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
