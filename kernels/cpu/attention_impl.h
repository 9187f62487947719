/* attention_impl: attention over paged KV of set_impl.h.
 *
 * A tile of queries (rows x heads of one kv head, or one row x heads of several: they lie side by side
 * in a block) walks the tokens in steps of 64 and segments of 512, both counted from position 0. Two products per step, of one shape: scores = q . K, whose
 * columns are 64 tokens, and sums += p . V, whose columns are dimensions; K and V lie in the order
 * that both want (kv/kv_layout.h). Between them comes an online softmax. Segments are softmaxes of
 * their own, joined in order of position, so that a long context can be walked by many threads at
 * once and gives the bits that one thread gives. Queries are worked on in blocks of four that share
 * loads; a query's own sequence of operations is the same in any company:
 *  - hidden tokens weigh exactly 0, and V of a token that some query of the tile may not see is read
 *    for it as 0 where it is not finite, so that what lies in hidden slots (another sequence's rows, old
 *    bytes, a NaN) can never reach it; adding 0 changes a sum's bits only from -0 to +0, and the output
 *    adds +0 once more, so that walking over hidden tokens and skipping them are the same;
 *  - rescaling is left out unless a score exceeds the maximum that weights are relative to by more
 *    than 2^8: weights stay far inside the range of f32 and keep their relative precision.
 * Where a set has a bf16 dot product (VEC_BF16_DOT), q and the weights are rounded to bf16 for a K
 * and V of bf16, int8 or fp8, all of which it takes exactly; sums stay f32. */

#if defined(VEC_IS_ARRAY)
#define ATT_BLOCK 1 /* in memory anyway: sharing saves nothing and costs the compiler minutes */
#else
#define ATT_BLOCK 4 /* queries that share loads */
#endif
#define ATT_STEP SET_STEP_TOKENS
#define ATT_TILES (SET_STEP_TOKENS / 16)

/* A register tile: queries x vectors of 16 columns; 16 registers, or as many halves of 8, for its sums. */
#if defined(__AVX512F__)
#define ATT_TILE_QUERIES 4
#define ATT_TILE_VECS 4
#elif defined(VEC_IS_ARRAY)
#define ATT_TILE_QUERIES 1
#define ATT_TILE_VECS 1
#else
#define ATT_TILE_QUERIES 2
#define ATT_TILE_VECS 2
#endif

enum att_form {
    ATT_F32,  /* a row of 64 bytes is 16 columns of one dimension (K) or token (V) */
    ATT_PAIR, /* of two, as bf16 pairs */
};
#if defined(VEC_BF16_DOT)
#define ATT_PAIR_IS_DOT 1
#define ATT_PAIR_BYTES 4 /* of q or p for one row of pairs: two bf16 */
#else
#define ATT_PAIR_IS_DOT 0
#define ATT_PAIR_BYTES 8 /* two floats */
#endif

struct att_state {
    /* of the tile */
    float *q;        /* [queries][dim_up], times scale * log2 e */
    uint16_t *q16;   /* the same rounded, where pairs meet in a dot product */
    float *sum;      /* [queries][dim_up]: of p.V in this segment, not yet divided */
    float *weight;   /* [queries][16]: sum of p, lane by lane */
    float *max;      /* [queries]: what p is relative to */
    float *total, *total_weight, *total_max; /* of the segments before */
    float *p;        /* [ATT_BLOCK][64] */
    uint16_t *p16;
    unsigned char *k_wide, *v_wide; /* a step in one of the two forms, where it does not lie so in the pool */
    uint32_t queries, dim, dim_up;  /* dim_up: head_dim up to a multiple of 16 */
    enum dtype dtype;
    enum att_form form;
    /* of the step: tiles tile_first .. tile_end-1 of it are seen by some query */
    uint32_t tile_first, tile_end;
    const unsigned char *k[ATT_TILES]; /* rows of 64 bytes */
    const unsigned char *v[ATT_TILES]; /* rows of 4 * dim_up bytes */
    const unsigned char *k_ahead[ATT_TILES], *v_ahead[ATT_TILES]; /* of the next step, as it lies in the pool */
    const unsigned char *scales[ATT_TILES];
    uint32_t from[SET_QUERIES_MAX], to[SET_QUERIES_MAX]; /* visible tokens of the step; to == 0: none */
    bool whole;                        /* every query sees all of it */
    bool wide;                         /* K and V do not lie in one of the two forms in the pool */
    bool asks, asks_wide;              /* for what lies ahead: while multiplying, or while widening */
};

/* 2^x for x <= 2^7, 1.5 ulp; below 2^-125 it is about 2^-125. NaN stays NaN, 2^0 is exactly 1. The
 * polynomial of (2^r - 1) / r is our own minimax fit on +-1/2, relative error 1.6e-8 of 2^r. */
