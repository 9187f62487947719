/* token_mass: exp, log and sums against long double, and the same bits however they are computed. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "model/token_mass.h"

enum { COUNT = 5000 };
static float row[COUNT];

static void fill(struct rng *rng, float width)
{
    for (int i = 0; i < COUNT; i++) { row[i] = width * (float)(rng_unit(rng) * 2.0 - 1.0); }
}

/* Each mass is exp to the nearest unit: within 0.5 of rounding and 1e-15 of 2^44 of arithmetic. */
static void mass_is_exp(void **state)
{
    (void)state;
    struct rng rng = rng_init(11);
    static const float temperatures[] = {0.01f, 0.7f, 1.0f, 3.0f, 100.0f};
    for (int t = 0; t < 5; t++) {
        double inverse = 1.0 / (double)temperatures[t];
        for (int i = 0; i < 20000; i++) {
            float max = (float)(rng_unit(&rng) * 40 - 20);
            float logit = max - (float)(rng_unit(&rng) * 45) * temperatures[t];
            long double want = expl(((long double)logit - (long double)max) * (long double)inverse) * 0x1p44L;
            long double got = (long double)token_mass_of(logit, max, inverse);
            /* 0.5 for rounding; the difference of f32s in f64 and 45 / T cost 2^-52 * 45 relative */
            assert_true(fabsl(got - want) <= 0.51L + want * 45 * 0x1p-51L);
        }
    }
    assert_true(token_mass_of(3.5f, 3.5f, 1.0) == TOKEN_MASS_ONE);
    /* ln 2 in f32 is off by 2^-26, half of ONE is 2^43: so within 2^18 units */
    assert_true(llabs((long long)token_mass_of(0.0f, (float)log(2.0), 1.0) - (long long)(TOKEN_MASS_ONE / 2)) < 1 << 18);
    assert_true(token_mass_of(-31.5f, 0.0f, 1.0) == 0); /* 0.37 of a unit */
    assert_true(token_mass_of(-31.0f, 0.0f, 1.0) == 1); /* 0.61 of a unit */
}

/* Many at once are the same integers as one by one, infinities included. */
static void many_are_each(void **state)
{
    (void)state;
    struct rng rng = rng_init(13);
    static uint64_t masses[COUNT];
    static const float tops[] = {30.0f, 40.5f, INFINITY};
    for (int t = 0; t < 3; t++) {
        fill(&rng, 30);
        row[7] = -INFINITY;
        if (isinf(tops[t])) { row[9] = row[4000] = INFINITY; }
        for (uint32_t count = 1; count <= COUNT; count += 1 + count * 3 / 4) {
            token_mass_many(row, count, tops[t], 0.37, masses);
            for (uint32_t i = 0; i < count; i++) { assert_true(masses[i] == token_mass_of(row[i], tops[t], 0.37)); }
        }
    }
}

/* Infinities: -inf weighs nothing; the +inf ones share all. Extreme temperatures stay finite. */
static void infinities_are_masses(void **state)
{
    (void)state;
    assert_true(token_mass_of(-INFINITY, 0.0f, 1.0) == 0);
    assert_true(token_mass_of(INFINITY, INFINITY, 1.0) == TOKEN_MASS_ONE);
    assert_true(token_mass_of(3.0e38f, INFINITY, 0.01) == 0);
    assert_true(token_mass_of(1.0f, 1.0f, 1.0 / 1e-45) == TOKEN_MASS_ONE);
    assert_true(token_mass_of(-3e38f, 3e38f, 1.0 / (double)1e-45f) == 0);
    static const float mixed[] = {1, INFINITY, -INFINITY, INFINITY};
    assert_true(token_mass_sum(mixed, 4, INFINITY, 1.0, NULL) == 2 * TOKEN_MASS_ONE);
    struct logit_scan scan = token_mass_scan(mixed, 4);
    assert_int_equal(scan.argmax, 1);
    assert_true(isinf(scan.max));
}

