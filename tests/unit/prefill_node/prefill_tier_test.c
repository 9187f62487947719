#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/prefill_node/prefill_world.h"

static struct pworld *open_tiered(uint32_t block_count)
{
    struct prefill_core_config config = pworld_config(block_count);
    config.prefix_cache = true;
    config.tier_entries_max = 100;
    return pworld_open(&config);
}

/* Computes a prompt of four full blocks, and others until the pool has given its blocks away. */
static struct pworld_job *evicted_prompt(struct pworld *world)
{
    struct pworld_job *first = pworld_job(world, 0, 17, 0, 1);
    (void)pworld_computed_by(world, first);
    for (uint32_t i = 0; i < 4; i++) { (void)pworld_computed_by(world, pworld_job(world, 0, 24, 0, 50 + i)); }
    return first;
}

/* What the pool gave away comes back from a tier, is pushed like any cached block, and only the rest is
 * computed; nothing is computed before the loads have ended. */
static void an_evicted_prefix_comes_back_from_a_tier(void **state)
{
    (void)state;
    struct pworld *world = open_tiered(10);
    struct pworld_job *first = evicted_prompt(world);
    assert_true(pworld_stats(world).tier_stores >= 4);
    struct pworld_job *again = pworld_next_turn(world, first, 17, 20, 1);
    uint64_t before = pworld_stats(world).prompt_tokens_computed;
    pworld_send(world, again);
    assert_int_equal(world->operation_count, 4);
    assert_null(world->plan);
    assert_int_equal(again->pushed_count, 0);
    assert_int_equal(pworld_stats(world).tokens_queued, 4);
    for (uint32_t i = 0; i < 4; i++) { pworld_tier_end(world, world->operation_count - 1, true); }
    assert_int_equal(again->cached_pushed, 3);
    assert_non_null(world->plan);
    pworld_finish(world);
    assert_int_equal(again->end, PWORLD_DONE);
    assert_int_equal(again->done.cached_tokens, 16);
    assert_int_equal(pworld_stats(world).prompt_tokens_computed - before, 4);
    assert_int_equal(pworld_stats(world).tier_tokens_loaded, 16);
    pworld_close(world);
}

/* Where a load fails the chain ends: what lies before it is used, the rest is computed. */
static void a_failed_load_ends_the_chain(void **state)
{
    (void)state;
    for (uint32_t bad = 0; bad < 4; bad++) {
        struct pworld *world = open_tiered(10);
        struct pworld_job *first = evicted_prompt(world);
        struct pworld_job *again = pworld_next_turn(world, first, 17, 20, 0);
        pworld_send(world, again);
        assert_int_equal(world->operation_count, 4);
        for (uint32_t i = 0; i < 4; i++) { pworld_tier_end(world, 0, i != bad); }
        pworld_finish(world);
        assert_int_equal(again->end, PWORLD_DONE);
        assert_int_equal(again->done.cached_tokens, bad * 4);
        assert_int_equal(pworld_stats(world).tier_load_failures, 1);
        pworld_close(world);
    }
}

/* A job cancelled while its blocks are loaded keeps them until nothing writes into them. */
static void cancel_waits_for_loads(void **state)
{
    (void)state;
    struct pworld *world = open_tiered(10);
    struct pworld_job *again = pworld_next_turn(world, evicted_prompt(world), 17, 20, 0);
    pworld_send(world, again);
    pworld_cancel(world, again);
    pworld_ended(world, again);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(pworld_stats(world).blocks_held, 5);
        pworld_tier_end(world, 0, true);
    }
    assert_int_equal(pworld_stats(world).jobs, 0);
    pworld_finish(world);
    pworld_close(world);
}

/* Once rates are measured, what is cheaper to compute is computed: a disk that is slow is left alone. */
static void a_slow_tier_is_not_used(void **state)
{
    (void)state;
    struct pworld *world = open_tiered(10);
    struct pworld_job *first = evicted_prompt(world);
    struct kv_tier_event slow = {.kind = KV_TIER_LOADED, .elapsed_ns = UINT64_C(60000000000), .bytes = 1};
    struct pworld_job *again = pworld_next_turn(world, first, 17, 20, 0);
    pworld_send(world, again);
    assert_int_equal(world->operation_count, 4); /* nothing is known yet */
    while (world->operation_count > 0) { /* each takes a minute */
        struct pworld_operation operation = world->operations[0];
        memmove(&world->operations[0], &world->operations[1], --world->operation_count * sizeof operation);
        for (uint32_t e = 0; e < world->entry_count; e++) {
            if (kv_hash_equal(world->entries[e].hash, operation.hash)) {
                kv_model_restore(world->model, operation.block, world->entries[e].marks);
            }
        }
        slow.tag = operation.tag;
        slow.hash = operation.hash;
        slow.block = operation.block;
        pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_TIER, .tier = &slow});
    }
    pworld_finish(world);
    for (uint32_t i = 0; i < 4; i++) { (void)pworld_computed_by(world, pworld_job(world, 0, 24, 0, 70 + i)); }
    assert_int_equal(pworld_computed_by(world, pworld_next_turn(world, first, 17, 20, 0)), 20);
    assert_int_equal(pworld_stats(world).loads_chosen, 1);
    assert_int_equal(pworld_stats(world).loads_declined, 1);
    pworld_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_evicted_prefix_comes_back_from_a_tier),
        cmocka_unit_test(a_failed_load_ends_the_chain),
        cmocka_unit_test(cancel_waits_for_loads),
        cmocka_unit_test(a_slow_tier_is_not_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
