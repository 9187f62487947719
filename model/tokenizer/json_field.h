/* json_field: fields of a JSON object with a type that is checked and named in errors.
 * Flow:    tokenizer_config, normalizer, pre_tokenizer, decoder, bpe -> [json_field] -> jansson
 * Thread:  the loader's.
 * Memory:  results are borrows of the JSON value. */
#ifndef BATON_MODEL_TOKENIZER_JSON_FIELD_H
#define BATON_MODEL_TOKENIZER_JSON_FIELD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

/* A string of JSON; may hold zero bytes. data is NULL when the field is absent. */
struct json_text {
    const char *data;
    size_t len;
};

/* All: absent or null gives the default; another type is INVALID_ARGUMENT (node), named. */
NODISCARD status_t tok_json_bool(const json_t *object, const char *name, bool otherwise, bool *ret_value,
                                   struct diag *diag);
NODISCARD status_t tok_json_text(const json_t *object, const char *name, struct json_text *ret_text,
                                   struct diag *diag);
NODISCARD status_t tok_json_size(const json_t *object, const char *name, size_t otherwise, size_t *ret_value,
                                   struct diag *diag);

/* The text must be there. */
NODISCARD status_t tok_json_need_text(const json_t *object, const char *name, struct json_text *ret_text,
                                        struct diag *diag);

/* The field `type` of a component, NULL when it has none. */
const char *tok_json_type_name(const json_t *object);

#endif
