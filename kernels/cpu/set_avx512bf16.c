/* set_avx512bf16: AVX-512 with BF16: bf16 weights meet activations rounded to bf16 in vdpbf16ps,
 * two products a lane, and so do q and the weights of attention.
 *
 * Why a set of its own, that "auto" picks only under KERNELS_COMPUTE_BF16: it rounds each activation of
 * a product to 8 significant bits, so an element errs by up to 2^-8 of its sum of |x w| where the f32
 * sets err by some 1e-6 of it as a rule. Served models were trained under just this rounding, and most
 * servers do it. What it bought on one core of a Zen 5 (bench/kernels, Llama-3.2-1B qkv 3072 x 2048):
 * 403 against 209 GFLOP/s at 512 rows, 270 against 186 at 8 rows; at one row both read at memory speed.
 *
 * What was ruled out: writing an f32 activation exactly as three bf16 takes three vdpbf16ps per 32
 * products where f32 takes two fused multiply-adds, and two bf16 (16 bits) take as many. vcvtneps2bf16
 * for the KV write flushes subnormals, which the rounding of every other set keeps. */
#include "kernels/cpu/vec_bf16dot.h"

#define SET_SYMBOL set_avx512bf16
#define SET_ISA "avx512bf16"
#define SET_NAME "cpu-bf16dot-v2"
#define GEMM_PANELS 4
#define GEMM_BF16_DOT 1

/* Lane i adds the products of a pair of its weights and the pair in x, in the order that the instruction fixes. */
VEC_FN vec gemm_dot(vec weights, vec x, vec sum) { return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x); }

#include "kernels/cpu/set_impl.h"
