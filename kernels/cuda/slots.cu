/* slots: scattered slices of a pool to pieces side by side in a slot, and back, as they are or in another dtype and order.
 * See slots_args.h and, for what becomes of a value, struct kv_memory_form.
 *
 * slots_copy. A block takes chunks of 16 KiB of a piece; a thread has 4 vectors of 16 bytes under way, neighbours being
 * neighbours' of a warp. 32 blocks have 512 KiB under way, which at some 800 ns of latency beside other work is about
 * 650 GB/s: a frame of 64 slices of 64 KiB (4 MiB, read once and written once) takes an H200 some 7 us and the launch.
 * That is faster than NVLink takes it away (450 GB/s) and leaves at least 100 of 132 SMs alone.
 *
 * slots_convert. A warp takes as many rows (the values of one token, head, and K or V) as its lanes can hold at 8 values
 * each. One load of at most 32 bytes a lane is under way: 64 blocks have at most 256 KiB of bf16 so, about 300 GB/s, and
 * the same frame takes some 14 us. Of rows all accesses are of neighbours. Of tiles, which no device's pool is made of,
 * they are of single values: right, and slow.
 *
 * Bytes  each value and scale is read once and written once. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/slots_args.h"

#define VALUES 8u /* of a lane */
#define F32_NAN 0x7fffffffu /* what becomes of any */

extern "C" __global__ void __launch_bounds__(CUDA_SLOTS_THREADS) cuda_slots_copy(const __grid_constant__ struct cuda_slots_copy_args a)
{
    constexpr uint32_t depth = CUDA_SLOTS_CHUNK / CUDA_SLOTS_THREADS;
    const uint32_t chunks = (a.vectors + CUDA_SLOTS_CHUNK - 1) / CUDA_SLOTS_CHUNK;
    for (uint32_t unit = blockIdx.x; unit < a.count * chunks; unit += gridDim.x) {
        const uint32_t piece = unit / chunks, first = (unit - piece * chunks) * CUDA_SLOTS_CHUNK + threadIdx.x;
        unsigned char *there = a.pool + a.offsets[piece], *here = a.slot + (uint64_t)piece * a.vectors * 16;
        const unsigned char *from = a.to_slot ? there : here;
        unsigned char *to = a.to_slot ? here : there;
        words4 held[depth];
#pragma unroll
        for (uint32_t i = 0; i < depth; i++) {
            const uint32_t at = first + i * CUDA_SLOTS_THREADS;
            if (at < a.vectors) { held[i] = load16_stream(from + (uint64_t)at * 16); }
        }
#pragma unroll
        for (uint32_t i = 0; i < depth; i++) {
            const uint32_t at = first + i * CUDA_SLOTS_THREADS;
            if (at < a.vectors) { store16(to + (uint64_t)at * 16, held[i]); }
        }
    }
}

/* A row of a slice: `vector` counts the heads of K, then those of V. */
struct row_place {
    uint32_t vector, token, of_v;
};

DEVICE_FN uint32_t dtype_size(enum dtype dtype) { return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_BF16 || dtype == DTYPE_F16 ? 2 : 1; }
DEVICE_FN bool has_scales(const cuda_slots_side &side) { return side.dtype == DTYPE_INT8 || side.dtype == DTYPE_FP8_E4M3; }

/* From the start of the slice, in bytes. */
DEVICE_FN uint32_t value_at(const cuda_slots_side &side, const row_place &row, uint32_t head_dim, uint32_t d)
{
    const uint32_t head = row.vector * side.head_bytes, size = dtype_size(side.dtype);
    if (!side.is_tiles) { return head + (row.token * head_dim + d) * size; }
    const uint32_t tile = head + row.token / 16 * side.tile_bytes, in = row.token % 16;
    return tile + (row.of_v ? (in / side.pair * head_dim + d) * side.pair + in % side.pair : (d / side.pair * 16 + in) * side.pair + d % side.pair) * size;
}
DEVICE_FN uint32_t scale_at(const cuda_slots_side &side, const row_place &row, uint32_t kv_heads, uint32_t block_tokens)
{
    const uint32_t head = row.of_v ? row.vector - kv_heads : row.vector;
    return side.scales_at + (head * (block_tokens / 16) + row.token / 16) * 64 + row.of_v * 32 + row.token % 16 * 2;
}

