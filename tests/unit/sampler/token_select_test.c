/* token_select: every choice equals that of a full sort. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/token_select.h"

enum { COUNT = 3000 };
static float row[COUNT];
static struct candidate sorted[COUNT], input[COUNT], got[COUNT];

static int by_order(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit) { return x->logit > y->logit ? -1 : 1; }
    return x->token < y->token ? -1 : 1;
}

static int by_token(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->token < y->token ? -1 : 1;
}

/* Rows with many ties, both zeros, both infinities, of both signs and all sizes. */
static uint32_t fill(struct rng *rng, unsigned round)
{
    uint32_t count = 1 + (uint32_t)rng_below(rng, round % 4 ? 200 : COUNT);
    for (uint32_t i = 0; i < count; i++) {
        switch (round % 3) {
        case 0: row[i] = (float)rng_below(rng, 5) - 2.0f; break;
        case 1: row[i] = (float)(rng_unit(rng) * 1e-3 - 5e-4); break;
        default: row[i] = (float)ldexp(rng_unit(rng) - 0.5, (int)rng_below(rng, 200) - 100); break;
        }
        if (rng_below(rng, 50) == 0) { row[i] = -0.0f; }
        if (rng_below(rng, 90) == 0) { row[i] = INFINITY; }
        if (rng_below(rng, 90) == 0) { row[i] = -INFINITY; }
        input[i] = (struct candidate){.mass = rng_below(rng, 1000), .logit = row[i], .token = i};
    }
    memcpy(sorted, input, count * sizeof sorted[0]);
    qsort(sorted, count, sizeof sorted[0], by_order);
    return count;
}

/* The heap's k best are the first k of the sort, in its order. */
static void best_equals_sort(void **state)
{
    (void)state;
    struct rng rng = rng_init(21);
    for (unsigned round = 0; round < 400; round++) {
        uint32_t count = fill(&rng, round);
        uint32_t k = 1 + (uint32_t)rng_below(&rng, round % 2 ? 20 : TOKEN_SELECT_BEST_MAX);
        uint32_t kept = token_select_best(row, count, k, got);
        assert_int_equal(kept, k < count ? k : count);
        for (uint32_t i = 0; i < kept; i++) { assert_int_equal(got[i].token, sorted[i].token); }
        token_select_sort_by_token(got, kept);
        for (uint32_t i = 1; i < kept; i++) { assert_true(got[i - 1].token < got[i].token); }
    }
}

/* Keeping by count keeps the first of the sort, in order of token id. */
static void keep_count_equals_sort(void **state)
{
    (void)state;
    struct rng rng = rng_init(22);
    for (unsigned round = 0; round < 400; round++) {
        uint32_t count = fill(&rng, round);
        uint32_t needed = 1 + (uint32_t)rng_below(&rng, count);
        memcpy(got, input, count * sizeof got[0]);
        assert_int_equal(token_select_keep_count(got, count, needed), needed);
        qsort(sorted, needed, sizeof sorted[0], by_token);
        for (uint32_t i = 0; i < needed; i++) { assert_int_equal(got[i].token, sorted[i].token); }
    }
}

/* Keeping by mass keeps the shortest run of the sort that has the mass. */
static void keep_mass_equals_sort(void **state)
{
    (void)state;
    struct rng rng = rng_init(23);
    for (unsigned round = 0; round < 600; round++) {
        uint32_t count = fill(&rng, round);
        if (round % 7 == 0) { /* equal masses, as ties have */
            for (uint32_t i = 0; i < count; i++) { input[i].mass = sorted[i].mass = 8; }
        }
        uint64_t total = 0;
        for (uint32_t i = 0; i < count; i++) { total += sorted[i].mass; }
        if (total == 0) { continue; }
        uint64_t needed = round % 5 == 0 ? total : round % 5 == 1 ? 1 : 1 + rng_below(&rng, total);
        uint32_t want = 0;
        for (uint64_t sum = 0; sum < needed;) { sum += sorted[want++].mass; }
        memcpy(got, input, count * sizeof got[0]);
        uint32_t kept = token_select_keep_mass(got, count, needed);
        assert_int_equal(kept, want);
        qsort(sorted, want, sizeof sorted[0], by_token);
        for (uint32_t i = 0; i < want; i++) { assert_int_equal(got[i].token, sorted[i].token); }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(best_equals_sort), cmocka_unit_test(keep_count_equals_sort),
        cmocka_unit_test(keep_mass_equals_sort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
