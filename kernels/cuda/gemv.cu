/* gemv: a few rows times large matrices. See gemv_args.h for what, and for the order of sums.
 * Flow:    decode steps of a few sequences: x or the residual -> [gemv] -> q|k|v, residual, silu(gate) * up, logits
 * Thread:  of the device. A block makes CUDA_GEMV_OUTS outputs; its 8 warps take turns at pieces of n_in.
 * Memory:  gemv_shared.h.
 *
 * A warp's lane l reads 16 bytes of output l / 4 at a time, the four lanes of an output 64 bytes side by side: that is how
 * mma.m16n8k16 wants its second factor, if x is given to it in the same order of inputs. The rows of x are the first 8
 * of the 16 of its first factor; the others stay zero. So the sums cost next to no instructions, and the loads set the
 * pace: of each piece all loads are started, and those of the next piece before the first is used.
 * Estimate: a layer of Llama-3.1-8B in bf16 is 436 MB of weights: 11.7 us of q|k|v, 7.8 of o, 54.6 of gate|up and 27.3 of
 * down at 4.3 TB/s. In flight per SM: 32 warps of up to 4 KiB, where 25 KiB would cover 0.8 us of latency. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemv_args.h"
#include "kernels/cuda/gemv_shared.h"

#define LOADS 4u /* of 16 bytes that a lane has of one piece of one matrix */

/* The values of 16 bytes. */
template <enum dtype DTYPE> struct values {
    static constexpr uint32_t BYTES = DTYPE == DTYPE_F32 ? 4 : 2;
    static constexpr uint32_t COUNT = 16 / BYTES;
    static constexpr uint32_t LOAD = 4 * COUNT;      /* inputs that a warp's load covers of each output */
    static constexpr uint32_t PIECE = LOADS * LOAD;  /* and all loads of a piece */
};

DEVICE_FN float value_at(const void *data, enum dtype dtype, uint64_t index)
{
    switch (dtype) {
    case DTYPE_BF16: return f32_of_bf16(((const uint16_t *)data)[index]);
    case DTYPE_F16: return f32_of_f16(((const uint16_t *)data)[index]);
    default: return ((const float *)data)[index];
    }
}

DEVICE_FN void put_value(void *data, enum dtype dtype, uint64_t index, float v)
{
    switch (dtype) {
    case DTYPE_BF16: ((uint16_t *)data)[index] = bf16_of(v); break;
    case DTYPE_F16: ((uint16_t *)data)[index] = f16_of(v); break;
    default: ((float *)data)[index] = v; break;
    }
}

/* ---- the product ---------------------------------------------------------------------------- */

/* One output tile of one matrix, a lane's share: by mma its d, of f32 a sum for each row. */
struct sums {
    float v[CUDA_GEMV_ROWS_MAX];
};

/* x from input `k` on, which lies at `from`. WHOLE: all of it is there; else zeros past n_in, where memory may hold
 * anything. */
template <enum dtype DTYPE, bool WHOLE> DEVICE_FN words4 load_x(const unsigned char *from, uint32_t k, uint32_t n_in)
{
    if (WHOLE || k + values<DTYPE>::COUNT <= n_in) { return load16(from); }
    words4 words = {{0, 0, 0, 0}};
#pragma unroll
    for (uint32_t i = 0; i < values<DTYPE>::COUNT; i++) {
        if (k + i >= n_in) { continue; }
        if constexpr (DTYPE == DTYPE_F32) {
            words.w[i] = ((const uint32_t *)(const void *)from)[i];
        } else {
            words.w[i / 2] |= (uint32_t)((const uint16_t *)(const void *)from)[i] << (i % 2 * 16);
        }
    }
    return words;
}

/* A lane's 16 bytes of weights times x, from input k of the lane on. */
template <enum dtype DTYPE> DEVICE_FN void multiply(struct sums *sums, const words4 &w, const words4 &x)
{
    const uint32_t a_first[4] = {x.w[0], 0, x.w[1], 0}, b_first[2] = {w.w[0], w.w[1]};
    const uint32_t a_last[4] = {x.w[2], 0, x.w[3], 0}, b_last[2] = {w.w[2], w.w[3]};
    if (DTYPE == DTYPE_BF16) {
        mma_bf16_m16n8k16(sums->v, a_first, b_first);
        mma_bf16_m16n8k16(sums->v, a_last, b_last);
    } else {
        mma_f16_m16n8k16(sums->v, a_first, b_first);
        mma_f16_m16n8k16(sums->v, a_last, b_last);
    }
}

