/* model_weights: every tensor the forward pass reads, in the layout it reads it.
 * Flow:    safetensors, or a seed -> [model_weights] -> forward
 * Thread:  loading on one thread; read-only afterwards.
 * Memory:  a matrix or vector stays in the mapped file where it lies there row-major [out][in] and
 *          aligned to its element. Copied are: GPT-2's Conv1D matrices ([in][out] in the file,
 *          transposed here), tensors that the file misaligns, and LayerNorm vectors (as f32). */
#ifndef BATON_MODEL_MODEL_WEIGHTS_H
#define BATON_MODEL_MODEL_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/dtype.h"
#include "base/status.h"
#include "model/model_config.h"

/* [rows][cols], row-major without gaps; a vector has one row. data NULL: the model has none. */
struct model_tensor {
    const void *data;
    enum dtype dtype;
    uint32_t rows;
    uint32_t cols;
};

struct model_layer {
    struct model_tensor attention_norm, attention_norm_bias; /* [hidden]; the bias with LayerNorm only */
    struct model_tensor q, k, v, o;                          /* [out][in] */
    struct model_tensor q_bias, k_bias, v_bias, o_bias;
    struct model_tensor q_norm, k_norm;                      /* [head_dim] */
    struct model_tensor ffn_norm, ffn_norm_bias;
    struct model_tensor gate, up, down; /* gate only where ffn_is_gated */
    struct model_tensor gate_bias, up_bias, down_bias;
};

struct model_weights {
    struct model_tensor embedding;  /* [vocab][hidden] */
    struct model_tensor positions;  /* [context][hidden]; GPT-2 only */
    struct model_tensor final_norm, final_norm_bias;
    struct model_tensor head;       /* [vocab][hidden]; the embedding itself where tied */
    struct model_layer *layers;     /* [layer_count] */
    uint64_t mapped_bytes;          /* of tensors used in place */
    uint64_t owned_bytes;           /* of copies and dummies */
    struct model_weights_storage *storage;
};

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
