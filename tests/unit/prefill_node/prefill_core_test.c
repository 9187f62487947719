#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/prefill_node/prefill_world.h"

#define MS UINT64_C(1000000)

/* ---------------------------------------------------------------- what is refused */

static void refused(struct pworld *world, struct pworld_job *job, uint8_t code, const char *names)
{
    pworld_send(world, job);
    assert_int_equal(job->end, PWORLD_REFUSED);
    assert_int_equal(job->code, code);
    assert_non_null(strstr(job->message, names));
    assert_false(job->has_transfer);
    assert_int_equal(pworld_stats(world).jobs, 0);
}

/* Nothing that a PREFILL can say stops the node: each bad value is refused by its name. */
static void hostile_prefills_are_refused_by_field(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(8);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 4, 0, 1);
    job->prefill.ticket_bytes = 0;
    refused(world, job, ST_INVALID_ARGUMENT, "ticket");
    job = pworld_job(world, 0, 4, 0, 2);
    job->prefill.ticket_bytes = UINT32_MAX;
    refused(world, job, ST_INVALID_ARGUMENT, "ticket");
    job = pworld_job(world, 0, 4, 0, 3);
    job->text[2] = PWORLD_VOCAB;
    refused(world, job, ST_INVALID_ARGUMENT, "prompt[2]");
    job = pworld_job(world, 0, 4, 0, 4);
    job->prefill.work.prompt_count = UINT32_MAX;
    refused(world, job, ST_INVALID_ARGUMENT, "prompt");
    job = pworld_job(world, 0, 4, 0, 5);
    job->prefill.work.sequence_count = UINT32_MAX;
    refused(world, job, ST_INVALID_ARGUMENT, "sequence_count");
    job = pworld_job(world, 0, 4, 3, 6);
    job->prefill.work.params.max_tokens = 3;
    refused(world, job, ST_INVALID_ARGUMENT, "output_count");
    refused(world, pworld_job(world, 0, 33, 0, 7), ST_INVALID_ARGUMENT, "--kv-memory");
    job = pworld_job(world, 0, 4, 0, 8);
    job->prefill.work.params.n = 9;
    job->prefill.work.sequence_count = 9;
    refused(world, job, ST_INVALID_ARGUMENT, "--batch");
    for (uint32_t wild = 0; wild < 2; wild++) {
        job = pworld_job(world, 0, 8, 0, 10 + wild);
        job->prefill.grant_first = wild ? UINT32_MAX : 2;
        refused(world, job, ST_INVALID_ARGUMENT, "grant_first");
    }
    job = pworld_job(world, 0, 32, 0, 9); /* exactly fits */
    pworld_send(world, job);
    pworld_finish(world);
    assert_int_equal(job->end, PWORLD_DONE);
    pworld_close(world);
}

static void a_full_or_draining_node_refuses(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    config.jobs_max = 2;
    struct pworld *world = pworld_open(&config);
    struct pworld_job *jobs[2] = {pworld_job(world, 0, 4, 0, 1), pworld_job(world, 0, 4, 0, 2)};
    pworld_send(world, jobs[0]);
    pworld_send(world, jobs[1]);
    struct pworld_job *third = pworld_job(world, 0, 4, 0, 3);
    pworld_send(world, third);
    assert_int_equal(third->code, ST_RESOURCE_EXHAUSTED);
    assert_true(third->retry_after_ms > 0);
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_DRAIN});
    pworld_finish(world);
    assert_int_equal(jobs[0]->end, PWORLD_DONE);
    assert_int_equal(jobs[1]->end, PWORLD_DONE);
    refused(world, pworld_job(world, 0, 4, 0, 4), ST_UNAVAILABLE, "draining");
    pworld_close(world);
}

static void strangers_and_duplicates_are_counted_and_ignored(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    struct pworld *world = pworld_open(&config);
    pworld_router_up(world, 1);
    struct pworld_job *job = pworld_job(world, 0, 4, 0, 1);
    pworld_send(world, job);
    pworld_send(world, job);
    struct ctl_msg cancel = {.kind = CTL_CANCEL, .cancel = {.leg = job->id}};
    pworld_message(world, 1, &cancel);
    cancel.cancel.one_sequence = true;
    cancel.cancel.sequence = 1;
    pworld_message(world, 0, &cancel);
    struct pworld_job *unknown = pworld_job(world, 2, 4, 0, 2); /* its router never came */
    pworld_send(world, unknown);
    unknown->end = PWORLD_DROPPED;
    assert_int_equal(pworld_stats(world).late_messages, 4);
    pworld_finish(world);
    assert_int_equal(job->end, PWORLD_DONE);
    pworld_send(world, job);
    pworld_ack(world, job);
    assert_int_equal(pworld_stats(world).late_messages, 6);
    assert_true(pworld_stats(world).idle);
    pworld_close(world);
}

/* ---------------------------------------------------------------- ends of a transfer */

static void a_failed_transfer_is_told_with_its_reason(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 6, 0, 1);
    pworld_send(world, job);
    assert_non_null(world->plan);
    pworld_fail(world, job); /* while its blocks are being computed */
    assert_int_equal(job->end, PWORLD_FAILED);
    assert_int_equal(job->code, ST_DATA_LOSS);
    assert_non_null(strstr(job->message, "slice 3"));
    assert_false(job->is_aborted);
    assert_int_equal(pworld_stats(world).blocks_held, 2);
    pworld_step_done(world);
    assert_int_equal(pworld_stats(world).blocks_free, 32);
    pworld_close(world);
}

/* An acknowledgement of what was never committed is no success. */
static void an_early_ack_fails_the_job(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 6, 0, 1);
    pworld_send(world, job);
    pworld_ack(world, job);
    assert_int_equal(job->end, PWORLD_FAILED);
    pworld_finish(world);
    assert_int_equal(pworld_stats(world).blocks_free, 32);
    pworld_close(world);
}

