#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/prefill_node/prefill_world.h"

#define MS UINT64_C(1000000)

static void a_failed_step_fails_its_jobs_or_the_node(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(4);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *in_step = pworld_job(world, 0, 14, 0, 1);
    struct pworld_job *waiting = pworld_job(world, 0, 14, 0, 2);
    pworld_send(world, in_step);
    pworld_send(world, waiting);
    pworld_step_failed(world, SCOPE_REQUEST);
    assert_false(failed(world->status));
    assert_int_equal(in_step->end, PWORLD_FAILED);
    assert_int_equal(in_step->code, ST_INTERNAL);
    assert_true(in_step->is_aborted);
    assert_int_equal(waiting->end, PWORLD_OPEN);
    pworld_ended(world, in_step);
    assert_non_null(world->plan);
    pworld_step_failed(world, SCOPE_NODE);
    assert_int_equal(world->status.scope, SCOPE_NODE);
    pworld_close(world);
}

/* A prompt leaves block by block as its chunks complete them; the part-filled one goes with
 * the last chunk. The world checks that each is pushed once and holds what it should. */
static void blocks_leave_as_chunks_complete_them(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    config.chunk_tokens = 6;
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 17, 0, 1);
    job->prefill.work.params.prompt_logprobs = 0;
    pworld_send(world, job);
    const uint32_t pushed[3] = {1, 3, 5};
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(world->plan->spans[0].row_count, i < 2 ? 6 : 5);
        assert_false(job->is_committed);
        pworld_step_done(world);
        assert_int_equal(job->pushed_count, pushed[i]);
    }
    assert_true(job->is_committed);
    assert_true(job->has_token[0]);
    assert_int_equal(job->logprob_next, 17);
    assert_null(world->plan);
    pworld_tick(world, 3 * MS);
    pworld_ack(world, job);
    assert_int_equal(job->end, PWORLD_DONE);
    assert_int_equal(job->done.bytes, 4096);
    assert_int_equal(job->done.transfer_ns, 77);
    assert_int_equal(job->done.queue_ns, 0);
    assert_int_equal(job->done.compute_ns, 17 * 1000);
    assert_int_equal(pworld_stats(world).blocks_free, 32);
    pworld_close(world);
}

/* Blocks that the decode node has are computed, for what comes after them reads them, and stay
 * here; the grant's first block is the first that leaves. The world checks each block. */
static void blocks_before_the_grant_stay_here(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    config.chunk_tokens = 6;
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 17, 0, 1);
    job->prefill.grant_first = 2;
    pworld_send(world, job);
    const uint32_t pushed[3] = {0, 1, 3};
    for (uint32_t i = 0; i < 3; i++) {
        pworld_step_done(world);
        assert_int_equal(job->pushed_count, pushed[i]);
    }
    assert_true(job->is_committed);
    pworld_finish(world);
    assert_int_equal(job->end, PWORLD_DONE);
    pworld_close(world);
}

/* Short prompts share a step under the token budget, in order of arrival. */
static void short_prompts_share_a_step(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(64); /* 16 rows, chunks of 10, 8 slots */
    struct pworld *world = pworld_open(&config);
    struct pworld_job *first = pworld_job(world, 0, 4, 0, 1);
    pworld_send(world, first);
    struct pworld_job *jobs[4];
    for (uint32_t i = 0; i < 4; i++) {
        jobs[i] = pworld_job(world, 0, 7, 0, 10 + i);
        pworld_send(world, jobs[i]);
    }
    assert_int_equal(pworld_stats(world).tokens_queued, 4 + 4 * 7);
    pworld_step_done(world);
    assert_int_equal(world->plan->span_count, 3); /* 7, 7, and 2 of the third */
    assert_int_equal(world->plan->spans[2].row_count, 2);
    pworld_step_done(world);
    assert_true(jobs[0]->has_token[0]);
    assert_true(jobs[1]->has_token[0]);
    assert_false(jobs[2]->has_token[0]);
    pworld_tick(world, 5 * MS);
    assert_int_equal(world->load.tokens_queued, 5 + 7);
    assert_int_equal(world->load.tokens_per_s, 1000000);
    pworld_finish(world);
    for (uint32_t i = 0; i < 4; i++) { assert_int_equal(jobs[i]->end, PWORLD_DONE); }
    pworld_close(world);
}

