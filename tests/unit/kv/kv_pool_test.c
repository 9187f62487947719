#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/rng.h"
#include "kv/kv_pool.h"

static int open_pool(void **state)
{
    struct kv_pool *pool;
    if (failed(kv_pool_create(8, &pool))) { return -1; }
    *state = pool;
    return 0;
}

static int close_pool(void **state)
{
    kv_pool_audit(*state, NULL);
    kv_pool_destroy(*state);
    return 0;
}

static void an_empty_pool_is_refused(void **state)
{
    (void)state;
    struct kv_pool *pool = NULL;
    assert_int_equal(kv_pool_create(0, &pool).code, ST_INVALID_ARGUMENT);
    assert_null(pool);
    kv_pool_destroy(NULL);
}

/* A reservation that cannot be met in full takes nothing, and writes nothing. */
static void reserve_is_all_or_none(void **state)
{
    struct kv_pool *pool = *state;
    uint32_t blocks[9] = {77};
    status_t st = kv_pool_reserve(pool, 9, blocks);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(st.scope, SCOPE_REQUEST);
    assert_int_equal(kv_pool_free_count(pool), 8);
    assert_int_equal(blocks[0], 77);
    assert_false(failed(kv_pool_reserve(pool, 8, blocks)));
    assert_false(failed(kv_pool_reserve(pool, 0, blocks)));
    assert_true(failed(kv_pool_reserve(pool, 1, blocks)));
    kv_pool_release(pool, 8, blocks);
}

/* A shared block comes free with its last reference. */
static void the_last_reference_frees(void **state)
{
    struct kv_pool *pool = *state;
    uint32_t block;
    assert_false(failed(kv_pool_reserve(pool, 1, &block)));
    kv_pool_ref(pool, block);
    assert_int_equal(kv_pool_refs(pool, block), 2);
    kv_pool_release(pool, 1, &block);
    assert_int_equal(kv_pool_free_count(pool), 7);
    assert_int_equal(kv_pool_counts(pool).held, 1);
    kv_pool_release(pool, 1, &block);
    assert_int_equal(kv_pool_free_count(pool), 8);
    assert_int_equal(kv_pool_refs(pool, block), 0);
}

/* A block in quarantine is neither free nor held, and nobody gets it before the fence. */
static void quarantine_keeps_blocks_from_everybody(void **state)
{
    struct kv_pool *pool = *state;
    uint32_t blocks[8];
    assert_false(failed(kv_pool_reserve(pool, 3, blocks)));
    kv_pool_quarantine(pool, 3, blocks);
    struct kv_pool_counts counts = kv_pool_counts(pool);
    assert_int_equal(counts.free, 5);
    assert_int_equal(counts.held, 0);
    assert_int_equal(counts.quarantined, 3);
    uint32_t others[6];
    assert_true(failed(kv_pool_reserve(pool, 6, others)));
    assert_false(failed(kv_pool_reserve(pool, 5, others)));
    for (uint32_t i = 0; i < 5; i++) {
        for (uint32_t q = 0; q < 3; q++) { assert_int_not_equal(others[i], blocks[q]); }
    }
    kv_pool_fence(pool, 3, blocks);
    kv_pool_release(pool, 5, others);
    assert_int_equal(kv_pool_free_count(pool), 8);
}

/* Against a naive model: one reference count for each block. */
static void random_operations_agree_with_a_naive_pool(void **state)
{
    (void)state;
    enum { TOTAL = 23 };
    for (uint64_t seed = 1; seed <= 50; seed++) {
        struct rng rng = rng_init(seed);
        struct kv_pool *pool;
        assert_false(failed(kv_pool_create(TOTAL, &pool)));
        uint32_t refs[TOTAL] = {0};
        bool quarantined[TOTAL] = {false};
        for (uint32_t step = 0; step < 400; step++) {
            uint32_t block = (uint32_t)rng_below(&rng, TOTAL);
            uint32_t free_count = 0;
            for (uint32_t i = 0; i < TOTAL; i++) { free_count += refs[i] == 0 && !quarantined[i]; }
            switch (rng_below(&rng, 5)) {
            case 0: {
                uint32_t count = (uint32_t)rng_below(&rng, 6);
                uint32_t blocks[6];
                bool fits = !failed(kv_pool_reserve(pool, count, blocks));
                if (fits != (count <= free_count)) { fail_msg("seed %llu: reserve of %u", (unsigned long long)seed, count); }
                for (uint32_t i = 0; fits && i < count; i++) {
                    assert_true(refs[blocks[i]] == 0 && !quarantined[blocks[i]]);
                    refs[blocks[i]] = 1;
                }
                break;
            }
            case 1:
                if (refs[block] > 0) {
                    kv_pool_ref(pool, block);
                    refs[block]++;
                }
                break;
            case 2:
                if (refs[block] > 0) {
                    kv_pool_release(pool, 1, &block);
                    refs[block]--;
                }
                break;
            case 3:
                if (refs[block] == 1) {
                    kv_pool_quarantine(pool, 1, &block);
                    refs[block] = 0;
                    quarantined[block] = true;
                }
                break;
            default:
                if (quarantined[block]) {
                    kv_pool_fence(pool, 1, &block);
                    quarantined[block] = false;
                }
                break;
            }
            kv_pool_audit(pool, refs);
            struct kv_pool_counts counts = kv_pool_counts(pool);
            assert_int_equal(counts.free + counts.held + counts.cached + counts.quarantined, TOTAL);
        }
        kv_pool_destroy(pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_pool_is_refused),
        cmocka_unit_test_setup_teardown(reserve_is_all_or_none, open_pool, close_pool),
        cmocka_unit_test_setup_teardown(the_last_reference_frees, open_pool, close_pool),
        cmocka_unit_test_setup_teardown(quarantine_keeps_blocks_from_everybody, open_pool, close_pool),
        cmocka_unit_test(random_operations_agree_with_a_naive_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