VEC_FN vec att_exp2(vec x)
{
    x = vec_max(vec_set(-125.0f), x); /* keeps a NaN: see vec_max */
    vec n = vec_round(x), r = vec_sub(x, n);
    vec poly = vec_set(0.00015353362f);
    poly = vec_fma(poly, r, vec_set(0.0013398875f));
    poly = vec_fma(poly, r, vec_set(0.00961843692f));
    poly = vec_fma(poly, r, vec_set(0.0555033237f));
    poly = vec_fma(poly, r, vec_set(0.240226477f));
    poly = vec_fma(poly, r, vec_set(0.693147182f));
    return vec_times_power(vec_fma(poly, r, vec_set(1.0f)), n);
}

/* acc[q][c] += sum over rows, in order, of a[q][row] * b[c][row], for `queries` times `vecs` vectors.
 * a_stride  bytes from one query to the next
 * ahead     NULL, or asked for at the pace at which b is read: the next step lies in other blocks, where no hardware
 *           prefetcher would look, and asked for all at once it would hold up the loads of this one */
VEC_FN void att_multiply(vec *acc, const int queries, const int vecs, const enum att_form form, const unsigned char *a,
                         size_t a_stride, const unsigned char *const *b, const unsigned char *const *ahead, size_t b_step,
                         uint32_t rows)
{
    for (uint32_t row = 0; row < rows; row++) {
        vec raw[ATT_TILE_VECS];
        VEC_UNROLL
        for (int c = 0; c < vecs; c++) { raw[c] = vec_load_any(b[c] + row * b_step); }
        if (ahead != NULL) {
            VEC_UNROLL
            for (int c = 0; c < vecs; c++) { __builtin_prefetch(ahead[c] + row * b_step, 0, 3); }
        }
        if (form == ATT_F32) {
            VEC_UNROLL
            for (int i = 0; i < queries; i++) {
                vec x = vec_set(((const float *)(const void *)(a + (size_t)i * a_stride))[row]);
                VEC_UNROLL
                for (int c = 0; c < vecs; c++) { acc[i * vecs + c] = vec_fma(x, raw[c], acc[i * vecs + c]); }
            }
        } else {
#if ATT_PAIR_IS_DOT
            VEC_UNROLL
            for (int i = 0; i < queries; i++) {
                vec x = vec_set_pair(a + (size_t)i * a_stride + row * 4u);
                VEC_UNROLL
                for (int c = 0; c < vecs; c++) { acc[i * vecs + c] = vec_dot(acc[i * vecs + c], x, raw[c]); }
            }
#else
            vec half[ATT_TILE_VECS];
            VEC_UNROLL
            for (int c = 0; c < vecs; c++) { half[c] = vec_even_bf16(raw[c]); }
            VEC_UNROLL
            for (int i = 0; i < queries; i++) {
                vec x = vec_set(((const float *)(const void *)(a + (size_t)i * a_stride))[2 * row]);
                VEC_UNROLL
                for (int c = 0; c < vecs; c++) { acc[i * vecs + c] = vec_fma(x, half[c], acc[i * vecs + c]); }
            }
            VEC_UNROLL
            for (int c = 0; c < vecs; c++) { half[c] = vec_odd_bf16(raw[c]); }
            VEC_UNROLL
            for (int i = 0; i < queries; i++) {
                vec x = vec_set(((const float *)(const void *)(a + (size_t)i * a_stride))[2 * row + 1]);
                VEC_UNROLL
                for (int c = 0; c < vecs; c++) { acc[i * vecs + c] = vec_fma(x, half[c], acc[i * vecs + c]); }
            }
#endif
        }
    }
}

/* ---- scores -------------------------------------------------------------------------------- */

VEC_FN void att_scores_part(const struct att_state *st, uint32_t query, float *p, const int queries, const int vecs,
                            uint32_t tile, const enum att_form form)
{
    vec acc[ATT_TILE_QUERIES * ATT_TILE_VECS];
    VEC_UNROLL
    for (int i = 0; i < queries * vecs; i++) { acc[i] = vec_zero(); }
    const bool dot = form == ATT_PAIR && ATT_PAIR_IS_DOT;
    const unsigned char *q = dot ? (const unsigned char *)(st->q16 + (size_t)query * st->dim_up)
                                 : (const unsigned char *)(st->q + (size_t)query * st->dim_up);
    att_multiply(acc, queries, vecs, form, q, (size_t)st->dim_up * (dot ? 2 : 4), st->k + tile, st->asks ? st->k_ahead + tile : NULL, 64,
                 form == ATT_PAIR ? st->dim / 2 : st->dim);
    VEC_UNROLL
    for (int i = 0; i < queries; i++) {
        VEC_UNROLL
        for (int c = 0; c < vecs; c++) { vec_store(p + i * (int)ATT_STEP + 16 * ((int)tile + c), acc[i * vecs + c]); }
    }
}

