/* gemm_int_avx2: integer products without VNNI. vpmaddubsw adds two products in 16 bits and would
 * saturate at 255 * 127 * 2; |x| * (w with x's sign) stays within 127 * 127 * 2 < 2^15, so it is exact. */
#include "kernels/cpu/gemm_int.h"

#include "kernels/cpu/int_avx2.h"

#define INT_SYMBOL gemm_int_avx2
#define INT_ISA "avx2"
#define INT_WIDE 0
#define INT_X8_BIAS 0

/* Products of unsigned u and signed s in fours; no pair of them may leave 16 bits. */
VEC_FN __m256i iv_dot_half(__m256i sum, __m256i u, __m256i s)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
VEC_FN ivec iv_dot8(ivec sum, ivec x, ivec w)
{
    return iv_pair(iv_dot_half(sum.lo, _mm256_abs_epi8(x.lo), _mm256_sign_epi8(w.lo, x.lo)),
                   iv_dot_half(sum.hi, _mm256_abs_epi8(x.hi), _mm256_sign_epi8(w.hi, x.hi)));
}
VEC_FN ivec iv_dot4(ivec sum, ivec w, ivec x) { return iv_pair(iv_dot_half(sum.lo, w.lo, x.lo), iv_dot_half(sum.hi, w.hi, x.hi)); }

#include "kernels/cpu/gemm_int_impl.h"
