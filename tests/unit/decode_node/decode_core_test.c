#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/decode_node/decode_world.h"

#define MS UINT64_C(1000000)

/* ---------------------------------------------------------------- what is refused */

static struct world_leg *refused(struct world *world, struct world_leg *leg, uint8_t code, const char *names)
{
    world_reserve(world, leg);
    assert_int_equal(leg->end, WORLD_REFUSED);
    assert_int_equal(leg->code, code);
    assert_non_null(strstr(leg->message, names));
    assert_int_equal(world_stats(world).legs, 0);
    assert_int_equal(world_stats(world).blocks_free, world->config.block_count);
    return leg;
}

/* Nothing that a RESERVE can say stops the node: each bad value is refused by its name. */
static void hostile_reserves_are_refused_by_field(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 4, 4, 1);
    leg->reserve.work.prompt_count = 0;
    refused(world, leg, ST_INVALID_ARGUMENT, "prompt");

    leg = world_leg(world, 0, 4, 4, 2);
    leg->prompt[3] = WORLD_VOCAB;
    refused(world, leg, ST_INVALID_ARGUMENT, "prompt[3]");

    leg = world_leg(world, 0, 4, 4, 3);
    leg->reserve.work.prompt_count = UINT32_MAX;
    refused(world, leg, ST_INVALID_ARGUMENT, "prompt");

    leg = world_leg(world, 0, 4, 4, 4);
    leg->reserve.work.params.max_tokens = UINT32_MAX;
    refused(world, leg, ST_INVALID_ARGUMENT, "max_tokens");

    leg = world_leg(world, 0, 4, 4, 5);
    leg->reserve.work.output_count = 4;
    refused(world, leg, ST_INVALID_ARGUMENT, "output_count");

    leg = world_leg(world, 0, 4, 4, 6);
    leg->reserve.work.output_count = 2;
    leg->given[1] = UINT32_MAX;
    refused(world, leg, ST_INVALID_ARGUMENT, "output[1]");

    leg = world_leg(world, 0, 4, 4, 7);
    leg->reserve.work.sequence_count = 0;
    refused(world, leg, ST_INVALID_ARGUMENT, "sequence_count");

    leg = world_leg(world, 0, 4, 4, 8);
    leg->reserve.work.sequence_count = 2;
    refused(world, leg, ST_INVALID_ARGUMENT, "sequence_count");

    leg = world_leg(world, 0, 4, 4, 9);
    leg->reserve.work.sequence_first = UINT32_MAX;
    refused(world, leg, ST_INVALID_ARGUMENT, "sequence_first");

    leg = world_leg(world, 0, 4, 4, 10);
    leg->reserve.work.params.n = 3;
    leg->reserve.work.sequence_count = 2;
    leg->reserve.work.output_count = 1;
    refused(world, leg, ST_INVALID_ARGUMENT, "sequence_count");

    leg = world_leg(world, 0, 4, 4, 11);
    leg->reserve.work.output_count = 1;
    leg->reserve.work.params.prompt_logprobs = 0;
    refused(world, leg, ST_INVALID_ARGUMENT, "prompt_logprobs");

    leg = world_leg(world, 0, 4, 4, 12);
    leg->reserve.work.params.temperature = -1.0f;
    refused(world, leg, ST_INVALID_ARGUMENT, "temperature");
    assert_int_equal(world_stats(world).legs_refused, 12);
    world_close(world);
}

/* A leg that would wait for good is refused at once, with the flag that would let it run. */
static void what_can_never_fit_names_the_flag(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4); /* 32 tokens */
    struct world *world = world_open(&config);
    refused(world, world_leg(world, 0, 20, 13, 1), ST_INVALID_ARGUMENT, "--kv-memory");

    struct world_leg *leg = world_leg(world, 0, 24, 4, 2); /* 7 blocks for the prompt and one token, 2 spares */
    leg->reserve.work.params.n = 3;
    leg->reserve.work.sequence_count = 3;
    refused(world, leg, ST_INVALID_ARGUMENT, "--kv-memory");

    leg = world_leg(world, 0, 3, 1, 3);
    leg->reserve.work.params.n = 5;
    leg->reserve.work.sequence_count = 5;
    leg->reserve.local_prefill = true;
    refused(world, leg, ST_INVALID_ARGUMENT, "--batch");

    leg = world_leg(world, 0, 20, 12, 4); /* exactly fits */
    world_reserve(world, leg);
    assert_int_equal(leg->end, WORLD_OPEN);
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    world_close(world);
}

