/* rows_args: what the kernels of rows.cu take: norms, positions, elementwise, copies, checksums.
 * Flow:    cuda_backend -> [rows_args] -> rows.cu, crc32c.cu
 * Thread:  any; plain values.
 * Memory:  pointers are device addresses, held until the kernel has run.
 *
 * Each struct goes to the kernel of its name by value; the function of its name with _shape says with how many
 * threads. Strides and dims count elements. Dtypes are enum dtype: F32, BF16 or F16. Any alignment to the element is
 * right; rows whose start and stride are 16-byte multiples are fast. How threads are dealt out depends on the row's
 * dim alone, and so do a row's bits. */
#ifndef BATON_KERNELS_CUDA_ROWS_ARGS_H
#define BATON_KERNELS_CUDA_ROWS_ARGS_H

#include <stdint.h>

#include "base/dtype.h"
#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_ROW_THREADS_MAX 1024u

/* out[row] = table[ids[row]] (+ position_table[positions[row]]), f32. */
struct cuda_embed_args {
    uint32_t rows, dim;
    const void *table; /* [ids][table_stride] */
    uint64_t table_stride;
    enum dtype table_dtype;
    enum dtype position_dtype;
    const uint32_t *ids;        /* [rows] */
    const void *position_table; /* [..][dim], or NULL */
    const uint32_t *positions;  /* [rows]; read with a position_table only */
    float *out;
    uint64_t out_stride;
};
void cuda_embed_shape(const struct cuda_embed_args *args, struct cuda_launch *ret_launch);

/* out = x / sqrt(mean(x^2) + eps) * weight, of each of `heads` vectors of dim side by side in a row. out may be x. */
struct cuda_rmsnorm_args {
    uint32_t rows, heads, dim;
    float eps;
    const void *x;
    uint64_t x_stride;
    const void *weight; /* [dim] */
    void *out;
    uint64_t out_stride;
    enum dtype x_dtype, weight_dtype, out_dtype;
};
void cuda_rmsnorm_shape(const struct cuda_rmsnorm_args *args, struct cuda_launch *ret_launch);

/* out = (x - mean) / sqrt(var + eps) * weight + bias. out may be x. */
struct cuda_layernorm_args {
    uint32_t rows, dim;
    float eps;
    enum dtype x_dtype, weight_dtype, out_dtype; /* weight_dtype: of weight and bias */
    const void *x;
    uint64_t x_stride;
    const void *weight; /* [dim] */
    const void *bias;   /* [dim], or NULL */
    void *out;
    uint64_t out_stride;
};
void cuda_layernorm_shape(const struct cuda_layernorm_args *args, struct cuda_launch *ret_launch);

/* As kernels_rope: in place, half-split pairs, tables of f32. */
struct cuda_rope_args {
    uint32_t rows, heads, head_dim, rotary_dim;
    enum dtype dtype;
    void *x; /* [rows][heads][head_dim] */
    uint64_t x_stride;
    const float *cos; /* [position][rotary_dim / 2] */
    const float *sin;
    const uint32_t *positions; /* [rows] */
    const void *norm;          /* [head_dim]: each head becomes its cuda_rmsnorm first; NULL: none */
    enum dtype norm_dtype;
    float norm_eps;
};
void cuda_rope_shape(const struct cuda_rope_args *args, struct cuda_launch *ret_launch);

/* What is computed of one or two inputs, element by element. */
enum cuda_map {
    CUDA_MAP_SILU_MUL,  /* out = a * sigmoid(a) * b */
    CUDA_MAP_GELU_ERF,  /* out = gelu(a), the forms of enum kernels_gelu_form */
    CUDA_MAP_GELU_TANH,
    CUDA_MAP_MUL,     /* out = a * b */
    CUDA_MAP_CONVERT, /* out = a, in another dtype */
};
/* out may be a, or b, where their dtypes and strides are equal. */
struct cuda_map_args {
    enum cuda_map map;
    uint32_t rows, dim;
    enum dtype dtype;     /* of a and b */
    enum dtype out_dtype; /* equal to dtype but for CUDA_MAP_CONVERT */
    const void *a;
    uint64_t a_stride;
    const void *b; /* NULL where one input is read */
    uint64_t b_stride;
    void *out;
    uint64_t out_stride;
};
void cuda_map_shape(const struct cuda_map_args *args, struct cuda_launch *ret_launch);

/* out[r] = x[from[r]], bytes as they are; no overlap. */
struct cuda_gather_rows_args {
    uint32_t rows;
    uint32_t row_bytes; /* a multiple of 2 */
    const void *x;
    uint64_t x_stride_bytes;
    const uint32_t *from; /* [rows] */
    void *out;
    uint64_t out_stride_bytes;
};
void cuda_gather_rows_shape(const struct cuda_gather_rows_args *args, struct cuda_launch *ret_launch);

#define CUDA_CRC32C_PIECE 65536u /* bytes of a range that one block of threads sums */
#define CUDA_CRC32C_RANGES_MAX 65535u

/* ret_crcs[i] ^= crc32c(0, base + ranges[i].offset, ranges[i].bytes), as base/crc32c has it. The caller zeroes
 * ret_crcs before, in order with the launch: pieces of one range come from several blocks, in any order. A range of 0 bytes leaves 0. */
struct cuda_crc32c_range {
    uint64_t offset; /* a multiple of 16 */
    uint32_t bytes;  /* a multiple of 16, <= bytes_max */
    uint32_t unused;
};
#define CUDA_CRC32C_THREADS 256u
struct cuda_crc32c_args {
    const void *base; /* 16-byte aligned */
    const struct cuda_crc32c_range *ranges;
    uint32_t range_count; /* <= CUDA_CRC32C_RANGES_MAX */
    uint32_t bytes_max; /* of any range: the grid follows from it */
    uint32_t *ret_crcs; /* [range_count] */
    uint32_t stride_basis[128];                /* the rest by cuda_crc32c_prepare(): powers of x in GF(2)[x] / P */
    uint32_t lane_shift[CUDA_CRC32C_THREADS];
    uint32_t byte_power[32];
};
/* Fills the constants. Once for any number of launches. */
void cuda_crc32c_prepare(struct cuda_crc32c_args *args);
void cuda_crc32c_shape(const struct cuda_crc32c_args *args, struct cuda_launch *ret_launch);

#ifdef __cplusplus
}
#endif

#endif
