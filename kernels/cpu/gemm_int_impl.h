/* gemm_int_impl: the text of gemm_int.h over a vector of 16 lanes, f32 or i32.
 * Included by gemm_int_<isa>.c alone, after the vec_<isa>.h that brings `vec`, and after defining
 *   INT_SYMBOL, INT_ISA   the table to make and its name
 *   INT_WIDE              1: 32 registers of 16 lanes; 0: fewer, smaller tiles
 *   INT_X8_BIAS           what int8 activations have added to their codes: 128 where dot8 takes them unsigned
 *   ivec                  16 lanes of i32, or the 64 bytes that a dot product takes four a lane
 *   iv_set(i), iv_load(p), iv_store(p, a), iv_sub, iv_mul   whole lanes; loads are aligned to nothing
 *   iv_widen(p)           16 u8 to lanes
 *   iv_bytes(p)           64 bytes
 *   iv_broadcast(p)       the same 4 bytes in each lane
 *   iv_low(a), iv_high(a) the low and the high nibbles of the bytes
 *   iv_dot8(sum, x, w)    each lane: sum + the 4 products of x (code + INT_X8_BIAS) and signed w
 *   iv_dot4(sum, w, x)    the same of unsigned w, 0 .. 15, and signed x
 *   iv_to_vec(a)          i32 to f32, to nearest
 *   vec_fused(a, b, c)    a*b + c rounded once, on every machine
 *
 * Tiles. A tile holds rows x panels sums in registers while it walks down the depth: per 4 inputs one
 * load of 64 bytes a panel and one broadcast a row. x lies packed as [k/4][row][4], so that a tile reads
 * it in one straight run. Few rows take many panels: each is a stream of its own from memory, as it goes
 * straight on. Many rows take several tiles, which share two panels of GEMM_INT_DEPTH inputs out of the
 * first cache; sums are parked between depths.
 *
 * int4 takes its nibbles apart in registers, for every tile of rows again: three operations for 2 * rows
 * products. Taking them apart once into memory for all tiles was no faster at 512 rows and slower at 16
 * (383 against 550 GOP/s): the loads cost what the operations do. */

#include "kernels/cpu/gemm_int_write.h"

#if INT_WIDE
#define INT8_TILE_ROWS 12u
#define INT4_TILE_ROWS 6u
#else
#define INT8_TILE_ROWS 3u
#define INT4_TILE_ROWS 3u
#endif
#define INT_TILE_ROWS_MAX 12u
#define INT_AHEAD_BYTES 2048u /* of prefetch along a stream */

/* Up to 24 sums stay in registers only where every loop over them is unrolled whole. */
#if defined(VEC_IS_ARRAY)
#define INT_UNROLL
#elif defined(__clang__)
#define INT_UNROLL _Pragma("clang loop unroll(full)")
#else
#define INT_UNROLL _Pragma("GCC unroll 32")
#endif

struct int_tile {
    const struct kernels_gemm *g;
    uint32_t row, panel;         /* of the tile's corner */
    uint32_t panel_step;         /* panels from one of the tile's to the next */
    const uint8_t *x;            /* packed, at the depth's first input */
    const float *x_scales;       /* int8 [row]; int4 [group][row], at the depth's first group */
    const int32_t *x_sums;       /* int4 */
    const unsigned char *weight; /* first panel, whole */
    size_t step_bytes;           /* of panel_step panels */
    uint32_t first, count;       /* of the depth: int8 in steps of 4 inputs, int4 in groups */
    unsigned char *parked;       /* [panel][row][64 bytes] */
    bool begins, ends;           /* sums begin at zero; sums are written to out */
};

/* ---- int8 ---------------------------------------------------------------------------------- */

