#include "model/model_config.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/json_field.h"

/* Far above any model of these families, and low enough that no product of two overflows. */
#define VOCAB_MAX (1u << 23)
#define HIDDEN_MAX (1u << 17)
#define HEADS_MAX 4096u
#define HEAD_DIM_MAX 256u /* KERNELS_HEAD_DIM_MAX; forward.c asserts it */
#define FFN_MAX (1u << 17) /* KERNELS_GEMM_IN_MAX, as hidden_size and the heads together */
#define CONTEXT_MAX (1u << 27)
#define CONFIG_BYTES_MAX ((size_t)4 << 20)

/* What differs between the classes when config.json is silent. */
struct architecture {
    const char *class_name;
    const char *model_type;
    uint32_t context_tokens;
    bool embeddings_are_tied;
    bool has_window; /* config.json's sliding_window means something */
    int32_t bos_token, eos_token; /* -1: none */
};

static const struct architecture architectures[MODEL_ARCHITECTURE_COUNT] = {
    [MODEL_LLAMA] = {"LlamaForCausalLM", "llama", 2048, false, false, 1, 2},
    [MODEL_MISTRAL] = {"MistralForCausalLM", "mistral", 131072, false, true, 1, 2},
    [MODEL_QWEN2] = {"Qwen2ForCausalLM", "qwen2", 32768, false, true, -1, -1},
    [MODEL_QWEN3] = {"Qwen3ForCausalLM", "qwen3", 32768, false, true, -1, -1},
    [MODEL_GPT2] = {"GPT2LMHeadModel", "gpt2", 1024, true, false, 50256, 50256},
};

#define SUPPORTED_CLASSES \
    "supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM and GPT2LMHeadModel"

const char *model_architecture_name(enum model_architecture architecture)
{
    return (unsigned)architecture < MODEL_ARCHITECTURE_COUNT ? architectures[architecture].class_name : "?";
}

float model_config_attention_scale(const struct model_config *config, uint32_t layer)
{
    double scale = config->attention_is_scaled ? 1.0 / sqrt((double)config->head_dim) : 1.0;
    if (config->attention_is_scaled_by_layer) { scale /= (double)layer + 1.0; }
    return (float)scale;
}

bool model_config_token_is_eos(const struct model_config *config, uint32_t token)
{
    for (uint32_t i = 0; i < config->eos_count; i++) {
        if (config->eos_tokens[i] == token) { return true; }
    }
    return false;
}

static status_t read_architecture(const struct json_reader *reader, enum model_architecture *ret_architecture)
{
    const json_t *list = json_field(reader, "architectures");
    const json_t *first = json_array_get(list, 0);
    if (list && (!json_is_array(list) || (json_array_size(list) > 0 && !json_is_string(first)))) {
        return json_field_refuse(reader, "architectures", list, "a list of class names is needed");
    }
    if (first) {
        for (int i = 0; i < MODEL_ARCHITECTURE_COUNT; i++) {
            if (strcmp(json_string_value(first), architectures[i].class_name) == 0) {
                *ret_architecture = (enum model_architecture)i;
                return STATUS_OK;
            }
        }
        return json_field_refuse(reader, "architectures", list, SUPPORTED_CLASSES);
    }
    const char *model_type;
    TRY(json_field_string(reader, "model_type", &model_type));
    for (int i = 0; model_type && i < MODEL_ARCHITECTURE_COUNT; i++) {
        if (strcmp(model_type, architectures[i].model_type) == 0) {
            *ret_architecture = (enum model_architecture)i;
            return STATUS_OK;
        }
    }
    if (model_type) {
        return json_field_refuse(reader, "model_type", json_field(reader, "model_type"),
                                 "without architectures, it must be llama, mistral, qwen2, qwen3 or gpt2");
    }
    return json_field_refuse(reader, "architectures", NULL, SUPPORTED_CLASSES);
}

static status_t read_activation(const struct json_reader *reader, const char *key, const char *otherwise,
                                enum model_activation *ret_activation)
{
    /* gelu_fast and gelu_pytorch_tanh are gelu_new with the constants written differently. */
    static const struct { const char *name; enum model_activation activation; } names[] = {
        {"silu", MODEL_SILU},          {"swish", MODEL_SILU},
        {"gelu", MODEL_GELU_ERF},      {"gelu_new", MODEL_GELU_TANH},
        {"gelu_fast", MODEL_GELU_TANH}, {"gelu_pytorch_tanh", MODEL_GELU_TANH},
    };
    const char *name;
    TRY(json_field_string(reader, key, &name));
    if (!name) { name = otherwise; }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i].name) == 0) {
            *ret_activation = names[i].activation;
            return STATUS_OK;
        }
    }
    return json_field_refuse(reader, key, json_field(reader, key),
                             "supported are silu, gelu, gelu_new, gelu_fast and gelu_pytorch_tanh");
}

