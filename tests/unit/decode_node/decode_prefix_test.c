/* The prefix cache: what a leg finds of its text, what it never finds, and what it leaves behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/decode_node/decode_world.h"

#define MS UINT64_C(1000000)

static struct world *open_cached(uint32_t block_count, uint32_t batch_max)
{
    struct decode_core_config config = world_config(block_count, batch_max);
    config.prefix_cache = true;
    return world_open(&config);
}

/* A leg whose text of `prompt` tokens is that of every other one with the same seed. */
static struct world_leg *leg_of(struct world *world, uint32_t prompt, uint32_t max_tokens, bool is_local)
{
    struct world_leg *leg = world_leg(world, 0, prompt, max_tokens, 5);
    leg->reserve.work.params.ignore_eos = true;
    leg->reserve.local_prefill = is_local;
    return leg;
}

static struct world_leg *run_leg(struct world *world, uint32_t prompt, uint32_t max_tokens, bool is_local)
{
    struct world_leg *leg = leg_of(world, prompt, max_tokens, is_local);
    world_reserve(world, leg);
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    return leg;
}

/* Without the cache nothing is found, nothing is kept, and nobody is told anything new. */
static void a_cache_that_is_off_keeps_nothing(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    struct world *world = world_open(&config);
    for (uint32_t i = 0; i < 4; i++) {
        struct world_leg *leg = run_leg(world, 17, 4, i % 2 == 0);
        assert_int_equal(leg->cached_tokens, 0);
        assert_false(leg->is_local);
        assert_int_equal(world_stats(world).blocks_free, 32);
    }
    world_close(world);
}

/* One token is left to compute: of a text that ends with a full block, that block is not taken. */
static void a_text_that_is_cached_whole_leaves_its_last_block(void **state)
{
    (void)state;
    struct world *world = open_cached(32, 4);
    run_leg(world, 12, 4, true);
    struct world_leg *leg = leg_of(world, 12, 4, false);
    world_reserve(world, leg);
    assert_int_equal(leg->cached_tokens, 8);
    assert_int_equal(leg->grant_first, 2);
    assert_int_equal(leg->granted_count, 1);
    world_finish(world);
    leg = leg_of(world, 13, 4, false);
    world_reserve(world, leg);
    assert_int_equal(leg->cached_tokens, 12);
    assert_int_equal(leg->granted_count, 1);
    world_finish(world);
    leg = run_leg(world, 4, 2, false);
    assert_int_equal(leg->cached_tokens, 0);
    world_close(world);
}

/* The next turn of a chat finds the prompt and the answer of the one before. */
static void the_next_turn_finds_prompt_and_output(void **state)
{
    (void)state;
    struct world *world = open_cached(64, 4);
    struct world_leg *first = run_leg(world, 9, 12, false);
    struct world_leg *next = world_leg(world, 0, 9 + 12 + 3, 4, 77);
    world_leg_extend(next, first, 0, 9 + 12);
    world_reserve(world, next);
    /* Of 21 tokens the last one was sampled but never computed. */
    assert_int_equal(next->cached_tokens, 20);
    assert_int_equal(next->granted_count, 1);
    world_finish(world);
    assert_true(world_leg_is_complete(next));
    world_tick(world, 5 * MS);
    assert_int_equal(world->load.cache_tokens_asked, 9 + 24);
    assert_int_equal(world->load.cache_tokens_found, 20);
    world_close(world);
}

/* Where little is missing the node computes it, and says so; one token more and it is granted. */
static void little_that_is_missing_is_computed_here(void **state)
{
    (void)state;
    struct world *world = open_cached(64, 4);
    run_leg(world, 24, 2, false);
    for (uint32_t local_max = 4; local_max <= 5; local_max++) {
        struct world_leg *leg = leg_of(world, 25, 3, false); /* 24 tokens of it are cached */
        leg->prompt[20] ^= 1;                                /* or 20, as this one differs */
        leg->reserve.local_max_tokens = local_max;
        uint64_t computed = world_stats(world).prompt_tokens_computed;
        world_reserve(world, leg);
        assert_int_equal(leg->cached_tokens, 20);
        assert_int_equal(leg->is_local, local_max == 5);
        assert_int_equal(leg->has_grant, local_max == 4);
        world_finish(world);
        assert_true(world_leg_is_complete(leg));
        assert_int_equal(world_stats(world).prompt_tokens_computed - computed, local_max == 5 ? 5 : 0);
        world_close(world);
        world = open_cached(64, 4);
        run_leg(world, 24, 2, false);
    }
    world_close(world);
}

