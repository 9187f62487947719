/* ref_int: the oracle of products with int8 and int4 weights, in the order that gemm_int.h fixes: other
 * sets must have its bits, not only its values.
 * Flow:    ref's gemm, tests -> [ref_int]
 * Thread:  any.
 * Memory:  a row of codes on the heap during a call. */
#ifndef BATON_KERNELS_REF_REF_INT_H
#define BATON_KERNELS_REF_REF_INT_H

#include "kernels/kernels.h"

/* g's weight is INT8 or INT4. */
void ref_int_gemm(const struct kernels_gemm *g);

#endif
