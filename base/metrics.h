/* metrics: counters, gauges and histograms of one process, in Prometheus' text format.
 * Flow:    any module updates -> [metrics] -> metrics_http (a scrape)
 * Thread:  registration and rendering take a lock; updates are atomic operations on one metric,
 *          from any thread, and never wait.
 * Memory:  one block per metric, made at registration, freed with the registry.
 *
 * A family (name, help, kind) has one metric per set of label values. Register once at start and
 * keep the pointer.
 * Source: prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4. */
#ifndef BATON_BASE_METRICS_H
#define BATON_BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"
#define METRICS_BUCKETS_MAX 64u

struct metrics; /* the registry */
struct counter;
struct gauge;
struct histogram;

/* Labels as "k", "v", "k2", "v2", ..., NULL; NULL alone is no labels. Values are any UTF-8. */
typedef const char *const *metric_labels_t;
#define METRIC_LABELS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* ret_metrics  Returns owned. Errors: RESOURCE_EXHAUSTED (node). */
NODISCARD status_t metrics_create(struct metrics **ret_metrics);
void metrics_destroy(struct metrics *metrics); /* NULL is fine; all metrics of it are gone */

/* Registration. name and help are copied; so are labels (NULL: none).
 * ret_*   lives as long as the registry
 * Errors  INVALID_ARGUMENT (node): a name or label that Prometheus refuses, buckets that do not
 *         rise, or a family registered before with another kind, help, or label names
 *         ALREADY_EXISTS (node): the same family with the same labels */
NODISCARD status_t metrics_add_counter(struct metrics *metrics, const char *name, const char *help,
                                       metric_labels_t labels, struct counter **ret_counter, struct diag *diag);
NODISCARD status_t metrics_add_gauge(struct metrics *metrics, const char *name, const char *help,
                                     metric_labels_t labels, struct gauge **ret_gauge, struct diag *diag);
/* bounds  [bound_count] upper bounds, rising, finite; +Inf is added. 1 .. METRICS_BUCKETS_MAX */
NODISCARD status_t metrics_add_histogram(struct metrics *metrics, const char *name, const char *help,
                                         metric_labels_t labels, const double *bounds, size_t bound_count,
                                         struct histogram **ret_histogram, struct diag *diag);

void counter_add(struct counter *counter, uint64_t amount);
uint64_t counter_value(const struct counter *counter);

void gauge_set(struct gauge *gauge, double value);
void gauge_add(struct gauge *gauge, double amount);
double gauge_value(const struct gauge *gauge);

/* Cost  a binary search over the bounds and two atomic updates. NaN is dropped. */
void histogram_observe(struct histogram *histogram, double value);
uint64_t histogram_count(const struct histogram *histogram);

/* Renders everything, families in the order of their registration.
 * ret_text  Returns owned (free()); terminated. ret_len without the terminator.
 * Errors    RESOURCE_EXHAUSTED (node). */
NODISCARD status_t metrics_render(struct metrics *metrics, char **ret_text, size_t *ret_len);

#endif
