/* pattern: {"String": ".."} or {"Regex": ".."}, as Split and Replace have it.
 * Thread:  the loader's.
 * Memory:  borrows the JSON value. */
#ifndef BATON_MODEL_TOKENIZER_PATTERN_H
#define BATON_MODEL_TOKENIZER_PATTERN_H

#include <jansson.h>
#include <stdbool.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/json_field.h"

struct pattern_json {
    struct json_text text;
    bool literal;
};

NODISCARD status_t pattern_read(const json_t *json, struct pattern_json *ret_pattern, struct diag *diag);

#endif