VEC_FN void att_scores(const struct att_state *st, uint32_t first, const int count, const enum att_form form)
{
    const int one = count < ATT_TILE_QUERIES ? count : ATT_TILE_QUERIES, rest = count - one;
    uint32_t tile = st->tile_first;
    for (; tile + ATT_TILE_VECS <= st->tile_end; tile += ATT_TILE_VECS) {
        att_scores_part(st, first, st->p, one, ATT_TILE_VECS, tile, form);
        if (rest != 0) { att_scores_part(st, first + (uint32_t)one, st->p + one * (int)ATT_STEP, rest, ATT_TILE_VECS, tile, form); }
    }
    for (; tile < st->tile_end; tile++) {
        att_scores_part(st, first, st->p, one, 1, tile, form);
        if (rest != 0) { att_scores_part(st, first + (uint32_t)one, st->p + one * (int)ATT_STEP, rest, 1, tile, form); }
    }
}

/* ---- weights ------------------------------------------------------------------------------- */

VEC_FN uint32_t att_lane(uint32_t token, int tile)
{
    uint32_t first = (uint32_t)tile * 16;
    return token <= first ? 0 : token - first < 16 ? token - first : 16;
}

/* fp8 codes are read as 2^-8 of their value. */
VEC_FN vec att_scale_load(const struct att_state *st, const unsigned char *scales)
{
    vec scale = vec_load_bf16(scales);
    return st->dtype == DTYPE_FP8_E4M3 ? vec_mul(scale, vec_set(256.0f)) : scale;
}

/* Scores to weights; moves what they are relative to, and with it what was summed so far. Weights are
 * summed lane by lane, and across lanes once at the end of the segment. */
VEC_FN void att_softmax(const struct att_state *st, uint32_t query, uint32_t in_block, const bool scaled, const enum att_form form)
{
    float *p = st->p + (size_t)in_block * ATT_STEP, *weight = st->weight + (size_t)query * 16;
    const uint32_t from = st->from[query], to = st->to[query];
    vec s[ATT_TILES];
    VEC_UNROLL
    for (int j = 0; j < (int)ATT_TILES; j++) { s[j] = vec_load(p + 16 * j); }
    if (scaled) {
        VEC_UNROLL
        for (int j = 0; j < (int)ATT_TILES; j++) { s[j] = vec_mul(s[j], att_scale_load(st, st->scales[j])); }
    }
    if (!st->whole) {
        VEC_UNROLL
        for (int j = 0; j < (int)ATT_TILES; j++) { s[j] = vec_keep(s[j], att_lane(from, j), att_lane(to, j), -HUGE_VALF); }
    }
    vec tops = vec_max(vec_max(s[0], s[1]), vec_max(s[2], s[3]));
    if (vec_any_above(tops, vec_set(st->max[query] + 8.0f))) {
        float top = vec_max_lane(tops);
        vec keep = att_exp2(vec_set(st->max[query] - top));
        float *sum = st->sum + (size_t)query * st->dim_up;
        for (uint32_t d = 0; d < st->dim_up; d += 16) { vec_store(sum + d, vec_mul(vec_load(sum + d), keep)); }
        vec_store(weight, vec_mul(vec_load(weight), keep));
        st->max[query] = top;
    }
    const vec max = vec_set(st->max[query]);
    VEC_UNROLL
    for (int j = 0; j < (int)ATT_TILES; j++) { s[j] = att_exp2(vec_sub(s[j], max)); }
    if (!st->whole) {
        VEC_UNROLL
        for (int j = 0; j < (int)ATT_TILES; j++) { s[j] = vec_keep(s[j], att_lane(from, j), att_lane(to, j), 0.0f); }
    }
    vec_store(weight, vec_add(vec_load(weight), vec_add(vec_add(s[0], s[1]), vec_add(s[2], s[3]))));
    if (scaled) { /* V's scales come in here; those of hidden slots may be anything */
        VEC_UNROLL
        for (int j = 0; j < (int)ATT_TILES; j++) {
            s[j] = vec_mul(s[j], att_scale_load(st, st->scales[j] + 2 * KV_TILE_TOKENS));
            if (!st->whole) { s[j] = vec_keep(s[j], att_lane(from, j), att_lane(to, j), 0.0f); }
        }
    }
#if ATT_PAIR_IS_DOT
    if (form == ATT_PAIR) {
        VEC_UNROLL
        for (int j = 0; j < (int)ATT_TILES; j++) { vec_round_bf16(st->p16 + (size_t)in_block * ATT_STEP + 16 * j, s[j]); }
        return;
    }
#endif
    (void)form;
    VEC_UNROLL
    for (int j = 0; j < (int)ATT_TILES; j++) { vec_store(p + 16 * j, s[j]); }
}

/* ---- values -------------------------------------------------------------------------------- */

