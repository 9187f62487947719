/* How many prompt rows go beside sequences that decode. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "decode_node/decode_pace.h"

#define MS UINT64_C(1000000)

/* Nobody decodes, or nobody asked for a bound: there is none. */
static void without_decoding_or_a_stretch_there_is_no_bound(void **state)
{
    (void)state;
    struct decode_pace pace = {0};
    assert_int_equal(decode_pace_rows(&pace, 0, 150), UINT32_MAX);
    assert_int_equal(decode_pace_rows(&pace, 8, 0), UINT32_MAX);
}

/* Before anything is measured it is a few, whichever of the two is missing. */
static void nothing_learned_is_a_few_rows(void **state)
{
    (void)state;
    struct decode_pace pace = {0};
    assert_in_range(decode_pace_rows(&pace, 8, 150), 1, 16);
    decode_pace_learn(&pace, 8, 0, 10 * MS);
    assert_in_range(decode_pace_rows(&pace, 8, 150), 1, 16);
    pace = (struct decode_pace){0};
    decode_pace_learn(&pace, 0, 100, 10 * MS);
    assert_in_range(decode_pace_rows(&pace, 8, 150), 1, 16);
    /* A mixed step before any other tells nothing: what of it was the rows'? */
    pace = (struct decode_pace){0};
    decode_pace_learn(&pace, 8, 100, 10 * MS);
    assert_int_equal(pace.row_ns, 0);
}

/* The prediction keeps the bound, and uses most of it. */
static void the_step_stays_within_its_stretch(void **state)
{
    (void)state;
    struct decode_pace pace = {0};
    for (uint32_t i = 0; i < 50; i++) {
        decode_pace_learn(&pace, 8, 0, 40 * MS);
        uint32_t rows = decode_pace_rows(&pace, 8, 150);
        decode_pace_learn(&pace, 8, rows, 40 * MS + rows * MS / 4);
    }
    uint32_t rows = decode_pace_rows(&pace, 8, 150);
    assert_in_range(rows * MS / 4, 10 * MS, 20 * MS);
    assert_in_range(decode_pace_rows(&pace, 8, 300), 3 * rows, 5 * rows);
}

/* A stretch of one, or rows that cost more than the bound: one row still goes, or a prompt would wait
 * for as long as anybody decodes. */
static void at_least_one_row_goes(void **state)
{
    (void)state;
    struct decode_pace pace = {0};
    decode_pace_learn(&pace, 1, 0, 1 * MS);
    decode_pace_learn(&pace, 1, 1, 100 * MS);
    assert_int_equal(decode_pace_rows(&pace, 1, 150), 1);
    assert_int_equal(decode_pace_rows(&pace, 1, 100), 1);
    assert_int_equal(decode_pace_rows(&pace, 1, 50), 1);
}

/* Sizes are learned apart; one that was never seen takes the nearest smaller, else larger one's time. */
static void batches_of_each_size_have_their_own_time(void **state)
{
    (void)state;
    struct decode_pace pace = {0};
    decode_pace_learn(&pace, 16, 0, 40 * MS);
    decode_pace_learn(&pace, 0, 10, 10 * MS);
    uint32_t of_16 = decode_pace_rows(&pace, 16, 200);
    assert_int_equal(decode_pace_rows(&pace, 2, 200), of_16);
    decode_pace_learn(&pace, 2, 0, 20 * MS);
    assert_int_equal(decode_pace_rows(&pace, 3, 200), of_16 / 2);
    assert_int_equal(decode_pace_rows(&pace, 8, 200), of_16 / 2);
    assert_int_equal(decode_pace_rows(&pace, 31, 200), of_16);
    assert_int_equal(decode_pace_rows(&pace, UINT32_MAX, 200), of_16);
}

/* A step that took no time, or less than one without prompt rows, is no reason for a bound of zero. */
static void odd_times_do_no_harm(void **state)
{
    (void)state;
    struct decode_pace pace = {0};
    decode_pace_learn(&pace, 4, 0, 0);
    decode_pace_learn(&pace, 4, 0, 10 * MS);
    decode_pace_learn(&pace, 4, 5, 0);
    assert_true(decode_pace_rows(&pace, 4, 150) > 1000);
    decode_pace_learn(&pace, 4, 0, UINT64_MAX / 4);
    assert_true(decode_pace_rows(&pace, 4, 100000) < UINT32_MAX);
    decode_pace_learn(&pace, 0, 0, MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_decoding_or_a_stretch_there_is_no_bound),
        cmocka_unit_test(nothing_learned_is_a_few_rows),
        cmocka_unit_test(the_step_stays_within_its_stretch),
        cmocka_unit_test(at_least_one_row_goes),
        cmocka_unit_test(batches_of_each_size_have_their_own_time),
        cmocka_unit_test(odd_times_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
