/* Priority: who goes first, who gives way to whom, and what nobody gives way for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/decode_node/decode_world.h"

#define MS UINT64_C(1000000)

static struct world_leg *leg_of(struct world *world, uint32_t prompt, uint32_t max_tokens, int32_t priority)
{
    struct world_leg *leg = world_leg(world, 0, prompt, max_tokens, world->leg_count + 1);
    leg->reserve.work.params.ignore_eos = true;
    leg->reserve.work.priority = priority;
    leg->reserve.wait_ms = 100000;
    return leg;
}

/* Higher goes first, equals as they came, and one that resumes before new ones of its priority only. */
static void queues_go_by_priority_then_as_before(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4);
    config.waiting_max = 8;
    struct world *world = world_open(&config);
    struct world_leg *holder = leg_of(world, 27, 4, 100);
    world_reserve(world, holder);
    struct world_leg *low = leg_of(world, 20, 4, -3);
    struct world_leg *first = leg_of(world, 20, 4, 2);
    struct world_leg *second = leg_of(world, 20, 4, 2);
    struct world_leg *high = leg_of(world, 20, 4, 5);
    struct world_leg *resumed = leg_of(world, 20, 8, 2);
    struct world_leg *legs[] = {low, first, second, high, resumed};
    assert_true(world_leg_resume(world, resumed, 2));
    for (uint32_t i = 0; i < 5; i++) { world_reserve(world, legs[i]); }
    struct world_leg *order[] = {high, resumed, first, second, low};
    world_cancel(world, holder);
    world_fence(world, holder);
    for (uint32_t i = 0; i < 5; i++) {
        for (uint32_t k = 0; k < 5; k++) { assert_int_equal(order[k]->has_grant, k == i); }
        world_cancel(world, order[i]);
        world_fence(world, order[i]);
    }
    world_close(world);
}

/* A queue of others that it goes before is no reason to refuse it; one of its own kind is. */
static void only_those_before_it_count_for_one_that_will_not_wait(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4);
    struct world *world = world_open(&config);
    struct world_leg *runs = leg_of(world, 15, 4, 0); /* 4 blocks */
    world_reserve(world, runs);
    struct world_leg *waits = leg_of(world, 27, 4, 0);
    world_reserve(world, waits);
    struct world_leg *equal = leg_of(world, 4, 4, 0);
    equal->reserve.wait_ms = 0;
    world_reserve(world, equal);
    assert_int_equal(equal->end, WORLD_REFUSED);
    struct world_leg *higher = leg_of(world, 4, 4, 1);
    higher->reserve.wait_ms = 0;
    world_reserve(world, higher);
    assert_true(higher->has_grant);
    world_finish(world);
    world_close(world);
}

/* A running sequence gives its blocks to a higher priority that waits, and to no equal. It is
 * computed again with the same tokens, which the world checks. */
static void blocks_go_to_the_higher_priority(void **state)
{
    (void)state;
    for (int32_t priority = 0; priority < 2; priority++) {
        struct decode_core_config config = world_config(8, 4);
        struct world *world = world_open(&config);
        struct world_leg *runs = leg_of(world, 20, 11, 0); /* grows to all 8 blocks */
        runs->reserve.local_prefill = true;
        world_reserve(world, runs);
        for (uint32_t i = 0; i < 6; i++) { world_step_done(world); }
        struct world_leg *waits = leg_of(world, 15, 4, priority);
        waits->reserve.local_prefill = true;
        world_reserve(world, waits);
        assert_int_equal(world_stats(world).preemptions, 0); /* a step is in flight: nobody is disturbed in it */
        world_step_done(world);
        assert_int_equal(world_stats(world).preemptions, priority);
        world_finish(world);
        assert_true(world_leg_is_complete(waits));
        assert_true(world_leg_is_complete(runs));
        assert_int_equal(world_stats(world).preemptions, priority);
        world_close(world);
    }
}

/* The weakest gives way: the lowest priority, and among equals the youngest; no more than it takes. */
static void the_weakest_gives_way(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(12, 4);
    struct world *world = world_open(&config);
    struct world_leg *legs[3];
    for (uint32_t i = 0; i < 3; i++) {
        legs[i] = leg_of(world, 11, 30, i == 0 ? 0 : 1); /* 4 blocks each from the second token on */
        legs[i]->reserve.local_prefill = true;
        legs[i]->reserve.work.age_ns = i == 0 ? 500 * MS : 0; /* the lowest is the oldest */
        world_reserve(world, legs[i]);
    }
    while (legs[2]->output_count[0] < 3) { world_step_done(world); }
    struct world_leg *high = leg_of(world, 11, 2, 2); /* 3 blocks */
    high->reserve.local_prefill = true;
    world_reserve(world, high);
    world_step_done(world);
    assert_int_equal(world_stats(world).preemptions, 1);
    uint32_t had[3];
    for (uint32_t i = 0; i < 3; i++) { had[i] = legs[i]->output_count[0]; }
    world_step_done(world);
    assert_int_equal(legs[0]->output_count[0], had[0]);
    assert_int_equal(legs[1]->output_count[0], had[1] + 1);
    assert_int_equal(legs[2]->output_count[0], had[2] + 1);
    world_finish(world);
    for (uint32_t i = 0; i < 3; i++) { assert_true(world_leg_is_complete(legs[i])); }
    world_close(world);
}