static void a_draining_node_refuses_and_finishes(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 4, 6, 1);
    world_reserve(world, leg);
    world_event(world, &(struct decode_event){.kind = DECODE_EV_DRAIN});
    struct world_leg *late = world_leg(world, 0, 4, 6, 2);
    world_reserve(world, late);
    assert_int_equal(late->end, WORLD_REFUSED);
    assert_int_equal(late->code, ST_UNAVAILABLE);
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    world_tick(world, 5 * MS);
    assert_true(world->load.draining);
    world_close(world);
}

/* A second RESERVE of a leg changes nothing, also when the leg is over or was refused. */
static void duplicate_reserves_are_counted_and_ignored(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 4, 3, 1);
    world_reserve(world, leg);
    world_reserve(world, leg);
    assert_int_equal(world_stats(world).late_messages, 1);
    world_finish(world);
    world_reserve(world, leg);
    assert_int_equal(world_stats(world).late_messages, 2);
    struct world_leg *bad = world_leg(world, 0, 4, 4, 3);
    bad->prompt[0] = WORLD_VOCAB;
    world_reserve(world, bad);
    world_reserve(world, bad);
    assert_int_equal(world_stats(world).late_messages, 3);
    assert_true(world_stats(world).idle);
    world_close(world);
}

/* The queue is bounded, a leg that would not wait is told so, and both get a hint when to
 * come back. */
static void a_full_queue_refuses_with_a_hint(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4);
    config.waiting_max = 2;
    struct world *world = world_open(&config);
    struct world_leg *holder = world_leg(world, 0, 27, 4, 1);
    world_reserve(world, holder);
    assert_true(holder->has_grant);
    struct world_leg *waits[2] = {world_leg(world, 0, 20, 4, 2), world_leg(world, 0, 2, 4, 3)};
    world_reserve(world, waits[0]);
    world_reserve(world, waits[1]); /* would fit, but does not overtake */
    assert_false(waits[1]->has_grant);
    struct world_leg *third = world_leg(world, 0, 2, 4, 4);
    world_reserve(world, third);
    assert_int_equal(third->code, ST_RESOURCE_EXHAUSTED);
    assert_true(third->retry_after_ms > 0);
    assert_int_equal(world_stats(world).sequences_waiting, 3);
    world_cancel(world, waits[1]);
    struct world_leg *impatient = world_leg(world, 0, 2, 4, 5);
    impatient->reserve.wait_ms = 0;
    world_reserve(world, impatient);
    assert_int_equal(impatient->code, ST_RESOURCE_EXHAUSTED);
    world_finish(world);
    assert_true(world_leg_is_complete(waits[0]));
    world_close(world);
}

static void a_wait_ends_at_its_deadline(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4);
    struct world *world = world_open(&config);
    struct world_leg *holder = world_leg(world, 0, 27, 4, 1);
    world_reserve(world, holder);
    struct world_leg *leg = world_leg(world, 0, 20, 4, 2);
    leg->reserve.wait_ms = 50;
    world_reserve(world, leg);
    world_tick(world, 49 * MS);
    assert_int_equal(leg->end, WORLD_OPEN);
    assert_int_equal(decode_core_deadline_ns(world->core), world->now_ns + 1 * MS);
    world_tick(world, 1 * MS);
    assert_int_equal(leg->end, WORLD_REFUSED);
    assert_int_equal(leg->code, ST_RESOURCE_EXHAUSTED);
    assert_true(leg->retry_after_ms > 0);
    world_finish(world);
    world_close(world);
}

/* A leg whose client already streams waits as long as it takes, and goes before new ones. */
static void resumed_legs_go_first_and_are_not_refused_for_load(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4);
    config.waiting_max = 1;
    struct world *world = world_open(&config);
    struct world_leg *holder = world_leg(world, 0, 27, 4, 1);
    world_reserve(world, holder);
    struct world_leg *fresh = world_leg(world, 0, 20, 4, 2);
    world_reserve(world, fresh);
    struct world_leg *resumed = world_leg(world, 0, 20, 8, 3);
    resumed->reserve.work.params.ignore_eos = true;
    assert_true(world_leg_resume(world, resumed, 3));
    resumed->reserve.wait_ms = 0;
    world_reserve(world, resumed);
    world_tick(world, 500 * MS);
    assert_int_equal(resumed->end, WORLD_OPEN);
    world_cancel(world, holder);
    world_fence(world, holder);
    assert_true(resumed->has_grant);
    assert_false(fresh->has_grant);
    world_finish(world);
    assert_true(world_leg_is_complete(resumed));
    assert_true(world_leg_is_complete(fresh));
    world_close(world);
}

