/* int_avx2: the integer lanes of gemm_int_impl.h in two registers, but for the dot products. */
#ifndef BATON_KERNELS_CPU_INT_AVX2_H
#define BATON_KERNELS_CPU_INT_AVX2_H

#include "kernels/cpu/vec_avx2.h"

typedef struct {
    __m256i lo, hi;
} ivec;

VEC_FN ivec iv_pair(__m256i lo, __m256i hi)
{
    ivec a = {lo, hi};
    return a;
}
VEC_FN ivec iv_set(int32_t a) { return iv_pair(_mm256_set1_epi32(a), _mm256_set1_epi32(a)); }
VEC_FN ivec iv_load(const void *p)
{
    const __m256i *q = (const __m256i *)p;
    return iv_pair(_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1));
}
VEC_FN void iv_store(void *p, ivec a)
{
    __m256i *q = (__m256i *)p;
    _mm256_storeu_si256(q, a.lo);
    _mm256_storeu_si256(q + 1, a.hi);
}
VEC_FN ivec iv_bytes(const void *p) { return iv_load(p); }
VEC_FN ivec iv_sub(ivec a, ivec b) { return iv_pair(_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)); }
VEC_FN ivec iv_mul(ivec a, ivec b) { return iv_pair(_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)); }
VEC_FN ivec iv_widen(const void *p)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return iv_pair(_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)));
}
VEC_FN ivec iv_broadcast(const void *p)
{
    int32_t word;
    memcpy(&word, p, 4);
    return iv_set(word);
}
VEC_FN ivec iv_low(ivec a)
{
    __m256i mask = _mm256_set1_epi8(15);
    return iv_pair(_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask));
}
VEC_FN ivec iv_high(ivec a)
{
    __m256i mask = _mm256_set1_epi8(15);
    return iv_pair(_mm256_and_si256(_mm256_srli_epi16(a.lo, 4), mask), _mm256_and_si256(_mm256_srli_epi16(a.hi, 4), mask));
}
VEC_FN vec iv_to_vec(ivec a) { return vec_pair(_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)); }
VEC_FN vec vec_fused(vec a, vec b, vec c) { return vec_fma(a, b, c); }

#endif
