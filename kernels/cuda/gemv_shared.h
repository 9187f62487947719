/* gemv_shared: how a block of gemv.cu lays out its shared memory, for the kernel and for its launch.
 * Flow:    gemv_args.c, gemv.cu -> [gemv_shared]
 * Thread:  any; pure. C11, nvcc and g++ read it.
 *
 *   f32 sums[2][warps][CUDA_GEMV_ROWS_MAX][CUDA_GEMV_OUTS]   what each warp made of its part of n_in; [1]: up
 *   f32 squares[warps]                                       of a row that is normed
 *   values[rows][n_in and padding]                           the normed rows, zero past n_in */
#ifndef BATON_KERNELS_CUDA_GEMV_SHARED_H
#define BATON_KERNELS_CUDA_GEMV_SHARED_H

#include "kernels/cuda/gemv_args.h"

#if defined(__CUDACC__)
#define GEMV_FN static __host__ __device__ inline
#else
#define GEMV_FN static inline
#endif

#define GEMV_WARPS (CUDA_GEMV_THREADS / 32u)
#define GEMV_SUMS (CUDA_GEMV_ROWS_MAX * CUDA_GEMV_OUTS)
#define GEMV_SQUARES_AT (2u * GEMV_WARPS * GEMV_SUMS * 4u)
#define GEMV_VALUES_AT (GEMV_SQUARES_AT + 128u)

GEMV_FN uint32_t gemv_tiles(const struct cuda_gemv_part *part)
{
    return (part->n_out + CUDA_GEMV_OUTS - 1) / CUDA_GEMV_OUTS;
}

/* Bytes of a normed row: 16 more than whole loads need, so that rows start in different banks. */
GEMV_FN uint32_t gemv_row_bytes(const struct cuda_gemv_args *args)
{
    const uint32_t element = args->dtype == DTYPE_F32 ? 4 : 2;
    return (args->n_in + 7) / 8 * 8 * element + 16;
}

GEMV_FN uint32_t gemv_shared_bytes(const struct cuda_gemv_args *args)
{
    return GEMV_VALUES_AT + (args->norm_weight ? args->rows * gemv_row_bytes(args) : 0);
}

#endif
