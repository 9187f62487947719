/* gemm_amx_impl: the product with bf16 weights on AMX tiles. Included by gemm_amx.c and gemm_amx_emulated.c, which
 * say what the tiles are and what the function is called (GEMM_AMX_PIECE); the rest of a set is set_avx512bf16.
 *
 * Order. Element (m, n) owns one running sum, the element of a tile, which takes 32 inputs a tile operation,
 * in order: inside it the even and the odd inputs are two chains, see amx_tile.h. A row's sums do not
 * depend on the tile's other rows, so how many there are changes no bit; every row count goes this way.
 *
 * Blocks. 16 inputs pairs of a panel are a tile as they lie in memory (matrix.h).
 * - Up to 16 rows: one tile of x meets 4 panels, each a stream of its own from memory.
 * - Up to 32 rows: two tiles of x meet 2 panels, over the whole depth.
 * - More: the same 2 x 2 over AMX_DEPTH tiles of depth, so that two panels' 32 KiB stay in L1 while the rows pass
 *   by; unfinished sums are parked. Rows are filled up to whole tiles with zeros.
 * 2 x 2 is what 8 tiles hold: 4 sums, 2 of x, 2 of weights, 4 loads for 4 products. */
#include <stdbool.h>

#include "kernels/cpu/gemm_amx.h"
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/set_lanes.h"

#define GEMM_BF16_DOT 1
#include "kernels/cpu/gemm_pack.h"

#include "kernels/cpu/amx_tile.h"

#define AMX_DEPTH 16u
#define AMX_ROWS 16u
#define AMX_INPUTS 32u
#define AMX_TILE_BYTES 1024u
#define AMX_AHEAD_BYTES 4096u

/* Sums 0 .. 3: of both row tiles x both panels, or of 4 panels. 4: x; 5: x of the second row tile, or weights;
 * 6, 7: weights. first, second: rows of the row tiles. */
#define AMX_CONFIG(first, second)                                                                     \
    {                                                                                                 \
        .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},                                   \
        .rows = {first, first, (second) != 0 ? (second) : (first), (second) != 0 ? (second) : (first), \
                 first, (second) != 0 ? (second) : AMX_ROWS, AMX_ROWS, AMX_ROWS},                      \
    }
#define AMX_CONFIGS_FIRST(r) AMX_CONFIG(r, 0)
#define AMX_CONFIGS_SECOND(r) AMX_CONFIG(AMX_ROWS, r)
#define AMX_EACH_16(do) \
    do(1), do(2), do(3), do(4), do(5), do(6), do(7), do(8), do(9), do(10), do(11), do(12), do(13), do(14), do(15), do(16)

/* By rows of the piece less 1; more than 32 use the last. */
static const struct amx_config amx_configs[2 * AMX_ROWS] = {AMX_EACH_16(AMX_CONFIGS_FIRST), AMX_EACH_16(AMX_CONFIGS_SECOND)};

struct amx_pass {
    const unsigned char *weight; /* first panel, first tile of depth */
    size_t panel_stride;         /* bytes from one of the pass's panels to the next */
    uint32_t out_step;           /* outputs from one to the next */
    const unsigned char *x;      /* first row, first input */
    size_t x_stride;
    uint32_t tiles;              /* of depth */
    bool first, last;
    float *sums;                 /* [4][16][16] */
    const struct kernels_gemm *g;
    uint32_t row, out;
    uint32_t rows[2];            /* real ones of each row tile */
    const unsigned char *ask;    /* of blocks: weights to fetch into L2 on the way, ask_lines a tile of depth */
    uint32_t ask_lines;
};

VEC_FN void amx_finish(const struct amx_pass *p, uint32_t row_tile, uint32_t panel, const float *sums)
{
    for (uint32_t r = 0; r < p->rows[row_tile]; r++) {
        gemm_finish(p->g, p->row + row_tile * AMX_ROWS + r, p->out + panel * p->out_step, vec_load(sums + r * 16));
    }
}

VEC_FN void amx_ask(const unsigned char *weight)
{
    VEC_UNROLL
    for (int i = 0; i < 16; i++) { __builtin_prefetch(weight + AMX_AHEAD_BYTES + 64 * i, 0, 3); }
}

