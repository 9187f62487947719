/* model_weights_storage: what the loader of weights knows between open and destroy; for model_weights.c, which packs
 * for the CPU, and device_weights.c, which fills a device. */
#ifndef BATON_MODEL_MODEL_WEIGHTS_STORAGE_H
#define BATON_MODEL_MODEL_WEIGHTS_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "model/model_tensors.h"
#include "model/safetensors.h"
#include "model/tensor_plan.h"
#include "model/weight_pack.h"
#include "model/weight_source.h"

struct model_weights_storage {
    struct safetensors *checkpoint; /* NULL for dummy weights, and once all is filled */
    struct tensor_plan plan;
    struct weight_source *sources;     /* [plan.count] */
    struct weight_pack_item *items;    /* one for each destination of each matrix, in the plan's order */
    uint32_t *entry_first_item;        /* [plan.count]; of entries that are matrices */
    uint32_t item_count;
    uint32_t layer_count;
    void *packed;                      /* all matrices: mapped from a pack file, or memory of our own */
    bool packed_is_mapped;
    size_t packed_bytes;
    void *vectors;                     /* all others */
    size_t vectors_bytes;
    struct weight_pack_saver *saver;

    struct kernels *kernels; /* whose device holds everything; NULL: none does */
    void *device;
    size_t device_bytes;
};

/* Matrices are packed; the table of positions is read by row and added, so it stays as it is. */
bool model_weights_entry_is_matrix(const struct tensor_plan_entry *entry, const struct model_weights *weights);

/* Rows and columns of one destination: [out][in]; of a vector 1 and its length. */
void model_weights_dest_shape(const struct tensor_plan_entry *entry, uint32_t *ret_rows, uint32_t *ret_cols);

#endif
