#include "model/tokenizer/tokenizer_config.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/file_text.h"
#include "model/tokenizer/json_field.h"
#include "model/tokenizer/utf8.h"

#define DEFAULT_NAME "default"

static status_t out_of_memory(void) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }

/* A token is a string, or an object that has it as "content". The first file to name it wins. */
static status_t read_token(const json_t *json, const char *name, char **ret_token, struct diag *diag)
{
    const json_t *value = json_object_get(json, name);
    if (*ret_token || !value || json_is_null(value)) { return STATUS_OK; }
    const char *text = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    if (!text) {
        diag_set(diag, "field \"%s\" must be a string or an object with a string \"content\"", name);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    *ret_token = strdup(text);
    return *ret_token ? STATUS_OK : out_of_memory();
}

static status_t read_tokens(struct tokenizer_config *config, const json_t *json, struct diag *diag)
{
    TRY(read_token(json, "bos_token", &config->bos_token, diag));
    TRY(read_token(json, "eos_token", &config->eos_token, diag));
    TRY(read_token(json, "pad_token", &config->pad_token, diag));
    return read_token(json, "unk_token", &config->unk_token, diag);
}

static enum tri_state read_tri_state(const json_t *json, const char *name)
{
    const json_t *value = json_object_get(json, name);
    return json_is_true(value) ? TRI_TRUE : json_is_false(value) ? TRI_FALSE : TRI_UNSET;
}

/* A template of the same name is kept: files are read in the order of their precedence. */
static status_t add_template(struct tokenizer_config *config, const char *name, size_t name_len, const char *text,
                             size_t text_len)
{
    for (size_t i = 0; i < config->template_count; i++) {
        if (strlen(config->templates[i].name) == name_len && memcmp(config->templates[i].name, name, name_len) == 0) {
            return STATUS_OK;
        }
    }
    struct named_template *grown = realloc(config->templates, (config->template_count + 1) * sizeof *grown);
    if (!grown) { return out_of_memory(); }
    config->templates = grown;
    struct named_template added = {strndup(name, name_len), strndup(text, text_len)};
    if (!added.name || !added.text) {
        free(added.name);
        free(added.text);
        return out_of_memory();
    }
    config->templates[config->template_count++] = added;
    return STATUS_OK;
}

static status_t read_templates(struct tokenizer_config *config, const json_t *value, struct diag *diag)
{
    if (!value || json_is_null(value)) { return STATUS_OK; }
    if (json_is_string(value)) {
        return add_template(config, DEFAULT_NAME, strlen(DEFAULT_NAME), json_string_value(value), json_string_length(value));
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        struct json_text name, text;
        TRY(tok_json_need_text(entry, "name", &name, diag));
        TRY(tok_json_need_text(entry, "template", &text, diag));
        TRY(add_template(config, name.data, name.len, text.data, text.len));
    }
    if (json_is_array(value)) { return STATUS_OK; }
    diag_set(diag, "field \"chat_template\" must be a string or an array of {name, template}");
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

status_t tokenizer_config_read(struct tokenizer_config *config, const json_t *json, struct diag *diag)
{
    if (!json_is_object(json)) {
        diag_set(diag, "must be a JSON object");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct json_text class;
    TRY(read_tokens(config, json, diag));
    TRY(tok_json_text(json, "tokenizer_class", &class, diag));
    if (class.data && !config->tokenizer_class) {
        config->tokenizer_class = strndup(class.data, class.len);
        if (!config->tokenizer_class) { return out_of_memory(); }
    }
    config->add_bos_token = read_tri_state(json, "add_bos_token");
    config->add_eos_token = read_tri_state(json, "add_eos_token");
    return read_templates(config, json_object_get(json, "chat_template"), diag);
}

/* Loads dir/name; *ret_json stays NULL when there is no such file. */
static status_t load(const char *dir, const char *name, json_t **ret_json, struct diag *diag)
{
    struct text_buf text = {0};
    json_error_t error;
    *ret_json = NULL;
    status_t st = file_text_read(dir, name, &text, diag);
    if (failed(st)) {
        text_buf_fini(&text);
        return st.code == ST_NOT_FOUND ? STATUS_OK : st;
    }
    /* model_max_length is often 1e30, written out: no integer of ours. */
    *ret_json = json_loadb(text.data ? text.data : "", text.len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
    if (!*ret_json) {
        diag_set(diag, "%s: %s (line %d, column %d)", name, error.text, error.line, error.column);
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    text_buf_fini(&text);
    return st;
}

static status_t load_template(struct tokenizer_config *config, const char *dir, const char *file, const char *name,
                              size_t name_len, struct diag *diag)
{
    struct text_buf text = {0};
    status_t st = file_text_read(dir, file, &text, diag);
    if (st.code == ST_NOT_FOUND) {
        st = STATUS_OK;
    } else if (!failed(st) && utf8_valid_prefix(text.data ? text.data : "", text.len) != text.len) {
        diag_set(diag, "%s is not UTF-8", file);
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    } else if (!failed(st)) {
        st = add_template(config, name, name_len, text.data ? text.data : "", text.len);
    }
    text_buf_fini(&text);
    return st;
}

static status_t load_more_templates(struct tokenizer_config *config, const char *dir, struct diag *diag)
{
    static const char folder[] = "additional_chat_templates", ending[] = ".jinja";
    char path[4096];
    int path_len = snprintf(path, sizeof path, "%s/%s", dir, folder);
    if (path_len < 0 || (size_t)path_len >= sizeof path) { return STATUS_OK; } /* the other files failed before */
    DIR *handle = opendir(path);
    if (!handle) { return STATUS_OK; }
    status_t st = STATUS_OK;
    for (struct dirent *entry; !failed(st) && (entry = readdir(handle)) != NULL;) {
        size_t len = strlen(entry->d_name), ending_len = sizeof ending - 1;
        if (len <= ending_len || strcmp(entry->d_name + len - ending_len, ending) != 0) { continue; }
        st = load_template(config, path, entry->d_name, entry->d_name, len - ending_len, diag);
    }
    closedir(handle);
    return st;
}

status_t tokenizer_config_init(struct tokenizer_config *config, const char *dir, struct diag *diag)
{
    json_t *json = NULL;
    status_t st = load_template(config, dir, "chat_template.jinja", DEFAULT_NAME, strlen(DEFAULT_NAME), diag);
    if (!failed(st)) { st = load_more_templates(config, dir, diag); }
    if (!failed(st)) { st = load(dir, "tokenizer_config.json", &json, diag); }
    if (!failed(st) && json) {
        st = tokenizer_config_read(config, json, diag);
        if (failed(st)) { diag_prefix(diag, "tokenizer_config.json"); }
    }
    json_decref(json);
    json = NULL;
    if (!failed(st)) { st = load(dir, "special_tokens_map.json", &json, diag); }
    if (!failed(st) && json) {
        st = read_tokens(config, json, diag);
        if (failed(st)) { diag_prefix(diag, "special_tokens_map.json"); }
    }
    json_decref(json);
    json = NULL;
    if (!failed(st)) { st = load(dir, "chat_template.json", &json, diag); }
    if (!failed(st) && json) {
        st = read_templates(config, json_object_get(json, "chat_template"), diag);
        if (failed(st)) { diag_prefix(diag, "chat_template.json"); }
    }
    json_decref(json);
    return st;
}

void tokenizer_config_fini(struct tokenizer_config *config)
{
    free(config->bos_token);
    free(config->eos_token);
    free(config->pad_token);
    free(config->unk_token);
    free(config->tokenizer_class);
    for (size_t i = 0; i < config->template_count; i++) {
        free(config->templates[i].name);
        free(config->templates[i].text);
    }
    free(config->templates);
    *config = (struct tokenizer_config){0};
}
