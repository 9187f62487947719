/* Every case of the stored reference data gives the ids and texts it names: the reference's own
 * (expected/tokenizer) and five other projects' (llama.cpp, ggml, swift-transformers,
 * transformers.js, gpt2-lib.rs). Skipped, with a message, where the data is not there. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/tokenizer/growable.h"
#include "tests/unit/tokenizer/shared_data.h"
#include "tests/unit/tokenizer/token_check.h"

static char shared[PATH_MAX];

static const char *path_of(const char *format, const char *name)
{
    static char path[PATH_MAX * 2];
    char tail[PATH_MAX];
    snprintf(tail, sizeof tail, format, name);
    snprintf(path, sizeof path, "%s/%s", shared, tail);
    return path;
}

static void read_file(const char *path, struct text_buf *out)
{
    FILE *file = fopen(path, "rb");
    if (!file) { fail_msg("%s cannot be read", path); }
    for (size_t got = 1; got > 0;) {
        assert_false(failed(text_buf_reserve(out, 1 << 16)));
        got = fread(out->data + out->len, 1, out->capacity - out->len - 1, file);
        out->len += got;
    }
    out->data[out->len] = '\0';
    fclose(file);
}

static struct token_check open_check(const char *name)
{
    bool is_model = strcmp(name, "stories260k") == 0;
    return (struct token_check){.tokenizer = load_tokenizer(path_of(is_model ? "models/%s" : "tokenizers/%s", name)), .name = name};
}

static void close_check(struct token_check *check, unsigned cases_min)
{
    assert_true(check->cases >= cases_min);
    assert_int_equal(check->differences, 0);
    tokenizer_destroy((struct tokenizer *)check->tokenizer);
}

static const struct encode_options plain = {false, true}, with_special = {true, true};

static void check_line(struct token_check *check, const json_t *head, const json_t *row)
{
    const json_t *text = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
    const json_t *decoded = json_object_get(row, "decoded"), *skipped = json_object_get(row, "decoded_skip_special");
    decoded = decoded ? decoded : text;
    skipped = skipped ? skipped : decoded;
    check_ids(check, json_string_value(text), json_string_length(text), plain, NULL, ids, NULL);
    check_ids(check, json_string_value(text), json_string_length(text), with_special, json_object_get(head, "special_prefix"), ids,
              json_object_get(head, "special_suffix"));
    check_text(check, ids, false, json_string_value(decoded), json_string_length(decoded));
    check_text(check, ids, true, json_string_value(skipped), json_string_length(skipped));
}

static void reference_vectors_are_reproduced(void **state)
{
    if (!shared[0]) { skip(); }
    const char *name = *state;
    struct token_check check = open_check(name);
    struct text_buf file = {0};
    read_file(path_of("expected/tokenizer/%s.jsonl", name), &file);
    json_t *head = NULL;
    for (char *line = file.data, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        json_t *row = json_loadb(line, (size_t)(end - line), JSON_ALLOW_NUL, NULL);
        assert_non_null(row);
        if (!head) { head = row; continue; }
        check_line(&check, head, row);
        json_decref(row);
    }
    json_decref(head);
    text_buf_fini(&file);
    close_check(&check, 1000);
}

/* Decoding every prefix of the ids gives the stored texts, so a stream may stop anywhere. */
static void prefixes_decode_as_stored(void **state)
{
    if (!shared[0]) { skip(); }
    const char *name = *state;
    struct token_check check = open_check(name);
    json_t *file = load_json(path_of("expected/tokenizer/%s.stream.json", name));
    const json_t *cases = json_object_get(file, "cases");
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *row = json_array_get(cases, i), *ids = json_object_get(row, "ids");
        const json_t *prefixes = json_object_get(row, "prefixes");
        json_t *some = json_array();
        for (size_t k = 0; k < json_array_size(prefixes); k++) {
            json_array_append(some, json_array_get(ids, k));
            const json_t *text = json_array_get(prefixes, k);
            check_text(&check, some, false, json_string_value(text), json_string_length(text));
        }
        json_decref(some);
    }
    json_decref(file);
    close_check(&check, 20);
}

