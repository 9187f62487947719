/* gemm_amx: pieces of a product with bf16 weights on AMX tiles.
 * Flow:    cpu_backend (which puts one in the place of set_avx512bf16's) -> [gemm_amx]
 * Thread:  any; see set.h.
 * Memory:  a worker's scratch, lent for the call.
 *
 * It errs as set_avx512bf16 does, by up to 2^-8 of an element's sum of |x w|: both round x to bf16. */
#ifndef BATON_KERNELS_CPU_GEMM_AMX_H
#define BATON_KERNELS_CPU_GEMM_AMX_H

#include "kernels/cpu/set.h"

/* On the hardware; the system must have granted the tiles: see amx_check.h. */
void gemm_amx_piece(const struct set_gemm_piece *piece, struct set_scratch *scratch);

/* The same text over tiles worked out in C: for tests, and to check the hardware with. */
void gemm_amx_emulated_piece(const struct set_gemm_piece *piece, struct set_scratch *scratch);

#endif
