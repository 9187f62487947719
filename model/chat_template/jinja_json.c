#include "model/chat_template/jinja_json.h"

static struct value from_object(struct jinja_ctx *ctx, const json_t *json)
{
    struct dict *dict = dict_new(ctx);
    const char *key;
    json_t *item;
    /* jansson's objects have no duplicate keys, so pairs are appended without a search; only
     * the iterator's type lacks a const. */
    json_t *object = (json_t *)(uintptr_t)json;
    json_object_foreach(object, key, item) {
        if (jinja_failed(ctx)) { break; }
        struct value name = value_str_copy(ctx, key, strlen(key));
        struct value value = jinja_from_json(ctx, item);
        if (!dict || jinja_failed(ctx)) { break; }
        if (dict->count == dict->capacity) {
            uint32_t capacity = dict->capacity ? dict->capacity * 2 : (uint32_t)json_object_size(json);
            struct pair *pairs = jinja_alloc(ctx, (size_t)capacity * sizeof *pairs);
            if (!pairs) { break; }
            if (dict->count) { memcpy(pairs, dict->pairs, dict->count * sizeof *pairs); }
            dict->pairs = pairs;
            dict->capacity = capacity;
        }
        dict->pairs[dict->count++] = (struct pair){name, value};
    }
    return dict ? value_dict(dict) : value_none();
}

struct value jinja_from_json(struct jinja_ctx *ctx, const json_t *json)
{
    struct value result = value_none();
    if (!json || !jinja_charge(ctx, 1) || !jinja_enter(ctx)) { return result; }
    switch (json_typeof(json)) {
    case JSON_TRUE:
    case JSON_FALSE: result = value_bool(json_is_true(json)); break;
    case JSON_INTEGER: result = value_int(json_integer_value(json)); break;
    case JSON_REAL: result = value_float(json_real_value(json)); break;
    case JSON_STRING: result = value_str_copy(ctx, json_string_value(json), json_string_length(json)); break;
    case JSON_ARRAY: {
        struct list *list = list_new(ctx, (uint32_t)json_array_size(json));
        for (size_t i = 0; i < json_array_size(json) && !jinja_failed(ctx); i++) { list_push(ctx, list, jinja_from_json(ctx, json_array_get(json, i))); }
        result = value_list(list, V_LIST);
        break;
    }
    case JSON_OBJECT: result = from_object(ctx, json); break;
    default: break;
    }
    jinja_leave(ctx);
    return result;
}
