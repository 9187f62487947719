/* rows_math: pieces of rows in the three dtypes, sums over a block, and what happens to one head of q, k or v.
 * Flow:    rows.cu, kv_write.cu -> [rows_math]
 * Thread:  of the device; a head is one warp's.
 * Memory:  shared memory that the caller names.
 *
 * A row is dealt out in chunks of 8 neighbours: chunk c of a row to thread c modulo the threads of its block or warp.
 * A sum goes over a thread's own values in their order, then over lanes, then over warps: the order follows from dim. */
#ifndef BATON_KERNELS_CUDA_ROWS_MATH_CUH
#define BATON_KERNELS_CUDA_ROWS_MATH_CUH

#include "base/dtype.h"
#include "kernels/cuda/device.cuh"

#define CHUNK 8u
#define HEAD_DIM_MAX 256u /* a warp's lanes hold a chunk each */

DEVICE_FN uint32_t bytes_of(enum dtype dtype) { return dtype == DTYPE_F32 ? 4 : 2; }

DEVICE_FN const unsigned char *element_at(const void *row, enum dtype dtype, uint64_t index)
{
    return (const unsigned char *)row + index * bytes_of(dtype);
}
DEVICE_FN unsigned char *element_at(void *row, enum dtype dtype, uint64_t index)
{
    return (unsigned char *)row + index * bytes_of(dtype);
}

/* Whether every row starts at a 16-byte boundary; then every chunk does. */
DEVICE_FN bool rows_are_aligned(const void *rows, enum dtype dtype, uint64_t stride)
{
    return (((uint64_t)rows | stride * bytes_of(dtype)) & 15u) == 0;
}

DEVICE_FN float load_one(const void *p, enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_BF16: return f32_of_bf16(*(const uint16_t *)p);
    case DTYPE_F16: return f32_of_f16(*(const uint16_t *)p);
    default: return *(const float *)p;
    }
}
DEVICE_FN void store_one(void *p, enum dtype dtype, float v)
{
    switch (dtype) {
    case DTYPE_BF16: *(uint16_t *)p = bf16_of(v); break;
    case DTYPE_F16: *(uint16_t *)p = f16_of(v); break;
    default: *(float *)p = v; break;
    }
}
DEVICE_FN float rounded_to(float v, enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_BF16: return f32_of_bf16(bf16_of(v));
    case DTYPE_F16: return f32_of_f16(f16_of(v));
    default: return v;
    }
}

/* The chunk at element `first` of a row of `dim`; zeros past its end. `aligned`: of the rows. */
DEVICE_FN void load_chunk(float v[CHUNK], const void *row, enum dtype dtype, uint32_t first, uint32_t dim, bool aligned)
{
    const unsigned char *p = element_at(row, dtype, first);
    if (!aligned || first + CHUNK > dim) {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) { v[i] = first + i < dim ? load_one(p + i * bytes_of(dtype), dtype) : 0.0f; }
        return;
    }
    const words4 a = load16(p);
    if (dtype == DTYPE_F32) {
        const words4 b = load16(p + 16);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            v[i] = f32_of_bits(a.w[i]);
            v[4 + i] = f32_of_bits(b.w[i]);
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            v[2 * i] = dtype == DTYPE_BF16 ? f32_of_bf16_low(a.w[i]) : f32_of_f16_low(a.w[i]);
            v[2 * i + 1] = dtype == DTYPE_BF16 ? f32_of_bf16_high(a.w[i]) : f32_of_f16_high(a.w[i]);
        }
    }
}
DEVICE_FN void store_chunk(void *row, enum dtype dtype, uint32_t first, uint32_t dim, bool aligned, const float v[CHUNK])
{
    unsigned char *p = element_at(row, dtype, first);
    if (!aligned || first + CHUNK > dim) {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) {
            if (first + i < dim) { store_one(p + i * bytes_of(dtype), dtype, v[i]); }
        }
        return;
    }
    words4 a;
    if (dtype == DTYPE_F32) {
        words4 b;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            a.w[i] = f32_bits(v[i]);
            b.w[i] = f32_bits(v[4 + i]);
        }
        store16(p + 16, b);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) { a.w[i] = dtype == DTYPE_BF16 ? bf16x2_of(v[2 * i], v[2 * i + 1]) : f16x2_of(v[2 * i], v[2 * i + 1]); }
    }
    store16(p, a);
}

