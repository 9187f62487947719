#include "client/bench_stats.h"

#include <math.h>
#include <stdlib.h>

void samples_add(struct samples *samples, double value)
{
    if (isnan(value)) { return; } /* has no place in an order */
    if (samples->count == samples->capacity) {
        size_t capacity = samples->capacity ? samples->capacity * 2 : 1024;
        float *grown = realloc(samples->values, capacity * sizeof *grown);
        if (!grown) { return; }
        samples->values = grown;
        samples->capacity = capacity;
    }
    samples->values[samples->count++] = (float)value;
}

static int by_value(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

double samples_quantile(struct samples *samples, double fraction)
{
    if (samples->count == 0) { return NAN; }
    qsort(samples->values, samples->count, sizeof *samples->values, by_value);
    double rank = fmin(fmax(fraction, 0), 1) * (double)(samples->count - 1);
    size_t low = (size_t)rank;
    size_t high = low + 1 < samples->count ? low + 1 : low;
    double weight = rank - (double)low;
    return samples->values[low] * (1 - weight) + samples->values[high] * weight;
}

json_t *samples_json(struct samples *samples)
{
    json_t *object = json_object();
    double sum = 0;
    for (size_t i = 0; i < samples->count; i++) { sum += samples->values[i]; }
    json_object_set_new(object, "count", json_integer((json_int_t)samples->count));
    if (samples->count == 0) { return object; }
    json_object_set_new(object, "mean", json_real(sum / (double)samples->count));
    json_object_set_new(object, "p50", json_real(samples_quantile(samples, 0.5)));
    json_object_set_new(object, "p90", json_real(samples_quantile(samples, 0.9)));
    json_object_set_new(object, "p99", json_real(samples_quantile(samples, 0.99)));
    json_object_set_new(object, "max", json_real(samples_quantile(samples, 1)));
    return object;
}

void samples_fini(struct samples *samples)
{
    free(samples->values);
    *samples = (struct samples){0};
}
