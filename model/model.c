#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "model/device_weights.h"
#include "model/model_fingerprint.h"
#include "model/model_weights.h"

/* Any fixed number: every node of a cluster must make up the same weights. */
#define DUMMY_SEED UINT64_C(20220531)

_Static_assert(MODEL_FINGERPRINT_BYTES == FINGERPRINT_BYTES, "one hash, two names");

struct model {
    struct model_config config;
    struct generation_defaults defaults;
    struct model_weights *weights;
    uint8_t fingerprint[MODEL_FINGERPRINT_BYTES];
};

bool model_load_parse(const char *name, enum model_load *ret_load)
{
    if (strcmp(name, "files") == 0 || strcmp(name, "auto") == 0) {
        *ret_load = MODEL_LOAD_FILES;
        return true;
    }
    if (strcmp(name, "dummy") == 0) {
        *ret_load = MODEL_LOAD_DUMMY;
        return true;
    }
    return false;
}

bool model_weight_format_parse(const char *name, enum model_weight_format *ret_format)
{
    static const char *const names[] = {"auto", "bf16", "int8", "int4"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, names[i]) == 0) {
            *ret_format = (enum model_weight_format)i;
            return true;
        }
    }
    return false;
}

status_t model_create(const char *directory, enum model_load load, struct diag *diag, struct model **ret_model)
{
    return model_open(directory, &(struct model_options){.load = load}, diag, ret_model);
}

status_t model_open(const char *directory, const struct model_options *options, struct diag *diag, struct model **ret_model)
{
    struct model *model = calloc(1, sizeof *model);
    if (!model) {
        diag_set(diag, "%s: no memory", directory);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    struct model_fingerprint_state *fingerprint = NULL;
    status_t st = model_config_load(directory, diag, &model->config, &model->defaults);
    if (failed(st)) { goto fail; }
    st = model_fingerprint_begin(&model->config, diag, &fingerprint);
    if (failed(st)) { goto fail; }
    const struct model_weights_options weights = {.directory = directory, .is_dummy = options->load == MODEL_LOAD_DUMMY,
                                                  .dummy_seed = DUMMY_SEED, .format = options->weights,
                                                  .threads = options->threads, .pack_cache = options->pack_cache,
                                                  .is_for_device = options->is_for_device};
    st = model_weights_open(&weights, &model->config, fingerprint, diag, &model->weights);
    if (failed(st)) { goto fail; }
    st = model_fingerprint_end(fingerprint, diag, model->fingerprint);
    fingerprint = NULL;
    if (failed(st)) { goto fail; }
    if (!options->is_for_device) {
        st = model_weights_fill(model->weights, &weights, model->fingerprint, diag);
        if (failed(st)) { goto fail; }
    }
    *ret_model = model;
    return STATUS_OK;
fail:
    model_fingerprint_drop(fingerprint);
    model_destroy(model);
    return st;
}

void model_destroy(struct model *model)
{
    if (!model) { return; }
    model_weights_destroy(model->weights);
    free(model);
}

status_t model_to_device(struct model *model, struct kernels *kernels, uint32_t threads, struct diag *diag)
{
    return device_weights_fill(model->weights, kernels, threads, diag);
}

void model_off_device(struct model *model)
{
    if (model) { device_weights_drop(model->weights); }
}

enum dtype model_activation_dtype(const struct model *model)
{
    const enum kernels_weight format = model->weights->layers[0].q.matrix.format;
    return format <= KERNELS_WEIGHT_F16 ? (enum dtype)format : DTYPE_F32;
}

uint64_t model_device_bytes(const struct model *model) { return device_weights_bytes(model->weights); }

const struct model_config *model_get_config(const struct model *model) { return &model->config; }

const struct generation_defaults *model_get_generation_defaults(const struct model *model)
{
    return &model->defaults;
}

const struct model_weights *model_get_weights(const struct model *model) { return model->weights; }

enum dtype model_weight_dtype(const struct model *model) { return model->weights->layers[0].q.dtype; }

#define SUITS_BF16_BYTES_MIN (UINT64_C(256) << 20)

bool model_suits_bf16(const struct model *model)
{
    const struct model_weights *weights = model->weights;
    uint64_t elements = (uint64_t)weights->head.rows * weights->head.cols;
    for (uint32_t i = 0; i < model->config.layer_count; i++) {
        const struct model_layer *l = &weights->layers[i];
        const struct model_tensor *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof all / sizeof all[0]; j++) { elements += (uint64_t)all[j]->rows * all[j]->cols; }
    }
    return model_weight_dtype(model) == DTYPE_BF16 && elements * 2 >= SUITS_BF16_BYTES_MIN;
}

const uint8_t *model_fingerprint(const struct model *model) { return model->fingerprint; }

const char *model_weights_note(const struct model *model) { return model->weights->note; }

void model_settle(struct model *model) { model_weights_settle(model->weights); }

void model_memory(const struct model *model, uint64_t *ret_mapped_bytes, uint64_t *ret_owned_bytes)
{
    *ret_mapped_bytes = model->weights->mapped_bytes;
    *ret_owned_bytes = model->weights->owned_bytes;
}

/* A whole context of this many bytes stays in a core's cache: rounding would cost accuracy, and
 * near ties of a small model their order, and gain nothing. */
#define KV_F32_CONTEXT_BYTES_MAX (UINT64_C(4) << 20)

static bool kv_fits_f32(const struct model_config *config)
{
    uint64_t per_token = UINT64_C(2) * config->layer_count * config->kv_heads * config->head_dim * sizeof(float);
    return per_token <= KV_F32_CONTEXT_BYTES_MAX / config->context_tokens;
}

status_t model_kv_dtype(const struct model *model, const char *name, struct diag *diag, enum dtype *ret_dtype)
{
    if (strcmp(name, "auto") == 0) {
        const bool on_device = model->weights->layers[0].q.matrix.order == KERNELS_ORDER_ROWS;
        *ret_dtype = kv_fits_f32(&model->config) ? DTYPE_F32 : on_device ? model_activation_dtype(model) : model_weight_dtype(model);
        return STATUS_OK;
    }
    if (dtype_parse(strcmp(name, "fp8") == 0 ? "fp8_e4m3" : name, ret_dtype)) { return STATUS_OK; }
    diag_set(diag, "--kv-dtype is \"%s\"; it must be auto, f32, bf16, f16, int8 or fp8", name);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

status_t model_kv_layout(const struct model *model, uint32_t block_tokens, enum dtype dtype, struct diag *diag,
                         struct kv_layout *ret_layout)
{
    if (block_tokens != 16 && block_tokens != 32) {
        diag_set(diag, "a KV block of %u tokens is asked for; it must hold 16 or 32", block_tokens);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    *ret_layout = (struct kv_layout){
        .block_tokens = block_tokens,
        .layer_count = model->config.layer_count,
        .kv_heads = model->config.kv_heads,
        .head_dim = model->config.head_dim,
        .dtype = dtype,
    };
    return STATUS_OK;
}
