/* Steps: chunks beside decoding, shared blocks, a full batch, and who gives way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/decode_node/decode_world.h"

#define MS UINT64_C(1000000)

static void a_failed_step_fails_its_legs_or_the_node(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *in_step = world_leg(world, 0, 8, 6, 1);
    in_step->reserve.local_prefill = true;
    struct world_leg *granted = world_leg(world, 0, 8, 6, 2);
    world_reserve(world, in_step);
    world_reserve(world, granted);
    world_step_failed(world, SCOPE_REQUEST);
    assert_false(failed(world->status));
    assert_int_equal(in_step->end, WORLD_FAILED);
    assert_int_equal(in_step->code, ST_INTERNAL);
    assert_int_equal(granted->end, WORLD_OPEN);
    world_land(world, granted);
    world_step_failed(world, SCOPE_NODE);
    assert_int_equal(world->status.scope, SCOPE_NODE);
    assert_int_equal(world->status.code, ST_INTERNAL);
    world_close(world);
}

/* Prompts computed here go through in chunks beside the rows that decode, and their
 * log-probabilities come first, each index once. The world checks order and values. */
static void local_prefill_runs_in_chunks_beside_decoding(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(64, 4);
    struct world *world = world_open(&config);
    struct world_leg *first = world_leg(world, 0, 5, 40, 1);
    first->reserve.local_prefill = true;
    first->reserve.work.params.ignore_eos = true;
    world_reserve(world, first);
    world_step_done(world);
    assert_int_equal(first->output_count[0], 1);
    struct world_leg *leg = world_leg(world, 0, 33, 3, 2);
    leg->reserve.local_prefill = true;
    leg->reserve.work.params.prompt_logprobs = 3;
    world_reserve(world, leg);
    world_step_done(world);
    uint32_t steps = 0;
    while (leg->output_count[0] == 0) {
        assert_int_equal(world->plan->span_count, 2);
        assert_int_equal(world->plan->spans[0].row_count, 1);
        world_step_done(world);
        steps++;
    }
    assert_int_equal(steps, 6); /* 33 tokens in chunks of 6 */
    assert_int_equal(leg->logprob_next, 33);
    assert_int_equal(first->output_count[0], 8);
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    assert_int_equal(world_stats(world).prompt_tokens_computed, 5 + 33);
    world_tick(world, 5 * MS);
    /* A row takes 1 us; 6 of 7 rows are the prompt's, 3 of 4 in its last step. */
    assert_in_range(world->load.tokens_per_s, 750000, 900000);
    world_close(world);
}

/* With a stretch, chunks beside sequences that decode are cut to it; alone, or without one, they are not. */
static void chunks_beside_decoding_are_cut_to_the_stretch(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(64, 4);
    config.itl_stretch_percent = 150;
    config.step_rows_max = 40;
    config.chunk_tokens = 32;
    struct world *world = world_open(&config);
    struct world_leg *first = world_leg(world, 0, 32, 30, 1);
    first->reserve.local_prefill = true;
    first->reserve.work.params.ignore_eos = true;
    world_reserve(world, first);
    assert_int_equal(world->plan->spans[0].row_count, 32); /* nobody decodes */
    while (first->output_count[0] < 4) { world_step_done(world); }
    struct world_leg *leg = world_leg(world, 0, 20, 3, 2);
    leg->reserve.local_prefill = true;
    world_reserve(world, leg);
    world_step_done(world);
    /* A row takes as long as the step of the one that decodes: one at a time it is. */
    uint32_t had = first->output_count[0];
    while (leg->output_count[0] == 0) {
        assert_int_equal(world->plan->spans[world->plan->span_count - 1].row_count, 1);
        world_step_done(world);
    }
    assert_int_equal(first->output_count[0] - had, 20);
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    world_close(world);
}

/* Sequences of one prompt share its full blocks; only the part-filled one is copied. */
static void sequences_share_the_prompts_full_blocks(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 8);
    struct world *world = world_open(&config);
    for (uint32_t local = 0; local < 2; local++) {
        for (uint32_t prompt = 8; prompt < 10; prompt++) {
            struct world_leg *leg = world_leg(world, 0, prompt, 3, 10 * prompt + local);
            leg->reserve.local_prefill = local == 1;
            leg->reserve.work.params.n = 5;
            leg->reserve.work.sequence_first = 1;
            leg->reserve.work.sequence_count = 4;
            leg->reserve.work.params.ignore_eos = true;
            uint32_t copies = world->copies;
            world_reserve(world, leg);
            /* Two full blocks, and for each sequence one that it writes alone. */
            assert_int_equal(world_stats(world).blocks_held, 2 + 4);
            if (local == 0) { world_land(world, leg); }
            world_finish(world);
            assert_int_equal(world->copies - copies, prompt == 8 ? 0 : 3);
            for (uint32_t i = 0; i < 4; i++) { assert_int_equal(leg->output_count[i], 3); }
            assert_int_equal(world_stats(world).blocks_free, 32);
        }
    }
    world_close(world);
}

