/* model_config: what a Hugging Face directory says a model is, in one form for five architectures.
 * Flow:    config.json, generation_config.json -> [model_config] -> weights, forward pass, KV layout
 * Thread:  any; a plain value without pointers.
 * Memory:  none kept; the JSON tree lives during a call.
 *
 * One forward pass is assembled from these fields; nothing below model_config asks for the
 * architecture's name. A field that is absent takes the default of that architecture's class in
 * Hugging Face transformers, where the class has one that real checkpoints rely on; the sizes
 * (hidden_size, num_hidden_layers, num_attention_heads, vocab_size, intermediate_size) must be there.
 * Source: transformers 5.23, models/{llama,mistral,qwen2,qwen3,gpt2}/configuration_*.py. */
#ifndef BATON_MODEL_MODEL_CONFIG_H
#define BATON_MODEL_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define MODEL_LAYER_MAX 512u
#define MODEL_EOS_MAX 16u

enum model_architecture {
    MODEL_LLAMA = 0,   /* LlamaForCausalLM */
    MODEL_MISTRAL = 1, /* MistralForCausalLM */
    MODEL_QWEN2 = 2,   /* Qwen2ForCausalLM */
    MODEL_QWEN3 = 3,   /* Qwen3ForCausalLM */
    MODEL_GPT2 = 4,    /* GPT2LMHeadModel */
    MODEL_ARCHITECTURE_COUNT
};

enum model_norm { MODEL_NORM_RMS = 0, MODEL_NORM_LAYER = 1 };
enum model_activation { MODEL_SILU = 0, MODEL_GELU_TANH = 1, MODEL_GELU_ERF = 2 };
enum model_rope { MODEL_ROPE_NONE = 0, MODEL_ROPE_PLAIN = 1, MODEL_ROPE_LINEAR = 2, MODEL_ROPE_LLAMA3 = 3 };

struct model_config {
    enum model_architecture architecture;
    uint32_t vocab_size;
    uint32_t hidden_size;
    uint32_t layer_count; /* 1 .. MODEL_LAYER_MAX */
    uint32_t q_heads;     /* a multiple of kv_heads */
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t ffn_size;
    uint32_t context_tokens; /* max_position_embeddings or n_positions: the longest sequence taken */

    enum model_norm norm;
    float norm_eps;
    enum model_activation activation;
    bool ffn_is_gated; /* down(act(gate(x)) * up(x)); else down(act(up(x))) */
    bool qkv_bias, o_bias, ffn_bias;
    bool qk_norm;             /* RMS norm of each q and k head before the rotation */
    bool embeddings_are_tied; /* the head reads the embedding matrix */

    enum model_rope rope; /* MODEL_ROPE_NONE: learned positions are added to the embedding */
    double rope_theta;
    double rope_factor;                        /* linear, llama3 */
    double rope_low_factor, rope_high_factor;  /* llama3 */
    uint32_t rope_original_tokens;             /* llama3 */

    uint32_t sliding_window; /* tokens a row attends to, itself included; 0: all. Only layers below */
    bool layer_is_sliding[MODEL_LAYER_MAX];

    bool attention_is_scaled;           /* by 1 / sqrt(head_dim) */
    bool attention_is_scaled_by_layer;  /* and by 1 / (layer + 1) */

    int64_t bos_token;  /* -1: none */
    uint32_t eos_count; /* of generation_config.json where it names any, else of config.json */
    uint32_t eos_tokens[MODEL_EOS_MAX];
};

/* What generation_config.json proposes; the router decides whether a request's absent fields take it.
 * A field whose has_ flag is false was absent or null. */
struct generation_defaults {
    bool has_do_sample, has_temperature, has_top_p, has_top_k, has_min_p, has_repetition_penalty;
    bool do_sample;
    float temperature, top_p, min_p, repetition_penalty;
    uint32_t top_k;
};

/* Reads directory/config.json and, where there is one, directory/generation_config.json.
 * directory     borrows; a Hugging Face model directory
 * ret_defaults  may be NULL
 * Errors   NOT_FOUND (node): no config.json. INVALID_ARGUMENT (node): a field is missing, not a
 *          number, absurd, or not supported; diag names file, field, value and what is supported.
 * Cost     one small file each. */
NODISCARD status_t model_config_load(const char *directory, struct diag *diag, struct model_config *ret_config,
                                     struct generation_defaults *ret_defaults);

/* The same from bytes in memory; `name` stands for the file in errors. */
NODISCARD status_t model_config_parse(const char *name, const void *json, size_t json_bytes, struct diag *diag,
                                      struct model_config *ret_config);

/* Applies generation_config.json over a parsed config (end tokens, bos). */
NODISCARD status_t generation_config_parse(const char *name, const void *json, size_t json_bytes, struct diag *diag,
                                           struct model_config *config, struct generation_defaults *ret_defaults);

/* Tokens a row of this layer attends to, itself included; 0: all before it. */
static inline uint32_t model_config_window(const struct model_config *config, uint32_t layer)
{
    return config->layer_is_sliding[layer] ? config->sliding_window : 0;
}

/* Tokens that a row attends to at most in any layer, itself included; 0: some layer sees all before it. */
static inline uint32_t model_config_window_of_all(const struct model_config *config)
{
    for (uint32_t layer = 0; layer < config->layer_count; layer++) {
        if (model_config_window(config, layer) == 0) { return 0; }
    }
    return config->sliding_window;
}

/* What scores of this layer are multiplied with before the softmax. */
float model_config_attention_scale(const struct model_config *config, uint32_t layer);

bool model_config_token_is_eos(const struct model_config *config, uint32_t token);

/* "LlamaForCausalLM" and so on. */
const char *model_architecture_name(enum model_architecture architecture);

#endif
