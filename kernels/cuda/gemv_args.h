/* gemv_args: products of few rows with large matrices, at the speed of memory: decode at small batches.
 * Flow:    cuda_backend (fast mode, rows <= CUDA_GEMV_ROWS_MAX): cuda_gemv_takes(), kernel, shape -> gemv.cu
 * Thread:  any; pure functions and plain values.
 * Memory:  none beyond shared memory: no workspace.
 *
 * One launch computes up to CUDA_GEMV_PARTS products of the same x (q, k and v; gate and up), optionally of the RMS
 * norm of x, and optionally silu(gate) * up of the first two, so that a layer of a decode step is four launches of
 * this and what attention needs. A block of threads makes 8 outputs of all rows: its warps share out n_in, each in the
 * same pieces and order whatever the number of rows, outputs or parts. So a row's bits depend on n_in and the dtypes
 * alone; they are not those of cuBLASLt, which is why the deterministic mode goes without it.
 * Bytes    n_out * stride of each part, read once, 16 bytes a load and past L1; the bench divides by this. x comes
 *          from L2 for every block: rows / 8 of the weights' bytes at 2-byte x, 4 * rows / 16 with a norm. */
#ifndef BATON_KERNELS_CUDA_GEMV_ARGS_H
#define BATON_KERNELS_CUDA_GEMV_ARGS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "kernels/cuda/kernel_list.h"
#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_GEMV_ROWS_MAX 8u
#define CUDA_GEMV_PARTS 3u
#define CUDA_GEMV_THREADS 256u
#define CUDA_GEMV_OUTS 8u /* outputs of a part that one block makes */

/* What a launch gets without asking the driver for more; four blocks of it share an SM. */
#define CUDA_GEMV_SHARED_BYTES_MAX 49152u

struct cuda_gemv_part {
    const void *weight; /* [n_out][stride], KERNELS_ORDER_ROWS: inputs past n_in are zero; no kernel writes it: read early */
    uint32_t stride;    /* elements, a multiple of 8 */
    uint32_t n_out;
    const void *bias; /* [n_out], NULL: none */
    void *out;        /* [rows][out_stride] */
    uint64_t out_stride;
};

/* out = x * weight^T (+ bias) (+ out before), in this order, of every part; x first normed where norm_weight is given:
 * x / sqrt(mean(x^2) + eps) * norm_weight, rounded to `dtype`. With silu_mul, parts 0 and 1 are gate and up, both of
 * n_out, and parts[0].out = gate * sigmoid(gate) * up. */
struct cuda_gemv_args {
    uint32_t rows; /* 0: nothing happens */
    uint32_t n_in;
    uint32_t part_count; /* 1 .. CUDA_GEMV_PARTS; 2 with silu_mul */
    uint32_t accumulate; /* 0 or 1: add to what out holds; out_dtype F32, no silu_mul */
    uint32_t silu_mul;   /* 0 or 1 */
    enum dtype dtype;    /* of the weights, and of x where it is not normed: F32, BF16 or F16 */
    enum dtype out_dtype;
    enum dtype bias_dtype;
    const void *x; /* [rows][x_stride]: `dtype`, or f32 with norm_weight */
    uint64_t x_stride;
    const void *norm_weight; /* [n_in], NULL: no norm */
    enum dtype norm_dtype;
    float eps;
    struct cuda_gemv_part parts[CUDA_GEMV_PARTS];
};

/* Whether the kernel can do it: rows, dtypes, 16-byte alignment of x, x_stride and the weights, and shared memory for the
 * normed rows: all n_in up to 16k at one row of 2-byte values, 5k at four. */
bool cuda_gemv_takes(const struct cuda_gemv_args *args);

/* Of arguments that it takes. */
enum cuda_kernel cuda_gemv_kernel(const struct cuda_gemv_args *args);
void cuda_gemv_shape(const struct cuda_gemv_args *args, struct cuda_launch *ret_launch);

#ifdef __cplusplus
}
#endif

#endif