/* The carrier may be the one that is cancelled: the prompt's blocks pass to the next. */
static void a_cancelled_carrier_leaves_its_blocks_to_the_next(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 8);
    struct world *world = world_open(&config);
    for (uint32_t local = 0; local < 2; local++) {
        struct world_leg *leg = world_leg(world, 0, 9, 6, 20 + local);
        leg->reserve.local_prefill = local == 1;
        leg->reserve.work.params.n = 3;
        leg->reserve.work.sequence_count = 3;
        leg->reserve.work.params.ignore_eos = true;
        world_reserve(world, leg);
        world_cancel_seq(world, leg, 0);
        world_finish(world);
        assert_int_equal(leg->output_count[0], 0);
        assert_int_equal(leg->output_count[1], 6);
        assert_int_equal(leg->output_count[2], 6);
        assert_int_equal(world_stats(world).blocks_free, 32);
    }
    world_close(world);
}

/* Sequences beyond batch_max wait with their blocks and take the slots that come free. */
static void a_full_batch_makes_the_rest_wait(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(64, 2);
    struct world *world = world_open(&config);
    struct world_leg *legs[5];
    for (uint32_t i = 0; i < 5; i++) {
        legs[i] = world_leg(world, 0, 4, 5 + i, 30 + i);
        legs[i]->reserve.work.params.ignore_eos = true;
        world_reserve(world, legs[i]);
    }
    for (uint32_t i = 0; i < 5; i++) { world_land(world, legs[i]); }
    assert_int_equal(world_stats(world).sequences_running, 1); /* the others came during its step */
    world_step_done(world);
    assert_int_equal(world_stats(world).sequences_running, 2);
    assert_int_equal(world_stats(world).sequences_waiting, 3);
    world_finish(world);
    for (uint32_t i = 0; i < 5; i++) { assert_true(world_leg_is_complete(legs[i])); }
    world_close(world);
}

/* Eight long sequences over a pool that holds one of them: each is preempted and computed
 * again as often as it takes, and all end with the tokens of an undisturbed run. */
static void a_pool_for_one_serves_eight(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(30, 8); /* 120 tokens */
    config.waiting_max = 8;
    struct world *world = world_open(&config);
    struct world_leg *legs[8];
    for (uint32_t i = 0; i < 8; i++) {
        legs[i] = world_leg(world, 0, 5, 115, 40 + i);
        legs[i]->reserve.local_prefill = i % 2 == 0;
        legs[i]->reserve.work.params.ignore_eos = true;
        world_reserve(world, legs[i]);
    }
    world_finish(world);
    for (uint32_t i = 0; i < 8; i++) { assert_int_equal(legs[i]->output_count[0], 115); }
    assert_true(world_stats(world).preemptions >= 7);
    /* Progress, not thrash: the sum of what was computed again stays within a few prompts each. */
    assert_true(world_stats(world).steps < 8 * 115 + 8 * 120);
    world_close(world);
}

/* The youngest request gives way; one that resumes an old request is old. */
static void the_youngest_request_gives_way(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4);
    struct world *world = world_open(&config);
    struct world_leg *young = world_leg(world, 0, 11, 12, 1);
    struct world_leg *old = world_leg(world, 0, 11, 12, 2);
    young->reserve.local_prefill = true;
    young->reserve.work.params.ignore_eos = true;
    old->reserve.local_prefill = true;
    old->reserve.work.params.ignore_eos = true;
    old->reserve.work.age_ns = 500 * MS;
    world_reserve(world, young);
    world_reserve(world, old);
    while (world_stats(world).preemptions == 0) { world_step_done(world); }
    assert_int_equal(world_stats(world).sequences_preempted, 1);
    uint32_t stopped_at = young->output_count[0];
    world_step_done(world);
    world_step_done(world);
    assert_int_equal(young->output_count[0], stopped_at);
    world_finish(world);
    assert_true(world_leg_is_complete(young));
    assert_true(world_leg_is_complete(old));
    world_close(world);
}

