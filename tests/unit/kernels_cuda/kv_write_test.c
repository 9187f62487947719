/* KV that a device writes is byte for byte what kernels/ref writes, and the launch that does all between the projections
 * and attention gives the bits of the three that it replaces. */
#include "kernels/cuda/kv_args.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/rows_args.h"
#include "tests/unit/kernels_cuda/rows_testing.h"

#define BLOCKS 6u
#define ROWS_MAX 12u

struct pool {
    struct kernels_kv kv;
    size_t bytes;
};

static struct pool pool_poisoned(const struct kv_layout *layout, uint32_t layer)
{
    struct pool pool = {.bytes = BLOCKS * kv_layout_block_bytes(layout)};
    pool.kv = (struct kernels_kv){.layout = *layout, .block_count = BLOCKS, .layer = layer, .pool = aligned_alloc(64, (pool.bytes + 63) / 64 * 64)};
    assert_non_null(pool.kv.pool);
    memset(pool.kv.pool, POISON, (pool.bytes + 63) / 64 * 64);
    return pool;
}

static struct kv_layout random_layout(struct random *random, enum dtype dtype)
{
    static const uint32_t head_dims[] = {2, 6, 16, 30, 64, 72, 128, 130, 256};
    return (struct kv_layout){.block_tokens = random_range(random, 1, 2) * 16, .layer_count = random_range(random, 1, 3),
                              .kv_heads = random_range(random, 1, 5), .head_dim = head_dims[random_range(random, 0, 8)],
                              .dtype = dtype, .order = KV_ORDER_ROWS};
}

/* Slots that no two rows share; some rows have none. */
static void random_slots(struct random *random, const struct kv_layout *layout, uint32_t rows, struct kernels_kv_slot *slots)
{
    const uint32_t all = BLOCKS * layout->block_tokens, step = 2 * random_range(random, 0, 20) + 1, first = random_range(random, 0, all - 1);
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t at = (first + r * (all % step == 0 ? 1 : step)) % all;
        slots[r] = (struct kernels_kv_slot){at / layout->block_tokens, at % layout->block_tokens};
        if (random_range(random, 0, 4) == 0) { slots[r] = (struct kernels_kv_slot){KERNELS_SLOT_NONE, 12345}; }
    }
}

static void set_f32(const struct rows *rows, uint32_t row, uint32_t index, float value)
{
    unsigned char *p = (unsigned char *)rows_row(rows, row) + (size_t)index * dtype_bytes(rows->dtype);
    const uint16_t half = rows->dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
    if (rows->dtype == DTYPE_F32) { memcpy(p, &value, 4); } else { memcpy(p, &half, 2); }
}

static void run_kv_write(const struct pool *pool, const struct rows *k, const struct rows *v, const struct kernels_kv_slot *slots)
{
    struct cuda_kv_write_args args = {.rows = k->rows, .dtype = k->dtype, .k = k->data, .k_stride = k->stride, .v = v->data,
                                      .v_stride = v->stride, .slots = (const struct cuda_kv_slot *)(const void *)slots};
    struct cuda_launch shape;
    cuda_kv_place_of(&pool->kv, &args.kv);
    cuda_kv_write_shape(&args, &shape);
    launch(CUDA_KERNEL_kv_write, &shape, &args, sizeof(args));
}

static void check_kv_write(struct random *random, struct kernels *ref, enum dtype kv_dtype)
{
    const struct kv_layout layout = random_layout(random, kv_dtype);
    const uint32_t rows = random_range(random, 1, ROWS_MAX), dim = layout.kv_heads * layout.head_dim, layer = random_range(random, 0, layout.layer_count - 1);
    const enum dtype act = random_dtype(random);
    /* Large, small down to subnormal scales, and plain. */
    static const float factors[] = {1, 8, 3e4f, 1e-4f, 0x1p-24f, 0x1p-130f};
    const float factor = factors[random_range(random, 0, act == DTYPE_F16 ? 4 : 5)];
    struct rows k = rows_random(random, act, rows, dim, factor), v = rows_random(random, act, rows, dim, factor);
    const bool has_scales = kv_layout_has_scales(&layout);
    for (uint32_t i = 0; i < 3 && has_scales; i++) { /* zeros, one large value, and what is no number */
        const uint32_t row = random_range(random, 0, rows - 1), head = random_range(random, 0, layout.kv_heads - 1) * layout.head_dim;
        const uint32_t at = head + random_range(random, 0, layout.head_dim - 1);
        const struct rows *one = random_range(random, 0, 1) == 0 ? &k : &v;
        switch (i) {
        case 0: for (uint32_t d = 0; d < layout.head_dim; d++) { set_f32(one, row, head + d, 0); } break;
        case 1: set_f32(one, row, at, 6e4f); break;
        default: set_f32(one, row, at, random_range(random, 0, 1) == 0 ? NAN : -INFINITY); break;
        }
    }
    struct kernels_kv_slot slots[ROWS_MAX];
    random_slots(random, &layout, rows, slots);
    struct pool got = pool_poisoned(&layout, layer), want = pool_poisoned(&layout, layer);
    run_kv_write(&got, &k, &v, slots);

    float *plain_k = rows_as_f32(&k), *plain_v = rows_as_f32(&v);
    const struct kernels_kv_write args = {.kv = want.kv, .rows = rows, .k = plain_k, .k_stride = dim, .v = plain_v, .v_stride = dim,
                                          .slots = slots};
    kernels_kv_write(ref, &args);
    for (size_t i = 0; i < got.bytes; i++) {
        if (((unsigned char *)got.kv.pool)[i] != ((unsigned char *)want.kv.pool)[i]) {
            fail_msg("byte %zu of %s, head_dim %u, %u kv heads, %u tokens a block: %02x, not %02x", i, dtype_name(kv_dtype), layout.head_dim,
                     layout.kv_heads, layout.block_tokens, ((unsigned char *)got.kv.pool)[i], ((unsigned char *)want.kv.pool)[i]);
        }
    }
    free(plain_k);
    free(plain_v);
    free(got.kv.pool);
    free(want.kv.pool);
    rows_free(&k);
    rows_free(&v);
}

