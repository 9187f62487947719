/* baton tokenize: text to token ids, or ids to text, by a model directory or by the router. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/clock.h"
#include "client/connect_flags.h"
#include "client/sampling_flags.h"
#include "client/text_file.h"
#include "model/tokenizer/tokenizer.h"

struct tokenize_config {
    struct connect_flags connect;
    const char *model, *text, *file, *tokens;
    bool no_special_tokens, show_special_tokens, json, names;
};

static const struct flag tokenize_flags[] = {
    CONNECT_FLAGS(offsetof(struct tokenize_config, connect)),
    {"model", FLAG_STRING, offsetof(struct tokenize_config, model), NULL, "DIR", "Use this directory's tokenizer.json; without it, ask the router.", 0, 0},
    {"text", FLAG_STRING, offsetof(struct tokenize_config, text), NULL, "TEXT", "The text to encode.", 0, 0},
    {"file", FLAG_STRING, offsetof(struct tokenize_config, file), NULL, "FILE", "The same from a file; - is standard input.", 0, 0},
    {"tokens", FLAG_STRING, offsetof(struct tokenize_config, tokens), NULL, "1,2,3", "Token ids to decode.", 0, 0},
    {"no-special-tokens", FLAG_BOOL, offsetof(struct tokenize_config, no_special_tokens), NULL, NULL, "Do not put BOS and the like around the text.", 0, 0},
    {"show-special-tokens", FLAG_BOOL, offsetof(struct tokenize_config, show_special_tokens), NULL, NULL, "--tokens: show special tokens.", 0, 0},
    {"names", FLAG_BOOL, offsetof(struct tokenize_config, names), NULL, NULL, "One line a token, with its spelling.", 0, 0},
    {"json", FLAG_BOOL, offsetof(struct tokenize_config, json), NULL, NULL, "One JSON object.", 0, 0},
};

struct result {
    bool is_text;       /* decoded */
    char *text;
    size_t text_len;
    uint32_t *ids;
    size_t id_count;
    char **names;       /* [id_count], may be NULL */
};

static status_t by_model(const struct tokenize_config *config, const char *text, size_t len, const uint32_t *ids,
                         size_t id_count, struct result *result, struct diag *diag)
{
    struct tokenizer *tokenizer;
    TRY(tokenizer_create(config->model, &tokenizer, diag));
    status_t st;
    if (ids) {
        struct text_buf out = {0};
        st = tokenizer_decode(tokenizer, ids, id_count, !config->show_special_tokens, &out);
        if (!failed(st)) {
            result->text = malloc(out.len + 1);
            if (result->text) {
                if (out.len > 0) { memcpy(result->text, out.data, out.len); }
                result->text[out.len] = '\0';
                result->text_len = out.len;
            }
        }
        text_buf_fini(&out);
    } else {
        struct token_buf out = {0};
        struct encode_options options = {.add_special = !config->no_special_tokens, .parse_special = true};
        st = tokenizer_encode(tokenizer, text, len, options, &out, diag);
        if (!failed(st)) {
            result->ids = malloc((out.count + 1) * sizeof *result->ids);
            result->names = calloc(out.count + 1, sizeof *result->names);
            for (size_t i = 0; i < out.count && result->ids && result->names; i++) {
                size_t name_len = 0;
                const char *name = tokenizer_token_spelling(tokenizer, out.ids[i], &name_len);
                result->ids[i] = out.ids[i];
                result->names[i] = strndup(name ? name : "", name_len);
                result->id_count = i + 1;
            }
        }
        token_buf_fini(&out);
    }
    tokenizer_destroy(tokenizer);
    return st;
}

