#include "model/tokenizer/json_field.h"

static bool is_absent(const json_t *value) { return !value || json_is_null(value); }

static status_t wrong(const char *name, const char *wanted, struct diag *diag)
{
    diag_set(diag, "field \"%s\" must be %s", name, wanted);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

status_t tok_json_bool(const json_t *object, const char *name, bool otherwise, bool *ret_value, struct diag *diag)
{
    const json_t *value = json_object_get(object, name);
    if (is_absent(value)) { *ret_value = otherwise; return STATUS_OK; }
    if (!json_is_boolean(value)) { return wrong(name, "true or false", diag); }
    *ret_value = json_is_true(value);
    return STATUS_OK;
}

status_t tok_json_text(const json_t *object, const char *name, struct json_text *ret_text, struct diag *diag)
{
    const json_t *value = json_object_get(object, name);
    *ret_text = (struct json_text){0};
    if (is_absent(value)) { return STATUS_OK; }
    if (!json_is_string(value)) { return wrong(name, "a string", diag); }
    *ret_text = (struct json_text){json_string_value(value), json_string_length(value)};
    return STATUS_OK;
}

status_t tok_json_need_text(const json_t *object, const char *name, struct json_text *ret_text, struct diag *diag)
{
    TRY(tok_json_text(object, name, ret_text, diag));
    return ret_text->data ? STATUS_OK : wrong(name, "given, as a string", diag);
}

status_t tok_json_size(const json_t *object, const char *name, size_t otherwise, size_t *ret_value,
                         struct diag *diag)
{
    const json_t *value = json_object_get(object, name);
    if (is_absent(value)) { *ret_value = otherwise; return STATUS_OK; }
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > INT32_MAX) {
        return wrong(name, "a whole number from 0 to 2147483647", diag);
    }
    *ret_value = (size_t)json_integer_value(value);
    return STATUS_OK;
}

const char *tok_json_type_name(const json_t *object) { return json_string_value(json_object_get(object, "type")); }