struct llama_cpp { const char *family, *name; };

static void llama_cpp_vectors_are_reproduced(void **state)
{
    if (!shared[0]) { skip(); }
    const struct llama_cpp *which = *state;
    static const char mark[] = "\n__ggml_vocab_test__\n";
    struct token_check check = open_check(which->name);
    struct text_buf texts = {0}, lists = {0};
    read_file(path_of("expected/llama.cpp/ggml-vocab-%s.gguf.inp", which->family), &texts);
    read_file(path_of("expected/llama.cpp/ggml-vocab-%s.gguf.out", which->family), &lists);
    char *text = texts.data, *line = lists.data;
    for (char *end; (end = strstr(text, mark)) != NULL; text = end + sizeof mark - 1) {
        json_t *ids = json_array();
        while (*line == ' ') { json_array_append_new(ids, json_integer(strtol(line, &line, 10))); }
        line += *line == '\n';
        check_ids(&check, text, (size_t)(end - text), plain, NULL, ids, NULL);
        json_decref(ids);
    }
    text_buf_fini(&texts);
    text_buf_fini(&lists);
    close_check(&check, 46);
}

static void ggml_vectors_are_reproduced(void **state)
{
    (void)state;
    if (!shared[0]) { skip(); }
    struct token_check check = open_check("pythia-gpt-neox");
    struct text_buf file = {0};
    read_file(path_of("expected/ggml/%s.txt", "gpt-neox"), &file);
    for (char *line = file.data, *end; *line; line = *end ? end + 1 : end) {
        end = strchrnul(line, '\n');
        char *arrow = NULL;
        for (char *at = line; at + 4 <= end; at++) {
            if (memcmp(at, " => ", 4) == 0) { arrow = at; }
        }
        if (!arrow) { continue; }
        json_t *ids = json_array();
        for (char *at = arrow + 4; at < end; at += *at == ',') { json_array_append_new(ids, json_integer(strtol(at, &at, 10))); }
        check_ids(&check, line, (size_t)(arrow - line), plain, NULL, ids, NULL);
        json_decref(ids);
    }
    text_buf_fini(&file);
    close_check(&check, 100);
}

static void long_source_file_is_reproduced(void **state)
{
    (void)state;
    if (!shared[0]) { skip(); }
    struct token_check check = open_check("gpt2");
    struct text_buf file = {0};
    read_file(path_of("expected/gpt2-lib.rs/%s", "lib.rs.txt"), &file);
    json_t *ids = load_json(path_of("expected/gpt2-lib.rs/%s", "tokens_gpt2.json"));
    check_ids(&check, file.data, file.len, plain, NULL, ids, NULL);
    json_decref(ids);
    text_buf_fini(&file);
    close_check(&check, 1);
}

static void check_list(struct token_check *check, const json_t *cases, const char *text_field)
{
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *row = json_array_get(cases, i), *text = json_object_get(row, text_field);
        const json_t *encoded = json_object_get(row, "encoded");
        const json_t *ids = encoded ? json_object_get(encoded, "input_ids") : json_object_get(row, "ids");
        assert_non_null(ids);
        check_ids(check, json_string_value(text), json_string_length(text), with_special, NULL, ids, NULL);
    }
}

static void swift_transformers_vectors_are_reproduced(void **state)
{
    (void)state;
    if (!shared[0]) { skip(); }
    static const char *const names[][2] = {{"distilgpt2", "gpt2"}, {"pcuenq/Llama-3.2-1B-Instruct-tokenizer", "llama-3.2-3b-instruct"}};
    json_t *file = load_json(path_of("expected/swift-transformers/%s", "tokenizer_tests.json"));
    for (size_t i = 0; i < 2; i++) {
        struct token_check check = open_check(names[i][1]);
        check_list(&check, json_object_get(file, names[i][0]), "input");
        close_check(&check, 5);
    }
    json_decref(file);
}

