/* gemm_int_scalar: integer products in plain C, for any machine. */
#include "kernels/cpu/gemm_int.h"

#include "kernels/cpu/vec_scalar.h"

#define INT_SYMBOL gemm_int_scalar
#define INT_ISA "scalar"
#define INT_WIDE 0
#define INT_X8_BIAS 0

typedef union {
    int32_t lane[16];
    int8_t s[64];
    uint8_t u[64];
} ivec;

#define IVEC_EACH(expression)                                   \
    ivec r_;                                                    \
    for (int i = 0; i < 16; i++) { r_.lane[i] = (expression); } \
    return r_

/* Sums wrap in the other sets; here none comes near to it, since codes carry no bias. */
VEC_FN ivec iv_set(int32_t a) { IVEC_EACH(a); }
VEC_FN ivec iv_load(const void *p)
{
    ivec a;
    memcpy(&a, p, sizeof(a));
    return a;
}
VEC_FN void iv_store(void *p, ivec a) { memcpy(p, &a, sizeof(a)); }
VEC_FN ivec iv_bytes(const void *p) { return iv_load(p); }
VEC_FN ivec iv_sub(ivec a, ivec b) { IVEC_EACH(a.lane[i] - b.lane[i]); }
VEC_FN ivec iv_mul(ivec a, ivec b) { IVEC_EACH(a.lane[i] * b.lane[i]); }
VEC_FN ivec iv_widen(const void *p) { IVEC_EACH(((const uint8_t *)p)[i]); }
VEC_FN ivec iv_broadcast(const void *p)
{
    int32_t word;
    memcpy(&word, p, 4);
    return iv_set(word);
}
VEC_FN ivec iv_low(ivec a)
{
    for (int i = 0; i < 64; i++) { a.u[i] &= 15; }
    return a;
}
VEC_FN ivec iv_high(ivec a)
{
    for (int i = 0; i < 64; i++) { a.u[i] >>= 4; }
    return a;
}
VEC_FN ivec iv_dot8(ivec sum, ivec x, ivec w)
{
    IVEC_EACH(sum.lane[i] + x.s[4 * i] * w.s[4 * i] + x.s[4 * i + 1] * w.s[4 * i + 1] + x.s[4 * i + 2] * w.s[4 * i + 2]
              + x.s[4 * i + 3] * w.s[4 * i + 3]);
}
VEC_FN ivec iv_dot4(ivec sum, ivec w, ivec x) { return iv_dot8(sum, x, w); }
VEC_FN vec iv_to_vec(ivec a) { VEC_EACH((float)a.lane[i]); }
VEC_FN vec vec_fused(vec a, vec b, vec c) { VEC_EACH(fmaf(a.lane[i], b.lane[i], c.lane[i])); }

#include "kernels/cpu/gemm_int_impl.h"
