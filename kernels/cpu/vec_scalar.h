/* vec_scalar: the 16 lanes of set_impl.h as an array, in plain C for any machine. Products are
 * rounded before they are added: without hardware a fused operation costs a library call.
 * What each function means is said in set_impl.h. */
#ifndef BATON_KERNELS_CPU_VEC_SCALAR_H
#define BATON_KERNELS_CPU_VEC_SCALAR_H

#include <math.h>

#define VEC_IS_ARRAY
#include "kernels/cpu/vec_common.h"

typedef struct {
    float lane[16];
} vec;

#define VEC_EACH(expression)                            \
    vec r_;                                             \
    for (int i = 0; i < 16; i++) { r_.lane[i] = (expression); } \
    return r_

VEC_FN vec vec_zero(void) { VEC_EACH(0.0f); }
VEC_FN vec vec_set(float a) { VEC_EACH(a); }
VEC_FN vec vec_load(const float *p) { VEC_EACH(p[i]); }
VEC_FN vec vec_load_part(const float *p, uint32_t count) { VEC_EACH((uint32_t)i < count ? p[i] : 0.0f); }
VEC_FN void vec_store(float *p, vec a) { memcpy(p, a.lane, sizeof(a.lane)); }
VEC_FN void vec_store_part(float *p, vec a, uint32_t count) { memcpy(p, a.lane, count * sizeof(float)); }
VEC_FN vec vec_fma(vec a, vec b, vec c) { VEC_EACH(a.lane[i] * b.lane[i] + c.lane[i]); }
VEC_FN vec vec_add(vec a, vec b) { VEC_EACH(a.lane[i] + b.lane[i]); }
VEC_FN vec vec_sub(vec a, vec b) { VEC_EACH(a.lane[i] - b.lane[i]); }
VEC_FN vec vec_mul(vec a, vec b) { VEC_EACH(a.lane[i] * b.lane[i]); }
VEC_FN vec vec_div(vec a, vec b) { VEC_EACH(a.lane[i] / b.lane[i]); }
VEC_FN vec vec_max(vec a, vec b) { VEC_EACH(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
VEC_FN vec vec_min(vec a, vec b) { VEC_EACH(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
VEC_FN vec vec_keep(vec a, uint32_t from, uint32_t to, float other)
{
    VEC_EACH((uint32_t)i >= from && (uint32_t)i < to ? a.lane[i] : other);
}
VEC_FN vec vec_abs(vec a) { VEC_EACH(fabsf(a.lane[i])); }
VEC_FN vec vec_if_negative(vec a, vec then, vec otherwise) { VEC_EACH(a.lane[i] < 0.0f ? then.lane[i] : otherwise.lane[i]); }

VEC_FN float vec_power1(float n)
{
    /* NaN has no integer; any power will do, since it multiplies a NaN. */
    uint32_t bits = (uint32_t)((n >= -126.0f && n <= 127.0f ? (int32_t)n : 0) + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return power;
}
VEC_FN vec vec_power_of_two(vec n) { VEC_EACH(vec_power1(n.lane[i])); }

VEC_FN bool vec_any_above(vec a, vec b)
{
    int above = 0;
    for (int i = 0; i < 16; i++) { above |= a.lane[i] > b.lane[i]; }
    return above != 0;
}
/* Adding 1.5 * 2^23 rounds what is below 2^22. */
VEC_FN vec vec_round(vec a) { VEC_EACH((a.lane[i] + 12582912.0f) - 12582912.0f); }
VEC_FN vec vec_times_power(vec a, vec n) { return vec_mul(a, vec_power_of_two(n)); }

VEC_FN float vec_sum(vec a)
{
    for (int step = 8; step != 0; step /= 2) {
        for (int i = 0; i < step; i++) { a.lane[i] += a.lane[i + step]; }
    }
    return a.lane[0];
}
VEC_FN float vec_max_lane(vec a)
{
    for (int step = 8; step != 0; step /= 2) {
        for (int i = 0; i < step; i++) { a.lane[i] = a.lane[i] > a.lane[i + step] ? a.lane[i] : a.lane[i + step]; }
    }
    return a.lane[0];
}

VEC_FN uint16_t vec_u16(const void *p, int index)
{
    uint16_t bits;
    memcpy(&bits, (const unsigned char *)p + 2 * index, 2);
    return bits;
}
VEC_FN vec vec_load_bf16(const void *p) { VEC_EACH(bf16_to_f32(vec_u16(p, i))); }
VEC_FN vec vec_load_f16(const void *p) { VEC_EACH(f16_to_f32(vec_u16(p, i))); }
/* Lane i holds two bf16, of which the one at the lower address is the even one. */
VEC_FN vec vec_even_bf16(vec pairs) { VEC_EACH(bf16_to_f32(vec_u16(pairs.lane, 2 * i))); }
VEC_FN vec vec_odd_bf16(vec pairs) { VEC_EACH(bf16_to_f32(vec_u16(pairs.lane, 2 * i + 1))); }
VEC_FN void vec_store_bf16(void *p, vec a)
{
    uint16_t bits[16];
    for (int i = 0; i < 16; i++) { bits[i] = f32_to_bf16(a.lane[i]); }
    memcpy(p, bits, sizeof(bits));
}
VEC_FN void vec_store_f16(void *p, vec a)
{
    uint16_t bits[16];
    for (int i = 0; i < 16; i++) { bits[i] = f32_to_f16(a.lane[i]); }
    memcpy(p, bits, sizeof(bits));
}

VEC_FN void vec_store_pairs(void *p, vec even, vec odd)
{
    uint16_t pairs[32];
    for (int i = 0; i < 16; i++) {
        pairs[2 * i] = f32_to_bf16(even.lane[i]);
        pairs[2 * i + 1] = f32_to_bf16(odd.lane[i]);
    }
    memcpy(p, pairs, sizeof(pairs));
}

VEC_FN vec vec_load_int8(const void *p) { VEC_EACH((float)((const int8_t *)p)[i]); }
VEC_FN vec vec_load_fp8_small(const void *p) { VEC_EACH(fp8_e4m3_to_f32(((const uint8_t *)p)[i]) * 0.00390625f); }
VEC_FN void vec_store_int8(void *p, vec a)
{
    for (int i = 0; i < 16; i++) { ((int8_t *)p)[i] = (int8_t)lrintf(a.lane[i]); }
}
VEC_FN void vec_store_fp8(void *p, vec a)
{
    for (int i = 0; i < 16; i++) { ((uint8_t *)p)[i] = f32_to_fp8_e4m3(a.lane[i]); }
}

#endif
