/* bench_stats: percentiles and goodput of a benchmark run.
 * Flow:    finished requests -> [bench_stats] -> table or JSON
 * Thread:  one at a time.
 * Memory:  one number per request, and one per gap between tokens.
 *
 * TTFT is from sending to the first token; ITL is each gap between two token messages; TPOT is
 * (last - first) / (tokens - 1). Goodput counts requests that meet every limit, per second.
 * Source: the definitions of kubernetes-sigs/inference-perf. */
#ifndef BATON_CLIENT_BENCH_STATS_H
#define BATON_CLIENT_BENCH_STATS_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/status.h"

struct samples {
    size_t count, capacity;
    float *values;
};

/* Drops a NaN, and the value where there is no memory: the count says so. */
void samples_add(struct samples *samples, double value);

/* Sorts. Linear interpolation between ranks; NaN when empty. fraction 0 .. 1 */
double samples_quantile(struct samples *samples, double fraction);

/* {"count", "mean", "p50", "p90", "p99", "max"}; without samples only "count". */
json_t *samples_json(struct samples *samples);

void samples_fini(struct samples *samples);

#endif
