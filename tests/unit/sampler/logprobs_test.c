/* logprobs: log-softmax, ranks and alternatives of the raw row. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "model/logprobs.h"

/* A row that is no row of numbers is an error that names the position. */
static void bad_rows_name_their_position(void **state)
{
    (void)state;
    float row[4] = {1, NAN, 2, 3};
    struct logprob_row out;
    struct diag diag = {{0}};
    status_t st = logprobs_of_row(row, 4, 0, 2, 17, &diag, &out);
    assert_int_equal(st.code, ST_INTERNAL);
    assert_int_equal(st.scope, SCOPE_REQUEST);
    assert_non_null(strstr(diag.text, "position 17"));
    assert_non_null(strstr(diag.text, "token 1 is NaN"));
    for (int i = 0; i < 4; i++) { row[i] = -INFINITY; }
    assert_int_equal(logprobs_of_row(row, 4, 0, 2, 18, &diag, &out).code, ST_INTERNAL);
    assert_non_null(strstr(diag.text, "position 18"));
}

/* By hand: logits ln 4, ln 2, ln 1, ln 1 have probabilities 1/2, 1/4, 1/8, 1/8. */
static void small_row_by_hand(void **state)
{
    (void)state;
    const float row[4] = {0.0f, 1.3862944f, 0.0f, 0.6931472f};
    struct logprob_row out;
    assert_false(failed(logprobs_of_row(row, 4, 2, 3, 0, NULL, &out)));
    assert_true(fabs((double)out.logprob - log(0.125)) < 1e-6);
    assert_int_equal(out.rank, 4); /* token 0 is equal and has the lower id */
    assert_int_equal(out.top_count, 3);
    static const uint32_t tokens[] = {1, 3, 0};
    static const double probs[] = {0.5, 0.25, 0.125};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(out.top[i].token, tokens[i]);
        assert_true(fabs((double)out.top[i].logprob - log(probs[i])) < 1e-6);
    }
    assert_false(failed(logprobs_of_row(row, 4, 1, 0, 0, NULL, &out)));
    assert_int_equal(out.rank, 1);
    assert_int_equal(out.top_count, 0);
    assert_false(failed(logprobs_of_row(row, 4, 1, 20, 0, NULL, &out))); /* more than there are */
    assert_int_equal(out.top_count, 4);
    assert_false(failed(logprobs_of_row(row, 1, 0, 1, 0, NULL, &out))); /* a vocabulary of one */
    assert_true(out.logprob == 0.0f);
}

/* -inf has log-probability -inf; holders of +inf share everything. */
static void infinities(void **state)
{
    (void)state;
    const float row[4] = {INFINITY, 5, -INFINITY, INFINITY};
    struct logprob_row out;
    assert_false(failed(logprobs_of_row(row, 4, 3, 4, 0, NULL, &out)));
    assert_true(fabs((double)out.logprob - log(0.5)) < 1e-6);
    assert_int_equal(out.rank, 2);
    assert_true(out.top[2].logprob == -INFINITY);
    assert_true(out.top[3].logprob == -INFINITY);
}

/* Against long double on random rows: 5e-9 for the normalizer's units, half an ulp for f32. */
static void random_rows_against_long_double(void **state)
{
    (void)state;
    enum { VOCAB = 20000 };
    static float row[VOCAB];
    struct rng rng = rng_init(31);
    for (int round = 0; round < 40; round++) {
        float width = round % 2 ? 30.0f : 0.01f;
        for (int i = 0; i < VOCAB; i++) { row[i] = width * (float)(rng_unit(&rng) - 0.5); }
        uint32_t chosen = (uint32_t)rng_below(&rng, VOCAB);
        long double sum = 0;
        uint32_t rank = 1;
        for (uint32_t i = 0; i < VOCAB; i++) {
            sum += expl((long double)row[i]);
            rank += row[i] > row[chosen] || (row[i] == row[chosen] && i < chosen);
        }
        long double want = (long double)row[chosen] - logl(sum);
        struct logprob_row out;
        assert_false(failed(logprobs_of_row(row, VOCAB, chosen, 20, 0, NULL, &out)));
        assert_true(fabsl((long double)out.logprob - want) <= 5e-9L + fabsl(want) * 0x1p-24L);
        assert_int_equal(out.rank, rank);
        for (uint32_t i = 1; i < 20; i++) { assert_true(out.top[i - 1].logprob >= out.top[i].logprob); }
        if (rank <= 20) { assert_int_equal(out.top[rank - 1].token, chosen); }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_rows_name_their_position), cmocka_unit_test(small_row_by_hand),
        cmocka_unit_test(infinities), cmocka_unit_test(random_rows_against_long_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
