#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kv/kv_cache.h"
#include "tests/unit/heap/counting_heap.h"

enum { BLOCKS = 8 };

static struct kv_cache *open_cache_of(uint32_t block_count, bool is_enabled)
{
    struct kv_cache_config config = {.block_count = block_count, .is_enabled = is_enabled};
    struct kv_cache *cache = NULL;
    assert_false(failed(kv_cache_create(&config, &cache)));
    return cache;
}

static int open_cache(void **state)
{
    *state = open_cache_of(BLOCKS, true);
    return 0;
}

static int close_cache(void **state)
{
    kv_cache_audit(*state, NULL);
    kv_cache_destroy(*state);
    return 0;
}

/* Chain `chain`, block `depth` of it: all chains share nothing but the root. */
static struct kv_hash name_of(uint32_t chain, uint32_t depth)
{
    struct kv_hash hash = kv_hash_root(0);
    for (uint32_t i = 0; i <= depth; i++) { hash = kv_hash_next(hash, &chain, 1); }
    return hash;
}

static struct kv_hash parent_of(uint32_t chain, uint32_t depth) { return depth == 0 ? kv_hash_root(0) : name_of(chain, depth - 1); }

/* What a sequence does: takes what is there, computes the rest, names it. Writes its table. */
static void run_sequence(struct kv_cache *cache, uint32_t chain, uint32_t count, uint32_t *ret_blocks)
{
    uint32_t taken = 0;
    while (taken < count && kv_cache_take(cache, name_of(chain, taken), &ret_blocks[taken])) { taken++; }
    assert_false(failed(kv_cache_reserve(cache, count - taken, ret_blocks + taken)));
    for (uint32_t i = taken; i < count; i++) { (void)kv_cache_publish(cache, ret_blocks[i], name_of(chain, i), parent_of(chain, i)); }
    kv_cache_audit(cache, NULL);
}

static void run_and_release(struct kv_cache *cache, uint32_t chain, uint32_t count)
{
    uint32_t blocks[BLOCKS];
    run_sequence(cache, chain, count, blocks);
    kv_cache_release(cache, count, blocks);
    kv_cache_audit(cache, NULL);
}

/* How many blocks of a chain are found, from the first on. */
static uint32_t found(const struct kv_cache *cache, uint32_t chain)
{
    uint32_t count = 0;
    while (count < BLOCKS && kv_cache_has(cache, name_of(chain, count))) { count++; }
    return count;
}

/* Takes and gives back `count` nameless blocks: what was cached in them is gone. */
static void press(struct kv_cache *cache, uint32_t count)
{
    uint32_t blocks[BLOCKS];
    assert_false(failed(kv_cache_reserve(cache, count, blocks)));
    kv_cache_release(cache, count, blocks);
    kv_cache_audit(cache, NULL);
}

static void an_empty_cache_is_refused(void **state)
{
    (void)state;
    struct kv_cache_config config = {.is_enabled = true};
    struct kv_cache *cache = NULL;
    status_t st = kv_cache_create(&config, &cache);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_null(cache);
    kv_cache_destroy(NULL);
}

static void every_failed_allocation_is_a_status(void **state)
{
    (void)state;
    struct kv_cache_config config = {.block_count = BLOCKS, .is_enabled = true};
    struct kv_cache *cache = NULL;
    uint64_t before = heap_allocations();
    assert_false(failed(kv_cache_create(&config, &cache)));
    uint64_t needed = heap_allocations() - before;
    kv_cache_destroy(cache);
    for (uint64_t k = 1; k <= needed; k++) {
        cache = NULL;
        heap_fail_next(k);
        assert_int_equal(kv_cache_create(&config, &cache).code, ST_RESOURCE_EXHAUSTED);
        assert_null(cache);
    }
    heap_fail_next(0);
}

