/* config.json and generation_config.json: what is read, what is filled in, what is refused and with which
 * words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "model/model_config.h"
#include "tests/unit/model/forward_harness.h"

#define LLAMA_SIZES                                                                                            \
    "\"vocab_size\":300,\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":4,"                  \
    "\"num_attention_heads\":8"
#define CONFIG(class_name, more) "{\"architectures\":[\"" class_name "\"]," LLAMA_SIZES more "}"
#define GPT2(more) \
    "{\"architectures\":[\"GPT2LMHeadModel\"],\"vocab_size\":300,\"n_embd\":64,\"n_layer\":4,\"n_head\":8" more "}"

static struct model_config parse(const char *json)
{
    struct model_config config;
    struct diag diag = {{0}};
    if (failed(model_config_parse("config.json", json, strlen(json), &diag, &config))) { fail_msg("%s", diag.text); }
    return config;
}

/* The config is refused, and the sentence holds both words. */
static void refuse(const char *json, const char *word, const char *other)
{
    struct model_config config;
    memset(&config, 0x5a, sizeof config);
    struct diag diag = {{0}};
    status_t st = model_config_parse("dir/config.json", json, strlen(json), &diag, &config);
    if (st.code != ST_INVALID_ARGUMENT) { fail_msg("not refused: %s", json); }
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_non_null(strstr(diag.text, "dir/config.json"));
    if (!strstr(diag.text, word) || !strstr(diag.text, other)) {
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", diag.text, word, other);
    }
    assert_int_equal(((uint8_t *)&config)[0], 0x5a); /* outputs are written on success only */
}

/* A refusal names the file, the field, its value and what is supported. */
static void refusals_name_field_and_value(void **state)
{
    (void)state;
    refuse("", "not valid JSON", "line 1");
    refuse("[]", "not an object", "");
    refuse("{\"a\": tru}", "not valid JSON", "line 1");
    refuse("{}", "architectures is missing", "LlamaForCausalLM");
    refuse("{\"architectures\":[\"GemmaForCausalLM\"]}", "GemmaForCausalLM", "Qwen3ForCausalLM");
    refuse("{\"architectures\":\"LlamaForCausalLM\"}", "architectures", "list of class names");
    refuse("{\"model_type\":\"mamba\"}", "mamba", "gpt2");
    refuse("{\"architectures\":[\"LlamaForCausalLM\"]}", "vocab_size is missing", "");
    refuse(CONFIG("LlamaForCausalLM", ",\"vocab_size\":\"many\""), "vocab_size is \"many\"", "whole number");
    refuse(CONFIG("LlamaForCausalLM", ",\"vocab_size\":0"), "vocab_size is 0", "from 1");
    refuse(CONFIG("LlamaForCausalLM", ",\"vocab_size\":-5"), "vocab_size is -5", "");
    refuse(CONFIG("LlamaForCausalLM", ",\"vocab_size\":1.5"), "vocab_size is 1.5", "");
    refuse(CONFIG("LlamaForCausalLM", ",\"vocab_size\":9223372036854775807"), "vocab_size", "8388608");
    refuse(CONFIG("LlamaForCausalLM", ",\"num_hidden_layers\":4000000000"), "num_hidden_layers", "512");
    refuse(CONFIG("LlamaForCausalLM", ",\"num_hidden_layers\":null"), "num_hidden_layers is missing", "");
    refuse(CONFIG("LlamaForCausalLM", ",\"num_attention_heads\":7"), "hidden_size is 64", "num_attention_heads");
    refuse(CONFIG("LlamaForCausalLM", ",\"num_key_value_heads\":3"), "num_key_value_heads is 3", "divide");
    refuse(CONFIG("LlamaForCausalLM", ",\"num_key_value_heads\":0"), "num_key_value_heads is 0", "");
    refuse(CONFIG("LlamaForCausalLM", ",\"head_dim\":7"), "head_dim is 7", "even");
    refuse(CONFIG("LlamaForCausalLM", ",\"head_dim\":258"), "head_dim is 258", "256");
    refuse(CONFIG("LlamaForCausalLM", ",\"hidden_act\":\"relu\""), "hidden_act is \"relu\"", "silu");
    refuse(CONFIG("LlamaForCausalLM", ",\"hidden_act\":3"), "hidden_act is 3", "string");
    refuse(CONFIG("LlamaForCausalLM", ",\"rms_norm_eps\":\"1e-6\""), "rms_norm_eps", "number");
    refuse(CONFIG("LlamaForCausalLM", ",\"attention_bias\":1"), "attention_bias is 1", "true or false");
    refuse(CONFIG("LlamaForCausalLM", ",\"tie_word_embeddings\":\"no\""), "tie_word_embeddings", "true or false");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_theta\":0"), "rope_theta is 0", "");
    refuse(CONFIG("LlamaForCausalLM", ",\"partial_rotary_factor\":0.5"), "partial_rotary_factor is 0.5", "");
    refuse(CONFIG("LlamaForCausalLM", ",\"eos_token_id\":\"</s>\""), "eos_token_id", "token id");
    refuse(CONFIG("LlamaForCausalLM", ",\"eos_token_id\":[1,2.5]"), "eos_token_id", "list of token ids");
    refuse(CONFIG("LlamaForCausalLM", ",\"eos_token_id\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"), "eos_token_id", "16");
    refuse(CONFIG("LlamaForCausalLM", ",\"bos_token_id\":[1]"), "bos_token_id", "token id");
    refuse(GPT2(",\"n_head\":7"), "n_embd is 64", "n_head");
    refuse(GPT2(",\"n_embd\":24,\"n_head\":8"), "n_head is 8", "even");
    refuse(GPT2(",\"n_embd\":\"x\""), "n_embd is \"x\"", "");
    refuse(GPT2(",\"activation_function\":\"relu\""), "activation_function is \"relu\"", "gelu_new");
    refuse(GPT2(",\"add_cross_attention\":true"), "add_cross_attention is true", "decoder");
}

