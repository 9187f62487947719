/* Attention of the CUDA backend against the oracle (kernels/ref), on the emulator: the plan, the kernels that it names,
 * and the translation of addresses in the exchange. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/kernels.h"
#include "tests/cuda/emu.h"

#define SEQUENCES_MAX 12u
#define LAYERS 2u

/* A sequence of a call: the rows at position .. position + rows - 1. rows 0 fills a graph's size. */
struct span {
    uint32_t position, rows;
};

struct shape {
    const char *name;
    enum dtype act, kv;
    uint32_t head_dim, kv_heads, group, block_tokens, window;
    bool deterministic, use_sm90;
    uint32_t sm_count;         /* 0: 2 */
    uint32_t shared_bytes_max; /* 0: of sm_90 */
    bool ring;                 /* blocks of a table recur, as soon as the window allows */
    struct span spans[SEQUENCES_MAX];
    uint32_t span_count;
};

/* The K, V and q of some sequences, on the host and as the device sees them. */
struct world {
    struct shape shape;
    struct rng rng;
    struct kernels *ref;
    struct kv_layout layout;
    unsigned char *pool, *pool_abs; /* the second with |V|: what an error is relative to */
    uint32_t block_count;
    uint32_t *tables[SEQUENCES_MAX];
    uint32_t table_len[SEQUENCES_MAX];
    uint32_t rows;
    size_t q_stride, out_stride;
    float *q;                 /* values that the activations' dtype holds */
    unsigned char *q_act;     /* those, in it */
    struct kernels_attention_sequence *sequences; /* the oracle's */
    unsigned char *exchange, *mirror;             /* the backend's: tables and sequences, on the host and the device */
    size_t exchange_bytes;
    struct cuda_attention_device device;
    struct cuda_attention_scratch scratch;
};

static float normal(struct rng *rng)
{
    float sum = -6;
    for (int i = 0; i < 12; i++) { sum += (float)rng_unit(rng); }
    return sum;
}

static float rounded(float v, enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(v)) : dtype == DTYPE_F16 ? f16_to_f32(f32_to_f16(v)) : v;
}

static void store(unsigned char *at, float v, enum dtype dtype)
{
    uint16_t half = dtype == DTYPE_BF16 ? f32_to_bf16(v) : f32_to_f16(v);
    if (dtype == DTYPE_F32) { memcpy(at, &v, 4); } else { memcpy(at, &half, 2); }
}

static float load(const unsigned char *at, enum dtype dtype)
{
    uint16_t half;
    float v;
    if (dtype == DTYPE_F32) {
        memcpy(&v, at, 4);
        return v;
    }
    memcpy(&half, at, 2);
    return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

static void *filled(size_t bytes, int value)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    assert_non_null(p);
    memset(p, value, (bytes + 63) / 64 * 64 + 64);
    return p;
}

static void write_token(struct world *w, uint32_t sequence, uint32_t token, const float *k, const float *v, unsigned char *pool)
{
    struct kernels_kv_slot slot = {w->tables[sequence][token / w->layout.block_tokens], token % w->layout.block_tokens};
    struct kernels_kv_write write = {
        .kv = {.pool = pool, .layout = w->layout, .block_count = w->block_count, .layer = 1},
        .rows = 1,
        .k = k,
        .k_stride = (size_t)w->layout.kv_heads * w->layout.head_dim,
        .v = v,
        .v_stride = (size_t)w->layout.kv_heads * w->layout.head_dim,
        .slots = &slot,
    };
    kernels_kv_write(w->ref, &write);
}

