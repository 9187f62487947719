#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/prefill_node/prefill_world.h"

#define MS UINT64_C(1000000)

static struct pworld *open_cached(uint32_t block_count)
{
    struct prefill_core_config config = pworld_config(block_count);
    config.prefix_cache = true;
    return pworld_open(&config);
}

/* A second turn computes what is new, whole blocks at a time, and says how much was here. What the
 * decode node has stays here; what it lacks of the cached part leaves at once. */
static void a_second_turn_computes_only_what_is_new(void **state)
{
    (void)state;
    struct pworld *world = open_cached(32);
    struct pworld_job *first = pworld_job(world, 0, 18, 0, 1);
    assert_int_equal(pworld_computed_by(world, first), 18);
    assert_int_equal(first->done.cached_tokens, 0);
    assert_int_equal(pworld_stats(world).blocks_cached, 4); /* the part-filled one has no name */
    struct pworld_job *second = pworld_next_turn(world, first, 18, 30, 1);
    pworld_send(world, second);
    assert_int_equal(second->cached_pushed, 3); /* blocks 1, 2 and 3, before any step is done */
    assert_int_equal(second->pushed_count, 3);
    pworld_finish(world);
    assert_int_equal(second->end, PWORLD_DONE);
    assert_int_equal(second->done.cached_tokens, 16);
    struct pworld_job *ahead = pworld_next_turn(world, second, 30, 40, 9); /* the decode node has more than is here */
    assert_int_equal(pworld_computed_by(world, ahead), 40 - 28);
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
    (void)pworld_computed_by(world, first);
    assert_int_equal(pworld_computed_by(world, pworld_next_turn(world, first, 16, 16, 0)), 4);
    assert_int_equal(pworld_computed_by(world, pworld_next_turn(world, first, 16, 17, 0)), 1);
    assert_int_equal(pworld_computed_by(world, pworld_next_turn(world, first, 15, 17, 0)), 5);
    pworld_close(world);
}

/* Another salt finds nothing, nor does the part of a prompt behind the first difference; and whoever
 * wants the prompt's log-probabilities has every row computed. */
static void only_the_same_text_and_salt_is_found(void **state)
{
    (void)state;
    struct pworld *world = open_cached(32);
    struct pworld_job *first = pworld_job(world, 0, 20, 0, 1);
    (void)pworld_computed_by(world, first);
    struct pworld_job *salted = pworld_next_turn(world, first, 20, 20, 0);
    salted->prefill.work.cache_salt = 1;
    assert_int_equal(pworld_computed_by(world, salted), 20);
    struct pworld_job *other = pworld_next_turn(world, first, 20, 20, 0);
    other->text[5] = (other->text[5] + 1) % PWORLD_VOCAB;
    assert_int_equal(pworld_computed_by(world, other), 16);
    struct pworld_job *logged = pworld_next_turn(world, first, 20, 20, 0);
    logged->prefill.work.params.prompt_logprobs = 1;
    assert_int_equal(pworld_computed_by(world, logged), 20);
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
    struct pworld_job *second = pworld_next_turn(world, first, 24, 26, 0); /* 6 of them, and one of its own */
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
    assert_int_equal(pworld_computed_by(world, pworld_next_turn(world, third, 26, 26, 0)), 26 - 8);
    pworld_close(world);
}

/* A job that does not fit takes nothing: what it had found is cached again, and found again when
 * there is room. */
static void a_job_that_does_not_fit_holds_nothing(void **state)
{
    (void)state;
    struct pworld *world = open_cached(8);
    struct pworld_job *seed = pworld_job(world, 0, 8, 0, 1);
    (void)pworld_computed_by(world, seed);
    struct pworld_job *holder = pworld_job(world, 0, 14, 0, 2);
    pworld_send(world, holder);
    struct pworld_job *large = pworld_next_turn(world, seed, 8, 26, 0); /* finds 2, needs 5 more, 2 are free */
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

/* What a waiting job takes and gives back at each try, because the rest does not fit, is not found: it is
 * counted once, when the job is admitted. */
static void blocks_are_found_at_admission_not_at_each_try(void **state)
{
    (void)state;
    struct pworld *world = open_cached(16);
    struct pworld_job *first = pworld_job(world, 0, 18, 0, 1);
    (void)pworld_computed_by(world, first);
    struct pworld_job *runner = pworld_job(world, 0, 40, 0, 9);
    struct pworld_job *waiter = pworld_next_turn(world, first, 18, 40, 0); /* needs 10 blocks, of which it finds 4 */
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
    (void)pworld_computed_by(world, first);
    struct pworld_job *runner = pworld_job(world, 0, 40, 0, 9);
    struct pworld_job *waiter = pworld_next_turn(world, first, 18, 40, 0); /* looks at 4 blocks */
    pworld_send(world, runner);
    pworld_send(world, waiter);
    for (uint32_t step = 0; step < 3; step++) { pworld_step_done(world); }
    assert_int_equal(pworld_stats(world).jobs_waiting, 1);
    pworld_cancel(world, waiter);
    pworld_finish(world);
    (void)pworld_computed_by(world, pworld_job(world, 0, 24, 0, 10)); /* 6 blocks, of which 2 are free */
    assert_int_equal(pworld_computed_by(world, pworld_next_turn(world, first, 18, 20, 0)), 20);
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
    (void)pworld_computed_by(world, first);
    struct pworld_job *jobs[3] = {pworld_next_turn(world, first, 9, 12, 0), pworld_next_turn(world, first, 9, 12, 0),
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_second_turn_computes_only_what_is_new),
        cmocka_unit_test(one_token_is_always_computed),
        cmocka_unit_test(only_the_same_text_and_salt_is_found),
        cmocka_unit_test(live_jobs_share_blocks),
        cmocka_unit_test(a_job_that_does_not_fit_holds_nothing),
        cmocka_unit_test(blocks_are_found_at_admission_not_at_each_try),
        cmocka_unit_test(what_a_waiting_job_looks_at_is_not_protected),
        cmocka_unit_test(every_job_is_shown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
