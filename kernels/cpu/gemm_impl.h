/* gemm_impl: the matrix product of set_impl.h, for weights of bf16, f16 and f32 in panels (matrix.h).
 *
 * Order. Element (m, n) owns one running sum, which takes the products of inputs 0, 1, 2 ... one
 * after the other; bf16 dot products take them in pairs. 16 neighbouring outputs are the lanes of a
 * vector, x is broadcast, and nothing is ever added across lanes. So how many rows there are, how
 * they are cut into tiles, depth blocks and pieces, and who computes them changes no bit.
 *
 * Blocks. A tile keeps panels x rows of those vectors in registers.
 * - Few rows (a decode step): each tile walks the whole depth of its panels, which come from
 *   memory once. The panels of a tile lie far apart and each goes straight on: a core reads
 *   fastest along several such streams, which the hardware's prefetcher follows.
 * - More rows: depth is cut into blocks of GEMM_DEPTH steps, so that the panels of a tile stay in
 *   L1 while all rows of the piece pass by, and their slice of x in L2. Unfinished sums are parked
 *   between blocks. While a block is worked on, the next one's panels are asked for.
 * Source  K. Goto, R. van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008. */
#include "kernels/cpu/gemm_pack.h"

/* A step is one line of a panel: a pair of inputs in bf16, else one. */
#define GEMM_DEPTH 128u

struct gemm_tile {
    const unsigned char *weight; /* first panel, first step */
    size_t panel_stride;         /* bytes from one of the tile's panels to the next */
    uint32_t out_step;           /* outputs from one to the next */
    uint32_t steps;
    const unsigned char *x;      /* packed, first row, first step */
    size_t x_stride;             /* bytes */
    float *sums;                 /* [panels][rows][16] between depth blocks */
    bool first, last;            /* depth block */
    const unsigned char *ask[2]; /* lines that are fetched into L2 on the way, one of each a step; of blocks */
    const struct kernels_gemm *g;
    uint32_t row, out;           /* of the tile's corner */
};

VEC_FN uint32_t gemm_line_bytes(enum kernels_weight format) { return format == KERNELS_WEIGHT_F16 ? 32 : 64; }
VEC_FN uint32_t gemm_line_inputs(enum kernels_weight format) { return format == KERNELS_WEIGHT_BF16 ? 2 : 1; }
/* Bytes of packed x that meet one line. */
VEC_FN uint32_t gemm_x_bytes(enum kernels_weight format) { return gemm_is_dot(format) ? 4 : 4 * gemm_line_inputs(format); }

VEC_FN float gemm_x(const unsigned char *x)
{
    float value;
    memcpy(&value, x, 4);
    return value;
}

/* Input `half` of a line, for 16 outputs. */
VEC_FN vec gemm_weights(enum kernels_weight format, const unsigned char *w, int half)
{
    switch (format) {
    case KERNELS_WEIGHT_BF16: return half == 0 ? vec_even_bf16(vec_load_any(w)) : vec_odd_bf16(vec_load_any(w));
    case KERNELS_WEIGHT_F16: return vec_load_f16(w);
    default: return vec_load_any(w);
    }
}

/* One line of each panel against every row. Three rows, and three panels, share a base address: with
 * the stride once and twice that is all an address can say, and pointers are scarce. */
