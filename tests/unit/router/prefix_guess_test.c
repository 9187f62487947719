/* Claims on prefix_guess: what is left of a chain is always its beginning, the oldest go first, and
 * finding by halves finds what a walk would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "router/prefix_guess.h"

enum { CHAIN_MAX = 40 };

/* A chain whose first blocks depend on the first tokens only: text[i] names block i. */
static void chain_of(const uint32_t *text, uint32_t count, struct kv_hash *names)
{
    struct kv_hash name = kv_hash_root(0);
    for (uint32_t i = 0; i < count; i++) { names[i] = name = kv_hash_next(name, &text[i], 1); }
}

/* Nothing is found in an empty table, of an empty chain, or behind a first block that is not there. */
static void nothing_is_found_where_nothing_is(void **state)
{
    (void)state;
    struct prefix_guess *guess;
    struct kv_hash names[CHAIN_MAX];
    uint32_t text[CHAIN_MAX] = {1, 2, 3};
    chain_of(text, CHAIN_MAX, names);
    assert_false(failed(prefix_guess_create(8, &guess)));
    assert_int_equal(prefix_guess_find(guess, names, CHAIN_MAX), 0);
    prefix_guess_add(guess, names, 0);
    prefix_guess_add(guess, names, 3);
    assert_int_equal(prefix_guess_find(guess, names, 0), 0);
    assert_int_equal(prefix_guess_find(guess, names + 1, 3), 2); /* names are names: no block 0 is needed */
    text[0] = 9;
    chain_of(text, CHAIN_MAX, names);
    assert_int_equal(prefix_guess_find(guess, names, CHAIN_MAX), 0);
    prefix_guess_destroy(guess);
    prefix_guess_destroy(NULL);
}

/* Of a chain longer than the table its beginning is remembered, whatever was there before. */
static void a_long_chain_keeps_its_beginning(void **state)
{
    (void)state;
    struct prefix_guess *guess;
    struct kv_hash names[CHAIN_MAX];
    uint32_t text[CHAIN_MAX] = {7};
    assert_false(failed(prefix_guess_create(5, &guess)));
    chain_of(text, 4, names);
    prefix_guess_add(guess, names, 4);
    text[0] = 8;
    chain_of(text, CHAIN_MAX, names);
    prefix_guess_add(guess, names, CHAIN_MAX);
    prefix_guess_audit(guess);
    assert_int_equal(prefix_guess_find(guess, names, CHAIN_MAX), 5);
    assert_int_equal(prefix_guess_count(guess), 5);
    prefix_guess_destroy(guess);
}

/* A prefix that is used again outlives ends that are not. */
static void what_is_used_again_stays(void **state)
{
    (void)state;
    struct prefix_guess *guess;
    assert_false(failed(prefix_guess_create(10, &guess)));
    struct kv_hash shared[6];
    for (uint32_t turn = 0; turn < 20; turn++) {
        uint32_t text[6] = {1, 2, 3, 100 + turn, 200 + turn, 300 + turn};
        chain_of(text, 6, shared);
        assert_int_equal(prefix_guess_find(guess, shared, 6), turn == 0 ? 0 : 3);
        prefix_guess_add(guess, shared, 6);
        prefix_guess_audit(guess);
    }
    assert_int_equal(prefix_guess_count(guess), 10);
    prefix_guess_destroy(guess);
}

/* The naive model: a list of names, youngest first. */
struct model {
    uint32_t count, max;
    struct kv_hash names[64];
};

static bool model_has(const struct model *model, struct kv_hash name)
{
    for (uint32_t i = 0; i < model->count; i++) {
        if (kv_hash_equal(model->names[i], name)) { return true; }
    }
    return false;
}

static void model_touch(struct model *model, struct kv_hash name)
{
    uint32_t at = 0;
    while (at < model->count && !kv_hash_equal(model->names[at], name)) { at++; }
    if (at == model->count) {
        if (model->count < model->max) { model->count++; }
        at = model->count - 1;
    }
    memmove(&model->names[1], &model->names[0], at * sizeof model->names[0]);
    model->names[0] = name;
}

