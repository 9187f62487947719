#include "kernels/cuda/gemv_args.h"

#include "base/check.h"
#include "kernels/cuda/gemv_shared.h"

static bool is_aligned(const void *pointer, uint64_t bytes)
{
    return (uintptr_t)pointer % bytes == 0;
}

static bool is_value(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16;
}

bool cuda_gemv_takes(const struct cuda_gemv_args *args)
{
    if (args->rows > CUDA_GEMV_ROWS_MAX || args->n_in == 0) { return false; }
    if (args->part_count < 1 || args->part_count > CUDA_GEMV_PARTS) { return false; }
    if (!is_value(args->dtype) || !is_value(args->out_dtype) || !is_value(args->bias_dtype)) { return false; }
    if (args->accumulate && (args->out_dtype != DTYPE_F32 || args->silu_mul)) { return false; }
    if (args->silu_mul && (args->part_count != 2 || args->parts[0].n_out != args->parts[1].n_out)) { return false; }
    uint64_t x_bytes = args->norm_weight != NULL ? 4 : dtype_bytes(args->dtype);
    if (!is_aligned(args->x, 16) || args->x_stride * x_bytes % 16 != 0) { return false; }
    if (args->norm_weight != NULL && !is_value(args->norm_dtype)) { return false; }
    for (uint32_t i = 0; i < args->part_count; i++) {
        const struct cuda_gemv_part *part = &args->parts[i];
        if (!is_aligned(part->weight, 16) || part->stride % 8 != 0 || part->stride < args->n_in) { return false; }
    }
    return gemv_shared_bytes(args) <= CUDA_GEMV_SHARED_BYTES_MAX;
}

enum cuda_kernel cuda_gemv_kernel(const struct cuda_gemv_args *args)
{
    switch (args->dtype) {
    case DTYPE_BF16: return args->silu_mul ? CUDA_KERNEL_gemv_silu_bf16 : CUDA_KERNEL_gemv_bf16;
    case DTYPE_F16: return args->silu_mul ? CUDA_KERNEL_gemv_silu_f16 : CUDA_KERNEL_gemv_f16;
    default: CHECK(args->dtype == DTYPE_F32); return args->silu_mul ? CUDA_KERNEL_gemv_silu_f32 : CUDA_KERNEL_gemv_f32;
    }
}

void cuda_gemv_shape(const struct cuda_gemv_args *args, struct cuda_launch *ret_launch)
{
    CHECK(cuda_gemv_takes(args));
    uint32_t tiles = 0;
    for (uint32_t i = 0; i < (args->silu_mul ? 1 : args->part_count); i++) { tiles += gemv_tiles(&args->parts[i]); }
    *ret_launch = (struct cuda_launch){
        .grid = {args->rows == 0 ? 0 : tiles, 1, 1},
        .block = {CUDA_GEMV_THREADS, 1, 1},
        .shared_bytes = gemv_shared_bytes(args),
    };
}
