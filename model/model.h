/* model: a Hugging Face directory, opened: its config, its packed weights and its fingerprint.
 * Flow:    --model=DIR -> [model] -> KV layout, forward pass, sampler, attach handshake
 * Thread:  create and destroy on one thread; everything between is read-only and any thread's.
 * Memory:  taken once, in create: see model_weights.h. */
#ifndef BATON_MODEL_MODEL_H
#define BATON_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/dtype.h"
#include "base/status.h"
#include "kv/kv_layout.h"
#include "model/model_config.h"
#include "model/model_weights.h"

struct model;
struct kernels;

#define MODEL_FINGERPRINT_BYTES 32u

enum model_load {
    MODEL_LOAD_FILES = 0, /* model.safetensors, or model.safetensors.index.json and its shards */
    MODEL_LOAD_DUMMY = 1, /* random bf16 weights of a fixed seed; the directory needs only config.json */
};

/* "files" (also "auto") or "dummy": the words of --load; false for any other. */
bool model_load_parse(const char *name, enum model_load *ret_load);

/* "auto", "bf16", "int8" or "int4": the words of --weights; false for any other. */
bool model_weight_format_parse(const char *name, enum model_weight_format *ret_format);

/* All zero: the files' own formats, one thread, no pack file. */
struct model_options {
    enum model_load load;
    enum model_weight_format weights;
    uint32_t threads;       /* that load and pack */
    const char *pack_cache; /* "off" (NULL is the same), "auto" or a folder: see weight_pack.h */
    bool is_for_device;     /* leave the weights where they are: model_to_device() comes next */
};

/* Opens a model directory: config, weights, fingerprint.
 * directory, options  borrow
 * ret_model  returns owned: model_destroy()
 * Errors   what model_config_load() and model_weights_open() say: NOT_FOUND, INVALID_ARGUMENT,
 *          DATA_LOSS (a damaged file), RESOURCE_EXHAUSTED (no memory), all of scope node; diag
 *          names the file and the field or tensor.
 * Cost     maps the files and hashes samples of them (see model_fingerprint); then reads the pack file, or
 *          packs every matrix; dummy weights are made first, about 1 GB/s a thread. */
NODISCARD status_t model_open(const char *directory, const struct model_options *options, struct diag *diag,
                              struct model **ret_model);

/* Brings the weights of a model that was opened for a device into the memory of that device: see device_weights.h.
 * threads  that read and convert
 * Holds kernels until model_off_device(), which comes before kernels_destroy().
 * Errors   RESOURCE_EXHAUSTED, INTERNAL (node). */
NODISCARD status_t model_to_device(struct model *model, struct kernels *kernels, uint32_t threads, struct diag *diag);

/* Frees that memory. Takes NULL, and models that are on no device. */
void model_off_device(struct model *model);

/* What a device must compute in: the dtype of the model's matrices as they will lie there. */
enum dtype model_activation_dtype(const struct model *model);

/* The same with all options zero but `load`. */
NODISCARD status_t model_create(const char *directory, enum model_load load, struct diag *diag,
                                struct model **ret_model);

/* Where the matrices came from, for a log line. Borrowed until model_destroy(). */
const char *model_weights_note(const struct model *model);

/* Waits for a pack file that is being written. */
void model_settle(struct model *model);

/* Takes NULL. Nothing may use the model's weights any more. */
void model_destroy(struct model *model);

/* Borrowed until model_destroy(). */
const struct model_config *model_get_config(const struct model *model);
const struct generation_defaults *model_get_generation_defaults(const struct model *model);
const struct model_weights *model_get_weights(const struct model *model);

/* The number format of the weight matrices (of the first layer's q projection where they differ). */
enum dtype model_weight_dtype(const struct model *model);

/* Whether activations rounded to bf16 are in keeping: the checkpoint's matrices are bf16, as it was trained
 * under such rounding, and take 256 MiB or more, where the speed is wanted. Small models stay exactly
 * as their f32 references are. */
bool model_suits_bf16(const struct model *model);

/* SHA-256 over the config's canonical fields and every used tensor's name, dtype, shape and bytes:
 * all bytes of a tensor up to 256 KiB; of a larger one the first and last 16 KiB and 4 KiB out of
 * every 4 MiB. So two nodes that loaded different weights differ here unless the weights differ
 * only outside the samples; the same weights in one file, in shards or with GPT-2's "transformer."
 * prefix agree. Weights that are not used (a tied head, buffers) do not count.
 * Returns  [MODEL_FINGERPRINT_BYTES], borrowed until model_destroy(). */
const uint8_t *model_fingerprint(const struct model *model);

/* Bytes of weights: mapped from a pack file (shared with the page cache and other processes of the host), and
 * held in memory of our own. */
void model_memory(const struct model *model, uint64_t *ret_mapped_bytes, uint64_t *ret_owned_bytes);

/* Bytes of weights on a device, known from model_open() on but for gaps of less than 256 bytes a tensor. */
uint64_t model_device_bytes(const struct model *model);

/* How --kv-dtype is said: "auto", "f32", "bf16", "f16", "int8", "fp8_e4m3" (or "fp8"). auto is the
 * weights' own format (on a device that of activations), or f32 where a whole context takes no more than 4 MiB so. */
NODISCARD status_t model_kv_dtype(const struct model *model, const char *name, struct diag *diag,
                                  enum dtype *ret_dtype);

/* The block layout of this model's KV cache.
 * block_tokens  16 or 32
 * Errors   INVALID_ARGUMENT (node): block_tokens is another number. */
NODISCARD status_t model_kv_layout(const struct model *model, uint32_t block_tokens, enum dtype dtype,
                                   struct diag *diag, struct kv_layout *ret_layout);

#endif