/* One row tile against 4 panels (or 1), the whole depth. */
VEC_FN void amx_pass_few(const struct amx_pass *p, const bool four)
{
    const unsigned char *w = p->weight, *x = p->x;
    amx_zero(0);
    if (four) {
        amx_zero(1);
        amx_zero(2);
        amx_zero(3);
    }
    for (uint32_t tile = 0; tile < p->tiles; tile++, w += AMX_TILE_BYTES, x += 2 * AMX_INPUTS) {
        amx_load(4, x, p->x_stride);
        amx_ask(w);
        amx_stream(5, w, 64);
        amx_dot_bf16(0, 4, 5);
        if (!four) { continue; }
        amx_ask(w + p->panel_stride);
        amx_stream(6, w + p->panel_stride, 64);
        amx_dot_bf16(1, 4, 6);
        amx_ask(w + 2 * p->panel_stride);
        amx_stream(7, w + 2 * p->panel_stride, 64);
        amx_dot_bf16(2, 4, 7);
        amx_ask(w + 3 * p->panel_stride);
        amx_stream(5, w + 3 * p->panel_stride, 64);
        amx_dot_bf16(3, 4, 5);
    }
    amx_store(0, p->sums, 64);
    amx_finish(p, 0, 0, p->sums);
    if (!four) { return; }
    amx_store(1, p->sums, 64);
    amx_finish(p, 0, 1, p->sums);
    amx_store(2, p->sums, 64);
    amx_finish(p, 0, 2, p->sums);
    amx_store(3, p->sums, 64);
    amx_finish(p, 0, 3, p->sums);
}

/* Two row tiles (or the first alone) against 2 panels (or 1). */
VEC_FN void amx_pass_block(const struct amx_pass *p, const bool two_rows, const bool two_panels, const bool streams)
{
    const unsigned char *w = p->weight, *x = p->x, *x1 = x + AMX_ROWS * p->x_stride, *w1 = w + p->panel_stride, *ask = p->ask;
    if (p->first) {
        amx_zero(0);
        if (two_panels) { amx_zero(1); }
        if (two_rows) { amx_zero(2); }
        if (two_rows && two_panels) { amx_zero(3); }
    } else {
        amx_load(0, p->sums, 64);
        if (two_panels) { amx_load(1, p->sums + 256, 64); }
        if (two_rows) { amx_load(2, p->sums + 512, 64); }
        if (two_rows && two_panels) { amx_load(3, p->sums + 768, 64); }
    }
    for (uint32_t tile = 0; tile < p->tiles; tile++) {
        amx_load(4, x, p->x_stride);
        if (streams) {
            amx_ask(w);
            if (two_panels) { amx_ask(w1); }
        } else {
            for (uint32_t i = 0; i < p->ask_lines; i++) { __builtin_prefetch(ask + 64 * i, 0, 2); }
            ask += 64 * p->ask_lines;
        }
        amx_load(6, w, 64);
        amx_dot_bf16(0, 4, 6);
        if (two_rows) {
            amx_load(5, x1, p->x_stride);
            amx_dot_bf16(2, 5, 6);
        }
        if (two_panels) {
            amx_load(7, w1, 64);
            amx_dot_bf16(1, 4, 7);
            if (two_rows) { amx_dot_bf16(3, 5, 7); }
        }
        w += AMX_TILE_BYTES;
        w1 += AMX_TILE_BYTES;
        x += 2 * AMX_INPUTS;
        x1 += 2 * AMX_INPUTS;
    }
    amx_store(0, p->sums, 64);
    if (two_panels) { amx_store(1, p->sums + 256, 64); }
    if (two_rows) { amx_store(2, p->sums + 512, 64); }
    if (two_rows && two_panels) { amx_store(3, p->sums + 768, 64); }
    if (!p->last) { return; }
    amx_finish(p, 0, 0, p->sums);
    if (two_panels) { amx_finish(p, 0, 1, p->sums + 256); }
    if (two_rows) { amx_finish(p, 1, 0, p->sums + 512); }
    if (two_rows && two_panels) { amx_finish(p, 1, 1, p->sums + 768); }
}

static void amx_block(const struct amx_pass *p, bool two_rows, bool two_panels)
{
    if (two_rows && two_panels) {
        amx_pass_block(p, true, true, false);
    } else if (two_rows) {
        amx_pass_block(p, true, false, false);
    } else if (two_panels) {
        amx_pass_block(p, false, true, false);
    } else {
        amx_pass_block(p, false, false, false);
    }
}

/* Up to 32 rows: panels in `streams` runs side by side, what is left over one by one. */
static void amx_piece_stream(const struct set_gemm_piece *piece, size_t panel_bytes, struct amx_pass *p)
{
    const bool few = piece->rows <= AMX_ROWS;
    const uint32_t streams = few ? 4 : 2, run = piece->panels / streams;
    p->panel_stride = run * panel_bytes;
    p->out_step = run * KERNELS_PANEL;
    for (uint32_t i = 0; i < piece->panels;) {
        p->out = (piece->panel_first + i) * KERNELS_PANEL;
        p->weight = gemm_panel(piece->g, piece->panel_first + i, panel_bytes);
        if (i < run) {
            if (few) { amx_pass_few(p, true); } else { amx_pass_block(p, true, true, true); }
            i = i + 1 == run ? run * streams : i + 1;
        } else {
            if (few) { amx_pass_few(p, false); } else { amx_pass_block(p, true, false, true); }
            i++;
        }
    }
}

