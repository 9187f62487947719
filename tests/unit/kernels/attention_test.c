/* Paged attention: near the oracle, blind to what it may not see, and the same bits however a
 * prompt is cut, whoever else is in the batch, and however many threads there are. */
#include "tests/unit/kernels/kernels_testing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEQUENCES_MAX 4u
#define TOKENS_MAX 1100u
#define BLOCKS_MAX 72u /* of a sequence */

/* A pool and some sequences with their q, k and v rows, all positions from 0. */
struct scene {
    struct kernels_kv kv;
    size_t pool_bytes;
    uint32_t q_heads, window, sequence_count;
    uint32_t tokens[SEQUENCES_MAX];
    uint32_t row_first[SEQUENCES_MAX], rows; /* of all sequences, one after the other */
    uint32_t blocks[SEQUENCES_MAX][BLOCKS_MAX];
    size_t q_stride, kv_stride;
    float *q, *k, *v;
    float scale;
};

static struct scene scene_make(struct random_state *random, uint32_t head_dim, uint32_t kv_heads, uint32_t group,
                               uint32_t window, uint32_t tokens_max)
{
    struct scene s = {.q_heads = kv_heads * group, .window = window, .scale = 1 / sqrtf((float)head_dim)};
    s.kv.layout = (struct kv_layout){.block_tokens = random_range(random, 1, 2) * 16, .layer_count = random_range(random, 1, 3),
                                     .kv_heads = kv_heads, .head_dim = head_dim,
                                     .dtype = (enum dtype)random_range(random, 0, DTYPE_KV_COUNT - 1)};
    s.kv.layer = random_range(random, 0, s.kv.layout.layer_count - 1);
    s.sequence_count = random_range(random, 1, SEQUENCES_MAX);
    s.kv.block_count = SEQUENCES_MAX * BLOCKS_MAX;
    s.pool_bytes = s.kv.block_count * kv_layout_block_bytes(&s.kv.layout);
    s.kv.pool = poisoned(s.pool_bytes);
    uint32_t order[SEQUENCES_MAX * BLOCKS_MAX];
    for (uint32_t i = 0; i < s.kv.block_count; i++) { order[i] = i; }
    for (uint32_t i = s.kv.block_count - 1; i > 0; i--) {
        uint32_t j = random_range(random, 0, i), other = order[i];
        order[i] = order[j];
        order[j] = other;
    }
    for (uint32_t i = 0; i < s.sequence_count; i++) {
        s.tokens[i] = random_range(random, 1, tokens_max);
        s.row_first[i] = s.rows;
        s.rows += s.tokens[i];
        memcpy(s.blocks[i], order + i * BLOCKS_MAX, sizeof(s.blocks[i]));
    }
    s.q_stride = (size_t)s.q_heads * head_dim + random_range(random, 0, 2);
    s.kv_stride = (size_t)kv_heads * head_dim + random_range(random, 0, 2);
    s.q = poisoned(s.rows * s.q_stride * sizeof(float));
    s.k = poisoned(s.rows * s.kv_stride * sizeof(float));
    s.v = poisoned(s.rows * s.kv_stride * sizeof(float));
    random_fill(random, s.q, DTYPE_F32, s.rows * s.q_stride, 2);
    random_fill(random, s.k, DTYPE_F32, s.rows * s.kv_stride, 2);
    random_fill(random, s.v, DTYPE_F32, s.rows * s.kv_stride, 1);
    return s;
}

static void scene_free(struct scene *s)
{
    free(s->kv.pool);
    free(s->q);
    free(s->k);
    free(s->v);
}

/* All of the pool is NaN in every dtype: who reads a slot that was not written shows it. */
static void pool_poison(struct scene *s) { memset(s->kv.pool, 0xff, s->pool_bytes); }

