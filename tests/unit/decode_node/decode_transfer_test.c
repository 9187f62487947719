/* Legs whose prompt is computed elsewhere: landing, failing, quarantine, leases, cancel. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/decode_node/decode_world.h"

#define MS UINT64_C(1000000)

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_landed_leg_decodes_to_its_end),
        cmocka_unit_test(a_failed_transfer_is_quarantined_until_fenced),
        cmocka_unit_test(a_fence_may_come_before_its_failure),
        cmocka_unit_test(a_landing_that_crosses_the_revoke_frees_the_blocks),
        cmocka_unit_test(a_lost_prefill_node_fails_the_leg_unless_landed),
        cmocka_unit_test(a_silent_grant_lapses_and_progress_extends_it),
        cmocka_unit_test(first_tokens_that_do_not_fit_fail_the_leg),
        cmocka_unit_test(cancel_waits_for_the_step_in_flight),
        cmocka_unit_test(cancel_waits_for_a_copy_in_flight),
        cmocka_unit_test(a_router_that_is_gone_frees_its_legs_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