/* One piece of a tile: LOADS loads of each of MATRICES matrices. */
template <uint32_t MATRICES> struct piece {
    words4 w[MATRICES][LOADS];
};

/* From inputs `first` of the warp on; offsets from the lane's first byte are constants. */
template <enum dtype DTYPE, uint32_t MATRICES>
DEVICE_FN void load_piece(struct piece<MATRICES> *ret, const unsigned char *const weight[MATRICES],
                          const uint32_t stride[MATRICES], uint32_t first)
{
    const uint32_t k = first + lane_id() % 4 * values<DTYPE>::COUNT;
#pragma unroll
    for (uint32_t m = 0; m < MATRICES; m++) {
        const unsigned char *from = weight[m] + (uint64_t)k * values<DTYPE>::BYTES;
        const uint32_t left = weight[m] && k < stride[m] ? stride[m] - k : 0;
#pragma unroll
        for (uint32_t load = 0; load < LOADS; load++) {
            ret->w[m][load] = words4{{0, 0, 0, 0}};
            if (load * values<DTYPE>::LOAD < left) { ret->w[m][load] = load16_stream(from + load * 64); }
        }
    }
}

/* The same to L2. */
template <enum dtype DTYPE, uint32_t MATRICES>
DEVICE_FN void prefetch_piece(const unsigned char *const weight[MATRICES], const uint32_t stride[MATRICES], uint32_t first)
{
    const uint32_t k = first + lane_id() % 4 * values<DTYPE>::COUNT;
#pragma unroll
    for (uint32_t m = 0; m < MATRICES; m++) {
        const uint32_t left = weight[m] && k < stride[m] ? stride[m] - k : 0;
#pragma unroll
        for (uint32_t load = 0; load < LOADS; load++) {
            if (load * values<DTYPE>::LOAD < left) { prefetch_l2(weight[m] + (uint64_t)k * values<DTYPE>::BYTES + load * 64); }
        }
    }
}

template <enum dtype DTYPE, uint32_t MATRICES, bool WHOLE>
DEVICE_FN void multiply_piece(struct sums sums[MATRICES], const struct piece<MATRICES> &piece, const unsigned char *x,
                              uint64_t row_bytes, uint32_t rows, uint32_t first, uint32_t n_in)
{
    const uint32_t k = first + lane_id() % 4 * values<DTYPE>::COUNT;
    const unsigned char *from = x + (uint64_t)k * values<DTYPE>::BYTES;
    if constexpr (DTYPE == DTYPE_F32) {
        /* No matrix unit takes f32 whole; the lane sums up its own inputs, in their order. */
#pragma unroll
        for (uint32_t load = 0; load < LOADS; load++) {
#pragma unroll
            for (uint32_t row = 0; row < CUDA_GEMV_ROWS_MAX; row++) {
                if (row >= rows) { break; }
                const words4 of_x = load_x<DTYPE, WHOLE>(from + row * row_bytes + load * 64, k + load * values<DTYPE>::LOAD, n_in);
#pragma unroll
                for (uint32_t m = 0; m < MATRICES; m++) {
#pragma unroll
                    for (uint32_t i = 0; i < 4; i++) {
                        sums[m].v[row] = fmaf(f32_of_bits(piece.w[m][load].w[i]), f32_of_bits(of_x.w[i]), sums[m].v[row]);
                    }
                }
            }
        }
    } else {
        const uint32_t row = lane_id() / 4;
        words4 of_x[LOADS];
#pragma unroll
        for (uint32_t load = 0; load < LOADS; load++) {
            of_x[load] = words4{{0, 0, 0, 0}};
            if (row < rows) {
                of_x[load] = load_x<DTYPE, WHOLE>(from + row * row_bytes + load * 64, k + load * values<DTYPE>::LOAD, n_in);
            }
        }
#pragma unroll
        for (uint32_t load = 0; load < LOADS; load++) {
#pragma unroll
            for (uint32_t m = 0; m < MATRICES; m++) { multiply<DTYPE>(&sums[m], piece.w[m][load], of_x[load]); }
        }
    }
}