/* The object that holds the scaling: rope_scaling of old files, rope_parameters of transformers 5,
 * and inside the latter perhaps one object per kind of layer, which must then agree. */
static status_t find_rope_object(const struct json_reader *reader, const char **ret_key, const char **ret_prefix,
                                 const json_t **ret_object)
{
    static const char *const keys[] = {"rope_scaling", "rope_parameters"};
    static const char *const prefixes[] = {"rope_scaling.", "rope_parameters."};
    *ret_key = NULL;
    *ret_prefix = "";
    *ret_object = NULL;
    for (size_t i = 0; i < 2; i++) {
        const json_t *object = json_field(reader, keys[i]);
        if (!object) { continue; }
        if (!json_is_object(object)) {
            return json_field_refuse(reader, keys[i], object, "an object or null is needed");
        }
        if (json_object_size(object) == 0) { continue; }
        const json_t *full = json_object_get(object, "full_attention");
        const json_t *sliding = json_object_get(object, "sliding_attention");
        if (json_is_object(full) || json_is_object(sliding)) {
            if (json_is_object(full) && json_is_object(sliding) && !json_equal(full, sliding)) {
                return json_field_refuse(reader, keys[i], object,
                                         "one rotation for all layers is supported, not one per kind of layer");
            }
            object = json_is_object(full) ? full : sliding;
        }
        *ret_key = keys[i];
        *ret_prefix = prefixes[i];
        *ret_object = object;
        return STATUS_OK;
    }
    return STATUS_OK;
}

static status_t read_rope(const struct json_reader *reader, struct model_config *config)
{
    static const double theta_default = 10000.0;
    const char *key;
    struct json_reader rope = *reader;
    TRY(find_rope_object(reader, &key, &rope.prefix, &rope.object));
    config->rope = MODEL_ROPE_PLAIN;
    config->rope_factor = 1.0;
    TRY(json_field_f64(reader, "rope_theta", 1e-3, 1e15, &theta_default, &config->rope_theta));
    if (!key) { return STATUS_OK; }

    double outer_theta = config->rope_theta;
    TRY(json_field_f64(&rope, "rope_theta", 1e-3, 1e15, &outer_theta, &config->rope_theta));
    static const double whole = 1.0;
    double partial;
    TRY(json_field_f64(&rope, "partial_rotary_factor", 1.0, 1.0, &whole, &partial));

    const char *type;
    const char *type_key = "rope_type";
    TRY(json_field_string(&rope, "rope_type", &type));
    if (!type) {
        type_key = "type";
        TRY(json_field_string(&rope, "type", &type));
    }
    if (!type || strcmp(type, "default") == 0) { return STATUS_OK; }
    bool is_linear = strcmp(type, "linear") == 0;
    if (!is_linear && strcmp(type, "llama3") != 0) {
        return json_field_refuse(&rope, type_key, json_field(&rope, type_key),
                                 "supported are default, linear and llama3");
    }
    TRY(json_field_f64(&rope, "factor", 1e-3, 1e6, NULL, &config->rope_factor));
    if (is_linear) {
        config->rope = MODEL_ROPE_LINEAR;
        return STATUS_OK;
    }
    config->rope = MODEL_ROPE_LLAMA3;
    TRY(json_field_f64(&rope, "low_freq_factor", 1e-6, 1e6, NULL, &config->rope_low_factor));
    TRY(json_field_f64(&rope, "high_freq_factor", 1e-6, 1e6, NULL, &config->rope_high_factor));
    if (config->rope_high_factor <= config->rope_low_factor) {
        return json_field_refuse(&rope, "high_freq_factor", json_field(&rope, "high_freq_factor"),
                                 "it must be larger than low_freq_factor");
    }
    /* At the top level it wins over the one inside, as in standardize_rope_params(). */
    TRY(json_field_u32(&rope, "original_max_position_embeddings", 1, CONTEXT_MAX, &config->context_tokens,
                       &config->rope_original_tokens));
    return json_field_u32(reader, "original_max_position_embeddings", 1, CONTEXT_MAX, &config->rope_original_tokens,
                          &config->rope_original_tokens);
}