/* Everything that nobody wrote is all ones: a NaN in every dtype, for a scale, and no block's number. */
static void world_open(struct world *w, const struct shape *shape, uint64_t seed)
{
    struct diag diag = {0};
    memset(w, 0, sizeof *w);
    w->shape = *shape;
    w->rng = rng_init(seed);
    struct kernels_config config = {.isa = "ref", .threads = 1};
    assert_int_equal(kernels_create(&config, &w->ref, &diag).code, 0);
    w->layout = (struct kv_layout){.block_tokens = shape->block_tokens, .layer_count = LAYERS, .kv_heads = shape->kv_heads,
                                   .head_dim = shape->head_dim, .dtype = shape->kv, .order = KV_ORDER_ROWS};

    /* Tables, in random blocks; those before the window of every row are stale. */
    for (uint32_t s = 0; s < shape->span_count; s++) {
        const struct span span = shape->spans[s];
        const uint32_t tokens = span.rows == 0 ? 0 : span.position + span.rows;
        w->table_len[s] = kv_layout_blocks_for(&w->layout, tokens);
        w->block_count += w->table_len[s];
        w->rows += span.rows;
    }
    w->block_count += 3;
    uint32_t *order = filled(w->block_count * sizeof *order, 0), taken = 0;
    for (uint32_t i = 0; i < w->block_count; i++) { order[i] = i; }
    for (uint32_t i = w->block_count; i > 1; i--) {
        uint32_t other = (uint32_t)rng_below(&w->rng, i), held = order[i - 1];
        order[i - 1] = order[other];
        order[other] = held;
    }
    for (uint32_t s = 0; s < shape->span_count; s++) {
        const struct span span = shape->spans[s];
        uint32_t start = shape->window == 0 || span.position < shape->window ? 0 : span.position - shape->window + 1;
        uint32_t ring = shape->ring ? kv_layout_blocks_for(&w->layout, shape->window + span.rows) + 1 : UINT32_MAX;
        w->tables[s] = filled(w->table_len[s] * sizeof(uint32_t), 0xff);
        for (uint32_t b = 0; b < w->table_len[s]; b++) {
            if (b >= ring) {
                w->tables[s][b] = w->tables[s][b - ring];
            } else {
                w->tables[s][b] = order[taken++];
            }
        }
        for (uint32_t b = 0; b < w->table_len[s]; b++) {
            if ((b + 1) * shape->block_tokens <= start && !shape->ring) { w->tables[s][b] = UINT32_MAX; }
        }
    }
    free(order);

    /* K and V. Some tokens' V is large, so that one that is left out or comes in shows. */
    size_t pool_bytes = w->block_count * kv_layout_block_bytes(&w->layout), width = (size_t)shape->kv_heads * shape->head_dim;
    w->pool = filled(pool_bytes, 0xff);
    w->pool_abs = filled(pool_bytes, 0xff);
    float *k = filled(width * 4, 0), *v = filled(width * 4, 0);
    for (uint32_t s = 0; s < shape->span_count; s++) {
        const struct span span = shape->spans[s];
        for (uint32_t t = 0; span.rows != 0 && t < span.position + span.rows; t++) {
            uint32_t start = shape->window == 0 || span.position < shape->window ? 0 : span.position - shape->window + 1;
            bool edge = t == start || t + 1 == start || t + 1 == span.position + span.rows || rng_below(&w->rng, 16) == 0;
            if (w->tables[s][t / shape->block_tokens] == UINT32_MAX) { continue; }
            for (size_t i = 0; i < width; i++) {
                k[i] = rounded(normal(&w->rng), shape->act);
                v[i] = rounded(normal(&w->rng) * (edge ? 64.0f : 1.0f), shape->act);
            }
            write_token(w, s, t, k, v, w->pool);
            for (size_t i = 0; i < width; i++) { v[i] = fabsf(v[i]); }
            write_token(w, s, t, k, v, w->pool_abs);
        }
    }
    free(k);
    free(v);

    /* Queries; strides are longer than rows. */
    size_t q_width = width * shape->group;
    w->q_stride = q_width + 8;
    w->out_stride = q_width + 16;
    w->q = filled(w->rows * w->q_stride * 4, 0);
    w->q_act = filled(w->rows * w->q_stride * dtype_bytes(shape->act), 0xff);
    for (uint32_t r = 0; r < w->rows; r++) {
        for (size_t i = 0; i < q_width; i++) {
            float x = rounded(normal(&w->rng), shape->act);
            w->q[r * w->q_stride + i] = x;
            store(w->q_act + (r * w->q_stride + i) * dtype_bytes(shape->act), x, shape->act);
        }
    }

    /* The exchange, and its mirror somewhere else. Tables end where they end: what follows is no block. */
    size_t at = SEQUENCES_MAX * sizeof *w->sequences;
    w->exchange_bytes = at + 64;
    for (uint32_t s = 0; s < shape->span_count; s++) { w->exchange_bytes += w->table_len[s] * sizeof(uint32_t); }
    w->exchange = filled(w->exchange_bytes, 0xff);
    w->mirror = filled(w->exchange_bytes, 0xff);
    w->sequences = filled(SEQUENCES_MAX * sizeof *w->sequences, 0);
    uint32_t row = 0;
    for (uint32_t s = 0; s < shape->span_count; s++) {
        w->sequences[s] = (struct kernels_attention_sequence){row, shape->spans[s].rows, shape->spans[s].position, w->tables[s]};
        row += shape->spans[s].rows;
        struct kernels_attention_sequence sent = w->sequences[s];
        sent.blocks = (const uint32_t *)(const void *)(w->exchange + at);
        memcpy(w->exchange + s * sizeof sent, &sent, sizeof sent);
        memcpy(w->exchange + at, w->tables[s], w->table_len[s] * sizeof(uint32_t));
        at += w->table_len[s] * sizeof(uint32_t);
    }
    memcpy(w->mirror, w->exchange, w->exchange_bytes);
    memset(w->exchange, 0xee, w->exchange_bytes); /* the device must not look there */

    w->device = (struct cuda_attention_device){.arch = 90, .use_sm90 = shape->use_sm90, .sm_count = shape->sm_count != 0 ? shape->sm_count : 2,
                                               .shared_bytes_max = shape->shared_bytes_max != 0 ? shape->shared_bytes_max : EMU_SHARED_BYTES_MAX,
                                               .deterministic = shape->deterministic};
}

