/* weight_source: where the numbers of each tensor come from: a checkpoint's bytes, or a seed.
 * Flow:    tensor_plan, safetensors -> [weight_source] -> model_weights, which packs what comes out
 * Thread:  any; a source is read-only.
 * Memory:  rows stay in the mapped file where they lie there as they are wanted; else a block for the caller. */
#ifndef BATON_MODEL_WEIGHT_SOURCE_H
#define BATON_MODEL_WEIGHT_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/dtype.h"
#include "base/status.h"
#include "model/quant_matrix.h"
#include "model/safetensors.h"
#include "model/tensor_plan.h"

struct weight_source {
    const struct safetensors_tensor *tensor; /* NULL: made up from the seed */
    enum dtype file_dtype;
    enum dtype dtype; /* of a vector, as the forward pass sees it; of a matrix, file_dtype */
    uint64_t seed;
    bool is_quantized; /* `quant` has the codes, of which `tensor` is the first; rows and values are none */
    struct quant_matrix quant;
};

uint64_t weight_source_elements(const struct tensor_plan_entry *entry);

/* A plan entry's tensor, with the base model's prefix, or as checkpoints of the bare base model name it. */
const struct safetensors_tensor *weight_source_find(const struct safetensors *checkpoint, const char *prefix,
                                                    const struct tensor_plan_entry *entry);

/* The same, checked against what the config asks for.
 * Errors  DATA_LOSS (node): it is missing or has another shape or dtype; diag names tensor, file, both. */
NODISCARD status_t weight_source_resolve(const struct safetensors *checkpoint, const char *prefix,
                                         const struct tensor_plan_entry *entry, struct diag *diag,
                                         struct weight_source *ret_source);

/* A matrix that the file has as codes: see quant_matrix.h.
 * ret_found  false: it has none; nothing is written
 * Errors  DATA_LOSS (node). */
NODISCARD status_t weight_source_resolve_quantized(const struct safetensors *checkpoint, const struct quant_config *config,
                                                   const char *prefix, const struct tensor_plan_entry *entry, struct diag *diag,
                                                   bool *ret_found, struct weight_source *ret_source);

/* Made-up numbers: bf16, scaled so that a product of n_in terms keeps the size of its input; norm factors 1,
 * biases small. index is the entry's place in the plan: each has a stream of its own. */
#define WEIGHT_SOURCE_GENERATOR "baton dummy weights 1"
struct weight_source weight_source_made_up(const struct tensor_plan_entry *entry, uint64_t seed, uint32_t index);

/* All elements of a matrix as row-major [out][in] of source->file_dtype, any alignment.
 * ret_rows   in the mapped file, or in *ret_owned
 * ret_owned  returns owned: free(); NULL where nothing was made
 * Errors  RESOURCE_EXHAUSTED (node). */
NODISCARD status_t weight_source_rows(const struct tensor_plan_entry *entry, const struct weight_source *source,
                                      struct diag *diag, const void **ret_rows, void **ret_owned);

/* Rows row_first .. row_first + rows - 1 of the same, without gaps: what weight_source_rows() gives there.
 * ret_rows  [rows][n_in]
 * Cost      a copy; of made-up numbers about 1 GB/s; turned ones read a line of memory for an element or a few. */
void weight_source_read(const struct tensor_plan_entry *entry, const struct weight_source *source, uint32_t row_first,
                        uint32_t rows, void *ret_rows);

/* A vector or the table of positions, as source->dtype. ret_values  [weight_source_elements()], aligned to 4. */
void weight_source_values(const struct tensor_plan_entry *entry, const struct weight_source *source, void *ret_values);

#endif
