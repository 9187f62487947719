/* set_impl: every operation of a set, written once over a vector of 16 f32 lanes.
 * Included by set_<isa>.c alone, after the vec_<isa>.h that brings `vec`, and after defining
 *   SET_SYMBOL, SET_ISA, SET_NAME   the table to make and its names
 *   GEMM_PANELS                     4 or 1: panels of W that a tile of the product holds beside 6 rows
 *   GEMM_BF16_DOT, gemm_dot()       see gemm_impl.h; optional
 *
 * What a vec_<isa>.h defines, lane by lane unless said:
 *   vec_zero, vec_set, vec_load, vec_store     any alignment
 *   vec_load_part, vec_store_part              the first `count` lanes (1..16); others 0, untouched
 *   vec_fma(a, b, c)                           a*b + c, fused or not by isa
 *   vec_add, vec_sub, vec_mul, vec_div
 *   vec_max(a, b), vec_min(a, b)               b where a or b is NaN
 *   vec_keep(a, from, to, other)               a in lanes from .. to-1, other elsewhere
 *   vec_abs, vec_if_negative(a, then, else)    else where a is NaN
 *   vec_power_of_two(n)                        2^n for whole -126 <= n <= 127; anything for NaN
 *   vec_sum, vec_max_lane                      lane i with i+8, then i+4, i+2, i+1
 *   vec_load_bf16, vec_load_f16                16 elements, element-aligned
 *   vec_even_bf16, vec_odd_bf16                elements 0,2.. or 1,3.. of the 32 whose bytes the argument
 *                                              holds: one shift or one mask, no shuffle
 *   vec_store_bf16, vec_store_f16              to nearest, ties to even
 *   vec_store_pairs(p, even, odd)              32 elements that bf16 holds exactly: what even and odd take apart
 *   vec_any_above(a, b)                        some lane of a is above b's; false for NaN
 *   vec_round(a)                               to a whole number, ties to even, for |a| < 2^22
 *   vec_times_power(a, n)                      a * 2^n for whole -126 <= n <= 127
 *   vec_load_int8, vec_load_fp8_small          16 codes of kv_layout.h; fp8 times 2^-8
 *   vec_store_int8, vec_store_fp8              to nearest, ties to even; |a| <= 127 or 448 */

#include <math.h>
#include <stdbool.h>

#include "kernels/cpu/set.h"
#include "kernels/cpu/set_lanes.h"

/* e^x within 1 ulp. x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts, of which n times the first is
 * exact; e^r = 1 + r + r^2 P(r), P our own minimax fit with relative error 3e-9; 2^n in two steps,
 * so that results below the normal range come out rounded. e^0 is exactly 1, e^-inf exactly 0, NaN
 * stays NaN. */
VEC_FN vec vec_exp(vec x)
{
    x = vec_max(vec_set(-104.0f), x); /* both keep a NaN: see vec_max */
    x = vec_min(vec_set(89.0f), x);
    const vec shift = vec_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    vec n = vec_sub(vec_add(vec_mul(x, vec_set(1.44269504f)), shift), shift);
    vec r = vec_sub(x, vec_mul(n, vec_set(0.693145752f)));
    r = vec_sub(r, vec_mul(n, vec_set(1.42860677e-6f)));
    vec poly = vec_set(0.00138144859f);
    poly = vec_fma(poly, r, vec_set(0.00836878084f));
    poly = vec_fma(poly, r, vec_set(0.0416683927f));
    poly = vec_fma(poly, r, vec_set(0.166665196f));
    poly = vec_fma(poly, r, vec_set(0.49999994f));
    vec e = vec_add(vec_fma(vec_mul(r, r), poly, r), vec_set(1.0f));
    vec half = vec_sub(vec_add(vec_mul(n, vec_set(0.5f)), shift), shift);
    return vec_mul(vec_mul(e, vec_power_of_two(half)), vec_power_of_two(vec_sub(n, half)));
}

#include "kernels/cpu/gemm_impl.h"
#include "kernels/cpu/attention_impl.h"
#include "kernels/cpu/rows_impl.h"
#include "kernels/cpu/kv_write_impl.h"

const struct cpu_set SET_SYMBOL = {
    .isa_name = SET_ISA,
    .set_name = SET_NAME,
    .gemm = {gemm_piece, gemm_piece, gemm_piece},
    .attention = attention_piece,
    .attention_join = attention_join_piece,
    .rmsnorm = rmsnorm_rows,
    .layernorm = layernorm_rows,
    .rope = rope_rows,
    .embed = embed_rows,
    .kv_write = kv_write_rows,
    .silu_mul = silu_mul_row,
    .gelu = gelu_row,
    .mul = mul_row,
};
