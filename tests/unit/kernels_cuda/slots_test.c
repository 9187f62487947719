/* Slices that a device puts into a slot and takes out of it are byte for byte what plain C makes of them, in every pair of
 * shapes, and nothing beside them is touched. */
#include "kernels/cuda/slots_args.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kv_memory/kv_convert.h"
#include "tests/unit/kernels_cuda/rows_testing.h"

#define GUARD 64u
#define PIECES_MAX 9u

/* Bytes between poison, 16-byte aligned and no better. */
struct area {
    unsigned char *memory, *data;
    size_t bytes;
};

static struct area area_poisoned(size_t bytes)
{
    struct area area = {.bytes = bytes};
    area.memory = aligned_alloc(64, (bytes + 2 * GUARD + 16 + 63) / 64 * 64);
    assert_non_null(area.memory);
    memset(area.memory, POISON, bytes + 2 * GUARD + 16);
    area.data = area.memory + GUARD + 16;
    return area;
}

static struct area area_random(struct random *random, size_t bytes)
{
    struct area area = area_poisoned(bytes);
    for (size_t i = 0; i < bytes; i++) { area.data[i] = (unsigned char)random_word(random); }
    return area;
}

static void assert_areas_equal(const char *what, const struct area *got, const struct area *want)
{
    for (size_t i = 0; i < want->bytes + 2 * GUARD + 16; i++) {
        if (got->memory[i] != want->memory[i]) {
            fail_msg("%s: byte %td of %zu is %02x, not %02x", what, (ptrdiff_t)(got->memory + i - got->data), want->bytes, got->memory[i],
                     want->memory[i]);
        }
    }
}

/* Offsets of slices that do not overlap, in any order, with gaps. Gives the bytes that the pool needs. */
static size_t draw_offsets(struct random *random, uint32_t count, size_t bytes, uint64_t *offsets)
{
    size_t at = random_range(random, 0, 3) * 16;
    for (uint32_t i = 0; i < count; i++) {
        offsets[i] = at;
        at += bytes + random_range(random, 0, 2) * 16;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t other = random_range(random, i, count - 1);
        const uint64_t held = offsets[i];
        offsets[i] = offsets[other];
        offsets[other] = held;
    }
    return at;
}

static void check_copy(struct random *random, uint32_t count, uint32_t vectors, bool to_slot)
{
    struct cuda_slots_copy_args args = {.count = count, .vectors = vectors, .to_slot = to_slot};
    struct cuda_launch shape;
    const size_t bytes = (size_t)vectors * 16, pool_bytes = draw_offsets(random, count, bytes, args.offsets);
    struct area pool = area_random(random, pool_bytes), slot = area_random(random, count * bytes);
    struct area want_pool = area_poisoned(pool_bytes), want_slot = area_poisoned(count * bytes);
    memcpy(want_pool.data, pool.data, pool_bytes);
    memcpy(want_slot.data, slot.data, count * bytes);
    for (uint32_t i = 0; i < count; i++) {
        if (to_slot) {
            memcpy(want_slot.data + i * bytes, pool.data + args.offsets[i], bytes);
        } else {
            memcpy(want_pool.data + args.offsets[i], slot.data + i * bytes, bytes);
        }
    }
    args.pool = pool.data;
    args.slot = slot.data;
    cuda_slots_copy_shape(&args, &shape);
    launch(CUDA_KERNEL_slots_copy, &shape, &args, sizeof(args));
    assert_areas_equal("the pool", &pool, &want_pool);
    assert_areas_equal("the slot", &slot, &want_slot);
    free(pool.memory);
    free(slot.memory);
    free(want_pool.memory);
    free(want_slot.memory);
}

static void slices_are_copied_as_they_are(void **state)
{
    (void)state;
    struct random random = random_from_environment("slots_copy");
    const uint32_t chunk = CUDA_SLOTS_CHUNK, threads = CUDA_SLOTS_THREADS;
    const uint32_t edges[] = {1, 2, threads - 1, threads, threads + 1, chunk - 1, chunk, chunk + 1, 3 * chunk - threads + 5};
    for (size_t i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
        check_copy(&random, random_range(&random, 1, PIECES_MAX), edges[i], i % 2 == 0);
        check_copy(&random, random_range(&random, 1, PIECES_MAX), edges[i], i % 2 != 0);
    }
    for (uint32_t round = 0; round < 12; round++) { check_copy(&random, random_range(&random, 1, PIECES_MAX), random_range(&random, 1, 2 * chunk), round % 2 == 0); }
    check_copy(&random, CUDA_SLOTS_PIECES_MAX, chunk + 3, true); /* more chunks than blocks */
    check_copy(&random, CUDA_SLOTS_PIECES_MAX, 5, false);
}