VEC_FN void int8_tile(const int rows, const int panels, const struct int_tile *t)
{
    ivec sums[24];
    const unsigned char *w = t->weight + (size_t)t->first * 64;
    const uint8_t *x = t->x;
    INT_UNROLL
    for (int i = 0; i < rows * panels; i++) { sums[i] = iv_set(0); }
    if (!t->begins) {
        INT_UNROLL
        for (int i = 0; i < rows * panels; i++) { sums[i] = iv_load(t->parked + 64 * i); }
    }
    for (uint32_t step = 0; step < t->count; step++) {
        ivec weights[4];
        INT_UNROLL
        for (int p = 0; p < panels; p++) {
            const unsigned char *at = w + (size_t)p * t->step_bytes;
            __builtin_prefetch(at + INT_AHEAD_BYTES, 0, 3);
            weights[p] = iv_bytes(at);
        }
        INT_UNROLL
        for (int r = 0; r < rows; r++) {
            ivec xr = iv_broadcast(x + 4 * r);
            INT_UNROLL
            for (int p = 0; p < panels; p++) { sums[p * rows + r] = iv_dot8(sums[p * rows + r], xr, weights[p]); }
        }
        w += 64;
        x += 4 * rows;
    }
    if (!t->ends) {
        INT_UNROLL
        for (int i = 0; i < rows * panels; i++) { iv_store(t->parked + 64 * i, sums[i]); }
        return;
    }
    INT_UNROLL
    for (int p = 0; p < panels; p++) {
        const unsigned char *tail = t->weight + (size_t)p * t->step_bytes + int8_scales_at(t->g->weight->n_in);
        vec scales = vec_load((const float *)(const void *)tail);
        ivec excess = iv_mul(iv_load(tail + KERNELS_PANEL * 4), iv_set(INT_X8_BIAS));
        INT_UNROLL
        for (int r = 0; r < rows; r++) {
            vec value = iv_to_vec(INT_X8_BIAS != 0 ? iv_sub(sums[p * rows + r], excess) : sums[p * rows + r]);
            value = vec_mul(vec_mul(vec_set(t->x_scales[r]), scales), value);
            int_write(t->g, t->row + (uint32_t)r, (t->panel + (uint32_t)p * t->panel_step) * KERNELS_PANEL, value);
        }
    }
}

/* Words of 4 codes of one row go `rows` words apart. */
static void int_spread(const uint8_t *codes, uint32_t count, uint32_t rows, uint8_t *to)
{
    for (uint32_t i = 0; i < count; i += 4) { memcpy(to + (size_t)i * rows, codes + i, 4); }
}

static void int8_pack_row(const float *x, uint32_t n_in, uint32_t rows, uint8_t *to, float *ret_scale)
{
    enum { CHUNK = 256 };
    float factor;
    bool is_finite = quantize_x_scale(quantize_largest_bits(x, n_in), &factor, ret_scale);
    for (uint32_t k = 0; k < n_in; k += CHUNK) {
        uint8_t codes[CHUNK];
        uint32_t count = int_min(n_in - k, CHUNK), whole = int_min(int8_k(n_in) - k, CHUNK);
        memset(codes, INT_X8_BIAS, sizeof codes);
        if (is_finite) { quantize_codes(x + k, count, factor, INT_X8_BIAS, codes); }
        int_spread(codes, whole, rows, to + (size_t)k * rows);
    }
}

static void int8_pack(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t tiles, struct gemm_int_scratch *s)
{
    if (int_is_packed(g, NULL, row_first, rows, 0, s)) { return; }
    uint8_t *to = s->codes;
    uint32_t done = 0;
    for (uint32_t i = 0; i < tiles; i++) {
        uint32_t tile_rows = int_tile_rows(rows, tiles, i);
        for (uint32_t r = 0; r < tile_rows; r++) {
            int8_pack_row((const float *)g->x + (size_t)(row_first + done + r) * g->x_stride, g->weight->n_in, tile_rows, to + 4 * r, &s->scales[done + r]);
        }
        to += (size_t)tile_rows * int8_k(g->weight->n_in);
        done += tile_rows;
    }
}

typedef void (*int_tile_fn)(const struct int_tile *t);

#define INT8_DEFINE(rows, panels) \
    static void int8_##rows##x##panels(const struct int_tile *t) { int8_tile(rows, panels, t); }
INT8_DEFINE(1, 1) INT8_DEFINE(2, 1) INT8_DEFINE(3, 1)
INT8_DEFINE(1, 2) INT8_DEFINE(2, 2) INT8_DEFINE(3, 2)
INT8_DEFINE(1, 4)
#if INT_WIDE
INT8_DEFINE(4, 1) INT8_DEFINE(5, 1) INT8_DEFINE(6, 1) INT8_DEFINE(7, 1) INT8_DEFINE(8, 1)
INT8_DEFINE(9, 1) INT8_DEFINE(10, 1) INT8_DEFINE(11, 1) INT8_DEFINE(12, 1)
INT8_DEFINE(4, 2) INT8_DEFINE(5, 2) INT8_DEFINE(6, 2) INT8_DEFINE(7, 2) INT8_DEFINE(8, 2)
INT8_DEFINE(9, 2) INT8_DEFINE(10, 2) INT8_DEFINE(11, 2) INT8_DEFINE(12, 2)
INT8_DEFINE(7, 3) INT8_DEFINE(8, 3)
INT8_DEFINE(2, 4) INT8_DEFINE(3, 4) INT8_DEFINE(4, 4) INT8_DEFINE(5, 4) INT8_DEFINE(6, 4)
#endif