/* layer_types where it is given, else every layer from max_window_layers on. */
static status_t read_layer_types(const struct json_reader *reader, struct model_config *config)
{
    const json_t *types = json_field(reader, "layer_types");
    if (!types) {
        static const uint32_t first_default = 28;
        uint32_t first;
        TRY(json_field_u32(reader, "max_window_layers", 0, UINT_MAX, &first_default, &first));
        for (uint32_t i = first; i < config->layer_count && config->sliding_window; i++) {
            config->layer_is_sliding[i] = true;
        }
        return STATUS_OK;
    }
    if (!json_is_array(types) || json_array_size(types) != config->layer_count) {
        return json_field_refuse(reader, "layer_types", types, "one entry per layer is needed");
    }
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const json_t *type = json_array_get(types, i);
        const char *name = json_is_string(type) ? json_string_value(type) : "";
        bool is_sliding = strcmp(name, "sliding_attention") == 0;
        if (!is_sliding && strcmp(name, "full_attention") != 0) {
            return json_field_refuse(reader, "layer_types", types,
                                     "supported are full_attention and sliding_attention");
        }
        if (is_sliding && config->sliding_window == 0) {
            return json_field_refuse(reader, "sliding_window", json_field(reader, "sliding_window"),
                                     "layer_types has sliding_attention, which needs use_sliding_window and a "
                                     "sliding_window");
        }
        config->layer_is_sliding[i] = is_sliding;
    }
    return STATUS_OK;
}

static status_t read_window(const struct json_reader *reader, struct model_config *config)
{
    if (!architectures[config->architecture].has_window) { return STATUS_OK; }
    bool is_on = true;
    if (config->architecture != MODEL_MISTRAL) {
        TRY(json_field_bool(reader, "use_sliding_window", false, &is_on));
    }
    /* Null means none; only a file that does not speak of it takes the class's 4096. */
    bool is_absent = json_object_get(reader->object, "sliding_window") == NULL;
    uint32_t window_default = is_absent ? 4096 : 0;
    TRY(json_field_u32(reader, "sliding_window", 1, UINT_MAX, &window_default, &config->sliding_window));
    if (!is_on) { config->sliding_window = 0; }
    if (config->architecture != MODEL_MISTRAL) { return read_layer_types(reader, config); }
    for (uint32_t i = 0; i < config->layer_count && config->sliding_window; i++) { config->layer_is_sliding[i] = true; }
    return STATUS_OK;
}

static status_t read_heads(const struct json_reader *reader, struct model_config *config)
{
    TRY(json_field_u32(reader, "num_attention_heads", 1, HEADS_MAX, NULL, &config->q_heads));
    /* MistralConfig's 8 and Qwen's 32 are those of one published size; but they are what the class takes
     * when the file is silent. An explicit null is one KV head per query head everywhere. */
    uint32_t kv_default = config->q_heads;
    if (json_object_get(reader->object, "num_key_value_heads") == NULL) {
        if (config->architecture == MODEL_MISTRAL) { kv_default = 8; }
        if (config->architecture == MODEL_QWEN2 || config->architecture == MODEL_QWEN3) { kv_default = 32; }
    }
    TRY(json_field_u32(reader, "num_key_value_heads", 1, HEADS_MAX, &kv_default, &config->kv_heads));
    if (config->q_heads % config->kv_heads != 0) {
        char wanted[128];
        snprintf(wanted, sizeof wanted, "%u key/value heads must divide num_attention_heads, %u", config->kv_heads,
                 config->q_heads);
        return json_field_refuse(reader, "num_key_value_heads", json_field(reader, "num_key_value_heads"), wanted);
    }
    uint32_t dim_default = config->hidden_size / config->q_heads;
    bool dim_is_absent = json_object_get(reader->object, "head_dim") == NULL;
    if (config->architecture == MODEL_QWEN3 && dim_is_absent) { dim_default = 128; }
    else if (!json_field(reader, "head_dim") && config->hidden_size % config->q_heads != 0) {
        return json_field_refuse(reader, "hidden_size", json_field(reader, "hidden_size"),
                                 "without head_dim it must be a multiple of num_attention_heads");
    }
    TRY(json_field_u32(reader, "head_dim", 2, HEAD_DIM_MAX, &dim_default, &config->head_dim));
    if (config->head_dim % 2 != 0 || config->head_dim == 0 || config->head_dim > HEAD_DIM_MAX) {
        char wanted[128];
        snprintf(wanted, sizeof wanted, "a head here has %u values; it must be even and at most %u", config->head_dim,
                 HEAD_DIM_MAX);
        return json_field_refuse(reader, "head_dim", json_field(reader, "head_dim"), wanted);
    }
    if ((uint64_t)config->q_heads * config->head_dim > HIDDEN_MAX) {
        char wanted[128];
        snprintf(wanted, sizeof wanted, "times head_dim %u, at most %u is supported", config->head_dim, HIDDEN_MAX);
        return json_field_refuse(reader, "num_attention_heads", json_field(reader, "num_attention_heads"), wanted);
    }
    return STATUS_OK;
}

