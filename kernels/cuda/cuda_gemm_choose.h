/* cuda_gemm_choose: picks one of the algorithms that cuBLASLt offers for a product: by the clock, or by bits.
 * Flow:    cuda_gemm_plan, at a shape's first product -> [cuda_gemm_choose] -> driver
 * Thread:  the handle's caller; no capture is under way.
 * Memory:  short-lived; where there is none left, a clock's choice is the library's first. */
#ifndef BATON_KERNELS_CUDA_CUDA_GEMM_CHOOSE_H
#define BATON_KERNELS_CUDA_CUDA_GEMM_CHOOSE_H

#include <stddef.h>

#include "kernels/cuda/driver.h"

/* What a product is tried with. */
struct cuda_gemm_trial {
    const struct cuda_driver *driver;
    struct cuda_stream *stream;
    const void *weight;
    const void *bias; /* as the shape takes it, or NULL */
    const void *x;    /* fast: [shape rows]; read only */
    void *out;        /* fast: [shape rows], overwritten; NULL: it holds something */
    void *workspace;
    size_t workspace_bytes;
};

/* The fastest of the first few on this device.
 * Errors  UNIMPLEMENTED (node): the library has none; INTERNAL. */
NODISCARD status_t cuda_gemm_choose_fast(const struct cuda_gemm_trial *trial, const struct cuda_gemm_shape *shape,
                                         struct cuda_gemm_algorithm *ret_algorithm, struct diag *diag);

/* The first whose rows have the same bits at every row count tried. The choice depends on the shape (its rows are
 * those that the library is asked for), the weights' values not at all, the chip and the library alone.
 * Errors  UNIMPLEMENTED (node): none is; RESOURCE_EXHAUSTED: no memory to try; INTERNAL. */
NODISCARD status_t cuda_gemm_choose_exact(const struct cuda_gemm_trial *trial, const struct cuda_gemm_shape *shape,
                                          struct cuda_gemm_algorithm *ret_algorithm, struct diag *diag);

#endif
