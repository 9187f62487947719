/* gemm_int_avx512vnni: integer products by vpdpbusd over 512 bits; run only where CPUID shows AVX512-VNNI. */
#include "kernels/cpu/gemm_int.h"

#include "kernels/cpu/vec_avx512.h"

#define INT_SYMBOL gemm_int_avx512vnni
#define INT_ISA "avx512vnni"
#define INT_WIDE 1
#define INT_X8_BIAS 128 /* the instruction takes one side unsigned */

typedef __m512i ivec;

VEC_FN ivec iv_set(int32_t a) { return _mm512_set1_epi32(a); }
VEC_FN ivec iv_load(const void *p) { return _mm512_loadu_si512(p); }
VEC_FN void iv_store(void *p, ivec a) { _mm512_storeu_si512(p, a); }
VEC_FN ivec iv_bytes(const void *p) { return _mm512_loadu_si512(p); }
VEC_FN ivec iv_sub(ivec a, ivec b) { return _mm512_sub_epi32(a, b); }
VEC_FN ivec iv_mul(ivec a, ivec b) { return _mm512_mullo_epi32(a, b); }
VEC_FN ivec iv_widen(const void *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
VEC_FN ivec iv_broadcast(const void *p)
{
    int32_t word;
    memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}
VEC_FN ivec iv_low(ivec a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
VEC_FN ivec iv_high(ivec a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
VEC_FN ivec iv_dot8(ivec sum, ivec x, ivec w) { return _mm512_dpbusd_epi32(sum, x, w); }
VEC_FN ivec iv_dot4(ivec sum, ivec w, ivec x) { return _mm512_dpbusd_epi32(sum, w, x); }
VEC_FN vec iv_to_vec(ivec a) { return _mm512_cvtepi32_ps(a); }
VEC_FN vec vec_fused(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }

#include "kernels/cpu/gemm_int_impl.h"