/* A batch that is too small for all sequences of a leg could never compute its last row: granted. */
static void more_sequences_than_slots_are_never_local(void **state)
{
    (void)state;
    struct world *world = open_cached(64, 2);
    struct world_leg *leg = leg_of(world, 6, 3, false);
    leg->reserve.local_max_tokens = 100;
    leg->reserve.work.params.n = 3;
    leg->reserve.work.sequence_count = 3;
    world_reserve(world, leg);
    assert_true(leg->has_grant);
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    world_close(world);
}

static void another_salt_finds_nothing(void **state)
{
    (void)state;
    struct world *world = open_cached(64, 4);
    run_leg(world, 17, 4, true);
    for (uint32_t i = 0; i < 2; i++) {
        struct world_leg *leg = leg_of(world, 17, 4, false);
        leg->reserve.work.cache_salt = 9;
        world_reserve(world, leg);
        assert_int_equal(leg->cached_tokens, i == 0 ? 0 : 16);
        world_finish(world);
    }
    world_close(world);
}

/* Log-probabilities of the prompt need its rows: nothing is taken, but the next leg finds it all. */
static void prompt_logprobs_compute_everything_and_publish(void **state)
{
    (void)state;
    struct world *world = open_cached(64, 4);
    for (uint32_t i = 0; i < 2; i++) {
        struct world_leg *leg = leg_of(world, 17, 4, true);
        leg->reserve.work.params.prompt_logprobs = 1;
        world_reserve(world, leg);
        assert_int_equal(leg->cached_tokens, 0);
        world_finish(world);
        assert_int_equal(leg->logprob_next, 17);
    }
    struct world_leg *leg = run_leg(world, 17, 4, false);
    assert_int_equal(leg->cached_tokens, 16);
    /* Decided here: the rows are computed here, and so are the log-probabilities. */
    leg = leg_of(world, 17, 4, false);
    leg->reserve.work.params.prompt_logprobs = 1;
    leg->reserve.local_max_tokens = 17;
    world_reserve(world, leg);
    assert_true(leg->is_local);
    world_finish(world);
    assert_int_equal(leg->logprob_next, 17);
    world_close(world);
}

/* A block that is being computed or landed is found by nobody. */
static void a_block_is_found_only_when_it_is_final(void **state)
{
    (void)state;
    struct world *world = open_cached(64, 4);
    struct world_leg *lands = leg_of(world, 17, 4, false);
    world_reserve(world, lands);
    struct world_leg *second = leg_of(world, 17, 4, false);
    world_reserve(world, second);
    assert_int_equal(second->cached_tokens, 0);
    world_land(world, lands);
    struct world_leg *third = leg_of(world, 17, 4, false);
    world_reserve(world, third);
    assert_int_equal(third->cached_tokens, 16);
    world_finish(world);
    assert_true(world_leg_is_complete(second)); /* its copy has no name and does no harm */

    world_close(world);
    world = open_cached(64, 4);
    struct world_leg *computes = leg_of(world, 33, 4, true);
    world_reserve(world, computes); /* chunks of 6 */
    struct world_leg *early = leg_of(world, 33, 4, false);
    world_reserve(world, early);
    assert_int_equal(early->cached_tokens, 0);
    world_step_done(world);
    struct world_leg *later = leg_of(world, 33, 4, false);
    world_reserve(world, later);
    assert_int_equal(later->cached_tokens, 4);
    world_finish(world);
    assert_true(world_leg_is_complete(computes));
    world_close(world);
}

/* What a failed step wrote means nothing, nor does what came with first tokens that do not fit. */
static void what_failed_is_not_published(void **state)
{
    (void)state;
    struct world *world = open_cached(64, 4);
    struct world_leg *fails = leg_of(world, 6, 4, true);
    world_reserve(world, fails);
    world_step_failed(world, SCOPE_REQUEST);
    assert_int_equal(world_stats(world).blocks_cached, 0);

    struct world_leg *wrong = leg_of(world, 6, 4, false);
    world_reserve(world, wrong);
    wrong->has_grant = false;
    struct ctl_token token = {.token = WORLD_VOCAB};
    world_event(world, &(struct decode_event){
                           .kind = DECODE_EV_XFER_LANDED, .leg = wrong->id, .token_count = 1, .tokens = &token});
    assert_int_equal(wrong->code, ST_DATA_LOSS);
    assert_int_equal(world_stats(world).blocks_cached, 0);

    struct world_leg *cancelled = leg_of(world, 6, 4, true);
    world_reserve(world, cancelled);
    world_cancel(world, cancelled);
    world_step_done(world);
    assert_int_equal(world_stats(world).blocks_cached, 0);
    assert_int_equal(world_stats(world).blocks_free, 64);
    world_close(world);
}

