/* gemm_impl: the matrix product of set_impl.h.
 *
 * Order. Element (m, n) owns one vector of 16 running sums. Depth is walked in groups of 32; in a
 * group the sums take two products each: first `first half`, then `second half` of the group. For
 * bf16 the halves are the even and the odd elements, since a 64-byte load of 32 weights then needs
 * one shift or one mask per half; else they are elements 0..15 and 16..31. x is packed to match.
 * The last group is filled up with zeros. At the end the 16 sums are added as a fixed tree. None
 * of this looks at the number of rows or at tiles: they only say which elements share a load.
 *
 * Blocks. A tile keeps `outs` x `rows` of those vectors in registers. A piece holds up to 48 rows,
 * packed once per worker; for more than a few rows its depth is walked in blocks of GEMM_DEPTH so
 * that a tile of x stays in L1 and 64 rows of weights stay in L2; unfinished sums are parked whole
 * (all 16 lanes) between blocks, which changes no bit.
 * Source  K. Goto, R. van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008, for
 *         the blocks; with x and W both contiguous in depth nothing but x needs packing. */

#define GEMM_GROUP 32u
#define GEMM_DEPTH 1024u

#ifndef GEMM_BF16_DOT
#define GEMM_BF16_DOT 0 /* 1: bf16 weights meet x rounded to bf16, by the set's gemm_dot() */
#endif

struct gemm_tile {
    const unsigned char *weight; /* at (first out, first depth) */
    size_t weight_stride;        /* bytes from one of the tile's outs to the next */
    uint32_t out_step;           /* outs from one to the next */
    uint32_t groups;             /* whole ones */
    uint32_t tail;               /* elements after them */
    const float *x;              /* packed */
    float *sums;                 /* [outs][rows][16] between depth blocks */
    bool first, last;            /* depth block */
    const struct kernels_gemm *g;
    uint32_t row, out;           /* of the tile's corner */
};

/* Floats of one packed group of one row. */
VEC_FN uint32_t gemm_group_floats(enum dtype dtype) { return GEMM_BF16_DOT && dtype == DTYPE_BF16 ? GEMM_GROUP / 2 : GEMM_GROUP; }

VEC_FN vec gemm_weights(enum dtype dtype, const unsigned char *w, int half)
{
    switch (dtype) {
    case DTYPE_BF16: return half == 0 ? vec_even_bf16(vec_load_any(w)) : vec_odd_bf16(vec_load_any(w));
    case DTYPE_F16: return vec_load_f16(w + 32 * half);
    default: return vec_load_any(w + 64 * half);
    }
}

/* One group: sums[outs][rows] += weight . x. The weight's rows are `stride` bytes apart. */
VEC_FN void gemm_group(const int outs, const int rows, const enum dtype dtype, const unsigned char *w, size_t stride,
                       const float *x, vec *sums)
{
#if GEMM_BF16_DOT
    if (dtype == DTYPE_BF16) {
        VEC_UNROLL
        for (int j = 0; j < rows; j++) {
            VEC_UNROLL
            for (int i = 0; i < outs; i++) {
                sums[i * rows + j] = gemm_dot(w + (size_t)i * stride, x + 16 * j, sums[i * rows + j]);
            }
        }
        return;
    }
#endif
    VEC_UNROLL
    for (int half = 0; half < 2; half++) {
        if (outs <= rows || outs <= 4) { /* hold the weights, pass x by */
            vec weights[8];
            VEC_UNROLL
            for (int i = 0; i < outs; i++) { weights[i] = gemm_weights(dtype, w + (size_t)i * stride, half); }
            VEC_UNROLL
            for (int j = 0; j < rows; j++) {
                vec xj = vec_load(x + (half * rows + j) * 16);
                VEC_UNROLL
                for (int i = 0; i < outs; i++) { sums[i * rows + j] = vec_fma(weights[i], xj, sums[i * rows + j]); }
            }
        } else { /* hold x, pass the weights by */
            vec xs[8];
            VEC_UNROLL
            for (int j = 0; j < rows; j++) { xs[j] = vec_load(x + (half * rows + j) * 16); }
            VEC_UNROLL
            for (int i = 0; i < outs; i++) {
                vec weight = gemm_weights(dtype, w + (size_t)i * stride, half);
                VEC_UNROLL
                for (int j = 0; j < rows; j++) { sums[i * rows + j] = vec_fma(weight, xs[j], sums[i * rows + j]); }
            }
        }
    }
}

/* NEXT: the weights of the tile that follows, one line per line read: rows are too short for the
 * hardware's own prefetcher to run ahead across them. ALONG: further down the same stream, where
 * tiles follow each other in memory; half a page is past what one core has under way. Past the
 * matrix's end a prefetch does nothing. */