/* A rotation we do not have is refused by its name; one we have needs its numbers. */
static void rope_refusals(void **state)
{
    (void)state;
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}"),
           "rope_scaling.rope_type is \"yarn\"", "llama3");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4}"),
           "rope_scaling.type is \"dynamic\"", "linear");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_parameters\":{\"rope_type\":\"longrope\"}"),
           "rope_parameters.rope_type is \"longrope\"", "linear");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_scaling\":{\"type\":\"linear\"}"), "rope_scaling.factor is missing", "");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":\"2\"}"),
           "rope_scaling.factor is \"2\"", "number");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}"), "rope_scaling.factor is 0",
           "");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}"),
           "rope_scaling.low_freq_factor is missing", "");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
                                      "\"low_freq_factor\":4,\"high_freq_factor\":4}"),
           "rope_scaling.high_freq_factor is 4", "larger");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_scaling\":\"linear\""), "rope_scaling is \"linear\"", "object");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_parameters\":{\"rope_theta\":\"big\"}"), "rope_parameters.rope_theta",
           "number");
    refuse(CONFIG("LlamaForCausalLM", ",\"rope_parameters\":{\"partial_rotary_factor\":0.25}"),
           "rope_parameters.partial_rotary_factor", "");
    refuse(CONFIG("Qwen3ForCausalLM", ",\"num_key_value_heads\":8,\"rope_parameters\":{\"full_attention\":"
                                      "{\"rope_theta\":1e6},\"sliding_attention\":{\"rope_theta\":1e4}}"),
           "rope_parameters", "one rotation for all layers");
}

/* A window that cannot be applied is refused. */
static void window_refusals(void **state)
{
    (void)state;
#define QWEN(more) CONFIG("Qwen2ForCausalLM", ",\"num_key_value_heads\":2" more)
    refuse(QWEN(",\"layer_types\":[\"full_attention\"]"), "layer_types", "per layer");
    refuse(QWEN(",\"layer_types\":\"full\""), "layer_types", "per layer");
    refuse(QWEN(",\"layer_types\":[1,2,3,4]"), "layer_types", "sliding_attention");
    refuse(QWEN(",\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\",\"linear_attention\"]"),
           "layer_types", "supported");
    refuse(QWEN(",\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\",\"sliding_attention\"]"),
           "sliding_window", "use_sliding_window");
    refuse(CONFIG("MistralForCausalLM", ",\"sliding_window\":0"), "sliding_window is 0", "");
    refuse(CONFIG("MistralForCausalLM", ",\"sliding_window\":\"all\""), "sliding_window is \"all\"", "");
}