static void world_close(struct world *w)
{
    for (uint32_t s = 0; s < SEQUENCES_MAX; s++) { free(w->tables[s]); }
    free(w->pool);
    free(w->pool_abs);
    free(w->q);
    free(w->q_act);
    free(w->exchange);
    free(w->mirror);
    free(w->sequences);
    free(w->scratch.pieces);
    free(w->scratch.arrivals);
    kernels_destroy(w->ref);
}

static struct kernels_attention call_of(const struct world *w)
{
    uint32_t row_count_max = 1, context_max = 0;
    for (uint32_t s = 0; s < w->shape.span_count; s++) {
        const struct span span = w->shape.spans[s];
        row_count_max = span.rows > row_count_max ? span.rows : row_count_max;
        context_max = span.position + span.rows > context_max ? span.position + span.rows : context_max;
    }
    return (struct kernels_attention){
        .kv = {.pool = w->pool, .layout = w->layout, .block_count = w->block_count, .layer = 1},
        .q_heads = w->shape.kv_heads * w->shape.group,
        .scale = 1.0f / sqrtf((float)w->shape.head_dim),
        .window = w->shape.window,
        .q_stride = w->q_stride,
        .out_stride = w->out_stride,
        .sequence_count = w->shape.span_count,
        .rows = w->rows,
        .row_count_max = row_count_max,
        .context_max = context_max,
    };
}

/* Through the plan; `sequences` of the world's mirror from the first on, `q_act` and `out` of the activations' dtype. */
static void run_on_device(struct world *w, const struct kernels_attention *call)
{
    struct cuda_attention_launch launches[CUDA_ATTENTION_LAUNCHES_MAX];
    if (w->scratch.pieces == NULL) {
        cuda_attention_scratch_need(&w->device, call, SEQUENCES_MAX, call->context_max, &w->scratch);
        w->scratch.pieces = filled(w->scratch.piece_bytes, 0xff);
        w->scratch.arrivals = filled(w->scratch.arrival_bytes, 0);
    }
    uint32_t count = cuda_attention_plan(&w->device, call, w->exchange, w->mirror, &w->scratch, launches);
    for (uint32_t i = 0; i < count; i++) {
        struct emu_fault fault = {{0}};
        if (!emu_launch(launches[i].kernel, &launches[i].shape, &launches[i].args, sizeof launches[i].args, &fault)) {
            fail_msg("%s: %s", w->shape.name, fault.text);
        }
    }
    for (size_t i = 0; i < w->scratch.arrival_bytes; i++) {
        if (((unsigned char *)w->scratch.arrivals)[i] != 0) { fail_msg("%s: a counter is not zero", w->shape.name); }
    }
}

static unsigned char *device_result(struct world *w)
{
    struct kernels_attention call = call_of(w);
    unsigned char *out = filled(w->rows * w->out_stride * dtype_bytes(w->shape.act), 0xa5);
    call.dtype = w->shape.act;
    call.q = w->q_act;
    call.out = out;
    call.sequences = (const struct kernels_attention_sequence *)(const void *)w->exchange;
    run_on_device(w, &call);
    return out;
}

/* Every element is near the oracle's, and nothing beside them was written.
 *
 * The bound. out = sum p v / sum p. Relative to sum p |v| / sum p, which the oracle computes with |V|:
 *  - a weight is rounded to the products' dtype: u; bf16 for codes and f16's own u otherwise, and in f16 an absolute
 *    2^-25 below its normal range, against a sum of at least 1;
 *  - the output is rounded: u of its dtype;
 *  - a score errs by the roundings of a sum of head_dim products in f32, at most (head_dim + 4) 2^-24 of
 *    sum |q k| scale, which here stays below 2 head_dim^0.5 (of normal numbers: 0.64, with slack); it weighs twice,
 *    above and below;
 *  - sums over n tokens in f32, and their rescalings, one for each step: (n + n/16 + 16) 2^-24, twice. */