/* Where all of lower priority together have too little, nobody is disturbed for nothing. */
static void nobody_gives_way_in_vain(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(12, 4);
    config.prefix_cache = true;
    struct world *world = world_open(&config);
    struct world_leg *low = leg_of(world, 7, 5, 0); /* 2, then 3 blocks */
    struct world_leg *equal = leg_of(world, 20, 9, 3); /* 6, then 8 blocks */
    low->reserve.local_prefill = true;
    equal->reserve.local_prefill = true;
    world_reserve(world, low);
    world_reserve(world, equal);
    while (equal->output_count[0] == 0) { world_step_done(world); }
    struct world_leg *high = leg_of(world, 27, 4, 3); /* 7 blocks: low's and the free ones are 6 at most */
    high->reserve.local_prefill = true;
    world_reserve(world, high);
    while (equal->finish[0] == FINISH_NONE) {
        assert_int_equal(world_stats(world).preemptions, 0);
        world_step_done(world);
    }
    world_finish(world);
    assert_true(world_leg_is_complete(high));
    assert_true(world_leg_is_complete(low));
    world_close(world);
}

/* What the one who waits shares with a victim is not counted as won: it holds that already. */
static void shared_blocks_are_no_gain(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4);
    config.prefix_cache = true;
    struct world *world = world_open(&config);
    struct world_leg *low = leg_of(world, 20, 8, 0); /* 5 full blocks and one, then 7 */
    low->reserve.local_prefill = true;
    world_reserve(world, low);
    while (low->output_count[0] == 0) { world_step_done(world); }
    struct world_leg *high = leg_of(world, 29, 3, 1); /* 8 blocks, 5 of them low's */
    world_leg_extend(high, low, 0, 20);
    high->reserve.local_prefill = true;
    world_reserve(world, high);
    world_step_done(world);
    assert_int_equal(world_stats(world).preemptions, 1);
    assert_int_equal(high->cached_tokens, 20);
    world_finish(world);
    assert_true(world_leg_is_complete(high));
    assert_true(world_leg_is_complete(low));
    world_close(world);
}

/* A slot is given up without the blocks: the sequence goes on where it stood, nothing is computed again. */
static void a_slot_is_given_up_without_the_blocks(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(64, 2);
    struct world *world = world_open(&config);
    struct world_leg *legs[2];
    for (uint32_t i = 0; i < 2; i++) {
        legs[i] = leg_of(world, 4, 20, (int32_t)i);
        legs[i]->reserve.local_prefill = true;
        legs[i]->reserve.work.params.frequency_penalty = 0.5f; /* the sampler's state is built again */
        world_reserve(world, legs[i]);
    }
    while (legs[1]->output_count[0] < 5) { world_step_done(world); }
    struct world_leg *equal = leg_of(world, 4, 2, 0);
    equal->reserve.local_prefill = true;
    world_reserve(world, equal);
    struct world_leg *high = leg_of(world, 4, 3, 7);
    high->reserve.local_prefill = true;
    world_reserve(world, high);
    world_step_done(world);
    uint32_t had = legs[0]->output_count[0];
    while (!world_leg_is_complete(high)) { world_step_done(world); }
    assert_int_equal(legs[0]->output_count[0], had);
    assert_int_equal(equal->output_count[0], 0);
    assert_int_equal(world_stats(world).preemptions, 0);
    world_finish(world);
    assert_true(world_leg_is_complete(legs[0]));
    assert_true(world_leg_is_complete(legs[1]));
    assert_true(world_leg_is_complete(equal));
    assert_int_equal(world_stats(world).prompt_tokens_computed, 16);
    world_close(world);
}

/* A prompt in the middle of its chunks gives all the slots of its sequences, and takes them again. */
static void a_carrier_gives_the_slots_of_all_its_sequences(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(64, 3);
    struct world *world = world_open(&config);
    struct world_leg *low = leg_of(world, 40, 4, 0);
    low->reserve.local_prefill = true;
    low->reserve.work.params.n = 3;
    low->reserve.work.sequence_count = 3;
    world_reserve(world, low);
    struct world_leg *high = leg_of(world, 4, 3, 1);
    high->reserve.local_prefill = true;
    world_reserve(world, high);
    world_step_done(world);
    while (!world_leg_is_complete(high)) {
        assert_int_equal(low->output_count[0], 0);
        assert_int_equal(world_stats(world).sequences_running, 1);
        world_step_done(world);
    }
    world_finish(world);
    assert_true(world_leg_is_complete(low));
    assert_int_equal(world_stats(world).prompt_tokens_computed, 44);
    world_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queues_go_by_priority_then_as_before),
        cmocka_unit_test(only_those_before_it_count_for_one_that_will_not_wait),
        cmocka_unit_test(blocks_go_to_the_higher_priority),
        cmocka_unit_test(the_weakest_gives_way),
        cmocka_unit_test(nobody_gives_way_in_vain),
        cmocka_unit_test(shared_blocks_are_no_gain),
        cmocka_unit_test(a_slot_is_given_up_without_the_blocks),
        cmocka_unit_test(a_carrier_gives_the_slots_of_all_its_sequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
