#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/heap/counting_heap.h"
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

/* ---------------------------------------------------------------- steps */

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

/* ---------------------------------------------------------------- the prefix cache */

static struct pworld *open_cached(uint32_t block_count)
{
    struct prefill_core_config config = pworld_config(block_count);
    config.prefix_cache = true;
    return pworld_open(&config);
}

static struct pworld_job *next_turn(struct pworld *world, const struct pworld_job *before, uint32_t shared, uint32_t prompt_count,
                                    uint32_t grant_first)
{
    struct pworld_job *job = pworld_job(world, 0, prompt_count, 0, world->job_count + 100);
    pworld_share(job, before, shared);
    job->prefill.grant_first = grant_first;
    return job;
}

static uint64_t computed_by(struct pworld *world, struct pworld_job *job)
{
    uint64_t before = pworld_stats(world).prompt_tokens_computed;
    pworld_send(world, job);
    pworld_finish(world);
    assert_int_equal(job->end, PWORLD_DONE);
    return pworld_stats(world).prompt_tokens_computed - before;
}

/* A second turn computes what is new, whole blocks at a time, and says how much was here. What the
 * decode node has stays here; what it lacks of the cached part leaves at once. */
static void a_second_turn_computes_only_what_is_new(void **state)
{
    (void)state;
    struct pworld *world = open_cached(32);
    struct pworld_job *first = pworld_job(world, 0, 18, 0, 1);
    assert_int_equal(computed_by(world, first), 18);
    assert_int_equal(first->done.cached_tokens, 0);
    assert_int_equal(pworld_stats(world).blocks_cached, 4); /* the part-filled one has no name */
    struct pworld_job *second = next_turn(world, first, 18, 30, 1);
    pworld_send(world, second);
    assert_int_equal(second->cached_pushed, 3); /* blocks 1, 2 and 3, before any step is done */
    assert_int_equal(second->pushed_count, 3);
    pworld_finish(world);
    assert_int_equal(second->end, PWORLD_DONE);
    assert_int_equal(second->done.cached_tokens, 16);
    struct pworld_job *ahead = next_turn(world, second, 30, 40, 9); /* the decode node has more than is here */
    assert_int_equal(computed_by(world, ahead), 40 - 28);
    assert_int_equal(ahead->cached_pushed, 0);
    assert_int_equal(ahead->pushed_count, 1);
    assert_int_equal(pworld_stats(world).cache_tokens_asked, 18 + 30 + 40);
    assert_int_equal(pworld_stats(world).cache_tokens_found, 16 + 28);
    pworld_tick(world, 5 * MS);
    assert_int_equal(world->load.cache_tokens_found, 16 + 28);
    assert_int_equal(world->load.blocks_cached, 10);
    pworld_close(world);
}

/* Of a prompt that is here whole, the last block is computed again: something must be sampled. */
static void one_token_is_always_computed(void **state)
{
    (void)state;
    struct pworld *world = open_cached(32);
    struct pworld_job *first = pworld_job(world, 0, 16, 0, 1);
    (void)computed_by(world, first);
    assert_int_equal(computed_by(world, next_turn(world, first, 16, 16, 0)), 4);
    assert_int_equal(computed_by(world, next_turn(world, first, 16, 17, 0)), 1);
    assert_int_equal(computed_by(world, next_turn(world, first, 15, 17, 0)), 5);
    pworld_close(world);
}

/* Another salt finds nothing, nor does the part of a prompt behind the first difference; and whoever
 * wants the prompt's log-probabilities has every row computed. */
static void only_the_same_text_and_salt_is_found(void **state)
{
    (void)state;
    struct pworld *world = open_cached(32);
    struct pworld_job *first = pworld_job(world, 0, 20, 0, 1);
    (void)computed_by(world, first);
    struct pworld_job *salted = next_turn(world, first, 20, 20, 0);
    salted->prefill.work.cache_salt = 1;
    assert_int_equal(computed_by(world, salted), 20);
    struct pworld_job *other = next_turn(world, first, 20, 20, 0);
    other->text[5] = (other->text[5] + 1) % PWORLD_VOCAB;
    assert_int_equal(computed_by(world, other), 16);
    struct pworld_job *logged = next_turn(world, first, 20, 20, 0);
    logged->prefill.work.params.prompt_logprobs = 1;
    assert_int_equal(computed_by(world, logged), 20);
    assert_int_equal(logged->logprob_next, 20);
    pworld_close(world);
}

