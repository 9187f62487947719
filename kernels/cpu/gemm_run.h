/* gemm_run: cuts products into pieces and has the pool work through them.
 * Flow:    cpu_backend -> [gemm_run] -> pool -> a set's piece functions
 * Thread:  as kernels.h.
 * Memory:  none; the workers' scratch is lent. */
#ifndef BATON_KERNELS_CPU_GEMM_RUN_H
#define BATON_KERNELS_CPU_GEMM_RUN_H

#include "kernels/cpu/pool.h"
#include "kernels/cpu/set.h"

/* All of `gemms`, which do not need each other. row_step: rows of the set's whole tiles, of which blocks of
 * many rows are multiples. integers: for INT8 and INT4 weights; scratch: [threads
 * of the pool]. */
void gemm_run(const struct cpu_set *set, uint32_t row_step, const struct gemm_int_set *integers, struct pool *pool,
              struct set_scratch *scratch, const struct kernels_gemm *gemms, uint32_t count);

#endif