/* Off, it is a plain pool: a released block is free at once and nothing is found. */
static void a_cache_that_is_off_finds_nothing(void **state)
{
    (void)state;
    struct kv_cache *cache = open_cache_of(BLOCKS, false);
    uint32_t blocks[3];
    assert_false(failed(kv_cache_reserve(cache, 3, blocks)));
    assert_false(kv_cache_publish(cache, blocks[0], name_of(1, 0), parent_of(1, 0)));
    assert_int_equal(found(cache, 1), 0);
    kv_cache_release(cache, 3, blocks);
    assert_int_equal(kv_cache_free_count(cache), BLOCKS);
    kv_cache_audit(cache, NULL);
    kv_cache_destroy(cache);
}

/* A reservation that cannot be met even by evicting takes nothing and evicts nothing. */
static void reserve_is_all_or_none(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t held[3];
    run_sequence(cache, 1, 3, held);
    run_and_release(cache, 2, 4);
    uint32_t blocks[6] = {77};
    assert_int_equal(kv_cache_available(cache), 5);
    status_t st = kv_cache_reserve(cache, 6, blocks);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(st.scope, SCOPE_REQUEST);
    assert_int_equal(blocks[0], 77);
    assert_int_equal(found(cache, 2), 4);
    assert_false(failed(kv_cache_reserve(cache, 5, blocks)));
    assert_int_equal(found(cache, 2), 0);
    assert_int_equal(found(cache, 1), 3);
    assert_int_equal(kv_cache_stats(cache).blocks_evicted, 4);
    kv_cache_release(cache, 5, blocks);
    kv_cache_release(cache, 3, held);
}

/* A prefix outlives its sequence, is found block for block and is never written again: whoever
 * takes it gets the same blocks. */
static void a_prefix_is_found_after_its_sequence(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t first[3];
    uint32_t second[4];
    run_sequence(cache, 1, 3, first);
    kv_cache_release(cache, 3, first);
    struct kv_pool_counts counts = kv_cache_counts(cache);
    assert_int_equal(counts.cached, 3);
    assert_int_equal(counts.free, BLOCKS - 3);
    run_sequence(cache, 1, 4, second);
    assert_memory_equal(first, second, sizeof first);
    assert_int_equal(kv_cache_counts(cache).held, 4);
    struct kv_cache_stats stats = kv_cache_stats(cache);
    assert_int_equal(stats.blocks_taken, 3);
    assert_int_equal(stats.blocks_missed, 2);
    assert_int_equal(stats.blocks_published, 4);
    kv_cache_release(cache, 4, second);
}

/* Two sequences that hold one prefix: the block comes free for eviction with its last reference. */
static void a_shared_block_is_held_until_its_last_reference(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t a[2];
    uint32_t b[2];
    run_sequence(cache, 1, 2, a);
    run_sequence(cache, 1, 2, b);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(kv_cache_refs(cache, a[0]), 2);
    kv_cache_release(cache, 2, a);
    assert_int_equal(kv_cache_available(cache), BLOCKS - 2);
    uint32_t more[BLOCKS];
    assert_true(failed(kv_cache_reserve(cache, BLOCKS - 1, more)));
    kv_cache_ref(cache, b[1]);
    kv_cache_release(cache, 2, b);
    assert_int_equal(kv_cache_counts(cache).held, 1);
    kv_cache_release(cache, 1, &b[1]);
    assert_int_equal(kv_cache_available(cache), BLOCKS);
}

/* Of a chain, the last block goes first: what is left is always a prefix. */
static void leaves_go_before_their_parents(void **state)
{
    struct kv_cache *cache = *state;
    run_and_release(cache, 1, BLOCKS);
    for (uint32_t left = BLOCKS; left-- > 0;) {
        press(cache, BLOCKS - left);
        assert_int_equal(found(cache, 1), left);
    }
}

/* Blocks given back one by one from the front, as a sliding window does, and the rest much later:
 * the parents move behind their children. */
static void leaves_go_first_when_the_front_was_released_first(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t blocks[6];
    run_sequence(cache, 1, 6, blocks);
    for (uint32_t i = 0; i < 4; i++) { kv_cache_release(cache, 1, &blocks[i]); }
    run_and_release(cache, 2, 2);
    kv_cache_release(cache, 2, &blocks[4]);
    press(cache, 4);
    assert_int_equal(found(cache, 2), 0);
    assert_int_equal(found(cache, 1), 4);
}

