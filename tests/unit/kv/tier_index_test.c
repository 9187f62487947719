#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/rng.h"
#include "kv/tier_index.h"
#include "tests/unit/heap/counting_heap.h"

static struct kv_hash name_of(uint32_t id)
{
    uint32_t tokens[1] = {id};
    return kv_hash_next(kv_hash_root(0), tokens, 1);
}

static void every_failed_allocation_is_a_status(void **state)
{
    (void)state;
    uint64_t before = heap_allocations();
    struct tier_index *index = NULL;
    assert_false(failed(tier_index_create(10, &index)));
    uint64_t needed = heap_allocations() - before;
    tier_index_destroy(index);
    for (uint64_t k = 1; k <= needed; k++) {
        index = NULL;
        heap_fail_next(k);
        status_t st = tier_index_create(10, &index);
        assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
        assert_int_equal(st.scope, SCOPE_NODE);
        assert_null(index);
    }
    heap_fail_next(0);
    tier_index_destroy(NULL);
}

/* Without a tier the index is there and holds nothing. */
static void an_index_of_nothing_refuses_everything(void **state)
{
    (void)state;
    struct tier_index *index;
    enum kv_tier_kind tier;
    assert_false(failed(tier_index_create(0, &index)));
    assert_false(tier_index_add(index, name_of(1), KV_TIER_HOST));
    assert_false(tier_index_find(index, name_of(1), &tier));
    assert_false(tier_index_remove(index, name_of(1)));
    tier_index_destroy(index);
}

/* A full index still learns that what it knows has moved. */
static void a_full_index_refuses_new_names_only(void **state)
{
    (void)state;
    struct tier_index *index;
    enum kv_tier_kind tier;
    assert_false(failed(tier_index_create(2, &index)));
    assert_true(tier_index_add(index, name_of(1), KV_TIER_HOST));
    assert_true(tier_index_add(index, name_of(2), KV_TIER_DISK));
    assert_false(tier_index_add(index, name_of(3), KV_TIER_HOST));
    assert_true(tier_index_add(index, name_of(1), KV_TIER_DISK));
    assert_true(tier_index_find(index, name_of(1), &tier));
    assert_int_equal(tier, KV_TIER_DISK);
    assert_int_equal(tier_index_count(index, KV_TIER_HOST), 0);
    assert_int_equal(tier_index_count(index, KV_TIER_DISK), 2);
    assert_true(tier_index_remove(index, name_of(2)));
    assert_true(tier_index_add(index, name_of(3), KV_TIER_HOST));
    tier_index_destroy(index);
}

static void random_operations_agree_with_a_naive_map(void **state)
{
    (void)state;
    enum { NAMES = 60, ENTRIES = 41, NOWHERE = KV_TIER_COUNT };
    struct kv_hash names[NAMES];
    for (uint32_t i = 0; i < NAMES; i++) { names[i] = name_of(i); }
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct rng rng = rng_init(seed);
        struct tier_index *index;
        assert_false(failed(tier_index_create(ENTRIES, &index)));
        uint64_t after_create = heap_allocations();
        uint32_t where[NAMES];
        uint32_t counts[KV_TIER_COUNT + 1] = {[NOWHERE] = NAMES};
        for (uint32_t i = 0; i < NAMES; i++) { where[i] = NOWHERE; }
        for (uint32_t step = 0; step < 3000; step++) {
            uint32_t i = (uint32_t)rng_below(&rng, NAMES);
            uint32_t to = (uint32_t)rng_below(&rng, KV_TIER_COUNT + 1);
            bool expected = to == NOWHERE ? where[i] != NOWHERE : where[i] != NOWHERE || NAMES - counts[NOWHERE] < ENTRIES;
            bool got = to == NOWHERE ? tier_index_remove(index, names[i]) : tier_index_add(index, names[i], (enum kv_tier_kind)to);
            if (got != expected) { fail_msg("seed %llu, step %u", (unsigned long long)seed, step); }
            if (got) {
                counts[where[i]]--;
                counts[to]++;
                where[i] = to;
            }
            uint32_t k = (uint32_t)rng_below(&rng, NAMES);
            enum kv_tier_kind tier;
            bool is_found = tier_index_find(index, names[k], &tier);
            assert_true(is_found == (where[k] != NOWHERE));
            if (is_found) { assert_int_equal(tier, where[k]); }
            for (uint32_t t = 0; t < KV_TIER_COUNT; t++) { assert_int_equal(tier_index_count(index, (enum kv_tier_kind)t), counts[t]); }
        }
        assert_int_equal(heap_allocations(), after_create);
        tier_index_destroy(index);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_failed_allocation_is_a_status),
        cmocka_unit_test(an_index_of_nothing_refuses_everything),
        cmocka_unit_test(a_full_index_refuses_new_names_only),
        cmocka_unit_test(random_operations_agree_with_a_naive_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
