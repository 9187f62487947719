/* bpe against a naive model: join the best-ranked, leftmost pair, looking at all of them each
 * time. Random vocabularies and words; lengths on both sides of every switch of method. */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "model/tokenizer/bpe.h"

static uint64_t seed;

static uint32_t draw(uint32_t below)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(seed >> 33) % below;
}

struct rule { uint32_t left, right, id; };

#define LETTERS 4
#define RULES_MAX 60

struct model {
    json_t *json;
    char spelling[LETTERS + RULES_MAX][64];
    uint32_t tokens;
    struct rule rules[RULES_MAX];
    size_t rule_count;
};

/* Grows a vocabulary by joining two random tokens at a time. */
static void make_model(struct model *model)
{
    json_t *vocab = json_object(), *merges = json_array();
    memset(model, 0, sizeof *model);
    for (uint32_t i = 0; i < LETTERS; i++) {
        model->spelling[i][0] = (char)('a' + i);
        json_object_set_new(vocab, model->spelling[i], json_integer(i));
    }
    model->tokens = LETTERS;
    size_t tries = draw(RULES_MAX);
    for (size_t i = 0; i < tries; i++) {
        uint32_t left = draw(model->tokens), right = draw(model->tokens);
        char joined[130];
        snprintf(joined, sizeof joined, "%s%s", model->spelling[left], model->spelling[right]);
        bool again = false;
        for (size_t k = 0; k < model->rule_count; k++) { again = again || (model->rules[k].left == left && model->rules[k].right == right); }
        if (again || strlen(joined) > 20) { continue; }
        uint32_t id = 0;
        while (id < model->tokens && strcmp(model->spelling[id], joined) != 0) { id++; }
        if (id == model->tokens) { /* else a second way to spell a token */
            strcpy(model->spelling[id], joined);
            json_object_set_new(vocab, joined, json_integer(id));
            model->tokens++;
        }
        model->rules[model->rule_count++] = (struct rule){left, right, id};
        json_array_append_new(merges, json_pack("[ss]", model->spelling[left], model->spelling[right]));
    }
    model->json = json_pack("{s:s,s:o,s:o}", "type", "BPE", "vocab", vocab, "merges", merges);
    assert_non_null(model->json);
}

static size_t merge_naively(const struct model *model, uint32_t *ids, size_t count)
{
    for (;;) {
        size_t best = model->rule_count, at = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            for (size_t k = 0; k < best; k++) {
                if (model->rules[k].left == ids[i] && model->rules[k].right == ids[i + 1]) { best = k; at = i; }
            }
        }
        if (best == model->rule_count) { return count; }
        ids[at] = model->rules[best].id;
        memmove(ids + at + 1, ids + at + 2, (count - at - 2) * sizeof *ids);
        count--;
    }
}

static void random_words_equal_the_naive_model(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 2, 3, 12, 13, 31, 32, 33, 48, 49, 63, 64, 65, 66, 130, 400};
    for (unsigned round = 0; round < 150; round++) {
        struct model model;
        struct bpe *bpe = NULL;
        struct bpe_scratch *scratch = NULL;
        struct diag diag = {{0}};
        struct json_nul nul = {{0}};
        make_model(&model);
        if (failed(bpe_create(model.json, &nul, false, &bpe, &diag))) { fail_msg("%s", diag.text); }
        assert_false(failed(bpe_scratch_create(bpe, 1000, &scratch)));
        for (unsigned i = 0; i < 60; i++) {
            char word[400];
            uint32_t expected[400];
            size_t len = lengths[draw(sizeof lengths / sizeof lengths[0])];
            uint32_t letters = 1 + draw(LETTERS);
            for (size_t k = 0; k < len; k++) {
                expected[k] = draw(letters);
                word[k] = (char)('a' + expected[k]);
            }
            size_t count = merge_naively(&model, expected, len);
            struct token_buf ids = {0};
            assert_false(failed(bpe_encode(bpe, scratch, word, len, &ids, &diag)));
            assert_int_equal(ids.count, count);
            assert_memory_equal(ids.ids, expected, count * sizeof *expected);
            token_buf_fini(&ids);
        }
        bpe_scratch_destroy(scratch);
        bpe_destroy(bpe);
        json_decref(model.json);
    }
}