VEC_FN void gemm_step(const int panels, const int rows, const enum kernels_weight format, const unsigned char *const *w,
                      size_t panel_stride, const unsigned char *const *x, size_t x_stride, vec *sums)
{
#if GEMM_BF16_DOT
    if (format == KERNELS_WEIGHT_BF16) {
        vec weights[8];
        VEC_UNROLL
        for (int p = 0; p < panels; p++) { weights[p] = vec_load_any(w[p / 3] + (size_t)(p % 3) * panel_stride); }
        VEC_UNROLL
        for (int r = 0; r < rows; r++) {
            vec pair = vec_set(gemm_x(x[r / 3] + (size_t)(r % 3) * x_stride)); /* 4 bytes, whatever they mean */
            VEC_UNROLL
            for (int p = 0; p < panels; p++) { sums[p * rows + r] = gemm_dot(weights[p], pair, sums[p * rows + r]); }
        }
        return;
    }
#endif
    const int inputs = (int)gemm_line_inputs(format);
    VEC_UNROLL
    for (int half = 0; half < inputs; half++) {
        vec weights[8];
        VEC_UNROLL
        for (int p = 0; p < panels; p++) { weights[p] = gemm_weights(format, w[p / 3] + (size_t)(p % 3) * panel_stride, half); }
        VEC_UNROLL
        for (int r = 0; r < rows; r++) {
            vec value = vec_set(gemm_x(x[r / 3] + (size_t)(r % 3) * x_stride + 4 * (size_t)half));
            VEC_UNROLL
            for (int p = 0; p < panels; p++) { sums[p * rows + r] = vec_fma(weights[p], value, sums[p * rows + r]); }
        }
    }
}

/* Half a page is past what one core has under way; past the matrix's end a prefetch does nothing. */
#ifndef GEMM_AHEAD_BYTES
#define GEMM_AHEAD_BYTES 2048u
#endif

VEC_FN void gemm_tile(const int panels, const int rows, const enum kernels_weight format, const bool streams,
                      const struct gemm_tile *t)
{
    vec sums[32];
    const uint32_t line = gemm_line_bytes(format), x_bytes = gemm_x_bytes(format);
    const size_t panel_stride = t->panel_stride, x_stride = t->x_stride;
    const unsigned char *w[3], *x[4], *ask[2] = {t->ask[0], t->ask[1]};
    VEC_UNROLL
    for (int i = 0; i < (panels + 2) / 3; i++) { w[i] = t->weight + (size_t)(3 * i) * panel_stride; }
    VEC_UNROLL
    for (int i = 0; i < (rows + 2) / 3; i++) { x[i] = t->x + (size_t)(3 * i) * x_stride; }
    if (t->first) {
        VEC_UNROLL
        for (int i = 0; i < panels * rows; i++) { sums[i] = vec_zero(); }
    } else {
        VEC_UNROLL
        for (int i = 0; i < panels * rows; i++) { sums[i] = vec_load(t->sums + 16 * i); }
    }
    for (uint32_t step = t->steps; step != 0; step--) {
        if (streams) {
            VEC_UNROLL
            for (int p = 0; p < panels; p++) {
                __builtin_prefetch(w[p / 3] + (size_t)(p % 3) * panel_stride + GEMM_AHEAD_BYTES, 0, 3);
            }
        } else {
            __builtin_prefetch(ask[0], 0, 2);
            __builtin_prefetch(ask[1], 0, 2);
            ask[0] += line;
            ask[1] += line;
        }
        gemm_step(panels, rows, format, w, panel_stride, x, x_stride, sums);
        VEC_UNROLL
        for (int i = 0; i < (panels + 2) / 3; i++) { w[i] += line; }
        VEC_UNROLL
        for (int i = 0; i < (rows + 2) / 3; i++) { x[i] += x_bytes; }
    }
    if (!t->last) {
        VEC_UNROLL
        for (int i = 0; i < panels * rows; i++) { vec_store(t->sums + 16 * i, sums[i]); }
        return;
    }
    VEC_UNROLL
    for (int p = 0; p < panels; p++) {
        const uint32_t n = t->out + (uint32_t)p * t->out_step;
        VEC_UNROLL
        for (int r = 0; r < rows; r++) { gemm_finish(t->g, t->row + (uint32_t)r, n, sums[p * rows + r]); }
    }
}

typedef void (*gemm_tile_fn)(const struct gemm_tile *t);