/* Block: the sum over all threads, in all of them. `partial`: a float for each warp, not in use by a sum before. */
DEVICE_FN float block_sum(float v, float *partial)
{
    v = warp_sum(v);
    if (lane_id() == 0) { partial[warp_id()] = v; }
    block_sync();
    return warp_sum(lane_id() < blockDim.x / CUDA_WARP ? partial[lane_id()] : 0.0f);
}

DEVICE_FN float sum_of_squares(const float v[CHUNK], float sum)
{
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i++) { sum = fmaf(v[i], v[i], sum); }
    return sum;
}

/* What a vector is multiplied by: the f32 operations of every RMS norm here. */
DEVICE_FN float rms_factor(float squares, uint32_t dim, float eps)
{
    return div_rn(1.0f, sqrt_rn(add_rn(div_rn(squares, (float)dim), eps)));
}

/* ---- one head, a chunk in each lane ---------------------------------------------------------- */

/* Warp: the RMS norm of the head, rounded to `dtype`. */
DEVICE_FN void head_norm(float v[CHUNK], uint32_t dim, const void *weight, enum dtype weight_dtype, float eps, enum dtype dtype)
{
    const uint32_t first = lane_id() * CHUNK;
    const float factor = rms_factor(warp_sum(sum_of_squares(v, 0.0f)), dim, eps);
    float w[CHUNK] = {0};
    if (first < dim) { load_chunk(w, weight, weight_dtype, first, dim, rows_are_aligned(weight, weight_dtype, 0)); }
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i++) { v[i] = rounded_to(mul_rn(mul_rn(v[i], factor), w[i]), dtype); }
}

/* Warp: rotates the pairs (i, i + rotary_dim / 2), rounded to `dtype`. cos and sin: of the row's position.
 * strip: HEAD_DIM_MAX floats of shared memory, the warp's own, which nobody reads any more. */
DEVICE_FN void head_rotate(float v[CHUNK], uint32_t rotary_dim, const float *cos_row, const float *sin_row, enum dtype dtype, float *strip)
{
    const uint32_t half = rotary_dim / 2, first = lane_id() * CHUNK;
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i += 4) {
        store16(strip + first + i, words4{{f32_bits(v[i]), f32_bits(v[i + 1]), f32_bits(v[i + 2]), f32_bits(v[i + 3])}});
    }
    warp_sync();
    if (first >= rotary_dim) { return; }
    float other[CHUNK], c[CHUNK], s[CHUNK];
    if (half % CHUNK == 0) { /* a chunk lies wholly in one half */
        const uint32_t pair = first < half ? first : first - half;
        load_chunk(other, strip, DTYPE_F32, first < half ? first + half : first - half, HEAD_DIM_MAX, true);
        load_chunk(c, cos_row, DTYPE_F32, pair, half, ((uint64_t)cos_row & 15u) == 0);
        load_chunk(s, sin_row, DTYPE_F32, pair, half, ((uint64_t)sin_row & 15u) == 0);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) {
            const uint32_t at = first + i, pair = at < half ? at : at - half;
            const bool turns = at < rotary_dim;
            other[i] = turns ? strip[at < half ? at + half : pair] : 0.0f;
            c[i] = turns ? cos_row[pair] : 0.0f;
            s[i] = turns ? sin_row[pair] : 0.0f;
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i++) {
        const uint32_t at = first + i;
        if (at < rotary_dim) {
            const float turned = mul_rn(other[i], s[i]);
            v[i] = rounded_to(fmaf(v[i], c[i], at < half ? -turned : turned), dtype);
        }
    }
}

#endif