/* What LlamaConfig takes when config.json is silent. */
static void llama_defaults(void **state)
{
    (void)state;
    struct model_config config = parse(CONFIG("LlamaForCausalLM", ""));
    assert_int_equal(config.architecture, MODEL_LLAMA);
    assert_int_equal(config.kv_heads, 8);
    assert_int_equal(config.head_dim, 8);
    assert_int_equal(config.context_tokens, 2048);
    assert_float_equal(config.norm_eps, 1e-6f, 0);
    assert_int_equal(config.activation, MODEL_SILU);
    assert_false(config.embeddings_are_tied);
    assert_false(config.qkv_bias || config.o_bias || config.ffn_bias || config.qk_norm);
    assert_true(config.ffn_is_gated);
    assert_int_equal(config.rope, MODEL_ROPE_PLAIN);
    assert_true(config.rope_theta == 10000.0);
    assert_int_equal(config.sliding_window, 0);
    assert_int_equal(config.bos_token, 1);
    assert_int_equal(config.eos_count, 1);
    assert_int_equal(config.eos_tokens[0], 2);
    assert_float_equal(model_config_attention_scale(&config, 3), (float)(1.0 / sqrt(8.0)), 0);

    config = parse(CONFIG("LlamaForCausalLM", ",\"num_key_value_heads\":null,\"head_dim\":null,\"rope_scaling\":null,"
                                              "\"eos_token_id\":null,\"bos_token_id\":null,\"sliding_window\":5"));
    assert_int_equal(config.kv_heads, 8);
    assert_int_equal(config.head_dim, 8);
    assert_int_equal(config.eos_count, 0);
    assert_int_equal(config.bos_token, -1);
    assert_int_equal(model_config_window(&config, 0), 0); /* Llama has none, whatever the file says */
}

/* attention_bias of Llama is on all four projections; mlp_bias on three. An explicit head_dim wins. */
static void llama_options(void **state)
{
    (void)state;
    struct model_config config =
        parse(CONFIG("LlamaForCausalLM", ",\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":20,"
                                         "\"num_key_value_heads\":2.0,\"tie_word_embeddings\":true,\"hidden_act\":\"gelu\","
                                         "\"dtype\":\"bfloat16\",\"eos_token_id\":[7,9,7,100000]"));
    assert_true(config.qkv_bias && config.o_bias && config.ffn_bias && config.embeddings_are_tied);
    assert_int_equal(config.head_dim, 20);
    assert_int_equal(config.kv_heads, 2);
    assert_int_equal(config.activation, MODEL_GELU_ERF);
    assert_int_equal(config.eos_count, 2); /* twice the same, and one outside the vocabulary, are dropped */
    assert_true(model_config_token_is_eos(&config, 7) && model_config_token_is_eos(&config, 9));
    assert_false(model_config_token_is_eos(&config, 8));
}

