#include "base/metrics.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { KIND_COUNTER, KIND_GAUGE, KIND_HISTOGRAM };

static const char *const kind_names[] = {"counter", "gauge", "histogram"};

struct counter {
    _Atomic uint64_t value;
};

struct gauge {
    _Atomic uint64_t bits; /* of a double */
};

struct histogram {
    size_t bound_count;
    _Atomic uint64_t sum_bits;
    double bounds[METRICS_BUCKETS_MAX];
    _Atomic uint64_t counts[METRICS_BUCKETS_MAX + 1]; /* not cumulative; the last is above all bounds */
};

struct metric {
    struct metric *next;
    char *labels; /* rendered: k="v",k2="v2" */
    union {
        struct counter counter;
        struct gauge gauge;
        struct histogram histogram;
    } value;
};

struct family {
    struct family *next;
    enum kind kind;
    char *name;
    char *help;
    char *label_names; /* "k,k2," */
    struct metric *metrics;
};

struct metrics {
    pthread_mutex_t lock; /* guards the lists; the values are atomic */
    struct family *families;
};

static double double_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void add_double(_Atomic uint64_t *bits, double amount)
{
    uint64_t old = atomic_load_explicit(bits, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(bits, &old, bits_of(double_of(old) + amount), memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
}

status_t metrics_create(struct metrics **ret_metrics)
{
    struct metrics *metrics = calloc(1, sizeof *metrics);
    if (metrics == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    pthread_mutex_init(&metrics->lock, NULL);
    *ret_metrics = metrics;
    return STATUS_OK;
}

static void family_free(struct family *family)
{
    while (family->metrics != NULL) {
        struct metric *next = family->metrics->next;
        free(family->metrics->labels);
        free(family->metrics);
        family->metrics = next;
    }
    free(family->name);
    free(family->help);
    free(family->label_names);
    free(family);
}

void metrics_destroy(struct metrics *metrics)
{
    if (metrics == NULL) {
        return;
    }
    while (metrics->families != NULL) {
        struct family *next = metrics->families->next;
        family_free(metrics->families);
        metrics->families = next;
    }
    pthread_mutex_destroy(&metrics->lock);
    free(metrics);
}

/* [a-zA-Z_][a-zA-Z0-9_]*, with colons for metric names. */
static bool name_is_legal(const char *name, bool with_colons)
{
    if (name == NULL || name[0] == '\0' || isdigit((unsigned char)name[0])) {
        return false;
    }
    for (const char *at = name; *at != '\0'; at++) {
        bool ok = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9') ||
                  *at == '_' || (*at == ':' && with_colons);
        if (!ok) {
            return false;
        }
    }
    return true;
}

/* Backslash and newline, and the quote in label values, are escaped. */
static void put_escaped(FILE *out, const char *text, bool is_label)
{
    for (; *text != '\0'; text++) {
        if (*text == '\\') {
            fputs("\\\\", out);
        } else if (*text == '\n') {
            fputs("\\n", out);
        } else if (*text == '"' && is_label) {
            fputs("\\\"", out);
        } else {
            fputc(*text, out);
        }
    }
}

/* Renders labels and their names; both Return owned. */
static status_t render_labels(const char *metric, enum kind kind, metric_labels_t labels, char **ret_labels,
                              char **ret_names, struct diag *diag)
{
    char *texts[2] = {NULL, NULL};
    size_t lens[2];
    FILE *values = open_memstream(&texts[0], &lens[0]);
    FILE *names = open_memstream(&texts[1], &lens[1]);
    status_t st = values != NULL && names != NULL ? STATUS_OK : STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    for (size_t i = 0; !failed(st) && labels != NULL && labels[i] != NULL; i += 2) {
        bool is_reserved = strncmp(labels[i], "__", 2) == 0 || (kind == KIND_HISTOGRAM && strcmp(labels[i], "le") == 0);
        bool is_repeated = false;
        for (size_t k = 0; k < i; k += 2) {
            is_repeated = is_repeated || strcmp(labels[k], labels[i]) == 0;
        }
        if (!name_is_legal(labels[i], false) || is_reserved || is_repeated || labels[i + 1] == NULL) {
            diag_set(diag, "metric %s: label \"%s\" is malformed, reserved, repeated, or has no value", metric, labels[i]);
            st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
            break;
        }
        fprintf(values, "%s%s=\"", i > 0 ? "," : "", labels[i]);
        put_escaped(values, labels[i + 1], true);
        fputc('"', values);
        fprintf(names, "%s,", labels[i]);
    }
    bool values_written = values == NULL || fclose(values) == 0; /* both are closed, whatever the first says */
    bool names_written = names == NULL || fclose(names) == 0;
    if (!failed(st) && !(values_written && names_written)) {
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    if (failed(st)) {
        free(texts[0]);
        free(texts[1]);
        return st;
    }
    *ret_labels = texts[0];
    *ret_names = texts[1];
    return STATUS_OK;
}

/* Puts `metric` into its family, made if new. The lock is held. Takes metric on success. */
static status_t insert(struct metrics *metrics, enum kind kind, const char *name, const char *help,
                       const char *label_names, struct metric *metric, struct diag *diag)
{
    struct family **at = &metrics->families;
    while (*at != NULL && strcmp((*at)->name, name) != 0) {
        at = &(*at)->next;
    }
    struct family *family = *at;
    if (family == NULL) {
        family = calloc(1, sizeof *family);
        if (family == NULL) {
            return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        }
        family->kind = kind;
        family->name = strdup(name);
        family->help = strdup(help);
        family->label_names = strdup(label_names);
        if (family->name == NULL || family->help == NULL || family->label_names == NULL) {
            family_free(family);
            return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        }
        *at = family;
    } else if (family->kind != kind || strcmp(family->help, help) != 0 ||
               strcmp(family->label_names, label_names) != 0) {
        diag_set(diag, "metric %s was registered before with another kind, help or label names", name);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct metric **end = &family->metrics;
    for (; *end != NULL; end = &(*end)->next) {
        if (strcmp((*end)->labels, metric->labels) == 0) {
            diag_set(diag, "metric %s{%s} is registered twice", name, metric->labels);
            return STATUS(ST_ALREADY_EXISTS, SCOPE_NODE);
        }
    }
    *end = metric;
    return STATUS_OK;
}

static status_t add(struct metrics *metrics, enum kind kind, const char *name, const char *help, metric_labels_t labels,
                    const double *bounds, size_t bound_count, struct metric **ret_metric, struct diag *diag)
{
    if (!name_is_legal(name, true)) {
        diag_set(diag, "metric name \"%s\" is not [a-zA-Z_:][a-zA-Z0-9_:]*", name != NULL ? name : "");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct metric *metric = calloc(1, sizeof *metric);
    if (metric == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    if (kind == KIND_HISTOGRAM) {
        metric->value.histogram.bound_count = bound_count;
        memcpy(metric->value.histogram.bounds, bounds, bound_count * sizeof *bounds);
    }
    char *label_names = NULL;
    status_t st = render_labels(name, kind, labels, &metric->labels, &label_names, diag);
    if (!failed(st)) {
        pthread_mutex_lock(&metrics->lock);
        st = insert(metrics, kind, name, help, label_names, metric, diag);
        pthread_mutex_unlock(&metrics->lock);
    }
    free(label_names);
    if (failed(st)) {
        free(metric->labels);
        free(metric);
        return st;
    }
    *ret_metric = metric;
    return STATUS_OK;
}

status_t metrics_add_counter(struct metrics *metrics, const char *name, const char *help, metric_labels_t labels,
                             struct counter **ret_counter, struct diag *diag)
{
    struct metric *metric = NULL;
    TRY(add(metrics, KIND_COUNTER, name, help, labels, NULL, 0, &metric, diag));
    *ret_counter = &metric->value.counter;
    return STATUS_OK;
}

status_t metrics_add_gauge(struct metrics *metrics, const char *name, const char *help, metric_labels_t labels,
                           struct gauge **ret_gauge, struct diag *diag)
{
    struct metric *metric = NULL;
    TRY(add(metrics, KIND_GAUGE, name, help, labels, NULL, 0, &metric, diag));
    *ret_gauge = &metric->value.gauge;
    return STATUS_OK;
}

status_t metrics_add_histogram(struct metrics *metrics, const char *name, const char *help, metric_labels_t labels,
                               const double *bounds, size_t bound_count, struct histogram **ret_histogram,
                               struct diag *diag)
{
    bool rises = bound_count >= 1 && bound_count <= METRICS_BUCKETS_MAX;
    for (size_t i = 0; rises && i < bound_count; i++) {
        rises = isfinite(bounds[i]) && (i == 0 || bounds[i] > bounds[i - 1]);
    }
    if (!rises) {
        diag_set(diag, "histogram %s needs 1 to %u finite bounds that rise", name != NULL ? name : "",
                 METRICS_BUCKETS_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct metric *metric = NULL;
    TRY(add(metrics, KIND_HISTOGRAM, name, help, labels, bounds, bound_count, &metric, diag));
    *ret_histogram = &metric->value.histogram;
    return STATUS_OK;
}

void counter_add(struct counter *counter, uint64_t amount)
{
    atomic_fetch_add_explicit(&counter->value, amount, memory_order_relaxed);
}

uint64_t counter_value(const struct counter *counter)
{
    return atomic_load_explicit(&counter->value, memory_order_relaxed);
}

void gauge_set(struct gauge *gauge, double value)
{
    atomic_store_explicit(&gauge->bits, bits_of(value), memory_order_relaxed);
}

void gauge_add(struct gauge *gauge, double amount)
{
    add_double(&gauge->bits, amount);
}

double gauge_value(const struct gauge *gauge)
{
    return double_of(atomic_load_explicit(&gauge->bits, memory_order_relaxed));
}

void histogram_observe(struct histogram *histogram, double value)
{
    if (isnan(value)) {
        return;
    }
    /* The first bound that is >= value: buckets are "less or equal". */
    size_t low = 0;
    size_t high = histogram->bound_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (histogram->bounds[middle] < value) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    atomic_fetch_add_explicit(&histogram->counts[low], 1, memory_order_relaxed);
    add_double(&histogram->sum_bits, value);
}

uint64_t histogram_count(const struct histogram *histogram)
{
    uint64_t count = 0;
    for (size_t i = 0; i <= histogram->bound_count; i++) {
        count += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
    }
    return count;
}

/* The shortest form that reads back as the same number; Prometheus spells the rest its own way. */
static void put_number(FILE *out, double value)
{
    if (isnan(value)) {
        fputs("NaN", out);
    } else if (isinf(value)) {
        fputs(value > 0 ? "+Inf" : "-Inf", out);
    } else {
        char text[40];
        for (int digits = 6; digits <= 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, value);
            if (bits_of(strtod(text, NULL)) == bits_of(value)) {
                break;
            }
        }
        fputs(text, out);
    }
}

static void put_head(FILE *out, const char *name, const char *suffix, const char *labels)
{
    fprintf(out, "%s%s", name, suffix);
    if (labels[0] != '\0') {
        fprintf(out, "{%s}", labels);
    }
    fputc(' ', out);
}

static void put_histogram(FILE *out, const char *name, const struct metric *metric)
{
    const struct histogram *histogram = &metric->value.histogram;
    const char *comma = metric->labels[0] != '\0' ? "," : "";
    uint64_t count = 0; /* summed from one reading of the buckets, so that count == the +Inf bucket */
    for (size_t i = 0; i <= histogram->bound_count; i++) {
        count += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
        fprintf(out, "%s_bucket{%s%sle=\"", name, metric->labels, comma);
        put_number(out, i < histogram->bound_count ? histogram->bounds[i] : (double)INFINITY);
        fprintf(out, "\"} %" PRIu64 "\n", count);
    }
    put_head(out, name, "_sum", metric->labels);
    put_number(out, double_of(atomic_load_explicit(&histogram->sum_bits, memory_order_relaxed)));
    fputc('\n', out);
    put_head(out, name, "_count", metric->labels);
    fprintf(out, "%" PRIu64 "\n", count);
}

static void put_family(FILE *out, const struct family *family)
{
    fprintf(out, "# HELP %s ", family->name);
    put_escaped(out, family->help, false);
    fprintf(out, "\n# TYPE %s %s\n", family->name, kind_names[family->kind]);
    for (const struct metric *metric = family->metrics; metric != NULL; metric = metric->next) {
        switch (family->kind) {
        case KIND_COUNTER:
            put_head(out, family->name, "", metric->labels);
            fprintf(out, "%" PRIu64 "\n", counter_value(&metric->value.counter));
            break;
        case KIND_GAUGE:
            put_head(out, family->name, "", metric->labels);
            put_number(out, gauge_value(&metric->value.gauge));
            fputc('\n', out);
            break;
        case KIND_HISTOGRAM: put_histogram(out, family->name, metric); break;
        }
    }
}

status_t metrics_render(struct metrics *metrics, char **ret_text, size_t *ret_len)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (out == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    pthread_mutex_lock(&metrics->lock);
    for (const struct family *family = metrics->families; family != NULL; family = family->next) {
        put_family(out, family);
    }
    pthread_mutex_unlock(&metrics->lock);
    if (fclose(out) != 0) {
        free(text);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    *ret_text = text;
    *ret_len = len;
    return STATUS_OK;
}