enum gemm_prefetch { GEMM_PREFETCH_NONE, GEMM_PREFETCH_NEXT, GEMM_PREFETCH_ALONG };
#define GEMM_ALONG_BYTES 2048u

VEC_FN void gemm_tile(const int outs, const int rows, const enum dtype dtype, const enum gemm_prefetch prefetch,
                      const struct gemm_tile *t)
{
    vec sums[24];
    const size_t group_bytes = GEMM_GROUP * dtype_bytes(dtype);
    const uint32_t group_floats = gemm_group_floats(dtype) * (uint32_t)rows;
    const unsigned char *w = t->weight;
    const float *x = t->x;
    VEC_UNROLL
    for (int i = 0; i < outs * rows; i++) { sums[i] = vec_zero(); }
    if (!t->first) {
        VEC_UNROLL
        for (int i = 0; i < outs * rows; i++) { sums[i] = vec_load(t->sums + 16 * i); }
    }
    const unsigned char *ahead = w + (prefetch == GEMM_PREFETCH_ALONG ? GEMM_ALONG_BYTES : (size_t)outs * t->weight_stride);
    for (uint32_t group = 0; group < t->groups; group++) {
        if (prefetch != GEMM_PREFETCH_NONE) {
            VEC_UNROLL
            for (int i = 0; i < outs; i++) {
                const unsigned char *line = ahead + (size_t)i * t->weight_stride;
                if (prefetch == GEMM_PREFETCH_ALONG) { __builtin_prefetch(line, 0, 3); } else { __builtin_prefetch(line, 0, 2); }
                if (dtype != DTYPE_F32) { continue; }
                if (prefetch == GEMM_PREFETCH_ALONG) { __builtin_prefetch(line + 64, 0, 3); } else { __builtin_prefetch(line + 64, 0, 2); }
            }
            ahead += group_bytes;
        }
        gemm_group(outs, rows, dtype, w, t->weight_stride, x, sums);
        w += group_bytes;
        x += group_floats;
    }
    if (t->tail != 0) {
        unsigned char filled[8 * GEMM_GROUP * 4];
        memset(filled, 0, (size_t)outs * group_bytes);
        for (int i = 0; i < outs; i++) {
            memcpy(filled + (size_t)i * group_bytes, w + (size_t)i * t->weight_stride, t->tail * dtype_bytes(dtype));
        }
        gemm_group(outs, rows, dtype, filled, group_bytes, x, sums);
    }
    if (!t->last) {
        VEC_UNROLL
        for (int i = 0; i < outs * rows; i++) { vec_store(t->sums + 16 * i, sums[i]); }
        return;
    }
    const struct kernels_gemm *g = t->g;
    VEC_UNROLL
    for (int i = 0; i < outs; i++) {
        const uint32_t n = t->out + (uint32_t)i * t->out_step;
        float bias = g->bias != NULL ? scalar_load(g->bias, g->bias_dtype, n) : 0.0f;
        VEC_UNROLL
        for (int j = 0; j < rows; j++) {
            float *out = g->out + (size_t)(t->row + (uint32_t)j) * g->out_stride + n;
            float value = vec_sum(sums[i * rows + j]);
            if (g->bias != NULL) { value += bias; }
            *out = g->accumulate ? value + *out : value;
        }
    }
}

typedef void (*gemm_tile_fn)(const struct gemm_tile *t);

