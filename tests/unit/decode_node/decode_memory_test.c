/* What a decode node reports, and that a step takes no memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/decode_node/decode_world.h"
#include "tests/unit/heap/counting_heap.h"

#define MS UINT64_C(1000000)

static void load_comes_with_the_router_and_then_when_it_changes(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    assert_int_equal(world->loads[0], 1);
    assert_int_equal(world->load.blocks_total, 32);
    world_tick(world, 20 * MS);
    assert_int_equal(world->loads[0], 1); /* nothing changed */
    struct world_leg *leg = world_leg(world, 0, 8, 6, 1);
    world_reserve(world, leg);
    assert_int_equal(world->loads[0], 2);
    assert_int_equal(world->load.blocks_free, 29);
    world_cancel(world, leg);
    world_fence(world, leg);
    assert_int_equal(world->loads[0], 2); /* too soon */
    uint64_t due_ns = decode_core_deadline_ns(world->core);
    assert_true(due_ns <= world->now_ns + 5 * MS);
    world_router_up(world, 1);
    assert_int_equal(world->loads[1], 1);
    world_tick(world, due_ns - world->now_ns);
    assert_int_equal(world->loads[0], 3);
    assert_int_equal(world->load.blocks_free, 32);
    assert_int_equal(decode_core_deadline_ns(world->core), UINT64_MAX);
    world_close(world);
}

static void a_config_out_of_range_is_named(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct decode_core *core = NULL;
    struct diag diag;
    config.step_rows_max = 3; /* below batch_max: not every sequence would get its row */
    assert_int_equal(decode_core_create(&config, &core, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "step_rows_max"));
    config = world_config(32, 4);
    config.lease_ns = 0;
    assert_int_equal(decode_core_create(&config, &core, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "lease_ns"));
    decode_core_destroy(NULL);
}

/* Decoding, growing, preempting, saving, loading, sliding and computing again take no memory. */
static void steps_do_not_allocate(void **state)
{
    (void)state;
    enum { PLAIN, CACHED, TIERED, WINDOWED, VARIANTS };
    for (uint32_t variant = PLAIN; variant < VARIANTS; variant++) {
        struct decode_core_config config = world_config(variant == WINDOWED ? 14 : 70, 4);
        config.prefix_cache = variant != PLAIN;
        config.tier_entries_max = variant == TIERED ? 300 : 0;
        config.preempt = DECODE_PREEMPT_SWAP;
        config.window_tokens = variant == WINDOWED ? 12 : 0;
        config.itl_stretch_percent = variant == CACHED ? 150 : 0;
        struct world *world = world_open(&config);
        uint64_t before = heap_allocations();
        for (uint32_t i = 0; i < 4; i++) {
            struct world_leg *leg = world_leg(world, 0, 9, 240, 60 + i);
            leg->reserve.local_prefill = true;
            leg->reserve.work.params.ignore_eos = true;
            world_reserve(world, leg);
        }
        assert_true(heap_allocations() > before); /* the counter counts */
        before = heap_allocations();
        uint32_t steps = 0;
        for (; (world->plan != NULL || world->request_count > 0) && steps < 1000; steps++) {
            if (world->plan != NULL) { world_step_done(world); }
            if (world->request_count > 0) { world_tier_end(world, 0, true); }
        }
        assert_int_equal(heap_allocations(), before);
        assert_true(steps > 400);
        assert_true(world_stats(world).preemptions > 0);
        if (variant == TIERED) { assert_true(world_stats(world).swaps > 0 && world_stats(world).tier_loads > 0); }
        world_finish(world);
        world_close(world);
    }
}

/* Whichever allocation fails: create says so and leaks nothing, and a leg is refused. */
static void every_failed_allocation_is_a_status(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct decode_core *core = NULL;
    struct diag diag;
    status_t st = STATUS(ST_UNKNOWN, SCOPE_NODE);
    uint32_t failures = 0;
    for (uint64_t k = 1; failed(st); k++) {
        heap_fail_next(k);
        st = decode_core_create(&config, &core, &diag);
        if (!failed(st)) { break; }
        assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
        assert_null(core);
        failures++;
    }
    heap_fail_next(0);
    assert_true(failures > 15);
    decode_core_destroy(core);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 4, 4, 1);
    heap_fail_next(1);
    world_reserve(world, leg);
    heap_fail_next(0);
    assert_int_equal(leg->end, WORLD_REFUSED);
    assert_int_equal(leg->code, ST_RESOURCE_EXHAUSTED);
    world_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(load_comes_with_the_router_and_then_when_it_changes),
        cmocka_unit_test(a_config_out_of_range_is_named),
        cmocka_unit_test(steps_do_not_allocate),
        cmocka_unit_test(every_failed_allocation_is_a_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