static void write_rows(struct scene *s, struct kernels *kernels, uint32_t sequence, uint32_t first, uint32_t count)
{
    struct kernels_kv_slot slots[TOKENS_MAX];
    uint32_t block_tokens = s->kv.layout.block_tokens;
    for (uint32_t i = 0; i < count; i++) {
        slots[i] = (struct kernels_kv_slot){s->blocks[sequence][(first + i) / block_tokens], (first + i) % block_tokens};
    }
    size_t row = s->row_first[sequence] + first;
    struct kernels_kv_write w = {.kv = s->kv, .rows = count, .k = s->k + row * s->kv_stride, .k_stride = s->kv_stride,
                                 .v = s->v + row * s->kv_stride, .v_stride = s->kv_stride, .slots = slots};
    kernels_kv_write(kernels, &w);
}

static struct kernels_attention attention_args(const struct scene *s, float *out,
                                               const struct kernels_attention_sequence *sequences, uint32_t count)
{
    return (struct kernels_attention){.kv = s->kv, .q_heads = s->q_heads, .scale = s->scale, .window = s->window, .q = s->q,
                                      .q_stride = s->q_stride, .out = out, .out_stride = s->q_stride, .sequences = sequences,
                                      .sequence_count = count};
}

/* Everything in one call. Returns owned [rows][q_stride]. */
static float *run_whole(struct scene *s, struct kernels *kernels)
{
    float *out = poisoned(s->rows * s->q_stride * sizeof(float));
    struct kernels_attention_sequence sequences[SEQUENCES_MAX];
    pool_poison(s);
    for (uint32_t i = 0; i < s->sequence_count; i++) {
        write_rows(s, kernels, i, 0, s->tokens[i]);
        sequences[i] = (struct kernels_attention_sequence){s->row_first[i], s->tokens[i], 0, s->blocks[i]};
    }
    struct kernels_attention a = attention_args(s, out, sequences, s->sequence_count);
    kernels_attention(kernels, &a);
    return out;
}

/* In random chunks, the sequences advancing side by side, each chunk's KV written just before it;
 * with `decode` all chunks are one row. Table entries before the window are made stale. */
static float *run_chunks(struct scene *s, struct kernels *kernels, struct random_state *random, bool decode)
{
    float *out = poisoned(s->rows * s->q_stride * sizeof(float));
    uint32_t at[SEQUENCES_MAX] = {0};
    pool_poison(s);
    for (;;) {
        struct kernels_attention_sequence sequences[SEQUENCES_MAX];
        uint32_t tables[SEQUENCES_MAX][BLOCKS_MAX];
        uint32_t count = 0;
        bool left = false;
        for (uint32_t i = 0; i < s->sequence_count; i++) {
            uint32_t rest = s->tokens[i] - at[i], rows = decode ? rest != 0 : random_range(random, 0, rest < 40 ? rest : 40);
            left = left || rest != 0;
            if (rows == 0 && random_range(random, 0, 1)) { continue; } /* absent, or there with no rows */
            write_rows(s, kernels, i, at[i], rows);
            memcpy(tables[i], s->blocks[i], sizeof(tables[i]));
            uint32_t start = s->window == 0 || at[i] < s->window ? 0 : at[i] - s->window + 1;
            for (uint32_t b = 0; b < start / s->kv.layout.block_tokens; b++) { tables[i][b] = UINT32_MAX; }
            sequences[count++] = (struct kernels_attention_sequence){s->row_first[i] + at[i], rows, at[i], tables[i]};
            at[i] += rows;
        }
        struct kernels_attention a = attention_args(s, out, sequences, count);
        kernels_attention(kernels, &a);
        if (!left) { return out; }
    }
}

/* K and V of 8 bits at most meet a q and weights rounded to bf16 in the sets that compute so. */
static bool rounds_to_bf16(const struct scene *s, struct kernels *kernels)
{
    enum dtype dtype = s->kv.layout.dtype;
    return strncmp(kernels_set_name(kernels), "cpu-fma16-", 10) != 0 && strncmp(kernels_set_name(kernels), "cpu-plain16-", 12) != 0
        && dtype != DTYPE_F32 && dtype != DTYPE_F16;
}

