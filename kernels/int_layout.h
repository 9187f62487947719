/* int_layout: where the bytes of an int8 or int4 weight matrix lie; matrix.h for the rest.
 * Flow:    quantize (writes) -> [int_layout] -> matrix, kernels/ref, kernels/cpu/gemm_int (read)
 * Thread:  any; plain arithmetic.
 * Memory:  none. Data is 64-byte aligned, the same on every machine (it goes into a pack file), and
 *          n_out is padded to panels of 16, n_in to the k step, with zeros that change no sum.
 *
 * INT8, symmetric, one scale per output: weight = scale * code, code in -127 .. 127.
 *   A panel is [k/4][16][4] s8; k is padded to 64, a tile's depth. Then f32 scale[16], then i32 sum[16]
 *   of the codes of each output: a dot product of u8 with s8 takes activations as code + 128, and 128
 *   times that sum is what it then has too much.
 *
 * INT4, one scale (and zero point) per output and group of `group` inputs: weight = scale * (code -
 * zero), code in 0 .. 15, zero 8 unless the matrix has its own.
 *   A panel is a run of blocks of INT4_BLOCK_GROUPS groups: f16 scales[4][16], then u8 zeros[4][16]
 *   where the matrix has zeros, then per group [group/8][16][4 bytes], low nibbles k 0..3 and high
 *   nibbles k 4..7 of the 8. The last block keeps its whole head but only the groups there are. So a
 *   panel is one straight run of whole cache lines. Where inputs were grouped out of order (GPTQ's
 *   act-order), u32 order[k padded] follows the panels: input order[k] of x meets code k; padding
 *   names n_in. */
#ifndef BATON_KERNELS_INT_LAYOUT_H
#define BATON_KERNELS_INT_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/matrix.h"

#define INT8_K_STEP 64u
#define INT4_BLOCK_GROUPS 4u
#define INT4_SCALES_BYTES (INT4_BLOCK_GROUPS * KERNELS_PANEL * 2u)
#define INT4_ZEROS_BYTES (INT4_BLOCK_GROUPS * KERNELS_PANEL)
#define INT4_ZERO_SYMMETRIC 8

/* ---- int8 ---------------------------------------------------------------------------------- */

static inline uint32_t int8_k(uint32_t n_in) { return (n_in + INT8_K_STEP - 1) / INT8_K_STEP * INT8_K_STEP; }
/* In a panel: of scale[16] and of sum[16]. */
static inline size_t int8_scales_at(uint32_t n_in) { return (size_t)int8_k(n_in) * KERNELS_PANEL; }
static inline size_t int8_sums_at(uint32_t n_in) { return int8_scales_at(n_in) + KERNELS_PANEL * 4; }
static inline size_t int8_panel_bytes(uint32_t n_in) { return int8_sums_at(n_in) + KERNELS_PANEL * 4; }
/* In a panel: of the code of output `index` (0..15) and input k. */
static inline size_t int8_code_at(uint32_t index, uint32_t k) { return (size_t)(k / 4) * 64 + index * 4 + k % 4; }

/* ---- int4 ---------------------------------------------------------------------------------- */

static inline uint32_t int4_groups(const struct kernels_matrix *m) { return m->n_in / m->group + (m->n_in % m->group != 0); }
static inline uint32_t int4_k(const struct kernels_matrix *m) { return int4_groups(m) * m->group; }
static inline size_t int4_head_bytes(const struct kernels_matrix *m)
{
    return INT4_SCALES_BYTES + (m->has_zeros ? INT4_ZEROS_BYTES : 0);
}
static inline size_t int4_group_bytes(const struct kernels_matrix *m) { return (size_t)m->group * (KERNELS_PANEL / 2); }
static inline size_t int4_block_bytes(const struct kernels_matrix *m)
{
    return int4_head_bytes(m) + INT4_BLOCK_GROUPS * int4_group_bytes(m);
}
static inline size_t int4_panel_bytes(const struct kernels_matrix *m)
{
    uint32_t groups = int4_groups(m), blocks = (groups + INT4_BLOCK_GROUPS - 1) / INT4_BLOCK_GROUPS;
    return blocks * int4_head_bytes(m) + groups * int4_group_bytes(m);
}
static inline size_t int4_order_bytes(const struct kernels_matrix *m) { return m->has_order ? (size_t)int4_k(m) * 4 : 0; }
/* In a panel: of the first byte of a group's codes, of its scales[16] and of its zeros[16]. */
static inline size_t int4_codes_at(const struct kernels_matrix *m, uint32_t group)
{
    return group / INT4_BLOCK_GROUPS * int4_block_bytes(m) + int4_head_bytes(m) + group % INT4_BLOCK_GROUPS * int4_group_bytes(m);
}
static inline size_t int4_scales_at(const struct kernels_matrix *m, uint32_t group)
{
    return group / INT4_BLOCK_GROUPS * int4_block_bytes(m) + (size_t)(group % INT4_BLOCK_GROUPS) * KERNELS_PANEL * 2;
}
static inline size_t int4_zeros_at(const struct kernels_matrix *m, uint32_t group)
{
    return group / INT4_BLOCK_GROUPS * int4_block_bytes(m) + INT4_SCALES_BYTES + (size_t)(group % INT4_BLOCK_GROUPS) * KERNELS_PANEL;
}

#endif