VEC_FN void att_values_part(const struct att_state *st, uint32_t query, uint32_t in_block, const int queries, uint32_t d,
                            const int vecs, const enum att_form form)
{
    vec acc[ATT_TILE_QUERIES * ATT_TILE_VECS];
    float *sum = st->sum + (size_t)query * st->dim_up + d;
    VEC_UNROLL
    for (int i = 0; i < queries; i++) {
        VEC_UNROLL
        for (int c = 0; c < vecs; c++) { acc[i * vecs + c] = vec_load(sum + (size_t)i * st->dim_up + 16 * c); }
    }
    const bool dot = form == ATT_PAIR && ATT_PAIR_IS_DOT;
    const unsigned char *p = dot ? (const unsigned char *)(st->p16 + in_block * ATT_STEP)
                                 : (const unsigned char *)(st->p + in_block * ATT_STEP);
    const size_t element = dot ? 2 : 4;
    for (uint32_t tile = st->tile_first; tile < st->tile_end; tile++) {
        const unsigned char *b[ATT_TILE_VECS], *ahead[ATT_TILE_VECS];
        VEC_UNROLL
        for (int c = 0; c < vecs; c++) {
            b[c] = st->v[tile] + (size_t)d * 4 + 64 * c;
            ahead[c] = st->v_ahead[tile] + (size_t)d * 4 + 64 * c;
        }
        att_multiply(acc, queries, vecs, form, p + tile * 16 * element, ATT_STEP * element, b, st->asks ? ahead : NULL,
                     (size_t)st->dim_up * 4, form == ATT_PAIR ? 8 : 16);
    }
    VEC_UNROLL
    for (int i = 0; i < queries; i++) {
        VEC_UNROLL
        for (int c = 0; c < vecs; c++) { vec_store(sum + (size_t)i * st->dim_up + 16 * c, acc[i * vecs + c]); }
    }
}

VEC_FN void att_values(const struct att_state *st, uint32_t first, const int count, const enum att_form form)
{
    const int one = count < ATT_TILE_QUERIES ? count : ATT_TILE_QUERIES, rest = count - one;
    uint32_t d = 0;
    for (; d + 16 * ATT_TILE_VECS <= st->dim_up; d += 16 * ATT_TILE_VECS) {
        att_values_part(st, first, 0, one, d, ATT_TILE_VECS, form);
        if (rest != 0) { att_values_part(st, first + (uint32_t)one, (uint32_t)one, rest, d, ATT_TILE_VECS, form); }
    }
    for (; d < st->dim_up; d += 16) {
        att_values_part(st, first, 0, one, d, 1, form);
        if (rest != 0) { att_values_part(st, first + (uint32_t)one, (uint32_t)one, rest, d, 1, form); }
    }
}

/* ---- one step ------------------------------------------------------------------------------ */

/* Not inlined: one copy for every size of a block. */
__attribute__((noinline)) static void att_weigh_plain(const struct att_state *st, uint32_t first, uint32_t count, enum att_form form)
{
    for (uint32_t i = 0; i < count; i++) { att_softmax(st, first + i, i, false, form); }
}

__attribute__((noinline)) static void att_weigh_scaled(const struct att_state *st, uint32_t first, uint32_t count, enum att_form form)
{
    for (uint32_t i = 0; i < count; i++) { att_softmax(st, first + i, i, true, form); }
}

VEC_FN void att_block(const struct att_state *st, uint32_t first, const int count, const enum att_form form)
{
    att_scores(st, first, count, form);
    if (st->dtype == DTYPE_INT8 || st->dtype == DTYPE_FP8_E4M3) {
        att_weigh_scaled(st, first, (uint32_t)count, form);
    } else {
        att_weigh_plain(st, first, (uint32_t)count, form);
    }
    att_values(st, first, count, form);
}

VEC_FN void att_blocks(const struct att_state *st, uint32_t first, uint32_t count, const enum att_form form)
{
    for (; count >= ATT_BLOCK; first += ATT_BLOCK, count -= ATT_BLOCK) { att_block(st, first, ATT_BLOCK, form); }
#if ATT_BLOCK == 4
    switch (count) { /* constants, so that sums stay in registers */
    case 3: att_block(st, first, 3, form); break;
    case 2: att_block(st, first, 2, form); break;
    case 1: att_block(st, first, 1, form); break;
    default: break;
    }
#endif
}

static void att_run(const struct att_state *st, uint32_t first, uint32_t count)
{
    if (st->form == ATT_F32) {
        att_blocks(st, first, count, ATT_F32);
    } else {
        att_blocks(st, first, count, ATT_PAIR);
    }
}

/* The first `count` (1..16) values of any dtype, without their scale; other lanes 0. */
VEC_FN vec att_load(enum dtype dtype, const unsigned char *p, uint32_t count)
{
    if (dtype != DTYPE_INT8 && dtype != DTYPE_FP8_E4M3) { return load_part(dtype, p, count); }
    unsigned char filled[16];
    if (count < 16) {
        memset(filled, 0, sizeof(filled));
        memcpy(filled, p, count);
        p = filled;
    }
    return dtype == DTYPE_INT8 ? vec_load_int8(p) : vec_load_fp8_small(p);
}

/* Asks for the line at ahead + at, where one begins. 16 values are a line at most, so each is asked for once. */
VEC_FN void att_ask(const unsigned char *ahead, size_t at)
{
    if (ahead != NULL && at % 64 == 0) { __builtin_prefetch(ahead + at, 0, 3); }
}

