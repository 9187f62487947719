/* vocab: the strings of a model's tokens and their ids, both ways.
 * Flow:    tokenizer.json -> [vocab] -> bpe, tokenizer, decoder
 * Thread:  constant after create.
 * Memory:  one arena of strings and two tables, taken at create. */
#ifndef BATON_MODEL_TOKENIZER_VOCAB_H
#define BATON_MODEL_TOKENIZER_VOCAB_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/json_nul.h"

/* Ids index tables, so a file cannot ask for terabytes with one large number. */
#define VOCAB_ID_MAX ((1u << 24) - 1)
#define VOCAB_NONE UINT32_MAX

struct vocab;

/* Copies a JSON object of token: id, as json_nul_load read it.
 * Errors   INVALID_ARGUMENT (node): not an object, or an id that is no number of 0 .. VOCAB_ID_MAX. */
NODISCARD status_t vocab_create(const json_t *object, const struct json_nul *nul, struct vocab **ret_vocab,
                                struct diag *diag);
void vocab_destroy(struct vocab *vocab);

/* The id of a token, VOCAB_NONE when there is none. One hash and one compare. */
uint32_t vocab_find(const struct vocab *vocab, const char *text, size_t len);

/* The string of an id, zero-terminated; NULL when there is none. Borrowed from the vocab. */
const char *vocab_text(const struct vocab *vocab, uint32_t id, size_t *ret_len);

uint32_t vocab_count(const struct vocab *vocab);  /* tokens */
uint32_t vocab_id_end(const struct vocab *vocab); /* largest id + 1 */

#endif
