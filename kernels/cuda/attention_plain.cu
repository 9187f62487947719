/* attention_plain: attention in f32, a warp for each row and q head: for what the tensor cores do not take.
 * Flow:    attention_plan -> launch -> [attention_plain]
 * Thread:  4 warps of a block that know nothing of each other.
 * Memory:  the weights of a step in shared memory.
 *
 * Right for every dtype of activations and KV, every head_dim and block size; far from fast. A row is walked by one warp
 * in steps of 64 tokens from position 0, so its bits are its own in any company, whatever a.deterministic says.
 * Lanes are tokens where q meets K, and dimensions where weights meet V. */
#include "base/dtype.h"
#include "kernels/cuda/attention_find.cuh"

#define PLAIN_DIMS (CUDA_ATTENTION_DIM_MAX / 32) /* of a lane */

DEVICE_FN float plain_value(const void *values, uint64_t index, uint32_t dtype)
{
    switch (dtype) {
    case DTYPE_BF16: return f32_of_bf16(((const uint16_t *)values)[index]);
    case DTYPE_F16: return f32_of_f16(((const uint16_t *)values)[index]);
    case DTYPE_FP8_E4M3: return f32_of_fp8_e4m3(((const uint8_t *)values)[index]);
    case DTYPE_INT8: return (float)((const int8_t *)values)[index];
    default: return ((const float *)values)[index];
    }
}

DEVICE_FN void plain_store(void *values, uint64_t index, uint32_t dtype, float v)
{
    switch (dtype) {
    case DTYPE_BF16: ((uint16_t *)values)[index] = bf16_of(v); return;
    case DTYPE_F16: ((uint16_t *)values)[index] = f16_of(v); return;
    default: ((float *)values)[index] = v; return;
    }
}

struct plain_rows {
    DEVICE_FN uint32_t of(const cuda_attention_args &, const cuda_attention_sequence &s) { return s.row_count; }
};

/* A token's K, or V by `of_v`, and its scale. */
struct plain_token {
    const void *values;
    float scale;
};
DEVICE_FN plain_token plain_token_at(const cuda_attention_args &a, const uint32_t *table, uint32_t kv_head, uint32_t token,
                                     bool of_v)
{
    const uint32_t slot = token % a.block_tokens;
    const bool codes = a.kv_dtype == DTYPE_FP8_E4M3 || a.kv_dtype == DTYPE_INT8;
    const uint32_t bytes = codes ? 1 : a.kv_dtype == DTYPE_F32 ? 4 : 2;
    const unsigned char *slice = a.slices + (uint64_t)table[token / a.block_tokens] * a.block_bytes;
    plain_token at;
    at.values = slice + (of_v ? a.v_offset : 0) + (uint64_t)(kv_head * a.block_tokens + slot) * a.head_dim * bytes;
    at.scale = 1.0f;
    if (codes) {
        const unsigned char *scales = slice + a.scale_offset + (kv_head * (a.block_tokens / 16) + slot / 16) * 64u;
        at.scale = f32_of_bf16(((const uint16_t *)scales)[(of_v ? 16 : 0) + slot % 16]);
    }
    return at;
}

extern "C" __global__ void __launch_bounds__(CUDA_ATTENTION_THREADS)
    cuda_attention_plain(const __grid_constant__ struct cuda_attention_args a)
{
    launch_begin();
    const uint32_t lane = lane_id();
    const uint64_t number = (uint64_t)blockIdx.x * (CUDA_ATTENTION_THREADS / 32) + warp_id();
    const found_unit found = find_unit<plain_rows>(a, (uint32_t)(number / a.q_heads));
    if (found.sequence == a.sequence_count) { return; }
    const cuda_attention_sequence sequence = a.sequences[found.sequence];
    const uint32_t in_sequence = (uint32_t)(number / a.q_heads) - found.before, head = (uint32_t)(number % a.q_heads);
    const uint32_t kv_head = head / a.group, row = sequence.row_first + in_sequence;
    const uint32_t last = sequence.position_first + in_sequence, first = view_start(a, last);
    const uint32_t *table = table_of(a, sequence);
    const uint64_t q_at = row * a.q_stride + (uint64_t)head * a.head_dim;
    float *const weights = (float *)device_shared() + warp_id() * CUDA_ATTENTION_STEP;

    float o[PLAIN_DIMS] = {0};
    float max = -INFINITY, sum = 0.0f; /* sum: of this lane's tokens */
    for (uint32_t t0 = first / CUDA_ATTENTION_STEP * CUDA_ATTENTION_STEP; t0 <= last; t0 += CUDA_ATTENTION_STEP) {
        float score[2];
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t token = t0 + i * 32 + lane;
            score[i] = -INFINITY;
            if (token < first || token > last) { continue; }
            const plain_token k = plain_token_at(a, table, kv_head, token, false);
            float dot = 0.0f;
            for (uint32_t d = 0; d < a.head_dim; d++) {
                dot = fmaf(plain_value(a.q, q_at + d, a.act_dtype), plain_value(k.values, d, a.kv_dtype), dot);
            }
            score[i] = mul_rn(dot, k.scale);
        }
        const float before = max;
        max = warp_max(fmaxf(max, fmaxf(score[0], score[1])));
        const float base = max == -INFINITY ? 0.0f : mul_rn(max, a.scale_log2);
        const float factor = exp2_fast(add_rn(mul_rn(before, a.scale_log2), -base));
        const float p0 = exp2_fast(fmaf(score[0], a.scale_log2, -base)), p1 = exp2_fast(fmaf(score[1], a.scale_log2, -base));
        sum = fmaf(sum, factor, add_rn(p0, p1));
        weights[lane] = p0;
        weights[lane + 32] = p1;
        warp_sync();
        for (uint32_t i = 0; i < PLAIN_DIMS; i++) { o[i] = mul_rn(o[i], factor); }
        for (uint32_t i = 0; i < CUDA_ATTENTION_STEP; i++) {
            const uint32_t token = t0 + i;
            if (token < first || token > last) { continue; }
            const plain_token v = plain_token_at(a, table, kv_head, token, true);
            const float weight = mul_rn(weights[i], v.scale);
#pragma unroll
            for (uint32_t k = 0; k < PLAIN_DIMS; k++) {
                const uint32_t d = lane + k * 32;
                if (d < a.head_dim) { o[k] = fmaf(weight, plain_value(v.values, d, a.kv_dtype), o[k]); }
            }
        }
        warp_sync(); /* the weights have been read */
    }
    const float total = warp_sum(sum);
    const uint64_t out_at = row * a.out_stride + (uint64_t)head * a.head_dim;
#pragma unroll
    for (uint32_t k = 0; k < PLAIN_DIMS; k++) {
        const uint32_t d = lane + k * 32;
        if (d < a.head_dim) { plain_store(a.out, out_at + d, a.act_dtype, div_rn(o[k], total)); }
    }
}