static void swift_transformers_long_text_is_reproduced(void **state)
{
    (void)state;
    if (!shared[0]) { skip(); }
    static const char *const names[][2] = {{"gpt2_encoded_tokens.json", "gpt2"}, {"llama_3.2_encoded.json", "llama-3.2-3b-instruct"}};
    for (size_t i = 0; i < 2; i++) {
        struct token_check check = open_check(names[i][1]);
        json_t *file = load_json(path_of("expected/swift-transformers/%s", names[i][0]));
        const json_t *text = json_object_get(file, "text"), *ids = json_object_get(file, "token_ids");
        assert_non_null(ids);
        check_ids(&check, json_string_value(text), json_string_length(text), with_special, NULL, ids, NULL);
        json_decref(file);
        close_check(&check, 1);
    }
}

static void transformers_js_vectors_are_reproduced(void **state)
{
    if (!shared[0]) { skip(); }
    const char *name = *state;
    struct token_check check = open_check(name);
    json_t *file = load_json(path_of("expected/transformers.js/%s.json", name));
    check_list(&check, json_object_get(file, "cases"), "text");
    json_decref(file);
    close_check(&check, 20);
}

#define VECTORS(name) {"vectors " name, reference_vectors_are_reproduced, NULL, NULL, (void *)name}
#define STREAM(name) {"stream " name, prefixes_decode_as_stored, NULL, NULL, (void *)name}

int main(void)
{
    static const struct llama_cpp families[] = {{"gpt-2", "gpt2"}, {"llama-bpe", "llama-3.2-3b-instruct"}, {"phi-3", "phi-3-mini"}, {"qwen2", "qwen3"}};
    if (!shared_data_find(shared, sizeof shared)) {
        shared[0] = '\0';
        printf("skipped: no reference data; set BATON_SHARED_DATA to the folder that holds its MANIFEST.md\n");
    }
    const struct CMUnitTest tests[] = {
        VECTORS("gpt2"), VECTORS("llama-3.2-3b-instruct"), VECTORS("minimind"), VECTORS("mistral-7b"), VECTORS("phi-3-mini"),
        VECTORS("pythia-gpt-neox"), VECTORS("qwen3"), VECTORS("smollm-135m"), VECTORS("stories260k"), VECTORS("torchtitan-test"),
        STREAM("gpt2"), STREAM("llama-3.2-3b-instruct"), STREAM("minimind"), STREAM("mistral-7b"), STREAM("phi-3-mini"),
        STREAM("pythia-gpt-neox"), STREAM("qwen3"), STREAM("smollm-135m"), STREAM("stories260k"), STREAM("torchtitan-test"),
        {"llama.cpp gpt-2", llama_cpp_vectors_are_reproduced, NULL, NULL, (void *)&families[0]},
        {"llama.cpp llama-bpe", llama_cpp_vectors_are_reproduced, NULL, NULL, (void *)&families[1]},
        {"llama.cpp phi-3", llama_cpp_vectors_are_reproduced, NULL, NULL, (void *)&families[2]},
        {"llama.cpp qwen2", llama_cpp_vectors_are_reproduced, NULL, NULL, (void *)&families[3]},
        {"transformers.js gpt2", transformers_js_vectors_are_reproduced, NULL, NULL, (void *)"gpt2"},
        {"transformers.js llama", transformers_js_vectors_are_reproduced, NULL, NULL, (void *)"llama-3.2-3b-instruct"},
        {"transformers.js qwen3", transformers_js_vectors_are_reproduced, NULL, NULL, (void *)"qwen3"},
        cmocka_unit_test(ggml_vectors_are_reproduced),
        cmocka_unit_test(long_source_file_is_reproduced),
        cmocka_unit_test(swift_transformers_vectors_are_reproduced),
        cmocka_unit_test(swift_transformers_long_text_is_reproduced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