static void expect(const char *json, const char *word, size_t count, const uint32_t *expected)
{
    struct bpe *bpe = NULL;
    struct bpe_scratch *scratch = NULL;
    struct diag diag = {{0}};
    struct json_nul nul = {{0}};
    struct token_buf ids = {0};
    json_t *model = json_loads(json, 0, NULL);
    assert_non_null(model);
    if (failed(bpe_create(model, &nul, false, &bpe, &diag))) { fail_msg("%s", diag.text); }
    assert_false(failed(bpe_scratch_create(bpe, strlen(word), &scratch)));
    for (unsigned twice = 0; twice < 2; twice++) { /* the second time from the cache */
        ids.count = 0;
        assert_false(failed(bpe_encode(bpe, scratch, word, strlen(word), &ids, &diag)));
        assert_int_equal(ids.count, count);
        if (count) { assert_memory_equal(ids.ids, expected, count * sizeof *expected); }
    }
    token_buf_fini(&ids);
    bpe_scratch_destroy(scratch);
    bpe_destroy(bpe);
    json_decref(model);
}

/* Characters without a token: nothing, the unknown token, one for a run, or their bytes. */
static void unknown_characters_follow_the_options(void **state)
{
    (void)state;
    expect("{\"vocab\":{\"a\":0},\"merges\":[]}", "xay", 1, (uint32_t[]){0});
    expect("{\"vocab\":{\"a\":0},\"merges\":[]}", "xy", 0, NULL);
    expect("{\"vocab\":{\"a\":0,\"?\":1},\"merges\":[],\"unk_token\":\"?\"}", "xyaz", 4, (uint32_t[]){1, 1, 0, 1});
    expect("{\"vocab\":{\"a\":0,\"?\":1},\"merges\":[],\"unk_token\":\"?\",\"fuse_unk\":true}", "xyaz", 3, (uint32_t[]){1, 0, 1});
    expect("{\"vocab\":{\"a\":0,\"<0xC3>\":1,\"<0xA9>\":2,\"?\":3},\"merges\":[],\"unk_token\":\"?\",\"byte_fallback\":true}", "aéx", 4,
           (uint32_t[]){0, 1, 2, 3});
    expect("{\"vocab\":{\"ab\":0,\"a\":1,\"b\":2},\"merges\":[],\"ignore_merges\":true}", "ab", 1, (uint32_t[]){0});
    expect("{\"vocab\":{\"a\":0,\"##b\":1,\"ab\":2,\"##bz\":3},\"merges\":[\"a ##b\"],\"continuing_subword_prefix\":\"##\"}", "ab", 1,
           (uint32_t[]){2});
    expect("{\"vocab\":{\"a\":0,\"b/\":1,\"a/\":2},\"merges\":[],\"end_of_word_suffix\":\"/\"}", "ab", 2, (uint32_t[]){0, 1});
}

/* An unknown token that the vocabulary lacks fails the text that needs it, not the load. */
static void missing_unknown_token_fails_the_request(void **state)
{
    (void)state;
    struct bpe *bpe = NULL;
    struct bpe_scratch *scratch = NULL;
    struct diag diag = {{0}};
    struct json_nul nul = {{0}};
    struct token_buf ids = {0};
    json_t *model = json_loads("{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"?\"}", 0, NULL);
    assert_false(failed(bpe_create(model, &nul, false, &bpe, &diag)));
    assert_false(failed(bpe_scratch_create(bpe, 1, &scratch)));
    assert_false(failed(bpe_encode(bpe, scratch, "a", 1, &ids, &diag)));
    assert_int_equal(bpe_encode(bpe, scratch, "x", 1, &ids, &diag).code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "unk_token"));
    token_buf_fini(&ids);
    bpe_scratch_destroy(scratch);
    bpe_destroy(bpe);
    json_decref(model);
}

int main(void)
{
    const char *given = getenv("BATON_SEED");
    seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(missing_unknown_token_fails_the_request),
        cmocka_unit_test(unknown_characters_follow_the_options),
        cmocka_unit_test(random_words_equal_the_naive_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
