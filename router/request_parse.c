#include "router/request_parse.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/clock.h"
#include "router/cache_salt.h"
#include "router/pb_wire.h"

#define REFUSE STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST)
#define NO_MEMORY STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST)
/* Two bytes on the wire can be a submessage of some 50 bytes and a pointer to it. */
#define UNPACK_FACTOR 48u
#define UNPACK_BYTES_MAX ((size_t)64 << 20)

static void *take(void *data, size_t size) { return arena_take(data, size); }

static void keep(void *data, void *pointer)
{
    (void)data; /* the arena goes as a whole */
    (void)pointer;
}

static void *unpack(struct arena *arena, const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes, size_t len,
                    struct diag *diag)
{
    size_t limit = len * UNPACK_FACTOR + 65536;
    arena_init(arena, limit < UNPACK_BYTES_MAX ? limit : UNPACK_BYTES_MAX);
    ProtobufCAllocator allocator = {.alloc = take, .free = keep, .allocator_data = arena};
    void *message = protobuf_c_message_unpack(descriptor, &allocator, len, bytes ? bytes : (const uint8_t *)"");
    if (!message) {
        diag_set(diag, "the bytes are not a %s, or unpack to more than %zu bytes; was the request built from another "
                 "version of baton/v1/inference.proto?", descriptor->name, limit);
    }
    return message;
}

/* protobuf-c cuts a string at a NUL. Where that would change the meaning, it is refused. */
static bool has_nul(const uint8_t *bytes, size_t len, uint32_t inner)
{
    struct pb_reader reader = {.at = bytes, .end = bytes + len};
    struct pb_field field;
    while (pb_next(&reader, &field)) {
        if (field.wire_type != 2 || (inner != 0 && field.number != inner)) { continue; }
        if (field.len > 0 && memchr(field.bytes, 0, field.len)) { return true; }
    }
    return false;
}

static status_t check_stop_nul(const uint8_t *bytes, size_t len, uint32_t sampling_field, struct diag *diag)
{
    struct pb_reader reader = {.at = bytes, .end = bytes + len};
    struct pb_field field;
    while (pb_next(&reader, &field)) {
        if (field.number != sampling_field || field.wire_type != 2 || !has_nul(field.bytes, field.len, 13)) { continue; }
        diag_set(diag, "stop holds a NUL character, which is not supported; use stop_token_ids for its token");
        return REFUSE;
    }
    return STATUS_OK;
}

static status_t check_chat_nul(const uint8_t *bytes, size_t len, struct diag *diag)
{
    struct pb_reader reader = {.at = bytes, .end = bytes + len};
    struct pb_field field;
    while (pb_next(&reader, &field)) {
        if (field.wire_type != 2) { continue; }
        bool bad = field.number == 1 ? has_nul(field.bytes, field.len, 0)
                                     : (field.number == 3 || field.number == 4) && field.len > 0 &&
                                           memchr(field.bytes, 0, field.len) != NULL;
        if (!bad) { continue; }
        diag_set(diag, "the chat holds a NUL character, which a template cannot take; remove it");
        return REFUSE;
    }
    return check_stop_nul(bytes, len, 2, diag);
}

static struct request_limits limits_of(const struct served_model *model)
{
    return (struct request_limits){.vocab_size = model->config.vocab_size,
                                   .context_tokens = model->config.context_tokens,
                                   .defaults = &model->defaults};
}

static status_t need_tokenizer(const struct served_model *model, const char *field, struct diag *diag)
{
    if (model->tokenizer) { return STATUS_OK; }
    diag_set(diag, "%s: %s", field, model->text_problem.text);
    return STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
}

/* Ids into a request, whatever they came from. */
static status_t finish_spec(const struct served_model *model, const Baton__V1__SamplingParams *sampling,
                            struct token_buf *ids, uint64_t drawn_seed, struct request_spec *ret_spec, struct diag *diag)
{
    struct request_limits limits = limits_of(model);
    if (sampling && sampling->n_stop > 0) { TRY(need_tokenizer(model, "stop", diag)); }
    TRY(request_spec_check_ids("prompt token", ids->ids, ids->count, limits.vocab_size, diag));
    TRY(request_spec_init(ret_spec, sampling, &limits, ids->ids, ids->count, drawn_seed, diag));
    *ids = (struct token_buf){0}; /* taken */
    return STATUS_OK;
}

