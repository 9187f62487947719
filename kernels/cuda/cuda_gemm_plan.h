/* cuda_gemm_plan: which algorithm of cuBLASLt multiplies which shape, and the products themselves.
 * Flow:    kernels_gemm -> [cuda_gemm_plan] -> cuda_queue
 * Thread:  the handle's caller.
 * Memory:  device workspace and a stage for unaligned operands, taken in create; plans for shapes as they
 *          come, so that a shape's first product allocates and may wait for the device: warm-up.
 *
 * Neighbours in a call whose weights, biases and outputs lie one after another become one product.
 *
 * Fast: up to 4 rows are gemv.cu's; else, for each shape and bucket of row counts the likely best algorithms are timed once, with a cold
 * second-level cache, and the fastest is kept.
 *
 * Deterministic: one algorithm for a shape, whatever the rows: the first of the library's list, asked with
 * fixed strides and CUDA_GEMM_PROBE_ROWS rows, that forms every sum in one piece, takes every row count, and
 * was seen to give rows the same bits at several row counts. No clock has a say, so that two processes with
 * the same chip and library choose alike. Operands whose rows do not start on 16 bytes go through the stage,
 * for the algorithm was chosen for rows that do. */
#ifndef BATON_KERNELS_CUDA_CUDA_GEMM_PLAN_H
#define BATON_KERNELS_CUDA_CUDA_GEMM_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/cuda_queue.h"
#include "kernels/kernels.h"

#define CUDA_GEMM_PLANS_MAX 2048u /* shapes with their exact row counts; the one unused for longest gives way */
#define CUDA_GEMM_PROBE_ROWS 80u

struct cuda_gemm_plans; /* private to cuda_gemm_plan.c */

/* Returns owned. Borrows the queue until destroy.
 * Errors  RESOURCE_EXHAUSTED (node): no memory for the workspace. */
NODISCARD status_t cuda_gemm_plans_create(struct cuda_queue *queue, bool deterministic, struct cuda_gemm_plans **ret_plans,
                                          struct diag *diag);
void cuda_gemm_plans_destroy(struct cuda_gemm_plans *plans); /* takes NULL; the stream is idle */

/* As kernels_gemm; CHECKs what a device cannot do: weights in panels, or of another dtype than x. */
void cuda_gemm_plans_run(struct cuda_gemm_plans *plans, const struct kernels_gemm *gemms, uint32_t count);

/* As kernels_gemm_silu, in one launch. False: it is none for that, and nothing was queued. */
bool cuda_gemm_plans_run_silu(struct cuda_gemm_plans *plans, const struct kernels_gemm_silu *args);

/* The bytes first .. first+bytes-1 of device memory are not what they were: converted biases of there are
 * forgotten. True where one was, so that graphs that name the copy must go too. */
bool cuda_gemm_plans_forget(struct cuda_gemm_plans *plans, const void *first, size_t bytes);

/* The row counts that share a choice of algorithm: the least of 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, ... not below. */
uint32_t cuda_gemm_bucket(uint32_t rows);

/* How many of gemms[0 ..] are one product, and that product: 1 and a copy of the first as a rule. */
uint32_t cuda_gemm_merge(const struct kernels_gemm *gemms, uint32_t count, struct kernels_gemm *ret_gemm,
                         struct kernels_matrix *ret_weight);

#endif