/* K of one tile in the state's form. */
VEC_FN void att_widen_k(const struct att_state *st, const unsigned char *k, const unsigned char *ahead, unsigned char *to,
                        const enum dtype dtype)
{
    const size_t row = (size_t)16 * dtype_bytes(dtype);
    if (dtype != DTYPE_F16) {
        for (uint32_t d = 0; d < st->dim; d += 2, to += 64) {
            att_ask(ahead, d * row);
            vec_store_pairs(to, att_load(dtype, k + d * row, 16), att_load(dtype, k + (d + 1) * row, 16));
        }
        return;
    }
    for (uint32_t d = 0; d < st->dim; d++) {
        att_ask(ahead, d * row);
        vec_store((float *)(void *)(to + (size_t)d * 64), att_load(dtype, k + d * row, 16));
    }
}

/* 16 values of V of one token, of which dim - d or more are there; 0 where it is hidden. */
VEC_FN vec att_load_v(const struct att_state *st, const unsigned char *row, uint32_t d, const enum dtype dtype, bool is_seen)
{
    if (!is_seen) { return vec_zero(); }
    return att_load(dtype, row + (size_t)d * dtype_bytes(dtype), st->dim - d < 16 ? st->dim - d : 16);
}

/* V of tokens from .. to-1 of one tile in the state's form; 0 for the others. */
VEC_FN void att_widen_v(const struct att_state *st, const unsigned char *v, const unsigned char *ahead, unsigned char *out,
                        const enum dtype dtype, uint32_t from, uint32_t to)
{
    const size_t row = (size_t)st->dim * dtype_bytes(dtype);
    if (dtype == DTYPE_BF16) { /* pairs already: bits of the hidden ones go */
        for (uint32_t t = 0; t < 16; t += 2) {
            uint32_t mask = (t >= from && t < to ? 0xffffu : 0) | (t + 1 >= from && t + 1 < to ? 0xffff0000u : 0);
            const uint32_t *pairs = (const uint32_t *)(const void *)(v + t * row);
            uint32_t *kept = (uint32_t *)(void *)(out + (size_t)t / 2 * st->dim_up * 4);
            for (uint32_t d = 0; d < st->dim; d++) { kept[d] = pairs[d] & mask; }
        }
        return;
    }
    const bool whole = from == 0 && to == 16 && st->dim % 16 == 0;
    if (dtype == DTYPE_INT8 || dtype == DTYPE_FP8_E4M3) {
        for (uint32_t t = 0; t < 16; t += 2) {
            const unsigned char *even = v + t * row, *odd = even + row;
            unsigned char *pairs = out + (size_t)t / 2 * st->dim_up * 4;
            for (uint32_t d = 0; d < st->dim; d += 16) {
                att_ask(ahead, t * row + d);
                att_ask(ahead, (t + 1) * row + d);
                if (whole) {
                    vec_store_pairs(pairs + d * 4u, att_load(dtype, even + d, 16), att_load(dtype, odd + d, 16));
                } else {
                    vec_store_pairs(pairs + d * 4u, att_load_v(st, even, d, dtype, t >= from && t < to),
                                    att_load_v(st, odd, d, dtype, t + 1 >= from && t + 1 < to));
                }
            }
        }
        return;
    }
    for (uint32_t t = 0; t < 16; t++) {
        float *wide = (float *)(void *)out + (size_t)t * st->dim_up;
        for (uint32_t d = 0; d < st->dim; d += 16) {
            const size_t at = t * row + (size_t)d * dtype_bytes(dtype);
            att_ask(ahead, at);
            vec_store(wide + d, whole ? att_load(dtype, v + at, 16) : att_load_v(st, v + t * row, d, dtype, t >= from && t < to));
        }
    }
}

static void att_widen(const struct att_state *st, uint32_t tile, const unsigned char *k, unsigned char *k_out,
                      const unsigned char *v, unsigned char *v_out, uint32_t from, uint32_t to)
{
    const unsigned char *k_ahead = st->asks_wide ? st->k_ahead[tile] : NULL, *v_ahead = st->asks_wide ? st->v_ahead[tile] : NULL;
    switch (st->dtype) { /* constants, so that the loads are not a switch each */
    case DTYPE_F16:
        att_widen_k(st, k, k_ahead, k_out, DTYPE_F16);
        att_widen_v(st, v, v_ahead, v_out, DTYPE_F16, from, to);
        break;
    case DTYPE_INT8:
        att_widen_k(st, k, k_ahead, k_out, DTYPE_INT8);
        att_widen_v(st, v, v_ahead, v_out, DTYPE_INT8, from, to);
        break;
    case DTYPE_FP8_E4M3:
        att_widen_k(st, k, k_ahead, k_out, DTYPE_FP8_E4M3);
        att_widen_v(st, v, v_ahead, v_out, DTYPE_FP8_E4M3, from, to);
        break;
    case DTYPE_BF16: att_widen_v(st, v, NULL, v_out, DTYPE_BF16, from, to); break;
    default: att_widen_v(st, v, NULL, v_out, DTYPE_F32, from, to); break;
    }
}

