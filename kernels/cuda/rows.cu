/* rows: the kernels that work on one row at a time. See rows_args.h; how rows are dealt out, rows_math.cuh.
 * Bytes  every value is read once and written once; a block of at most 1024 threads holds a row of up to 16384 in
 *        registers between the sum and the result. */
#include "kernels/cuda/rows_args.h"
#include "kernels/cuda/rows_math.cuh"

/* Chunks of a row that a thread of a norm keeps; it reads the others twice. */
#define KEPT 2u

/* The row and the chunk of this thread, in a grid that has so many blocks of threads for each row as it needs. */
struct place {
    uint32_t row, first;
};
DEVICE_FN place place_in(uint32_t dim)
{
    const uint32_t chunks = (dim + CHUNK - 1) / CHUNK, blocks = (chunks + blockDim.x - 1) / blockDim.x;
    const uint32_t row = blockIdx.x / blocks;
    return place{row, ((blockIdx.x - row * blocks) * blockDim.x + threadIdx.x) * CHUNK};
}

extern "C" __global__ void cuda_embed(const __grid_constant__ struct cuda_embed_args a)
{
    launch_begin();
    const place at = place_in(a.dim);
    if (at.first >= a.dim) { return; }
    float v[CHUNK];
    load_chunk(v, element_at(a.table, a.table_dtype, a.ids[at.row] * a.table_stride), a.table_dtype, at.first, a.dim,
               rows_are_aligned(a.table, a.table_dtype, a.table_stride));
    if (a.position_table != NULL) {
        float p[CHUNK];
        load_chunk(p, element_at(a.position_table, a.position_dtype, (uint64_t)a.positions[at.row] * a.dim), a.position_dtype, at.first,
                   a.dim, rows_are_aligned(a.position_table, a.position_dtype, a.dim));
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) { v[i] = add_rn(v[i], p[i]); }
    }
    store_chunk(a.out + at.row * a.out_stride, DTYPE_F32, at.first, a.dim, rows_are_aligned(a.out, DTYPE_F32, a.out_stride), v);
}

/* ---- norms ---------------------------------------------------------------------------------- */

/* A vector that is no longer than a warp's lanes hold is one warp's, several to a block; a longer one is a block's.
 * cuda_rmsnorm_shape() deals them out by dim. */
extern "C" __global__ void __launch_bounds__(CUDA_ROW_THREADS_MAX) cuda_rmsnorm(const __grid_constant__ struct cuda_rmsnorm_args a)
{
    launch_begin();
    const bool in_warp = a.dim <= HEAD_DIM_MAX;
    const uint32_t vector = in_warp ? blockIdx.x * (blockDim.x / CUDA_WARP) + warp_id() : blockIdx.x;
    const uint32_t threads = in_warp ? CUDA_WARP : blockDim.x, thread = in_warp ? lane_id() : threadIdx.x;
    if (vector >= a.rows * a.heads) { return; } /* whole warps; of a block's vectors none */
    const uint32_t row = vector / a.heads, head = vector - row * a.heads;
    const void *x = element_at(a.x, a.x_dtype, row * a.x_stride + (uint64_t)head * a.dim);
    void *out = element_at(a.out, a.out_dtype, row * a.out_stride + (uint64_t)head * a.dim);
    /* Of heads side by side each must start on a boundary. */
    const uint32_t gap = a.heads > 1 ? a.dim : 0;
    const bool x_aligned = rows_are_aligned(a.x, a.x_dtype, a.x_stride) && rows_are_aligned(NULL, a.x_dtype, gap);
    const bool out_aligned = rows_are_aligned(a.out, a.out_dtype, a.out_stride) && rows_are_aligned(NULL, a.out_dtype, gap);
    const bool weight_aligned = rows_are_aligned(a.weight, a.weight_dtype, 0);

    float kept[KEPT][CHUNK];
    float squares = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < KEPT; k++) {
        const uint32_t first = (thread + k * threads) * CHUNK;
        if (first < a.dim) { load_chunk(kept[k], x, a.x_dtype, first, a.dim, x_aligned); }
    }