/* [panels - 1][rows - 1]; NULL: more sums than registers. */
static const int_tile_fn int8_tiles[GEMM_INT_PANELS_MAX][INT_TILE_ROWS_MAX] = {
#if INT_WIDE
    {int8_1x1, int8_2x1, int8_3x1, int8_4x1, int8_5x1, int8_6x1, int8_7x1, int8_8x1, int8_9x1, int8_10x1, int8_11x1, int8_12x1},
    {int8_1x2, int8_2x2, int8_3x2, int8_4x2, int8_5x2, int8_6x2, int8_7x2, int8_8x2, int8_9x2, int8_10x2, int8_11x2, int8_12x2},
    {NULL, NULL, NULL, NULL, NULL, NULL, int8_7x3, int8_8x3},
    {int8_1x4, int8_2x4, int8_3x4, int8_4x4, int8_5x4, int8_6x4},
#else
    {int8_1x1, int8_2x1, int8_3x1},
    {int8_1x2, int8_2x2, int8_3x2},
    {NULL},
    {int8_1x4},
#endif
};

/* A piece's panels, dealt to tiles. Memory is read fastest along a few runs that lie far apart and each go
 * straight on: so a tile that takes `count` panels takes one out of each of so many runs of the piece, not
 * neighbours. (int4 at one row, 2048 inputs: 28 GB/s with neighbours.) What is left over goes last. */
struct int_run {
    uint32_t panels;
    uint32_t done, runs_end;
    uint32_t first, count, step;
};

static bool int_run_next(struct int_run *run, const int_tile_fn fns[GEMM_INT_PANELS_MAX][INT_TILE_ROWS_MAX], uint32_t rows,
                         uint32_t tiles)
{
    uint32_t left = run->panels - run->done;
    if (left == 0) { return false; }
    if (run->done < run->runs_end) { /* the next of each run */
        run->first++;
        run->done += run->count;
        return true;
    }
    run->count = int_min(left, tiles == 1 ? GEMM_INT_PANELS_MAX : 2); /* several tiles share two out of the first cache */
    while (run->count > 1 && fns[run->count - 1][int_tile_rows(rows, tiles, 0) - 1] == NULL) { run->count--; }
    run->step = left / run->count;
    run->first = run->done;
    run->runs_end = run->done + run->step * run->count;
    run->done += run->count;
    return true;
}

static void int8_piece(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t panel_first, uint32_t panels,
                       struct gemm_int_scratch *s)
{
    const uint32_t tiles = int_div_up(rows, INT8_TILE_ROWS), steps = int8_k(g->weight->n_in) / 4;
    const uint32_t depth = tiles == 1 ? steps : GEMM_INT_DEPTH / 4;
    int8_pack(g, row_first, rows, tiles, s);
    const size_t panel_bytes = int8_panel_bytes(g->weight->n_in);
    struct int_tile t = {.g = g};
    for (struct int_run run = {.panels = panels}; int_run_next(&run, int8_tiles, rows, tiles);) {
        t.panel = panel_first + run.first;
        t.panel_step = run.step;
        t.step_bytes = run.step * panel_bytes;
        t.weight = (const unsigned char *)g->weight->data + t.panel * panel_bytes;
        for (t.first = 0; t.first < steps; t.first += depth) {
            t.count = int_min(depth, steps - t.first);
            t.begins = t.first == 0;
            t.ends = t.first + t.count == steps;
            uint32_t row = 0;
            for (uint32_t i = 0; i < tiles; i++) {
                uint32_t tile_rows = int_tile_rows(rows, tiles, i);
                t.row = row_first + row;
                t.x = s->codes + (size_t)row * steps * 4 + (size_t)t.first * tile_rows * 4;
                t.x_scales = s->scales + row;
                t.parked = (unsigned char *)s->parked + (size_t)row * run.count * 64;
                int8_tiles[run.count - 1][tile_rows - 1](&t);
                row += tile_rows;
            }
        }
    }
}

/* ---- int4 ---------------------------------------------------------------------------------- */

