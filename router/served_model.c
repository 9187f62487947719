#include "router/served_model.h"

#include <stdio.h>
#include <string.h>

static void last_part(const char *path, char *ret_part, size_t capacity)
{
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') { len--; }
    size_t start = len;
    while (start > 0 && path[start - 1] != '/') { start--; }
    snprintf(ret_part, capacity, "%.*s", (int)(len - start), path + start);
}

static status_t open_tokenizer(struct served_model *model, const char *directory, struct diag *diag)
{
    status_t st = tokenizer_create(directory, &model->tokenizer, diag);
    if (st.code != ST_NOT_FOUND) { return st; }
    diag_set(&model->text_problem, "model %s has no tokenizer.json, so text can be neither read nor shown; send token ids, "
             "or put the model's tokenizer.json into the router's model directory", model->name);
    *diag = (struct diag){{0}};
    return STATUS_OK;
}

static status_t open_chat(struct served_model *model, const char *choice, struct diag *diag)
{
    if (!model->tokenizer) {
        model->chat_problem = model->text_problem;
        return STATUS_OK;
    }
    if (choice) {
        status_t st = chat_template_choose(choice, &model->chat, diag);
        if (failed(st)) {
            diag_prefix(diag, "--chat-template=%s", choice);
            return st;
        }
        last_part(choice, model->chat_label, sizeof model->chat_label);
        return STATUS_OK;
    }
    const char *source = tokenizer_chat_template(model->tokenizer, NULL);
    if (!source) {
        diag_set(&model->chat_problem, "model %s has no chat template; start the router with --chat-template=%s or a "
                 "file, or use Generate", model->name, CHAT_TEMPLATE_FAMILIES);
        return STATUS_OK;
    }
    struct diag why = {{0}};
    if (failed(chat_template_compile(source, strlen(source), &model->chat, &why))) {
        model->chat = NULL;
        diag_set(&model->chat_problem, "the chat template of model %s is not known here: %s; start the router with "
                 "--chat-template=%s or a file", model->name, why.text, CHAT_TEMPLATE_FAMILIES);
        return STATUS_OK;
    }
    snprintf(model->chat_label, sizeof model->chat_label, "model");
    return STATUS_OK;
}

status_t served_model_open(const char *directory, const char *name, const char *chat_template,
                           struct served_model *ret_model, struct diag *diag)
{
    struct served_model *model = ret_model;
    memset(model, 0, sizeof *model);
    if (name) { snprintf(model->name, sizeof model->name, "%s", name); } else { last_part(directory, model->name, sizeof model->name); }
    status_t st = model_config_load(directory, diag, &model->config, &model->defaults);
    if (failed(st)) { goto fail; }
    st = open_tokenizer(model, directory, diag);
    if (failed(st)) { goto fail; }
    st = open_chat(model, chat_template, diag);
    if (failed(st)) { goto fail; }
    return STATUS_OK;
fail:
    served_model_close(model);
    return st;
}

void served_model_close(struct served_model *model)
{
    chat_template_destroy(model->chat);
    tokenizer_destroy(model->tokenizer);
    memset(model, 0, sizeof *model);
}
