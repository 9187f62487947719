/* gemm_int_amx_impl: products with int8 weights on AMX tiles. Included by gemm_int_amx.c and
 * gemm_int_amx_emulated.c, which say what the tiles are and how the set is called.
 *
 * 64 inputs of a panel, [16][16][4], are a tile as they lie in memory; x is packed row after row without a
 * bias, since the tiles multiply signed by signed. Scales are an output's and a row's, so tiles are full and
 * run over all of the depth without a word in between. Sums are exact: the bits are those of the other sets.
 *
 * Two tiles of rows meet two panels (8 tiles: 4 sums, 2 of x, 2 of weights; 4 loads for 4 products), over
 * AMX_DEPTH tiles of depth at a time, so that two panels' 32 KiB stay in the first cache while the rows pass by.
 * Rows are filled up to whole tiles with zeros. Few rows are bound by memory: they, and int4, whose groups are
 * shorter than a tile, go to avx512vnni. */
#include <stdbool.h>

#include "kernels/cpu/gemm_int.h"
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/gemm_int_write.h"

#include "kernels/cpu/amx_tile.h"

#define AMX_ROWS 16u
#define AMX_DEPTH 16u
#define AMX_INPUTS 64u
#define AMX_TILE_BYTES 1024u
#define AMX_ROWS_MIN 13u /* of a piece: below, one pass of avx512vnni over the weights serves all rows */

static const struct amx_config amx_config = {.palette = 1,
                                             .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                             .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

struct amx_pass {
    const unsigned char *weight, *weight1; /* of both panels, at this depth */
    const uint8_t *x, *x1;                 /* of both row tiles, at this depth */
    size_t x_stride;
    uint32_t tiles;                        /* of depth */
    bool begins;
    int32_t *sums;                         /* [4][16][16]: row tile 0 of both panels, row tile 1 of both */
};

/* One row tile or two, one panel or two; what is not there is not touched. */
VEC_FN void amx_pass(const struct amx_pass *p, const bool two_rows, const bool two_panels)
{
    if (p->begins) {
        amx_zero(0);
        amx_zero(1);
        amx_zero(2);
        amx_zero(3);
    } else {
        amx_load(0, p->sums, 64);
        amx_load(1, p->sums + 256, 64);
        amx_load(2, p->sums + 512, 64);
        amx_load(3, p->sums + 768, 64);
    }
    for (uint32_t tile = 0; tile < p->tiles; tile++) {
        amx_load(4, p->x + tile * AMX_INPUTS, p->x_stride);
        amx_load(6, p->weight + tile * AMX_TILE_BYTES, 64);
        amx_dot_int8(0, 4, 6);
        if (two_rows) {
            amx_load(5, p->x1 + tile * AMX_INPUTS, p->x_stride);
            amx_dot_int8(2, 5, 6);
        }
        if (two_panels) {
            amx_load(7, p->weight1 + tile * AMX_TILE_BYTES, 64);
            amx_dot_int8(1, 4, 7);
            if (two_rows) { amx_dot_int8(3, 5, 7); }
        }
    }
    amx_store(0, p->sums, 64);
    amx_store(1, p->sums + 256, 64);
    amx_store(2, p->sums + 512, 64);
    amx_store(3, p->sums + 768, 64);
}

static void amx_pass_any(const struct amx_pass *p, bool two_rows, bool two_panels)
{
    if (two_rows && two_panels) {
        amx_pass(p, true, true);
    } else if (two_rows) {
        amx_pass(p, true, false);
    } else if (two_panels) {
        amx_pass(p, false, true);
    } else {
        amx_pass(p, false, false);
    }
}

static void amx_pack(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, size_t stride, struct gemm_int_scratch *s)
{
    if (int_is_packed(g, NULL, row_first, rows, GEMM_INT_BY_ROW, s)) { return; }
    const uint32_t n_in = g->weight->n_in;
    for (uint32_t r = 0; r < rows; r++) {
        const float *x = (const float *)g->x + (size_t)(row_first + r) * g->x_stride;
        uint8_t *to = s->codes + r * stride;
        float factor;
        memset(to, 0, stride);
        if (quantize_x_scale(quantize_largest_bits(x, n_in), &factor, &s->scales[r])) { quantize_codes(x, n_in, factor, 0, to); }
    }
    memset(s->codes + rows * stride, 0, (AMX_ROWS - 1 - (rows + AMX_ROWS - 1) % AMX_ROWS) * stride);
}

/* Rows [row, row + count) of one panel out of a tile of sums. */
static void amx_finish(const struct kernels_gemm *g, uint32_t panel, uint32_t row, uint32_t count, const float *x_scales,
                       const int32_t *sums)
{
    const unsigned char *tail = (const unsigned char *)g->weight->data + panel * int8_panel_bytes(g->weight->n_in)
                                + int8_scales_at(g->weight->n_in);
    const vec scales = vec_load((const float *)(const void *)tail);
    for (uint32_t r = 0; r < count; r++) {
        vec value = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + r * 16));
        int_write(g, row + r, panel * KERNELS_PANEL, vec_mul(vec_mul(vec_set(x_scales[r]), scales), value));
    }
}