/* A lane's values as they lie there, from `first` on; zeros past the row's end. */
DEVICE_FN void codes_load(uint32_t codes[VALUES], const unsigned char *slice, const cuda_slots_side &side, const row_place &row,
                          uint32_t head_dim, uint32_t first)
{
#pragma unroll
    for (uint32_t i = 0; i < VALUES; i++) { codes[i] = 0; }
    if (first >= head_dim) { return; }
    const uint32_t size = dtype_size(side.dtype);
    if (side.is_tiles || head_dim % VALUES != 0) {
#pragma unroll
        for (uint32_t i = 0; i < VALUES; i++) {
            if (first + i >= head_dim) { continue; }
            const unsigned char *p = slice + value_at(side, row, head_dim, first + i);
            codes[i] = size == 4 ? *(const uint32_t *)(const void *)p : size == 2 ? *(const uint16_t *)(const void *)p : *p;
        }
        return;
    }
    const unsigned char *p = slice + value_at(side, row, head_dim, first);
    if (size == 4) {
        const words4 low = load16(p), high = load16(p + 16);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            codes[i] = low.w[i];
            codes[4 + i] = high.w[i];
        }
    } else if (size == 2) {
        const words4 all = load16(p);
#pragma unroll
        for (uint32_t i = 0; i < VALUES; i++) { codes[i] = all.w[i / 2] >> i % 2 * 16 & 0xffffu; }
    } else {
        const uint64_t all = *(const uint64_t *)(const void *)p;
#pragma unroll
        for (uint32_t i = 0; i < VALUES; i++) { codes[i] = (uint32_t)(all >> 8 * i) & 0xffu; }
    }
}

DEVICE_FN void codes_store(const uint32_t codes[VALUES], unsigned char *slice, const cuda_slots_side &side, const row_place &row,
                           uint32_t head_dim, uint32_t first)
{
    if (first >= head_dim) { return; }
    const uint32_t size = dtype_size(side.dtype);
    if (side.is_tiles || head_dim % VALUES != 0) {
#pragma unroll
        for (uint32_t i = 0; i < VALUES; i++) {
            if (first + i >= head_dim) { continue; }
            unsigned char *p = slice + value_at(side, row, head_dim, first + i);
            if (size == 4) {
                *(uint32_t *)(void *)p = codes[i];
            } else if (size == 2) {
                *(uint16_t *)(void *)p = (uint16_t)codes[i];
            } else {
                *p = (unsigned char)codes[i];
            }
        }
        return;
    }
    unsigned char *p = slice + value_at(side, row, head_dim, first);
    if (size == 4) {
        store16(p, words4{{codes[0], codes[1], codes[2], codes[3]}});
        store16(p + 16, words4{{codes[4], codes[5], codes[6], codes[7]}});
    } else if (size == 2) {
        store16(p, words4{{codes[0] | codes[1] << 16, codes[2] | codes[3] << 16, codes[4] | codes[5] << 16, codes[6] | codes[7] << 16}});
    } else {
        uint64_t all = 0;
#pragma unroll
        for (uint32_t i = 0; i < VALUES; i++) { all |= (uint64_t)codes[i] << 8 * i; }
        *(uint64_t *)(void *)p = all;
    }
}

DEVICE_FN float value_of(uint32_t code, enum dtype dtype, float scale)
{
    float v;
    switch (dtype) {
    case DTYPE_F32: v = f32_of_bits(code); break;
    case DTYPE_BF16: v = f32_of_bf16((uint16_t)code); break;
    case DTYPE_F16: v = f32_of_f16((uint16_t)code); break;
    case DTYPE_INT8: v = mul_rn((float)(int8_t)code, scale); break;
    default: v = (code & 0x7fu) == 0x7fu ? f32_of_bits(F32_NAN) : mul_rn(f32_of_fp8_e4m3((uint8_t)code), scale); break;
    }
    return v == v ? v : f32_of_bits(F32_NAN);
}

