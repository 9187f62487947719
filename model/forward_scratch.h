/* forward_scratch: the activations of one step, and the constants beside them.
 * Flow:    forward -> [forward_scratch]
 * Thread:  the engine thread.
 * Memory:  one buffer of the kernels, taken in init.
 *
 * x and x_kept are f32, the tables of angles too, all others of the activations' dtype. q, k and v of a row lie side by
 * side, gate and up too, so that a device can make one product of each. Rows begin on 64 bytes; strides are elements. */
#ifndef BATON_MODEL_FORWARD_SCRATCH_H
#define BATON_MODEL_FORWARD_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/dtype.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "model/model_config.h"
#include "model/rope_table.h"

struct forward_scratch {
    struct kernels *kernels;
    void *memory; /* NULL: not taken */
    size_t bytes;
    size_t hidden_stride, qkv_stride, attended_stride, ffn_stride;
    size_t pair_count;
    uint32_t angle_rows; /* of cos and sin: those of a step, or on a device of the whole context */
    struct rope_table rope;

    float *x;         /* the residual stream */
    float *x_kept;    /* its rows that want logits, where others do not */
    void *normed;     /* input of the projections; after a run the final hidden states of the rows that want logits */
    void *q, *k, *v;  /* columns of one buffer */
    void *attended;
    void *gate, *up;  /* columns of one buffer; gate where ffn_is_gated */
    float *cos, *sin; /* [angle_rows][pair_count]; on a device filled in init, else by each step */
    void *ones;       /* [ffn]: the other factor where silu is not gated */
};

/* Bytes that init will take. */
size_t forward_scratch_plan_bytes(const struct model_config *config, uint32_t rows_max, enum dtype dtype, bool is_host);

/* Errors  RESOURCE_EXHAUSTED (node); INTERNAL (node): the device failed. fini may follow in any case.
 * Cost    on a device 2 us a position of the context. */
NODISCARD status_t forward_scratch_init(struct forward_scratch *scratch, const struct model_config *config,
                                        uint32_t rows_max, struct kernels *kernels, struct diag *diag);

/* Copes with zeroed memory. */
void forward_scratch_fini(struct forward_scratch *scratch);

#endif
