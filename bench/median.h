/* median: of the rounds of a bench.
 * Thread:  any. */
#ifndef BATON_BENCH_MEDIAN_H
#define BATON_BENCH_MEDIAN_H

#include <stdint.h>

#define BENCH_ROUNDS_MAX 1024u

/* values [count], 1 .. BENCH_ROUNDS_MAX, left as they are. Of an even count the greater one of the middle. */
double bench_median(const double *values, uint32_t count);

#endif