/* What is not about tokens. The salt is read from the wire: a NUL is part of it. */
static status_t finish_sharing(int32_t priority, const uint8_t *bytes, size_t len, uint32_t salt_field,
                               struct request_spec *spec, struct diag *diag)
{
    const uint8_t *salt = (const uint8_t *)"";
    size_t salt_len = 0;
    (void)pb_find_bytes(bytes, len, salt_field, &salt, &salt_len);
    if (salt_len > CACHE_SALT_BYTES_MAX) {
        diag_set(diag, "cache_salt has %zu bytes; at most %u are taken", salt_len, CACHE_SALT_BYTES_MAX);
        request_spec_fini(spec);
        return REFUSE;
    }
    spec->priority = priority;
    spec->cache_salt = cache_salt_number(salt, salt_len);
    return STATUS_OK;
}

static status_t encode(const struct served_model *model, const char *field, const void *text, size_t len, bool add_special,
                       struct token_buf *ids, struct diag *diag)
{
    TRY(need_tokenizer(model, field, diag));
    struct encode_options options = {.add_special = add_special, .parse_special = true};
    status_t st = tokenizer_encode(model->tokenizer, text, len, options, ids, diag);
    if (failed(st)) { diag_prefix(diag, "%s", field); }
    return st;
}

static status_t generate_ids(const struct served_model *model, const Baton__V1__GenerateRequest *request,
                             const uint8_t *bytes, size_t len, struct token_buf *ids, struct diag *diag)
{
    const uint8_t *text = (const uint8_t *)"";
    size_t text_len = 0;
    switch (request->prompt_case) {
    case BATON__V1__GENERATE_REQUEST__PROMPT_TEXT:
        (void)pb_find_bytes(bytes, len, 1, &text, &text_len);
        TRY(encode(model, "text", text, text_len, !request->no_special_tokens, ids, diag));
        if (ids->count == 0) {
            /* A BOS alone is prompt enough, as in the reference implementations. */
            diag_set(diag, "text is empty and nothing is put around it; send at least one character, or token ids");
            return REFUSE;
        }
        return STATUS_OK;
    case BATON__V1__GENERATE_REQUEST__PROMPT_TOKENS:
        TRY(request_spec_check_ids("tokens.ids", request->tokens->ids, request->tokens->n_ids, model->config.vocab_size, diag));
        TRY(token_buf_reserve(ids, request->tokens->n_ids));
        if (request->tokens->n_ids > 0) { memcpy(ids->ids, request->tokens->ids, request->tokens->n_ids * sizeof *ids->ids); }
        ids->count = request->tokens->n_ids;
        return STATUS_OK;
    default:
        diag_set(diag, "prompt is missing: set text or tokens");
        return REFUSE;
    }
}

status_t request_parse_generate(const struct served_model *model, const uint8_t *bytes, size_t len, uint64_t drawn_seed,
                                struct request_spec *ret_spec, struct diag *diag)
{
    struct arena arena;
    struct token_buf ids = {0};
    status_t st = REFUSE;
    Baton__V1__GenerateRequest *request = unpack(&arena, &baton__v1__generate_request__descriptor, bytes, len, diag);
    if (request) { st = check_stop_nul(bytes, len, 3, diag); }
    if (!failed(st)) { st = generate_ids(model, request, bytes, len, &ids, diag); }
    if (!failed(st)) { st = finish_spec(model, request->sampling, &ids, drawn_seed, ret_spec, diag); }
    if (!failed(st)) { st = finish_sharing(request->priority, bytes, len, 6, ret_spec, diag); }
    token_buf_fini(&ids);
    arena_fini(&arena);
    return st;
}

/* ---- chat ---- */

static status_t load_json(const char *field, const char *text, bool is_array, json_t **ret_json, struct diag *diag)
{
    *ret_json = NULL;
    if (text[0] == '\0') { return STATUS_OK; }
    json_error_t error;
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!json) {
        diag_set(diag, "%s is not JSON: %s, line %d column %d", field, error.text, error.line, error.column);
        return REFUSE;
    }
    if (is_array ? !json_is_array(json) : !json_is_object(json)) {
        json_decref(json);
        diag_set(diag, "%s must be one JSON %s", field, is_array ? "array" : "object");
        return REFUSE;
    }
    *ret_json = json;
    return STATUS_OK;
}