static status_t parse_llama_like(const struct json_reader *reader, struct model_config *config)
{
    static const double eps_default = 1e-6;
    TRY(json_field_u32(reader, "hidden_size", 1, HIDDEN_MAX, NULL, &config->hidden_size));
    TRY(json_field_u32(reader, "num_hidden_layers", 1, MODEL_LAYER_MAX, NULL, &config->layer_count));
    TRY(json_field_u32(reader, "intermediate_size", 1, FFN_MAX, NULL, &config->ffn_size));
    TRY(json_field_u32(reader, "max_position_embeddings", 1, CONTEXT_MAX, &config->context_tokens,
                       &config->context_tokens));
    TRY(read_heads(reader, config));
    double eps;
    TRY(json_field_f64(reader, "rms_norm_eps", 0.0, 1.0, &eps_default, &eps));
    config->norm = MODEL_NORM_RMS;
    config->norm_eps = (float)eps;
    TRY(read_activation(reader, "hidden_act", "silu", &config->activation));
    config->ffn_is_gated = true;
    config->attention_is_scaled = true;
    switch (config->architecture) {
    case MODEL_LLAMA:
        TRY(json_field_bool(reader, "attention_bias", false, &config->qkv_bias));
        config->o_bias = config->qkv_bias;
        TRY(json_field_bool(reader, "mlp_bias", false, &config->ffn_bias));
        break;
    case MODEL_QWEN2:
        config->qkv_bias = true;
        break;
    case MODEL_QWEN3:
        TRY(json_field_bool(reader, "attention_bias", false, &config->qkv_bias));
        config->o_bias = config->qkv_bias;
        config->qk_norm = true;
        break;
    default:
        break;
    }
    static const double whole = 1.0;
    double partial;
    TRY(json_field_f64(reader, "partial_rotary_factor", 1.0, 1.0, &whole, &partial));
    TRY(read_rope(reader, config));
    return read_window(reader, config);
}

/* GPT2Config has its own names, and takes the common ones as aliases. */
static status_t gpt2_u32(const struct json_reader *reader, const char *key, const char *alias, uint32_t max,
                         const uint32_t *otherwise, uint32_t *ret_value)
{
    bool use_alias = !json_field(reader, key) && json_field(reader, alias);
    return json_field_u32(reader, use_alias ? alias : key, 1, max, otherwise, ret_value);
}

