/* Values against naive models of Python's, over random inputs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/chat_template/jinja_builtins.h"
#include "model/chat_template/jinja_utf8.h"

static uint64_t seed = 20240726;

static uint32_t draw(uint32_t below)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(seed >> 33) % below;
}

static int setup(void **state)
{
    struct jinja_ctx *ctx = calloc(1, sizeof *ctx);
    if (!ctx) { return 1; }
    jinja_ctx_init(ctx, (size_t)64 << 20, UINT64_C(100000000), NULL);
    printf("seed %llu\n", (unsigned long long)seed);
    *state = ctx;
    return 0;
}

static int teardown(void **state)
{
    jinja_ctx_fini(*state);
    free(*state);
    return 0;
}

/* The arena keeps its limit, and says so once. */
static void arena_is_bounded(void **state)
{
    (void)state;
    struct jinja_ctx ctx;
    struct diag diag = {{0}};
    jinja_ctx_init(&ctx, 100000, 1000, &diag);
    assert_null(jinja_alloc(&ctx, 200000));
    assert_int_equal(ctx.status.code, ST_RESOURCE_EXHAUSTED);
    assert_null(jinja_alloc(&ctx, 16));
    jinja_fail(&ctx, ST_INTERNAL, "later");
    assert_int_equal(ctx.status.code, ST_RESOURCE_EXHAUSTED);
    assert_null(strstr(diag.text, "later"));
    jinja_ctx_fini(&ctx);
    jinja_ctx_init(&ctx, 100000, 3, NULL);
    assert_true(jinja_charge(&ctx, 3));
    assert_false(jinja_charge(&ctx, 1));
    jinja_ctx_fini(&ctx);
}

/* Appending in place never changes a string that someone else still holds. */
static void appends_leave_older_strings_alone(void **state)
{
    struct jinja_ctx *ctx = *state;
    enum { MANY = 400 };
    static struct value held[MANY];
    static char copies[MANY][4096];
    held[0] = value_cstr("start");
    strcpy(copies[0], "start");
    for (int i = 1; i < MANY; i++) {
        int from = (int)draw((uint32_t)i);
        char tail[64];
        uint32_t len = draw(40);
        for (uint32_t k = 0; k < len; k++) { tail[k] = (char)('a' + draw(26)); }
        tail[len] = '\0';
        if (strlen(copies[from]) > 4000) { from = 0; }
        held[i] = text_append(ctx, held[from], value_str_copy(ctx, tail, len));
        size_t used = strlen(copies[from]);
        memmove(copies[i], copies[from], used);
        memcpy(copies[i] + used, tail, len + 1);
        for (int k = 0; k <= i; k++) {
            assert_int_equal(held[k].len, strlen(copies[k]));
            assert_memory_equal(held[k].u.text, copies[k], held[k].len);
        }
    }
}

/* list[a:b:c] picks what walking the indices one by one picks. */
static void slices_are_pythons(void **state)
{
    struct jinja_ctx *ctx = *state;
    for (int round = 0; round < 3000; round++) {
        uint32_t count = draw(7);
        struct list *list = list_new(ctx, count);
        char letters[8] = "";
        for (uint32_t i = 0; i < count; i++) {
            list_push(ctx, list, value_int(i));
            letters[i] = (char)('0' + i);
            letters[i + 1] = '\0';
        }
        int64_t n = count, bounds[3];
        struct value values[3];
        for (int i = 0; i < 3; i++) {
            bounds[i] = (int64_t)draw(21) - 10;
            if (i == 2 && bounds[i] == 0) { bounds[i] = 1; }
            values[i] = draw(4) == 0 ? value_none() : value_int(bounds[i]);
        }
        int64_t step = values[2].kind == V_NONE ? 1 : bounds[2];
        char want[16] = "";
        size_t used = 0;
        /* The naive reading: go through every index in the step's direction from the first
         * one allowed, and take those before the stop. */
        int64_t start = values[0].kind == V_NONE ? (step > 0 ? 0 : n - 1) : bounds[0] < 0 ? bounds[0] + n : bounds[0];
        int64_t stop = values[1].kind == V_NONE ? (step > 0 ? n : -1) : bounds[1] < 0 ? bounds[1] + n : bounds[1];
        if (step > 0) {
            for (int64_t i = start < 0 ? 0 : start; i < n && i < stop; i += step) { want[used++] = (char)('0' + i); }
        } else {
            if (stop < -1) { stop = -1; }
            for (int64_t i = start > n - 1 ? n - 1 : start; i >= 0 && i > stop; i += step) { want[used++] = (char)('0' + i); }
        }
        want[used] = '\0';
        struct value part = jinja_slice(ctx, value_list(list, V_LIST), values[0], values[1], values[2]);
        assert_int_equal(part.kind, V_LIST);
        assert_int_equal(part.u.list->count, used);
        for (uint32_t i = 0; i < used; i++) { assert_int_equal(part.u.list->items[i].u.integer, want[i] - '0'); }
        struct value text = jinja_slice(ctx, value_str_copy(ctx, letters, count), values[0], values[1], values[2]);
        assert_int_equal(text.len, used);
        assert_memory_equal(text.u.text, want, used);
    }
}

/* repr(float) reads back to the same number, with no more digits than that takes. */
static void floats_read_back(void **state)
{
    (void)state;
    char text[40];
    for (int i = 0; i < 20000; i++) {
        union {
            uint64_t bits;
            double real;
        } u = {.bits = (uint64_t)draw(UINT32_MAX) << 33 | (uint64_t)draw(UINT32_MAX) << 3 | draw(8)};
        if (u.real != u.real || u.real - u.real != 0) { continue; }
        float_repr(u.real, text);
        assert_true(strtod(text, NULL) == u.real);
        assert_true(strpbrk(text, ".e") != NULL);
    }
    float_repr(1e16, text);
    assert_string_equal(text, "1e+16");
    float_repr(0.0001, text);
    assert_string_equal(text, "0.0001");
    float_repr(0.00001, text);
    assert_string_equal(text, "1e-05");
}

/* Whatever bytes come, walking them ends and stays inside. */
static void utf8_walk_ends(void **state)
{
    (void)state;
    for (int round = 0; round < 2000; round++) {
        char *bytes = malloc(16);
        assert_non_null(bytes);
        size_t len = 1 + draw(15), at = 0;
        for (size_t i = 0; i < 16; i++) { bytes[i] = (char)draw(256); }
        while (at < len) {
            uint32_t code, used = utf8_next(bytes + at, len - at, &code);
            assert_in_range(used, 1, 4);
            assert_true(code <= 0x10ffff);
            at += used;
        }
        assert_int_equal(at, len);
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arena_is_bounded),
        cmocka_unit_test_setup_teardown(appends_leave_older_strings_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(slices_are_pythons, setup, teardown),
        cmocka_unit_test(floats_read_back),
        cmocka_unit_test(utf8_walk_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
