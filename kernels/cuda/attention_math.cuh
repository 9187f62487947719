/* attention_math: what one warp does with 16 query rows and steps of 64 tokens, in prefill and in decode alike.
 * Flow:    attention_prefill, attention_decode -> [attention_math] -> device.cuh
 * Thread:  a warp of the device; every function here is marked "warp" in the sense of device.cuh.
 * Memory:  registers, and the units of K and V that the caller has brought to shared memory.
 *
 * Exactness. A row's score with a token, its weights, its sums and its joins are the same operations in the same order
 * whatever rows lie beside it and whichever kernel calls: columns of an mma do not meet, hidden tokens weigh exactly
 * 0 and change nothing but the sign of a zero (which the output drops by adding +0), and every product that is not
 * fused is rounded by mul_rn, so that the compiler has no choice. So where prefill and decode cut the context at the
 * same places, which they do where results are deterministic, their bits are equal.
 *
 * Lanes. With g = lane / 4 and t = lane % 4 a lane holds rows g and g + 8 of the 16, and columns 2t and 2t+1 of every 8
 * (device.cuh, mma). A unit is K or V of 16 tokens, rows of D values padded with zeros, 16-byte chunks swizzled.
 *
 * Codes of a byte (fp8, int8) are widened on the way from shared memory to the matrix units: exact in bf16 and f16.
 * Their scales are factored out: that of K multiplies the score, that of V the weight, which is rounded for the
 * product anyway. The weights of codes are bf16 whatever the activations are: a scale may lie far below the normal
 * range of f16.
 * Source: FlashAttention-2, arXiv 2307.08691, Algorithm 1. */
#ifndef BATON_KERNELS_CUDA_ATTENTION_MATH_CUH
#define BATON_KERNELS_CUDA_ATTENTION_MATH_CUH

#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/device.cuh"

#define ATTENTION_HIDDEN (-INFINITY)

/* ---- what values are ----------------------------------------------------------------------- */

struct as_bf16 {
    DEVICE_FN void mma(float d[4], const uint32_t a[4], const uint32_t b[2]) { mma_bf16_m16n8k16(d, a, b); }
    DEVICE_FN uint32_t pack(float low, float high) { return bf16x2_of(low, high); }
    DEVICE_FN bool is_finite(uint32_t pair) { return (pair & 0x7f80u) != 0x7f80u && (pair & 0x7f800000u) != 0x7f800000u; }
    /* Bytes 0 and 2 of a word, two codes, as bf16; see device.cuh for fp8. */
    DEVICE_FN uint32_t of_fp8(uint32_t apart)
    {
        return fma_bf16x2((apart & 0x007f007fu) << 4 | (apart & 0x00800080u) << 8, 0x7b807b80u, 0x80008000u);
    }
    /* 128 + the low seven bits, less 128, or 256 where the sign is set: all exact. */
    DEVICE_FN uint32_t of_int8(uint32_t apart)
    {
        return fma_bf16x2((apart & 0x007f007fu) | 0x43004300u, 0x3f803f80u, (apart & 0x00800080u) | 0xc300c300u);
    }
};

struct as_f16 {
    DEVICE_FN void mma(float d[4], const uint32_t a[4], const uint32_t b[2]) { mma_f16_m16n8k16(d, a, b); }
    DEVICE_FN uint32_t pack(float low, float high) { return f16x2_of(low, high); }
    DEVICE_FN bool is_finite(uint32_t pair) { return (pair & 0x7c00u) != 0x7c00u && (pair & 0x7c000000u) != 0x7c000000u; }
    DEVICE_FN uint32_t of_fp8(uint32_t apart)
    {
        return mul_f16x2((apart & 0x007f007fu) << 7 | (apart & 0x00800080u) << 8, 0x5c005c00u);
    }
    /* 2^23 + 128 + code as f32, less 2^23 + 128: exact. */
    DEVICE_FN uint32_t of_int8(uint32_t apart)
    {
        const uint32_t biased = apart ^ 0x00800080u;
        return f16x2_of(add_rn(f32_of_bits(0x4b000000u | (biased & 0xffu)), -8388736.0f),
                        add_rn(f32_of_bits(0x4b000000u | (biased >> 16 & 0xffu)), -8388736.0f));
    }
};