static status_t by_router(const struct tokenize_config *config, char *text, uint32_t *ids, size_t id_count,
                          struct result *result, struct diag *diag)
{
    struct api *api;
    TRY(connect_open(&config->connect, &api, diag));
    ProtobufCMessage *message = NULL;
    status_t st;
    if (ids) {
        Baton__V1__DetokenizeRequest request = BATON__V1__DETOKENIZE_REQUEST__INIT;
        request.n_ids = id_count;
        request.ids = ids;
        request.show_special_tokens = config->show_special_tokens;
        st = api_unary(api, "/baton.v1.Inference/Detokenize", &request.base, &baton__v1__detokenize_response__descriptor,
                       60 * NS_PER_S, &message, diag);
        if (!failed(st)) {
            result->text = strdup(((Baton__V1__DetokenizeResponse *)message)->text);
            result->text_len = strlen(result->text);
        }
    } else {
        Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
        request.input_case = BATON__V1__TOKENIZE_REQUEST__INPUT_TEXT;
        request.text = text;
        request.no_special_tokens = config->no_special_tokens;
        st = api_unary(api, "/baton.v1.Inference/Tokenize", &request.base, &baton__v1__tokenize_response__descriptor,
                       60 * NS_PER_S, &message, diag);
        if (!failed(st)) {
            const Baton__V1__TokenizeResponse *response = (Baton__V1__TokenizeResponse *)message;
            result->ids = malloc((response->n_ids + 1) * sizeof *result->ids);
            result->names = calloc(response->n_ids + 1, sizeof *result->names);
            for (size_t i = 0; i < response->n_ids && result->ids && result->names; i++) {
                result->ids[i] = response->ids[i];
                result->names[i] = strdup(i < response->n_texts ? response->texts[i] : "");
                result->id_count = i + 1;
            }
        }
    }
    if (message) { protobuf_c_message_free_unpacked(message, NULL); }
    api_close(api);
    return st;
}

static void print_result(const struct tokenize_config *config, const struct result *result)
{
    if (config->json) {
        json_t *object = json_object();
        if (result->is_text) {
            json_object_set_new(object, "text", json_stringn(result->text, result->text_len));
        } else {
            json_t *ids = json_array(), *names = json_array();
            for (size_t i = 0; i < result->id_count; i++) {
                json_array_append_new(ids, json_integer(result->ids[i]));
                json_t *name = json_string(result->names[i]);
                json_array_append_new(names, name ? name : json_null());
            }
            json_object_set_new(object, "ids", ids);
            json_object_set_new(object, "tokens", names);
        }
        json_dumpf(object, stdout, JSON_COMPACT | JSON_ENSURE_ASCII);
        fputc('\n', stdout);
        json_decref(object);
    } else if (result->is_text) {
        fwrite(result->text, 1, result->text_len, stdout);
        fputc('\n', stdout);
    } else {
        for (size_t i = 0; i < result->id_count; i++) {
            if (config->names) {
                printf("%8u  %s\n", result->ids[i], result->names[i]);
            } else {
                printf("%s%u", i > 0 ? "," : "", result->ids[i]);
            }
        }
        if (!config->names) { fputc('\n', stdout); }
    }
}

int command_tokenize(int argc, char **argv)
{
    struct tokenize_config config;
    int exit_status;
    if (!command_flags(tokenize_flags, sizeof tokenize_flags / sizeof tokenize_flags[0],
                       "baton tokenize --model=DIR --text=TEXT | --file=FILE | --tokens=1,2,3", &config, argc, argv,
                       &exit_status)) {
        return exit_status;
    }
    struct diag diag = {{0}};
    struct result result = {.is_text = config.tokens != NULL};
    char *text = NULL;
    size_t len = 0, id_count = 0;
    uint32_t *ids = NULL;
    status_t st = STATUS_OK;
    if ((config.text != NULL) + (config.file != NULL) + (config.tokens != NULL) != 1) {
        diag_set(&diag, "give exactly one of --text, --file and --tokens");
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    } else if (config.tokens) {
        st = token_list_parse(config.tokens, "tokens", &ids, &id_count, &diag);
    } else if (config.file) {
        st = text_file_read(config.file, &text, &len, &diag);
    } else {
        text = strdup(config.text);
        len = strlen(text);
    }
    if (!failed(st)) {
        st = config.model ? by_model(&config, text, len, ids, id_count, &result, &diag)
                          : by_router(&config, text, ids, id_count, &result, &diag);
    }
    if (!failed(st)) { print_result(&config, &result); }
    for (size_t i = 0; i < result.id_count; i++) { free(result.names[i]); }
    free(result.names);
    free(result.ids);
    free(result.text);
    free(ids);
    free(text);
    return failed(st) ? command_fail("tokenize", st, &diag) : 0;
}
