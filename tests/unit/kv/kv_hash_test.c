#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "kv/kv_hash.h"
#include "tests/unit/heap/counting_heap.h"

static void assert_hash(struct kv_hash hash, const char *hex)
{
    char text[33];
    for (uint32_t i = 0; i < 16; i++) { snprintf(text + 2 * i, 3, "%02x", hash.bytes[i]); }
    assert_string_equal(text, hex);
}

/* The names lie in files that outlive this program, so they are fixed for ever. Recipe, in Python:
 *   root(salt) = sha256(b"baton kv chain 1" + struct.pack("<Q", salt)).digest()[:16]
 *   next(parent, tokens) = sha256(parent + struct.pack("<%dI" % len(tokens), *tokens)).digest()[:16] */
static void names_are_the_stored_ones(void **state)
{
    (void)state;
    uint32_t tokens[70];
    struct kv_hash hash = kv_hash_root(0);
    assert_hash(hash, "7e155ddfc4ef5cbdd73d4dff94a5f36c");
    assert_hash(kv_hash_root(UINT64_C(0x0102030405060708)), "0ea89b82b4626a7d4e44834a4f31272d");
    for (uint32_t i = 0; i < 16; i++) { tokens[i] = i; }
    hash = kv_hash_next(hash, tokens, 16);
    assert_hash(hash, "dddc1b8739cb665dbbf79a2e0fad15c9");
    for (uint32_t i = 0; i < 16; i++) { tokens[i] = UINT32_C(0xfffefdfc) - i; }
    hash = kv_hash_next(hash, tokens, 16);
    assert_hash(hash, "15ccbf619a375f8b71a3ce8aab36ae11");
    for (uint32_t i = 0; i < 70; i++) { tokens[i] = i * 7919; } /* more than one piece */
    assert_hash(kv_hash_next(hash, tokens, 70), "f10502bbb822b85e5cff9182ca0080aa");
}

/* A name depends on every token, on their order, on what came before and on the salt. */
static void a_name_tells_everything_before_it(void **state)
{
    (void)state;
    uint32_t tokens[16] = {0};
    struct kv_hash root = kv_hash_root(0);
    struct kv_hash plain = kv_hash_next(root, tokens, 16);
    assert_true(kv_hash_equal(plain, kv_hash_next(kv_hash_root(0), tokens, 16)));
    assert_false(kv_hash_equal(plain, kv_hash_next(kv_hash_root(1), tokens, 16)));
    assert_false(kv_hash_equal(plain, kv_hash_next(plain, tokens, 16)));
    assert_false(kv_hash_equal(plain, kv_hash_next(root, tokens, 15)));
    for (uint32_t i = 0; i < 16; i++) {
        tokens[i] = 1;
        assert_false(kv_hash_equal(plain, kv_hash_next(root, tokens, 16)));
        tokens[i] = UINT32_C(1) << 31;
        assert_false(kv_hash_equal(plain, kv_hash_next(root, tokens, 16)));
        tokens[i] = 0;
    }
}

/* Blocks are named in the token loop. */
static void naming_allocates_nothing(void **state)
{
    (void)state;
    uint32_t tokens[16] = {1, 2, 3};
    struct kv_hash hash = kv_hash_root(7);
    uint64_t before = heap_allocations();
    for (uint32_t i = 0; i < 100; i++) { hash = kv_hash_next(hash, tokens, 16); }
    assert_int_equal(heap_allocations(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_the_stored_ones),
        cmocka_unit_test(a_name_tells_everything_before_it),
        cmocka_unit_test(naming_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