/* Only what can still be written goes into quarantine; the cached blocks before it go back. */
static void a_cancelled_grant_keeps_no_cached_block(void **state)
{
    (void)state;
    struct world *world = open_cached(32, 4);
    run_leg(world, 17, 2, true);
    assert_int_equal(world_stats(world).blocks_cached, 4);
    struct world_leg *leg = leg_of(world, 23, 4, false);
    world_reserve(world, leg);
    assert_int_equal(leg->grant_first, 4);
    assert_int_equal(leg->granted_count, 2);
    assert_int_equal(world_stats(world).blocks_cached, 0);
    world_cancel(world, leg);
    assert_int_equal(world_stats(world).blocks_quarantined, 2);
    assert_int_equal(world_stats(world).blocks_cached, 4);
    world_fence(world, leg);
    assert_int_equal(world_stats(world).blocks_free, 28);
    world_close(world);
}

/* A leg fits beside one that shares its prompt where two strangers would not. */
static void shared_blocks_are_counted_once(void **state)
{
    (void)state;
    struct world *world = open_cached(8, 4);
    struct world_leg *first = leg_of(world, 22, 4, true); /* 6 blocks */
    world_reserve(world, first);
    for (uint32_t i = 0; i < 4; i++) { world_step_done(world); }
    struct world_leg *stranger = world_leg(world, 0, 22, 4, 6);
    stranger->reserve.wait_ms = 0;
    world_reserve(world, stranger);
    assert_int_equal(stranger->end, WORLD_REFUSED);
    assert_int_equal(stranger->code, ST_RESOURCE_EXHAUSTED);
    struct world_leg *sibling = leg_of(world, 21, 2, false);
    sibling->reserve.wait_ms = 0;
    world_reserve(world, sibling);
    assert_true(sibling->has_grant);
    assert_int_equal(sibling->grant_first, 5);
    world_finish(world);
    assert_true(world_leg_is_complete(sibling));
    assert_true(world_leg_is_complete(first));
    world_close(world);
}

/* Cached blocks give way to whoever needs blocks, and never make anybody wait or be preempted. */
static void cached_blocks_give_way(void **state)
{
    (void)state;
    struct world *world = open_cached(8, 4);
    for (uint32_t i = 0; i < 10; i++) {
        struct world_leg *leg = world_leg(world, 0, 20, 12, 100 + i); /* all 8 blocks */
        leg->reserve.work.params.ignore_eos = true;
        leg->reserve.wait_ms = 0;
        leg->reserve.local_prefill = i % 2 == 0;
        world_reserve(world, leg);
        assert_int_equal(leg->end, WORLD_OPEN);
        world_finish(world);
        assert_true(world_leg_is_complete(leg));
    }
    assert_int_equal(world_stats(world).preemptions, 0);
    assert_int_equal(world_stats(world).blocks_cached, 7); /* the last block was not full */
    world_close(world);
}

/* A sequence that gave its blocks up finds those again that nobody needed meanwhile. */
static void a_preempted_sequence_finds_itself_again(void **state)
{
    (void)state;
    struct world *world = open_cached(12, 4);
    struct world_leg *old = world_leg(world, 0, 11, 16, 1);
    struct world_leg *young = world_leg(world, 0, 11, 20, 2);
    old->reserve.local_prefill = true;
    old->reserve.work.params.ignore_eos = true;
    old->reserve.work.age_ns = 500 * MS;
    young->reserve.local_prefill = true;
    young->reserve.work.params.ignore_eos = true;
    world_reserve(world, old);
    world_reserve(world, young);
    while (world_stats(world).blocks_free > 0) { world_step_done(world); }
    uint64_t computed = world_stats(world).prompt_tokens_computed;
    assert_int_equal(computed, 22);
    world_finish(world);
    assert_true(world_leg_is_complete(old));
    assert_true(world_leg_is_complete(young));
    assert_int_equal(world_stats(world).preemptions, 1);
    /* Without the cache all of its 11 and more tokens would be computed a second time. */
    assert_in_range(world_stats(world).prompt_tokens_computed - computed, 0, 8);
    world_close(world);
}

