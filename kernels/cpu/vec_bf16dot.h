/* vec_bf16dot: AVX512-BF16's dot product over the lanes of vec_avx512.h, for the sets that round to bf16.
 * Each lane holds two bf16, of which the one at the lower address is the even one. */
#ifndef BATON_KERNELS_CPU_VEC_BF16DOT_H
#define BATON_KERNELS_CPU_VEC_BF16DOT_H

#include "kernels/cpu/vec_avx512.h"

#define VEC_BF16_DOT 1

/* sum + a.odd * b.odd + a.even * b.even, lane by lane, in the order that the instruction fixes. It
 * takes subnormal numbers for 0. */
VEC_FN vec vec_dot(vec sum, vec a, vec b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

/* The pair at p in every lane. */
VEC_FN vec vec_set_pair(const void *p)
{
    int pair;
    memcpy(&pair, p, 4);
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
}

/* 16 values to bf16, to nearest, ties to even; subnormal ones to 0. */
VEC_FN void vec_round_bf16(void *p, vec a)
{
    __m256bh rounded = _mm512_cvtneps_pbh(a);
    memcpy(p, &rounded, 32);
}

#endif
