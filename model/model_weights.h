/* model_weights: every tensor the forward pass reads, in the layout it reads it.
 * Flow:    safetensors, or a seed -> [model_weights] -> forward
 * Thread:  loading on one thread; read-only afterwards.
 * Memory:  a matrix or vector stays in the mapped file where it lies there row-major [out][in] and
 *          aligned to its element. Copied are: GPT-2's Conv1D matrices ([in][out] in the file,
 *          transposed here), tensors that the file misaligns, and LayerNorm vectors (as f32). */
#ifndef BATON_MODEL_MODEL_WEIGHTS_H
#define BATON_MODEL_MODEL_WEIGHTS_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/model_config.h"
#include "model/model_tensors.h"

/* A hash that is fed name, dtype, shape and bytes of each tensor as it is loaded; see model_fingerprint.h. */
struct model_fingerprint_state;

/* Maps the checkpoint of a directory.
 * config       borrows
 * fingerprint  may be NULL
 * ret_weights  returns owned: model_weights_destroy()
 * Errors   what safetensors_open() says; DATA_LOSS (node): a tensor is missing, or has another shape or
 *          dtype than the config asks for; diag names tensor, file, expected and found. */
NODISCARD status_t model_weights_load(const char *directory, const struct model_config *config,
                                      struct model_fingerprint_state *fingerprint, struct diag *diag,
                                      struct model_weights **ret_weights);

/* bf16 weights from a fixed seed, scaled so that every product keeps the size of its input.
 * Cost     one pass of writing over all weights, about 1 GB/s on one core. */
NODISCARD status_t model_weights_dummy(const struct model_config *config, uint64_t seed,
                                       struct model_fingerprint_state *fingerprint, struct diag *diag,
                                       struct model_weights **ret_weights);

/* Takes NULL. */
void model_weights_destroy(struct model_weights *weights);

#endif
