/* tokenizer_load: builds a tokenizer from its files. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/file_text.h"
#include "model/tokenizer/json_field.h"
#include "model/tokenizer/json_nul.h"
#include "model/tokenizer/tokenizer_internal.h"

static status_t check_model(const json_t *model, struct diag *diag)
{
    if (!json_is_object(model)) {
        diag_set(diag, "field \"model\" must be an object");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    const char *type = tok_json_type_name(model);
    if (!type && json_object_get(model, "merges")) { return STATUS_OK; } /* files of 2019 have no type */
    if (type && strcmp(type, "BPE") == 0) { return STATUS_OK; }
    diag_set(diag, "the tokenizer model \"%.60s\" is not supported; the one known is BPE", type ? type : "(none)");
    return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
}

/* Looks for a decoder or normalizer of this kind, in Sequences too. */
static const json_t *find_component(const json_t *json, const char *type, const char *list, unsigned depth)
{
    const char *own = tok_json_type_name(json);
    if (own && strcmp(own, type) == 0) { return json; }
    const json_t *parts = json_object_get(json, list);
    for (size_t i = 0; depth < 8 && i < json_array_size(parts); i++) {
        const json_t *found = find_component(json_array_get(parts, i), type, list, depth + 1);
        if (found) { return found; }
    }
    return NULL;
}

/* How single tokens read, for tokenizer_token_text alone. */
static void note_spelling(struct tokenizer *tokenizer, const json_t *decoder)
{
    tokenizer->byte_alphabet = find_component(decoder, "ByteLevel", "decoders", 0) != NULL;
    tokenizer->byte_fallback = find_component(decoder, "ByteFallback", "decoders", 0) != NULL;
    const json_t *metaspace = find_component(decoder, "Metaspace", "decoders", 0);
    const json_t *replace = find_component(decoder, "Replace", "decoders", 0);
    const char *letter = metaspace ? json_string_value(json_object_get(metaspace, "replacement")) : NULL;
    const char *content = json_string_value(json_object_get(replace, "content"));
    if (!letter && content && strcmp(content, " ") == 0) {
        letter = json_string_value(json_object_get(json_object_get(replace, "pattern"), "String"));
    }
    if (letter && strlen(letter) < sizeof tokenizer->metaspace) { strcpy(tokenizer->metaspace, letter); }
}

static bool is_llama_class(const char *name)
{
    static const char *const names[] = {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer",
                                        "CodeLlamaTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast"};
    for (size_t i = 0; name && i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i]) == 0) { return true; }
    }
    return false;
}

/* The Llama classes of transformers 4 build their post-processor from add_bos_token and
 * add_eos_token, and the file's is not looked at; so where both speak the configuration wins. */
static status_t apply_bos_eos(struct tokenizer *tokenizer)
{
    const struct tokenizer_config *config = &tokenizer->config;
    struct token_buf *before = &tokenizer->post.before, *after = &tokenizer->post.after;
    uint32_t bos = tokenizer->role_ids[TOKENIZER_BOS], eos = tokenizer->role_ids[TOKENIZER_EOS];
    if (!is_llama_class(config->tokenizer_class)) { return STATUS_OK; }
    if (config->add_bos_token != TRI_UNSET) {
        before->count = 0;
        if (config->add_bos_token == TRI_TRUE && bos != TOKENIZER_NO_ID) { TRY(token_buf_append(before, bos)); }
    }
    if (config->add_eos_token != TRI_UNSET) {
        after->count = 0;
        if (config->add_eos_token == TRI_TRUE && eos != TOKENIZER_NO_ID) { TRY(token_buf_append(after, eos)); }
    }
    return STATUS_OK;
}

static status_t index_ids(struct tokenizer *tokenizer)
{
    const struct vocab *vocab = bpe_vocab(tokenizer->bpe);
    uint32_t added_end = added_tokens_id_end(tokenizer->added);
    tokenizer->id_end = vocab_id_end(vocab) > added_end ? vocab_id_end(vocab) : added_end;
    tokenizer->vocab_size = vocab_count(vocab);
    tokenizer->special = calloc((size_t)tokenizer->id_end + 1, 1);
    if (!tokenizer->special) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    for (uint32_t id = 0; id < added_end; id++) {
        size_t len;
        const char *text = added_tokens_text(tokenizer->added, id, &len);
        if (!text) { continue; }
        if (vocab_find(vocab, text, len) == VOCAB_NONE) { tokenizer->vocab_size++; }
        tokenizer->special[id] = added_tokens_text_is_special(tokenizer->added, text, len);
    }
    const char *const names[4] = {tokenizer->config.bos_token, tokenizer->config.eos_token, tokenizer->config.pad_token,
                                  tokenizer->config.unk_token};
    for (size_t i = 0; i < 4; i++) {
        tokenizer->role_ids[i] = names[i] ? tokenizer_token_id(tokenizer, names[i], strlen(names[i])) : TOKENIZER_NO_ID;
    }
    return STATUS_OK;
}