/* Right behind its parent; false: no room but the parent's own. */
static bool model_insert(struct model *model, uint32_t parent, struct kv_hash name)
{
    if (model->count == model->max) {
        if (parent + 1 == model->count) { return false; }
        model->count--;
    }
    memmove(&model->names[parent + 2], &model->names[parent + 1], (model->count - parent - 1) * sizeof model->names[0]);
    model->names[parent + 1] = name;
    model->count++;
    return true;
}

static void model_extend(struct model *model, struct kv_hash parent, const struct kv_hash *names, uint32_t count)
{
    uint32_t at = 0;
    while (at < model->count && !kv_hash_equal(model->names[at], parent)) { at++; }
    if (at == model->count) { return; }
    for (uint32_t i = 0; i < count; i++) {
        if (model_has(model, names[i])) {
            while (!kv_hash_equal(model->names[at], names[i])) { at = (at + 1) % model->count; }
        } else if (model_insert(model, at, names[i])) {
            at++;
        } else {
            return;
        }
    }
}

/* Random chains with shared beginnings: each is found as far as a walk through the model finds it,
 * and in the model, too, no block is there whose beginning is not. GUESS_SEED=n replays one. */
static void finds_what_a_walk_finds(void **state)
{
    (void)state;
    const char *one = getenv("GUESS_SEED");
    uint64_t first = one ? strtoull(one, NULL, 10) : 1, count = one ? 1 : 200;
    for (uint64_t seed = first; seed < first + count; seed++) {
        printf("GUESS_SEED=%llu\n", (unsigned long long)seed);
        struct rng rng = rng_init(seed);
        struct model model = {.max = 1 + (uint32_t)rng_below(&rng, 60)};
        struct prefix_guess *guess;
        assert_false(failed(prefix_guess_create(model.max, &guess)));
        for (uint32_t i = 0; i < 300; i++) {
            uint32_t text[CHAIN_MAX];
            struct kv_hash names[CHAIN_MAX];
            uint32_t length = (uint32_t)rng_below(&rng, CHAIN_MAX + 1);
            for (uint32_t t = 0; t < CHAIN_MAX; t++) { text[t] = (uint32_t)rng_below(&rng, t < 3 ? 2 : t < 20 ? 1 + (rng_below(&rng, 9) == 0) : 5); }
            chain_of(text, length, names);
            uint32_t walked = 0;
            while (walked < length && model_has(&model, names[walked])) { walked++; }
            for (uint32_t t = walked; t < length; t++) { assert_false(model_has(&model, names[t])); }
            assert_int_equal(prefix_guess_find(guess, names, length), walked);
            if (rng_below(&rng, 3) == 0) { continue; }
            if (length > 1 && rng_below(&rng, 2) == 0) { /* the end comes later, or never */
                uint32_t known = 1 + (uint32_t)rng_below(&rng, length - 1);
                if (rng_below(&rng, 2) == 0) {
                    prefix_guess_add(guess, names, known);
                    for (uint32_t t = known < model.max ? known : model.max; t-- > 0;) { model_touch(&model, names[t]); }
                }
                prefix_guess_extend(guess, names[known - 1], names + known, length - known);
                model_extend(&model, names[known - 1], names + known, length - known);
                prefix_guess_audit(guess);
                assert_int_equal(prefix_guess_count(guess), model.count);
                continue;
            }
            prefix_guess_add(guess, names, length);
            for (uint32_t t = length < model.max ? length : model.max; t-- > 0;) { model_touch(&model, names[t]); }
            prefix_guess_audit(guess);
            assert_int_equal(prefix_guess_count(guess), model.count);
        }
        prefix_guess_destroy(guess);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_found_where_nothing_is),
        cmocka_unit_test(a_long_chain_keeps_its_beginning),
        cmocka_unit_test(what_is_used_again_stays),
        cmocka_unit_test(finds_what_a_walk_finds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