/* Pass `pass` of `passes` over a block asks for its share of the next block's two panels: a quarter in each of
 * the first four passes, or half in each of two. Without it the first pass over a block would wait for memory. */
static void amx_share(struct amx_pass *p, const unsigned char *next, uint32_t pass, uint32_t passes)
{
    const uint32_t shares = passes >= 4 ? 4 : 2;
    p->ask_lines = next != NULL && pass < shares ? AMX_TILE_BYTES / 64 * 2 / shares : 0;
    p->ask = p->ask_lines == 0 ? p->weight : next + pass * 2 / shares * p->panel_stride;
    if (p->ask_lines != 0 && shares == 4) { p->ask += pass % 2 * (AMX_DEPTH / 2) * AMX_TILE_BYTES; }
}

static void amx_piece_blocks(const struct set_gemm_piece *piece, size_t panel_bytes, uint32_t tiles, struct amx_pass *p)
{
    const uint32_t row_tiles = (piece->rows + AMX_ROWS - 1) / AMX_ROWS;
    const unsigned char *x = p->x;
    float *park = p->sums;
    p->panel_stride = panel_bytes;
    p->out_step = KERNELS_PANEL;
    for (uint32_t tile = 0; tile < tiles; tile += AMX_DEPTH) {
        p->tiles = tiles - tile < AMX_DEPTH ? tiles - tile : AMX_DEPTH;
        p->first = tile == 0;
        p->last = tile + p->tiles == tiles;
        p->sums = park;
        for (uint32_t i = 0; i < piece->panels; i += 2) {
            const bool two_panels = i + 1 < piece->panels;
            p->out = (piece->panel_first + i) * KERNELS_PANEL;
            p->weight = gemm_panel(piece->g, piece->panel_first + i, panel_bytes) + (size_t)tile * AMX_TILE_BYTES;
            const unsigned char *next = i + 2 < piece->panels ? p->weight + 2 * panel_bytes
                                      : p->last               ? NULL
                                                              : gemm_panel(piece->g, piece->panel_first, panel_bytes) + (size_t)(tile + AMX_DEPTH) * AMX_TILE_BYTES;
            for (uint32_t r = 0; r < row_tiles; r += 2, p->sums += 1024) {
                const uint32_t done = r * AMX_ROWS, left = piece->rows - done;
                p->row = piece->row_first + done;
                p->rows[0] = left < AMX_ROWS ? left : AMX_ROWS;
                p->rows[1] = left < AMX_ROWS ? 0 : left - AMX_ROWS < AMX_ROWS ? left - AMX_ROWS : AMX_ROWS;
                p->x = x + done * p->x_stride + (size_t)tile * 2 * AMX_INPUTS;
                amx_share(p, next, r / 2, (row_tiles + 1) / 2);
                amx_block(p, r + 1 < row_tiles, two_panels);
            }
        }
    }
}

_Static_assert(SET_SUMS_FLOATS >= (size_t)SET_GEMM_PANELS_MAX / 2 * ((SET_GEMM_ROWS_MAX + 31) / 32) * 1024, "all sums of a piece are parked");

void GEMM_AMX_PIECE(const struct set_gemm_piece *piece, struct set_scratch *scratch)
{
    const struct kernels_gemm *g = piece->g;
    const size_t panel_bytes = kernels_matrix_panel_bytes(g->weight), x_stride = gemm_pack_stride(KERNELS_WEIGHT_BF16, g->weight->n_in);
    const uint32_t tiles = kernels_matrix_depth(g->weight) / AMX_INPUTS;
    gemm_pack(g, piece->row_first, piece->rows, scratch);
    const uint32_t whole = (piece->rows + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS;
    if (piece->rows > 2 * AMX_ROWS) { memset(scratch->pack + piece->rows * x_stride, 0, (whole - piece->rows) * x_stride); }
    struct amx_pass p = {.g = g, .row = piece->row_first, .x = scratch->pack, .x_stride = x_stride, .tiles = tiles,
                         .first = true, .last = true, .sums = scratch->sums};
    p.rows[0] = piece->rows < AMX_ROWS ? piece->rows : AMX_ROWS;
    p.rows[1] = piece->rows < 2 * AMX_ROWS ? piece->rows - p.rows[0] : AMX_ROWS;
    amx_configure(&amx_configs[(piece->rows < 2 * AMX_ROWS ? piece->rows : 2 * AMX_ROWS) - 1]);
    if (piece->rows <= 2 * AMX_ROWS) {
        amx_piece_stream(piece, panel_bytes, &p);
    } else {
        amx_piece_blocks(piece, panel_bytes, tiles, &p);
    }
    amx_release(); /* a thread that holds tiles is slower to switch away from */
}