/* `v` divided by its scale already. */
DEVICE_FN uint32_t code_of(float v, enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32: return f32_bits(v);
    case DTYPE_BF16: return bf16_of(v);
    case DTYPE_F16: return f16_of(v);
    case DTYPE_INT8: return (uint32_t)(int32_t)rintf(v) & 0xffu;
    default: return fp8_e4m3_of(v);
    }
}

/* Warp: of the values that `lanes` neighbours hold of a row, the bits of the scale, as kv_layout.h says, in each of them. */
DEVICE_FN uint32_t scale_of(const float v[VALUES], enum dtype dtype, uint32_t lanes)
{
    float top = 0.0f;
    uint32_t odd = 0;
#pragma unroll
    for (uint32_t i = 0; i < VALUES; i++) {
        odd |= (f32_bits(v[i]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
        top = fmaxf(top, fabsf(v[i]));
    }
    for (uint32_t mask = 1; mask < lanes; mask *= 2) {
        top = fmaxf(top, shuffle_xor(top, mask));
        odd |= shuffle_xor(odd, mask);
    }
    return odd ? 0x7fc0u : (f32_bits(div_rn(top, dtype == DTYPE_INT8 ? 127.0f : 448.0f)) + 0xffffu) >> 16;
}

extern "C" __global__ void __launch_bounds__(CUDA_SLOTS_THREADS) cuda_slots_convert(const __grid_constant__ struct cuda_slots_convert_args a)
{
    const cuda_slots_side &from = a.to_slot ? a.pool_side : a.slot_side, &to = a.to_slot ? a.slot_side : a.pool_side;
    const uint32_t warp_rows = CUDA_WARP / a.row_lanes, groups = 2 * a.kv_heads * a.block_tokens / warp_rows; /* of a piece; no rest */
    const uint32_t first = lane_id() % a.row_lanes * VALUES, warps = CUDA_SLOTS_THREADS / CUDA_WARP;
    for (uint32_t group = blockIdx.x * warps + warp_id(); group < a.count * groups; group += gridDim.x * warps) {
        const uint32_t piece = group / groups, number = (group - piece * groups) * warp_rows + lane_id() / a.row_lanes;
        row_place row;
        row.vector = number / a.block_tokens;
        row.token = number - row.vector * a.block_tokens;
        row.of_v = row.vector >= a.kv_heads ? 1 : 0;
        unsigned char *there = a.pool + a.offsets[piece], *here = a.slot + (uint64_t)piece * a.piece_bytes;
        const unsigned char *source = a.to_slot ? there : here;
        unsigned char *target = a.to_slot ? here : there;

        uint32_t codes[VALUES], scale_bits = 0;
        codes_load(codes, source, from, row, a.head_dim, first);
        if (has_scales(from)) { scale_bits = *(const uint16_t *)(const void *)(source + scale_at(from, row, a.kv_heads, a.block_tokens)); }
        if (from.dtype != to.dtype) {
            float v[VALUES];
#pragma unroll
            for (uint32_t i = 0; i < VALUES; i++) { /* past the row's end there are zeros, which change no scale that is a number */
                v[i] = first + i < a.head_dim ? value_of(codes[i], from.dtype, f32_of_bf16((uint16_t)scale_bits)) : 0.0f;
            }
            if (has_scales(to)) {
                scale_bits = scale_of(v, to.dtype, a.row_lanes);
                const float scale = f32_of_bf16((uint16_t)scale_bits);
#pragma unroll
                for (uint32_t i = 0; i < VALUES; i++) { v[i] = scale > 0.0f ? div_rn(v[i], scale) : 0.0f; }
            }
#pragma unroll
            for (uint32_t i = 0; i < VALUES; i++) { codes[i] = code_of(v[i], to.dtype); }
        }
        codes_store(codes, target, to, row, a.head_dim, first);
        if (has_scales(to) && lane_id() % a.row_lanes == 0) {
            *(uint16_t *)(void *)(target + scale_at(to, row, a.kv_heads, a.block_tokens)) = (uint16_t)scale_bits;
        }
    }
}
