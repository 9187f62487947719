#include "model/tensor_plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define ENTRIES_PER_LAYER 18u /* the CHECK in put() holds us to it */
#define ENTRIES_OUTSIDE 5u

struct planner {
    struct tensor_plan *plan;
    uint32_t room;
};

/* Appends an entry with one destination. cols 0: a vector of `rows`. */
__attribute__((format(printf, 6, 7))) static struct tensor_plan_entry *
put(struct planner *planner, enum tensor_role role, uint64_t rows, uint64_t cols, struct model_tensor *dest,
    const char *format, ...)
{
    CHECK(planner->plan->count < planner->room);
    struct tensor_plan_entry *entry = &planner->plan->entries[planner->plan->count++];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(entry->name, sizeof entry->name, format, args);
    va_end(args);
    CHECK(len > 0 && (size_t)len < sizeof entry->name);
    entry->is_in_base = true;
    entry->role = role;
    entry->rank = cols ? 2 : 1;
    entry->shape[0] = rows;
    entry->shape[1] = cols;
    entry->dest[0] = dest;
    entry->dest_count = 1;
    return entry;
}

static void put_split(struct planner *planner, enum tensor_role role, uint64_t rows, uint64_t cols,
                      struct model_layer *layer, bool is_bias, const char *name, uint32_t index)
{
    struct tensor_plan_entry *entry =
        put(planner, role, rows, cols, is_bias ? &layer->q_bias : &layer->q, "h.%u.%s", index, name);
    entry->dest[1] = is_bias ? &layer->k_bias : &layer->k;
    entry->dest[2] = is_bias ? &layer->v_bias : &layer->v;
    entry->dest_count = 3;
}

/* LlamaModel, MistralModel, Qwen2Model and Qwen3Model name alike; what one lacks the config turns off. */
static void plan_llama_like(struct planner *planner, const struct model_config *config, struct model_weights *weights)
{
    uint64_t hidden = config->hidden_size, ffn = config->ffn_size;
    uint64_t q_size = (uint64_t)config->q_heads * config->head_dim;
    uint64_t kv_size = (uint64_t)config->kv_heads * config->head_dim;
    put(planner, TENSOR_MATRIX, config->vocab_size, hidden, &weights->embedding, "embed_tokens.weight");
    for (uint32_t i = 0; i < config->layer_count; i++) {
        struct model_layer *layer = &weights->layers[i];
        put(planner, TENSOR_NORM, hidden, 0, &layer->attention_norm, "layers.%u.input_layernorm.weight", i);
        put(planner, TENSOR_MATRIX, q_size, hidden, &layer->q, "layers.%u.self_attn.q_proj.weight", i);
        put(planner, TENSOR_MATRIX, kv_size, hidden, &layer->k, "layers.%u.self_attn.k_proj.weight", i);
        put(planner, TENSOR_MATRIX, kv_size, hidden, &layer->v, "layers.%u.self_attn.v_proj.weight", i);
        put(planner, TENSOR_MATRIX, hidden, q_size, &layer->o, "layers.%u.self_attn.o_proj.weight", i);
        if (config->qkv_bias) {
            put(planner, TENSOR_BIAS, q_size, 0, &layer->q_bias, "layers.%u.self_attn.q_proj.bias", i);
            put(planner, TENSOR_BIAS, kv_size, 0, &layer->k_bias, "layers.%u.self_attn.k_proj.bias", i);
            put(planner, TENSOR_BIAS, kv_size, 0, &layer->v_bias, "layers.%u.self_attn.v_proj.bias", i);
        }
        if (config->o_bias) { put(planner, TENSOR_BIAS, hidden, 0, &layer->o_bias, "layers.%u.self_attn.o_proj.bias", i); }
        if (config->qk_norm) {
            put(planner, TENSOR_NORM, config->head_dim, 0, &layer->q_norm, "layers.%u.self_attn.q_norm.weight", i);
            put(planner, TENSOR_NORM, config->head_dim, 0, &layer->k_norm, "layers.%u.self_attn.k_norm.weight", i);
        }
        put(planner, TENSOR_NORM, hidden, 0, &layer->ffn_norm, "layers.%u.post_attention_layernorm.weight", i);
        put(planner, TENSOR_MATRIX, ffn, hidden, &layer->gate, "layers.%u.mlp.gate_proj.weight", i);
        put(planner, TENSOR_MATRIX, ffn, hidden, &layer->up, "layers.%u.mlp.up_proj.weight", i);
        put(planner, TENSOR_MATRIX, hidden, ffn, &layer->down, "layers.%u.mlp.down_proj.weight", i);
        if (config->ffn_bias) {
            put(planner, TENSOR_BIAS, ffn, 0, &layer->gate_bias, "layers.%u.mlp.gate_proj.bias", i);
            put(planner, TENSOR_BIAS, ffn, 0, &layer->up_bias, "layers.%u.mlp.up_proj.bias", i);
            put(planner, TENSOR_BIAS, hidden, 0, &layer->down_bias, "layers.%u.mlp.down_proj.bias", i);
        }
    }
    put(planner, TENSOR_NORM, hidden, 0, &weights->final_norm, "norm.weight");
}