static struct kv_layout random_layout(struct random *random)
{
    static const uint32_t head_dims[] = {2, 6, 8, 16, 30, 64, 72, 128, 130, 256};
    return (struct kv_layout){.block_tokens = random_range(random, 1, 2) * 16, .layer_count = random_range(random, 1, 3),
                              .kv_heads = random_range(random, 1, 5), .head_dim = head_dims[random_range(random, 0, 9)]};
}

/* Values of every size and, here and there, what is no number. Whatever bytes lie in a pool are a slice of something: rows
 * that nobody wrote yet hold anything. */
static void fill(struct random *random, const struct kv_layout *layout, unsigned char *slice, bool is_anything)
{
    const size_t bytes = kv_layout_slice_bytes(layout);
    static const float factors[] = {1, 8, 3e4f, 1e-4f, 0x1p-24f, 0x1p-130f, 0};
    for (size_t i = 0; i < bytes; i++) { slice[i] = (unsigned char)random_word(random); }
    if (is_anything) { return; }
    struct kv_layout plain = *layout;
    plain.dtype = DTYPE_F32;
    unsigned char *values = malloc(kv_layout_slice_bytes(&plain));
    assert_non_null(values);
    for (size_t at = 0; at < kv_layout_slice_bytes(&plain); at += 4 * (size_t)layout->head_dim) {
        const float factor = factors[random_range(random, 0, 6)];
        for (uint32_t d = 0; d < layout->head_dim; d++) { memcpy(values + at + 4 * (size_t)d, &(float){factor * random_value(random)}, 4); }
        if (random_range(random, 0, 9) == 0) {
            static const float odd[] = {NAN, -INFINITY, INFINITY, 3.4e38f, 6e4f, -0.0f};
            memcpy(values + at + 4 * (size_t)random_range(random, 0, layout->head_dim - 1), &odd[random_range(random, 0, 5)], 4);
        }
    }
    if (layout->dtype == DTYPE_F32) { memcpy(slice, values, bytes); } else { kv_convert(&plain, values, layout, slice); }
    free(values);
}

static void check_convert(struct random *random, struct kv_layout pool_layout, const struct kv_layout *slot_layout, bool to_slot)
{
    struct cuda_slots_convert_args args;
    struct cuda_launch shape;
    cuda_slots_convert_prepare(&pool_layout, slot_layout, &args);
    args.count = random_range(random, 1, PIECES_MAX);
    args.to_slot = to_slot;
    const size_t slice_bytes = kv_layout_slice_bytes(&pool_layout), piece_bytes = kv_layout_slice_bytes(slot_layout);
    const size_t pool_bytes = draw_offsets(random, args.count, slice_bytes, args.offsets);
    struct area pool = area_random(random, pool_bytes), slot = area_random(random, args.count * piece_bytes);
    struct area want_pool = area_poisoned(pool_bytes), want_slot = area_poisoned(args.count * piece_bytes);
    for (uint32_t i = 0; i < args.count; i++) {
        if (to_slot) {
            fill(random, &pool_layout, pool.data + args.offsets[i], i % 3 == 2);
        } else {
            fill(random, slot_layout, slot.data + i * piece_bytes, i % 3 == 2);
        }
    }
    memcpy(want_pool.data, pool.data, pool_bytes);
    memcpy(want_slot.data, slot.data, args.count * piece_bytes);
    for (uint32_t i = 0; i < args.count; i++) {
        if (to_slot) {
            kv_convert(&pool_layout, pool.data + args.offsets[i], slot_layout, want_slot.data + i * piece_bytes);
        } else {
            kv_convert(slot_layout, slot.data + i * piece_bytes, &pool_layout, want_pool.data + args.offsets[i]);
        }
    }
    args.pool = pool.data;
    args.slot = slot.data;
    cuda_slots_convert_shape(&args, &shape);
    launch(CUDA_KERNEL_slots_convert, &shape, &args, sizeof(args));
    char what[160];
    snprintf(what, sizeof what, "%s of %s %s, %s %s, head_dim %u, %u kv heads, %u tokens", to_slot ? "gather" : "scatter",
             dtype_name(pool_layout.dtype), pool_layout.order == KV_ORDER_TILES ? "tiles" : "rows", dtype_name(slot_layout->dtype),
             slot_layout->order == KV_ORDER_TILES ? "tiles" : "rows", pool_layout.head_dim, pool_layout.kv_heads, pool_layout.block_tokens);
    assert_areas_equal(what, &pool, &want_pool);
    assert_areas_equal(what, &slot, &want_slot);
    free(pool.memory);
    free(slot.memory);
    free(want_pool.memory);
    free(want_slot.memory);
}

