/* json_field: reads fields of a JSON object whose writer we do not know.
 * Flow:    file or bytes -> json_t tree -> [json_field] -> model_config, safetensors
 * Thread:  any; nothing is shared.
 * Memory:  the tree is the caller's (json_decref); readers borrow it.
 *
 * Every getter takes JSON null for "absent", as Hugging Face's own readers do, and names the file,
 * the field, what was found and what was expected when it refuses. */
#ifndef BATON_MODEL_JSON_FIELD_H
#define BATON_MODEL_JSON_FIELD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

/* One object of one file, with the diag that errors go to; borrows all of it. */
struct json_reader {
    const char *file;
    const char *prefix; /* "" or "rope_scaling." : where the object is, for errors */
    const json_t *object;
    struct diag *diag;
};

/* Reads a whole file of at most max_bytes.
 * ret_data  returns owned: free(); always one byte longer than ret_bytes
 * Errors    NOT_FOUND (node): no such file; INVALID_ARGUMENT (node): too large; UNAVAILABLE (node):
 *           the read failed, cause = errno. */
NODISCARD status_t json_read_file(const char *path, size_t max_bytes, struct diag *diag, char **ret_data,
                                  size_t *ret_bytes);

/* Parses an object; a repeated key is an error when keys_are_unique.
 * ret_object  returns owned: json_decref()
 * Errors      INVALID_ARGUMENT (node), diag names file, line and column. */
NODISCARD status_t json_parse_object(const char *file, const char *data, size_t bytes, bool keys_are_unique,
                                     struct diag *diag, json_t **ret_object);

/* NULL where the field is absent or null. */
const json_t *json_field(const struct json_reader *reader, const char *key);

/* The number in min .. max; `otherwise` where it is absent, or an error where otherwise is NULL. */
NODISCARD status_t json_field_u32(const struct json_reader *reader, const char *key, uint32_t min, uint32_t max,
                                  const uint32_t *otherwise, uint32_t *ret_value);
NODISCARD status_t json_field_f64(const struct json_reader *reader, const char *key, double min, double max,
                                  const double *otherwise, double *ret_value);
NODISCARD status_t json_field_bool(const struct json_reader *reader, const char *key, bool otherwise,
                                   bool *ret_value);

/* Borrowed from the tree; NULL where absent. */
NODISCARD status_t json_field_string(const struct json_reader *reader, const char *key, const char **ret_value);

/* Puts "FILE: field PREFIXKEY is VALUE; WANTED" into diag and returns INVALID_ARGUMENT (node).
 * value may be NULL: then the field is said to be missing. */
status_t json_field_refuse(const struct json_reader *reader, const char *key, const json_t *value,
                           const char *wanted);

#endif