static void compare(const struct world *w, const unsigned char *got)
{
    const struct shape *shape = &w->shape;
    struct kernels_attention call = call_of(w);
    float *want = filled(w->rows * w->out_stride * 4, 0), *scale = filled(w->rows * w->out_stride * 4, 0);
    call.q = w->q;
    call.sequences = w->sequences;
    call.out = want;
    kernels_attention(w->ref, &call);
    call.kv.pool = w->pool_abs;
    call.out = scale;
    kernels_attention(w->ref, &call);

    const double u_act = shape->act == DTYPE_BF16 ? 0x1p-8 : shape->act == DTYPE_F16 ? 0x1p-11 : 0x1p-24;
    const bool codes = shape->kv == DTYPE_FP8_E4M3 || shape->kv == DTYPE_INT8;
    const double u_weight = codes && shape->act != DTYPE_F32 ? 0x1p-8 : u_act, dim = shape->head_dim;
    const size_t width = (size_t)shape->kv_heads * shape->group * shape->head_dim, bytes = dtype_bytes(shape->act);
    for (uint32_t s = 0; s < shape->span_count; s++) {
        for (uint32_t r = 0; r < shape->spans[s].rows; r++) {
            const uint32_t row = w->sequences[s].row_first + r;
            const double n = shape->spans[s].position + r + 1;
            const double relative = u_weight + u_act + 2 * (dim + 4) * 0x1p-24 * 2 * sqrt(dim) + 2 * (n + n / 16 + 16) * 0x1p-24
                                  + (shape->act == DTYPE_F16 ? n * 0x1p-25 * 256 : 0);
            for (size_t i = 0; i < width; i++) {
                const size_t at = row * w->out_stride + i;
                const double is = (double)load(got + at * bytes, shape->act);
                if (!(fabs(is - (double)want[at]) <= relative * (double)scale[at] + 1e-30)) {
                    fail_msg("%s: sequence %u row %u head %zu dim %zu: %g, not %g +- %g", shape->name, s, r,
                             i / shape->head_dim, i % shape->head_dim, is, (double)want[at], relative * (double)scale[at]);
                }
            }
        }
    }
    for (size_t i = 0; i < w->rows * w->out_stride; i++) {
        if (i % w->out_stride < width) { continue; }
        for (size_t b = 0; b < bytes; b++) {
            if (got[i * bytes + b] != 0xa5) { fail_msg("%s: wrote beside its rows", shape->name); }
        }
    }
    free(want);
    free(scale);
}

static void check(const struct shape *shape)
{
    struct world w;
    world_open(&w, shape, 11);
    unsigned char *got = device_result(&w);
    compare(&w, got);
    free(got);
    world_close(&w);
}

#define SPANS(...) .spans = {__VA_ARGS__}, .span_count = sizeof((struct span[]){__VA_ARGS__}) / sizeof(struct span)

/* Prompts, their chunks and generating sequences in one call, with places that nobody fills, give what the oracle gives,
 * for every head_dim, group and dtype. */
