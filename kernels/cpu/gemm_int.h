/* gemm_int: products with int8 and int4 weights, for one instruction set.
 * Flow:    cpu_backend (plans pieces, runs them on the pool) -> [gemm_int] -> gemm_int_<isa>.c
 * Thread:  any; two pieces of one job never write the same memory.
 * Memory:  a worker's scratch, lent for the call.
 *
 * Exactness. Activations are rounded to codes as quantize_x.h says, a row (int8) or a group of a row
 * (int4) at a time. Products of codes are summed as integers: exact, so any order gives the same bits.
 *   int8  value = (x_scale * w_scale) * (float)sum. |sum| <= 131072 * 127 * 127 < 2^31.
 *   int4  value = 0; for each group in order: value = fma((float)sum, x_scale * w_scale, value), where
 *         sum takes code - zero of the weight. |sum| <= 128 * 127 * 15.
 * Then the bias is added, then the old value of out. Each float operation is rounded once and fused
 * only where fma is written; so all sets, `ref` too, give the same bits, for any number of rows. */
#ifndef BATON_KERNELS_CPU_GEMM_INT_H
#define BATON_KERNELS_CPU_GEMM_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "kernels/int_layout.h"
#include "kernels/kernels.h"

#define GEMM_INT_ROWS_MAX 252u           /* of one piece: whole tiles of 12, 6 and 3 rows */
#define GEMM_INT_CODES_BYTES (1u << 21)  /* of a piece's rows */
#define GEMM_INT_CODES_ROOM (1u << 22)   /* and of up to 15 more, and a line a row, that fill up tiles of AMX */
#define GEMM_INT_PANELS_MAX 4u           /* that share a pass over the rows */
#define GEMM_INT_DEPTH 512u              /* inputs of a pass where there are several tiles of rows; whole blocks of groups */

/* What one worker owns; contents mean nothing between jobs, save that x_* say what `codes` holds. */
struct gemm_int_scratch {
    uint8_t *codes;   /* GEMM_INT_CODES_ROOM, 64-byte aligned */
    float *scales;    /* [rows], or int4: [tile][group][row of the tile] */
    int32_t *sums;    /* int4: minus the sum of a group's codes, like scales */
    void *parked;     /* [panel][row][16] unfinished sums between depths */
    const float *x;   /* NULL: nothing */
    const uint32_t *x_order;
    uint32_t x_row_first, x_rows, x_in, x_group; /* group 0: int8; GEMM_INT_BY_ROW: int8, row after row */
};

#define GEMM_INT_BY_ROW UINT32_MAX

#define GEMM_INT_SCALES_BYTES (GEMM_INT_CODES_BYTES / 32 * 4)
#define GEMM_INT_PARKED_BYTES ((size_t)GEMM_INT_PANELS_MAX * GEMM_INT_ROWS_MAX * 64)
#define GEMM_INT_SCRATCH_BYTES ((size_t)GEMM_INT_CODES_ROOM + 2 * GEMM_INT_SCALES_BYTES + GEMM_INT_PARKED_BYTES)

/* Cuts `memory` (GEMM_INT_SCRATCH_BYTES, 64-byte aligned) into a scratch that holds nothing. */
void gemm_int_scratch_init(struct gemm_int_scratch *scratch, void *memory);

/* Rows of a piece that fit the scratch, 1 .. GEMM_INT_ROWS_MAX. */
uint32_t gemm_int_rows_max(const struct kernels_matrix *weight);

struct gemm_int_set {
    const char *isa_name;
    /* out[rows row_first..][16 outs of each panel panel_first..] of a product whose weight is INT8 or
     * INT4. rows <= gemm_int_rows_max(); any number of panels of the matrix. */
    void (*piece)(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t panel_first, uint32_t panels,
                  struct gemm_int_scratch *scratch);
};

extern const struct gemm_int_set gemm_int_scalar;
#if defined(__x86_64__)
extern const struct gemm_int_set gemm_int_avx2;
extern const struct gemm_int_set gemm_int_avxvnni;
extern const struct gemm_int_set gemm_int_avx512vnni;
/* int8 with more than a few rows on AMX tiles, the rest as avx512vnni; the tiles in hardware, whose use the
 * system must have granted, or worked out in C. */
extern const struct gemm_int_set gemm_int_amx;
extern const struct gemm_int_set gemm_int_amx_emulated;
#endif

/* The best of this machine's among those that `isa`, as kernels_config has it, may use: scalar uses scalar;
 * avx2 what needs no AVX-512; avx512 and avx512bf16 no tiles; amx-emulated its namesake; the others all. They
 * give equal bits, so this is no part of a set's name. */
const struct gemm_int_set *gemm_int_pick(const char *isa);

/* This machine's sets, best first; NULL past the last. */
const struct gemm_int_set *gemm_int_available(uint32_t index);

#endif
