/* added_tokens: the tokens found in a text before the model sees it, special ones above all.
 * Flow:    tokenizer -> [added_tokens] -> normalizer, pre_tokenizer
 * Thread:  constant after create.
 * Memory:  copies of the strings and two tries, taken at create.
 *
 * Matching is leftmost-longest, first over the raw text for tokens with normalized false,
 * then over the normalized rest for the others. */
#ifndef BATON_MODEL_TOKENIZER_ADDED_TOKENS_H
#define BATON_MODEL_TOKENIZER_ADDED_TOKENS_H

#include <jansson.h>
#include <stdbool.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/vocab.h"

struct added_tokens;

enum added_set { ADDED_RAW, ADDED_NORMALIZED };

/* Reads the array "added_tokens" of a tokenizer.json; NULL or null is none.
 * As in the reference, a token the model knows keeps the model's id, and any other gets the
 * next free one in the order of the file, whatever the file says.
 * Errors   INVALID_ARGUMENT (node). */
NODISCARD status_t added_tokens_create(const json_t *array, const struct vocab *vocab,
                                       const struct normalizer *normalizer, struct added_tokens **ret_added,
                                       struct diag *diag);
void added_tokens_destroy(struct added_tokens *added);

/* The id of a token, VOCAB_NONE when it is none of these. */
uint32_t added_tokens_find(const struct added_tokens *added, const char *text, size_t len);

/* The string of an id, zero-terminated; NULL when it is none of these. Borrowed. */
const char *added_tokens_text(const struct added_tokens *added, uint32_t id, size_t *ret_len);

/* True when a token of this string is special. */
bool added_tokens_text_is_special(const struct added_tokens *added, const char *text, size_t len);

uint32_t added_tokens_id_end(const struct added_tokens *added); /* largest id + 1; 0 without any */

/* Where the tokens of one set are in a text. {0} with text, len and set filled in starts it. */
struct added_scan {
    const struct added_tokens *added;
    const char *text;
    size_t len;
    enum added_set set;
    bool skip_special; /* special tokens are text like any other */
    size_t search_at;  /* where the search goes on */
    size_t text_at;    /* end of what was handed out */
};

/* What lies between `text_at` and the next token, and the token. */
struct added_piece {
    size_t start, end; /* the text before the token; start == end when there is none */
    uint32_t id;       /* VOCAB_NONE: no token follows, this was the last piece */
};

/* The next piece. Cost: O(bytes passed * longest token) at worst, one table look-up per byte
 * that starts no token. */
struct added_piece added_scan_next(struct added_scan *scan);

#endif
