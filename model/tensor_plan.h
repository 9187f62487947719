/* tensor_plan: which tensors a config asks a checkpoint for: name, shape, and where each one goes.
 * Flow:    model_config -> [tensor_plan] -> model_weights (from files, or made up)
 * Thread:  any.
 * Memory:  one array, the caller's to free.
 *
 * The only place that knows how the five architectures name their tensors. */
#ifndef BATON_MODEL_TENSOR_PLAN_H
#define BATON_MODEL_TENSOR_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/model_config.h"
#include "model/model_tensors.h"

enum tensor_role {
    TENSOR_MATRIX,      /* [out][in] */
    TENSOR_CONV1D,      /* [in][out] in the file: transposed when loaded */
    TENSOR_NORM,        /* the factor of a norm */
    TENSOR_NORM_AS_F32, /* a LayerNorm factor; its bias may be in another dtype, so both become f32 */
    TENSOR_BIAS,
    TENSOR_BIAS_AS_F32,
};

struct tensor_plan_entry {
    char name[96];      /* without the base model's prefix, which a checkpoint may leave out */
    bool is_in_base;    /* false: lm_head, which never has the prefix */
    enum tensor_role role;
    uint32_t rank;      /* 1 or 2 */
    uint64_t shape[2];  /* as the file has it */
    struct model_tensor *dest[3]; /* the rows are split evenly over dest_count: GPT-2's q, k and v in one */
    uint32_t dest_count;
};

struct tensor_plan {
    const char *prefix; /* "model." or "transformer." */
    uint32_t count;
    struct tensor_plan_entry *entries; /* [count] */
};

/* weights      entries point into it; its layers must be allocated
 * ret_plan     its entries are the caller's: free()
 * Errors   RESOURCE_EXHAUSTED (node). */
NODISCARD status_t tensor_plan_make(const struct model_config *config, struct model_weights *weights,
                                    struct diag *diag, struct tensor_plan *ret_plan);

#endif