/* Least recently released first, of chains that were used once each. */
static void the_coldest_chain_goes_first(void **state)
{
    struct kv_cache *cache = *state;
    run_and_release(cache, 1, 2);
    run_and_release(cache, 2, 2);
    run_and_release(cache, 3, 2);
    press(cache, 4);
    assert_int_equal(found(cache, 1), 0);
    assert_int_equal(found(cache, 2), 2);
    assert_int_equal(found(cache, 3), 2);
}

/* What two sequences used outlives what one used later. */
static void blocks_used_twice_outlive_blocks_used_once(void **state)
{
    struct kv_cache *cache = *state;
    run_and_release(cache, 1, 2);
    run_and_release(cache, 1, 2);
    run_and_release(cache, 2, 3);
    run_and_release(cache, 3, 3);
    press(cache, 6);
    assert_int_equal(found(cache, 1), 2);
    assert_int_equal(found(cache, 2), 0);
    assert_int_equal(found(cache, 3), 0);
    press(cache, 7);
    assert_int_equal(found(cache, 1), 1);
}

/* Who looks at blocks and gives them back, as the rest did not fit, has not used them: they go before
 * what one sequence used later. Who goes on with them has. */
static void a_look_is_not_a_use(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t blocks[2];
    run_and_release(cache, 1, 2);
    for (uint32_t looks = 0; looks < 3; looks++) {
        for (uint32_t i = 0; i < 2; i++) { assert_true(kv_cache_try(cache, name_of(1, i), &blocks[i])); }
        kv_cache_release(cache, 2, blocks);
        kv_cache_audit(cache, NULL);
    }
    assert_int_equal(kv_cache_stats(cache).blocks_taken, 6);
    run_and_release(cache, 2, 2);
    press(cache, 6);
    assert_int_equal(found(cache, 1), 0);
    assert_int_equal(found(cache, 2), 2);
    for (uint32_t i = 0; i < 2; i++) { assert_true(kv_cache_try(cache, name_of(2, i), &blocks[i])); }
    for (uint32_t i = 0; i < 2; i++) { kv_cache_note_use(cache, blocks[i]); }
    kv_cache_release(cache, 2, blocks);
    run_and_release(cache, 3, 2);
    press(cache, 6);
    assert_int_equal(found(cache, 3), 0);
    assert_int_equal(found(cache, 2), 2);
}

/* Popular once is not popular for ever: the protected part is bounded, the coldest steps down and
 * is as good as used once. */
static void protection_is_bounded(void **state)
{
    struct kv_cache *cache = *state;
    for (uint32_t chain = 1; chain <= BLOCKS; chain++) {
        run_and_release(cache, chain, 1);
        run_and_release(cache, chain, 1);
    }
    /* 6 of 8 are protected; chains 1 and 2 stepped down, in that order. */
    press(cache, 1);
    assert_int_equal(found(cache, 1), 0);
    assert_int_equal(found(cache, 2), 1);
    run_and_release(cache, 9, 1);
    press(cache, 1);
    assert_int_equal(found(cache, 2), 0);
    assert_int_equal(found(cache, 9), 1);
    press(cache, 2);
    assert_int_equal(found(cache, 9), 0);
    assert_int_equal(found(cache, 3), 1);
}

/* A second name for the same content is not taken; the copy goes with its sequence. */
static void a_second_copy_stays_nameless(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t blocks[2];
    struct kv_hash name;
    assert_false(failed(kv_cache_reserve(cache, 2, blocks)));
    assert_true(kv_cache_publish(cache, blocks[0], name_of(1, 0), parent_of(1, 0)));
    assert_true(kv_cache_publish(cache, blocks[0], name_of(2, 0), parent_of(2, 0))); /* has one already */
    assert_false(kv_cache_publish(cache, blocks[1], name_of(1, 0), parent_of(1, 0)));
    assert_int_equal(found(cache, 2), 0);
    assert_false(kv_cache_name(cache, blocks[1], &name));
    assert_true(kv_cache_name(cache, blocks[0], &name));
    assert_true(kv_hash_equal(name, name_of(1, 0)));
    kv_cache_release(cache, 1, &blocks[1]);
    assert_int_equal(kv_cache_counts(cache).cached, 0);
    kv_cache_release(cache, 1, &blocks[0]);
    assert_int_equal(kv_cache_counts(cache).cached, 1);
}