static status_t build(struct tokenizer *tokenizer, const json_t *root, const struct json_nul *nul, struct diag *diag)
{
    const json_t *model = json_object_get(root, "model");
    TRY(check_model(model, diag));
    TRY(normalizer_create(json_object_get(root, "normalizer"), &tokenizer->normalizer, diag));
    TRY(pre_tokenizer_create(json_object_get(root, "pre_tokenizer"), bpe_takes_bytes(model), &tokenizer->pre, diag));
    TRY(bpe_create(model, nul, pre_tokenizer_gives_bytes(tokenizer->pre), &tokenizer->bpe, diag));
    TRY(added_tokens_create(json_object_get(root, "added_tokens"), bpe_vocab(tokenizer->bpe), tokenizer->normalizer,
                            &tokenizer->added, diag));
    TRY(decoder_create(json_object_get(root, "decoder"), &tokenizer->decoder, diag));
    TRY(post_processor_init(&tokenizer->post, json_object_get(root, "post_processor"), diag));
    note_spelling(tokenizer, json_object_get(root, "decoder"));
    TRY(index_ids(tokenizer));
    return apply_bos_eos(tokenizer);
}

/* Fills in a tokenizer whose config is read already; may change `json`. */
static status_t parse(struct tokenizer *tokenizer, char *json, size_t len, struct diag *diag)
{
    json_t *root = NULL;
    struct json_nul nul;
    status_t st = json_nul_load(json, len, &root, &nul, diag);
    if (!failed(st)) { st = build(tokenizer, root, &nul, diag); }
    if (failed(st)) { diag_prefix(diag, "tokenizer.json"); }
    json_decref(root);
    return st;
}

status_t tokenizer_create(const char *dir, struct tokenizer **ret_tokenizer, struct diag *diag)
{
    struct tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    struct text_buf text = {0};
    status_t st = tokenizer_config_init(&tokenizer->config, dir, diag);
    if (!failed(st)) { st = file_text_read(dir, "tokenizer.json", &text, diag); }
    if (!failed(st)) { st = parse(tokenizer, text.data, text.len, diag); }
    text_buf_fini(&text);
    if (failed(st)) { tokenizer_destroy(tokenizer); return st; }
    *ret_tokenizer = tokenizer;
    return STATUS_OK;
}

static status_t parse_config(struct tokenizer *tokenizer, const char *config, size_t len, struct diag *diag)
{
    json_error_t error;
    if (!config) { return STATUS_OK; }
    json_t *json = json_loadb(config, len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
    if (!json) {
        diag_set(diag, "tokenizer_config.json: %s (line %d, column %d)", error.text, error.line, error.column);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    status_t st = tokenizer_config_read(&tokenizer->config, json, diag);
    if (failed(st)) { diag_prefix(diag, "tokenizer_config.json"); }
    json_decref(json);
    return st;
}

status_t tokenizer_create_from_json(const char *json, size_t len, const char *config, size_t config_len,
                                    struct tokenizer **ret_tokenizer, struct diag *diag)
{
    struct tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    struct text_buf text = {0};
    status_t st = parse_config(tokenizer, config, config_len, diag);
    if (!failed(st)) { st = text_buf_append(&text, json, len); }
    if (!failed(st)) { st = parse(tokenizer, text.data, text.len, diag); }
    text_buf_fini(&text);
    if (failed(st)) { tokenizer_destroy(tokenizer); return st; }
    *ret_tokenizer = tokenizer;
    return STATUS_OK;
}

void tokenizer_destroy(struct tokenizer *tokenizer)
{
    if (!tokenizer) { return; }
    normalizer_destroy(tokenizer->normalizer);
    pre_tokenizer_destroy(tokenizer->pre);
    bpe_destroy(tokenizer->bpe);
    added_tokens_destroy(tokenizer->added);
    decoder_destroy(tokenizer->decoder);
    post_processor_fini(&tokenizer->post);
    tokenizer_config_fini(&tokenizer->config);
    free(tokenizer->special);
    free(tokenizer);
}
