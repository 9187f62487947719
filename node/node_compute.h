/* node_compute: what a node computes with, opened as the flags say: model, kernels, KV pool.
 * Flow:    node start-up -> [node_compute] -> engine, transfer, tiers
 * Thread:  start-up and shutdown only.
 * Memory:  the weights, which a device gets a copy of, and the pool.
 *
 * On a device: the model is opened without packing, the kernels for the dtype that its weights will
 * have there; then comes the plan, and only then do the weights go to the device; the KV blocks are in the kernels'
 * order, and the pool is the device's memory, which the rest of the node reaches through pool.memory alone. */
#ifndef BATON_NODE_NODE_COMPUTE_H
#define BATON_NODE_NODE_COMPUTE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "kv/kv_layout.h"
#include "model/model.h"
#include "node/node_config.h"
#include "transfer/transfer.h"

struct node_compute {
    struct model *model;
    struct kernels *kernels;
    struct kv_layout layout;
    uint32_t block_count;         /* 0 before node_compute_plan */
    struct kv_endpoint_pool pool; /* of block_count blocks; base NULL before node_compute_take_pool */
};

/* Model, kernels and the blocks' layout. On failure close takes what is there.
 * Errors   what model_open and kernels_create say; INVALID_ARGUMENT (node): a word that a flag does not take. diag
 *          names the flag. */
NODISCARD status_t node_compute_open(const struct node_config *config, struct diag *diag, struct node_compute *compute);

/* How many blocks the pool has, and on a device whether everything will fit, logged as device_plan. Takes nothing.
 * engine_bytes  what the engine will take (engine_memory_bytes)
 * Errors   INVALID_ARGUMENT (node): --kv-memory for less than two blocks, or auto leaves no room for two;
 *          RESOURCE_EXHAUSTED, INTERNAL (node): the device. diag names the flag. */
NODISCARD status_t node_compute_plan(const struct node_config *config, uint64_t engine_bytes, struct diag *diag,
                                     struct node_compute *compute);

/* Brings the weights to where they are computed with: to the device, if there is one.
 * Errors   what model_to_device says. */
NODISCARD status_t node_compute_load(const struct node_config *config, struct diag *diag, struct node_compute *compute);

/* Errors   RESOURCE_EXHAUSTED (node), INTERNAL (node); diag names --kv-memory. */
NODISCARD status_t node_compute_take_pool(struct node_compute *compute, struct diag *diag);

/* After engine, endpoint and tiers. Takes one that is zeroed or half open. */
void node_compute_close(struct node_compute *compute);

/* Whether weights and pool lie in memory of a device. */
bool node_compute_is_on_device(const struct node_compute *compute);

static inline uint64_t node_compute_pool_bytes(const struct node_compute *compute)
{
    return compute->block_count * (uint64_t)kv_layout_block_bytes(&compute->layout);
}

#endif