static status_t add_message(json_t *list, const Baton__V1__ChatMessage *message, size_t index, struct diag *diag)
{
    char field[64];
    snprintf(field, sizeof field, "messages[%zu].extra_json", index);
    if (message->role[0] == '\0') {
        diag_set(diag, "messages[%zu].role is empty; set it to \"user\", \"assistant\", \"system\" or what the template knows",
                 index);
        return REFUSE;
    }
    json_t *extra;
    TRY(load_json(field, message->extra_json, false, &extra, diag));
    json_t *role = json_string(message->role), *content = json_string(message->content);
    json_t *object = json_object();
    status_t st = STATUS_OK;
    if (!role || !content) {
        diag_set(diag, "messages[%zu].%s is not UTF-8", index, role ? "content" : "role");
        st = REFUSE;
    } else if (!object || json_object_set(object, "role", role) != 0 || json_object_set(object, "content", content) != 0 ||
               (extra && json_object_update(object, extra) != 0) || json_array_append(list, object) != 0) {
        st = NO_MEMORY;
    }
    json_decref(role);
    json_decref(content);
    json_decref(object);
    json_decref(extra);
    return st;
}

static const char *skip_space(const char *text)
{
    while (*text == ' ' || *text == '\t' || *text == '\n' || *text == '\r') { text++; }
    return text;
}

static const char *last_match(const char *text, size_t len, const char *word, size_t word_len)
{
    for (size_t at = len - word_len + 1; word_len <= len && at-- > 0;) {
        if (memcmp(text + at, word, word_len) == 0) { return text + at; }
    }
    return NULL;
}

/* Cuts the rendered text right behind the last message, so that the model goes on with it.
 * Many templates trim messages: then it is the trimmed message that is looked for. */
static status_t cut_after_last(char *text, size_t *len, const char *content, struct diag *diag)
{
    const char *start = skip_space(content);
    size_t whole = strlen(start), trimmed = whole;
    while (trimmed > 0 && strchr(" \t\n\r", start[trimmed - 1])) { trimmed--; }
    const char *at = last_match(text, *len, start, trimmed);
    if (trimmed == 0 || !at) {
        diag_set(diag, "continue_last_message: the template does not show the last message as it is, so it cannot be "
                 "continued; send it as part of a Generate prompt");
        return REFUSE;
    }
    size_t left = *len - (size_t)(at - text);
    bool keeps_space = left >= whole && memcmp(at, start, whole) == 0;
    *len = (size_t)(at - text) + (keeps_space ? whole : trimmed);
    text[*len] = '\0';
    return STATUS_OK;
}

static status_t render_json(const struct served_model *model, const Baton__V1__ChatRequest *request, const json_t *messages,
                            const json_t *tools, const json_t *variables, char **ret_text, size_t *ret_len, struct diag *diag)
{
    struct chat_options options = {
        .add_generation_prompt = !request->continue_last_message,
        .bos_token = tokenizer_role_text(model->tokenizer, TOKENIZER_BOS),
        .eos_token = tokenizer_role_text(model->tokenizer, TOKENIZER_EOS),
        .tools = tools,
        .variables = variables,
        .now_s = (int64_t)(clock_wall_ns() / NS_PER_S),
    };
    char *text;
    size_t len;
    status_t st = chat_template_render(model->chat, messages, &options, &text, &len, diag);
    if (failed(st)) { return st; }
    if (request->continue_last_message) {
        st = cut_after_last(text, &len, request->messages[request->n_messages - 1]->content, diag);
        if (failed(st)) {
            free(text);
            return st;
        }
    }
    *ret_text = text;
    *ret_len = len;
    return STATUS_OK;
}

/* ret_text  Returns owned, free() it. */
static status_t render_chat(const struct served_model *model, const Baton__V1__ChatRequest *request, const uint8_t *bytes,
                            size_t len, char **ret_text, size_t *ret_len, struct diag *diag)
{
    if (!model->chat) {
        diag_set(diag, "%s", model->chat_problem.text);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    }
    if (request->n_messages == 0) {
        diag_set(diag, "messages is empty; send at least one");
        return REFUSE;
    }
    TRY(check_chat_nul(bytes, len, diag));
    json_t *messages = json_array(), *tools = NULL, *variables = NULL;
    status_t st = messages ? STATUS_OK : NO_MEMORY;
    for (size_t i = 0; i < request->n_messages && !failed(st); i++) { st = add_message(messages, request->messages[i], i, diag); }
    if (!failed(st)) { st = load_json("tools_json", request->tools_json, true, &tools, diag); }
    if (!failed(st)) { st = load_json("template_variables_json", request->template_variables_json, false, &variables, diag); }
    if (!failed(st)) { st = render_json(model, request, messages, tools, variables, ret_text, ret_len, diag); }
    json_decref(messages);
    json_decref(tools);
    json_decref(variables);
    return st;
}