/* Two jobs with one prefix share its blocks while both live; a pool too small for two copies holds
 * both, and what a cancelled one computed is found by the next. */
static void live_jobs_share_blocks(void **state)
{
    (void)state;
    struct pworld *world = open_cached(8);
    struct pworld_job *first = pworld_job(world, 0, 26, 0, 1); /* 7 blocks */
    pworld_send(world, first);
    while (!first->is_committed) { pworld_step_done(world); }
    struct pworld_job *second = next_turn(world, first, 24, 26, 0); /* 6 of them, and one of its own */
    pworld_send(world, second);
    assert_int_equal(pworld_stats(world).jobs_waiting, 0);
    assert_int_equal(pworld_stats(world).blocks_held, 8);
    assert_int_equal(second->cached_pushed, 6);
    pworld_cancel(world, first);
    pworld_ended(world, first);
    pworld_finish(world);
    assert_int_equal(second->end, PWORLD_DONE);
    struct pworld_job *third = pworld_job(world, 0, 26, 0, 7);
    pworld_send(world, third);
    pworld_cancel(world, third); /* in the step that computes 10 of its tokens */
    pworld_finish(world);
    assert_int_equal(computed_by(world, next_turn(world, third, 26, 26, 0)), 26 - 8);
    pworld_close(world);
}

/* A job that does not fit takes nothing: what it had found is cached again, and found again when
 * there is room. */
static void a_job_that_does_not_fit_holds_nothing(void **state)
{
    (void)state;
    struct pworld *world = open_cached(8);
    struct pworld_job *seed = pworld_job(world, 0, 8, 0, 1);
    (void)computed_by(world, seed);
    struct pworld_job *holder = pworld_job(world, 0, 14, 0, 2);
    pworld_send(world, holder);
    struct pworld_job *large = next_turn(world, seed, 8, 26, 0); /* finds 2, needs 5 more, 2 are free */
    pworld_send(world, large);
    assert_int_equal(pworld_stats(world).jobs_waiting, 1);
    assert_int_equal(pworld_stats(world).blocks_held, 4);
    assert_int_equal(pworld_stats(world).blocks_cached, 2);
    pworld_finish(world);
    assert_int_equal(holder->end, PWORLD_DONE);
    assert_int_equal(large->end, PWORLD_DONE);
    assert_int_equal(large->done.cached_tokens, 8);
    pworld_close(world);
}

/* ---------------------------------------------------------------- the tiers */

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
    (void)computed_by(world, first);
    for (uint32_t i = 0; i < 4; i++) { (void)computed_by(world, pworld_job(world, 0, 24, 0, 50 + i)); }
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
    struct pworld_job *again = next_turn(world, first, 17, 20, 1);
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
        struct pworld_job *again = next_turn(world, first, 17, 20, 0);
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
    struct pworld_job *again = next_turn(world, evicted_prompt(world), 17, 20, 0);
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
    struct pworld_job *again = next_turn(world, first, 17, 20, 0);
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
    for (uint32_t i = 0; i < 4; i++) { (void)computed_by(world, pworld_job(world, 0, 24, 0, 70 + i)); }
    assert_int_equal(computed_by(world, next_turn(world, first, 17, 20, 0)), 20);
    assert_int_equal(pworld_stats(world).loads_chosen, 1);
    assert_int_equal(pworld_stats(world).loads_declined, 1);
    pworld_close(world);
}

/* ---------------------------------------------------------------- sliding windows */

/* A prompt far longer than the window runs in a pool that could not hold it, with the same token and
 * the same blocks for whoever decodes; one that fits in the ring is cached as ever. */
static void a_long_prompt_holds_a_ring(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(8);
    config.prefix_cache = true;
    config.window_tokens = 9;
    config.chunk_tokens = 6; /* (9 + 6) / 4 rounded up, and one: 5 blocks */
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 200, 0, 1);
    job->prefill.grant_first = (200 - 9 + 1) / 4;
    job->prefill.work.params.prompt_logprobs = 0; /* the window of every row is looked at */
    pworld_send(world, job);
    while (world->plan != NULL) {
        assert_int_equal(pworld_stats(world).blocks_held, 5);
        pworld_step_done(world);
    }
    assert_int_equal(job->pushed_count, 50 - 48);
    pworld_finish(world);
    assert_int_equal(job->end, PWORLD_DONE);
    assert_int_equal(pworld_stats(world).blocks_free, 8); /* nothing of a ring is found again */
    struct pworld_job *small = pworld_job(world, 0, 17, 0, 2);
    (void)computed_by(world, small);
    assert_int_equal(computed_by(world, next_turn(world, small, 17, 18, 0)), 2);
    pworld_close(world);
}