static void every_shape_is_near_the_oracle(void **state)
{
    (void)state;
    const struct shape shapes[] = {
        {.name = "bf16 64", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 64, .kv_heads = 2, .group = 4, .block_tokens = 16,
         SPANS({0, 5}, {62, 1}, {0, 0}, {63, 1}, {60, 9}, {64, 1}, {0, 1}, {10, 2})},
        {.name = "bf16 128", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 128, .kv_heads = 2, .group = 4, .block_tokens = 32,
         SPANS({0, 0}, {510, 1}, {511, 1}, {512, 1}, {0, 37}, {100, 3})},
        {.name = "bf16 128, group 8", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 128, .kv_heads = 1, .group = 8,
         .block_tokens = 16, .sm_count = 5, SPANS({700, 1}, {130, 17})},
        {.name = "f16 64, group 3", .act = DTYPE_F16, .kv = DTYPE_F16, .head_dim = 64, .kv_heads = 2, .group = 3,
         .block_tokens = 16, SPANS({0, 70}, {127, 1}, {128, 1}, {300, 1})},
        {.name = "bf16 80, group 1", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 80, .kv_heads = 3, .group = 1,
         .block_tokens = 16, SPANS({0, 65}, {90, 1}, {250, 1})},
        {.name = "f16 96, group 7", .act = DTYPE_F16, .kv = DTYPE_F16, .head_dim = 96, .kv_heads = 1, .group = 7,
         .block_tokens = 32, SPANS({3, 20}, {64, 1}, {65, 1})},
        {.name = "bf16 256, group 2", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 256, .kv_heads = 1, .group = 2,
         .block_tokens = 16, SPANS({40, 40}, {129, 1})},
        {.name = "bf16 64, group 20", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 64, .kv_heads = 2, .group = 20,
         .block_tokens = 16, SPANS({5, 4}, {140, 1})},
        {.name = "fp8 128", .act = DTYPE_BF16, .kv = DTYPE_FP8_E4M3, .head_dim = 128, .kv_heads = 2, .group = 4,
         .block_tokens = 16, SPANS({0, 17}, {130, 1}, {513, 1}, {64, 3})},
        {.name = "fp8 64, f16", .act = DTYPE_F16, .kv = DTYPE_FP8_E4M3, .head_dim = 64, .kv_heads = 2, .group = 2,
         .block_tokens = 32, SPANS({30, 40}, {200, 1})},
        {.name = "fp8 256", .act = DTYPE_BF16, .kv = DTYPE_FP8_E4M3, .head_dim = 256, .kv_heads = 1, .group = 1,
         .block_tokens = 16, SPANS({0, 30}, {70, 1})},
        {.name = "fp8 96", .act = DTYPE_BF16, .kv = DTYPE_FP8_E4M3, .head_dim = 96, .kv_heads = 1, .group = 2,
         .block_tokens = 16, SPANS({3, 30}, {70, 1})},
        {.name = "int8 128, f16", .act = DTYPE_F16, .kv = DTYPE_INT8, .head_dim = 128, .kv_heads = 1, .group = 4,
         .block_tokens = 16, SPANS({0, 17}, {130, 1})},
        {.name = "int8 64, bf16", .act = DTYPE_BF16, .kv = DTYPE_INT8, .head_dim = 64, .kv_heads = 2, .group = 4,
         .block_tokens = 16, SPANS({60, 17}, {130, 1})},
        {.name = "bf16 64, window", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 64, .kv_heads = 1, .group = 4,
         .block_tokens = 16, .window = 70, SPANS({200, 40}, {63, 1}, {70, 1}, {133, 1}, {10, 2}, {640, 1})},
        {.name = "bf16 64, window of one", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 64, .kv_heads = 1, .group = 1,
         .block_tokens = 16, .window = 1, SPANS({120, 20}, {64, 1})},
        {.name = "fp8 128, window", .act = DTYPE_BF16, .kv = DTYPE_FP8_E4M3, .head_dim = 128, .kv_heads = 1, .group = 4,
         .block_tokens = 32, .window = 100, SPANS({200, 33}, {331, 1})},
        {.name = "f16 64, ring of a window", .act = DTYPE_F16, .kv = DTYPE_F16, .head_dim = 64, .kv_heads = 1, .group = 2,
         .block_tokens = 16, .window = 48, .ring = true, SPANS({260, 9}, {500, 1})},
        {.name = "f32", .act = DTYPE_F32, .kv = DTYPE_F32, .head_dim = 64, .kv_heads = 2, .group = 2, .block_tokens = 16,
         SPANS({0, 5}, {0, 0}, {70, 1}, {63, 1})},
        {.name = "f32, head_dim 6, window", .act = DTYPE_F32, .kv = DTYPE_F32, .head_dim = 6, .kv_heads = 1, .group = 3,
         .block_tokens = 48, .window = 20, SPANS({40, 5}, {100, 1})},
        {.name = "f32 on fp8", .act = DTYPE_F32, .kv = DTYPE_FP8_E4M3, .head_dim = 32, .kv_heads = 1, .group = 2,
         .block_tokens = 16, SPANS({0, 5}, {70, 1})},
        {.name = "bf16 on f32", .act = DTYPE_BF16, .kv = DTYPE_F32, .head_dim = 64, .kv_heads = 1, .group = 2,
         .block_tokens = 16, SPANS({0, 5}, {70, 1})},
        {.name = "bf16 70", .act = DTYPE_BF16, .kv = DTYPE_INT8, .head_dim = 70, .kv_heads = 1, .group = 2,
         .block_tokens = 16, SPANS({0, 5}, {70, 1})},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        check(&shapes[i]);
        struct shape other = shapes[i];
        other.deterministic = true;
        check(&other);
    }
}

/* The Hopper kernel gives what the oracle gives: its descriptors, swizzle, fragments and order, as the manual has them. */
static void the_hopper_kernel_is_near_the_oracle(void **state)
{
    (void)state;
    const struct shape shapes[] = {
        {.name = "sm90 bf16 128", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 128, .kv_heads = 2, .group = 4,
         .block_tokens = 16, SPANS({0, 40}, {90, 1}, {0, 0}, {500, 5}, {127, 2})},
        {.name = "sm90 f16 64", .act = DTYPE_F16, .kv = DTYPE_F16, .head_dim = 64, .kv_heads = 1, .group = 3,
         .block_tokens = 32, SPANS({250, 90}, {64, 3})},
        {.name = "sm90 bf16 64, window", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 64, .kv_heads = 2, .group = 1,
         .block_tokens = 16, .window = 150, SPANS({10, 260}, {700, 3})},
        {.name = "sm90 f16 128, ring", .act = DTYPE_F16, .kv = DTYPE_F16, .head_dim = 128, .kv_heads = 1, .group = 8,
         .block_tokens = 16, .window = 48, .ring = true, SPANS({260, 40})},
        {.name = "sm90 bf16 96", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 96, .kv_heads = 1, .group = 2,
         .block_tokens = 16, SPANS({0, 70})},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct shape shape = shapes[i];
        struct cuda_attention_launch launches[CUDA_ATTENTION_LAUNCHES_MAX];
        struct world w;
        shape.use_sm90 = true;
        world_open(&w, &shape, 81 + i);
        for (uint64_t seed = 1; seed < 3; seed++) {
            emu_seed(seed);
            unsigned char *got = device_result(&w);
            compare(&w, got);
            free(got);
        }
        struct kernels_attention call = call_of(&w);
        call.dtype = shape.act;
        cuda_attention_plan(&w.device, &call, NULL, NULL, &w.scratch, launches);
        assert_true(launches[0].kernel >= CUDA_KERNEL_attention_sm90_bf16_64 && launches[0].kernel <= CUDA_KERNEL_attention_sm90_f16_128);
        w.device.arch = 100; /* it has no such instructions */
        cuda_attention_plan(&w.device, &call, NULL, NULL, &w.scratch, launches);
        assert_false(launches[0].kernel >= CUDA_KERNEL_attention_sm90_bf16_64);
        world_close(&w);
    }
}

