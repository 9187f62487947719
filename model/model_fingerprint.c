#include "model/model_fingerprint.h"

#include <openssl/evp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct model_fingerprint_state {
    EVP_MD_CTX *context;
    bool has_failed; /* one check at the end instead of one per call */
};

static void add_bytes(struct model_fingerprint_state *state, const void *data, size_t bytes)
{
    if (EVP_DigestUpdate(state->context, data, bytes) != 1) { state->has_failed = true; }
}

__attribute__((format(printf, 2, 3))) static void add_line(struct model_fingerprint_state *state, const char *format,
                                                           ...)
{
    char line[256];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (len < 0 || (size_t)len >= sizeof line) {
        state->has_failed = true;
        return;
    }
    add_bytes(state, line, (size_t)len);
}

/* Everything of the config that a token depends on. %a is exact and the same everywhere. */
static void add_config(struct model_fingerprint_state *state, const struct model_config *config)
{
    add_line(state, "baton model fingerprint 1\n");
    add_line(state, "architecture=%s\nvocab=%u\nhidden=%u\nlayers=%u\n", model_architecture_name(config->architecture),
             config->vocab_size, config->hidden_size, config->layer_count);
    add_line(state, "q_heads=%u\nkv_heads=%u\nhead_dim=%u\nffn=%u\ncontext=%u\n", config->q_heads, config->kv_heads,
             config->head_dim, config->ffn_size, config->context_tokens);
    add_line(state, "norm=%d\neps=%a\nactivation=%d\ngated=%d\n", (int)config->norm, (double)config->norm_eps,
             (int)config->activation, config->ffn_is_gated);
    add_line(state, "qkv_bias=%d\no_bias=%d\nffn_bias=%d\nqk_norm=%d\n", config->qkv_bias, config->o_bias,
             config->ffn_bias, config->qk_norm);
    add_line(state, "rope=%d\ntheta=%a\nfactor=%a\nlow=%a\nhigh=%a\noriginal=%u\n", (int)config->rope,
             config->rope_theta, config->rope_factor, config->rope_low_factor, config->rope_high_factor,
             config->rope_original_tokens);
    add_line(state, "scaled=%d\nscaled_by_layer=%d\nwindow=%u\nsliding=", config->attention_is_scaled,
             config->attention_is_scaled_by_layer, config->sliding_window);
    for (uint32_t i = 0; i < config->layer_count; i++) { add_bytes(state, config->layer_is_sliding[i] ? "1" : "0", 1); }
    add_line(state, "\neos=");
    for (uint32_t i = 0; i < config->eos_count; i++) { add_line(state, "%u,", config->eos_tokens[i]); }
    add_line(state, "\n");
}

status_t model_fingerprint_begin(const struct model_config *config, struct diag *diag,
                                 struct model_fingerprint_state **ret_state)
{
    struct model_fingerprint_state *state = calloc(1, sizeof *state);
    if (!state || !(state->context = EVP_MD_CTX_new())) {
        model_fingerprint_drop(state);
        diag_set(diag, "no memory for the model's fingerprint");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    if (EVP_DigestInit_ex(state->context, EVP_sha256(), NULL) != 1) {
        model_fingerprint_drop(state);
        diag_set(diag, "OpenSSL refuses SHA-256, which the model's fingerprint needs");
        return STATUS(ST_INTERNAL, SCOPE_NODE);
    }
    add_config(state, config);
    *ret_state = state;
    return STATUS_OK;
}

void model_fingerprint_add(struct model_fingerprint_state *state, const char *name, const char *dtype,
                           const uint64_t *shape, uint32_t rank, const void *data, uint64_t bytes)
{
    if (!state) { return; }
    add_line(state, "tensor=%s\ndtype=%s\nshape=", name, dtype);
    for (uint32_t i = 0; i < rank; i++) { add_line(state, "%llu,", (unsigned long long)shape[i]); }
    add_line(state, "\nbytes=%llu\n", (unsigned long long)bytes);
    const uint8_t *at = data;
    if (bytes <= FINGERPRINT_WHOLE_BYTES) {
        add_bytes(state, at, (size_t)bytes);
        return;
    }
    add_bytes(state, at, (size_t)FINGERPRINT_EDGE_BYTES);
    for (uint64_t i = FINGERPRINT_STRIDE_BYTES; i + FINGERPRINT_PAGE_BYTES <= bytes; i += FINGERPRINT_STRIDE_BYTES) {
        add_bytes(state, at + i, (size_t)FINGERPRINT_PAGE_BYTES);
    }
    add_bytes(state, at + bytes - FINGERPRINT_EDGE_BYTES, (size_t)FINGERPRINT_EDGE_BYTES);
}

status_t model_fingerprint_end(struct model_fingerprint_state *state, struct diag *diag,
                               uint8_t ret_hash[FINGERPRINT_BYTES])
{
    uint8_t hash[EVP_MAX_MD_SIZE];
    unsigned hash_bytes = 0;
    bool is_good = !state->has_failed && EVP_DigestFinal_ex(state->context, hash, &hash_bytes) == 1 &&
                   hash_bytes == FINGERPRINT_BYTES;
    model_fingerprint_drop(state);
    if (!is_good) {
        diag_set(diag, "SHA-256 of the model failed inside OpenSSL");
        return STATUS(ST_INTERNAL, SCOPE_NODE);
    }
    memcpy(ret_hash, hash, FINGERPRINT_BYTES);
    return STATUS_OK;
}

void model_fingerprint_drop(struct model_fingerprint_state *state)
{
    if (!state) { return; }
    EVP_MD_CTX_free(state->context);
    free(state);
}
