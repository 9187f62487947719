#include "transfer/fingerprint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct kv_fingerprint sample(void)
{
    const struct kv_layout layout = {.block_tokens = 16, .layer_count = 32, .kv_heads = 8, .head_dim = 128, .dtype = DTYPE_BF16};
    uint8_t model_hash[32];
    struct kv_fingerprint fingerprint;
    for (uint8_t i = 0; i < 32; i++) { model_hash[i] = i; }
    kv_fingerprint_init(&fingerprint, model_hash, &layout, "cpu-avx512-1");
    return fingerprint;
}

/* Wire bytes that no node writes are refused, and name the field. */
static void hostile_bytes_are_refused(void **state)
{
    (void)state;
    struct kv_fingerprint fingerprint = sample(), out;
    uint8_t wire[KV_FINGERPRINT_WIRE_BYTES];
    struct diag diag;
    static const struct { uint32_t at; uint8_t value; const char *field; } wounds[] = {
        {0, 2, "version"}, {33, DTYPE_KV_COUNT, "dtype"}, {34, KV_ORDER_COUNT, "order"}, {35, 2, "converts"}, {36, 1, "converts"}, {37, 0, "block_tokens"}, {39, 1, "block_tokens"}, {41, 0, "layer_count"},
        {44, 0x80, "layer_count"}, {45, 0, "kv_heads"}, {49, 0, "head_dim"}, {52, 1, "head_dim"}, {58, 0x07, "kernel_set"},
        {88, 'x', "kernel_set"},
    };
    for (size_t i = 0; i < sizeof wounds / sizeof wounds[0]; i++) {
        kv_fingerprint_encode(&fingerprint, wire);
        wire[wounds[i].at] = wounds[i].value;
        if (wounds[i].field[0] == 'h' && wounds[i].value == 0) { wire[wounds[i].at] = 0; }
        assert_int_equal(kv_fingerprint_decode(wire, sizeof wire, &diag, &out).code, ST_INVALID_ARGUMENT);
        assert_non_null(strstr(diag.text, wounds[i].field));
    }
    kv_fingerprint_encode(&fingerprint, wire);
    assert_int_equal(kv_fingerprint_decode(wire, sizeof wire - 1, NULL, &out).code, ST_INVALID_ARGUMENT);
    assert_int_equal(kv_fingerprint_decode(wire, 0, NULL, &out).code, ST_INVALID_ARGUMENT);
    memset(wire + 57, 'k', 32); /* no end */
    assert_int_equal(kv_fingerprint_decode(wire, sizeof wire, NULL, &out).code, ST_INVALID_ARGUMENT);
}

/* What is encoded comes back; what lies behind the kernel set's end does not travel. */
static void round_trip(void **state)
{
    (void)state;
    struct kv_fingerprint a = sample(), b = sample(), out;
    uint8_t clean[KV_FINGERPRINT_WIRE_BYTES], wire[KV_FINGERPRINT_WIRE_BYTES];
    memcpy(b.kernel_set + strlen(b.kernel_set) + 1, "junk", 4);
    kv_fingerprint_encode(&a, clean);
    kv_fingerprint_encode(&b, wire);
    assert_memory_equal(clean, wire, sizeof wire);
    assert_int_equal(kv_fingerprint_decode(wire, sizeof wire, NULL, &out).code, ST_OK);
    assert_memory_equal(&a, &out, sizeof a);
    for (int dtype = 0; dtype < DTYPE_KV_COUNT; dtype++) { /* each format of KV travels */
        a.layout.dtype = (enum dtype)dtype;
        kv_fingerprint_encode(&a, wire);
        assert_int_equal(kv_fingerprint_decode(wire, sizeof wire, NULL, &out).code, ST_OK);
        assert_int_equal(out.layout.dtype, dtype);
        assert_int_equal(out.layout.order, KV_ORDER_TILES);
        a.layout.order = KV_ORDER_ROWS;
        kv_fingerprint_encode(&a, wire);
        assert_int_equal(kv_fingerprint_decode(wire, sizeof wire, NULL, &out).code, ST_OK);
        assert_memory_equal(&a, &out, sizeof a);
        a.layout.order = KV_ORDER_TILES;
    }
    a.converts = true;
    kv_fingerprint_encode(&a, wire);
    assert_int_equal(kv_fingerprint_decode(wire, sizeof wire, NULL, &out).code, ST_OK);
    assert_memory_equal(&a, &out, sizeof a);
}