/* ---- bits ---------------------------------------------------------------------------------- */

/* The rows of sequence `s` of a world in chunks of `chunk`, each chunk a call of its own, with `beside` more sequences,
 * the first ones but s, in every call. */
static void run_in_chunks(struct world *w, uint32_t s, uint32_t chunk, uint32_t beside, unsigned char *out)
{
    struct kernels_attention call = call_of(w);
    struct kernels_attention_sequence *sent = (struct kernels_attention_sequence *)(void *)w->mirror;
    struct kernels_attention_sequence kept[SEQUENCES_MAX];
    const struct span span = w->shape.spans[s];
    memcpy(kept, w->mirror, sizeof kept);
    call.dtype = w->shape.act;
    call.q = w->q_act;
    call.out = out;
    call.sequences = (const struct kernels_attention_sequence *)(const void *)w->exchange;
    for (uint32_t first = 0; first < span.rows; first += chunk) {
        uint32_t count = 0;
        for (uint32_t other = 0; count < beside; other++) {
            if (other != s) { sent[count++] = kept[other]; }
        }
        sent[count] = kept[s];
        sent[count].row_first += first;
        sent[count].row_count = first + chunk < span.rows ? chunk : span.rows - first;
        sent[count].position_first += first;
        call.sequence_count = count + 1;
        run_on_device(w, &call);
    }
    memcpy(w->mirror, kept, sizeof kept);
}

static void assert_same_rows(const struct world *w, uint32_t s, const unsigned char *got, const unsigned char *want, const char *what)
{
    const size_t bytes = dtype_bytes(w->shape.act), width = (size_t)w->shape.kv_heads * w->shape.group * w->shape.head_dim;
    for (uint32_t r = 0; r < w->shape.spans[s].rows; r++) {
        const size_t at = (w->sequences[s].row_first + r) * w->out_stride * bytes;
        if (memcmp(got + at, want + at, width * bytes) != 0) { fail_msg("%s, %s: row %u has other bits", w->shape.name, what, r); }
    }
}

/* Where results are deterministic, a row's bits are the same in a prompt at once, in chunks of 64, 7 or 1 row (which is
 * generation), alone or beside others, with scratch for every segment or for hardly any, on chips of any size. */
static void deterministic_rows_have_bits_of_their_own(void **state)
{
    (void)state;
    const struct shape shapes[] = {
        {.name = "bf16 64", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 64, .kv_heads = 1, .group = 4, .block_tokens = 16,
         .deterministic = true, SPANS({900, 1}, {30, 20}, {480, 100})},
        {.name = "f16 128, window", .act = DTYPE_F16, .kv = DTYPE_F16, .head_dim = 128, .kv_heads = 2, .group = 3, .block_tokens = 16,
         .window = 500, .deterministic = true, SPANS({1100, 1}, {30, 20}, {990, 70})},
        {.name = "bf16 on fp8 64, small window", .act = DTYPE_BF16, .kv = DTYPE_FP8_E4M3, .head_dim = 64, .kv_heads = 1, .group = 4,
         .block_tokens = 32, .window = 20, .deterministic = true, SPANS({530, 1}, {30, 20}, {490, 80})},
        {.name = "bf16 256", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 256, .kv_heads = 1, .group = 2, .block_tokens = 16,
         .deterministic = true, SPANS({515, 1}, {30, 20}, {500, 30})},
        {.name = "f32", .act = DTYPE_F32, .kv = DTYPE_F32, .head_dim = 32, .kv_heads = 1, .group = 2, .block_tokens = 16,
         .deterministic = true, SPANS({515, 1}, {30, 20}, {100, 30})},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct world w;
        world_open(&w, &shapes[i], 21 + i);
        const size_t out_bytes = w.rows * w.out_stride * dtype_bytes(w.shape.act);
        unsigned char *want = device_result(&w), *got = filled(out_bytes, 0);
        compare(&w, want);
        const uint32_t chunks[] = {100, 64, 7, 1};
        for (uint32_t c = 0; c < 4; c++) {
            memset(got, 0xa5, out_bytes);
            run_in_chunks(&w, 2, chunks[c], c % 3, got);
            assert_same_rows(&w, 2, got, want, "in chunks");
        }
        /* As many pieces as there must be, and no more: each pair is walked by one warp. */
        const size_t piece = (w.shape.group * (w.shape.head_dim + 2) + 3) / 4 * 16;
        w.scratch.piece_bytes = (w.device.sm_count * 2 + 3 * w.shape.kv_heads) * piece;
        const size_t least = w.scratch.piece_bytes;
        w.device.sm_count = 1;
        run_in_chunks(&w, 0, 1, 0, got);
        assert_same_rows(&w, 0, got, want, "one of a few blocks");
        w.scratch.piece_bytes = (2 + w.shape.kv_heads) * piece;
        memset(got, 0xa5, out_bytes);
        run_in_chunks(&w, 0, 1, 0, got);
        assert_same_rows(&w, 0, got, want, "walked");
        w.scratch.piece_bytes = least;
        free(got);
        free(want);
        world_close(&w);
    }
}