static void slices_change_shape_as_plain_c_does_it(void **state)
{
    (void)state;
    struct random random = random_from_environment("slots_convert");
    for (uint32_t pair = 0; pair < DTYPE_KV_COUNT * DTYPE_KV_COUNT * 4 * 2; pair++) {
        struct kv_layout pool = random_layout(&random), slot = pool;
        pool.dtype = (enum dtype)(pair % DTYPE_KV_COUNT);
        slot.dtype = (enum dtype)(pair / DTYPE_KV_COUNT % DTYPE_KV_COUNT);
        pool.order = (enum kv_order)(pair / 25 % 2);
        slot.order = (enum kv_order)(pair / 50 % 2);
        check_convert(&random, pool, &slot, pair / 100 != 0);
        pool.head_dim = slot.head_dim = pair % 2 == 0 ? 128 : 64; /* those that models have */
        check_convert(&random, pool, &slot, pair / 100 == 0);
    }
}

/* What plain C makes of f32 rows is what the oracle of the kernels writes of them: one truth, not two. */
static void plain_c_agrees_with_the_oracle(void **state)
{
    (void)state;
    struct random random = random_from_environment("kv_convert");
    struct kernels *ref = oracle();
    for (uint32_t round = 0; round < 60; round++) {
        struct kv_layout to = random_layout(&random), plain;
        to.layer_count = 1;
        plain = to;
        plain.dtype = DTYPE_F32;
        plain.order = KV_ORDER_ROWS;
        to.dtype = (enum dtype)(round % DTYPE_KV_COUNT);
        to.order = (enum kv_order)(round / DTYPE_KV_COUNT % 2);
        unsigned char *values = malloc(kv_layout_slice_bytes(&plain)), *got = malloc(kv_layout_slice_bytes(&to)), *want = aligned_alloc(64, (kv_layout_slice_bytes(&to) + 63) / 64 * 64);
        float *rows = malloc(kv_layout_slice_bytes(&plain));
        struct kernels_kv_slot slots[32];
        assert_true(values != NULL && got != NULL && want != NULL && rows != NULL);
        for (size_t i = 0; i < kv_layout_slice_bytes(&plain) / 4; i++) { memcpy(values + 4 * i, &(float){random_value(&random) * 50}, 4); }
        const size_t row_values = (size_t)to.kv_heads * to.head_dim;
        for (uint32_t token = 0; token < to.block_tokens; token++) {
            slots[token] = (struct kernels_kv_slot){0, token};
            for (uint32_t i = 0; i < row_values; i++) {
                memcpy(&rows[token * row_values + i], values + kv_layout_k_offset(&plain, i / to.head_dim, token, i % to.head_dim), 4);
                memcpy(&rows[(to.block_tokens + token) * row_values + i], values + kv_layout_v_offset(&plain, i / to.head_dim, token, i % to.head_dim), 4);
            }
        }
        kernels_kv_write(ref, &(struct kernels_kv_write){.kv = {.layout = to, .block_count = 1, .pool = want}, .rows = to.block_tokens, .k = rows,
                                                         .k_stride = row_values, .v = rows + to.block_tokens * row_values,
                                                         .v_stride = row_values, .slots = slots});
        kv_convert(&plain, values, &to, got);
        assert_memory_equal(got, want, kv_layout_slice_bytes(&to));
        /* And a move of bits alone, there and back, is none at all. */
        struct kv_layout other = to;
        other.order = to.order == KV_ORDER_ROWS ? KV_ORDER_TILES : KV_ORDER_ROWS;
        kv_convert(&to, want, &other, got);
        kv_convert(&other, got, &to, values);
        assert_memory_equal(values, want, kv_layout_slice_bytes(&to));
        free(values);
        free(got);
        free(want);
        free(rows);
    }
    kernels_destroy(ref);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slices_are_copied_as_they_are),
        cmocka_unit_test(plain_c_agrees_with_the_oracle),
        cmocka_unit_test(slices_change_shape_as_plain_c_does_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
