/* The twelve tokenizers of tests/golden/tokenizer give the ids and texts that Hugging Face
 * tokenizers gave; make_tokenizers.py there says how they were made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tokenizer/token_check.h"

static uint64_t fnv(const struct token_buf *ids)
{
    uint64_t value = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < ids->count; i++) {
        for (unsigned shift = 0; shift < 32; shift += 8) {
            value = (value ^ (ids->ids[i] >> shift & 0xff)) * UINT64_C(0x100000001b3);
        }
    }
    return value;
}

static void check_long(struct token_check *check, const json_t *row)
{
    const char *unit = json_string_value(json_object_get(row, "unit"));
    size_t unit_len = strlen(unit), times = (size_t)json_integer_value(json_object_get(row, "times"));
    char *text = malloc(unit_len * times);
    struct token_buf ids = {0};
    struct diag diag = {{0}};
    char hash[20];
    assert_non_null(text);
    for (size_t i = 0; i < times; i++) { memcpy(text + i * unit_len, unit, unit_len); }
    status_t st = tokenizer_encode(check->tokenizer, text, unit_len * times, (struct encode_options){false, true}, &ids, &diag);
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)fnv(&ids));
    bool same = !failed(st) && ids.count == (size_t)json_integer_value(json_object_get(row, "count")) &&
                strcmp(hash, json_string_value(json_object_get(row, "fnv"))) == 0;
    check->cases++;
    if (!same) {
        check->differences++;
        printf("%s: \"%s\" %zu times differs: %zu ids, %s %s\n", check->name, unit, times, ids.count, hash, diag.text);
    }
    token_buf_fini(&ids);
    free(text);
}

static void check_row(struct token_check *check, const json_t *head, const json_t *row)
{
    const json_t *text = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
    const json_t *plain = json_object_get(row, "ids_plain");
    const json_t *decoded = json_object_get(row, "decoded"), *skipped = json_object_get(row, "decoded_skip");
    const char *data = json_string_value(text);
    size_t len = json_string_length(text);
    check_ids(check, data, len, (struct encode_options){false, true}, NULL, ids, NULL);
    check_ids(check, data, len, (struct encode_options){true, true}, json_object_get(head, "before"), ids, json_object_get(head, "after"));
    check_ids(check, data, len, (struct encode_options){false, false}, NULL, plain ? plain : ids, NULL);
    check_text(check, ids, false, json_string_value(decoded), json_string_length(decoded));
    check_text(check, ids, true, json_string_value(skipped), json_string_length(skipped));
}

static void stored_cases_are_reproduced(void **state)
{
    const char *name = *state;
    char path[256];
    snprintf(path, sizeof path, "tests/golden/tokenizer/%s", name);
    struct tokenizer *tokenizer = load_tokenizer(path);
    snprintf(path, sizeof path, "tests/golden/tokenizer/%s/cases.json", name);
    json_t *cases = load_json(path);
    struct token_check check = {.tokenizer = tokenizer, .name = name};
    const json_t *head = json_array_get(cases, 0);
    for (size_t i = 1; i < json_array_size(cases); i++) {
        const json_t *row = json_array_get(cases, i);
        if (json_object_get(row, "unit")) {
            check_long(&check, row);
        } else {
            check_row(&check, head, row);
        }
    }
    assert_true(check.cases > 1000);
    assert_int_equal(check.differences, 0);
    json_decref(cases);
    tokenizer_destroy(tokenizer);
}

#define GOLDEN(name) {"golden " name, stored_cases_are_reproduced, NULL, NULL, (void *)name}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GOLDEN("gpt2"), GOLDEN("llama3"), GOLDEN("qwen"), GOLDEN("llama2"), GOLDEN("metaspace_first"),
        GOLDEN("metaspace_always"), GOLDEN("digits"), GOLDEN("neox"), GOLDEN("cased"), GOLDEN("accents"),
        GOLDEN("word_pieces"), GOLDEN("splits"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