/* rope_scaling of old files and rope_parameters of transformers 5 mean the same. */
static void rope_forms(void **state)
{
    (void)state;
    struct model_config old = parse(CONFIG(
        "LlamaForCausalLM", ",\"rope_theta\":500000,\"max_position_embeddings\":4096,\"rope_scaling\":{\"rope_type\":"
                            "\"llama3\",\"factor\":32.0,\"low_freq_factor\":1,\"high_freq_factor\":4.0,"
                            "\"original_max_position_embeddings\":512}"));
    struct model_config new = parse(CONFIG(
        "LlamaForCausalLM", ",\"max_position_embeddings\":4096,\"rope_parameters\":{\"rope_type\":\"llama3\","
                            "\"rope_theta\":500000.0,\"factor\":32.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                            "\"original_max_position_embeddings\":512}"));
    assert_memory_equal(&old, &new, sizeof old);
    assert_int_equal(new.rope, MODEL_ROPE_LLAMA3);
    assert_true(new.rope_theta == 500000.0 && new.rope_factor == 32.0 && new.rope_high_factor == 4.0);
    assert_int_equal(new.rope_original_tokens, 512);

    struct model_config config =
        parse(CONFIG("LlamaForCausalLM", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}"));
    assert_int_equal(config.rope, MODEL_ROPE_LINEAR);
    assert_true(config.rope_factor == 4.0 && config.rope_theta == 10000.0);
    config = parse(CONFIG("LlamaForCausalLM", ",\"rope_theta\":77,\"rope_scaling\":{\"rope_type\":\"default\"}"));
    assert_int_equal(config.rope, MODEL_ROPE_PLAIN);
    assert_true(config.rope_theta == 77.0);
    config = parse(CONFIG("LlamaForCausalLM", ",\"rope_parameters\":{\"rope_theta\":88}"));
    assert_true(config.rope_theta == 88.0);
    config = parse(CONFIG("LlamaForCausalLM", ",\"rope_parameters\":{},\"rope_theta\":99"));
    assert_true(config.rope_theta == 99.0);
    /* llama3 without the original length takes the model's own, as standardize_rope_params() does. */
    config = parse(CONFIG("LlamaForCausalLM", ",\"max_position_embeddings\":640,\"rope_scaling\":{\"rope_type\":"
                                              "\"llama3\",\"factor\":2,\"low_freq_factor\":1,\"high_freq_factor\":4}"));
    assert_int_equal(config.rope_original_tokens, 640);
    config = parse(CONFIG("Qwen3ForCausalLM", ",\"num_key_value_heads\":8,\"rope_parameters\":{\"full_attention\":"
                                              "{\"rope_type\":\"default\",\"rope_theta\":1e6}}"));
    assert_true(config.rope_theta == 1e6);
}

/* Mistral's window is on every layer: 4096 when not spoken of, none when null. */
static void mistral_windows(void **state)
{
    (void)state;
    struct model_config config = parse(CONFIG("MistralForCausalLM", ""));
    assert_int_equal(config.kv_heads, 8);
    assert_int_equal(config.context_tokens, 131072);
    assert_int_equal(model_config_window(&config, 0), 4096);
    assert_int_equal(model_config_window(&config, 3), 4096);
    config = parse(CONFIG("MistralForCausalLM", ",\"sliding_window\":null"));
    assert_int_equal(model_config_window(&config, 0), 0);
    config = parse(CONFIG("MistralForCausalLM", ",\"sliding_window\":12"));
    assert_int_equal(model_config_window(&config, 2), 12);
}

/* Qwen's window counts only with use_sliding_window, from max_window_layers on or by layer_types. */
static void qwen_windows(void **state)
{
    (void)state;
    struct model_config config = parse(QWEN(",\"sliding_window\":64"));
    assert_true(config.qkv_bias && !config.o_bias && !config.qk_norm);
    assert_int_equal(config.eos_count, 0);
    for (uint32_t i = 0; i < 4; i++) { assert_int_equal(model_config_window(&config, i), 0); }
    config = parse(QWEN(",\"sliding_window\":64,\"use_sliding_window\":true"));
    for (uint32_t i = 0; i < 4; i++) { assert_int_equal(model_config_window(&config, i), 0); } /* from layer 28 on */
    config = parse(QWEN(",\"sliding_window\":64,\"use_sliding_window\":true,\"max_window_layers\":2"));
    for (uint32_t i = 0; i < 4; i++) { assert_int_equal(model_config_window(&config, i), i < 2 ? 0 : 64); }
    config = parse(QWEN(",\"sliding_window\":9,\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\","
                        "\"full_attention\",\"full_attention\",\"sliding_attention\"]"));
    assert_int_equal(model_config_window(&config, 0), 9);
    assert_int_equal(model_config_window(&config, 1), 0);
    assert_int_equal(model_config_window(&config, 3), 9);
}

/* Qwen3's head_dim is 128 when not spoken of, whatever hidden_size / heads is. */
static void qwen3_defaults(void **state)
{
    (void)state;
    struct model_config config = parse(CONFIG("Qwen3ForCausalLM", ",\"num_key_value_heads\":4"));
    assert_int_equal(config.head_dim, 128);
    assert_true(config.qk_norm && !config.qkv_bias && !config.o_bias);
    config = parse(CONFIG("Qwen3ForCausalLM", ",\"num_key_value_heads\":4,\"attention_bias\":true,\"head_dim\":6"));
    assert_true(config.qkv_bias && config.o_bias);
    assert_int_equal(config.head_dim, 6);
}

/* GPT-2 has its own names and takes the common ones; its scores may be unscaled or scaled by layer. */
static void gpt2_options(void **state)
{
    (void)state;
    struct model_config config = parse(GPT2(",\"n_inner\":null"));
    assert_int_equal(config.ffn_size, 256);
    assert_int_equal(config.context_tokens, 1024);
    assert_int_equal(config.kv_heads, 8);
    assert_int_equal(config.norm, MODEL_NORM_LAYER);
    assert_float_equal(config.norm_eps, 1e-5f, 0);
    assert_int_equal(config.activation, MODEL_GELU_TANH);
    assert_int_equal(config.rope, MODEL_ROPE_NONE);
    assert_true(config.embeddings_are_tied && config.qkv_bias && config.o_bias && config.ffn_bias);
    assert_false(config.ffn_is_gated);
    assert_int_equal(config.eos_count, 0); /* 50256 is outside this vocabulary */
    config = parse(GPT2(",\"n_inner\":100,\"scale_attn_weights\":false,\"scale_attn_by_inverse_layer_idx\":true,"
                        "\"activation_function\":\"gelu\",\"n_positions\":50,\"tie_word_embeddings\":false"));
    assert_int_equal(config.ffn_size, 100);
    assert_int_equal(config.context_tokens, 50);
    assert_int_equal(config.activation, MODEL_GELU_ERF);
    assert_false(config.embeddings_are_tied);
    assert_float_equal(model_config_attention_scale(&config, 3), 0.25f, 0);
    config = parse("{\"model_type\":\"gpt2\",\"vocab_size\":60000,\"hidden_size\":64,\"num_hidden_layers\":2,"
                   "\"num_attention_heads\":4,\"max_position_embeddings\":77}");
    assert_int_equal(config.architecture, MODEL_GPT2);
    assert_int_equal(config.layer_count, 2);
    assert_int_equal(config.context_tokens, 77);
    assert_int_equal(config.eos_tokens[0], 50256);
}

/* generation_config.json's end tokens replace config.json's; its sampling fields are handed on as they are. */
static void generation_config_applies(void **state)
{
    (void)state;
    struct model_config config = parse(CONFIG("LlamaForCausalLM", ",\"eos_token_id\":5"));
    struct generation_defaults defaults;
    struct diag diag = {{0}};
    const char *text = "{\"bos_token_id\":3,\"do_sample\":true,\"eos_token_id\":[10,11],\"temperature\":0.6,"
                       "\"top_k\":20,\"top_p\":0.95}";
    assert_false(failed(generation_config_parse("g", text, strlen(text), &diag, &config, &defaults)));
    assert_int_equal(config.eos_count, 2);
    assert_int_equal(config.eos_tokens[1], 11);
    assert_int_equal(config.bos_token, 3);
    assert_true(defaults.has_do_sample && defaults.do_sample && defaults.has_temperature && defaults.has_top_k);
    assert_float_equal(defaults.temperature, 0.6f, 0);
    assert_int_equal(defaults.top_k, 20);
    assert_float_equal(defaults.top_p, 0.95f, 0);
    assert_false(defaults.has_min_p || defaults.has_repetition_penalty);

    text = "{\"temperature\":null}";
    assert_false(failed(generation_config_parse("g", text, strlen(text), &diag, &config, &defaults)));
    assert_int_equal(config.eos_count, 2); /* silent: what was there stays */
    assert_false(defaults.has_temperature);

    text = "{\"eos_token_id\":[12],\"temperature\":\"hot\"}";
    status_t st = generation_config_parse("g.json", text, strlen(text), &diag, &config, &defaults);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "g.json: field temperature is \"hot\""));
    assert_int_equal(config.eos_count, 2); /* a refused file changes nothing */
}