static void a_stalled_acknowledgement_is_given_up(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 6, 0, 1);
    pworld_send(world, job);
    pworld_step_done(world);
    assert_true(job->is_committed);
    pworld_tick(world, 5 * MS); /* the pending LOAD */
    assert_int_equal(prefill_core_deadline_ns(world->core), world->now_ns + 995 * MS);
    pworld_tick(world, 994 * MS);
    assert_int_equal(job->end, PWORLD_OPEN);
    pworld_tick(world, 1 * MS);
    assert_int_equal(job->end, PWORLD_FAILED);
    assert_int_equal(job->code, ST_DEADLINE_EXCEEDED);
    assert_true(job->is_aborted);
    assert_int_equal(pworld_stats(world).blocks_held, 2); /* the other side may still read */
    pworld_ended(world, job);
    assert_int_equal(pworld_stats(world).blocks_free, 32);
    assert_true(pworld_stats(world).idle);
    pworld_close(world);
}

/* ---------------------------------------------------------------- cancel */

/* Blocks of a cancelled job come free when both the step and the transfer have let go. */
static void cancel_waits_for_step_and_transfer(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    struct pworld *world = pworld_open(&config);
    for (uint32_t order = 0; order < 2; order++) {
        struct pworld_job *job = pworld_job(world, 0, 6, 0, order);
        pworld_send(world, job);
        pworld_cancel(world, job);
        assert_true(job->is_aborted);
        if (order == 0) { pworld_step_done(world); } else { pworld_ended(world, job); }
        assert_int_equal(pworld_stats(world).blocks_held, 2);
        if (order == 0) { pworld_ended(world, job); } else { pworld_step_done(world); }
        assert_int_equal(pworld_stats(world).blocks_free, 32);
    }
    assert_int_equal(pworld_stats(world).jobs_cancelled, 2);
    pworld_close(world);
}

static void cancel_while_waiting_and_while_sent(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(4);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *sent = pworld_job(world, 0, 16, 0, 1);
    struct pworld_job *waiting = pworld_job(world, 0, 16, 0, 2);
    struct pworld_job *last = pworld_job(world, 0, 16, 0, 3);
    pworld_send(world, sent);
    pworld_send(world, waiting);
    pworld_send(world, last);
    assert_int_equal(pworld_stats(world).jobs_waiting, 2);
    assert_true(last->has_transfer); /* connects while it queues */
    pworld_cancel(world, waiting);
    while (!sent->is_committed) { pworld_step_done(world); }
    pworld_cancel(world, sent);
    pworld_ack(world, sent); /* crosses the abort: as good an end as any */
    assert_int_equal(sent->end, PWORLD_DROPPED);
    pworld_finish(world);
    assert_int_equal(last->end, PWORLD_DONE);
    pworld_close(world);
}

/* The decode node expects a first token of every sequence: one that is cancelled is sampled
 * and committed, but not sent to the router. The world checks both. */
static void a_cancelled_sequence_is_committed_but_not_sent(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 6, 0, 1);
    job->prefill.work.params.n = 3;
    job->prefill.work.sequence_count = 3;
    pworld_send(world, job);
    pworld_cancel_seq(world, job, 1);
    pworld_finish(world);
    assert_int_equal(job->end, PWORLD_DONE);
    assert_true(job->has_token[0]);
    assert_false(job->has_token[1]);
    assert_true(job->has_token[2]);
    struct pworld_job *all = pworld_job(world, 0, 6, 0, 2);
    pworld_send(world, all);
    pworld_cancel_seq(world, all, 0);
    assert_true(all->is_aborted);
    pworld_finish(world);
    pworld_close(world);
}

static void a_router_that_is_gone_frees_its_jobs_only(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    struct pworld *world = pworld_open(&config);
    pworld_router_up(world, 1);
    struct pworld_job *stays = pworld_job(world, 0, 14, 0, 1);
    struct pworld_job *goes = pworld_job(world, 1, 14, 0, 2);
    pworld_send(world, stays);
    pworld_send(world, goes);
    pworld_router_down(world, 1);
    assert_true(goes->is_aborted);
    assert_false(stays->is_aborted);
    pworld_finish(world);
    assert_int_equal(stays->end, PWORLD_DONE);
    pworld_close(world);
}

static void a_config_out_of_range_is_named(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(8);
    struct prefill_core *core = NULL;
    struct diag diag;
    config.slot_count = 0;
    assert_int_equal(prefill_core_create(&config, &core, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "slot_count"));
    config = pworld_config(8);
    config.transfer_stall_ns = 0;
    assert_int_equal(prefill_core_create(&config, &core, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "transfer_stall_ns"));
    config = pworld_config(8);
    config.tier_entries_max = 1;
    assert_int_equal(prefill_core_create(&config, &core, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "prefix_cache"));
    prefill_core_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_prefills_are_refused_by_field),
        cmocka_unit_test(a_full_or_draining_node_refuses),
        cmocka_unit_test(strangers_and_duplicates_are_counted_and_ignored),
        cmocka_unit_test(a_failed_transfer_is_told_with_its_reason),
        cmocka_unit_test(an_early_ack_fails_the_job),
        cmocka_unit_test(a_stalled_acknowledgement_is_given_up),
        cmocka_unit_test(cancel_waits_for_step_and_transfer),
        cmocka_unit_test(cancel_while_waiting_and_while_sent),
        cmocka_unit_test(a_cancelled_sequence_is_committed_but_not_sent),
        cmocka_unit_test(a_router_that_is_gone_frees_its_jobs_only),
        cmocka_unit_test(a_config_out_of_range_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