static void kv_is_the_oracles_byte_for_byte(void **state)
{
    (void)state;
    struct random random = random_from_environment("kv_write");
    struct kernels *ref = oracle();
    for (uint32_t round = 0; round < 80; round++) {
        for (int dtype = 0; dtype < DTYPE_KV_COUNT; dtype++) { check_kv_write(&random, ref, (enum dtype)dtype); }
    }
    kernels_destroy(ref);
}

static void run_rope(const struct rows *x, uint32_t heads, uint32_t rotary_dim, const float *cosines, const float *sines,
                     const uint32_t *positions, const struct rows *norm)
{
    const struct cuda_rope_args args = {.rows = x->rows, .heads = heads, .head_dim = x->dim / heads, .rotary_dim = rotary_dim,
                                        .dtype = x->dtype, .x = x->data, .x_stride = x->stride, .cos = cosines, .sin = sines,
                                        .positions = positions, .norm = norm != NULL ? norm->data : NULL,
                                        .norm_dtype = norm != NULL ? norm->dtype : DTYPE_F32, .norm_eps = 1e-6f};
    struct cuda_launch shape;
    cuda_rope_shape(&args, &shape);
    launch(CUDA_KERNEL_rope, &shape, &args, sizeof(args));
}

static void one_launch_gives_the_bits_of_three(void **state)
{
    (void)state;
    struct random random = random_from_environment("qkv_store");
    float cosines[20 * 128], sines[20 * 128];
    for (uint32_t i = 0; i < 20 * 128; i++) {
        cosines[i] = cosf((float)i);
        sines[i] = sinf((float)i);
    }
    for (uint32_t round = 0; round < 200; round++) {
        const struct kv_layout layout = random_layout(&random, (enum dtype)random_range(&random, 0, DTYPE_KV_COUNT - 1));
        const uint32_t rows = random_range(&random, 1, ROWS_MAX), kv_dim = layout.kv_heads * layout.head_dim;
        const uint32_t q_heads = layout.kv_heads * random_range(&random, 1, 3);
        const bool no_q = random_range(&random, 0, 7) == 0;
        const enum dtype act = random_dtype(&random);
        struct rows q = rows_random(&random, act, rows, q_heads * layout.head_dim, 2);
        struct rows k = rows_random(&random, act, rows, kv_dim, 2), v = rows_random(&random, act, rows, kv_dim, 2);
        struct rows q_norm = rows_random(&random, random_dtype(&random), 1, layout.head_dim, 2);
        struct rows k_norm = rows_random(&random, random_dtype(&random), 1, layout.head_dim, 2);
        const bool with_norm = random_range(&random, 0, 1) != 0;
        const uint32_t rotary_dim = random_range(&random, 0, 2) == 0 ? random_range(&random, 0, layout.head_dim / 2) * 2 : layout.head_dim;
        uint32_t positions[ROWS_MAX];
        struct kernels_kv_slot slots[ROWS_MAX];
        for (uint32_t r = 0; r < rows; r++) { positions[r] = random_range(&random, 0, 19); }
        random_slots(&random, &layout, rows, slots);
        struct pool got = pool_poisoned(&layout, 0), want = pool_poisoned(&layout, 0);

        struct rows q_one = rows_copy(&q), k_one = rows_copy(&k), v_one = rows_copy(&v);
        struct cuda_qkv_store_args args = {.rows = rows, .q_heads = no_q ? 0 : q_heads, .rotary_dim = rotary_dim, .dtype = act,
                                           .q = no_q ? NULL : q_one.data, .q_stride = q_one.stride, .k = k_one.data,
                                           .k_stride = k_one.stride, .v = v_one.data, .v_stride = v_one.stride,
                                           .q_norm = with_norm ? q_norm.data : NULL, .k_norm = with_norm ? k_norm.data : NULL,
                                           .q_norm_dtype = q_norm.dtype, .k_norm_dtype = k_norm.dtype, .norm_eps = 1e-6f,
                                           .cos = cosines, .sin = sines, .positions = positions,
                                           .slots = (const struct cuda_kv_slot *)(const void *)slots};
        struct cuda_launch shape;
        cuda_kv_place_of(&got.kv, &args.kv);
        cuda_qkv_store_shape(&args, &shape);
        launch(CUDA_KERNEL_qkv_store, &shape, &args, sizeof(args));
        assert_rows_equal("k is only read", &k_one, &k);
        assert_rows_equal("v is only read", &v_one, &v);
        assert_only_rows_written("qkv_store", &q_one);

        if (!no_q) { run_rope(&q, q_heads, rotary_dim, cosines, sines, positions, with_norm ? &q_norm : NULL); }
        run_rope(&k, layout.kv_heads, rotary_dim, cosines, sines, positions, with_norm ? &k_norm : NULL);
        run_kv_write(&want, &k, &v, slots);
        assert_rows_equal("q", &q_one, &q);
        assert_memory_equal(got.kv.pool, want.kv.pool, got.bytes);

        free(got.kv.pool);
        free(want.kv.pool);
        rows_free(&q);
        rows_free(&k);
        rows_free(&v);
        rows_free(&q_one);
        rows_free(&k_one);
        rows_free(&v_one);
        rows_free(&q_norm);
        rows_free(&k_norm);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kv_is_the_oracles_byte_for_byte),
        cmocka_unit_test(one_launch_gives_the_bits_of_three),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