static status_t chat_ids(const struct served_model *model, const Baton__V1__ChatRequest *request, const uint8_t *bytes,
                         size_t len, struct token_buf *ids, struct text_buf *rendered, struct diag *diag)
{
    char *text = NULL;
    size_t text_len = 0;
    TRY(render_chat(model, request, bytes, len, &text, &text_len, diag));
    /* The template writes the special tokens itself, BOS too. */
    status_t st = encode(model, "messages", text, text_len, false, ids, diag);
    if (!failed(st) && rendered) { st = text_buf_append(rendered, text, text_len); }
    free(text);
    return st;
}

status_t request_parse_chat(const struct served_model *model, const uint8_t *bytes, size_t len, uint64_t drawn_seed,
                            struct request_spec *ret_spec, struct diag *diag)
{
    struct arena arena;
    struct token_buf ids = {0};
    status_t st = REFUSE;
    Baton__V1__ChatRequest *request = unpack(&arena, &baton__v1__chat_request__descriptor, bytes, len, diag);
    if (request) { st = chat_ids(model, request, bytes, len, &ids, NULL, diag); }
    if (!failed(st)) { st = finish_spec(model, request->sampling, &ids, drawn_seed, ret_spec, diag); }
    if (!failed(st)) { st = finish_sharing(request->priority, bytes, len, 7, ret_spec, diag); }
    token_buf_fini(&ids);
    arena_fini(&arena);
    return st;
}

/* ---- the tokenizer's own calls ---- */

static status_t tokenize_ids(const struct served_model *model, const Baton__V1__TokenizeRequest *request,
                             const uint8_t *bytes, size_t len, struct token_buf *ids, struct text_buf *rendered,
                             struct diag *diag)
{
    const uint8_t *part = (const uint8_t *)"";
    size_t part_len = 0;
    switch (request->input_case) {
    case BATON__V1__TOKENIZE_REQUEST__INPUT_TEXT:
        (void)pb_find_bytes(bytes, len, 1, &part, &part_len);
        return encode(model, "text", part, part_len, !request->no_special_tokens, ids, diag);
    case BATON__V1__TOKENIZE_REQUEST__INPUT_CHAT:
        (void)pb_find_bytes(bytes, len, 2, &part, &part_len);
        return chat_ids(model, request->chat, part, part_len, ids, rendered, diag);
    default:
        diag_set(diag, "input is missing: set text or chat");
        return REFUSE;
    }
}

status_t request_parse_tokenize(const struct served_model *model, const uint8_t *bytes, size_t len, struct token_buf *ids,
                                struct text_buf *rendered, struct diag *diag)
{
    struct arena arena;
    status_t st = REFUSE;
    Baton__V1__TokenizeRequest *request = unpack(&arena, &baton__v1__tokenize_request__descriptor, bytes, len, diag);
    if (request) { st = tokenize_ids(model, request, bytes, len, ids, rendered, diag); }
    arena_fini(&arena);
    return st;
}

status_t request_parse_detokenize(const struct served_model *model, const uint8_t *bytes, size_t len, struct text_buf *text,
                                  struct diag *diag)
{
    struct arena arena;
    status_t st = REFUSE;
    Baton__V1__DetokenizeRequest *request = unpack(&arena, &baton__v1__detokenize_request__descriptor, bytes, len, diag);
    if (request) { st = need_tokenizer(model, "ids", diag); }
    if (request && !failed(st)) { st = request_spec_check_ids("ids", request->ids, request->n_ids, model->config.vocab_size, diag); }
    if (!failed(st)) {
        st = tokenizer_decode(model->tokenizer, request->ids, request->n_ids, !request->show_special_tokens, text);
    }
    arena_fini(&arena);
    return st;
}
