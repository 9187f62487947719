/* What a decode node takes, refuses and lets wait: every RESERVE that it may be sent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/decode_node/decode_world.h"

#define MS UINT64_C(1000000)

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

/* One that needs less since one of its sequences was cancelled is let in at once. */
static void a_waiting_leg_that_needs_less_is_tried_again(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(8, 4);
    struct world *world = world_open(&config);
    struct world_leg *holder = world_leg(world, 0, 19, 4, 1); /* 5 blocks */
    world_reserve(world, holder);
    struct world_leg *leg = world_leg(world, 0, 7, 4, 2); /* 2 blocks and one for each further sequence */
    leg->reserve.work.params.n = 3;
    leg->reserve.work.sequence_count = 3;
    world_reserve(world, leg);
    assert_false(leg->has_grant);
    world_cancel_seq(world, leg, 2);
    assert_true(leg->has_grant);
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_reserves_are_refused_by_field),
        cmocka_unit_test(what_can_never_fit_names_the_flag),
        cmocka_unit_test(a_draining_node_refuses_and_finishes),
        cmocka_unit_test(duplicate_reserves_are_counted_and_ignored),
        cmocka_unit_test(a_full_queue_refuses_with_a_hint),
        cmocka_unit_test(a_wait_ends_at_its_deadline),
        cmocka_unit_test(a_waiting_leg_that_needs_less_is_tried_again),
        cmocka_unit_test(resumed_legs_go_first_and_are_not_refused_for_load),
        cmocka_unit_test(messages_of_strangers_are_ignored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
