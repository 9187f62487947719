/* kv_write: rows of K and V to their slots, alone or with all that comes before. See kv_args.h.
 * Bytes  each value is read once and written once; a warp has a head, its lanes neighbours of 8. */
#include "kernels/cuda/kv_args.h"
#include "kernels/cuda/rows_math.cuh"

/* Warp: stores one head of K (head < kv_heads) or V (from kv_heads on) at its slot, as kv_layout.h says. */
DEVICE_FN void head_store(const struct cuda_kv_place &kv, struct cuda_kv_slot to, uint32_t head, const float v[CHUNK])
{
    const uint32_t dim = kv.head_dim, first = lane_id() * CHUNK;
    unsigned char *slice = kv.layer_base + to.block * kv.block_bytes;
    unsigned char *values = slice + (uint64_t)head * kv.head_bytes;
    if (kv.dtype <= DTYPE_F16) {
        if (first < dim) { store_chunk(element_at(values, kv.dtype, (uint64_t)to.slot * dim), kv.dtype, first, dim, dim % CHUNK == 0, v); }
        return;
    }
    float top = 0.0f;
    bool odd = false;
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i++) { /* past the end of the head there are zeros */
        odd = odd || (f32_bits(v[i]) & 0x7f800000u) == 0x7f800000u;
        top = fmaxf(top, fabsf(v[i]));
    }
    top = warp_max(top);
    odd = warp_any(odd);
    /* The least bf16 that is not below. */
    const uint32_t scale_bits = odd ? 0x7fc0u : (f32_bits(div_rn(top, kv.dtype == DTYPE_INT8 ? 127.0f : 448.0f)) + 0xffffu) >> 16;
    const float scale = f32_of_bf16((uint16_t)scale_bits);
    if (lane_id() == 0) {
        const uint32_t of_v = head >= kv.kv_heads, kv_head = of_v ? head - kv.kv_heads : head;
        const uint32_t tile = kv_head * (kv.block_tokens / 16) + to.slot / 16;
        *(uint16_t *)(void *)(slice + kv.scales_at + (tile * 32 + of_v * 16 + to.slot % 16) * 2) = (uint16_t)scale_bits;
    }
    if (first >= dim) { return; }
    uint32_t codes[CHUNK];
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i += 2) {
        const float low = scale > 0.0f ? div_rn(v[i], scale) : 0.0f, high = scale > 0.0f ? div_rn(v[i + 1], scale) : 0.0f;
        if (kv.dtype == DTYPE_INT8) {
            codes[i] = (uint32_t)(int32_t)rintf(low) & 0xffu;
            codes[i + 1] = (uint32_t)(int32_t)rintf(high) & 0xffu;
        } else {
            const uint32_t pair = fp8x2_of(low, high);
            codes[i] = pair & 0xffu;
            codes[i + 1] = pair >> 8;
        }
    }
    unsigned char *p = values + (uint64_t)to.slot * dim + first;
    if (dim % CHUNK == 0) {
        uint64_t all = 0;
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) { all |= (uint64_t)codes[i] << 8 * i; }
        *(uint64_t *)(void *)p = all;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i++) {
            if (first + i < dim) { p[i] = (unsigned char)codes[i]; }
        }
    }
}

/* A chunk of head `head` of a row of heads. */
DEVICE_FN void head_load(float v[CHUNK], const void *rows, enum dtype dtype, uint64_t stride, uint32_t row, uint32_t head, uint32_t dim)
{
    const uint32_t first = lane_id() * CHUNK;
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i++) { v[i] = 0.0f; }
    if (first < dim) {
        load_chunk(v, element_at(rows, dtype, row * stride + (uint64_t)head * dim), dtype, first, dim,
                   rows_are_aligned(rows, dtype, stride) && dim % CHUNK == 0);
    }
}

extern "C" __global__ void cuda_kv_write(const __grid_constant__ struct cuda_kv_write_args a)
{
    launch_begin();
    const uint32_t heads = 2 * a.kv.kv_heads, vector = blockIdx.x * (blockDim.x / CUDA_WARP) + warp_id();
    if (vector >= a.rows * heads) { return; }
    const uint32_t row = vector / heads, head = vector - row * heads;
    const struct cuda_kv_slot to = a.slots[row];
    if (to.block == CUDA_SLOT_NONE) { return; }
    float v[CHUNK];
    if (head < a.kv.kv_heads) {
        head_load(v, a.k, a.dtype, a.k_stride, row, head, a.kv.head_dim);
    } else {
        head_load(v, a.v, a.dtype, a.v_stride, row, head - a.kv.kv_heads, a.kv.head_dim);
    }
    head_store(a.kv, to, head, v);
}

extern "C" __global__ void cuda_qkv_store(const __grid_constant__ struct cuda_qkv_store_args a)
{
    launch_begin();
    const uint32_t dim = a.kv.head_dim, kv_heads = a.kv.kv_heads, heads = a.q_heads + 2 * kv_heads;
    const uint32_t vector = blockIdx.x * (blockDim.x / CUDA_WARP) + warp_id();
    if (vector >= a.rows * heads) { return; }
    const uint32_t row = vector / heads, head = vector - row * heads;
    const bool is_q = head < a.q_heads, is_v = head >= a.q_heads + kv_heads;
    const struct cuda_kv_slot to = a.slots[row];
    if (!is_q && to.block == CUDA_SLOT_NONE) { return; }
    float v[CHUNK];
    if (is_q) {
        head_load(v, a.q, a.dtype, a.q_stride, row, head, dim);
    } else if (is_v) {
        head_load(v, a.v, a.dtype, a.v_stride, row, head - a.q_heads - kv_heads, dim);
    } else {
        head_load(v, a.k, a.dtype, a.k_stride, row, head - a.q_heads, dim);
    }
    if (!is_v) {
        const void *norm = is_q ? a.q_norm : a.k_norm;
        if (norm != NULL) { head_norm(v, dim, norm, is_q ? a.q_norm_dtype : a.k_norm_dtype, a.norm_eps, a.dtype); }
        if (a.rotary_dim != 0) {
            const uint64_t table_row = (uint64_t)a.positions[row] * (a.rotary_dim / 2);
            head_rotate(v, a.rotary_dim, a.cos + table_row, a.sin + table_row, a.dtype,
                        (float *)(void *)device_shared() + warp_id() * HEAD_DIM_MAX);
        }
    }
    if (!is_q) {
        head_store(a.kv, to, head - a.q_heads, v);
    } else if (lane_id() * CHUNK < dim) {
        store_chunk(element_at(a.q, a.dtype, row * a.q_stride + (uint64_t)head * dim), a.dtype, lane_id() * CHUNK, dim,
                    rows_are_aligned(a.q, a.dtype, a.q_stride) && dim % CHUNK == 0, v);
    }
}