/* Bound, first order in eps. q times scale and log2 e errs by 2 eps, a score of head_dim products in
 * one chain by head_dim eps, its K scale by eps, its distance from the maximum by 2 eps more, each times
 * S = scale * sum |q k|; 2 to that errs relatively by as much, and by 3 eps of its own. The walk over V
 * adds eps per token and per rescaled step, the sum of weights likewise, joined segments 4 eps each, the
 * division 1; numerator and denominator both carry it: twice the sum, times the greatest |v|. Rounding q
 * to bf16 adds 2^-8 S to a score, rounding a weight 2^-8 of it to the numerator. */
static void check_near_oracle(struct scene *s, struct kernels *kernels, const float *out)
{
    struct kernels *ref = kernels_for("ref", 1);
    float *want = run_whole(s, ref);
    uint32_t dim = s->kv.layout.head_dim, group = s->q_heads / s->kv.layout.kv_heads;
    for (uint32_t i = 0; i < s->sequence_count; i++) {
        for (uint32_t p = 0; p < s->tokens[i]; p++) {
            for (uint32_t h = 0; h < s->q_heads; h++) {
                const float *q = s->q + (s->row_first[i] + p) * s->q_stride + (size_t)h * dim;
                double size = 0, top = 0;
                for (uint32_t t = 0; t <= p; t++) {
                    double sum = 0;
                    for (uint32_t d = 0; d < dim; d++) {
                        size_t at = (s->row_first[i] + t) * s->kv_stride + (size_t)(h / group) * dim + d;
                        sum += fabs((double)q[d] * (double)s->k[at]);
                        top = fmax(top, fabs((double)s->v[at]));
                    }
                    size = fmax(size, sum * (double)s->scale);
                }
                double stored = kv_layout_has_scales(&s->kv.layout) ? 1.08 : 1.01; /* k and v were rounded when stored */
                size *= stored;
                double bound = 2 * EPS * ((dim + 8) * size + p + 1 + 2 * (p / 64.0 + 1) + 4 * (p / 512.0 + 1) + 8) * top * stored;
                if (rounds_to_bf16(s, kernels)) { bound += EPS_BF16 * (2 * size + 1) * top * stored; }
                for (uint32_t d = 0; d < dim; d++) {
                    size_t at = (s->row_first[i] + p) * s->q_stride + (size_t)h * dim + d;
                    assert_near(kernels_isa_name(kernels), at, out[at], (double)want[at], bound);
                }
            }
            for (size_t gap = (size_t)s->q_heads * dim; gap < s->q_stride; gap++) { /* nothing past a row is touched */
                assert_memory_equal(&out[(s->row_first[i] + p) * s->q_stride + gap], "\xA5\xA5\xA5\xA5", 4);
            }
        }
    }
    free(want);
    kernels_destroy(ref);
}

static void check_scene(struct random_state *random, const struct isa_list *isas, uint32_t head_dim, uint32_t kv_heads,
                        uint32_t group, uint32_t window, uint32_t tokens_max)
{
    struct scene s = scene_make(random, head_dim, kv_heads, group, window, tokens_max);
    float *fused = NULL;
    for (uint32_t i = 0; i < isas->count; i++) {
        struct kernels *one = kernels_for(isas->names[i], 1);
        float *whole = run_whole(&s, one);
        check_near_oracle(&s, one, whole);
        for (uint32_t threads = 1; threads <= 3; threads++) {
            struct kernels *kernels = kernels_for(isas->names[i], threads);
            float *chunks = run_chunks(&s, kernels, random, false), *decode = run_chunks(&s, kernels, random, true);
            assert_same_bits("chunks", chunks, whole, s.rows * s.q_stride);
            assert_same_bits("one by one", decode, whole, s.rows * s.q_stride);
            free(chunks);
            free(decode);
            kernels_destroy(kernels);
        }
        for (uint32_t q = 0; q < s.sequence_count; q++) { /* each sequence with nobody else */
            struct scene alone = s;
            alone.sequence_count = 1;
            alone.tokens[0] = alone.rows = s.tokens[q];
            memcpy(alone.blocks[0], s.blocks[q], sizeof(s.blocks[q]));
            alone.q += s.row_first[q] * s.q_stride;
            alone.k += s.row_first[q] * s.kv_stride;
            alone.v += s.row_first[q] * s.kv_stride;
            alone.row_first[0] = 0;
            float *out = run_whole(&alone, one);
            assert_same_bits("sequence alone", out, whole + s.row_first[q] * s.q_stride, alone.rows * s.q_stride);
            free(out);
        }
        if (isa_shares_order(kernels_isa_name(one))) {
            if (fused != NULL) { assert_same_bits("avx2 and avx512", whole, fused, s.rows * s.q_stride); }
            free(fused);
            fused = whole;
        } else {
            free(whole);
        }
        kernels_destroy(one);
    }
    free(fused);
    scene_free(&s);
}