/* First tokens need a slot each: what has none this time leaves its last row for the next. */
static void a_step_samples_no_more_than_its_slots(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(64);
    config.slot_count = 5;
    struct pworld *world = pworld_open(&config);
    struct pworld_job *first = pworld_job(world, 0, 2, 0, 1);
    pworld_send(world, first);
    struct pworld_job *jobs[2];
    for (uint32_t i = 0; i < 2; i++) {
        jobs[i] = pworld_job(world, 0, 5, 0, 2 + i);
        jobs[i]->prefill.work.params.n = 3;
        jobs[i]->prefill.work.sequence_count = 3;
        pworld_send(world, jobs[i]);
    }
    pworld_step_done(world);
    assert_int_equal(world->plan->spans[0].sample_count, 3);
    assert_int_equal(world->plan->spans[1].sample_count, 0);
    assert_int_equal(world->plan->spans[1].row_count, 4);
    pworld_step_done(world);
    pworld_step_done(world);
    assert_true(jobs[1]->has_token[2]);
    pworld_finish(world);
    pworld_close(world);
}

/* Long before short: nobody overtakes the head, but jobs that resume a stream go first. */
static void blocks_go_in_order_and_resumed_first(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(8);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *holder = pworld_job(world, 0, 20, 0, 1);
    struct pworld_job *large = pworld_job(world, 0, 30, 0, 2);
    struct pworld_job *small = pworld_job(world, 0, 2, 0, 3);
    struct pworld_job *resumed = pworld_job(world, 0, 20, 6, 4);
    pworld_send(world, holder);
    pworld_send(world, large);
    pworld_send(world, small);
    pworld_send(world, resumed);
    assert_int_equal(pworld_stats(world).jobs_waiting, 3);
    while (!holder->is_committed) { pworld_step_done(world); }
    assert_null(world->plan);
    pworld_ack(world, holder);
    assert_true(leg_id_equal(world->plan->spans[0].leg, resumed->id));
    assert_int_equal(pworld_stats(world).jobs_waiting, 2); /* small would fit */
    pworld_finish(world);
    assert_int_equal(small->end, PWORLD_DONE);
    assert_int_equal(large->end, PWORLD_DONE);
    pworld_close(world);
}

/* A higher priority goes before all that wait, for blocks and for rows alike; among equals the order
 * is as ever. */
static void a_higher_priority_goes_first(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(8);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *holder = pworld_job(world, 0, 20, 0, 1);
    pworld_send(world, holder);
    const int32_t priorities[5] = {0, -1, 3, 0, 3};
    struct pworld_job *jobs[5];
    for (uint32_t i = 0; i < 5; i++) {
        jobs[i] = pworld_job(world, 0, i == 3 ? 20 : 24, i == 3 ? 6 : 0, 2 + i); /* the fourth resumes */
        jobs[i]->prefill.work.priority = priorities[i];
        pworld_send(world, jobs[i]);
    }
    while (!holder->is_committed) { pworld_step_done(world); }
    pworld_ack(world, holder);
    const uint32_t order[5] = {2, 4, 3, 0, 1};
    for (uint32_t i = 0; i < 5; i++) {
        struct pworld_job *job = jobs[order[i]];
        assert_true(leg_id_equal(world->plan->spans[0].leg, job->id));
        while (!job->is_committed) { pworld_step_done(world); }
        pworld_ack(world, job);
    }
    pworld_finish(world);
    struct pworld_job *low = pworld_job(world, 0, 15, 0, 20), *high = pworld_job(world, 0, 12, 0, 21);
    high->prefill.work.priority = 1;
    pworld_send(world, low);
    pworld_send(world, high);
    pworld_step_done(world);
    assert_true(leg_id_equal(world->plan->spans[0].leg, high->id));
    pworld_finish(world);
    pworld_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failed_step_fails_its_jobs_or_the_node),
        cmocka_unit_test(blocks_leave_as_chunks_complete_them),
        cmocka_unit_test(blocks_before_the_grant_stay_here),
        cmocka_unit_test(short_prompts_share_a_step),
        cmocka_unit_test(a_step_samples_no_more_than_its_slots),
        cmocka_unit_test(blocks_go_in_order_and_resumed_first),
        cmocka_unit_test(a_higher_priority_goes_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