/* Each field changes the hash, and the diff names it with both values. */
static void every_field_counts(void **state)
{
    (void)state;
    uint8_t hash_a[KV_FINGERPRINT_HASH_BYTES], hash_b[KV_FINGERPRINT_HASH_BYTES];
    char text[512];
    for (int field = 0; field < 9; field++) {
        struct kv_fingerprint a = sample(), b = sample();
        const char *want = "";
        switch (field) {
        case 0: b.model_hash[0] = 0xff; want = "model_hash: ours 00010203, theirs ff010203"; break;
        case 1: b.layout.dtype = DTYPE_F32; want = "dtype: ours bf16, theirs f32"; break;
        case 2: b.layout.block_tokens = 32; want = "block_tokens: ours 16, theirs 32"; break;
        case 3: b.layout.layer_count = 31; want = "layer_count: ours 32, theirs 31"; break;
        case 4: b.layout.kv_heads = 4; want = "kv_heads: ours 8, theirs 4"; break;
        case 5: b.layout.head_dim = 64; want = "head_dim: ours 128, theirs 64"; break;
        case 6: b.layout_version++; want = "layout_version: ours 2, theirs 3"; break;
        case 7: b.layout.order = KV_ORDER_ROWS; want = "order: ours 0, theirs 1"; break;
        default: strcpy(b.kernel_set, "cuda-1"); want = "kernel_set: ours cpu-avx512-1, theirs cuda-1"; break;
        }
        kv_fingerprint_hash(&a, hash_a);
        kv_fingerprint_hash(&b, hash_b);
        assert_memory_not_equal(hash_a, hash_b, sizeof hash_a);
        assert_int_equal(kv_fingerprint_diff(&a, &b, text, sizeof text), 1);
        assert_string_equal(text, want);
    }
    struct kv_fingerprint a = sample(), b = sample();
    assert_int_equal(kv_fingerprint_diff(&a, &b, text, sizeof text), 0);
    assert_string_equal(text, "");
    b.layout.kv_heads = 1;
    b.layout.head_dim = 1;
    assert_int_equal(kv_fingerprint_diff(&a, &b, text, 30), 2); /* cut, and ended */
    assert_string_equal(text, "kv_heads: ours 8, theirs 1; h");
}

/* Dtype and order may differ where both convert, and nothing else may ever; who converts still meets his like that does
 * not, since the bit is not in the hash. */
static void only_numbers_are_converted_and_only_by_both(void **state)
{
    (void)state;
    uint8_t hash_a[KV_FINGERPRINT_HASH_BYTES], hash_b[KV_FINGERPRINT_HASH_BYTES];
    for (int says = 0; says < 4; says++) {
        for (int field = -1; field < 9; field++) {
            struct kv_fingerprint a = sample(), b = sample();
            a.converts = says & 1;
            b.converts = says >> 1;
            switch (field) {
            case -1: break;
            case 0: b.layout.dtype = DTYPE_FP8_E4M3; break;
            case 1: b.layout.order = KV_ORDER_ROWS; break;
            case 2: b.model_hash[31] ^= 1; break;
            case 3: b.layout.block_tokens = 32; break;
            case 4: b.layout.layer_count = 31; break;
            case 5: b.layout.kv_heads = 4; break;
            case 6: b.layout.head_dim = 64; break;
            case 7: b.layout_version++; break;
            default: strcpy(b.kernel_set, "cuda-1"); break;
            }
            enum kv_fit want = field == -1 ? KV_FIT_SAME : field < 2 && says == 3 ? KV_FIT_CONVERTS : KV_FIT_NONE;
            assert_int_equal(kv_fingerprint_fit(&a, &b), want);
            assert_int_equal(kv_fingerprint_fit(&b, &a), want);
            kv_fingerprint_hash(&a, hash_a);
            kv_fingerprint_hash(&b, hash_b);
            assert_int_equal(memcmp(hash_a, hash_b, sizeof hash_a) == 0, field == -1);
            kv_fingerprint_convert_hash(&a, hash_b);
            assert_memory_not_equal(hash_a, hash_b, sizeof hash_a);
            kv_fingerprint_convert_hash(&b, hash_a);
            assert_int_equal(memcmp(hash_a, hash_b, sizeof hash_a) == 0, field < 2);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_bytes_are_refused),
        cmocka_unit_test(round_trip),
        cmocka_unit_test(every_field_counts),
        cmocka_unit_test(only_numbers_are_converted_and_only_by_both),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
