/* set: the operations of kernels.h for one instruction set, cut into pieces.
 * Flow:    cpu_backend (plans, runs pieces on the pool) -> [set] -> set_<isa>.c
 * Thread:  any; two pieces of one job never write the same memory.
 * Memory:  a worker's scratch, lent for the call.
 *
 * set_impl.h is the one text of all of them, over a vector type of 16 lanes; set_<isa>.c says how
 * that isa does the 16 lanes. Since the lanes, their order and the use of fused multiply-add are
 * those of the text, avx2 and avx512 give equal bits; scalar does not fuse and stands alone. */
#ifndef BATON_KERNELS_CPU_SET_H
#define BATON_KERNELS_CPU_SET_H

#include "kernels/cpu/gemm_int.h"
#include "kernels/kernels.h"

/* Attention: see attention_impl.h. Both are part of the order of arithmetic. */
#define SET_STEP_TOKENS 64u     /* of one step of the online softmax */
#define SET_SEGMENT_TOKENS 512u /* of one softmax of its own; a multiple of a step */
#define SET_QUERIES_MAX 32u     /* query rows x heads that share a K/V read */

/* Products with more rows are cut into blocks of rows that share one packed copy of x. */
#define SET_GEMM_ROWS_MAX 252u
#define SET_GEMM_PANELS_MAX 16u   /* of a piece with more than a few rows: their unfinished sums stay in L2 */
#define SET_GEMM_PACK_ROWS_MIN 12u /* fit the pack at any depth */
#define SET_GEMM_PACK_BYTES ((size_t)SET_GEMM_PACK_ROWS_MIN * (KERNELS_GEMM_IN_MAX * sizeof(float) + 64) + 64)

/* What one worker owns. Contents mean nothing between jobs, save that pack_* says what `pack` holds. */
struct set_scratch {
    unsigned char *pack; /* SET_GEMM_PACK_BYTES, 64-byte aligned: rows of x as the tiles read them */
    float *sums;       /* SET_SUMS_FLOATS, 64-byte aligned: unfinished sums between depth blocks */
    float *attention;  /* SET_ATTENTION_FLOATS */
    const float *pack_x; /* NULL: nothing */
    uint32_t pack_row_first;
    uint32_t pack_rows;
    uint32_t pack_in;
    enum kernels_weight pack_format;
    struct gemm_int_scratch integers; /* products with INT8 and INT4 weights */
};

/* Rows and panels of one product. */
struct set_gemm_piece {
    const struct kernels_gemm *g;
    uint32_t row_first, rows;
    uint32_t panel_first, panels;
};

#define SET_SUMS_FLOATS ((size_t)((SET_GEMM_ROWS_MAX + 31) / 32 * 32) * SET_GEMM_PANELS_MAX * KERNELS_PANEL) /* whole tiles of AMX */
/* q twice, sums twice; K and V of a step; weights of a block twice; weights and maxima. */
#define SET_ATTENTION_FLOATS                                                                            \
    ((size_t)(4 * SET_QUERIES_MAX + 2 * SET_STEP_TOKENS) * KERNELS_HEAD_DIM_MAX + 8 * SET_STEP_TOKENS \
     + 24 * SET_QUERIES_MAX)

/* The softmax of one segment of one query: its sums, then what they are relative to and their weight. */
#define SET_PARTIAL_FLOATS(dim_up) ((size_t)(dim_up) + 16)

/* Query rows [row_first, row_first + rows) of a sequence, and of the kv heads [kv_head, kv_head +
 * kv_heads) the query heads [head_first, head_first + heads) of each; rows * heads * kv_heads <=
 * SET_QUERIES_MAX. A query's number is (kv head * rows + row) * heads + head, each counted in the tile.
 * Segments that they do not see may be among those named. */
struct set_attention_tile {
    uint32_t row_first, rows;
    uint32_t kv_head, kv_heads;
    uint32_t head_first, heads;
    uint32_t segment_first, segments;
};

struct cpu_set {
    const char *isa_name;
    const char *set_name;
    /* By the weights' format, INT8 and INT4 aside: see gemm_int.h. What of x the rows span fits the pack; rows <= SET_GEMM_ROWS_MAX; panels
     * <= SET_GEMM_PANELS_MAX with more than SET_GEMM_PACK_ROWS_MIN rows, any number with fewer. */
    void (*gemm[KERNELS_WEIGHT_COUNT])(const struct set_gemm_piece *piece, struct set_scratch *scratch);
    /* With partial NULL, the segments are all that the tile sees, and its outputs are written; else
     * nothing but partial[segments][queries][SET_PARTIAL_FLOATS], for attention_join to make outputs of. */
    void (*attention)(const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                      const struct set_attention_tile *tile, float *partial, float *scratch);
    void (*attention_join)(const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                           const struct set_attention_tile *tile, const float *partial, float *scratch);
    /* The rest take a range of rows. */
    void (*rmsnorm)(const struct kernels_rmsnorm *a, uint32_t row_first, uint32_t rows);
    void (*layernorm)(const struct kernels_layernorm *a, uint32_t row_first, uint32_t rows);
    void (*rope)(const struct kernels_rope *a, uint32_t row_first, uint32_t rows);
    void (*embed)(const struct kernels_embed *a, uint32_t row_first, uint32_t rows);
    void (*kv_write)(const struct kernels_kv_write *a, uint32_t row_first, uint32_t rows);
    /* One row of dim values. */
    void (*silu_mul)(uint32_t dim, const float *gate, const float *up, float *out);
    void (*gelu)(enum kernels_gelu_form form, uint32_t dim, const float *x, float *out);
    void (*mul)(uint32_t dim, const float *a, const float *b, float *out);
};

extern const struct cpu_set set_scalar;
#if defined(__x86_64__)
extern const struct cpu_set set_avx2;
extern const struct cpu_set set_avx512;
extern const struct cpu_set set_avx512bf16;
#endif

#endif