static void messages_of_strangers_are_ignored(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    world_router_up(world, 1);
    struct world_leg *leg = world_leg(world, 0, 4, 4, 1);
    world_reserve(world, leg);
    struct ctl_msg cancel = {.kind = CTL_CANCEL, .cancel = {.leg = leg->id}};
    world_message(world, 1, &cancel);
    struct ctl_msg lost = {.kind = CTL_PREFILL_LOST, .prefill_lost = leg->id};
    world_message(world, 1, &lost);
    struct ctl_msg odd = {.kind = CTL_TOKENS};
    world_message(world, 0, &odd);
    struct world_leg *unknown = world_leg(world, 2, 4, 4, 2); /* its router never came */
    world_reserve(world, unknown);
    cancel.cancel.one_sequence = true;
    cancel.cancel.sequence = 1;
    world_message(world, 0, &cancel);
    assert_int_equal(world_stats(world).late_messages, 5);
    assert_int_equal(world_stats(world).legs, 1);
    unknown->end = WORLD_DROPPED;
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    world_close(world);
}

/* ---------------------------------------------------------------- transfers */

/* The grant covers the prompt; its first token comes from the prefill node, and the core
 * sends it again with the ones that follow. */
static void a_landed_leg_decodes_to_its_end(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 9, 6, 1);
    leg->reserve.work.params.ignore_eos = true;
    world_reserve(world, leg);
    assert_int_equal(leg->granted_count, 3);
    assert_int_equal(leg->output_count[0], 0);
    assert_null(world->plan);
    world_land(world, leg);
    assert_int_equal(leg->output_count[0], 1);
    assert_non_null(world->plan);
    world_prefill_lost(world, leg); /* too late to matter */
    world_finish(world);
    assert_int_equal(leg->output_count[0], 6);
    assert_int_equal(leg->finish[0], FINISH_LENGTH);
    assert_int_equal(world_stats(world).legs_finished, 1);
    assert_int_equal(world_stats(world).late_messages, 1);
    assert_int_equal(world_stats(world).blocks_free, 32);
    world_close(world);
}

/* A transfer that failed keeps its blocks in quarantine until nothing can write them. */
static void a_failed_transfer_is_quarantined_until_fenced(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 8, 6, 1);
    world_reserve(world, leg);
    assert_int_equal(world_stats(world).blocks_held, 3); /* two for the prompt, one for the next token */
    world_fail_transfer(world, leg);
    assert_true(leg->is_revoked);
    assert_int_equal(leg->end, WORLD_FAILED);
    assert_int_equal(leg->code, ST_DATA_LOSS);
    assert_int_equal(world_stats(world).blocks_quarantined, 2);
    assert_int_equal(world_stats(world).blocks_free, 30);
    assert_false(world_stats(world).idle);
    world_fence(world, leg);
    assert_int_equal(world_stats(world).blocks_free, 32);
    assert_true(world_stats(world).idle);
    world_fence(world, leg);
    world_fail_transfer(world, leg);
    assert_int_equal(world_stats(world).late_messages, 2);
    world_close(world);
}

static void a_fence_may_come_before_its_failure(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 8, 6, 1);
    world_reserve(world, leg);
    world_fence(world, leg);
    assert_int_equal(leg->end, WORLD_FAILED);
    assert_int_equal(world_stats(world).blocks_free, 32);
    world_fail_transfer(world, leg);
    assert_int_equal(world_stats(world).late_messages, 1);
    world_close(world);
}

/* The endpoint does not answer a revoke that crosses the landing: the landing is the fence. */
static void a_landing_that_crosses_the_revoke_frees_the_blocks(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 8, 6, 1);
    world_reserve(world, leg);
    world_cancel(world, leg);
    assert_int_equal(world_stats(world).blocks_quarantined, 2);
    world_land(world, leg);
    assert_int_equal(leg->output_count[0], 0);
    assert_int_equal(world_stats(world).blocks_free, 32);
    assert_true(world_stats(world).idle);
    world_close(world);
}

static void a_lost_prefill_node_fails_the_leg_unless_landed(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4);
    struct world *world = world_open(&config);
    struct world_leg *granted = world_leg(world, 0, 27, 4, 1);
    struct world_leg *waiting = world_leg(world, 0, 27, 4, 2);
    struct world_leg *local = world_leg(world, 0, 4, 4, 3);
    local->reserve.local_prefill = true;
    world_reserve(world, granted);
    world_reserve(world, waiting);
    world_reserve(world, local);
    world_prefill_lost(world, waiting);
    assert_int_equal(waiting->end, WORLD_FAILED);
    assert_int_equal(waiting->code, ST_UNAVAILABLE);
    assert_false(waiting->is_revoked);
    world_prefill_lost(world, granted);
    assert_int_equal(granted->end, WORLD_FAILED);
    assert_true(granted->is_revoked);
    world_prefill_lost(world, local); /* has none */
    world_finish(world);
    assert_true(world_leg_is_complete(local));
    world_close(world);
}

