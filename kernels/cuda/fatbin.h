/* fatbin: the device code that is embedded in this binary, one image for each .cu file.
 * Flow:    nvcc -> cuda_kernels() of build_defs/cuda.bzl -> [fatbin] -> driver_real.c
 * Thread:  any; constant.
 * Memory:  none; where the build had no nvcc the count is 0. */
#ifndef BATON_KERNELS_CUDA_FATBIN_H
#define BATON_KERNELS_CUDA_FATBIN_H

#include <stdint.h>

struct cuda_fatbin {
    const void *image;
    uint64_t bytes;
    const char *source; /* "rows.cu" */
};

extern const struct cuda_fatbin cuda_fatbins[];
extern const uint64_t cuda_fatbin_count;

#endif
