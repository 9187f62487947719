#include "model/tokenizer/post_processor.h"

#include <stdbool.h>
#include <string.h>

#include "model/tokenizer/json_field.h"

static status_t invalid(struct diag *diag, const char *what)
{
    diag_set(diag, "%s", what);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

static status_t append_id(struct token_buf *ids, const json_t *id, struct diag *diag)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX) {
        return invalid(diag, "the id of a special token must be a whole number from 0 to 2147483647");
    }
    return token_buf_append(ids, (uint32_t)json_integer_value(id));
}

static status_t prepend_all(struct token_buf *ids, const struct token_buf *more)
{
    if (more->count == 0) { return STATUS_OK; }
    TRY(token_buf_reserve(ids, more->count));
    memmove(ids->ids + more->count, ids->ids, ids->count * sizeof *ids->ids);
    memcpy(ids->ids, more->ids, more->count * sizeof *ids->ids);
    ids->count += more->count;
    return STATUS_OK;
}

static status_t read_template(struct post_processor *post, const json_t *json, struct token_buf *before,
                              struct diag *diag)
{
    const json_t *single = json_object_get(json, "single");
    const json_t *specials = json_object_get(json, "special_tokens");
    bool text_seen = false;
    if (!json_is_array(single)) { return invalid(diag, "TemplateProcessing needs an array \"single\""); }
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *sequence = json_object_get(piece, "Sequence");
        const char *name = json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
        if (sequence) {
            const char *which = json_string_value(json_object_get(sequence, "id"));
            if (text_seen || !which || strcmp(which, "A") != 0) {
                return invalid(diag, "the \"single\" form of TemplateProcessing must have sequence A once and no other");
            }
            text_seen = true;
            continue;
        }
        const json_t *ids = name ? json_object_get(json_object_get(specials, name), "ids") : NULL;
        if (!json_is_array(ids)) {
            diag_set(diag, "piece %zu of TemplateProcessing names the special token \"%.60s\", which special_tokens does "
                           "not define", i, name ? name : "?");
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
        for (size_t j = 0; j < json_array_size(ids); j++) {
            TRY(append_id(text_seen ? &post->after : before, json_array_get(ids, j), diag));
        }
    }
    return text_seen ? STATUS_OK : invalid(diag, "the \"single\" form of TemplateProcessing has no sequence A");
}

/* Adds a processor outside of those read before. */
static status_t read_processor(struct post_processor *post, const json_t *json, unsigned depth, struct diag *diag)
{
    const char *type = tok_json_type_name(json);
    struct token_buf before = {0};
    status_t st = STATUS_OK;
    if (!type) { return invalid(diag, "the post-processor must be an object with a field \"type\""); }
    if (strcmp(type, "ByteLevel") == 0) { return STATUS_OK; }
    if (strcmp(type, "TemplateProcessing") == 0) {
        st = read_template(post, json, &before, diag);
    } else if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0) {
        st = append_id(&before, json_array_get(json_object_get(json, "cls"), 1), diag);
        if (!failed(st)) { st = append_id(&post->after, json_array_get(json_object_get(json, "sep"), 1), diag); }
    } else if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(json, "processors");
        if (!json_is_array(list) || depth > 8) {
            return invalid(diag, "a post-processor Sequence needs an array \"processors\", nested at most 8 deep");
        }
        for (size_t i = 0; i < json_array_size(list); i++) {
            TRY(read_processor(post, json_array_get(list, i), depth + 1, diag));
        }
        return STATUS_OK;
    } else {
        diag_set(diag, "the post-processor \"%.60s\" is not supported; known are TemplateProcessing, BertProcessing, "
                       "RobertaProcessing, ByteLevel and Sequence", type);
        return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
    }
    if (!failed(st)) { st = prepend_all(&post->before, &before); }
    token_buf_fini(&before);
    return st;
}

status_t post_processor_init(struct post_processor *post, const json_t *json, struct diag *diag)
{
    return json && !json_is_null(json) ? read_processor(post, json, 0, diag) : STATUS_OK;
}

void post_processor_fini(struct post_processor *post)
{
    token_buf_fini(&post->before);
    token_buf_fini(&post->after);
}
