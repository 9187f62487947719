/* gemm_int_avxvnni: integer products by vpdpbusd over 256 bits, for CPUs with AVX-VNNI and no AVX-512. */
#include "kernels/cpu/gemm_int.h"

#include "kernels/cpu/int_avx2.h"

#define INT_SYMBOL gemm_int_avxvnni
#define INT_ISA "avxvnni"
#define INT_WIDE 0
#define INT_X8_BIAS 128

VEC_FN ivec iv_dot8(ivec sum, ivec x, ivec w)
{
    return iv_pair(_mm256_dpbusd_avx_epi32(sum.lo, x.lo, w.lo), _mm256_dpbusd_avx_epi32(sum.hi, x.hi, w.hi));
}
VEC_FN ivec iv_dot4(ivec sum, ivec w, ivec x) { return iv_dot8(sum, w, x); }

#include "kernels/cpu/gemm_int_impl.h"