static void plan_gpt2(struct planner *planner, const struct model_config *config, struct model_weights *weights)
{
    uint64_t hidden = config->hidden_size, ffn = config->ffn_size;
    put(planner, TENSOR_MATRIX, config->vocab_size, hidden, &weights->embedding, "wte.weight");
    put(planner, TENSOR_MATRIX, config->context_tokens, hidden, &weights->positions, "wpe.weight");
    for (uint32_t i = 0; i < config->layer_count; i++) {
        struct model_layer *layer = &weights->layers[i];
        put(planner, TENSOR_NORM_AS_F32, hidden, 0, &layer->attention_norm, "h.%u.ln_1.weight", i);
        put(planner, TENSOR_BIAS_AS_F32, hidden, 0, &layer->attention_norm_bias, "h.%u.ln_1.bias", i);
        put_split(planner, TENSOR_CONV1D, hidden, 3 * hidden, layer, false, "attn.c_attn.weight", i);
        put_split(planner, TENSOR_BIAS, 3 * hidden, 0, layer, true, "attn.c_attn.bias", i);
        put(planner, TENSOR_CONV1D, hidden, hidden, &layer->o, "h.%u.attn.c_proj.weight", i);
        put(planner, TENSOR_BIAS, hidden, 0, &layer->o_bias, "h.%u.attn.c_proj.bias", i);
        put(planner, TENSOR_NORM_AS_F32, hidden, 0, &layer->ffn_norm, "h.%u.ln_2.weight", i);
        put(planner, TENSOR_BIAS_AS_F32, hidden, 0, &layer->ffn_norm_bias, "h.%u.ln_2.bias", i);
        put(planner, TENSOR_CONV1D, hidden, ffn, &layer->up, "h.%u.mlp.c_fc.weight", i);
        put(planner, TENSOR_BIAS, ffn, 0, &layer->up_bias, "h.%u.mlp.c_fc.bias", i);
        put(planner, TENSOR_CONV1D, ffn, hidden, &layer->down, "h.%u.mlp.c_proj.weight", i);
        put(planner, TENSOR_BIAS, hidden, 0, &layer->down_bias, "h.%u.mlp.c_proj.bias", i);
    }
    put(planner, TENSOR_NORM_AS_F32, hidden, 0, &weights->final_norm, "ln_f.weight");
    put(planner, TENSOR_BIAS_AS_F32, hidden, 0, &weights->final_norm_bias, "ln_f.bias");
}

status_t tensor_plan_make(const struct model_config *config, struct model_weights *weights, struct diag *diag,
                          struct tensor_plan *ret_plan)
{
    struct tensor_plan plan = {0};
    struct planner planner = {.plan = &plan, .room = config->layer_count * ENTRIES_PER_LAYER + ENTRIES_OUTSIDE};
    plan.entries = calloc(planner.room, sizeof *plan.entries);
    if (!plan.entries) {
        diag_set(diag, "no memory for a list of %u tensors", planner.room);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    if (config->architecture == MODEL_GPT2) {
        plan.prefix = "transformer.";
        plan_gpt2(&planner, config, weights);
    } else {
        plan.prefix = "model.";
        plan_llama_like(&planner, config, weights);
    }
    if (!config->embeddings_are_tied) {
        put(&planner, TENSOR_MATRIX, config->vocab_size, config->hidden_size, &weights->head, "lm_head.weight")
            ->is_in_base = false;
    }
    *ret_plan = plan;
    return STATUS_OK;
}