/* A kind of KV: Q is what q, K and the scores' products are; W what weights and V are. */
template <typename ACT> struct kv_plain {
    typedef ACT Q;
    typedef ACT W;
    static constexpr uint32_t bytes = 2;
};
template <typename ACT> struct kv_fp8 {
    typedef ACT Q;
    typedef as_bf16 W;
    static constexpr uint32_t bytes = 1;
    template <typename T> DEVICE_FN uint32_t widen(uint32_t apart) { return T::of_fp8(apart); }
};
template <typename ACT> struct kv_int8 {
    typedef ACT Q;
    typedef as_bf16 W;
    static constexpr uint32_t bytes = 1;
    template <typename T> DEVICE_FN uint32_t widen(uint32_t apart) { return T::of_int8(apart); }
};

/* Sizes of a unit, K or V of 16 tokens. The scales of a byte's codes, 16 of K and 16 of V, lie elsewhere. */
template <class KV, int D> struct unit_of {
    static constexpr uint32_t row_bytes = D * KV::bytes;
    static constexpr uint32_t chunks = row_bytes / 16;
    static constexpr uint32_t bytes = CUDA_ATTENTION_UNIT_BYTES(D, KV::bytes);
};

/* From a unit's start to a 16-byte chunk of a token's row. Eight rows at one chunk, which is what ldmatrix reads, lie
 * in eight different sixteenths of 128 bytes: no two in one bank. */
template <class KV, int D> DEVICE_FN uint32_t unit_offset(uint32_t row, uint32_t chunk)
{
    typedef unit_of<KV, D> unit;
    const uint32_t turned = unit::chunks == 4 ? chunk ^ (row >> 1 & 3u) : chunk ^ (row & 7u);
    return row * unit::row_bytes + turned * 16;
}

/* ---- queries ------------------------------------------------------------------------------- */

/* The 16 rows of q as fragments of A. Past 128 dimensions they would not fit beside the sums: then they are kept in
 * shared memory, each lane's own, which is why nobody waits for them. */
template <int D> struct query_rows {
    static constexpr bool shared = D > 128;
    static constexpr uint32_t words = D / 16;
    static constexpr uint32_t shared_bytes = CUDA_ATTENTION_QUERY_BYTES(D);
    words4 held[shared ? 1 : words];
    unsigned char *at;
};

template <int D> DEVICE_FN void query_put(query_rows<D> &q, uint32_t i, const words4 &a)
{
    if constexpr (query_rows<D>::shared) {
        store16(q.at + (i * 32 + lane_id()) * 16, a);
    } else {
        q.held[i] = a;
    }
}
template <int D> DEVICE_FN words4 query_get(const query_rows<D> &q, uint32_t i)
{
    if constexpr (query_rows<D>::shared) {
        return load16(q.at + (i * 32 + lane_id()) * 16);
    } else {
        return q.held[i];
    }
}

DEVICE_FN uint32_t load4(const void *p) { return *(const uint32_t *)p; }

/* row[0], row[1]: this lane's two rows of q, head_dim values of 16 bits; NULL reads as zeros. Where K comes as codes,
 * words hold dimensions in another order, that in which a word of K comes apart: the sum over them is the same sum.
 * shared: query_rows::shared_bytes of this warp. */
