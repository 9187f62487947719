/* model: a Hugging Face directory, opened: its config, its mapped weights and its fingerprint.
 * Flow:    --model=DIR -> [model] -> KV layout, forward pass, sampler, attach handshake
 * Thread:  create and destroy on one thread; everything between is read-only and any thread's.
 * Memory:  weights stay in the mapped files where their layout allows (see model_weights.h);
 *          copies and dummy weights are taken once, in create. */
#ifndef BATON_MODEL_MODEL_H
#define BATON_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/dtype.h"
#include "base/status.h"
#include "kv/kv_layout.h"
#include "model/model_config.h"

struct model;
struct model_weights;

#define MODEL_FINGERPRINT_BYTES 32u

enum model_load {
    MODEL_LOAD_FILES = 0, /* model.safetensors, or model.safetensors.index.json and its shards */
    MODEL_LOAD_DUMMY = 1, /* random bf16 weights of a fixed seed; the directory needs only config.json */
};

/* "files" (also "auto") or "dummy": the words of --load; false for any other. */
bool model_load_parse(const char *name, enum model_load *ret_load);

/* Opens a model directory: config, weights, fingerprint.
 * directory  borrows
 * ret_model  returns owned: model_destroy()
 * Errors   what model_config_load() and model_weights_load() say: NOT_FOUND, INVALID_ARGUMENT,
 *          DATA_LOSS (a damaged file), RESOURCE_EXHAUSTED (no memory), all of scope node; diag
 *          names the file and the field or tensor.
 * Cost     maps the files and hashes samples of them (see model_fingerprint); GPT-2 transposes its
 *          matrices; dummy writes every weight once, about 1 GB/s. */
NODISCARD status_t model_create(const char *directory, enum model_load load, struct diag *diag,
                                struct model **ret_model);

/* Takes NULL. Nothing may use the model's weights any more. */
void model_destroy(struct model *model);

/* Borrowed until model_destroy(). */
const struct model_config *model_get_config(const struct model *model);
const struct generation_defaults *model_get_generation_defaults(const struct model *model);
const struct model_weights *model_get_weights(const struct model *model);

/* The number format of the weight matrices (of the first layer's q projection where they differ). */
enum dtype model_weight_dtype(const struct model *model);

/* SHA-256 over the config's canonical fields and every used tensor's name, dtype, shape and bytes:
 * all bytes of a tensor up to 256 KiB; of a larger one the first and last 16 KiB and 4 KiB out of
 * every 4 MiB. So two nodes that loaded different weights differ here unless the weights differ
 * only outside the samples; the same weights in one file, in shards or with GPT-2's "transformer."
 * prefix agree. Weights that are not used (a tied head, buffers) do not count.
 * Returns  [MODEL_FINGERPRINT_BYTES], borrowed until model_destroy(). */
const uint8_t *model_fingerprint(const struct model *model);

/* Bytes of weights: mapped from files (shared with the page cache), and held in memory of our own. */
void model_memory(const struct model *model, uint64_t *ret_mapped_bytes, uint64_t *ret_owned_bytes);

/* How --kv-dtype is said: "auto", "f32", "bf16", "f16". auto is the weights' own format,
 * or f32 where a whole context takes no more than 4 MiB so. */
NODISCARD status_t model_kv_dtype(const struct model *model, const char *name, struct diag *diag,
                                  enum dtype *ret_dtype);

/* The block layout of this model's KV cache.
 * block_tokens  16 or 32
 * Errors   INVALID_ARGUMENT (node): block_tokens is another number. */
NODISCARD status_t model_kv_layout(const struct model *model, uint32_t block_tokens, enum dtype dtype,
                                   struct diag *diag, struct kv_layout *ret_layout);

#endif
