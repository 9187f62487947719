/* token_check: compares a tokenizer with stored results, counting differences instead of
 * stopping at the first. */
#ifndef BATON_TESTS_UNIT_TOKENIZER_TOKEN_CHECK_H
#define BATON_TESTS_UNIT_TOKENIZER_TOKEN_CHECK_H

#include <jansson.h>
#include <stddef.h>

#include "model/tokenizer/tokenizer.h"

struct token_check {
    const struct tokenizer *tokenizer;
    const char *name;
    unsigned cases, differences;
};

/* Ids of a text must be `expected`, a JSON array, with before and after (arrays or NULL) around. */
void check_ids(struct token_check *check, const char *text, size_t len, struct encode_options options,
               const json_t *before, const json_t *expected, const json_t *after);

/* The text of ids, decoded at once and streamed, must be `expected`. */
void check_text(struct token_check *check, const json_t *ids, bool skip_special, const char *expected, size_t len);

/* Reads a JSON file of the repository or fails the test. */
json_t *load_json(const char *path);

/* Loads a directory or fails the test. */
struct tokenizer *load_tokenizer(const char *dir);

#endif
