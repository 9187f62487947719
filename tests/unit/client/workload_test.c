/* Claims on workloads: the same seed makes the same load, equal hashes an equal prefix, and a
 * trace that is wrong is refused with its line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "client/workload.h"

static char path[] = "/tmp/workload_test_XXXXXX";
static struct workload workload;
static struct diag diag;

static status_t read_text(const char *text, double length_scale, double time_scale, uint32_t count_max)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    memset(&diag, 0, sizeof diag);
    return workload_read_trace(path, length_scale, time_scale, count_max, 1000, 7, &workload, &diag);
}

#define LINE "{\"timestamp\": 10, \"input_length\": 4, \"output_length\": 2}\n"

/* A wrong line is refused with its number and the field. */
static void wrong_lines_are_named(void **state)
{
    (void)state;
    static const struct { const char *text, *reason; } cases[] = {
        {"", "the trace is empty"},
        {"\n \n", "the trace is empty"},
        {LINE "{\"timestamp\": 1", ":2: "},
        {LINE "\n[]\n", ":3: \"timestamp\""},
        {"{\"timestamp\": -1, \"input_length\": 4, \"output_length\": 2}", ":1: \"timestamp\""},
        {"{\"timestamp\": \"1\", \"input_length\": 4, \"output_length\": 2}", ":1: \"timestamp\""},
        {"{\"timestamp\": 1, \"output_length\": 2}", ":1: \"input_length\""},
        {"{\"timestamp\": 1, \"input_length\": 4, \"output_length\": -2}", ":1: \"output_length\""},
        {"{\"timestamp\": 1, \"input_length\": 4, \"output_length\": 2, \"hash_ids\": 3}", ":1: \"hash_ids\""},
        {"{\"timestamp\": 1, \"input_length\": 4, \"output_length\": 2, \"hash_ids\": [1, \"2\"]}", ":1: \"hash_ids\""},
        {"{\"timestamp\": 1, \"timestamp\": 2, \"input_length\": 4, \"output_length\": 2}", ":1: "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        status_t st = read_text(cases[i].text, 1, 1, 0);
        assert_int_equal(st.code, ST_INVALID_ARGUMENT);
        if (!strstr(diag.text, cases[i].reason)) { fail_msg("case %zu: %s", i, diag.text); }
    }
    status_t st = workload_read_trace("/no/such/trace", 1, 1, 0, 0, 7, &workload, &diag);
    assert_int_equal(st.code, ST_NOT_FOUND);
    assert_non_null(strstr(diag.text, "/no/such/trace"));
    st = workload_read_trace("/tmp", 1, 1, 0, 0, 7, &workload, &diag);
    assert_int_equal(st.code, ST_NOT_FOUND); /* a folder, not an empty trace */
    double scales[] = {0, -1, NAN, INFINITY};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(read_text(LINE, scales[i], 1, 0).code, ST_INVALID_ARGUMENT);
        assert_int_equal(read_text(LINE, 1, scales[i], 0).code, ST_INVALID_ARGUMENT);
    }
}

/* Scales multiply lengths and divide times; nothing becomes zero, and nothing passes its type. */
static void scales_apply(void **state)
{
    (void)state;
    assert_false(failed(read_text("{\"timestamp\": 30, \"input_length\": 401, \"output_length\": 3, \"hash_ids\": [1]}\n"
                                  "{\"timestamp\": 1e300, \"input_length\": 1e300, \"output_length\": 1e300}\n" LINE,
                                  0.5, 3, 0)));
    assert_int_equal(workload.count, 3);
    assert_int_equal(workload.hash_tokens, 256);
    assert_true(workload.requests[0].at_ns == 10000000);
    assert_int_equal(workload.requests[0].input_tokens, 200);
    assert_int_equal(workload.requests[0].output_tokens, 1);
    assert_int_equal(workload.requests[0].hash_count, 1);
    assert_int_equal(workload.requests[1].input_tokens, 1000); /* input_max */
    assert_true(workload.requests[1].output_tokens == UINT32_MAX);
    assert_true(workload.requests[1].at_ns > 0);
    workload_fini(&workload);
    assert_false(failed(read_text(LINE LINE LINE, 1, 1, 2)));
    assert_int_equal(workload.count, 2);
    workload_fini(&workload);
}

/* Equal hashes give equal blocks of tokens, up to the first that differs; the rest is each
 * request's own. */
static void equal_hashes_share_a_prefix(void **state)
{
    (void)state;
    uint32_t a[40], b[40], c[40], again[40];
    assert_false(failed(read_text("{\"timestamp\": 0, \"input_length\": 640, \"output_length\": 1, \"hash_ids\": [5, 6]}\n"
                                  "{\"timestamp\": 0, \"input_length\": 640, \"output_length\": 1, \"hash_ids\": [5, 9]}\n"
                                  "{\"timestamp\": 0, \"input_length\": 640, \"output_length\": 1}\n", 1.0 / 32, 1, 0)));
    assert_int_equal(workload.hash_tokens, 16);
    assert_int_equal(workload.requests[0].input_tokens, 20);
    workload_prompt(&workload, 0, 500, a);
    workload_prompt(&workload, 1, 500, b);
    workload_prompt(&workload, 2, 500, c);
    workload_prompt(&workload, 0, 500, again);
    assert_memory_equal(a, again, 20 * sizeof *a);
    assert_memory_equal(a, b, 16 * sizeof *a);
    assert_memory_not_equal(a + 16, b + 16, 4 * sizeof *a);
    assert_memory_not_equal(a, c, 16 * sizeof *a);
    for (int i = 0; i < 20; i++) { assert_in_range(a[i], 32, 499); }
    workload_prompt(&workload, 0, 1, a); /* a vocabulary of one */
    for (int i = 0; i < 20; i++) { assert_int_equal(a[i], 0); }
    workload_fini(&workload);
}

/* A rate's gaps are exponential: their mean is 1/rate within the error of so many draws. */
static void a_rate_is_kept(void **state)
{
    (void)state;
    enum { COUNT = 20000 };
    assert_false(failed(workload_uniform(COUNT, 8, 9, 50, 3, &workload)));
    double mean_s = (double)workload.requests[COUNT - 1].at_ns * 1e-9 / (COUNT - 1);
    assert_true(fabs(mean_s * 50 - 1) < 6 / sqrt(COUNT)); /* six standard errors; the seed is fixed */
    for (uint32_t i = 1; i < COUNT; i++) { assert_true(workload.requests[i].at_ns >= workload.requests[i - 1].at_ns); }
    workload_fini(&workload);
    assert_false(failed(workload_uniform(5, 8, 9, 0, 3, &workload)));
    assert_true(workload.requests[4].at_ns == 0);
    workload_fini(&workload);
    assert_false(failed(workload_uniform(5, 8, 9, 1e-300, 3, &workload))); /* past any clock: cut */
    assert_true(workload.requests[4].at_ns == UINT64_C(3000000000000000000));
    workload_fini(&workload);
    assert_false(failed(workload_uniform(0, 8, 9, 0, 3, &workload)));
    workload_fini(&workload);
}

static int make_file(void **state)
{
    (void)state;
    return mkstemp(path) < 0;
}

static int drop_file(void **state)
{
    (void)state;
    return remove(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_lines_are_named),
        cmocka_unit_test(scales_apply),
        cmocka_unit_test(equal_hashes_share_a_prefix),
        cmocka_unit_test(a_rate_is_kept),
    };
    return cmocka_run_group_tests(tests, make_file, drop_file);
}