template <class KV, int D>
DEVICE_FN void load_queries(query_rows<D> &q, const uint16_t *const row[2], uint32_t head_dim, unsigned char *shared)
{
    const uint32_t t = lane_id() % 4;
    q.at = shared;
#pragma unroll
    for (uint32_t i = 0; i < D / 16; i++) {
        words4 a = {{0, 0, 0, 0}};
        if (i * 16 < head_dim) {
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                if (row[r] == nullptr) { continue; }
                if (KV::bytes == 2) {
                    a.w[r] = load4(row[r] + i * 16 + 2 * t);
                    a.w[r + 2] = load4(row[r] + i * 16 + 2 * t + 8);
                } else {
                    const uint32_t low = load4(row[r] + i * 16 + 4 * t), high = load4(row[r] + i * 16 + 4 * t + 2);
                    a.w[r] = (low & 0xffffu) | high << 16;
                    a.w[r + 2] = low >> 16 | (high & 0xffff0000u);
                }
            }
        }
        query_put(q, i, a);
    }
}

/* ---- products ------------------------------------------------------------------------------ */

DEVICE_FN uint32_t even_bytes(uint32_t word) { return word & 0x00ff00ffu; }
DEVICE_FN uint32_t odd_bytes(uint32_t word) { return word >> 8 & 0x00ff00ffu; }

/* The scales of tokens 2t, 2t+1, 2t+8, 2t+9 of a unit; scales: 16 of bf16 in shared memory. */
DEVICE_FN void load_scales(float ret[4], const unsigned char *scales)
{
    const uint32_t t = lane_id() % 4, low = load4(scales + 4 * t), high = load4(scales + 4 * t + 16);
    ret[0] = f32_of_bf16_low(low);
    ret[1] = f32_of_bf16_high(low);
    ret[2] = f32_of_bf16_low(high);
    ret[3] = f32_of_bf16_high(high);
}

/* s[0], s[1] = q . K of the unit's tokens 0-7 and 8-15, times K's scales where there are any. */
template <class KV, int D>
DEVICE_FN void score_unit(float s[2][4], const query_rows<D> &q, const unsigned char *unit, const unsigned char *scales)
{
    const uint32_t lane = lane_id(), matrix = lane / 8;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) { s[i / 4][i % 4] = 0.0f; }
    if constexpr (KV::bytes == 2) {
        const uint32_t row = matrix / 2 * 8 + lane % 8;
#pragma unroll
        for (uint32_t i = 0; i < D / 16; i++) {
            uint32_t b[4];
            ldmatrix_x4(b, unit + unit_offset<KV, D>(row, 2 * i + matrix % 2));
            const words4 a = query_get(q, i);
            KV::Q::mma(s[0], a.w, b);
            KV::Q::mma(s[1], a.w, b + 2);
        }
    } else {
        const uint32_t row = matrix % 2 * 8 + lane % 8;
#pragma unroll
        for (uint32_t i = 0; i < D / 16; i += 2) {
            uint32_t codes[4];
            ldmatrix_x4(codes, unit + unit_offset<KV, D>(row, i + matrix / 2));
#pragma unroll
            for (uint32_t m = 0; m < 4; m++) {
                const uint32_t b[2] = {KV::template widen<typename KV::Q>(even_bytes(codes[m])),
                                       KV::template widen<typename KV::Q>(odd_bytes(codes[m]))};
                const words4 a = query_get(q, i + m / 2);
                KV::Q::mma(s[m % 2], a.w, b);
            }
        }
        float k[4];
        load_scales(k, scales);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) { s[i / 4][i % 4] = mul_rn(s[i / 4][i % 4], k[i / 4 * 2 + i % 2]); }
    }
}

/* The weights of a unit's tokens as a fragment of A, times V's scales where there are any. A weight of 0 stays 0: the
 * scale of a token that is hidden may be anything. */
template <class KV> DEVICE_FN void pack_weights(uint32_t a[4], const float p[2][4], const unsigned char *scales)
{
    if constexpr (KV::bytes == 2) {
        a[0] = KV::W::pack(p[0][0], p[0][1]);
        a[1] = KV::W::pack(p[0][2], p[0][3]);
        a[2] = KV::W::pack(p[1][0], p[1][1]);
        a[3] = KV::W::pack(p[1][2], p[1][3]);
    } else {
        float v[4], w[8];
        load_scales(v, scales);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const float weight = p[i / 4][i % 4];
            w[i] = weight == 0.0f ? 0.0f : mul_rn(weight, v[i / 4 * 2 + i % 2]);
        }
        a[0] = KV::W::pack(w[0], w[1]);
        a[1] = KV::W::pack(w[2], w[3]);
        a[2] = KV::W::pack(w[4], w[5]);
        a[3] = KV::W::pack(w[6], w[7]);
    }
}