#define GEMM_TILE_DEFINE(panels, rows, streams)                                                \
    static void gemm_f32_##panels##x##rows##_##streams(const struct gemm_tile *t)              \
    {                                                                                          \
        gemm_tile(panels, rows, KERNELS_WEIGHT_F32, streams, t);                               \
    }                                                                                          \
    static void gemm_bf16_##panels##x##rows##_##streams(const struct gemm_tile *t)             \
    {                                                                                          \
        gemm_tile(panels, rows, KERNELS_WEIGHT_BF16, streams, t);                              \
    }                                                                                          \
    static void gemm_f16_##panels##x##rows##_##streams(const struct gemm_tile *t)              \
    {                                                                                          \
        gemm_tile(panels, rows, KERNELS_WEIGHT_F16, streams, t);                               \
    }
#define GEMM_TILE_ENTRY(panels, rows, streams) \
    {gemm_f32_##panels##x##rows##_##streams, gemm_bf16_##panels##x##rows##_##streams, gemm_f16_##panels##x##rows##_##streams}

/* Which tiles there are: GEMM_PANELS x 1 .. GEMM_ROWS for blocks, 1 x the same for panels left over;
 * and, by rows, stream tiles of as many panels as the registers hold. With 32 registers 24 sums, 4
 * panels and one x; with 16 (two to a vec) 6 sums, one panel and one x. */
GEMM_TILE_DEFINE(1, 1, 0)
GEMM_TILE_DEFINE(1, 2, 0)
GEMM_TILE_DEFINE(1, 3, 0)
GEMM_TILE_DEFINE(1, 4, 0)
GEMM_TILE_DEFINE(1, 5, 0)
GEMM_TILE_DEFINE(1, 6, 0)
#define GEMM_ROWS 6u
#if GEMM_PANELS == 4
GEMM_TILE_DEFINE(1, 7, 0)
GEMM_TILE_DEFINE(1, 8, 0)
GEMM_TILE_DEFINE(1, 9, 0)
GEMM_TILE_DEFINE(1, 10, 0)
GEMM_TILE_DEFINE(1, 11, 0)
GEMM_TILE_DEFINE(1, 12, 0)
GEMM_TILE_DEFINE(4, 1, 0)
GEMM_TILE_DEFINE(4, 2, 0)
GEMM_TILE_DEFINE(4, 3, 0)
GEMM_TILE_DEFINE(4, 4, 0)
GEMM_TILE_DEFINE(4, 5, 0)
GEMM_TILE_DEFINE(4, 6, 0)
GEMM_TILE_DEFINE(4, 1, 1)
GEMM_TILE_DEFINE(4, 2, 1)
GEMM_TILE_DEFINE(4, 3, 1)
GEMM_TILE_DEFINE(4, 4, 1)
GEMM_TILE_DEFINE(4, 5, 1)
GEMM_TILE_DEFINE(4, 6, 1)
GEMM_TILE_DEFINE(3, 7, 1)
GEMM_TILE_DEFINE(3, 8, 1)
GEMM_TILE_DEFINE(2, 9, 1)
GEMM_TILE_DEFINE(2, 10, 1)
GEMM_TILE_DEFINE(2, 11, 1)
GEMM_TILE_DEFINE(2, 12, 1)
#define GEMM_STREAM_ROWS 12u
static const gemm_tile_fn gemm_tiles[GEMM_ROWS][3] = {GEMM_TILE_ENTRY(4, 1, 0), GEMM_TILE_ENTRY(4, 2, 0), GEMM_TILE_ENTRY(4, 3, 0),
                                                      GEMM_TILE_ENTRY(4, 4, 0), GEMM_TILE_ENTRY(4, 5, 0), GEMM_TILE_ENTRY(4, 6, 0)};
static const gemm_tile_fn gemm_tiles_single[GEMM_STREAM_ROWS][3] = {
    GEMM_TILE_ENTRY(1, 1, 0), GEMM_TILE_ENTRY(1, 2, 0), GEMM_TILE_ENTRY(1, 3, 0), GEMM_TILE_ENTRY(1, 4, 0),
    GEMM_TILE_ENTRY(1, 5, 0), GEMM_TILE_ENTRY(1, 6, 0), GEMM_TILE_ENTRY(1, 7, 0), GEMM_TILE_ENTRY(1, 8, 0),
    GEMM_TILE_ENTRY(1, 9, 0), GEMM_TILE_ENTRY(1, 10, 0), GEMM_TILE_ENTRY(1, 11, 0), GEMM_TILE_ENTRY(1, 12, 0)};
static const struct {
    uint32_t panels;
    gemm_tile_fn tiles[3];
} gemm_streams[GEMM_STREAM_ROWS] = {
    {4, GEMM_TILE_ENTRY(4, 1, 1)}, {4, GEMM_TILE_ENTRY(4, 2, 1)}, {4, GEMM_TILE_ENTRY(4, 3, 1)}, {4, GEMM_TILE_ENTRY(4, 4, 1)},
    {4, GEMM_TILE_ENTRY(4, 5, 1)}, {4, GEMM_TILE_ENTRY(4, 6, 1)}, {3, GEMM_TILE_ENTRY(3, 7, 1)}, {3, GEMM_TILE_ENTRY(3, 8, 1)},
    {2, GEMM_TILE_ENTRY(2, 9, 1)}, {2, GEMM_TILE_ENTRY(2, 10, 1)}, {2, GEMM_TILE_ENTRY(2, 11, 1)}, {2, GEMM_TILE_ENTRY(2, 12, 1)}};
#else
GEMM_TILE_DEFINE(4, 1, 1)
GEMM_TILE_DEFINE(2, 2, 1)
GEMM_TILE_DEFINE(2, 3, 1)
#define GEMM_STREAM_ROWS 3u
#define gemm_tiles gemm_tiles_single
static const gemm_tile_fn gemm_tiles_single[GEMM_ROWS][3] = {GEMM_TILE_ENTRY(1, 1, 0), GEMM_TILE_ENTRY(1, 2, 0),
                                                             GEMM_TILE_ENTRY(1, 3, 0), GEMM_TILE_ENTRY(1, 4, 0),
                                                             GEMM_TILE_ENTRY(1, 5, 0), GEMM_TILE_ENTRY(1, 6, 0)};
static const struct {
    uint32_t panels;
    gemm_tile_fn tiles[3];
} gemm_streams[GEMM_STREAM_ROWS] = {{4, GEMM_TILE_ENTRY(4, 1, 1)}, {2, GEMM_TILE_ENTRY(2, 2, 1)}, {2, GEMM_TILE_ENTRY(2, 3, 1)}};
#endif

_Static_assert(GEMM_STREAM_ROWS <= SET_GEMM_PACK_ROWS_MIN && GEMM_ROWS <= SET_GEMM_PACK_ROWS_MIN, "the deepest rows of a tile fit the pack");

/* ---- pieces -------------------------------------------------------------------------------- */

/* Few rows: the piece's panels in as many runs as a tile has streams, each straight on; what is left
 * over one by one. */
static void gemm_piece_stream(const struct set_gemm_piece *piece, size_t panel_bytes, struct gemm_tile *t)
{
    const enum kernels_weight format = piece->g->weight->format;
    const uint32_t streams = gemm_streams[piece->rows - 1].panels, run = piece->panels / streams;
    t->panel_stride = run * panel_bytes;
    t->out_step = run * KERNELS_PANEL;
    t->first = t->last = true;
    for (uint32_t p = 0; p < piece->panels;) {
        t->out = (piece->panel_first + p) * KERNELS_PANEL;
        t->weight = gemm_panel(piece->g, piece->panel_first + p, panel_bytes);
        if (p < run) {
            gemm_streams[piece->rows - 1].tiles[format](t);
            p = p + 1 == run ? run * streams : p + 1;
        } else {
            gemm_tiles_single[piece->rows - 1][format](t);
            p++;
        }
    }
}

/* What tile `tile` of `tiles` asks for: panels of the tiles to come, one a tile, or two where there are few
 * tiles. Spread over the steps, since a burst of prefetches waits for the miss buffers as loads do. What need
 * not be asked for is a line that is there already. */
VEC_FN void gemm_ask(struct gemm_tile *t, const unsigned char *next, uint32_t panels, uint32_t tile, uint32_t tiles)
{
    t->ask[0] = t->ask[1] = t->weight;
    if (tiles >= panels) {
        if (tile < panels) { t->ask[0] = next + tile * t->panel_stride; }
        return;
    }
    if (2 * tile < panels) { t->ask[0] = next + (size_t)(2 * tile) * t->panel_stride; }
    if (2 * tile + 1 < panels) { t->ask[1] = next + (size_t)(2 * tile + 1) * t->panel_stride; }
}

static void gemm_piece_blocks(const struct set_gemm_piece *piece, size_t panel_bytes, struct gemm_tile *t)
{
    const struct kernels_gemm *g = piece->g;
    const enum kernels_weight format = g->weight->format;
    const uint32_t inputs = gemm_line_inputs(format), line = gemm_line_bytes(format);
    const uint32_t steps = (g->weight->n_in + inputs - 1) / inputs;
    const uint32_t tiles = (piece->rows + GEMM_ROWS - 1) / GEMM_ROWS;
    const unsigned char *x = t->x;
    float *park = t->sums;
    t->panel_stride = panel_bytes;
    t->out_step = KERNELS_PANEL;
    for (uint32_t step = 0; step < steps; step += GEMM_DEPTH) {
        t->steps = steps - step < GEMM_DEPTH ? steps - step : GEMM_DEPTH;
        t->first = step == 0;
        t->last = step + t->steps == steps;
        for (uint32_t p = 0, count; p < piece->panels; p += count) {
            count = piece->panels - p >= GEMM_PANELS ? GEMM_PANELS : 1;
            const gemm_tile_fn (*fns)[3] = count == 1 ? gemm_tiles_single : gemm_tiles;
            t->out = (piece->panel_first + p) * KERNELS_PANEL;
            t->weight = gemm_panel(g, piece->panel_first + p, panel_bytes) + (size_t)step * line;
            /* What comes next: the panels after these, or the first ones one block deeper. */
            bool is_end = p + count == piece->panels;
            const unsigned char *next = is_end ? gemm_panel(g, piece->panel_first, panel_bytes) + (size_t)(step + t->steps) * line
                                               : t->weight + count * panel_bytes;
            uint32_t asked = is_end && t->last ? 0 : GEMM_PANELS;
            float *sums = park + (size_t)p * piece->rows * 16;
            for (uint32_t tile = 0, done = 0; tile < tiles; tile++) {
                uint32_t rows = piece->rows / tiles + (tile < piece->rows % tiles ? 1 : 0);
                gemm_ask(t, next, asked, tile, tiles);
                t->x = x + done * t->x_stride + (size_t)step * gemm_x_bytes(format);
                t->row = piece->row_first + done;
                t->sums = sums + (size_t)done * count * 16;
                fns[rows - 1][format](t);
                done += rows;
            }
        }
    }
}

static void gemm_piece(const struct set_gemm_piece *piece, struct set_scratch *scratch)
{
    const struct kernels_gemm *g = piece->g;
    const size_t panel_bytes = kernels_matrix_panel_bytes(g->weight);
    const uint32_t inputs = gemm_line_inputs(g->weight->format);
    gemm_pack(g, piece->row_first, piece->rows, scratch);
    struct gemm_tile t = {.g = g, .row = piece->row_first, .x = scratch->pack, .sums = scratch->sums,
                          .ask = {scratch->pack, scratch->pack},
                          .x_stride = gemm_pack_stride(g->weight->format, g->weight->n_in),
                          .steps = (g->weight->n_in + inputs - 1) / inputs};
    if (piece->rows <= GEMM_STREAM_ROWS) {
        gemm_piece_stream(piece, panel_bytes, &t);
    } else {
        gemm_piece_blocks(piece, panel_bytes, &t);
    }
}
