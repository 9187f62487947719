#include "model/chat_template/chat_template.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat_template/jinja_eval.h"
#include "model/chat_template/jinja_json.h"
#include "model/chat_template/jinja_utf8.h"

#define SOURCE_MAX ((size_t)1 << 20)
#define COMPILE_BYTES_MAX ((size_t)128 << 20)
#define RENDER_BYTES_MAX ((size_t)128 << 20)
#define OUTPUT_MAX ((size_t)32 << 20)
/* A unit is one node, one comparison or 64 bytes; a thousand messages take about 100,000. */
#define STEPS_MAX UINT64_C(20000000)

struct chat_template {
    struct jinja_ctx ctx; /* owns the tree and the source */
    const struct node *root;
};

/* Line ends become \n and one at the very end goes, as Jinja reads a source. */
static struct value clean_source(struct jinja_ctx *ctx, const char *source, size_t len)
{
    char *copy = jinja_alloc(ctx, len + 1);
    size_t used = 0;
    for (size_t i = 0; copy && i < len; i++) {
        if (source[i] == '\r') {
            copy[used++] = '\n';
            i += i + 1 < len && source[i + 1] == '\n';
        } else {
            copy[used++] = source[i];
        }
    }
    if (used && copy[used - 1] == '\n') { used--; }
    return value_str(copy ? copy : "", used);
}

status_t chat_template_compile(const char *source, size_t len, struct chat_template **ret_template, struct diag *diag)
{
    if (len > SOURCE_MAX) {
        diag_set(diag, "chat template: %zu bytes, more than the %zu allowed", len, SOURCE_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    if (!utf8_is_valid(source, len)) {
        diag_set(diag, "chat template: not valid UTF-8");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    struct chat_template *chat = calloc(1, sizeof *chat);
    if (!chat) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    jinja_ctx_init(&chat->ctx, COMPILE_BYTES_MAX, STEPS_MAX, diag);
    struct value text = clean_source(&chat->ctx, source, len);
    chat->root = jinja_parse(&chat->ctx, text.u.text, text.len);
    chat->ctx.diag = NULL; /* borrowed for this call only */
    status_t st = chat->ctx.status;
    if (failed(st)) {
        diag_prefix(diag, "chat template");
        if (st.code == ST_UNIMPLEMENTED && diag) {
            size_t used = strlen(diag->text);
            snprintf(diag->text + used, sizeof diag->text - used, "; choose a built-in family with --chat-template=" CHAT_TEMPLATE_FAMILIES);
        }
        chat_template_destroy(chat);
        return st;
    }
    *ret_template = chat;
    return STATUS_OK;
}

void chat_template_destroy(struct chat_template *chat)
{
    if (!chat) { return; }
    jinja_ctx_fini(&chat->ctx);
    free(chat);
}

status_t chat_template_builtin(const char *name, struct chat_template **ret_template, struct diag *diag)
{
    const char *source = chat_template_builtin_source(name);
    if (!source) {
        diag_set(diag, "no chat template family is called '%.100s'; choose " CHAT_TEMPLATE_FAMILIES, name);
        return STATUS(ST_NOT_FOUND, SCOPE_REQUEST);
    }
    return chat_template_compile(source, strlen(source), ret_template, diag);
}

status_t chat_template_choose(const char *name_or_path, struct chat_template **ret_template, struct diag *diag)
{
    if (chat_template_builtin_source(name_or_path)) { return chat_template_builtin(name_or_path, ret_template, diag); }
    FILE *file = fopen(name_or_path, "rb");
    if (!file) {
        int cause = errno;
        diag_set(diag, "--chat-template=%.200s is neither a family (" CHAT_TEMPLATE_FAMILIES ") nor a file that can be read: %s", name_or_path, strerror(cause));
        return STATUS_CAUSE(ST_NOT_FOUND, SCOPE_REQUEST, cause);
    }
    char *source = malloc(SOURCE_MAX + 1);
    size_t len = source ? fread(source, 1, SOURCE_MAX + 1, file) : 0;
    bool broken = ferror(file) != 0;
    fclose(file);
    status_t st;
    if (!source || broken) {
        diag_set(diag, "--chat-template=%.200s cannot be read", name_or_path);
        st = STATUS(ST_NOT_FOUND, SCOPE_REQUEST);
    } else {
        st = chat_template_compile(source, len, ret_template, diag);
        if (failed(st)) { diag_prefix(diag, "%.200s", name_or_path); }
    }
    free(source);
    return st;
}

static void put_variable(struct jinja_ctx *ctx, struct dict *variables, const char *name, struct value value)
{
    dict_set(ctx, variables, value_cstr(name), value);
}

static struct dict *make_variables(struct jinja_ctx *ctx, const json_t *messages, const struct chat_options *options)
{
    struct dict *variables = dict_new(ctx);
    put_variable(ctx, variables, "messages", jinja_from_json(ctx, messages));
    put_variable(ctx, variables, "tools", jinja_from_json(ctx, options->tools));
    put_variable(ctx, variables, "documents", jinja_from_json(ctx, options->documents));
    put_variable(ctx, variables, "add_generation_prompt", value_bool(options->add_generation_prompt));
    if (options->bos_token) { put_variable(ctx, variables, "bos_token", value_cstr(options->bos_token)); }
    if (options->eos_token) { put_variable(ctx, variables, "eos_token", value_cstr(options->eos_token)); }
    struct value more = jinja_from_json(ctx, options->variables);
    for (uint32_t i = 0; more.kind == V_DICT && i < more.u.dict->count; i++) {
        dict_set(ctx, variables, more.u.dict->pairs[i].key, more.u.dict->pairs[i].value);
    }
    return variables;
}

status_t chat_template_render(const struct chat_template *chat, const json_t *messages, const struct chat_options *options, char **ret_text,
                              size_t *ret_len, struct diag *diag)
{
    if (!json_is_array(messages)) {
        diag_set(diag, "messages must be a list of objects with role and content");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    if ((options->bos_token && !utf8_is_valid(options->bos_token, strlen(options->bos_token))) ||
        (options->eos_token && !utf8_is_valid(options->eos_token, strlen(options->eos_token)))) {
        diag_set(diag, "bos_token or eos_token is not valid UTF-8");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    struct jinja_ctx ctx;
    jinja_ctx_init(&ctx, RENDER_BYTES_MAX, STEPS_MAX, diag);
    struct dict *variables = make_variables(&ctx, messages, options);
    bool raised = false;
    struct value text = value_str("", 0);
    if (!jinja_failed(&ctx)) { text = jinja_run(&ctx, chat->root, variables, options->now_s, OUTPUT_MAX, &raised); }
    char *copy = NULL;
    if (!jinja_failed(&ctx)) {
        copy = malloc((size_t)text.len + 1);
        if (!copy) { jinja_fail(&ctx, ST_RESOURCE_EXHAUSTED, "out of memory for the prompt"); }
    }
    status_t st = ctx.status;
    if (failed(st)) {
        if (!raised) { diag_prefix(diag, "chat template"); }
    } else {
        memcpy(copy, text.u.text, text.len);
        copy[text.len] = '\0';
        *ret_text = copy;
        *ret_len = text.len;
    }
    jinja_ctx_fini(&ctx);
    return st;
}

json_t *chat_messages_json(const struct chat_message *messages, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; array && i < count; i++) {
        json_t *message = json_pack("{s:s, s:s}", "role", messages[i].role, "content", messages[i].content);
        if (!message || json_array_append_new(array, message) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}
