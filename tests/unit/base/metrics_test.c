/* The registry and its text format. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/metrics.h"

static const double bounds[] = {0.1, 1, 10};

static int start(void **state)
{
    struct metrics *metrics = NULL;
    assert_false(failed(metrics_create(&metrics)));
    *state = metrics;
    return 0;
}

static int stop(void **state)
{
    metrics_destroy(*state);
    return 0;
}

static void expect_text(struct metrics *metrics, const char *want)
{
    char *text = NULL;
    size_t len = 0;
    assert_false(failed(metrics_render(metrics, &text, &len)));
    assert_string_equal(text, want);
    assert_int_equal(len, strlen(want));
    free(text);
}

/* What Prometheus would refuse to scrape is refused at registration, by name, and leaves no trace. */
static void bad_registrations_are_refused(void **state)
{
    struct metrics *metrics = *state;
    struct counter *counter = NULL;
    struct gauge *gauge = NULL;
    struct histogram *histogram = NULL;
    struct diag diag;
    const char *const names[] = {"", "9lives", "a-b", "a b", "a\n", "\xc3\xa9"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_int_equal(metrics_add_counter(metrics, names[i], "h", NULL, &counter, &diag).code, ST_INVALID_ARGUMENT);
    }
    const metric_labels_t labels[] = {METRIC_LABELS("a:b", "x"), METRIC_LABELS("__x", "x"), METRIC_LABELS("", "x"),
                                      METRIC_LABELS("k", "1", "k", "2"), METRIC_LABELS("novalue")};
    for (size_t i = 0; i < sizeof labels / sizeof labels[0]; i++) {
        assert_int_equal(metrics_add_counter(metrics, "ok", "h", labels[i], &counter, &diag).code, ST_INVALID_ARGUMENT);
        assert_non_null(strstr(diag.text, "ok"));
    }
    assert_int_equal(
        metrics_add_histogram(metrics, "h", "h", METRIC_LABELS("le", "1"), bounds, 3, &histogram, &diag).code,
        ST_INVALID_ARGUMENT);
    const double wrong[][2] = {{1, 1}, {2, 1}, {0, INFINITY}, {NAN, 1}};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(metrics_add_histogram(metrics, "h", "h", NULL, wrong[i], 2, &histogram, &diag).code,
                         ST_INVALID_ARGUMENT);
    }
    assert_int_equal(metrics_add_histogram(metrics, "h", "h", NULL, bounds, 0, &histogram, &diag).code,
                     ST_INVALID_ARGUMENT);
    expect_text(metrics, "");

    assert_false(failed(metrics_add_counter(metrics, "c", "help", METRIC_LABELS("k", "1"), &counter, &diag)));
    assert_int_equal(metrics_add_counter(metrics, "c", "help", METRIC_LABELS("k", "1"), &counter, &diag).code,
                     ST_ALREADY_EXISTS);
    assert_int_equal(metrics_add_counter(metrics, "c", "other", METRIC_LABELS("k", "2"), &counter, &diag).code,
                     ST_INVALID_ARGUMENT);
    assert_int_equal(metrics_add_counter(metrics, "c", "help", METRIC_LABELS("j", "2"), &counter, &diag).code,
                     ST_INVALID_ARGUMENT);
    assert_int_equal(metrics_add_gauge(metrics, "c", "help", METRIC_LABELS("k", "2"), &gauge, &diag).code,
                     ST_INVALID_ARGUMENT);
    expect_text(metrics, "# HELP c help\n# TYPE c counter\nc{k=\"1\"} 0\n");
    metrics_destroy(NULL);
}