/* Where the tiles of the step after this one lie. Where there are none, anything may be asked for. */
static void att_look_ahead(struct att_state *st, const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                           uint32_t kv_head, uint32_t token, uint32_t tiles)
{
    const struct kv_layout *layout = &a->kv.layout;
    const size_t head_bytes = kv_layout_head_bytes(layout), tile_bytes = kv_layout_tile_bytes(layout);
    for (uint32_t j = 0; j < ATT_TILES; j++) {
        const unsigned char *k = a->kv.pool;
        if (j < tiles) {
            uint32_t at = token + 16 * j;
            k += kv_layout_slice_offset(layout, seq->blocks[at / layout->block_tokens], a->kv.layer) + kv_head * head_bytes
               + at % layout->block_tokens / 16 * tile_bytes;
        }
        st->k_ahead[j] = k;
        st->v_ahead[j] = j < tiles ? k + layout->kv_heads * head_bytes : k;
    }
}

/* Where the tiles of the step at `token` lie. Tokens from .. to-1 of it are seen by someone. */
static void att_step_load(struct att_state *st, const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                          uint32_t kv_head, uint32_t token, uint32_t from, uint32_t to)
{
    const struct kv_layout *layout = &a->kv.layout;
    const size_t head_bytes = kv_layout_head_bytes(layout), tile_bytes = kv_layout_tile_bytes(layout);
    const bool wide_v = st->wide || st->dim % 16 != 0;
    st->tile_first = from / 16;
    st->tile_end = (to + 15) / 16;
    for (uint32_t j = st->tile_first; j < st->tile_end; j++) {
        uint32_t at = token + 16 * j, slot = at % layout->block_tokens;
        const unsigned char *slice = (const unsigned char *)a->kv.pool
                                   + kv_layout_slice_offset(layout, seq->blocks[at / layout->block_tokens], a->kv.layer);
        const unsigned char *k = slice + kv_head * head_bytes + slot / 16 * tile_bytes;
        const unsigned char *v = k + layout->kv_heads * head_bytes;
        uint32_t lane_from = att_lane(from, (int)j), lane_to = att_lane(to, (int)j);
        unsigned char *k_out = st->k_wide + (size_t)j * 16 * st->dim_up * 4, *v_out = st->v_wide + (size_t)j * 16 * st->dim_up * 4;
        bool clear_v = wide_v || lane_from != 0 || lane_to != 16;
        st->k[j] = st->wide ? k_out : k;
        st->v[j] = clear_v ? v_out : v;
        st->scales[j] = slice + 2 * layout->kv_heads * head_bytes;
        if (kv_layout_has_scales(layout)) { st->scales[j] = slice + kv_layout_scale_offset(layout, kv_head, slot); }
        if (clear_v) { att_widen(st, j, k, k_out, v, v_out, lane_from, lane_to); }
    }
    /* Tiles that nobody sees have scores and scales that nobody uses. */
    for (uint32_t j = 0; j < ATT_TILES; j++) {
        if (j < st->tile_first || j >= st->tile_end) { st->scales[j] = st->scales[st->tile_first]; }
    }
}

/* All of V in tiles first .. end-1 is finite. Codes of int8 and fp8 always are. */
static bool att_v_finite(const struct att_state *st, uint32_t first, uint32_t end)
{
    if (st->dtype == DTYPE_INT8 || st->dtype == DTYPE_FP8_E4M3) { return true; }
    uint32_t bad = 0;
    for (uint32_t j = first; j < end; j++) {
        for (uint32_t row = 0; row < (st->form == ATT_PAIR ? 8u : 16u); row++) {
            const uint32_t *bits = (const uint32_t *)(const void *)(st->v[j] + (size_t)row * st->dim_up * 4);
            if (st->form == ATT_PAIR) {
                for (uint32_t d = 0; d < st->dim; d++) {
                    bad |= ((bits[d] & 0x7f80u) == 0x7f80u) | ((bits[d] & 0x7f800000u) == 0x7f800000u);
                }
            } else {
                for (uint32_t d = 0; d < st->dim; d++) { bad |= (bits[d] & 0x7f800000u) == 0x7f800000u; }
            }
        }
    }
    return bad == 0;
}

/* ---- segments ------------------------------------------------------------------------------ */

/* A softmax of no token: max -inf and weight 0. Joins the one of the tokens after to *max, *weight, total. */
VEC_FN void att_join(float *total, float *total_max, float *total_weight, const float *sum, float max, float weight,
                     uint32_t dim_up)
{
    if (max == -HUGE_VALF && weight == 0.0f) { return; }
    if (*total_max == -HUGE_VALF && *total_weight == 0.0f) {
        memcpy(total, sum, dim_up * sizeof(float));
        *total_max = max;
        *total_weight = weight;
        return;
    }
    float top = max > *total_max ? max : *total_max;
    vec before = att_exp2(vec_set(*total_max - top)), after = att_exp2(vec_set(max - top));
    for (uint32_t d = 0; d < dim_up; d += 16) {
        vec_store(total + d, vec_fma(vec_load(sum + d), after, vec_mul(vec_load(total + d), before)));
    }
    float weights[16];
    vec_store(weights, vec_fma(vec_set(weight), after, vec_mul(vec_set(*total_weight), before)));
    *total_weight = weights[0];
    *total_max = top;
}

