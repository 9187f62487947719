/* json_nul: JSON whose object keys have zero bytes, which jansson refuses.
 * Flow:    tokenizer_create -> [json_nul] -> jansson
 * Thread:  the loader's.
 * Memory:  rewrites in place.
 *
 * Llama's vocabularies have the token "\u0000". A noncharacter that the file does not use
 * stands in for it while jansson reads; string values get the zero byte back at once, keys
 * when the vocabulary copies them. */
#ifndef BATON_MODEL_TOKENIZER_JSON_NUL_H
#define BATON_MODEL_TOKENIZER_JSON_NUL_H

#include <jansson.h>
#include <stddef.h>

#include "base/diag.h"
#include "base/status.h"

/* The stand-in as a key spells it; empty when the file has no zero byte. */
struct json_nul {
    char spelled[4];
};

/* Parses JSON, which it may change; the caller owns *ret_root.
 * Errors   INVALID_ARGUMENT (node), with line and column. */
NODISCARD status_t json_nul_load(char *json, size_t len, json_t **ret_root, struct json_nul *ret_nul,
                                 struct diag *diag);

/* Copies a key with its zero bytes; returns its length. out must hold strlen(key). */
size_t json_nul_copy_key(const struct json_nul *nul, const char *key, char *out);

#endif
