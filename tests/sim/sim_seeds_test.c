/* Seeds of the simulated cluster, shared out over the shards of this test.
 * Claims: no seed breaks a promise (sim/sim.h says which); together they reach everything
 * that a seed is there to reach; and without faults nothing is resumed. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sim/sim.h"

static uint64_t seed_count = 1000;

static uint64_t number_of(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static struct sim_result run_shard(uint64_t seeds, bool calm, uint64_t *ret_count)
{
    uint64_t shards = number_of("TEST_TOTAL_SHARDS", 1), shard = number_of("TEST_SHARD_INDEX", 0);
    struct sim_result sum = {0};
    uint64_t count = 0;
    for (uint64_t seed = 1 + shard; seed <= seeds; seed += shards, count++) {
        struct sim_options options = {.seed = seed, .calm = calm};
        struct sim_result result;
        sim_run(&options, &result);
        sim_result_add(&sum, &result);
    }
    sim_result_print(&sum, count, stdout);
    *ret_count = count;
    return sum;
}

/* The checks are in the run itself: one that fails aborts, with the seed. What is asserted
 * here is that the seeds are worth running: a simulation that never preempts proves nothing
 * about preemption. */
static void seeds_keep_every_promise(void **state)
{
    (void)state;
    uint64_t count;
    struct sim_result sum = run_shard(seed_count, false, &count);
    const struct { const char *name; uint64_t count; } reached[] = {
        {"finished", sum.finished}, {"stopped", sum.stopped}, {"cancelled", sum.cancelled}, {"expired", sum.expired},
        {"refused", sum.refused}, {"lost", sum.lost}, {"tokens", sum.tokens}, {"prompt_logprobs", sum.prompt_logprobs},
        {"local_prefills", sum.local_prefills}, {"remote_prefills", sum.remote_prefills}, {"forked", sum.forked},
        {"preemptions", sum.preemptions}, {"deaths", sum.deaths}, {"cuts", sum.cuts}, {"partitions", sum.partitions},
        {"drains", sum.drains}, {"failed_steps", sum.failed_steps}, {"stops", sum.stops}, {"router_deaths", sum.router_deaths},
        {"router_drains", sum.router_drains}, {"resumed", sum.resumed}, {"revoked", sum.revoked},
        {"late_landings", sum.late_landings}, {"corrupted", sum.corrupted}, {"repeated", sum.repeated},
        {"late_messages", sum.late_messages}, {"duplicate_tokens", sum.duplicate_tokens},
        {"turns", sum.turns}, {"local_offers", sum.local_offers}, {"cached_tokens", sum.cached_tokens}, {"prefill_cached_tokens", sum.prefill_cached_tokens}, {"pushed_cached", sum.pushed_cached},
        {"tier_stores", sum.tier_stores}, {"tier_loads", sum.tier_loads}, {"tier_failures", sum.tier_failures},
        {"tier_found", sum.tier_found}, {"swaps", sum.swaps},
    };
    for (size_t i = 0; i < sizeof reached / sizeof reached[0]; i++) {
        if (reached[i].count > count / 50) { continue; } /* the rarest comes once in ten seeds or so */
        print_error("%s: reached %llu times\n", reached[i].name, (unsigned long long)reached[i].count);
        fail();
    }
    /* One in a hundred seeds, and several in one when they come: too few in a small shard. */
    if (count >= 2000) { assert_true(sum.leases > 0); }
    assert_true(sum.finished * 2 > sum.requests); /* a cluster that refuses everybody is quiet too */
}

/* The run itself fails where a calm cluster resumes a leg, calls a node unavailable, or still
 * holds something 100 ms after its last answer. */
static void nothing_breaks_where_nothing_broke(void **state)
{
    (void)state;
    uint64_t count;
    struct sim_result sum = run_shard(seed_count / 10, true, &count);
    assert_int_equal(sum.resumed, 0);
    assert_int_equal(sum.lost, 0);
    assert_int_equal(sum.deaths + sum.cuts + sum.corrupted + sum.repeated, 0);
    assert_true(sum.finished > 0);
    assert_true(sum.preemptions > 0);
    assert_true(sum.cancelled > 0);
}

static void on_abort(int signal_number)
{
    (void)signal_number;
    sim_print_failure(stderr);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strncmp(argv[1], "--seeds=", 8) == 0) { seed_count = strtoull(argv[1] + 8, NULL, 10); }
    /* Tells Bazel that the shards are known to this test. */
    const char *status_path = getenv("TEST_SHARD_STATUS_FILE");
    if (status_path) {
        FILE *file = fopen(status_path, "w");
        if (file) { fclose(file); }
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seeds_keep_every_promise),
        cmocka_unit_test(nothing_breaks_where_nothing_broke),
    };
    signal(SIGABRT, on_abort);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
