/* Claims on the arena: its limit, its alignment, and what a reset keeps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/rng.h"

/* What does not fit below the limit is refused, and what does fit is still handed out after. */
static void the_limit_holds_and_refusals_take_nothing(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 100);
    assert_non_null(arena_take(&arena, 32));
    assert_null(arena_take(&arena, 80));
    assert_non_null(arena_take(&arena, 64));
    assert_null(arena_take(&arena, 1));
    arena_reset(&arena);
    assert_non_null(arena_take(&arena, 96));
    arena_fini(&arena);
}

/* Sizes whose padding, header or product would wrap around are refused, without any limit too. */
static void sizes_that_wrap_are_refused(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, SIZE_MAX);
    for (size_t less = 0; less < 64; less++) { assert_null(arena_take(&arena, SIZE_MAX - less)); }
    assert_null(arena_take_array(&arena, SIZE_MAX / 8 + 2, 8));
    assert_null(arena_take_array(&arena, 2, SIZE_MAX / 2 + 1));
    assert_non_null(arena_take(&arena, 16)); /* still of use */
    arena_fini(&arena);
}

/* Every piece is aligned, apart from every other, and arrays are cleared, also in reused memory. */
static void pieces_are_aligned_apart_and_arrays_cleared(void **state)
{
    (void)state;
    enum { COUNT = 500 };
    static unsigned char *pieces[COUNT];
    static size_t sizes[COUNT];
    struct arena arena;
    struct rng rng = rng_init(7);
    arena_init(&arena, 1u << 24);
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < COUNT; i++) {
            sizes[i] = rng_below(&rng, 900);
            pieces[i] = arena_take_array(&arena, sizes[i], 1);
            assert_non_null(pieces[i]);
            assert_int_equal((uintptr_t)pieces[i] % 16, 0);
            for (size_t k = 0; k < sizes[i]; k++) { assert_int_equal(pieces[i][k], 0); }
            memset(pieces[i], (int)(i & 0xff), sizes[i]);
        }
        for (size_t i = 0; i < COUNT; i++) {
            for (size_t k = 0; k < sizes[i]; k++) { assert_int_equal(pieces[i][k], i & 0xff); }
        }
        arena_reset(&arena);
    }
    arena_fini(&arena);
}

/* After one round of the largest kind, a reset leaves one chunk that serves the next rounds. */
static void a_settled_loop_keeps_its_one_chunk(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 1u << 20);
    for (int i = 0; i < 40; i++) { assert_non_null(arena_take(&arena, 1000)); }
    arena_reset(&arena);
    struct arena_chunk *settled = arena.chunks;
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 40; i++) { assert_non_null(arena_take(&arena, 1000)); }
        assert_ptr_equal(arena.chunks, settled);
        arena_reset(&arena);
        assert_ptr_equal(arena.chunks, settled);
    }
    arena_fini(&arena);
    assert_null(arena.chunks);
}

/* An empty piece is a piece: not NULL, which means a refusal. */
static void nothing_is_not_null(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 64);
    void *first = arena_take(&arena, 0);
    void *second = arena_take_array(&arena, 0, 8);
    assert_non_null(first);
    assert_non_null(second);
    assert_ptr_not_equal(first, second);
    arena_fini(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_limit_holds_and_refusals_take_nothing),
        cmocka_unit_test(sizes_that_wrap_are_refused),
        cmocka_unit_test(pieces_are_aligned_apart_and_arrays_cleared),
        cmocka_unit_test(a_settled_loop_keeps_its_one_chunk),
        cmocka_unit_test(nothing_is_not_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
