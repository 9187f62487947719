/* model_config_fuzz: any bytes as config.json and as generation_config.json. What is accepted must be sane
 * enough to plan tensors, angles and a KV layout from. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"
#include "model/model_config.h"
#include "model/model_tensors.h"
#include "model/rope_table.h"
#include "model/tensor_plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_config(const struct model_config *config)
{
    CHECK(config->layer_count >= 1);
    CHECK(config->layer_count <= MODEL_LAYER_MAX);
    CHECK(config->q_heads % config->kv_heads == 0);
    CHECK(config->head_dim >= 2);
    CHECK(config->head_dim % 2 == 0);
    CHECK(config->hidden_size >= 1);
    CHECK(config->context_tokens >= 1);
    CHECK(config->eos_count <= MODEL_EOS_MAX);
    for (uint32_t i = 0; i < config->layer_count; i++) {
        CHECK(!config->layer_is_sliding[i] || model_config_window(config, i) > 0);
        CHECK(model_config_attention_scale(config, i) > 0.0f);
    }
    if (config->rope != MODEL_ROPE_NONE) {
        struct rope_table table;
        rope_table_init(&table, config);
    }
    struct model_weights weights = {.layers = calloc(config->layer_count, sizeof(struct model_layer))};
    struct tensor_plan plan;
    CHECK(weights.layers);
    CHECK(!failed(tensor_plan_make(config, &weights, NULL, &plan)));
    free(plan.entries);
    free(weights.layers);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config config;
    struct generation_defaults defaults;
    struct diag diag;
    if (!failed(model_config_parse("config.json", data, size, &diag, &config))) {
        check_config(&config);
        CHECK(failed(generation_config_parse("g", "{\"top_k\":-1}", 12, &diag, &config, &defaults)));
    }
    config = (struct model_config){.vocab_size = 100, .layer_count = 1};
    if (!failed(generation_config_parse("generation_config.json", data, size, &diag, &config, &defaults))) {
        CHECK(config.eos_count <= MODEL_EOS_MAX);
        for (uint32_t i = 0; i < config.eos_count; i++) { CHECK(config.eos_tokens[i] < 100); }
    }
    return 0;
}