/* o += weights . V of one unit. */
template <class KV, int D> DEVICE_FN void sum_unit(float (*o)[4], const uint32_t a[4], const unsigned char *unit)
{
    const uint32_t lane = lane_id(), matrix = lane / 8, row = matrix % 2 * 8 + lane % 8;
    if constexpr (KV::bytes == 2) {
#pragma unroll
        for (uint32_t i = 0; i < D / 16; i++) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, unit + unit_offset<KV, D>(row, 2 * i + matrix / 2));
            KV::W::mma(o[2 * i], a, b);
            KV::W::mma(o[2 * i + 1], a, b + 2);
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < D / 16; i += 2) {
            uint32_t codes[4];
            ldmatrix_x4_trans(codes, unit + unit_offset<KV, D>(row, i + matrix / 2));
#pragma unroll
            for (uint32_t m = 0; m < 2; m++) {
                const uint32_t even[2] = {KV::template widen<typename KV::W>(even_bytes(codes[2 * m])),
                                          KV::template widen<typename KV::W>(even_bytes(codes[2 * m + 1]))};
                const uint32_t odd[2] = {KV::template widen<typename KV::W>(odd_bytes(codes[2 * m])),
                                         KV::template widen<typename KV::W>(odd_bytes(codes[2 * m + 1]))};
                KV::W::mma(o[2 * (i + m)], a, even);
                KV::W::mma(o[2 * (i + m) + 1], a, odd);
            }
        }
    }
}

/* ---- softmax ------------------------------------------------------------------------------- */

/* Tokens that a lane's two rows see: from .. to; to < from: none. */
struct row_view {
    uint32_t from[2], to[2];
};

/* What a warp has summed so far: o relative to 2^(max * scale_log2); sum is this lane's share until gather_sums. */
template <int D> struct row_sums {
    float o[D / 8][4];
    float max[2], sum[2];
};

template <int D> DEVICE_FN void clear_sums(row_sums<D> &st)
{
#pragma unroll
    for (uint32_t i = 0; i < D / 2; i++) { st.o[i / 4][i % 4] = 0.0f; }
    st.max[0] = st.max[1] = ATTENTION_HIDDEN;
    st.sum[0] = st.sum[1] = 0.0f;
}

/* The exponent that weights are relative to; a row that saw nothing is relative to 1. */
DEVICE_FN float base_of(float max, float scale_log2) { return max == ATTENTION_HIDDEN ? 0.0f : mul_rn(max, scale_log2); }
/* What was relative to `max` times this is relative to `base`. Exactly 1 where they are the same, 0 for nothing. */
DEVICE_FN float rescale_of(float max, float base, float scale_log2)
{
    return exp2_fast(add_rn(mul_rn(max, scale_log2), -base));
}

/* Scores of a step from token t0 on become weights; what was summed is made relative to the new maximum. A step is
 * COLUMNS times 8 tokens. */
