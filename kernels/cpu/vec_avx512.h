/* vec_avx512: the 16 lanes of set_impl.h in one register. Needs F, BW, DQ, VL.
 * What each function means is said in set_impl.h. */
#ifndef BATON_KERNELS_CPU_VEC_AVX512_H
#define BATON_KERNELS_CPU_VEC_AVX512_H

#include <immintrin.h>

#include "kernels/cpu/vec_common.h"

typedef __m512 vec;

VEC_FN vec vec_zero(void) { return _mm512_setzero_ps(); }
VEC_FN vec vec_set(float a) { return _mm512_set1_ps(a); }
VEC_FN vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
VEC_FN __mmask16 vec_mask(uint32_t count) { return (__mmask16)((1u << count) - 1u); }
VEC_FN vec vec_load_part(const float *p, uint32_t count) { return _mm512_maskz_loadu_ps(vec_mask(count), p); }
VEC_FN void vec_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
VEC_FN void vec_store_part(float *p, vec a, uint32_t count) { _mm512_mask_storeu_ps(p, vec_mask(count), a); }
VEC_FN vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
VEC_FN vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
VEC_FN vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
VEC_FN vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
VEC_FN vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
VEC_FN vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
VEC_FN vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
VEC_FN vec vec_keep(vec a, uint32_t from, uint32_t to, float other)
{
    __mmask16 keep = (__mmask16)(((1u << to) - 1u) & ~((1u << from) - 1u));
    return _mm512_mask_blend_ps(keep, _mm512_set1_ps(other), a);
}
VEC_FN vec vec_abs(vec a) { return _mm512_abs_ps(a); }
VEC_FN vec vec_if_negative(vec a, vec then, vec otherwise)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_LT_OQ), otherwise, then);
}

VEC_FN vec vec_power_of_two(vec n)
{
    __m512i bits = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
}

VEC_FN bool vec_any_above(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
VEC_FN vec vec_round(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
VEC_FN vec vec_times_power(vec a, vec n) { return _mm512_scalef_ps(a, n); }

VEC_FN float vec_sum(vec a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    c = _mm_add_ss(c, _mm_shuffle_ps(c, c, 1));
    return _mm_cvtss_f32(c);
}

VEC_FN float vec_max_lane(vec a)
{
    __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    c = _mm_max_ss(c, _mm_shuffle_ps(c, c, 1));
    return _mm_cvtss_f32(c);
}

VEC_FN vec vec_load_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
VEC_FN vec vec_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
VEC_FN vec vec_even_bf16(vec pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs), 16)); }
VEC_FN vec vec_odd_bf16(vec pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32((int)0xffff0000)));
}

VEC_FN void vec_store_bf16(void *p, vec a)
{
    __m512i bits = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
VEC_FN void vec_store_f16(void *p, vec a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

VEC_FN void vec_store_pairs(void *p, vec even, vec odd)
{
    __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    __m512i high = _mm512_and_si512(_mm512_castps_si512(odd), _mm512_set1_epi32((int)0xffff0000));
    _mm512_storeu_si512(p, _mm512_or_si512(low, high));
}

VEC_FN vec vec_load_int8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
/* As f16, whose exponent is biased by 8 more: the same value times 2^-8, subnormal ones as well. */
VEC_FN vec vec_load_fp8_small(const void *p)
{
    __m256i bits = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)), 7);
    return _mm512_cvtph_ps(_mm256_and_si256(bits, _mm256_set1_epi16((short)0xbfff)));
}
VEC_FN void vec_store_int8(void *p, vec a)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}
/* Below 2^-6 codes are multiples of 2^-9: adding 1.5 * 2^14, whose last bit is worth that, rounds to one. */
VEC_FN void vec_store_fp8(void *p, vec a)
{
    __m512i bits = _mm512_castps_si512(a), magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(magnitude, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff)));
    __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(rounded, 20), _mm512_set1_epi32(120 << 3));
    __m512i small = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(24576.0f)));
    __mmask16 is_small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x3c800000));
    code = _mm512_mask_and_epi32(code, is_small, small, _mm512_set1_epi32(0xff));
    code = _mm512_or_si512(code, _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80)));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(code));
}

#endif