/* More segments than pieces: some pairs are walked whole, to the bits of the pieces joined. */
static void few_pieces_change_no_bits(void **state)
{
    (void)state;
    const struct shape shape = {.name = "many segments", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 64, .kv_heads = 2,
                                .group = 4, .block_tokens = 16, .deterministic = true, .sm_count = 1,
                                SPANS({2100, 1}, {1500, 1}, {511, 1}, {0, 0}, {1023, 1})};
    struct world w;
    world_open(&w, &shape, 31);
    unsigned char *want = device_result(&w);
    compare(&w, want);
    w.scratch.piece_bytes = (2 + 5 * 2) * (size_t)4 * 66 * 4; /* 12; the segments are 5 + 3 + 1 + 2, twice */
    unsigned char *got = device_result(&w);
    for (uint32_t s = 0; s < 5; s++) { assert_same_rows(&w, s, got, want, "walked"); }
    free(got);
    free(want);
    world_close(&w);
}

/* The order in which warps and blocks happen to run is in no result, deterministic or not. */
static void schedules_change_no_bits(void **state)
{
    (void)state;
    struct shape shape = {.name = "schedules", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 64, .kv_heads = 2, .group = 4,
                          .block_tokens = 16, .sm_count = 3, SPANS({700, 1}, {0, 40}, {130, 1}, {300, 3}, {64, 1})};
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        shape.deterministic = deterministic != 0;
        struct world w;
        world_open(&w, &shape, 41);
        unsigned char *want = device_result(&w);
        for (uint64_t seed = 2; seed < 8; seed++) {
            emu_seed(seed);
            unsigned char *got = device_result(&w);
            for (uint32_t s = 0; s < 5; s++) { assert_same_rows(&w, s, got, want, "another order"); }
            free(got);
        }
        free(want);
        world_close(&w);
    }
}

/* The depth of the ring changes no bits: 3, 2 and 1 stages. */
static void rings_of_any_depth_give_the_same(void **state)
{
    (void)state;
    struct shape shape = {.name = "rings", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 128, .kv_heads = 1, .group = 4,
                          .block_tokens = 16, SPANS({0, 1}, {450, 40}, {20, 30})};
    unsigned char *want = NULL;
    const uint32_t shared[] = {EMU_SHARED_BYTES_MAX, 2 * 70000, 99 * 1024, 98320};
    const uint32_t stages[] = {3, 2, 3, 3};
    for (uint32_t i = 0; i < 4; i++) {
        shape.shared_bytes_max = shared[i];
        struct world w;
        struct cuda_attention_launch launches[CUDA_ATTENTION_LAUNCHES_MAX];
        world_open(&w, &shape, 51);
        unsigned char *got = device_result(&w);
        struct kernels_attention call = call_of(&w);
        call.dtype = DTYPE_BF16;
        assert_int_equal(cuda_attention_plan(&w.device, &call, NULL, NULL, &w.scratch, launches), 2);
        assert_int_equal(launches[0].args.stages, stages[i]);
        if (want == NULL) {
            want = got;
        } else {
            for (uint32_t s = 0; s < 3; s++) { assert_same_rows(&w, s, got, want, "another ring"); }
            free(got);
        }
        world_close(&w);
    }
    free(want);

    /* 256 dimensions: 1 stage is all that fits a chip of 100 KiB, and not where totals are kept. */
    shape.head_dim = 256;
    shape.shared_bytes_max = 99 * 1024;
    check(&shape);
    shape.deterministic = true;
    check(&shape);
}

/* What a row does not see cannot reach it: infinities and NaNs in V of tokens after it, or before its window, in the
 * step in which it ends. The rows that do see one show it. */