/* One step of the queries of one kv head; tokens from `from_most` to `to_least` of it are seen by all of them. */
static void att_step(struct att_state *st, const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                     const struct set_attention_tile *tile, uint32_t head, uint32_t token, uint32_t from_most, uint32_t to_least)
{
    const uint32_t count = tile->rows * tile->heads, first = head * count, begin = st->tile_first;
    bool alike = tile->rows == 1 || st->whole;
    if (!alike) { /* tokens that some row may not see */
        alike = att_v_finite(st, begin, (from_most + 15) / 16 > begin ? (from_most + 15) / 16 : begin)
             && att_v_finite(st, to_least / 16 > begin ? to_least / 16 : begin, st->tile_end);
    }
    if (alike) {
        att_run(st, first, count);
        return;
    }
    for (uint32_t i = first; i < first + count; i += tile->heads) { /* row by row, V cleared for each */
        if (st->to[i] == 0) { continue; }
        att_step_load(st, a, seq, tile->kv_head + head, token, st->from[i], st->to[i]);
        att_run(st, i, tile->heads);
    }
}

static void att_segment(struct att_state *st, const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                        const struct set_attention_tile *tile, uint32_t token_first, uint32_t token_end)
{
    const uint32_t position_first = seq->position_first + tile->row_first, position_last = position_first + tile->rows - 1;
    for (uint32_t i = 0; i < st->queries; i++) {
        memset(st->sum + (size_t)i * st->dim_up, 0, st->dim_up * sizeof(float));
        st->max[i] = -HUGE_VALF;
        vec_store(st->weight + (size_t)i * 16, vec_zero());
    }
    for (uint32_t token = token_first / ATT_STEP * ATT_STEP; token < token_end; token += ATT_STEP) {
        uint32_t from_least = ATT_STEP, from_most = 0, to_least = ATT_STEP, to_most = 0;
        for (uint32_t i = 0; i < st->queries; i++) {
            uint32_t position = position_first + i / tile->heads % tile->rows;
            uint32_t see = a->window == 0 || position < a->window ? 0 : position - a->window + 1;
            bool any = position >= token && see < token + ATT_STEP;
            st->from[i] = any && see > token ? see - token : 0;
            st->to[i] = !any ? 0 : position - token < ATT_STEP ? position - token + 1 : ATT_STEP;
            if (any && st->from[i] < from_least) { from_least = st->from[i]; }
            if (st->from[i] > from_most) { from_most = st->from[i]; }
            if (st->to[i] < to_least) { to_least = st->to[i]; }
            if (st->to[i] > to_most) { to_most = st->to[i]; }
        }
        if (to_most == 0) { continue; }
        st->whole = from_most == 0 && to_least == ATT_STEP;
        for (uint32_t head = 0; head < tile->kv_heads; head++) {
            if (head + 1 < tile->kv_heads) {
                att_look_ahead(st, a, seq, tile->kv_head + head + 1, token + from_least / 16 * 16, (to_most + 15) / 16 - from_least / 16);
            } else {
                uint32_t next = token + ATT_STEP, left = next <= position_last ? (position_last - next) / 16 + 1 : 0;
                att_look_ahead(st, a, seq, tile->kv_head, next, left < ATT_TILES ? left : ATT_TILES);
            }
            att_step_load(st, a, seq, tile->kv_head + head, token, from_least, to_most);
            att_step(st, a, seq, tile, head, token, from_most, to_least);
        }
    }
}

/* ---- a tile of queries ---------------------------------------------------------------------- */

static void att_init(struct att_state *st, const struct kernels_attention *a, const struct set_attention_tile *tile, float *scratch)
{
    const uint32_t dim = a->kv.layout.head_dim;
    *st = (struct att_state){.queries = tile->kv_heads * tile->rows * tile->heads, .dim = dim, .dim_up = (dim + 15) / 16 * 16, .dtype = a->kv.layout.dtype};
    st->form = st->dtype == DTYPE_F32 || st->dtype == DTYPE_F16 ? ATT_F32 : ATT_PAIR; /* bf16 holds every code */
    st->wide = st->dtype != DTYPE_F32 && st->dtype != DTYPE_BF16;
    st->asks = tile->rows == 1 && !st->wide; /* many rows read K and V from the caches */
    st->asks_wide = tile->rows == 1 && st->wide;
    const size_t rows = (size_t)SET_QUERIES_MAX * st->dim_up, step = (size_t)ATT_STEP * st->dim_up;
    st->q = scratch;
    st->q16 = (uint16_t *)(void *)(st->q + rows);
    st->sum = st->q + rows + rows / 2;
    st->total = st->sum + rows;
    st->k_wide = (unsigned char *)(st->total + rows);
    st->v_wide = st->k_wide + step * sizeof(float);
    st->p = (float *)(void *)(st->v_wide + step * sizeof(float));
    st->p16 = (uint16_t *)(void *)(st->p + ATT_BLOCK * ATT_STEP);
    st->weight = st->p + ATT_BLOCK * ATT_STEP * 3 / 2;
    st->max = st->weight + SET_QUERIES_MAX * 16;
    st->total_max = st->max + SET_QUERIES_MAX;
    st->total_weight = st->total_max + SET_QUERIES_MAX;
}

