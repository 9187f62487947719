/* Claims on the statistics of a run and on reading files whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <unistd.h>

#include "base/rng.h"
#include "client/bench_stats.h"
#include "client/text_file.h"

/* No samples have no quantiles, and their JSON says only that there are none. */
static void nothing_has_no_quantile(void **state)
{
    (void)state;
    struct samples samples = {0};
    assert_true(isnan(samples_quantile(&samples, 0.5)));
    json_t *object = samples_json(&samples);
    assert_int_equal(json_integer_value(json_object_get(object, "count")), 0);
    assert_null(json_object_get(object, "p50"));
    json_decref(object);
    samples_add(&samples, NAN);
    assert_int_equal(samples.count, 0);
    samples_fini(&samples);
}

/* Between two ranks it is interpolated; at the ends it is the least and the most. */
static void quantiles_interpolate(void **state)
{
    (void)state;
    struct samples samples = {0};
    for (int i = 100; i >= 0; i--) { samples_add(&samples, i * 10); }
    assert_true(samples_quantile(&samples, 0) == 0);
    assert_true(samples_quantile(&samples, 1) == 1000);
    assert_true(samples_quantile(&samples, 2) == 1000);
    assert_true(samples_quantile(&samples, -1) == 0);
    assert_true(samples_quantile(&samples, 0.5) == 500);
    assert_true(fabs(samples_quantile(&samples, 0.999) - 999) < 1e-3);
    samples_fini(&samples);
    samples_add(&samples, 3);
    assert_true(samples_quantile(&samples, 0.99) == 3);
    samples_fini(&samples);
}

/* Thousands of samples in any order: ranks and mean hold. */
static void order_does_not_matter(void **state)
{
    (void)state;
    enum { COUNT = 5001 };
    static double values[COUNT];
    struct samples samples = {0};
    struct rng rng = rng_init(2);
    for (int i = 0; i < COUNT; i++) { values[i] = i; }
    for (int i = COUNT - 1; i > 0; i--) {
        size_t other = rng_below(&rng, (uint64_t)i + 1);
        double swap = values[i];
        values[i] = values[other];
        values[other] = swap;
    }
    for (int i = 0; i < COUNT; i++) { samples_add(&samples, values[i]); }
    json_t *object = samples_json(&samples);
    assert_int_equal(json_integer_value(json_object_get(object, "count")), COUNT);
    assert_true(json_real_value(json_object_get(object, "mean")) == 2500);
    assert_true(json_real_value(json_object_get(object, "p50")) == 2500);
    assert_true(json_real_value(json_object_get(object, "p90")) == 4500);
    assert_true(json_real_value(json_object_get(object, "max")) == 5000);
    json_decref(object);
    samples_fini(&samples);
}

/* A file comes whole, zero bytes too, whatever its size is to our buffer; none and a folder are errors. */
static void files_come_whole(void **state)
{
    (void)state;
    char path[] = "/tmp/text_file_test_XXXXXX", *text;
    size_t len;
    struct diag diag;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    static const size_t sizes[] = {0, 1, 4094, 4095, 4096, 4097, 8191, 8192, 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        char *bytes = malloc(sizes[i] + 1);
        for (size_t k = 0; k < sizes[i]; k++) { bytes[k] = (char)(k % 251); }
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(pwrite(fd, bytes, sizes[i], 0), sizes[i]);
        assert_false(failed(text_file_read(path, &text, &len, &diag)));
        assert_int_equal(len, sizes[i]);
        assert_memory_equal(text, bytes, len);
        assert_int_equal(text[len], 0);
        free(text);
        free(bytes);
    }
    close(fd);
    remove(path);
    assert_int_equal(text_file_read(path, &text, &len, &diag).code, ST_NOT_FOUND);
    assert_non_null(strstr(diag.text, path));
    assert_int_equal(text_file_read("/tmp", &text, &len, &diag).code, ST_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_has_no_quantile),
        cmocka_unit_test(quantiles_interpolate),
        cmocka_unit_test(order_does_not_matter),
        cmocka_unit_test(files_come_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
