#include "model/chat_template/chat_model.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct chat_model {
    struct chat_template *chat; /* NULL: the model has none */
    json_t *tokens;             /* object: bos_token, eos_token and so on, as strings */
};

/* A special token stands as a text, or as {"content": text}. */
static const char *token_text(const json_t *token)
{
    const char *text = json_string_value(token);
    return text ? text : json_string_value(json_object_get(token, "content"));
}

static status_t take_tokens(struct chat_model *model, const json_t *config)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
    model->tokens = json_object();
    if (!model->tokens) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *text = token_text(json_object_get(config, names[i]));
        if (text && json_object_set_new(model->tokens, names[i], json_string(text)) != 0) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    }
    return STATUS_OK;
}

/* The text of the model's own template, or NULL. */
static const char *own_template(const json_t *config)
{
    const json_t *field = json_object_get(config, "chat_template");
    if (!json_is_array(field)) { return json_string_value(field); }
    const char *first = NULL;
    for (size_t i = 0; i < json_array_size(field); i++) {
        const json_t *item = json_array_get(field, i);
        const char *text = json_string_value(json_object_get(item, "template")), *name = json_string_value(json_object_get(item, "name"));
        if (text && name && strcmp(name, "default") == 0) { return text; }
        if (text && !first) { first = text; }
    }
    return first;
}

static status_t take_template(struct chat_model *model, const char *model_dir, const char *choice, const json_t *config, struct diag *diag)
{
    char path[PATH_MAX];
    if (choice && *choice) { return chat_template_choose(choice, &model->chat, diag); }
    int len = snprintf(path, sizeof path, "%s/chat_template.jinja", model_dir);
    if (len > 0 && (size_t)len < sizeof path && access(path, R_OK) == 0) { return chat_template_choose(path, &model->chat, diag); }
    const char *source = own_template(config);
    return source ? chat_template_compile(source, strlen(source), &model->chat, diag) : STATUS_OK;
}

status_t chat_model_load(const char *model_dir, const char *choice, struct chat_model **ret_model, struct diag *diag)
{
    char path[PATH_MAX];
    int len = snprintf(path, sizeof path, "%s/tokenizer_config.json", model_dir);
    if (len < 0 || (size_t)len >= sizeof path || access(path, R_OK) != 0) {
        diag_set(diag, "%.300s/tokenizer_config.json cannot be read; it holds the chat template and the special tokens", model_dir);
        return STATUS(ST_NOT_FOUND, SCOPE_NODE);
    }
    json_error_t error;
    /* As real: model_max_length is often 10^30, which is no 64-bit integer. */
    json_t *config = json_load_file(path, JSON_DECODE_INT_AS_REAL, &error);
    if (!json_is_object(config)) {
        diag_set(diag, "%.300s: not a JSON object: %s at line %d", path, config ? "it is another value" : error.text, config ? 1 : error.line);
        json_decref(config);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct chat_model *model = calloc(1, sizeof *model);
    status_t st = model ? take_tokens(model, config) : STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    if (!failed(st)) {
        st = take_template(model, model_dir, choice, config, diag);
        if (failed(st) && !(choice && *choice)) { diag_prefix(diag, "%.300s", model_dir); }
    }
    json_decref(config);
    if (failed(st)) {
        chat_model_destroy(model);
        return st;
    }
    *ret_model = model;
    return STATUS_OK;
}

void chat_model_destroy(struct chat_model *model)
{
    if (!model) { return; }
    chat_template_destroy(model->chat);
    json_decref(model->tokens);
    free(model);
}

status_t chat_model_render(const struct chat_model *model, const json_t *messages, const struct chat_options *options, char **ret_text, size_t *ret_len,
                           struct diag *diag)
{
    if (!model->chat) {
        diag_set(diag, "this model has no chat template; choose one with --chat-template=" CHAT_TEMPLATE_FAMILIES " or a file, or send text instead of messages");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    }
    /* The model's tokens, then the options' two, then the options' variables: later ones win. */
    json_t *variables = json_copy(model->tokens);
    if (options->bos_token) { json_object_del(variables, "bos_token"); }
    if (options->eos_token) { json_object_del(variables, "eos_token"); }
    if (!variables || (options->variables && json_object_update(variables, (json_t *)(uintptr_t)options->variables) != 0)) {
        json_decref(variables);
        diag_set(diag, "the chat variables must be a JSON object");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    struct chat_options merged = *options;
    merged.variables = variables;
    status_t st = chat_template_render(model->chat, messages, &merged, ret_text, ret_len, diag);
    json_decref(variables);
    return st;
}