/* Where the named copy was evicted while the nameless one was in use, this one takes the name: else
 * nobody would find the blocks behind it. */
static void a_copy_takes_the_name_that_was_given_away(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t first;
    uint32_t second[2];
    assert_false(failed(kv_cache_reserve(cache, 1, &first)));
    assert_false(failed(kv_cache_reserve(cache, 2, second)));
    (void)kv_cache_publish(cache, first, name_of(1, 0), parent_of(1, 0));
    (void)kv_cache_publish(cache, second[0], name_of(1, 0), parent_of(1, 0));
    (void)kv_cache_publish(cache, second[1], name_of(1, 1), parent_of(1, 1));
    kv_cache_release(cache, 1, &first);
    press(cache, BLOCKS - 2);
    assert_int_equal(found(cache, 1), 0);
    kv_cache_release(cache, 2, second);
    assert_int_equal(found(cache, 1), 2);
    press(cache, BLOCKS - 1);
    assert_int_equal(found(cache, 1), 1);
}

/* A copy's end counts as a use of the named one, which so stays behind the blocks after it. */
static void a_copy_keeps_the_named_one_warm(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t first;
    uint32_t second[2];
    assert_false(failed(kv_cache_reserve(cache, 1, &first)));
    assert_false(failed(kv_cache_reserve(cache, 2, second)));
    (void)kv_cache_publish(cache, first, name_of(1, 0), parent_of(1, 0));
    (void)kv_cache_publish(cache, second[0], name_of(1, 0), parent_of(1, 0));
    (void)kv_cache_publish(cache, second[1], name_of(1, 1), parent_of(1, 1));
    kv_cache_release(cache, 1, &first);
    run_and_release(cache, 2, 2);
    kv_cache_release(cache, 2, second);
    press(cache, BLOCKS - 1);
    assert_int_equal(found(cache, 1), 1);
    assert_int_equal(found(cache, 2), 0);
}

static void quarantine_keeps_blocks_from_everybody(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t blocks[3];
    assert_false(failed(kv_cache_reserve(cache, 3, blocks)));
    kv_cache_quarantine(cache, 3, blocks);
    assert_int_equal(kv_cache_available(cache), BLOCKS - 3);
    assert_int_equal(kv_cache_refs(cache, blocks[0]), 0);
    press(cache, BLOCKS - 3);
    kv_cache_fence(cache, 3, blocks);
    assert_int_equal(kv_cache_available(cache), BLOCKS);
}

/* Victims are what evictions would take, in that order, less what a tier has. */
static void victims_are_the_next_evictions(void **state)
{
    struct kv_cache *cache = *state;
    run_and_release(cache, 1, 2);
    run_and_release(cache, 2, 2);
    run_and_release(cache, 1, 1); /* used twice: last */
    uint32_t victims[4];
    struct kv_hash names[4];
    struct kv_hash order[4] = {name_of(1, 1), name_of(2, 1), name_of(2, 0), name_of(1, 0)};
    assert_int_equal(kv_cache_victims(cache, 4, victims, names), 4);
    assert_memory_equal(names, order, sizeof order);
    kv_cache_mark_stored(cache, victims[1], true);
    assert_true(kv_cache_is_stored(cache, victims[1]));
    uint32_t fewer[4];
    assert_int_equal(kv_cache_victims(cache, 2, fewer, names), 2);
    assert_int_equal(fewer[0], victims[0]);
    assert_int_equal(fewer[1], victims[2]);
    kv_cache_mark_stored(cache, victims[1], false);
    assert_int_equal(kv_cache_victims(cache, 4, fewer, names), 4);
    assert_memory_equal(fewer, victims, sizeof victims);
    kv_cache_audit(cache, NULL);
    /* A block that is evicted forgets that it was stored. */
    kv_cache_mark_stored(cache, victims[0], true);
    press(cache, BLOCKS);
    assert_false(kv_cache_is_stored(cache, victims[0]));
}