static status_t parse_gpt2(const struct json_reader *reader, struct model_config *config)
{
    static const double eps_default = 1e-5;
    TRY(gpt2_u32(reader, "n_embd", "hidden_size", HIDDEN_MAX, NULL, &config->hidden_size));
    TRY(gpt2_u32(reader, "n_layer", "num_hidden_layers", MODEL_LAYER_MAX, NULL, &config->layer_count));
    TRY(gpt2_u32(reader, "n_head", "num_attention_heads", HEADS_MAX, NULL, &config->q_heads));
    TRY(gpt2_u32(reader, "n_positions", "max_position_embeddings", CONTEXT_MAX, &config->context_tokens,
                 &config->context_tokens));
    if (config->hidden_size % config->q_heads != 0) {
        return json_field_refuse(reader, "n_embd", json_field(reader, "n_embd"), "it must be a multiple of n_head");
    }
    config->kv_heads = config->q_heads;
    config->head_dim = config->hidden_size / config->q_heads;
    if (config->head_dim > HEAD_DIM_MAX || config->head_dim % 2 != 0) {
        return json_field_refuse(reader, "n_head", json_field(reader, "n_head"),
                                 "n_embd / n_head must be even and at most 256");
    }
    uint32_t ffn_default = 4 * config->hidden_size;
    if (!json_field(reader, "n_inner") && ffn_default > FFN_MAX) {
        return json_field_refuse(reader, "n_embd", json_field(reader, "n_embd"), "4 * n_embd may be at most 131072");
    }
    TRY(json_field_u32(reader, "n_inner", 1, FFN_MAX, &ffn_default, &config->ffn_size));
    double eps;
    TRY(json_field_f64(reader, "layer_norm_epsilon", 0.0, 1.0, &eps_default, &eps));
    config->norm = MODEL_NORM_LAYER;
    config->norm_eps = (float)eps;
    TRY(read_activation(reader, "activation_function", "gelu_new", &config->activation));
    config->qkv_bias = config->o_bias = config->ffn_bias = true;
    config->rope = MODEL_ROPE_NONE;
    TRY(json_field_bool(reader, "scale_attn_weights", true, &config->attention_is_scaled));
    TRY(json_field_bool(reader, "scale_attn_by_inverse_layer_idx", false, &config->attention_is_scaled_by_layer));
    bool has_cross;
    TRY(json_field_bool(reader, "add_cross_attention", false, &has_cross));
    if (has_cross) {
        return json_field_refuse(reader, "add_cross_attention", json_field(reader, "add_cross_attention"),
                                 "a decoder on its own is supported, without cross attention");
    }
    return STATUS_OK;
}

/* An id outside the vocabulary can never come out of the model: small models are often saved with
 * the default ids of their class, so it is dropped and not refused. */
static status_t read_bos(const struct json_reader *reader, struct model_config *config)
{
    const json_t *value = json_field(reader, "bos_token_id");
    if (!value) { return STATUS_OK; }
    if (!json_is_integer(value)) { return json_field_refuse(reader, "bos_token_id", value, "a token id is needed"); }
    json_int_t id = json_integer_value(value);
    config->bos_token = id >= 0 && id < (json_int_t)config->vocab_size ? id : -1;
    return STATUS_OK;
}

static status_t read_eos(const struct json_reader *reader, struct model_config *config)
{
    const json_t *value = json_field(reader, "eos_token_id");
    if (!value) { return STATUS_OK; }
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    if (count > MODEL_EOS_MAX) {
        char wanted[64];
        snprintf(wanted, sizeof wanted, "at most %u end tokens are supported", MODEL_EOS_MAX);
        return json_field_refuse(reader, "eos_token_id", value, wanted);
    }
    config->eos_count = 0;
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(item)) {
            return json_field_refuse(reader, "eos_token_id", value, "a token id or a list of token ids is needed");
        }
        json_int_t id = json_integer_value(item);
        if (id < 0 || id >= (json_int_t)config->vocab_size) { continue; }
        if (!model_config_token_is_eos(config, (uint32_t)id)) {
            config->eos_tokens[config->eos_count++] = (uint32_t)id;
        }
    }
    return STATUS_OK;
}

static status_t parse_fields(const struct json_reader *reader, struct model_config *config)
{
    TRY(read_architecture(reader, &config->architecture));
    const struct architecture *architecture = &architectures[config->architecture];
    config->context_tokens = architecture->context_tokens;
    TRY(json_field_u32(reader, "vocab_size", 1, VOCAB_MAX, NULL, &config->vocab_size));
    TRY(json_field_bool(reader, "tie_word_embeddings", architecture->embeddings_are_tied,
                        &config->embeddings_are_tied));
    if (config->architecture == MODEL_GPT2) { TRY(parse_gpt2(reader, config)); }
    else { TRY(parse_llama_like(reader, config)); }
    config->bos_token = -1;
    if (!json_object_get(reader->object, "bos_token_id") && architecture->bos_token < (int32_t)config->vocab_size) {
        config->bos_token = architecture->bos_token;
    }
    if (!json_object_get(reader->object, "eos_token_id") && architecture->eos_token >= 0 &&
        architecture->eos_token < (int32_t)config->vocab_size) {
        config->eos_tokens[config->eos_count++] = (uint32_t)architecture->eos_token;
    }
    TRY(read_bos(reader, config));
    return read_eos(reader, config);
}