/* Head widths, groupings and windows of the models we know, and odd ones. */
static void shapes(void **state)
{
    (void)state;
    static const uint32_t cases[][4] = {
        /* head_dim, kv_heads, group, window */
        {64, 2, 4, 0}, {128, 1, 2, 0}, {64, 2, 7, 0}, {64, 3, 1, 0}, {8, 2, 2, 0}, {16, 1, 1, 7}, {80, 1, 3, 0},
        {96, 1, 4, 33}, {2, 1, 1, 0}, {6, 2, 3, 16}, {256, 1, 1, 0}, {64, 1, 20, 0}, {32, 1, 33, 1}, {128, 2, 4, 48},
        {64, 1, 16, 100}, {34, 1, 5, 15},
    };
    struct random_state random = random_start("attention shapes");
    struct isa_list isas = isa_list_all();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        check_scene(&random, &isas, cases[i][0], cases[i][1], cases[i][2], cases[i][3], 150);
    }
}

/* Contexts of several segments: one sequence is split over the threads, several are not, and a window may
 * begin in any segment. */
static void long_contexts(void **state)
{
    (void)state;
    static const uint32_t cases[][5] = {{16, 1, 2, 0, TOKENS_MAX}, {16, 1, 1, 600, TOKENS_MAX}, {32, 2, 1, 0, 640}, {64, 1, 3, 100, 560}};
    struct random_state random = random_start("attention long_contexts");
    struct isa_list isas = isa_list_all();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        check_scene(&random, &isas, cases[i][0], cases[i][1], cases[i][2], cases[i][3], cases[i][4]);
    }
}

/* A later token of infinite or NaN K and V, as an overflow to f16 leaves it, changes no earlier row, in any format. */
static void later_infinity_is_not_seen(void **state)
{
    (void)state;
    struct random_state random = random_start("attention later_infinity");
    struct isa_list isas = isa_list_all();
    for (uint32_t i = 0; i < isas.count * DTYPE_KV_COUNT * 2; i++) {
        struct kernels *kernels = kernels_for(isas.names[i / DTYPE_KV_COUNT / 2], 2);
        struct scene s = scene_make(&random, 64, 1, 4, i % 2 ? 20 : 0, 150);
        s.kv.layout = (struct kv_layout){16, 1, 1, 64, (enum dtype)(i / 2 % DTYPE_KV_COUNT), KV_ORDER_TILES}; /* no larger than the pool in f32 */
        s.kv.layer = 0;
        s.kv.block_count = (uint32_t)(s.pool_bytes / kv_layout_block_bytes(&s.kv.layout));
        for (uint32_t b = 0; b < 3; b++) { s.blocks[0][b] = s.kv.block_count - 1 - b; }
        s.sequence_count = 1;
        s.tokens[0] = 40;
        if (s.rows < 40) { scene_free(&s); kernels_destroy(kernels); continue; }
        s.rows = 40;
        float *before = run_whole(&s, kernels);
        for (uint32_t d = 0; d < 64; d++) { s.k[37 * s.kv_stride + d] = s.v[37 * s.kv_stride + d] = i % 3 ? INFINITY : NAN; }
        float *after = run_whole(&s, kernels);
        assert_same_bits("earlier rows", after, before, 37 * s.q_stride);
        assert_true(isnan(after[37 * s.q_stride])); /* who sees it shows it */
        free(before);
        free(after);
        scene_free(&s);
        kernels_destroy(kernels);
    }
}

/* With a window, logical block i may lie at physical block i mod R, R blocks being one chunk more than
 * the window: a sequence of any length lives in R blocks and has the bits of one that kept them all. */