/* Families stay together and in order; text is escaped as the format says; numbers read back. */
static void text_is_exact(void **state)
{
    struct metrics *metrics = *state;
    struct counter *a = NULL, *b = NULL;
    struct gauge *gauge = NULL;
    struct histogram *histogram = NULL;
    assert_false(failed(metrics_add_counter(metrics, "vllm:tokens_total", "a \\ b\nc \"d\"",
                                            METRIC_LABELS("path", "C:\\x\n\"q\"", "n", ""), &a, NULL)));
    assert_false(failed(metrics_add_gauge(metrics, "g", "", NULL, &gauge, NULL)));
    assert_false(failed(
        metrics_add_counter(metrics, "vllm:tokens_total", "a \\ b\nc \"d\"", METRIC_LABELS("path", "y", "n", "2"), &b, NULL)));
    assert_false(
        failed(metrics_add_histogram(metrics, "h_seconds", "time", METRIC_LABELS("m", "x"), bounds, 3, &histogram, NULL)));
    counter_add(a, UINT64_MAX);
    counter_add(b, 7);
    gauge_set(gauge, 1.0 / 3);
    histogram_observe(histogram, 0.1);  /* on the bound: in its bucket */
    histogram_observe(histogram, 0.25);
    histogram_observe(histogram, -5);
    histogram_observe(histogram, 1e9);
    histogram_observe(histogram, NAN); /* nothing */
    assert_int_equal(histogram_count(histogram), 4);
    expect_text(metrics,
                "# HELP vllm:tokens_total a \\\\ b\\nc \"d\"\n"
                "# TYPE vllm:tokens_total counter\n"
                "vllm:tokens_total{path=\"C:\\\\x\\n\\\"q\\\"\",n=\"\"} 18446744073709551615\n"
                "vllm:tokens_total{path=\"y\",n=\"2\"} 7\n"
                "# HELP g \n# TYPE g gauge\ng 0.3333333333333333\n"
                "# HELP h_seconds time\n# TYPE h_seconds histogram\n"
                "h_seconds_bucket{m=\"x\",le=\"0.1\"} 2\n"
                "h_seconds_bucket{m=\"x\",le=\"1\"} 3\n"
                "h_seconds_bucket{m=\"x\",le=\"10\"} 3\n"
                "h_seconds_bucket{m=\"x\",le=\"+Inf\"} 4\n"
                "h_seconds_sum{m=\"x\"} 999999995.35\n"
                "h_seconds_count{m=\"x\"} 4\n");
    gauge_set(gauge, -INFINITY);
    gauge_add(gauge, 1);
    assert_true(isinf(gauge_value(gauge)));
}

struct shared {
    struct counter *counter;
    struct gauge *gauge;
    struct histogram *histogram;
};

static void *update(void *arg)
{
    struct shared *shared = arg;
    for (int i = 0; i < 20000; i++) {
        counter_add(shared->counter, 2);
        gauge_add(shared->gauge, 1);
        histogram_observe(shared->histogram, i % 3);
    }
    return NULL;
}

/* No update is lost between threads, also while the registry is rendered. */
static void updates_from_many_threads_add_up(void **state)
{
    struct metrics *metrics = *state;
    struct shared shared;
    assert_false(failed(metrics_add_counter(metrics, "c", "", NULL, &shared.counter, NULL)));
    assert_false(failed(metrics_add_gauge(metrics, "g", "", NULL, &shared.gauge, NULL)));
    assert_false(failed(metrics_add_histogram(metrics, "h", "", NULL, bounds, 3, &shared.histogram, NULL)));
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, update, &shared), 0);
    }
    for (int i = 0; i < 50; i++) {
        char *text = NULL;
        size_t len = 0;
        assert_false(failed(metrics_render(metrics, &text, &len)));
        free(text);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(counter_value(shared.counter), 160000);
    assert_true(gauge_value(shared.gauge) == 80000);
    assert_int_equal(histogram_count(shared.histogram), 80000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(bad_registrations_are_refused, start, stop),
        cmocka_unit_test_setup_teardown(text_is_exact, start, stop),
        cmocka_unit_test_setup_teardown(updates_from_many_threads_add_up, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
