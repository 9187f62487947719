/* vec_avx2: the 16 lanes of set_impl.h in two registers. Needs AVX2, FMA, F16C.
 * What each function means is said in set_impl.h. Lane for lane the operations of vec_avx512.h. */
#ifndef BATON_KERNELS_CPU_VEC_AVX2_H
#define BATON_KERNELS_CPU_VEC_AVX2_H

#include <immintrin.h>

#include "kernels/cpu/vec_common.h"

typedef struct {
    __m256 lo, hi;
} vec;

VEC_FN vec vec_pair(__m256 lo, __m256 hi)
{
    vec a = {lo, hi};
    return a;
}
VEC_FN vec vec_zero(void) { return vec_pair(_mm256_setzero_ps(), _mm256_setzero_ps()); }
VEC_FN vec vec_set(float a) { return vec_pair(_mm256_set1_ps(a), _mm256_set1_ps(a)); }
VEC_FN vec vec_load(const float *p) { return vec_pair(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
VEC_FN __m256i vec_mask8(uint32_t count, int first)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count - first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VEC_FN vec vec_load_part(const float *p, uint32_t count)
{
    return vec_pair(_mm256_maskload_ps(p, vec_mask8(count, 0)), _mm256_maskload_ps(p + 8, vec_mask8(count, 8)));
}
VEC_FN void vec_store(float *p, vec a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
VEC_FN void vec_store_part(float *p, vec a, uint32_t count)
{
    _mm256_maskstore_ps(p, vec_mask8(count, 0), a.lo);
    _mm256_maskstore_ps(p + 8, vec_mask8(count, 8), a.hi);
}
VEC_FN vec vec_fma(vec a, vec b, vec c)
{
    return vec_pair(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
VEC_FN vec vec_add(vec a, vec b) { return vec_pair(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
VEC_FN vec vec_sub(vec a, vec b) { return vec_pair(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
VEC_FN vec vec_mul(vec a, vec b) { return vec_pair(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
VEC_FN vec vec_div(vec a, vec b) { return vec_pair(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)); }
VEC_FN vec vec_max(vec a, vec b) { return vec_pair(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
VEC_FN vec vec_min(vec a, vec b) { return vec_pair(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)); }
VEC_FN vec vec_keep(vec a, uint32_t from, uint32_t to, float other)
{
    __m256 o = _mm256_set1_ps(other);
    __m256i lo = _mm256_andnot_si256(vec_mask8(from, 0), vec_mask8(to, 0));
    __m256i hi = _mm256_andnot_si256(vec_mask8(from, 8), vec_mask8(to, 8));
    return vec_pair(_mm256_blendv_ps(o, a.lo, _mm256_castsi256_ps(lo)), _mm256_blendv_ps(o, a.hi, _mm256_castsi256_ps(hi)));
}
VEC_FN vec vec_abs(vec a)
{
    __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return vec_pair(_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask));
}
VEC_FN vec vec_if_negative(vec a, vec then, vec otherwise)
{
    __m256 zero = _mm256_setzero_ps();
    return vec_pair(_mm256_blendv_ps(otherwise.lo, then.lo, _mm256_cmp_ps(a.lo, zero, _CMP_LT_OQ)),
                    _mm256_blendv_ps(otherwise.hi, then.hi, _mm256_cmp_ps(a.hi, zero, _CMP_LT_OQ)));
}

VEC_FN __m256 vec_power8(__m256 n)
{
    __m256i bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}
VEC_FN vec vec_power_of_two(vec n) { return vec_pair(vec_power8(n.lo), vec_power8(n.hi)); }

VEC_FN bool vec_any_above(vec a, vec b)
{
    __m256 above = _mm256_or_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ));
    return _mm256_movemask_ps(above) != 0;
}
VEC_FN vec vec_round(vec a)
{
    return vec_pair(_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                    _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC_FN vec vec_times_power(vec a, vec n) { return vec_mul(a, vec_power_of_two(n)); }

VEC_FN float vec_sum(vec a)
{
    __m256 b = _mm256_add_ps(a.lo, a.hi);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    c = _mm_add_ss(c, _mm_shuffle_ps(c, c, 1));
    return _mm_cvtss_f32(c);
}

VEC_FN float vec_max_lane(vec a)
{
    __m256 b = _mm256_max_ps(a.lo, a.hi);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    c = _mm_max_ss(c, _mm_shuffle_ps(c, c, 1));
    return _mm_cvtss_f32(c);
}

VEC_FN __m256 vec_bf16x8(__m128i bits)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
VEC_FN vec vec_load_bf16(const void *p)
{
    const __m128i *q = (const __m128i *)p;
    return vec_pair(vec_bf16x8(_mm_loadu_si128(q)), vec_bf16x8(_mm_loadu_si128(q + 1)));
}
VEC_FN vec vec_load_f16(const void *p)
{
    const __m128i *q = (const __m128i *)p;
    return vec_pair(_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1)));
}
VEC_FN __m256 vec_even8(__m256 pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16)); }
VEC_FN vec vec_even_bf16(vec pairs) { return vec_pair(vec_even8(pairs.lo), vec_even8(pairs.hi)); }
VEC_FN vec vec_odd_bf16(vec pairs)
{
    __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000));
    return vec_pair(_mm256_and_ps(pairs.lo, mask), _mm256_and_ps(pairs.hi, mask));
}

VEC_FN __m256i vec_to_bf16x8(__m256 a)
{
    __m256i bits = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
VEC_FN void vec_store_bf16(void *p, vec a)
{
    __m256i packed = _mm256_packus_epi32(vec_to_bf16x8(a.lo), vec_to_bf16x8(a.hi));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
VEC_FN void vec_store_f16(void *p, vec a)
{
    __m128i *q = (__m128i *)p;
    _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

VEC_FN __m256i vec_pairs8(__m256 even, __m256 odd)
{
    return _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd), 0xaa);
}
VEC_FN void vec_store_pairs(void *p, vec even, vec odd)
{
    _mm256_storeu_si256((__m256i *)p, vec_pairs8(even.lo, odd.lo));
    _mm256_storeu_si256((__m256i *)p + 1, vec_pairs8(even.hi, odd.hi));
}

VEC_FN vec vec_load_int8(const void *p)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return vec_pair(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))));
}
VEC_FN vec vec_load_fp8_small(const void *p) /* see vec_avx512.h */
{
    __m256i bits = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)), 7);
    bits = _mm256_and_si256(bits, _mm256_set1_epi16((short)0xbfff));
    return vec_pair(_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1)));
}
/* The low bytes of 16 words. */
VEC_FN void vec_store_bytes(void *p, __m256i lo, __m256i hi)
{
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
    words = _mm256_and_si256(words, _mm256_set1_epi16(0xff));
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
VEC_FN void vec_store_int8(void *p, vec a) { vec_store_bytes(p, _mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)); }
VEC_FN __m256i vec_to_fp8x8(__m256 a) /* see vec_avx512.h */
{
    __m256i bits = _mm256_castps_si256(a), magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(magnitude, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
    __m256i code = _mm256_sub_epi32(_mm256_srli_epi32(rounded, 20), _mm256_set1_epi32(120 << 3));
    __m256i small = _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(24576.0f)));
    small = _mm256_and_si256(small, _mm256_set1_epi32(0xff));
    code = _mm256_blendv_epi8(code, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), magnitude));
    return _mm256_or_si256(code, _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80)));
}
VEC_FN void vec_store_fp8(void *p, vec a) { vec_store_bytes(p, vec_to_fp8x8(a.lo), vec_to_fp8x8(a.hi)); }

#endif