static void windows_live_in_a_ring(void **state)
{
    (void)state;
    enum { TOKENS = 333, WINDOW = 40, CHUNK = 16, RING = (WINDOW + CHUNK + 15) / 16 + 1 };
    struct random_state random = random_start("attention ring");
    struct isa_list isas = isa_list_all();
    for (uint32_t i = 0; i < isas.count * DTYPE_KV_COUNT; i++) {
        struct kernels *kernels = kernels_for(isas.names[i / DTYPE_KV_COUNT], 1 + i % 2);
        struct scene s = scene_make(&random, 32, 2, 3, WINDOW, 1);
        free(s.q);
        free(s.k);
        free(s.v);
        s.kv.layout.dtype = (enum dtype)(i % DTYPE_KV_COUNT);
        s.kv.layout.block_tokens = 16;
        free(s.kv.pool);
        s.pool_bytes = s.kv.block_count * kv_layout_block_bytes(&s.kv.layout);
        s.kv.pool = poisoned(s.pool_bytes);
        s.sequence_count = 1;
        s.tokens[0] = s.rows = TOKENS;
        s.q = poisoned(s.rows * s.q_stride * sizeof(float));
        s.k = poisoned(s.rows * s.kv_stride * sizeof(float));
        s.v = poisoned(s.rows * s.kv_stride * sizeof(float));
        random_fill(&random, s.q, DTYPE_F32, s.rows * s.q_stride, 2);
        random_fill(&random, s.k, DTYPE_F32, s.rows * s.kv_stride, 2);
        random_fill(&random, s.v, DTYPE_F32, s.rows * s.kv_stride, 1);
        float *kept = run_whole(&s, kernels), *out = poisoned(s.rows * s.q_stride * sizeof(float));
        pool_poison(&s);
        for (uint32_t b = RING; b < BLOCKS_MAX; b++) { s.blocks[0][b] = s.blocks[0][b % RING]; }
        for (uint32_t at = 0, rows; at < TOKENS; at += rows) {
            rows = random_range(&random, 1, CHUNK);
            if (rows > TOKENS - at) { rows = TOKENS - at; }
            write_rows(&s, kernels, 0, at, rows);
            struct kernels_attention_sequence sequence = {at, rows, at, s.blocks[0]};
            struct kernels_attention a = attention_args(&s, out, &sequence, 1);
            kernels_attention(kernels, &a);
        }
        assert_same_bits("ring", out, kept, s.rows * s.q_stride);
        free(kept);
        free(out);
        scene_free(&s);
        kernels_destroy(kernels);
    }
}

/* int8 and fp8 as the header of kv_layout.h says, by hand: a scale rounded up, codes to nearest even, zeros, and a row
 * that is not finite. */
