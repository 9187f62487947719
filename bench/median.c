#include "bench/median.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const double *values, uint32_t count)
{
    double sorted[BENCH_ROUNDS_MAX];
    CHECK(count >= 1);
    CHECK(count <= BENCH_ROUNDS_MAX);
    memcpy(sorted, values, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare);
    return sorted[count / 2];
}