template <int D, int COLUMNS = 8>
DEVICE_FN void weigh_step(float (*s)[4], row_sums<D> &st, const row_view &view, bool whole, uint32_t t0, float scale_log2)
{
    const uint32_t t = lane_id() % 4;
    if (!whole) {
#pragma unroll
        for (uint32_t i = 0; i < 4 * COLUMNS; i++) {
            const uint32_t token = t0 + i / 4 * 8 + 2 * t + i % 2, r = i % 4 / 2;
            if (token < view.from[r] || token > view.to[r]) { s[i / 4][i % 4] = ATTENTION_HIDDEN; }
        }
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        float max = st.max[r];
#pragma unroll
        for (uint32_t i = 0; i < COLUMNS; i++) { max = fmaxf(max, fmaxf(s[i][2 * r], s[i][2 * r + 1])); }
        max = fmaxf(max, shuffle_xor(max, 1));
        max = fmaxf(max, shuffle_xor(max, 2));
        const float base = base_of(max, scale_log2), factor = rescale_of(st.max[r], base, scale_log2);
        float sum = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < 2 * COLUMNS; i++) {
            float &p = s[i / 2][2 * r + i % 2];
            p = exp2_fast(fmaf(p, scale_log2, -base));
            sum = add_rn(sum, p);
        }
        st.sum[r] = fmaf(st.sum[r], factor, sum);
        st.max[r] = max;
#pragma unroll
        for (uint32_t i = 0; i < D / 8; i++) {
            st.o[i][2 * r] = mul_rn(st.o[i][2 * r], factor);
            st.o[i][2 * r + 1] = mul_rn(st.o[i][2 * r + 1], factor);
        }
    }
}

/* Sums of the four lanes that share a row, in all of them. */
template <int D> DEVICE_FN void gather_sums(row_sums<D> &st)
{
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        st.sum[r] = add_rn(st.sum[r], shuffle_xor(st.sum[r], 1));
        st.sum[r] = add_rn(st.sum[r], shuffle_xor(st.sum[r], 2));
    }
}

/* ---- joining ------------------------------------------------------------------------------- */

/* How two softmaxes over neighbouring tokens become one: first * a + second * b, for sums and for o. */
struct join_factors {
    float max, first, second;
};
DEVICE_FN join_factors join_of(float first_max, float second_max, float scale_log2)
{
    join_factors f;
    f.max = fmaxf(first_max, second_max);
    const float base = base_of(f.max, scale_log2);
    f.first = rescale_of(first_max, base, scale_log2);
    f.second = rescale_of(second_max, base, scale_log2);
    return f;
}
DEVICE_FN float join(const join_factors &f, float first, float second) { return fmaf(first, f.first, mul_rn(second, f.second)); }

/* The sign of a zero is dropped: it may come from tokens that weigh nothing. */
DEVICE_FN float finish(float o, float inverse) { return add_rn(mul_rn(o, inverse), 0.0f); }

/* ---- results ------------------------------------------------------------------------------- */

/* The two (plain) or four (codes) dimensions of this lane in columns 2i and 2i+1 start at this one, of 16 * i .. */
template <class KV> DEVICE_FN uint32_t dim_of(uint32_t i, uint32_t column)
{
    const uint32_t t = lane_id() % 4;
    return KV::bytes == 2 ? i * 16 + column * 8 + 2 * t : i * 16 + 4 * t + 2 * column;
}
/* Values of those two neighbouring dimensions of row r: column 0 or 1 of the pair 2i, 2i+1. */
template <class KV, int D> DEVICE_FN void pair_of(float ret[2], const row_sums<D> &st, uint32_t i, uint32_t column, uint32_t r)
{
    if (KV::bytes == 2) {
        ret[0] = st.o[2 * i + column][2 * r];
        ret[1] = st.o[2 * i + column][2 * r + 1];
    } else {
        ret[0] = st.o[2 * i][2 * r + column];
        ret[1] = st.o[2 * i + 1][2 * r + column];
    }
}

/* out[0], out[1]: where this lane's rows go; NULL: nowhere. */
template <class KV, int D>
DEVICE_FN void store_rows(uint16_t *const out[2], const row_sums<D> &st, uint32_t head_dim)
{
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        const float inverse = div_rn(1.0f, st.sum[r]);
        if (out[r] == nullptr) { continue; }
#pragma unroll
        for (uint32_t i = 0; i < D / 16; i++) {
            if (i * 16 >= head_dim) { continue; }
#pragma unroll
            for (uint32_t column = 0; column < 2; column++) {
                float v[2];
                pair_of<KV, D>(v, st, i, column, r);
                *(uint32_t *)(out[r] + dim_of<KV>(i, column)) =
                    KV::Q::pack(finish(v[0], inverse), finish(v[1], inverse));
            }
        }
    }
}

#endif