static void codes_and_scales_by_hand(void **state)
{
    (void)state;
    static const struct { float x[2]; enum dtype dtype; float scale, got[2]; } cases[] = {
        {{127, -2.5f}, DTYPE_INT8, 1, {127, -2}},
        {{127.5f, 64}, DTYPE_INT8, 1.0078125f, {127.9921875f, 64.5f}}, /* 127.5/127 up to bf16; codes 127 and 64 (63.5 to even) */
        {{448, -17}, DTYPE_FP8_E4M3, 1, {448, -16}},
        {{896, 0.001f}, DTYPE_FP8_E4M3, 2, {896, 0}},
        {{0, 0}, DTYPE_INT8, 0, {0, 0}},
        {{0, -0.0f}, DTYPE_FP8_E4M3, 0, {0, 0}},
        {{INFINITY, 1}, DTYPE_INT8, NAN, {NAN, NAN}},
        {{1, NAN}, DTYPE_FP8_E4M3, NAN, {NAN, NAN}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kernels *kernels = kernels_for("ref", 1);
        unsigned char pool[256] = {0};
        struct kernels_kv kv = {.pool = pool, .layout = {16, 1, 1, 2, cases[i].dtype, KV_ORDER_TILES}, .block_count = 1};
        struct kernels_kv_slot slot = {0, 5};
        assert_true(kv_layout_block_bytes(&kv.layout) <= sizeof(pool));
        struct kernels_kv_write w = {.kv = kv, .rows = 1, .k = cases[i].x, .k_stride = 2, .v = cases[i].x, .v_stride = 2, .slots = &slot};
        kernels_kv_write(kernels, &w);
        for (int of_v = 0; of_v < 2; of_v++) {
            uint16_t bits;
            memcpy(&bits, pool + kv_layout_scale_offset(&kv.layout, 0, 5) + (of_v ? 2 * KV_TILE_TOKENS : 0), 2);
            float scale = bf16_to_f32(bits);
            assert_true(scale == cases[i].scale || (isnan(scale) && isnan(cases[i].scale)));
            for (uint32_t d = 0; d < 2; d++) {
                unsigned char code = pool[of_v ? kv_layout_v_offset(&kv.layout, 0, 5, d) : kv_layout_k_offset(&kv.layout, 0, 5, d)];
                float value = scale * (cases[i].dtype == DTYPE_INT8 ? (float)(int8_t)code : fp8_e4m3_to_f32(code));
                assert_true(value == cases[i].got[d] || (isnan(value) && isnan(cases[i].got[d])));
            }
        }
        kernels_destroy(kernels);
    }
}

/* The oracle by hand: one visible token gives its V; two equal scores give the mean. */
static void oracle_by_hand(void **state)
{
    (void)state;
    struct kernels *kernels = kernels_for("ref", 1);
    float pool[2 * 16 * 2] = {0};
    pool[32] = 1;
    pool[33] = 2; /* V of token 0 */
    pool[34] = 3;
    pool[35] = 6; /* V of token 1; K are all 0 */
    uint32_t table[1] = {0};
    float q[2][2] = {{1, 1}, {1, 1}}, out[2][2] = {{0}};
    struct kernels_attention_sequence sequence = {0, 2, 0, table};
    struct kernels_attention a = {.kv = {.pool = pool, .layout = {16, 1, 1, 2, DTYPE_F32, KV_ORDER_TILES}, .block_count = 1}, .q_heads = 1,
                                  .scale = 1, .q = q[0], .q_stride = 2, .out = out[0], .out_stride = 2,
                                  .sequences = &sequence, .sequence_count = 1};
    kernels_attention(kernels, &a);
    assert_true(out[0][0] == 1 && out[0][1] == 2 && out[1][0] == 2 && out[1][1] == 4);
    a.window = 1;
    kernels_attention(kernels, &a);
    assert_true(out[1][0] == 3 && out[1][1] == 6);
    kernels_destroy(kernels);
}

/* Every set writes what the oracle writes: its own slot and nothing else, to the bit (a NaN of any payload). */
static void kv_write_rounds_in_place(void **state)
{
    (void)state;
    struct random_state random = random_start("kv_write");
    struct isa_list isas = isa_list_all();
    for (uint32_t i = 0; i < isas.count; i++) {
        struct kernels *kernels = kernels_for(isas.names[i], 2), *ref = kernels_for("ref", 1);
        for (int turn = 0; turn < 20; turn++) {
            struct scene s = scene_make(&random, 2 * random_range(&random, 1, 70), random_range(&random, 1, 3), 1, 0, 150);
            s.k[0] = INFINITY;
            s.v[0] = 1e30f; /* past f16 */
            s.k[1] = 1e-7f; /* below its normal range */
            s.v[1] = NAN;
            unsigned char *want = poisoned(s.pool_bytes), *pool = s.kv.pool;
            for (int which = 0; which < 2; which++) {
                pool_poison(&s);
                for (uint32_t q = 0; q < s.sequence_count; q++) { write_rows(&s, which == 0 ? ref : kernels, q, 0, s.tokens[q]); }
                if (which == 0) { memcpy(want, pool, s.pool_bytes); }
            }
            if (kv_layout_has_scales(&s.kv.layout)) {
                assert_memory_equal(pool, want, s.pool_bytes);
            } else {
                for (size_t at = 0; at < s.pool_bytes / dtype_bytes(s.kv.layout.dtype); at++) {
                    double got = element_at(pool, s.kv.layout.dtype, at), wanted = element_at(want, s.kv.layout.dtype, at);
                    if (!(isnan(got) && isnan(wanted))) { assert_memory_equal(&got, &wanted, sizeof(got)); }
                }
            }
            free(want);
            scene_free(&s);
        }
        kernels_destroy(kernels);
        kernels_destroy(ref);
    }
}

/* The oracle takes both orders of KV: the same rows, written and attended, give the same bits; and in rows each
 * value lies at [K|V][head][slot][dimension], scales where they always lie. */
static void oracle_takes_both_orders(void **state)
{
    (void)state;
    enum { ROWS = 40, HEADS = 2, DIM = 6, BLOCKS = 3 };
    struct random_state random = random_start("oracle_takes_both_orders");
    for (int dtype = 0; dtype < DTYPE_KV_COUNT; dtype++) {
        static float k[ROWS * HEADS * DIM], v[ROWS * HEADS * DIM], q[ROWS * 4 * DIM], out[2][ROWS * 4 * DIM];
        random_fill(&random, k, DTYPE_F32, ROWS * HEADS * DIM, 2);
        random_fill(&random, v, DTYPE_F32, ROWS * HEADS * DIM, 2);
        random_fill(&random, q, DTYPE_F32, ROWS * 4 * DIM, 2);
        struct kernels *ref = kernels_for("ref", 1);
        struct kernels_kv_slot slots[ROWS];
        for (uint32_t r = 0; r < ROWS; r++) { slots[r] = (struct kernels_kv_slot){BLOCKS - 1 - r / 16, r % 16}; }
        const uint32_t blocks[BLOCKS] = {2, 1, 0};
        struct kernels_attention_sequence sequence = {.row_count = ROWS, .blocks = blocks};
        struct kernels_kv kv[2];
        for (int order = 0; order < KV_ORDER_COUNT; order++) {
            kv[order] = (struct kernels_kv){.layout = {16, 1, HEADS, DIM, (enum dtype)dtype, (enum kv_order)order}, .block_count = BLOCKS};
            kv[order].pool = poisoned(BLOCKS * kv_layout_block_bytes(&kv[order].layout));
            kernels_kv_write(ref, &(struct kernels_kv_write){.kv = kv[order], .rows = ROWS, .k = k, .k_stride = HEADS * DIM, .v = v,
                                                             .v_stride = HEADS * DIM, .slots = slots});
            kernels_attention(ref, &(struct kernels_attention){.kv = kv[order], .q_heads = 4, .scale = 0.4f, .q = q, .q_stride = 4 * DIM,
                                                               .out = out[order], .out_stride = 4 * DIM, .sequences = &sequence,
                                                               .sequence_count = 1});
        }
        assert_same_bits("out", out[1], out[0], ROWS * 4 * DIM);
        const uint32_t element = dtype_bytes((enum dtype)dtype);
        for (uint32_t row = 0; row < ROWS; row++) {
            for (uint32_t head = 0; head < 2 * HEADS; head++) {
                for (uint32_t d = 0; d < DIM; d++) {
                    size_t tiles = head < HEADS ? kv_layout_k_offset(&kv[0].layout, head, row % 16, d)
                                                : kv_layout_v_offset(&kv[0].layout, head - HEADS, row % 16, d);
                    size_t rows = (((size_t)head * 16 + row % 16) * DIM + d) * element;
                    size_t block = slots[row].block * kv_layout_block_bytes(&kv[0].layout);
                    assert_memory_equal((char *)kv[1].pool + block + rows, (char *)kv[0].pool + block + tiles, element);
                }
            }
        }
        free(kv[0].pool);
        free(kv[1].pool);
        kernels_destroy(ref);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(oracle_by_hand),
        cmocka_unit_test(oracle_takes_both_orders),
        cmocka_unit_test(codes_and_scales_by_hand),
        cmocka_unit_test(kv_write_rounds_in_place),
        cmocka_unit_test(later_infinity_is_not_seen),
        cmocka_unit_test(windows_live_in_a_ring),
        cmocka_unit_test(shapes),
        cmocka_unit_test(long_contexts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
