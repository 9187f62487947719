/* set_avx512bf16: AVX-512 with BF16: bf16 weights meet activations rounded to bf16 in vdpbf16ps. */
#include "kernels/cpu/vec_avx512.h"

#define SET_SYMBOL set_avx512bf16
#define SET_ISA "avx512bf16"
#define SET_NAME "cpu-bf16dot-v1"
#define GEMM_TILE_OUTS 4
#define GEMM_BF16_DOT 1

VEC_FN vec gemm_dot(const unsigned char *weights, const float *x, vec sum)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(weights), (__m512bh)_mm512_loadu_si512(x));
}

#include "kernels/cpu/set_impl.h"