/* Where the decode node wants more than the ring keeps, every block is held; then the pool's size counts. */
static void a_grant_longer_than_the_ring_needs_all_blocks(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(20);
    config.window_tokens = 9;
    config.chunk_tokens = 6;
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 80, 0, 1);
    job->prefill.grant_first = 14; /* six blocks: one more than the ring */
    pworld_send(world, job);
    assert_int_equal(pworld_stats(world).blocks_held, 20);
    pworld_finish(world);
    assert_int_equal(job->end, PWORLD_DONE);
    job = pworld_job(world, 0, 84, 0, 2);
    job->prefill.grant_first = 15;
    refused(world, job, ST_INVALID_ARGUMENT, "21 KV blocks");
    pworld_close(world);
}

/* ---------------------------------------------------------------- looking in */

struct seen {
    uint32_t count, blocks;
    struct inspect_entry entries[8];
};

static void note_entry(void *user, const struct inspect_entry *entry)
{
    struct seen *seen = user;
    assert_in_range(seen->count, 0, 7);
    seen->entries[seen->count++] = *entry;
    seen->blocks += entry->block_count;
}

/* Whoever looks sees every job with what it holds and waits for; shared blocks appear with each. */
static void every_job_is_shown(void **state)
{
    (void)state;
    struct pworld *world = open_cached(8);
    struct pworld_job *first = pworld_job(world, 0, 9, 0, 1);
    (void)computed_by(world, first);
    struct pworld_job *jobs[3] = {next_turn(world, first, 9, 12, 0), next_turn(world, first, 9, 12, 0),
                                  pworld_job(world, 0, 24, 0, 9)};
    jobs[1]->prefill.work.priority = -2;
    jobs[1]->prefill.work.age_ns = 500;
    for (uint32_t i = 0; i < 3; i++) { pworld_send(world, jobs[i]); }
    pworld_tick(world, 100);
    struct seen seen = {0};
    prefill_core_inspect(world->core, note_entry, &seen);
    assert_int_equal(seen.count, 3);
    assert_string_equal(seen.entries[0].state, "computing");
    assert_int_equal(seen.entries[0].tokens, 12);
    assert_int_equal(seen.entries[0].tokens_cached, 8);
    assert_int_equal(seen.entries[0].block_count, 3);
    assert_int_equal(seen.entries[0].blocks[1], seen.entries[1].blocks[1]);
    assert_true(leg_id_equal(seen.entries[1].leg, jobs[1]->id));
    assert_int_equal(seen.entries[1].priority, -2);
    assert_int_equal(seen.entries[1].age_ns, 600);
    assert_string_equal(seen.entries[2].state, "waiting");
    assert_int_equal(seen.entries[2].block_count, 0);
    assert_int_equal(seen.blocks - 2, pworld_stats(world).blocks_held); /* two are shared */
    assert_int_equal(pworld_stats(world).cache_blocks_taken, 4);
    pworld_finish(world);
    pworld_close(world);
}

/* What a waiting job takes and gives back at each try, because the rest does not fit, is not found: it is
 * counted once, when the job is admitted. */
static void blocks_are_found_at_admission_not_at_each_try(void **state)
{
    (void)state;
    struct pworld *world = open_cached(16);
    struct pworld_job *first = pworld_job(world, 0, 18, 0, 1);
    (void)computed_by(world, first);
    struct pworld_job *runner = pworld_job(world, 0, 40, 0, 9);
    struct pworld_job *waiter = next_turn(world, first, 18, 40, 0); /* needs 10 blocks, of which it finds 4 */
    pworld_send(world, runner);
    pworld_send(world, waiter);
    for (uint32_t step = 0; step < 3; step++) { pworld_step_done(world); }
    assert_true(prefill_core_cache_stats(world->core).blocks_taken > 2 * 4); /* the runner names blocks */
    assert_int_equal(pworld_stats(world).jobs_waiting, 1);
    assert_int_equal(pworld_stats(world).cache_blocks_taken, 0);
    pworld_finish(world);
    assert_int_equal(waiter->end, PWORLD_DONE);
    assert_int_equal(pworld_stats(world).cache_tokens_found, 16);
    assert_int_equal(pworld_stats(world).cache_blocks_taken, 4);
    pworld_close(world);
}