/* A sequence that has blocks but no slot yet is the first to give them back. */
static void a_younger_sequence_without_a_slot_gives_way(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(6, 1);
    struct world *world = world_open(&config);
    struct world_leg *old = world_leg(world, 0, 7, 17, 1);
    struct world_leg *young = world_leg(world, 0, 15, 4, 2);
    old->reserve.local_prefill = true;
    old->reserve.work.params.ignore_eos = true;
    young->reserve.work.params.ignore_eos = true;
    world_reserve(world, old);
    world_reserve(world, young);
    world_land(world, young); /* all blocks are taken, and so is the slot */
    while (old->finish[0] == FINISH_NONE) {
        uint32_t had = old->output_count[0];
        world_step_done(world);
        assert_true(had == 0 || old->output_count[0] == had + 1); /* never held up */
    }
    assert_int_equal(world_stats(world).preemptions, 1);
    assert_int_equal(young->output_count[0], 1);
    world_finish(world);
    assert_int_equal(young->output_count[0], 4);
    world_close(world);
}

/* The only sequence that holds blocks keeps them and waits for a fence; and when blocks come
 * free it has them before any leg that is waiting. */
static void the_last_sequence_waits_with_its_blocks(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(6, 4); /* 24 tokens */
    struct world *world = world_open(&config);
    struct world_leg *runs = world_leg(world, 0, 7, 17, 1);
    runs->reserve.local_prefill = true;
    runs->reserve.work.params.ignore_eos = true;
    struct world_leg *granted = world_leg(world, 0, 15, 4, 2);
    world_reserve(world, runs);    /* 2 blocks */
    world_reserve(world, granted); /* 4 blocks, all of the rest */
    assert_int_equal(world_stats(world).blocks_free, 0);
    struct world_leg *waits = world_leg(world, 0, 11, 4, 3);
    waits->reserve.wait_ms = 100000;
    world_reserve(world, waits);
    while (world->plan != NULL) { world_step_done(world); }
    assert_int_equal(runs->output_count[0], 2); /* position 8 needs a third block */
    assert_int_equal(world_stats(world).preemptions, 0);
    world_cancel(world, granted);
    assert_null(world->plan);
    world_fence(world, granted);
    assert_non_null(world->plan);
    assert_int_equal(world_stats(world).preemptions, 0);
    /* Three blocks are left after the one that `runs` took, and the waiting leg needs three. */
    assert_true(waits->has_grant);
    world_finish(world);
    assert_int_equal(runs->output_count[0], 17);
    assert_true(world_leg_is_complete(waits));
    world_close(world);
}

/* Blocks that come free go to the sequence that has waited with its own before they go to
 * new legs: four come free here and the waiting leg could take all four. */
static void growing_goes_before_admission(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(6, 4);
    struct world *world = world_open(&config);
    struct world_leg *runs = world_leg(world, 0, 7, 17, 1);
    runs->reserve.local_prefill = true;
    runs->reserve.work.params.ignore_eos = true;
    struct world_leg *granted = world_leg(world, 0, 15, 4, 2);
    world_reserve(world, runs);
    world_reserve(world, granted);
    struct world_leg *waits = world_leg(world, 0, 15, 4, 3);
    waits->reserve.wait_ms = 100000;
    world_reserve(world, waits);
    while (world->plan != NULL) { world_step_done(world); }
    world_cancel(world, granted);
    world_fence(world, granted);
    assert_non_null(world->plan);
    assert_false(waits->has_grant);
    world_finish(world);
    assert_true(world_leg_is_complete(waits));
    world_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failed_step_fails_its_legs_or_the_node),
        cmocka_unit_test(local_prefill_runs_in_chunks_beside_decoding),
        cmocka_unit_test(chunks_beside_decoding_are_cut_to_the_stretch),
        cmocka_unit_test(sequences_share_the_prompts_full_blocks),
        cmocka_unit_test(a_cancelled_carrier_leaves_its_blocks_to_the_next),
        cmocka_unit_test(a_full_batch_makes_the_rest_wait),
        cmocka_unit_test(a_pool_for_one_serves_eight),
        cmocka_unit_test(the_youngest_request_gives_way),
        cmocka_unit_test(a_younger_sequence_without_a_slot_gives_way),
        cmocka_unit_test(the_last_sequence_waits_with_its_blocks),
        cmocka_unit_test(growing_goes_before_admission),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
