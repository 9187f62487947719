#include "tests/unit/tokenizer/token_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/tokenizer/detokenizer.h"
#include "model/tokenizer/utf8.h"

static void note(struct token_check *check, bool same, const char *what, const char *text, size_t len)
{
    check->cases++;
    if (same) { return; }
    check->differences++;
    if (check->differences <= 10) { printf("%s: %s differ for \"%.*s\"\n", check->name, what, (int)(len > 80 ? 80 : len), text); }
}

static bool starts_with(const struct token_buf *ids, size_t at, const json_t *expected)
{
    for (size_t i = 0; i < json_array_size(expected); i++) {
        if (at + i >= ids->count || ids->ids[at + i] != (uint32_t)json_integer_value(json_array_get(expected, i))) { return false; }
    }
    return true;
}

void check_ids(struct token_check *check, const char *text, size_t len, struct encode_options options,
               const json_t *before, const json_t *expected, const json_t *after)
{
    struct token_buf ids = {0};
    struct diag diag = {{0}};
    size_t first = json_array_size(before), middle = json_array_size(expected), last = json_array_size(after);
    status_t st = tokenizer_encode(check->tokenizer, text, len, options, &ids, &diag);
    bool same = !failed(st) && ids.count == first + middle + last && starts_with(&ids, 0, before) &&
                starts_with(&ids, first, expected) && starts_with(&ids, first + middle, after);
    note(check, same, "ids", text, len);
    token_buf_fini(&ids);
}

void check_text(struct token_check *check, const json_t *ids, bool skip_special, const char *expected, size_t len)
{
    size_t count = json_array_size(ids);
    uint32_t *numbers = calloc(count + 1, sizeof *numbers);
    struct text_buf whole = {0}, streamed = {0};
    struct detokenizer *detokenizer = NULL;
    assert_non_null(numbers);
    for (size_t i = 0; i < count; i++) { numbers[i] = (uint32_t)json_integer_value(json_array_get(ids, i)); }
    assert_false(failed(tokenizer_decode(check->tokenizer, numbers, count, skip_special, &whole)));
    note(check, whole.len == len && memcmp(whole.data ? whole.data : "", expected, len) == 0, "decoded texts", expected, len);

    assert_false(failed(detokenizer_create(check->tokenizer, skip_special, &detokenizer)));
    bool characters = true;
    for (size_t i = 0; i <= count; i++) {
        size_t at = streamed.len;
        status_t st = i < count ? detokenizer_push(detokenizer, numbers[i], &streamed) : detokenizer_flush(detokenizer, &streamed);
        assert_false(failed(st));
        const char *piece = streamed.data ? streamed.data + at : "";
        characters = characters && utf8_valid_prefix(piece, streamed.len - at) == streamed.len - at;
        /* What was shown is never taken back. */
        characters = characters && streamed.len <= len && memcmp(expected, streamed.data ? streamed.data : "", streamed.len) == 0;
    }
    note(check, characters && streamed.len == len, "streamed texts", expected, len);
    detokenizer_destroy(detokenizer);
    text_buf_fini(&whole);
    text_buf_fini(&streamed);
    free(numbers);
}

json_t *load_json(const char *path)
{
    json_error_t error;
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!json) { fail_msg("%s: %s (line %d)", path, error.text, error.line); }
    return json;
}

struct tokenizer *load_tokenizer(const char *dir)
{
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    if (failed(tokenizer_create(dir, &tokenizer, &diag))) { fail_msg("%s: %s", dir, diag.text); }
    return tokenizer;
}
