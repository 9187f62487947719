/* model_tensors: where every tensor of a model lies; plain data, which a plan points into, the loader
 * fills and the forward pass reads.
 * Flow:    tensor_plan (what goes where) -> model_weights (fills) -> [model_tensors] -> forward
 * Thread:  read-only once loaded.
 * Memory:  model_weights.h says who owns what the tensors point at. */
#ifndef BATON_MODEL_MODEL_TENSORS_H
#define BATON_MODEL_MODEL_TENSORS_H

#include <stdint.h>

#include "base/dtype.h"
#include "kernels/matrix.h"

/* data NULL: the model has none. */
struct model_tensor {
    const void *data;  /* a vector, or the table of positions: [rows][cols], row-major without gaps */
    enum dtype dtype;  /* of data; of a matrix, the checkpoint's */
    uint32_t rows;     /* 1 of a vector */
    uint32_t cols;
    struct kernels_matrix matrix; /* of [out][in] matrices: packed, or rows on a device; its data is `data` */
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
    uint64_t mapped_bytes;          /* of a pack file, used in place */
    uint64_t owned_bytes;           /* of all other tensors */
    uint64_t device_bytes;          /* of all tensors, where they are on a device */
    char note[320];                 /* where the matrices came from, for a log line */
    struct model_weights_storage *storage;
};

#endif
