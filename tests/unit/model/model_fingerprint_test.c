/* The fingerprint: every byte of small tensors counts, of large ones the samples that the header names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/model_fingerprint.h"

static const struct model_config plain = {.vocab_size = 10, .hidden_size = 4, .layer_count = 2, .q_heads = 2};

static void hash_of(const struct model_config *config, const char *name, const char *dtype, uint64_t rows,
                    const uint8_t *data, uint64_t bytes, uint8_t ret_hash[FINGERPRINT_BYTES])
{
    struct model_fingerprint_state *state;
    uint64_t shape[2] = {rows, bytes / rows};
    assert_false(failed(model_fingerprint_begin(config, NULL, &state)));
    model_fingerprint_add(state, name, dtype, shape, 2, data, bytes);
    assert_false(failed(model_fingerprint_end(state, NULL, ret_hash)));
}

static bool flip_shows(uint8_t *data, uint64_t bytes, uint64_t at)
{
    uint8_t before[FINGERPRINT_BYTES], after[FINGERPRINT_BYTES];
    hash_of(&plain, "w", "F32", 1, data, bytes, before);
    data[at] ^= 1;
    hash_of(&plain, "w", "F32", 1, data, bytes, after);
    data[at] ^= 1;
    return memcmp(before, after, sizeof before) != 0;
}

/* Any bit of a tensor of up to 256 KiB shows. */
static void small_tensors_are_hashed_whole(void **state)
{
    (void)state;
    uint8_t *data = calloc(1, FINGERPRINT_WHOLE_BYTES);
    assert_non_null(data);
    for (uint64_t at = 0; at < FINGERPRINT_WHOLE_BYTES; at += 9973) {
        assert_true(flip_shows(data, FINGERPRINT_WHOLE_BYTES, at));
    }
    assert_true(flip_shows(data, FINGERPRINT_WHOLE_BYTES, FINGERPRINT_WHOLE_BYTES - 1));
    assert_true(flip_shows(data, 1, 0));
    free(data);
}

/* Of a larger one both edges and a page of every stride do, and nothing else is read. */
static void large_tensors_are_sampled(void **state)
{
    (void)state;
    uint64_t bytes = 2 * FINGERPRINT_STRIDE_BYTES + 100000;
    uint8_t *data = calloc(1, bytes);
    assert_non_null(data);
    assert_true(flip_shows(data, bytes, 0));
    assert_true(flip_shows(data, bytes, FINGERPRINT_EDGE_BYTES - 1));
    assert_false(flip_shows(data, bytes, FINGERPRINT_EDGE_BYTES));
    assert_true(flip_shows(data, bytes, FINGERPRINT_STRIDE_BYTES));
    assert_true(flip_shows(data, bytes, FINGERPRINT_STRIDE_BYTES + FINGERPRINT_PAGE_BYTES - 1));
    assert_false(flip_shows(data, bytes, FINGERPRINT_STRIDE_BYTES + FINGERPRINT_PAGE_BYTES));
    assert_true(flip_shows(data, bytes, 2 * FINGERPRINT_STRIDE_BYTES));
    assert_true(flip_shows(data, bytes, bytes - FINGERPRINT_EDGE_BYTES));
    assert_true(flip_shows(data, bytes, bytes - 1));
    free(data);
}

static void hash_of_shape(const uint64_t *shape, uint32_t rank, uint8_t ret_hash[FINGERPRINT_BYTES])
{
    struct model_fingerprint_state *state;
    uint8_t data[92] = {0};
    assert_false(failed(model_fingerprint_begin(&plain, NULL, &state)));
    model_fingerprint_add(state, "w", "F32", shape, rank, data, sizeof data);
    assert_false(failed(model_fingerprint_end(state, NULL, ret_hash)));
}

/* Shapes with the same digits in a row are different shapes. */
static void shapes_do_not_run_together(void **state)
{
    (void)state;
    static const struct { uint64_t shape[3]; uint32_t rank; } shapes[] = {
        {{1, 23}, 2}, {{12, 3}, 2}, {{123}, 1}, {{1, 2, 3}, 3}, {{0, 123}, 2}, {{1230}, 1},
    };
    enum { COUNT = sizeof shapes / sizeof shapes[0] };
    uint8_t hashes[COUNT][FINGERPRINT_BYTES];
    for (size_t i = 0; i < COUNT; i++) {
        hash_of_shape(shapes[i].shape, shapes[i].rank, hashes[i]);
        for (size_t k = 0; k < i; k++) { assert_memory_not_equal(hashes[i], hashes[k], FINGERPRINT_BYTES); }
    }
}

/* Two builds of different days must agree: the hash of one small model is pinned. It is the
 * SHA-256 of the lines in model_fingerprint.c for `plain`, with shape=2,8, and the 16 bytes behind
 * them, made with another implementation (Python's hashlib). A change of it locks out every
 * running node of the older build, and so belongs with a new number in the first line. */
static void the_hash_is_pinned(void **state)
{
    (void)state;
    uint8_t data[16] = {1, 2, 3}, hash[FINGERPRINT_BYTES];
    char text[2 * FINGERPRINT_BYTES + 1];
    hash_of(&plain, "w", "F32", 2, data, sizeof data, hash);
    for (size_t i = 0; i < FINGERPRINT_BYTES; i++) { snprintf(text + 2 * i, 3, "%02x", hash[i]); }
    assert_string_equal(text, "ba1d4073353beb09e8ae8c57a48039c9857a1e04790b44bbfdb42efefba28e5d");
}

/* Name, dtype and shape count, and every field of the config that a token depends on. */
static void names_shapes_and_config_count(void **state)
{
    (void)state;
    uint8_t data[16] = {1, 2, 3}, base[FINGERPRINT_BYTES], other[FINGERPRINT_BYTES];
    hash_of(&plain, "w", "F32", 1, data, 16, base);
    hash_of(&plain, "w", "F32", 1, data, 16, other);
    assert_memory_equal(base, other, sizeof base);
    hash_of(&plain, "v", "F32", 1, data, 16, other);
    assert_memory_not_equal(base, other, sizeof base);
    hash_of(&plain, "w", "BF16", 1, data, 16, other);
    assert_memory_not_equal(base, other, sizeof base);
    hash_of(&plain, "w", "F32", 2, data, 16, other);
    assert_memory_not_equal(base, other, sizeof base);
    struct model_config changed[] = {plain, plain, plain, plain, plain, plain, plain};
    changed[0].rope_theta = 1e-9;
    changed[1].norm_eps = 1e-5f;
    changed[2].layer_is_sliding[1] = true;
    changed[3].sliding_window = 4;
    changed[4].activation = MODEL_GELU_ERF;
    changed[5].eos_count = 1;
    changed[6].attention_is_scaled_by_layer = true;
    for (size_t i = 0; i < sizeof changed / sizeof changed[0]; i++) {
        hash_of(&changed[i], "w", "F32", 1, data, 16, other);
        assert_memory_not_equal(base, other, sizeof base);
    }
    model_fingerprint_add(NULL, "w", "F32", NULL, 0, NULL, 0); /* nobody asked */
    model_fingerprint_drop(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_tensors_are_hashed_whole),
        cmocka_unit_test(large_tensors_are_sampled),
        cmocka_unit_test(names_shapes_and_config_count),
        cmocka_unit_test(shapes_do_not_run_together),
        cmocka_unit_test(the_hash_is_pinned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