#define GEMM_TILE_DEFINE(outs, rows, prefetch)                                         \
    static void gemm_f32_##outs##x##rows##_##prefetch(const struct gemm_tile *t)         \
    {                                                                                    \
        gemm_tile(outs, rows, DTYPE_F32, GEMM_PREFETCH_##prefetch, t);                   \
    }                                                                                    \
    static void gemm_bf16_##outs##x##rows##_##prefetch(const struct gemm_tile *t)        \
    {                                                                                    \
        gemm_tile(outs, rows, DTYPE_BF16, GEMM_PREFETCH_##prefetch, t);                  \
    }                                                                                    \
    static void gemm_f16_##outs##x##rows##_##prefetch(const struct gemm_tile *t)         \
    {                                                                                    \
        gemm_tile(outs, rows, DTYPE_F16, GEMM_PREFETCH_##prefetch, t);                   \
    }
#define GEMM_TILE_ENTRY(outs, rows, prefetch) \
    {gemm_f32_##outs##x##rows##_##prefetch, gemm_bf16_##outs##x##rows##_##prefetch, gemm_f16_##outs##x##rows##_##prefetch}

#define GEMM_TILES_DEFINE(outs, prefetch) \
    GEMM_TILE_DEFINE(outs, 1, prefetch)   \
    GEMM_TILE_DEFINE(outs, 2, prefetch)   \
    GEMM_TILE_DEFINE(outs, 3, prefetch)
#define GEMM_TILES_DEFINE_MORE(outs, prefetch) \
    GEMM_TILE_DEFINE(outs, 4, prefetch)        \
    GEMM_TILE_DEFINE(outs, 5, prefetch)        \
    GEMM_TILE_DEFINE(outs, 6, prefetch)

/* STREAM tiles serve few rows, where the speed is that of reading weights. A core reads fastest along
 * several runs that lie far apart and each go straight on, as the hardware's prefetcher follows them:
 * so a tile takes one out of each quarter of the piece, not neighbours. Measured on Zen 5, rows of
 * 896, 2048 and 8192 bf16, share of the best read probe: 8 neighbours .63 .57 .64, 4 neighbours
 * .79 .75 -, 4 streams .91 .84 .93; 8 streams .75 .73 -. */
GEMM_TILES_DEFINE(1, NONE)
GEMM_TILES_DEFINE_MORE(1, NONE)
GEMM_TILE_DEFINE(4, 1, ALONG)
#if GEMM_TILE_OUTS == 4
GEMM_TILES_DEFINE(4, NEXT)
GEMM_TILES_DEFINE_MORE(4, NEXT)
GEMM_TILE_DEFINE(4, 2, ALONG)
GEMM_TILE_DEFINE(4, 3, ALONG)
static const gemm_tile_fn gemm_tiles_stream[3][DTYPE_COUNT] = {GEMM_TILE_ENTRY(4, 1, ALONG), GEMM_TILE_ENTRY(4, 2, ALONG),
                                                               GEMM_TILE_ENTRY(4, 3, ALONG)};
static const gemm_tile_fn gemm_tiles[6][DTYPE_COUNT] = {GEMM_TILE_ENTRY(4, 1, NEXT), GEMM_TILE_ENTRY(4, 2, NEXT),
                                                        GEMM_TILE_ENTRY(4, 3, NEXT), GEMM_TILE_ENTRY(4, 4, NEXT),
                                                        GEMM_TILE_ENTRY(4, 5, NEXT), GEMM_TILE_ENTRY(4, 6, NEXT)};
#define GEMM_STREAM_ROWS 3u
#define GEMM_TILE_ROWS 6u
#else
GEMM_TILES_DEFINE(2, NEXT)
static const gemm_tile_fn gemm_tiles_stream[1][DTYPE_COUNT] = {GEMM_TILE_ENTRY(4, 1, ALONG)};
static const gemm_tile_fn gemm_tiles[3][DTYPE_COUNT] = {GEMM_TILE_ENTRY(2, 1, NEXT), GEMM_TILE_ENTRY(2, 2, NEXT),
                                                        GEMM_TILE_ENTRY(2, 3, NEXT)};
#define GEMM_STREAM_ROWS 1u
#define GEMM_TILE_ROWS 3u
#endif
#define GEMM_STREAMS 4u
static const gemm_tile_fn gemm_tiles_single[6][DTYPE_COUNT] = {GEMM_TILE_ENTRY(1, 1, NONE), GEMM_TILE_ENTRY(1, 2, NONE),
                                                               GEMM_TILE_ENTRY(1, 3, NONE), GEMM_TILE_ENTRY(1, 4, NONE),
                                                               GEMM_TILE_ENTRY(1, 5, NONE), GEMM_TILE_ENTRY(1, 6, NONE)};

_Static_assert(GEMM_TILE_ROWS <= SET_GEMM_TILE_ROWS_MAX, "the pack is sized by the tallest tile");

VEC_FN uint32_t gemm_groups(uint32_t n_in) { return (n_in + GEMM_GROUP - 1) / GEMM_GROUP; }

/* Rows of tile i when `rows` are dealt out to `tiles` as evenly as can be. */
VEC_FN uint32_t gemm_tile_rows(uint32_t rows, uint32_t tiles, uint32_t i) { return rows / tiles + (i < rows % tiles ? 1 : 0); }

/* One group of one row in the order of gemm_group(): the halves go `apart` floats from each other. */
VEC_FN void gemm_pack_group(const float *x, uint32_t count, enum dtype dtype, float *to, size_t apart)
{
    float filled[GEMM_GROUP];
    if (count < GEMM_GROUP) {
        memset(filled, 0, sizeof(filled));
        memcpy(filled, x, count * sizeof(float));
        x = filled;
    }
#if GEMM_BF16_DOT
    if (dtype == DTYPE_BF16) {
        vec_store_bf16(to, vec_load(x));
        vec_store_bf16(to + 8, vec_load(x + 16));
        return;
    }
#endif
    if (dtype == DTYPE_BF16) {
        vec_deinterleave(x, to, to + apart);
    } else {
        vec_store(to, vec_load(x));
        vec_store(to + apart, vec_load(x + 16));
    }
}

static void gemm_pack(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t tiles,
                      struct set_scratch *scratch)
{
    if (scratch->pack_x == g->x && scratch->pack_row_first == row_first && scratch->pack_rows == rows
        && scratch->pack_in == g->n_in && scratch->pack_dtype == g->weight_dtype) {
        return; /* q, k and v read the same rows */
    }
    float *to = scratch->pack;
    uint32_t row = row_first;
    for (uint32_t tile = 0; tile < tiles; tile++) {
        uint32_t tile_rows = gemm_tile_rows(rows, tiles, tile);
        for (uint32_t k = 0; k < g->n_in; k += GEMM_GROUP) {
            uint32_t count = g->n_in - k < GEMM_GROUP ? g->n_in - k : GEMM_GROUP;
            for (uint32_t j = 0; j < tile_rows; j++) {
                gemm_pack_group(g->x + (row + j) * g->x_stride + k, count, g->weight_dtype, to + j * 16, tile_rows * 16);
            }
            to += tile_rows * gemm_group_floats(g->weight_dtype);
        }
        row += tile_rows;
    }
    scratch->pack_x = g->x;
    scratch->pack_row_first = row_first;
    scratch->pack_rows = rows;
    scratch->pack_in = g->n_in;
    scratch->pack_dtype = g->weight_dtype;
}

/* Few rows: whole depth at once, outs in GEMM_STREAMS runs side by side, what is left over one by one. */
static void gemm_piece_stream(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t out_first,
                              uint32_t outs, struct set_scratch *scratch)
{
    const size_t row_bytes = g->weight_stride * dtype_bytes(g->weight_dtype);
    const uint32_t run = outs / GEMM_STREAMS;
    gemm_pack(g, row_first, rows, 1, scratch);
    struct gemm_tile t = {.weight_stride = run * row_bytes, .out_step = run, .groups = g->n_in / GEMM_GROUP,
                          .tail = g->n_in % GEMM_GROUP, .x = scratch->pack, .first = true, .last = true, .g = g, .row = row_first};
    for (uint32_t n = 0; n < run; n++) {
        t.out = out_first + n;
        t.weight = (const unsigned char *)g->weight + t.out * row_bytes;
        gemm_tiles_stream[rows - 1][g->weight_dtype](&t);
    }
    for (uint32_t n = run * GEMM_STREAMS; n < outs; n++) {
        t.out = out_first + n;
        t.weight = (const unsigned char *)g->weight + t.out * row_bytes;
        gemm_tiles_single[rows - 1][g->weight_dtype](&t);
    }
}

static void gemm_piece(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, uint32_t out_first, uint32_t outs,
                       struct set_scratch *scratch)
{
    if (rows <= GEMM_STREAM_ROWS) {
        gemm_piece_stream(g, row_first, rows, out_first, outs, scratch);
        return;
    }
    const uint32_t tiles = (rows + GEMM_TILE_ROWS - 1) / GEMM_TILE_ROWS;
    const uint32_t element = dtype_bytes(g->weight_dtype);
    const uint32_t group_floats = gemm_group_floats(g->weight_dtype);
    const uint32_t groups_total = gemm_groups(g->n_in);
    gemm_pack(g, row_first, rows, tiles, scratch);

    struct gemm_tile t = {.weight_stride = g->weight_stride * element, .out_step = 1, .g = g};
    for (uint32_t k = 0; k < g->n_in; k += GEMM_DEPTH) {
        uint32_t count = g->n_in - k < GEMM_DEPTH ? g->n_in - k : GEMM_DEPTH;
        t.groups = count / GEMM_GROUP;
        t.tail = count % GEMM_GROUP;
        t.first = k == 0;
        t.last = k + count == g->n_in;
        uint32_t done = 0;
        for (uint32_t tile = 0; tile < tiles; tile++) {
            uint32_t tile_rows = gemm_tile_rows(rows, tiles, tile);
            t.x = scratch->pack + ((size_t)done * groups_total + (size_t)tile_rows * (k / GEMM_GROUP)) * group_floats;
            t.row = row_first + done;
            for (uint32_t n = 0; n < outs;) {
                uint32_t step = 1;
                gemm_tile_fn fn = gemm_tiles_single[tile_rows - 1][g->weight_dtype];
                if (outs - n >= GEMM_TILE_OUTS) {
                    step = GEMM_TILE_OUTS;
                    fn = gemm_tiles[tile_rows - 1][g->weight_dtype];
                }
                t.out = out_first + n;
                t.weight = (const unsigned char *)g->weight + ((size_t)t.out * g->weight_stride + k) * element;
                t.sums = scratch->sums + ((size_t)done * SET_GEMM_OUTS_MAX + (size_t)tile_rows * n) * 16;
                fn(&t);
                n += step;
            }
            done += tile_rows;
        }
    }
}