static void hidden_tokens_that_are_no_numbers_stay_hidden(void **state)
{
    (void)state;
    struct shape shape = {.name = "wild", .act = DTYPE_F16, .kv = DTYPE_F16, .head_dim = 64, .kv_heads = 1, .group = 3,
                          .block_tokens = 16, SPANS({10, 50}, {0, 0})};
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t window = i % 2 * 12;
        shape.window = window;
        shape.use_sm90 = i / 2 != 0;
        struct world w;
        world_open(&w, &shape, 61);
        unsigned char *want = device_result(&w);
        float k[64] = {0}, v[64] = {0};
        v[3] = INFINITY;
        v[60] = NAN;
        write_token(&w, 0, 30, k, v, w.pool);
        unsigned char *got = device_result(&w);
        for (uint32_t r = 0; r < 50; r++) {
            const uint32_t position = 10 + r;
            const bool sees = position >= 30 && (window == 0 || position < 30 + window);
            const size_t at = r * w.out_stride * 2;
            if (sees) {
                assert_true(isnan(load(got + at + 60 * 2, DTYPE_F16)));
                assert_false(isfinite(load(got + at + 3 * 2, DTYPE_F16)));
                assert_true(isfinite(load(got + at + 4 * 2, DTYPE_F16)));
            }
            /* The Hopper kernel sums such a step by other instructions: a sum's f32 roundings differ (256 is more than any
             * |V|), and so may the last bit of an f16. */
            for (size_t e = 0; !sees && e < (size_t)3 * 64; e++) {
                const float is = load(got + at + e * 2, DTYPE_F16), was = load(want + at + e * 2, DTYPE_F16);
                const float bound = shape.use_sm90 ? fabsf(was) * 0x1p-10f + 256 * 0x1p-16f : 0.0f;
                if (!(fabsf(is - was) <= bound)) { fail_msg("window %u: row %u changed: %g, not %g", window, r, (double)is, (double)was); }
            }
        }
        free(got);
        free(want);
        world_close(&w);
    }
}

/* ---- the plan ------------------------------------------------------------------------------ */

/* What a launch looks like follows from the call's sizes alone, so a graph may hold it. */
static void plans_depend_on_sizes_alone(void **state)
{
    (void)state;
    const struct shape shape = {.name = "plan", .act = DTYPE_BF16, .kv = DTYPE_BF16, .head_dim = 128, .kv_heads = 2, .group = 4,
                                .block_tokens = 16, SPANS({50, 1}, {0, 0}, {70, 1})};
    struct world w;
    world_open(&w, &shape, 71);
    free(device_result(&w)); /* makes the scratch */
    struct cuda_attention_launch first[2], second[2];
    struct kernels_attention call = call_of(&w);
    call.dtype = DTYPE_BF16;
    call.q = (const void *)16;
    call.out = (void *)32;
    assert_int_equal(cuda_attention_plan(&w.device, &call, NULL, NULL, &w.scratch, first), 1);
    assert_int_equal(first[0].kernel, CUDA_KERNEL_attention_decode_bf16_128);
    assert_int_equal(first[0].shape.grid[0], 4); /* two blocks an SM */
    call.context_max = 100000;
    assert_int_equal(cuda_attention_plan(&w.device, &call, NULL, NULL, &w.scratch, second), 1);
    assert_memory_equal(first, second, sizeof first[0]);

    call.row_count_max = 40;
    call.rows = 100;
    assert_int_equal(cuda_attention_plan(&w.device, &call, NULL, NULL, &w.scratch, first), 2);
    assert_int_equal(first[0].kernel, CUDA_KERNEL_attention_prefill_bf16_128);
    assert_int_equal(first[0].shape.grid[0], 2 * (100 * 4 / 64 + 3));
    assert_int_equal(first[1].kernel, CUDA_KERNEL_attention_decode_bf16_128);

    call.q = (const void *)18; /* words of two values would not be aligned */
    assert_int_equal(cuda_attention_plan(&w.device, &call, NULL, NULL, &w.scratch, first), 1);
    assert_int_equal(first[0].kernel, CUDA_KERNEL_attention_plain);
    call.rows = 0;
    assert_int_equal(cuda_attention_plan(&w.device, &call, NULL, NULL, &w.scratch, first), 0);

    /* Scratch: bounded for long contexts, enough for every pair and block. */
    struct cuda_attention_scratch need;
    w.device.deterministic = true;
    cuda_attention_scratch_need(&w.device, &call, 64, 131072, &need);
    assert_true(need.piece_bytes <= (size_t)64 << 20);
    assert_true(need.piece_bytes > (size_t)63 << 20);
    assert_int_equal(need.arrival_bytes, 64 * 2 * 4);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_is_near_the_oracle),
        cmocka_unit_test(the_hopper_kernel_is_near_the_oracle),
        cmocka_unit_test(deterministic_rows_have_bits_of_their_own),
        cmocka_unit_test(few_pieces_change_no_bits),
        cmocka_unit_test(schedules_change_no_bits),
        cmocka_unit_test(rings_of_any_depth_give_the_same),
        cmocka_unit_test(hidden_tokens_that_are_no_numbers_stay_hidden),
        cmocka_unit_test(plans_depend_on_sizes_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