/* A warp's sums into shared[row][output of the tile]. */
template <enum dtype DTYPE> DEVICE_FN void store_sums(float *shared, const struct sums &sums, uint32_t rows)
{
    const uint32_t group = lane_id() / 4, member = lane_id() % 4;
    if constexpr (DTYPE == DTYPE_F32) {
#pragma unroll
        for (uint32_t row = 0; row < CUDA_GEMV_ROWS_MAX; row++) {
            if (row >= rows) { break; }
            float v = sums.v[row];
            v = add_rn(v, shuffle_xor(v, 1));
            v = add_rn(v, shuffle_xor(v, 2));
            if (member == 0) { shared[row * CUDA_GEMV_OUTS + group] = v; }
        }
    } else {
        shared[group * CUDA_GEMV_OUTS + member * 2] = sums.v[0];
        shared[group * CUDA_GEMV_OUTS + member * 2 + 1] = sums.v[1];
    }
}

/* ---- the norm before it -------------------------------------------------------------------- */

/* Block. Writes the normed rows to shared memory, and zeros after them. */
template <enum dtype DTYPE> DEVICE_FN void norm_rows(const struct cuda_gemv_args &a, unsigned char *shared)
{
    float *squares = (float *)(void *)(shared + GEMV_SQUARES_AT);
    const uint32_t row_bytes = gemv_row_bytes(&a), padded = (a.n_in + 7) / 8 * 8;
    for (uint32_t row = 0; row < a.rows; row++) {
        const float *x = (const float *)a.x + row * a.x_stride;
        float sum = 0.0f;
        for (uint32_t k = threadIdx.x * 4; k < a.n_in; k += CUDA_GEMV_THREADS * 4) {
            if (k + 4 <= a.n_in) {
                const words4 words = load16(x + k);
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) { sum = fmaf(f32_of_bits(words.w[i]), f32_of_bits(words.w[i]), sum); }
            } else {
                for (uint32_t i = k; i < a.n_in; i++) { sum = fmaf(x[i], x[i], sum); }
            }
        }
        sum = warp_sum(sum);
        if (lane_id() == 0) { squares[warp_id()] = sum; }
        block_sync();
        sum = squares[0];
        for (uint32_t warp = 1; warp < GEMV_WARPS; warp++) { sum = add_rn(sum, squares[warp]); }
        const float scale = div_rn(1.0f, sqrt_rn(add_rn(div_rn(sum, (float)a.n_in), a.eps)));
        void *to = shared + GEMV_VALUES_AT + row * row_bytes;
        for (uint32_t k = threadIdx.x; k < padded; k += CUDA_GEMV_THREADS) {
            const float v = k < a.n_in ? mul_rn(mul_rn(x[k], scale), value_at(a.norm_weight, a.norm_dtype, k)) : 0.0f;
            put_value(to, DTYPE, k, v);
        }
        block_sync();
    }
}

/* ---- a tile -------------------------------------------------------------------------------- */