VEC_FN void int4_tile(const int rows, const int panels, const struct int_tile *t)
{
    const struct kernels_matrix *m = t->g->weight;
    const uint32_t group_steps = m->group / 8;
    vec values[12];
    INT_UNROLL
    for (int i = 0; i < rows * panels; i++) { values[i] = vec_zero(); }
    if (!t->begins) {
        INT_UNROLL
        for (int i = 0; i < rows * panels; i++) { values[i] = vec_load((const float *)(const void *)(t->parked + 64 * i)); }
    }
    const uint8_t *x = t->x;
    for (uint32_t group = t->first; group < t->first + t->count; group++) {
        const int32_t *x_sums = t->x_sums + (size_t)(group - t->first) * (size_t)rows;
        const float *x_scales = t->x_scales + (size_t)(group - t->first) * (size_t)rows;
        ivec sums[12];
        if (m->has_zeros) {
            const unsigned char *zeros = t->weight + int4_zeros_at(m, group);
            INT_UNROLL
            for (int p = 0; p < panels; p++) {
                ivec zero = iv_widen(zeros + (size_t)p * t->step_bytes);
                INT_UNROLL
                for (int r = 0; r < rows; r++) { sums[p * rows + r] = iv_mul(zero, iv_set(x_sums[r])); }
            }
        } else {
            INT_UNROLL
            for (int r = 0; r < rows; r++) {
                ivec begin = iv_set(INT4_ZERO_SYMMETRIC * x_sums[r]);
                INT_UNROLL
                for (int p = 0; p < panels; p++) { sums[p * rows + r] = begin; }
            }
        }
        const unsigned char *codes = t->weight + int4_codes_at(m, group);
        for (uint32_t step = 0; step < group_steps; step++) {
            ivec low[4], high[4];
            INT_UNROLL
            for (int p = 0; p < panels; p++) {
                const unsigned char *at = codes + (size_t)p * t->step_bytes;
                __builtin_prefetch(at + INT_AHEAD_BYTES, 0, 3);
                ivec both = iv_bytes(at);
                low[p] = iv_low(both);
                high[p] = iv_high(both);
            }
            INT_UNROLL
            for (int r = 0; r < rows; r++) {
                ivec x_low = iv_broadcast(x + 4 * r);
                INT_UNROLL
                for (int p = 0; p < panels; p++) { sums[p * rows + r] = iv_dot4(sums[p * rows + r], low[p], x_low); }
            }
            INT_UNROLL
            for (int r = 0; r < rows; r++) {
                ivec x_high = iv_broadcast(x + 4 * (rows + r));
                INT_UNROLL
                for (int p = 0; p < panels; p++) { sums[p * rows + r] = iv_dot4(sums[p * rows + r], high[p], x_high); }
            }
            codes += 64;
            x += 8 * rows;
        }
        const unsigned char *scales = t->weight + int4_scales_at(m, group);
        INT_UNROLL
        for (int p = 0; p < panels; p++) {
            vec scale = vec_load_f16(scales + (size_t)p * t->step_bytes);
            INT_UNROLL
            for (int r = 0; r < rows; r++) {
                values[p * rows + r] = vec_fused(iv_to_vec(sums[p * rows + r]), vec_mul(vec_set(x_scales[r]), scale), values[p * rows + r]);
            }
        }
    }
    if (!t->ends) {
        INT_UNROLL
        for (int i = 0; i < rows * panels; i++) { vec_store((float *)(void *)(t->parked + 64 * i), values[i]); }
        return;
    }
    INT_UNROLL
    for (int p = 0; p < panels; p++) {
        INT_UNROLL
        for (int r = 0; r < rows; r++) {
            int_write(t->g, t->row + (uint32_t)r, (t->panel + (uint32_t)p * t->panel_step) * KERNELS_PANEL, values[p * rows + r]);
        }
    }
}

/* One group of one row: codes, scale, and minus the sum of the codes. */
static void int4_pack_group(const float *x, const uint32_t *order, uint32_t k, uint32_t n_in, uint32_t group, uint32_t rows,
                            uint8_t *to, float *ret_scale, int32_t *ret_sum)
{
    float values[128];
    uint8_t codes[128];
    if (order != NULL) {
        for (uint32_t i = 0; i < group; i++) { values[i] = order[k + i] < n_in ? x[order[k + i]] : 0.0f; }
        x = values;
    } else if (n_in - k < group) {
        memset(values, 0, sizeof values);
        memcpy(values, x + k, (n_in - k) * sizeof *x);
        x = values;
    } else {
        x += k;
    }
    float factor;
    memset(codes, 0, sizeof codes);
    if (quantize_x_scale(quantize_largest_bits(x, group), &factor, ret_scale)) { quantize_codes(x, group, factor, 0, codes); }
    int32_t sum = 0;
    for (uint32_t i = 0; i < group; i++) { sum -= (int8_t)codes[i]; }
    *ret_sum = sum;
    int_spread(codes, group, rows, to);
}