status_t model_config_parse(const char *name, const void *json, size_t json_bytes, struct diag *diag,
                            struct model_config *ret_config)
{
    json_t *tree;
    TRY(json_parse_object(name, json, json_bytes, false, diag, &tree));
    struct json_reader reader = {.file = name, .prefix = "", .object = tree, .diag = diag};
    struct model_config config;
    memset(&config, 0, sizeof config);
    status_t st = parse_fields(&reader, &config);
    json_decref(tree);
    if (!failed(st)) { *ret_config = config; }
    return st;
}

static status_t read_default_f32(const struct json_reader *reader, const char *key, double min, double max,
                                 bool *ret_has, float *ret_value)
{
    double value = 0.0;
    static const double nothing = 0.0;
    TRY(json_field_f64(reader, key, min, max, &nothing, &value));
    *ret_has = json_field(reader, key) != NULL;
    *ret_value = (float)value;
    return STATUS_OK;
}

static status_t parse_defaults(const struct json_reader *reader, struct generation_defaults *defaults)
{
    static const uint32_t nothing = 0;
    TRY(json_field_bool(reader, "do_sample", false, &defaults->do_sample));
    defaults->has_do_sample = json_field(reader, "do_sample") != NULL;
    TRY(read_default_f32(reader, "temperature", 0.0, 100.0, &defaults->has_temperature, &defaults->temperature));
    TRY(read_default_f32(reader, "top_p", 0.0, 1.0, &defaults->has_top_p, &defaults->top_p));
    TRY(read_default_f32(reader, "min_p", 0.0, 1.0, &defaults->has_min_p, &defaults->min_p));
    TRY(read_default_f32(reader, "repetition_penalty", 0.0, 100.0, &defaults->has_repetition_penalty,
                         &defaults->repetition_penalty));
    TRY(json_field_u32(reader, "top_k", 0, VOCAB_MAX, &nothing, &defaults->top_k));
    defaults->has_top_k = json_field(reader, "top_k") != NULL;
    return STATUS_OK;
}

status_t generation_config_parse(const char *name, const void *json, size_t json_bytes, struct diag *diag,
                                 struct model_config *config, struct generation_defaults *ret_defaults)
{
    json_t *tree;
    TRY(json_parse_object(name, json, json_bytes, false, diag, &tree));
    struct json_reader reader = {.file = name, .prefix = "", .object = tree, .diag = diag};
    struct model_config changed = *config;
    struct generation_defaults defaults;
    memset(&defaults, 0, sizeof defaults);
    status_t st = read_bos(&reader, &changed);
    if (!failed(st)) { st = read_eos(&reader, &changed); }
    if (!failed(st)) { st = parse_defaults(&reader, &defaults); }
    json_decref(tree);
    if (failed(st)) { return st; }
    *config = changed;
    *ret_defaults = defaults;
    return STATUS_OK;
}

status_t model_config_load(const char *directory, struct diag *diag, struct model_config *ret_config,
                           struct generation_defaults *ret_defaults)
{
    char path[PATH_MAX];
    char *data;
    size_t bytes;
    struct model_config config;
    struct generation_defaults defaults;
    memset(&defaults, 0, sizeof defaults);

    if (snprintf(path, sizeof path, "%s/config.json", directory) >= (int)sizeof path) {
        diag_set(diag, "the path of the model directory is longer than %d bytes", PATH_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    status_t st = json_read_file(path, CONFIG_BYTES_MAX, diag, &data, &bytes);
    if (st.code == ST_NOT_FOUND) {
        diag_set(diag, "%s: not found; --model takes a Hugging Face model directory with a config.json", path);
    }
    if (failed(st)) { return st; }
    st = model_config_parse(path, data, bytes, diag, &config);
    free(data);
    if (failed(st)) { return st; }

    if (snprintf(path, sizeof path, "%s/generation_config.json", directory) >= (int)sizeof path) {
        diag_set(diag, "the path of the model directory is longer than %d bytes", PATH_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    st = json_read_file(path, CONFIG_BYTES_MAX, diag, &data, &bytes);
    if (st.code != ST_NOT_FOUND) {
        if (failed(st)) { return st; }
        st = generation_config_parse(path, data, bytes, diag, &config, &defaults);
        free(data);
        if (failed(st)) { return st; }
    }
    *ret_config = config;
    if (ret_defaults) { *ret_defaults = defaults; }
    return STATUS_OK;
}