/* What a job merely looked at while it waited has not been used again: it goes before what others
 * computed since. */
static void what_a_waiting_job_looks_at_is_not_protected(void **state)
{
    (void)state;
    struct pworld *world = open_cached(16);
    struct pworld_job *first = pworld_job(world, 0, 18, 0, 1);
    (void)computed_by(world, first);
    struct pworld_job *runner = pworld_job(world, 0, 40, 0, 9);
    struct pworld_job *waiter = next_turn(world, first, 18, 40, 0); /* looks at 4 blocks */
    pworld_send(world, runner);
    pworld_send(world, waiter);
    for (uint32_t step = 0; step < 3; step++) { pworld_step_done(world); }
    assert_int_equal(pworld_stats(world).jobs_waiting, 1);
    pworld_cancel(world, waiter);
    pworld_finish(world);
    (void)computed_by(world, pworld_job(world, 0, 24, 0, 10)); /* 6 blocks, of which 2 are free */
    assert_int_equal(computed_by(world, next_turn(world, first, 18, 20, 0)), 20);
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

static void steps_do_not_allocate(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(64);
    config.step_rows_max = 3;
    config.chunk_tokens = 1;
    config.prefix_cache = true;
    struct pworld *world = pworld_open(&config);
    uint64_t before = heap_allocations();
    for (uint32_t i = 0; i < 10; i++) { pworld_send(world, pworld_job(world, 0, 200, 0, i)); }
    assert_true(heap_allocations() > before); /* the counter counts */
    before = heap_allocations();
    uint32_t steps = 0;
    for (; world->plan != NULL; steps++) { pworld_step_done(world); }
    assert_int_equal(heap_allocations(), before);
    assert_true(steps >= 200);
    pworld_finish(world);
    pworld_close(world);
}

/* Whichever allocation fails: create says so and leaks nothing, and a job is refused. */
static void every_failed_allocation_is_a_status(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    struct prefill_core *core = NULL;
    struct diag diag;
    status_t st = STATUS(ST_UNKNOWN, SCOPE_NODE);
    uint32_t failures = 0;
    for (uint64_t k = 1; failed(st); k++) {
        heap_fail_next(k);
        st = prefill_core_create(&config, &core, &diag);
        if (!failed(st)) { break; }
        assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
        assert_null(core);
        failures++;
    }
    heap_fail_next(0);
    assert_true(failures > 15);
    prefill_core_destroy(core);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 4, 0, 1);
    heap_fail_next(1);
    pworld_send(world, job);
    heap_fail_next(0);
    assert_int_equal(job->end, PWORLD_REFUSED);
    assert_int_equal(job->code, ST_RESOURCE_EXHAUSTED);
    assert_false(job->has_transfer);
    pworld_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_config_out_of_range_is_named),
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
        cmocka_unit_test(a_failed_step_fails_its_jobs_or_the_node),
        cmocka_unit_test(blocks_leave_as_chunks_complete_them),
        cmocka_unit_test(blocks_before_the_grant_stay_here),
        cmocka_unit_test(a_second_turn_computes_only_what_is_new),
        cmocka_unit_test(one_token_is_always_computed),
        cmocka_unit_test(only_the_same_text_and_salt_is_found),
        cmocka_unit_test(live_jobs_share_blocks),
        cmocka_unit_test(a_job_that_does_not_fit_holds_nothing),
        cmocka_unit_test(an_evicted_prefix_comes_back_from_a_tier),
        cmocka_unit_test(a_failed_load_ends_the_chain),
        cmocka_unit_test(cancel_waits_for_loads),
        cmocka_unit_test(a_slow_tier_is_not_used),
        cmocka_unit_test(every_job_is_shown),
        cmocka_unit_test(blocks_are_found_at_admission_not_at_each_try),
        cmocka_unit_test(what_a_waiting_job_looks_at_is_not_protected),
        cmocka_unit_test(a_long_prompt_holds_a_ring),
        cmocka_unit_test(a_grant_longer_than_the_ring_needs_all_blocks),
        cmocka_unit_test(short_prompts_share_a_step),
        cmocka_unit_test(a_step_samples_no_more_than_its_slots),
        cmocka_unit_test(blocks_go_in_order_and_resumed_first),
        cmocka_unit_test(a_higher_priority_goes_first),
        cmocka_unit_test(steps_do_not_allocate),
        cmocka_unit_test(every_failed_allocation_is_a_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