static void amx_piece(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t panel_first, uint32_t panels,
                      struct gemm_int_scratch *s)
{
    if (g->weight->format != KERNELS_WEIGHT_INT8 || rows < AMX_ROWS_MIN) {
        gemm_int_avx512vnni.piece(g, row_first, rows, panel_first, panels, s);
        return;
    }
    const size_t panel_bytes = int8_panel_bytes(g->weight->n_in);
    const size_t stride = int8_k(g->weight->n_in) + 64; /* rows of 2^n bytes would meet in one set of the cache */
    const uint32_t depth_tiles = int8_k(g->weight->n_in) / AMX_INPUTS, row_tiles = int_div_up(rows, AMX_ROWS);
    amx_pack(g, row_first, rows, stride, s);
    amx_configure(&amx_config);
    for (uint32_t i = 0; i < panels; i += 2) {
        const bool two_panels = i + 1 < panels;
        const unsigned char *weight = (const unsigned char *)g->weight->data + (panel_first + i) * panel_bytes;
        for (uint32_t depth = 0; depth < depth_tiles; depth += AMX_DEPTH) {
            struct amx_pass pass = {.weight = weight + (size_t)depth * AMX_TILE_BYTES, .x_stride = stride,
                                    .tiles = int_min(AMX_DEPTH, depth_tiles - depth), .begins = depth == 0, .sums = s->parked};
            pass.weight1 = pass.weight + panel_bytes;
            const bool ends = depth + pass.tiles == depth_tiles;
            for (uint32_t tile = 0; tile < row_tiles; tile += 2, pass.sums += 1024) {
                const bool two_rows = tile + 1 < row_tiles;
                pass.x = s->codes + (size_t)tile * AMX_ROWS * stride + (size_t)depth * AMX_INPUTS;
                pass.x1 = pass.x + AMX_ROWS * stride;
                amx_pass_any(&pass, two_rows, two_panels);
                for (uint32_t t = 0; ends && t < 1u + two_rows; t++) {
                    const uint32_t row = (tile + t) * AMX_ROWS, count = int_min(AMX_ROWS, rows - row);
                    for (uint32_t p = 0; p < 1u + two_panels; p++) {
                        amx_finish(g, panel_first + i + p, row_first + row, count, s->scales + row, pass.sums + t * 512 + p * 256);
                    }
                }
            }
        }
    }
    amx_release();
}

_Static_assert(GEMM_INT_PARKED_BYTES >= (size_t)(GEMM_INT_ROWS_MAX + 31) / 32 * 4096, "the sums of two panels are parked");
_Static_assert((size_t)GEMM_INT_CODES_ROOM >= GEMM_INT_CODES_BYTES + 15 * ((size_t)KERNELS_GEMM_IN_MAX + 64) + 64 * GEMM_INT_ROWS_MAX,
               "rows are filled up to a tile");

const struct gemm_int_set INT_AMX_SYMBOL = {.isa_name = INT_AMX_NAME, .piece = amx_piece};