template <enum dtype DTYPE, uint32_t MATRICES> DEVICE_FN void gemv(const struct cuda_gemv_args &a)
{
    uint32_t tile = blockIdx.x, first_part = 0;
    while (MATRICES == 1 && tile >= gemv_tiles(&a.parts[first_part])) { tile -= gemv_tiles(&a.parts[first_part++]); }
    const uint32_t out = tile * CUDA_GEMV_OUTS + lane_id() / 4; /* of the part; this lane's to read */
    const unsigned char *weight[MATRICES];
    uint32_t stride[MATRICES];
#pragma unroll
    for (uint32_t m = 0; m < MATRICES; m++) {
        const struct cuda_gemv_part &part = a.parts[first_part + m];
        stride[m] = part.stride;
        weight[m] = out < part.n_out ? (const unsigned char *)part.weight + (uint64_t)out * part.stride * values<DTYPE>::BYTES : nullptr;
    }
    /* Weights are on their way while the launches before this one end and the rows are normed: the first piece to here, the
     * second to L2. */
    constexpr uint32_t STEP = GEMV_WARPS * values<DTYPE>::PIECE;
    uint32_t first = warp_id() * values<DTYPE>::PIECE;
    struct piece<MATRICES> next;
    launch_next();
    load_piece<DTYPE, MATRICES>(&next, weight, stride, first);
    prefetch_piece<DTYPE, MATRICES>(weight, stride, first + STEP);
    launch_wait();

    unsigned char *shared = device_shared();
    const unsigned char *x = (const unsigned char *)a.x;
    uint64_t row_bytes = a.x_stride * values<DTYPE>::BYTES;
    if (a.norm_weight) {
        norm_rows<DTYPE>(a, shared);
        x = shared + GEMV_VALUES_AT;
        row_bytes = gemv_row_bytes(&a);
    }
    struct sums sums[MATRICES] = {};
    for (; first < a.n_in; first += STEP) {
        const struct piece<MATRICES> piece = next;
        load_piece<DTYPE, MATRICES>(&next, weight, stride, first + STEP);
        if (first + values<DTYPE>::PIECE <= a.n_in) {
            multiply_piece<DTYPE, MATRICES, true>(sums, piece, x, row_bytes, a.rows, first, a.n_in);
        } else {
            multiply_piece<DTYPE, MATRICES, false>(sums, piece, x, row_bytes, a.rows, first, a.n_in);
        }
    }
    float *shared_sums = (float *)(void *)shared;
#pragma unroll
    for (uint32_t m = 0; m < MATRICES; m++) {
        store_sums<DTYPE>(shared_sums + (m * GEMV_WARPS + warp_id()) * GEMV_SUMS, sums[m], a.rows);
    }
    block_sync();
    const uint32_t row = threadIdx.x / CUDA_GEMV_OUTS, own_out = tile * CUDA_GEMV_OUTS + threadIdx.x % CUDA_GEMV_OUTS;
    const struct cuda_gemv_part &part = a.parts[first_part];
    if (row >= a.rows || own_out >= part.n_out) { return; }
    float v[MATRICES];
#pragma unroll
    for (uint32_t m = 0; m < MATRICES; m++) {
        const float *of = shared_sums + m * GEMV_WARPS * GEMV_SUMS + threadIdx.x;
        v[m] = of[0];
        for (uint32_t warp = 1; warp < GEMV_WARPS; warp++) { v[m] = add_rn(v[m], of[warp * GEMV_SUMS]); }
        const void *bias = a.parts[first_part + m].bias;
        if (bias) { v[m] = add_rn(v[m], value_at(bias, a.bias_dtype, own_out)); }
    }
    const uint64_t at = row * part.out_stride + own_out;
    if constexpr (MATRICES == 2) {
        /* As cuda_map does it. A gate below -88 has expf = inf and gives -0. */
        v[0] = mul_rn(div_rn(v[0], add_rn(1.0f, expf(-v[0]))), v[1]);
    }
    if (a.accumulate) { v[0] = add_rn(v[0], ((const float *)part.out)[at]); }
    put_value(part.out, a.out_dtype, at, v[0]);
}

/* As many blocks on an SM as leave the registers for two pieces on their way: 4 of one matrix, 2 of two. */
#define GEMV_KERNEL(name, dtype, matrices)                                                       \
    extern "C" __global__ void __launch_bounds__(CUDA_GEMV_THREADS, 4 / matrices)                \
        cuda_##name(const __grid_constant__ struct cuda_gemv_args a)                             \
    {                                                                                            \
        gemv<dtype, matrices>(a);                                                                \
    }
GEMV_KERNEL(gemv_bf16, DTYPE_BF16, 1)
GEMV_KERNEL(gemv_f16, DTYPE_F16, 1)
GEMV_KERNEL(gemv_f32, DTYPE_F32, 1)
GEMV_KERNEL(gemv_silu_bf16, DTYPE_BF16, 2)
GEMV_KERNEL(gemv_silu_f16, DTYPE_F16, 2)
GEMV_KERNEL(gemv_silu_f32, DTYPE_F32, 2)