#pragma unroll
    for (uint32_t k = 0; k < KEPT; k++) {
        if ((thread + k * threads) * CHUNK < a.dim) { squares = sum_of_squares(kept[k], squares); }
    }
    for (uint32_t first = (thread + KEPT * threads) * CHUNK; first < a.dim; first += threads * CHUNK) {
        float v[CHUNK];
        load_chunk(v, x, a.x_dtype, first, a.dim, x_aligned);
        squares = sum_of_squares(v, squares);
    }
    squares = in_warp ? warp_sum(squares) : block_sum(squares, (float *)(void *)device_shared());
    const float factor = rms_factor(squares, a.dim, a.eps);
    const auto put = [&](uint32_t first, float v[CHUNK]) {
        float w[CHUNK];
        load_chunk(w, a.weight, a.weight_dtype, first, a.dim, weight_aligned);
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) { v[i] = mul_rn(mul_rn(v[i], factor), w[i]); }
        store_chunk(out, a.out_dtype, first, a.dim, out_aligned, v);
    };
#pragma unroll
    for (uint32_t k = 0; k < KEPT; k++) {
        const uint32_t first = (thread + k * threads) * CHUNK;
        if (first < a.dim) { put(first, kept[k]); }
    }
    for (uint32_t first = (thread + KEPT * threads) * CHUNK; first < a.dim; first += threads * CHUNK) {
        float v[CHUNK];
        load_chunk(v, x, a.x_dtype, first, a.dim, x_aligned);
        put(first, v);
    }
}

extern "C" __global__ void __launch_bounds__(CUDA_ROW_THREADS_MAX) cuda_layernorm(const __grid_constant__ struct cuda_layernorm_args a)
{
    launch_begin();
    const uint32_t row = blockIdx.x;
    const void *x = element_at(a.x, a.x_dtype, row * a.x_stride);
    void *out = element_at(a.out, a.out_dtype, row * a.out_stride);
    const bool x_aligned = rows_are_aligned(a.x, a.x_dtype, a.x_stride);
    const bool out_aligned = rows_are_aligned(a.out, a.out_dtype, a.out_stride);
    const bool weight_aligned = rows_are_aligned(a.weight, a.weight_dtype, 0);
    const bool bias_aligned = rows_are_aligned(a.bias, a.weight_dtype, 0);
    float *partial = (float *)(void *)device_shared();

    /* Twice over the row from L1: the mean first, then the squares around it, so that no digits cancel. */
    float sum = 0.0f;
    for (uint32_t first = threadIdx.x * CHUNK; first < a.dim; first += blockDim.x * CHUNK) {
        float v[CHUNK];
        load_chunk(v, x, a.x_dtype, first, a.dim, x_aligned);
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) { sum = add_rn(sum, v[i]); }
    }
    const float mean = div_rn(block_sum(sum, partial), (float)a.dim);
    float squares = 0.0f;
    for (uint32_t first = threadIdx.x * CHUNK; first < a.dim; first += blockDim.x * CHUNK) {
        float v[CHUNK];
        load_chunk(v, x, a.x_dtype, first, a.dim, x_aligned);
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) { v[i] = first + i < a.dim ? add_rn(v[i], -mean) : 0.0f; }
        squares = sum_of_squares(v, squares);
    }
    const float factor = rms_factor(block_sum(squares, partial + CUDA_WARP), a.dim, a.eps);
    for (uint32_t first = threadIdx.x * CHUNK; first < a.dim; first += blockDim.x * CHUNK) {
        float v[CHUNK], w[CHUNK], b[CHUNK] = {0};
        load_chunk(v, x, a.x_dtype, first, a.dim, x_aligned);
        load_chunk(w, a.weight, a.weight_dtype, first, a.dim, weight_aligned);
        if (a.bias != NULL) { load_chunk(b, a.bias, a.weight_dtype, first, a.dim, bias_aligned); }
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) { v[i] = fmaf(mul_rn(add_rn(v[i], -mean), factor), w[i], b[i]); }
        store_chunk(out, a.out_dtype, first, a.dim, out_aligned, v);
    }
}

/* ---- rotation: a warp for each head ---------------------------------------------------------- */