/* Several sequences of one leg share what was cached as well as what was computed. */
static void sequences_of_a_leg_share_cached_blocks(void **state)
{
    (void)state;
    struct world *world = open_cached(32, 8);
    run_leg(world, 17, 2, true);
    for (uint32_t local = 0; local < 2; local++) {
        struct world_leg *leg = leg_of(world, 22, 7, local == 1);
        leg->reserve.work.params.n = 3;
        leg->reserve.work.sequence_count = 3;
        world_reserve(world, leg);
        assert_in_range(leg->cached_tokens, 16, 20);
        assert_int_equal(world_stats(world).blocks_held, 6 + 2);
        world_finish(world);
        assert_true(world_leg_is_complete(leg));
    }
    assert_int_equal(world_stats(world).blocks_held, 0);
    world_close(world);
}

/* What a waiting leg takes and gives back at each try, because the rest does not fit, is not found: it is
 * counted once, when the leg is admitted. */
static void blocks_are_found_at_admission_not_at_each_try(void **state)
{
    (void)state;
    struct world *world = open_cached(20, 4);
    run_leg(world, 12, 2, true);
    struct world_leg *runner = world_leg(world, 0, 20, 30, 6);
    runner->reserve.work.params.ignore_eos = true;
    runner->reserve.local_prefill = true;
    world_reserve(world, runner);
    struct world_leg *waiter = leg_of(world, 60, 2, true); /* needs 16 blocks, of which it finds 3 */
    waiter->reserve.wait_ms = 60000;
    world_reserve(world, waiter);
    for (uint32_t step = 0; step < 20; step++) { world_step_done(world); }
    uint64_t tries = decode_core_cache_stats(world->core).blocks_taken / 3;
    assert_true(tries > 4); /* the runner names blocks, which may be those that the waiter wants */
    assert_int_equal(world_stats(world).sequences_waiting, 1);
    assert_int_equal(world_stats(world).cache_blocks_taken, 0);
    world_finish(world);
    assert_true(world_leg_is_complete(waiter));
    assert_int_equal(world_stats(world).cache_tokens_found, 12);
    assert_int_equal(world_stats(world).cache_blocks_taken, 3);
    world_close(world);
}

/* What a leg merely looked at while it waited has not been used again: it goes before what others
 * computed since. */
static void what_a_waiting_leg_looks_at_is_not_protected(void **state)
{
    (void)state;
    struct world *world = open_cached(20, 4);
    run_leg(world, 12, 2, true);
    struct world_leg *runner = world_leg(world, 0, 20, 30, 6);
    runner->reserve.work.params.ignore_eos = true;
    runner->reserve.local_prefill = true;
    world_reserve(world, runner);
    struct world_leg *waiter = leg_of(world, 60, 2, true); /* looks at 3 blocks */
    waiter->reserve.wait_ms = 60000;
    world_reserve(world, waiter);
    for (uint32_t step = 0; step < 20; step++) { world_step_done(world); }
    assert_int_equal(world_stats(world).sequences_waiting, 1);
    world_cancel(world, waiter);
    world_finish(world);
    struct world_leg *other = world_leg(world, 0, 32, 2, 7); /* 9 blocks, of which 5 are free */
    other->reserve.local_prefill = true;
    world_reserve(world, other);
    world_finish(world);
    assert_int_equal(run_leg(world, 20, 2, true)->cached_tokens, 0);
    world_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cache_that_is_off_keeps_nothing),
        cmocka_unit_test(a_text_that_is_cached_whole_leaves_its_last_block),
        cmocka_unit_test(the_next_turn_finds_prompt_and_output),
        cmocka_unit_test(little_that_is_missing_is_computed_here),
        cmocka_unit_test(more_sequences_than_slots_are_never_local),
        cmocka_unit_test(another_salt_finds_nothing),
        cmocka_unit_test(prompt_logprobs_compute_everything_and_publish),
        cmocka_unit_test(a_block_is_found_only_when_it_is_final),
        cmocka_unit_test(what_failed_is_not_published),
        cmocka_unit_test(a_cancelled_grant_keeps_no_cached_block),
        cmocka_unit_test(shared_blocks_are_counted_once),
        cmocka_unit_test(cached_blocks_give_way),
        cmocka_unit_test(a_preempted_sequence_finds_itself_again),
        cmocka_unit_test(sequences_of_a_leg_share_cached_blocks),
        cmocka_unit_test(blocks_are_found_at_admission_not_at_each_try),
        cmocka_unit_test(what_a_waiting_leg_looks_at_is_not_protected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
