/* Sliding windows: the same few blocks at any length, for prompts and for outputs. The world's engine reads
 * the window only, and whatever it reads shows in the tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/decode_node/decode_world.h"

#define MS UINT64_C(1000000)
#define WINDOW 10u
#define RING_BLOCKS 5u /* 10 tokens and a chunk of 6 in blocks of 4, and one for where they begin */

static struct world *open_windowed(uint32_t block_count, bool prefix_cache)
{
    struct decode_core_config config = world_config(block_count, 4);
    config.window_tokens = WINDOW;
    config.prefix_cache = prefix_cache;
    return world_open(&config);
}

static struct world_leg *leg_of(struct world *world, uint32_t prompt, uint32_t max_tokens, bool is_local)
{
    struct world_leg *leg = world_leg(world, 0, prompt, max_tokens, 5);
    leg->reserve.work.params.ignore_eos = true;
    leg->reserve.local_prefill = is_local;
    return leg;
}

/* A window of one token sees nothing; more blocks than the pool has for one window are refused by the flag
 * that gives more, as long prompts are not. */
static void what_can_never_run_is_refused(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    config.window_tokens = 1;
    struct decode_core *core = NULL;
    struct diag diag;
    assert_int_equal(decode_core_create(&config, &core, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "window_tokens"));
    struct world *world = open_windowed(RING_BLOCKS - 1, false);
    struct world_leg *leg = leg_of(world, 300, 4, true);
    world_reserve(world, leg);
    assert_int_equal(leg->code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(leg->message, "--kv-memory"));
    world_close(world);
}

/* Prompt and output are many times the pool, and the request never holds more than its ring. */
static void memory_is_constant_at_any_length(void **state)
{
    (void)state;
    for (uint32_t cached = 0; cached < 2; cached++) {
        struct world *world = open_windowed(RING_BLOCKS + 1, cached == 1);
        for (uint32_t local = 0; local < 2; local++) {
            struct world_leg *leg = leg_of(world, 150, 200, local == 1);
            leg->reserve.work.params.seed = local;
            world_reserve(world, leg);
            if (leg->has_grant) { world_land(world, leg); }
            while (world->plan != NULL) {
                assert_in_range(world_stats(world).blocks_held, 1, RING_BLOCKS);
                world_step_done(world);
            }
            assert_int_equal(leg->output_count[0], 200);
            assert_int_equal(world_stats(world).preemptions, 0);
        }
        world_close(world);
    }
}

/* Only blocks that the first new token's window sees are granted. */
static void a_grant_begins_at_the_window(void **state)
{
    (void)state;
    struct world *world = open_windowed(16, false);
    struct world_leg *leg = leg_of(world, 100, 4, false);
    world_reserve(world, leg);
    assert_int_equal(leg->cached_tokens, 0);
    assert_int_equal(leg->grant_first, (100 - WINDOW + 1) / 4);
    assert_int_equal(leg->granted_count, 25 - leg->grant_first);
    world_cancel(world, leg);
    assert_int_equal(world_stats(world).blocks_quarantined, leg->granted_count);
    world_fence(world, leg);
    assert_int_equal(world_stats(world).blocks_free, 16);
    leg = leg_of(world, WINDOW - 1, 4, false); /* shorter than the window: as ever */
    world_reserve(world, leg);
    assert_int_equal(leg->grant_first, 0);
    world_finish(world);
    world_close(world);
}

/* The next turn of a chat needs the last window of the one before, however long that was, and no more. */
static void the_next_turn_finds_the_last_window(void **state)
{
    (void)state;
    struct world *world = open_windowed(14, true);
    struct world_leg *first = leg_of(world, 100, 61, true);
    world_reserve(world, first);
    world_finish(world);
    for (uint32_t local = 0; local < 2; local++) {
        struct world_leg *next = world_leg(world, 0, 165, 4, 9);
        world_leg_extend(next, first, 0, 161);
        next->reserve.local_prefill = local == 1;
        next->reserve.work.params.ignore_eos = true;
        uint64_t computed = world_stats(world).prompt_tokens_computed;
        world_reserve(world, next);
        assert_int_equal(next->cached_tokens, local ? 164 : 160);
        world_finish(world);
        assert_true(world_leg_is_complete(next));
        if (local) { assert_int_equal(world_stats(world).prompt_tokens_computed - computed, 1); }
    }
    world_close(world);
}

/* Without the blocks right before its end a cached beginning is of no use. */
static void a_window_with_a_hole_is_not_found(void **state)
{
    (void)state;
    struct world *world = open_windowed(16, true);
    struct world_leg *first = leg_of(world, 41, 2, true);
    world_reserve(world, first);
    world_finish(world);
    struct world_leg *next = leg_of(world, 41, 2, false);
    next->prompt[30] ^= 1; /* the chain breaks in block 7: the blocks up to it are there */
    world_reserve(world, next);
    assert_int_equal(next->cached_tokens, 28);
    world_finish(world);
    assert_true(world_leg_is_complete(next));
    world_close(world);
}

static void sequences_share_and_leave_the_window_each_on_its_own(void **state)
{
    (void)state;
    struct world *world = open_windowed(24, true);
    for (uint32_t local = 0; local < 2; local++) {
        struct world_leg *leg = leg_of(world, 42, 60, local == 1);
        leg->reserve.work.params.n = 3;
        leg->reserve.work.sequence_count = 3;
        world_reserve(world, leg);
        world_finish(world);
        for (uint32_t i = 0; i < 3; i++) { assert_int_equal(leg->output_count[i], 60); }
        assert_int_equal(world_stats(world).blocks_held, 0);
    }
    world_close(world);
}

/* One that gave its blocks up finds its last window again, or computes everything once more. */
static void a_preempted_window_comes_back(void **state)
{
    (void)state;
    for (uint32_t cached = 0; cached < 2; cached++) {
        struct world *world = open_windowed(2 * RING_BLOCKS - 2, cached == 1);
        struct world_leg *legs[2];
        for (uint32_t i = 0; i < 2; i++) {
            legs[i] = leg_of(world, 60, 60, true);
            legs[i]->prompt[0] = i;
            legs[i]->reserve.work.age_ns = (2 - i) * 100 * MS;
            world_reserve(world, legs[i]);
        }
        world_finish(world);
        assert_true(world_leg_is_complete(legs[0]));
        assert_true(world_leg_is_complete(legs[1]));
        world_close(world);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_can_never_run_is_refused),
        cmocka_unit_test(memory_is_constant_at_any_length),
        cmocka_unit_test(a_grant_begins_at_the_window),
        cmocka_unit_test(the_next_turn_finds_the_last_window),
        cmocka_unit_test(a_window_with_a_hole_is_not_found),
        cmocka_unit_test(sequences_share_and_leave_the_window_each_on_its_own),
        cmocka_unit_test(a_preempted_window_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