/* Where a query lies in a buffer of [rows][q_heads][head_dim]. */
static size_t att_place(const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                        const struct set_attention_tile *tile, uint32_t query, size_t stride)
{
    const uint32_t row = query / tile->heads % tile->rows, kv_head = tile->kv_head + query / (tile->heads * tile->rows);
    const uint32_t head = kv_head * (a->q_heads / a->kv.layout.kv_heads) + tile->head_first + query % tile->heads;
    return ((size_t)seq->row_first + tile->row_first + row) * stride + (size_t)head * a->kv.layout.head_dim;
}

static void att_output(const struct att_state *st, const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                       const struct set_attention_tile *tile)
{
    for (uint32_t i = 0; i < st->queries; i++) {
        float *out = (float *)a->out + att_place(a, seq, tile, i, a->out_stride);
        const float *total = st->total + (size_t)i * st->dim_up;
        const vec weight = vec_set(st->total_weight[i]);
        for (uint32_t d = 0; d < st->dim; d += 16) {
            vec value = vec_add(vec_div(vec_load(total + d), weight), vec_zero()); /* no -0: see above */
            vec_store_part(out + d, value, st->dim - d < 16 ? st->dim - d : 16);
        }
    }
}

static void attention_piece(const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                            const struct set_attention_tile *tile, float *partial, float *scratch)
{
    struct att_state st;
    att_init(&st, a, tile, scratch);
    const vec factor = vec_set(a->scale * 1.44269504f); /* log2 e: weights are powers of two */
    for (uint32_t i = 0; i < st.queries; i++) {
        const float *from = (const float *)a->q + att_place(a, seq, tile, i, a->q_stride);
        float *q = st.q + (size_t)i * st.dim_up;
        for (uint32_t d = 0; d < st.dim; d += 16) {
            vec value = vec_mul(vec_load_part(from + d, st.dim - d < 16 ? st.dim - d : 16), factor);
            vec_store(q + d, value);
#if ATT_PAIR_IS_DOT
            vec_round_bf16(st.q16 + (size_t)i * st.dim_up + d, value);
#endif
        }
        st.total_max[i] = -HUGE_VALF;
        st.total_weight[i] = 0.0f;
    }
    const uint32_t position_first = seq->position_first + tile->row_first, end = position_first + tile->rows;
    const uint32_t start = a->window == 0 || position_first < a->window ? 0 : position_first - a->window + 1;
    bool first = true;
    for (uint32_t segment = 0; segment < tile->segments; segment++) {
        uint32_t from = (tile->segment_first + segment) * SET_SEGMENT_TOKENS, to = from + SET_SEGMENT_TOKENS;
        att_segment(&st, a, seq, tile, from > start ? from : start, to < end ? to : end);
        for (uint32_t i = 0; i < st.queries; i++) {
            float weight = vec_sum(vec_load(st.weight + (size_t)i * 16));
            if (partial != NULL) {
                float *state = partial + ((size_t)segment * st.queries + i) * SET_PARTIAL_FLOATS(st.dim_up);
                memcpy(state, st.sum + (size_t)i * st.dim_up, st.dim_up * sizeof(float));
                state[st.dim_up] = st.max[i];
                state[st.dim_up + 1] = weight;
            } else if (first) {
                st.total_max[i] = st.max[i];
                st.total_weight[i] = weight;
            } else {
                att_join(st.total + (size_t)i * st.dim_up, &st.total_max[i], &st.total_weight[i], st.sum + (size_t)i * st.dim_up,
                         st.max[i], weight, st.dim_up);
            }
        }
        if (first) { /* joining to nothing is taking over */
            float *sum = st.sum;
            st.sum = st.total;
            st.total = sum;
            first = false;
        }
    }
    if (partial == NULL) { att_output(&st, a, seq, tile); }
}

static void attention_join_piece(const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                                 const struct set_attention_tile *tile, const float *partial, float *scratch)
{
    struct att_state st;
    att_init(&st, a, tile, scratch);
    for (uint32_t i = 0; i < st.queries; i++) {
        st.total_max[i] = -HUGE_VALF;
        st.total_weight[i] = 0.0f;
        for (uint32_t segment = 0; segment < tile->segments; segment++) {
            const float *state = partial + ((size_t)segment * st.queries + i) * SET_PARTIAL_FLOATS(st.dim_up);
            att_join(st.total + (size_t)i * st.dim_up, &st.total_max[i], &st.total_weight[i], state, state[st.dim_up],
                     state[st.dim_up + 1], st.dim_up);
        }
    }
    att_output(&st, a, seq, tile);
}