/* A directory without config.json is an error that says what a model directory is. */
static void a_missing_file_is_named(void **state)
{
    (void)state;
    struct model_config config;
    struct diag diag = {{0}};
    status_t st = model_config_load("no/such/model", &diag, &config, NULL);
    assert_int_equal(st.code, ST_NOT_FOUND);
    assert_non_null(strstr(diag.text, "no/such/model/config.json"));
}

/* The configs of the shared data: three of published models, one of a classifier. */
static void published_configs(void **state)
{
    (void)state;
    const char *shared = shared_data();
    if (!shared) {
        print_message("skipped: no shared test data; set BATON_SHARED_DATA to its folder\n");
        skip();
    }
    char directory[512];
    struct model_config config;
    struct generation_defaults defaults;
    struct diag diag = {{0}};
    snprintf(directory, sizeof directory, "%s/tokenizers/llama-3.2-3b-instruct", shared);
    if (failed(model_config_load(directory, &diag, &config, &defaults))) { fail_msg("%s", diag.text); }
    assert_int_equal(config.rope, MODEL_ROPE_LLAMA3);
    assert_int_equal(config.rope_original_tokens, 8192);
    assert_int_equal(config.head_dim, 128);
    assert_int_equal(config.eos_count, 3);
    assert_true(defaults.has_temperature);
    snprintf(directory, sizeof directory, "%s/tokenizers/qwen3", shared);
    if (failed(model_config_load(directory, &diag, &config, &defaults))) { fail_msg("%s", diag.text); }
    assert_int_equal(config.architecture, MODEL_QWEN3);
    assert_int_equal(config.sliding_window, 0);
    snprintf(directory, sizeof directory, "%s/tokenizers/smollm-135m", shared);
    assert_int_equal(model_config_load(directory, &diag, &config, &defaults).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "LlamaForSequenceClassification"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals_name_field_and_value), cmocka_unit_test(rope_refusals),
        cmocka_unit_test(window_refusals),               cmocka_unit_test(a_missing_file_is_named),
        cmocka_unit_test(llama_defaults),                cmocka_unit_test(llama_options),
        cmocka_unit_test(rope_forms),                    cmocka_unit_test(mistral_windows),
        cmocka_unit_test(qwen_windows),                  cmocka_unit_test(qwen3_defaults),
        cmocka_unit_test(gpt2_options),                  cmocka_unit_test(generation_config_applies),
        cmocka_unit_test(published_configs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