/* The vector code, of every instruction set, gives the sum of the single masses, unit for unit, at any length and alignment. */
static void sum_is_the_sum(void **state)
{
    (void)state;
    struct rng rng = rng_init(12);
    for (int round = 0; round < 60; round++) {
        fill(&rng, round % 3 == 0 ? 0.5f : 20.0f);
        uint32_t first = (uint32_t)rng_below(&rng, 17);
        uint32_t len = round < 20 ? (uint32_t)round + 1 : 1 + (uint32_t)rng_below(&rng, COUNT - 17);
        if (round % 5 == 0) { row[first + len / 2] = -INFINITY; }
        struct logit_scan scan = token_mass_scan(row + first, len);
        if (scan.max == -INFINITY) { continue; }
        uint64_t blocks[COUNT / TOKEN_MASS_BLOCK + 1];
        uint64_t got = token_mass_sum(row + first, len, scan.max, 1.25, blocks);
        uint64_t want = 0;
        uint64_t want_block = 0;
        for (uint32_t i = 0; i < len; i++) {
            want += token_mass_of(row[first + i], scan.max, 1.25);
            want_block += token_mass_of(row[first + i], scan.max, 1.25);
            if ((i + 1) % TOKEN_MASS_BLOCK == 0 || i + 1 == len) {
                assert_true(blocks[i / TOKEN_MASS_BLOCK] == want_block);
                want_block = 0;
            }
        }
        assert_true(got == want);
        int32_t order_base = 0;
        for (unsigned twin = 0; twin < 8; twin++) { /* every instruction set of this machine */
            int32_t order = 0;
            if (!token_mass_sum_by(twin, row + first, len, scan.max, 1.25, &got, &order)) {
                assert_true(twin > 0);
                continue;
            }
            assert_true(got == want);
            if (twin == 0) { order_base = order; }
            assert_int_equal(order, order_base);
        }
    }
}

/* The largest vocabulary, all equal, does not overflow. */
static void largest_sum_fits(void **state)
{
    (void)state;
    float *flat = calloc(TOKEN_MASS_VOCAB_MAX, sizeof *flat);
    assert_non_null(flat);
    assert_true(token_mass_sum(flat, TOKEN_MASS_VOCAB_MAX, 0.0f, 1.0, NULL) == (uint64_t)1 << 63);
    free(flat);
}

/* The scan finds the first of the best, takes both zeros as equal, and sees one NaN anywhere. */
static void scan_finds_best_and_nan(void **state)
{
    (void)state;
    struct rng rng = rng_init(13);
    for (int round = 0; round < 200; round++) {
        uint32_t len = 1 + (uint32_t)rng_below(&rng, 300);
        for (uint32_t i = 0; i < len; i++) { row[i] = (float)rng_below(&rng, 9) - 8.0f; } /* many ties, best is 0 */
        if (round % 2) { row[rng_below(&rng, len)] = -0.0f; }
        uint32_t want = 0;
        for (uint32_t i = 1; i < len; i++) {
            if (row[i] > row[want]) { want = i; }
        }
        struct logit_scan scan = token_mass_scan(row, len);
        assert_false(scan.has_nan);
        assert_int_equal(scan.argmax, want);
        assert_true(scan.max == row[want]);
        uint32_t at = (uint32_t)rng_below(&rng, len);
        row[at] = round % 3 ? NAN : -NAN;
        scan = token_mass_scan(row, len);
        assert_true(scan.has_nan);
        assert_int_equal(scan.nan_at, at);
    }
    static const float all_low[] = {-INFINITY, -INFINITY};
    assert_true(token_mass_scan(all_low, 2).max == -INFINITY);
}

/* log against long double, over the values it is used for and far beyond. */
static void log_is_log(void **state)
{
    (void)state;
    struct rng rng = rng_init(14);
    for (int i = 0; i < 50000; i++) {
        double value = exp(rng_unit(&rng) * 120 - 60);
        long double want = logl((long double)value);
        assert_true(fabsl((long double)token_mass_log(value) - want) <= 1e-15L * (fabsl(want) + 0.1L));
    }
    assert_true(token_mass_log(1.0) == 0.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mass_is_exp), cmocka_unit_test(many_are_each), cmocka_unit_test(infinities_are_masses), cmocka_unit_test(sum_is_the_sum),
        cmocka_unit_test(largest_sum_fits), cmocka_unit_test(scan_finds_best_and_nan), cmocka_unit_test(log_is_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