static void a_silent_grant_lapses_and_progress_extends_it(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 8, 6, 1);
    world_reserve(world, leg);
    world_tick(world, 900 * MS);
    world_event(world, &(struct decode_event){.kind = DECODE_EV_XFER_PROGRESS, .leg = leg->id});
    world_tick(world, 900 * MS);
    assert_int_equal(leg->end, WORLD_OPEN);
    world_tick(world, 100 * MS);
    assert_int_equal(leg->end, WORLD_FAILED);
    assert_int_equal(leg->code, ST_DEADLINE_EXCEEDED);
    assert_true(leg->is_revoked);
    assert_int_equal(world_stats(world).blocks_quarantined, 2);
    world_finish(world);
    world_close(world);
}

/* First tokens come from another machine: whatever does not fit fails the leg, not the node. */
static void first_tokens_that_do_not_fit_fail_the_leg(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    for (uint32_t i = 0; i < 6; i++) {
        struct world_leg *leg = world_leg(world, 0, 8, 6, i);
        leg->reserve.work.params.n = 2;
        leg->reserve.work.sequence_count = 2;
        world_reserve(world, leg);
        struct ctl_token tokens[2] = {{.sequence = 0, .token = 1}, {.sequence = 1, .token = 1}};
        uint32_t count = 2;
        switch (i) {
        case 0: count = 1; break;
        case 1: tokens[1].sequence = 0; break;
        case 2: tokens[1].sequence = 64; break;
        case 3: tokens[0].position = 1; break;
        case 4: tokens[0].token = WORLD_VOCAB; break;
        default:
            tokens[1].has_logprob = true;
            tokens[1].logprob.alternative_count = SAMPLING_LOGPROBS_MAX + 1;
            break;
        }
        leg->has_grant = false;
        world_event(world, &(struct decode_event){
                               .kind = DECODE_EV_XFER_LANDED, .leg = leg->id, .token_count = count, .tokens = tokens});
        assert_int_equal(leg->end, WORLD_FAILED);
        assert_int_equal(leg->code, ST_DATA_LOSS);
        assert_true(world_stats(world).idle);
    }
    world_close(world);
}

/* ---------------------------------------------------------------- cancel */

/* The step in flight still reads the blocks of a leg that is cancelled: they come free after it. */
static void cancel_waits_for_the_step_in_flight(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 8, 6, 1);
    leg->reserve.local_prefill = true;
    world_reserve(world, leg);
    assert_non_null(world->plan);
    world_cancel(world, leg);
    assert_int_equal(world_stats(world).blocks_held, 3);
    world_step_done(world);
    assert_int_equal(world_stats(world).blocks_free, 32);
    assert_int_equal(world_stats(world).legs_cancelled, 1);
    assert_true(world_stats(world).idle);
    world_close(world);
}

/* A sequence without a slot is not in the step, but its copy is: its block is not given to a
 * grant before the copy is done. */
static void cancel_waits_for_a_copy_in_flight(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(3, 1);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 6, 4, 1);
    leg->reserve.work.params.n = 2;
    leg->reserve.work.params.ignore_eos = true;
    leg->reserve.work.sequence_count = 2;
    world_reserve(world, leg);
    world_land(world, leg);
    assert_non_null(world->plan);
    assert_int_equal(world->plan->copy_count, 1);
    assert_int_equal(world_stats(world).blocks_free, 0);
    world_cancel_seq(world, leg, 1);
    assert_int_equal(world_stats(world).blocks_free, 0);
    world_step_done(world);
    assert_int_equal(world_stats(world).blocks_free, 1);
    world_finish(world);
    assert_int_equal(leg->output_count[0], 4);
    world_close(world);
}

static void a_router_that_is_gone_frees_its_legs_only(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(64, 4);
    struct world *world = world_open(&config);
    world_router_up(world, 1);
    struct world_leg *stays = world_leg(world, 0, 8, 20, 1);
    struct world_leg *granted = world_leg(world, 1, 8, 20, 2);
    struct world_leg *runs = world_leg(world, 1, 8, 20, 3);
    stays->reserve.work.params.ignore_eos = true;
    stays->reserve.local_prefill = true;
    runs->reserve.local_prefill = true;
    world_reserve(world, stays);
    world_reserve(world, granted);
    world_reserve(world, runs);
    world_step_done(world);
    world_router_down(world, 1);
    assert_true(granted->is_revoked);
    world_finish(world);
    assert_true(world_leg_is_complete(stays));
    assert_int_equal(world_stats(world).legs_cancelled, 2);
    world_close(world);
}