static void int4_pack(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t tiles, struct gemm_int_scratch *s)
{
    const struct kernels_matrix *m = g->weight;
    const uint32_t *order = NULL;
    if (m->has_order) {
        order = (const uint32_t *)(const void *)((const unsigned char *)m->data + kernels_matrix_panels(m) * int4_panel_bytes(m));
    }
    if (int_is_packed(g, order, row_first, rows, m->group, s)) { return; }
    const uint32_t groups = int4_groups(m), depth = int4_k(m);
    uint32_t done = 0;
    for (uint32_t i = 0; i < tiles; i++) {
        uint32_t tile_rows = int_tile_rows(rows, tiles, i);
        for (uint32_t r = 0; r < tile_rows; r++) {
            const float *x = (const float *)g->x + (size_t)(row_first + done + r) * g->x_stride;
            for (uint32_t group = 0; group < groups; group++) {
                size_t at = (size_t)done * groups + (size_t)group * tile_rows + r;
                int4_pack_group(x, order, group * m->group, g->weight->n_in, m->group, tile_rows,
                                s->codes + (size_t)done * depth + (size_t)group * m->group * tile_rows + 4 * r, &s->scales[at],
                                &s->sums[at]);
            }
        }
        done += tile_rows;
    }
}

#define INT4_DEFINE(rows, panels) \
    static void int4_##rows##x##panels(const struct int_tile *t) { int4_tile(rows, panels, t); }
INT4_DEFINE(1, 1) INT4_DEFINE(2, 1) INT4_DEFINE(3, 1)
INT4_DEFINE(1, 2) INT4_DEFINE(2, 2) INT4_DEFINE(3, 2)
INT4_DEFINE(1, 4)
#if INT_WIDE
INT4_DEFINE(4, 1) INT4_DEFINE(5, 1) INT4_DEFINE(6, 1)
INT4_DEFINE(4, 2) INT4_DEFINE(5, 2) INT4_DEFINE(6, 2)
INT4_DEFINE(2, 4) INT4_DEFINE(3, 4)
#endif

static const int_tile_fn int4_tiles[GEMM_INT_PANELS_MAX][INT_TILE_ROWS_MAX] = {
#if INT_WIDE
    {int4_1x1, int4_2x1, int4_3x1, int4_4x1, int4_5x1, int4_6x1},
    {int4_1x2, int4_2x2, int4_3x2, int4_4x2, int4_5x2, int4_6x2},
    {NULL},
    {int4_1x4, int4_2x4, int4_3x4},
#else
    {int4_1x1, int4_2x1, int4_3x1},
    {int4_1x2, int4_2x2, int4_3x2},
    {NULL},
    {int4_1x4},
#endif
};
static void int4_piece(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t panel_first, uint32_t panels,
                       struct gemm_int_scratch *s)
{
    const struct kernels_matrix *m = g->weight;
    const uint32_t tiles = int_div_up(rows, INT4_TILE_ROWS), groups = int4_groups(m);
    const uint32_t depth = tiles == 1 ? groups : GEMM_INT_DEPTH / m->group;
    int4_pack(g, row_first, rows, tiles, s);
    const size_t panel_bytes = int4_panel_bytes(m);
    struct int_tile t = {.g = g};
    for (struct int_run run = {.panels = panels}; int_run_next(&run, int4_tiles, rows, tiles);) {
        t.panel = panel_first + run.first;
        t.panel_step = run.step;
        t.step_bytes = run.step * panel_bytes;
        t.weight = (const unsigned char *)m->data + t.panel * panel_bytes;
        for (t.first = 0; t.first < groups; t.first += depth) {
            t.count = int_min(depth, groups - t.first);
            t.begins = t.first == 0;
            t.ends = t.first + t.count == groups;
            uint32_t row = 0;
            for (uint32_t i = 0; i < tiles; i++) {
                uint32_t tile_rows = int_tile_rows(rows, tiles, i);
                size_t scale_at = (size_t)row * groups + (size_t)t.first * tile_rows;
                t.row = row_first + row;
                t.x = s->codes + scale_at * m->group;
                t.x_scales = s->scales + scale_at;
                t.x_sums = s->sums + scale_at;
                t.parked = (unsigned char *)s->parked + (size_t)row * run.count * 64;
                int4_tiles[run.count - 1][tile_rows - 1](&t);
                row += tile_rows;
            }
        }
    }
}

static void int_piece(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t panel_first, uint32_t panels,
                      struct gemm_int_scratch *scratch)
{
    if (g->weight->format == KERNELS_WEIGHT_INT8) {
        int8_piece(g, row_first, rows, panel_first, panels, scratch);
    } else {
        int4_piece(g, row_first, rows, panel_first, panels, scratch);
    }
}

const struct gemm_int_set INT_SYMBOL = {.isa_name = INT_ISA, .piece = int_piece};