/* A tier's copy takes the block out of reach for a while and changes nothing else. */
static void a_hold_does_not_make_a_block_younger(void **state)
{
    struct kv_cache *cache = *state;
    run_and_release(cache, 1, 3);
    run_and_release(cache, 2, 3);
    uint32_t before[6];
    uint32_t after[6];
    struct kv_hash names[6];
    assert_int_equal(kv_cache_victims(cache, 6, before, names), 6);
    uint32_t held[3] = {before[1], before[0], before[2]}; /* any order */
    for (uint32_t i = 0; i < 3; i++) { kv_cache_hold(cache, held[i]); }
    assert_int_equal(kv_cache_available(cache), BLOCKS - 3);
    kv_cache_audit(cache, NULL);
    for (uint32_t i = 0; i < 3; i++) { kv_cache_release(cache, 1, &held[i]); }
    assert_int_equal(kv_cache_victims(cache, 6, after, names), 6);
    assert_memory_equal(before, after, sizeof before);
    /* Somebody who takes it meanwhile does make it younger. */
    uint32_t taken;
    kv_cache_hold(cache, before[5]);
    assert_true(kv_cache_take(cache, name_of(2, 0), &taken));
    assert_int_equal(taken, before[5]);
    kv_cache_release(cache, 1, &taken);
    kv_cache_release(cache, 1, &taken);
    kv_cache_hold(cache, before[2]);
    assert_true(kv_cache_take(cache, name_of(1, 0), &taken));
    kv_cache_release(cache, 1, &taken);
    kv_cache_release(cache, 1, &taken);
    assert_int_equal(kv_cache_victims(cache, 6, after, names), 6);
    assert_int_equal(after[4], before[5]);
    assert_int_equal(after[5], before[2]);
}

/* Cleared, nothing is found, cached blocks are free, and held ones come free when released. */
static void clear_forgets_every_name(void **state)
{
    struct kv_cache *cache = *state;
    uint32_t held[2];
    run_and_release(cache, 1, 3);
    run_sequence(cache, 2, 2, held);
    kv_cache_clear(cache);
    kv_cache_audit(cache, NULL);
    assert_int_equal(found(cache, 1), 0);
    assert_int_equal(found(cache, 2), 0);
    assert_int_equal(kv_cache_free_count(cache), BLOCKS - 2);
    kv_cache_release(cache, 2, held);
    assert_int_equal(kv_cache_free_count(cache), BLOCKS);
}

int main(void)
{
#define CACHE_TEST(name) cmocka_unit_test_setup_teardown(name, open_cache, close_cache)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_cache_is_refused),
        cmocka_unit_test(every_failed_allocation_is_a_status),
        cmocka_unit_test(a_cache_that_is_off_finds_nothing),
        CACHE_TEST(reserve_is_all_or_none),
        CACHE_TEST(a_prefix_is_found_after_its_sequence),
        CACHE_TEST(a_shared_block_is_held_until_its_last_reference),
        CACHE_TEST(leaves_go_before_their_parents),
        CACHE_TEST(leaves_go_first_when_the_front_was_released_first),
        CACHE_TEST(the_coldest_chain_goes_first),
        CACHE_TEST(blocks_used_twice_outlive_blocks_used_once),
        CACHE_TEST(a_look_is_not_a_use),
        CACHE_TEST(protection_is_bounded),
        CACHE_TEST(a_second_copy_stays_nameless),
        CACHE_TEST(a_copy_takes_the_name_that_was_given_away),
        CACHE_TEST(a_copy_keeps_the_named_one_warm),
        CACHE_TEST(quarantine_keeps_blocks_from_everybody),
        CACHE_TEST(victims_are_the_next_evictions),
        CACHE_TEST(a_hold_does_not_make_a_block_younger),
        CACHE_TEST(clear_forgets_every_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