extern "C" __global__ void cuda_rope(const __grid_constant__ struct cuda_rope_args a)
{
    launch_begin();
    const uint32_t vector = blockIdx.x * (blockDim.x / CUDA_WARP) + warp_id();
    if (vector >= a.rows * a.heads) { return; }
    const uint32_t row = vector / a.heads, head = vector - row * a.heads, first = lane_id() * CHUNK;
    void *x = element_at(a.x, a.dtype, row * a.x_stride + (uint64_t)head * a.head_dim);
    const bool aligned = rows_are_aligned(a.x, a.dtype, a.x_stride) && rows_are_aligned(NULL, a.dtype, a.head_dim);
    float v[CHUNK] = {0};
    if (first < a.head_dim) { load_chunk(v, x, a.dtype, first, a.head_dim, aligned); }
    if (a.norm != NULL) { head_norm(v, a.head_dim, a.norm, a.norm_dtype, a.norm_eps, a.dtype); }
    if (a.rotary_dim != 0) {
        const uint64_t table_row = (uint64_t)a.positions[row] * (a.rotary_dim / 2);
        head_rotate(v, a.rotary_dim, a.cos + table_row, a.sin + table_row, a.dtype,
                    (float *)(void *)device_shared() + warp_id() * HEAD_DIM_MAX);
    }
    if (first < a.head_dim) { store_chunk(x, a.dtype, first, a.head_dim, aligned, v); }
}

/* ---- element by element ---------------------------------------------------------------------- */

DEVICE_FN float silu(float x) { return div_rn(x, add_rn(1.0f, expf(-x))); }
/* x/2 * (1 + erf(x / sqrt 2)) is x/2 * erfc(-x / sqrt 2): no digits cancel where erf is near -1. */
DEVICE_FN float gelu_erf(float x) { return mul_rn(mul_rn(0.5f, x), erfcf(mul_rn(x, -0.707106781f))); }
/* x/2 * (1 + tanh(u)) is x / (1 + exp(-2u)). */
DEVICE_FN float gelu_tanh(float x)
{
    const float cubic = fmaf(mul_rn(mul_rn(x, x), 0.044715f), x, x);
    return div_rn(x, add_rn(1.0f, expf(mul_rn(cubic, -1.5957691216f))));
}

extern "C" __global__ void cuda_map(const __grid_constant__ struct cuda_map_args a)
{
    launch_begin();
    const place at = place_in(a.dim);
    if (at.first >= a.dim) { return; }
    float x[CHUNK], y[CHUNK] = {0};
    load_chunk(x, element_at(a.a, a.dtype, at.row * a.a_stride), a.dtype, at.first, a.dim, rows_are_aligned(a.a, a.dtype, a.a_stride));
    if (a.b != NULL) {
        load_chunk(y, element_at(a.b, a.dtype, at.row * a.b_stride), a.dtype, at.first, a.dim, rows_are_aligned(a.b, a.dtype, a.b_stride));
    }
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i++) {
        switch (a.map) {
        case CUDA_MAP_SILU_MUL: x[i] = mul_rn(silu(x[i]), y[i]); break;
        case CUDA_MAP_GELU_ERF: x[i] = gelu_erf(x[i]); break;
        case CUDA_MAP_GELU_TANH: x[i] = gelu_tanh(x[i]); break;
        case CUDA_MAP_MUL: x[i] = mul_rn(x[i], y[i]); break;
        default: break; /* CUDA_MAP_CONVERT */
        }
    }
    store_chunk(element_at(a.out, a.out_dtype, at.row * a.out_stride), a.out_dtype, at.first, a.dim,
                rows_are_aligned(a.out, a.out_dtype, a.out_stride), x);
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* A thread moves 16 bytes of a row. */
extern "C" __global__ void cuda_gather_rows(const __grid_constant__ struct cuda_gather_rows_args a)
{
    launch_begin();
    const place at = place_in(a.row_bytes / 2); /* 8 elements of 2 bytes */
    const uint32_t first = at.first * 2;
    if (first >= a.row_bytes) { return; }
    const unsigned char *from = (const unsigned char *)a.x + a.from[at.row] * a.x_stride_bytes + first;
    unsigned char *to = (unsigned char *)a.out + at.row * a.out_stride_bytes + first;
    if ((((uint64_t)from | (uint64_t)to) & 15u) == 0 && first + 16 <= a.row_bytes) {
        store16(to, load16(from));
        return;
    }
    for (uint32_t i = 0; i < 16 && first + i < a.row_bytes; i += 2) { *(uint16_t *)(to + i) = *(const uint16_t *)(from + i); }
}