/* ---------------------------------------------------------------- steps */

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

/* ---------------------------------------------------------------- reports and memory */

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

/* The linker sends the core's allocations here (see BUILD). */
static uint64_t allocations;
static uint64_t fails_at; /* that allocation gives NULL; 0: none does */
void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    return ++allocations == fails_at ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return ++allocations == fails_at ? NULL : __real_calloc(count, bytes);
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    return ++allocations == fails_at ? NULL : __real_realloc(memory, bytes);
}

/* Decoding, growing, preempting and computing again take no memory. */
static void steps_do_not_allocate(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(70, 4);
    struct world *world = world_open(&config);
    uint64_t before = allocations;
    for (uint32_t i = 0; i < 4; i++) {
        struct world_leg *leg = world_leg(world, 0, 9, 240, 60 + i);
        leg->reserve.local_prefill = true;
        leg->reserve.work.params.ignore_eos = true;
        world_reserve(world, leg);
    }
    assert_true(allocations > before); /* the counter counts */
    before = allocations;
    uint32_t steps = 0;
    for (; world->plan != NULL && steps < 1000; steps++) { world_step_done(world); }
    assert_int_equal(allocations, before);
    assert_true(steps > 400);
    assert_true(world_stats(world).preemptions > 0);
    world_finish(world);
    world_close(world);
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
        fails_at = allocations + k;
        st = decode_core_create(&config, &core, &diag);
        if (!failed(st)) { break; }
        assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
        assert_null(core);
        failures++;
    }
    fails_at = 0;
    assert_true(failures > 15);
    decode_core_destroy(core);
    struct world *world = world_open(&config);
    struct world_leg *leg = world_leg(world, 0, 4, 4, 1);
    fails_at = allocations + 1;
    world_reserve(world, leg);
    fails_at = 0;
    assert_int_equal(leg->end, WORLD_REFUSED);
    assert_int_equal(leg->code, ST_RESOURCE_EXHAUSTED);
    world_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_config_out_of_range_is_named),
        cmocka_unit_test(hostile_reserves_are_refused_by_field),
        cmocka_unit_test(what_can_never_fit_names_the_flag),
        cmocka_unit_test(a_draining_node_refuses_and_finishes),
        cmocka_unit_test(duplicate_reserves_are_counted_and_ignored),
        cmocka_unit_test(a_full_queue_refuses_with_a_hint),
        cmocka_unit_test(a_wait_ends_at_its_deadline),
        cmocka_unit_test(resumed_legs_go_first_and_are_not_refused_for_load),
        cmocka_unit_test(messages_of_strangers_are_ignored),
        cmocka_unit_test(a_failed_transfer_is_quarantined_until_fenced),
        cmocka_unit_test(a_fence_may_come_before_its_failure),
        cmocka_unit_test(a_landing_that_crosses_the_revoke_frees_the_blocks),
        cmocka_unit_test(a_lost_prefill_node_fails_the_leg_unless_landed),
        cmocka_unit_test(a_silent_grant_lapses_and_progress_extends_it),
        cmocka_unit_test(first_tokens_that_do_not_fit_fail_the_leg),
        cmocka_unit_test(cancel_waits_for_the_step_in_flight),
        cmocka_unit_test(cancel_waits_for_a_copy_in_flight),
        cmocka_unit_test(a_router_that_is_gone_frees_its_legs_only),
        cmocka_unit_test(a_failed_step_fails_its_legs_or_the_node),
        cmocka_unit_test(a_landed_leg_decodes_to_its_end),
        cmocka_unit_test(local_prefill_runs_in_chunks_beside_decoding),
        cmocka_unit_test(sequences_share_the_prompts_full_blocks),
        cmocka_unit_test(a_cancelled_carrier_leaves_its_blocks_to_the_next),
        cmocka_unit_test(a_full_batch_makes_the_rest_wait),
        cmocka_unit_test(a_pool_for_one_serves_eight),
        cmocka_unit_test(the_youngest_request_gives_way),
        cmocka_unit_test(a_younger_sequence_without_a_slot_gives_way),
        cmocka_unit_test(the_last_sequence_waits_with_its_blocks),
        cmocka_unit_test(growing_goes_before_admission),
        cmocka_unit_test(load_comes_with_the_router_and_then_when_it_changes),
        cmocka_unit_test(steps_do_not_allocate),
        cmocka_unit_test(every_failed_allocation_is_a_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
