/* model_weights: every tensor the forward pass reads, in the layout it reads it.
 * Flow:    tensor_plan -> weight_source (files, or a seed) -> [model_weights] -> forward;
 *          weight_pack keeps what was packed for the next start
 * Thread:  opening, filling and destroying on one thread, with helpers of its own; read-only afterwards.
 * Memory:  matrices in a mapped pack file, or packed into one block on 2 MiB pages; vectors in another; checkpoint
 *          files are mapped only between open and the end of fill, so that nothing is held twice. On a device:
 *          device_weights.h. */
#ifndef BATON_MODEL_MODEL_WEIGHTS_H
#define BATON_MODEL_MODEL_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/model_config.h"
#include "model/model_tensors.h"

/* A hash that is fed name, dtype, shape and bytes of each tensor; see model_fingerprint.h. */
struct model_fingerprint_state;

/* What --weights says. */
enum model_weight_format {
    MODEL_WEIGHTS_AUTO = 0, /* as the checkpoint has them */
    MODEL_WEIGHTS_BF16 = 1,
    MODEL_WEIGHTS_INT8 = 2, /* every matrix, one scale an output */
    MODEL_WEIGHTS_INT4 = 3, /* the layers' matrices, a scale for 32 inputs; embedding and head int8 */
};

struct model_weights_options {
    const char *directory;  /* of the model; borrowed during open and fill */
    bool is_dummy;          /* made up from dummy_seed: the directory needs config.json alone */
    uint64_t dummy_seed;
    enum model_weight_format format;
    uint32_t threads;       /* that pack and load; 0 is 1 */
    const char *pack_cache; /* "off" (NULL is the same), "auto" or a folder: see weight_pack_path() */
    bool is_for_device;     /* device_weights_fill() comes after open, and not model_weights_fill() */
};

/* Finds every tensor and checks it; adds it to the fingerprint. Dummy weights are fingerprinted by the
 * name of their generator and the seed, so that they need not be made to be known.
 * config       borrows until model_weights_fill() has returned
 * fingerprint  may be NULL
 * ret_weights  returns owned: model_weights_destroy(); tensors have shapes and dtypes, and no data yet
 * Errors   what safetensors_open() says; INVALID_ARGUMENT (node): weights of integers for a device; DATA_LOSS (node): a tensor is missing, or has another shape or
 *          dtype than the config asks for; diag names tensor, file, expected and found. */
NODISCARD status_t model_weights_open(const struct model_weights_options *options, const struct model_config *config,
                                      struct model_fingerprint_state *fingerprint, struct diag *diag,
                                      struct model_weights **ret_weights);

/* Loads the pack file of this fingerprint, or packs the tensors and has the file written in the background.
 * fingerprint  32 bytes
 * Errors   RESOURCE_EXHAUSTED (node). A pack file that will not do is no error: see `note`.
 * Cost     packing reads and writes every weight once, 2 GB/s a thread and more; loading as weight_pack_load(). */
NODISCARD status_t model_weights_fill(struct model_weights *weights, const struct model_weights_options *options,
                                      const uint8_t *fingerprint, struct diag *diag);

/* Waits until a pack file that is being written is there: for tests and for `--check`. */
void model_weights_settle(struct model_weights *weights);

/* Takes NULL. Ends a pack file that is being written. */
void model_weights_destroy(struct model_weights *weights);

#endif
