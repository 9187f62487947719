/* engine: does the steps that a core plans: forward pass, sampling, log-probabilities.
 * Flow:    core -> step_plan -> [engine] -> step_result -> core
 * Thread:  engine_submit on the core thread; everything else on the engine's own thread, which
 *          owns the kernels and the samplers.
 * Memory:  taken in create: scratch of the forward pass, logits of a few rows, one sampler
 *          state per slot. A step allocates nothing. */
#ifndef BATON_ENGINE_ENGINE_H
#define BATON_ENGINE_ENGINE_H

#include "base/diag.h"
#include "base/status.h"
#include "engine/step_plan.h"
#include "kernels/kernels.h"
#include "kv/kv_layout.h"
#include "model/model.h"

struct engine;

struct engine_config {
    const struct model *model;   /* holds until destroy */
    struct kernels *kernels;     /* holds until destroy; nobody else may use it */
    struct kv_layout layout;
    void *kv_pool;               /* holds until destroy */
    uint32_t block_count;
    uint32_t rows_max;           /* of one step */
    uint32_t spans_max;
    uint32_t slot_count;         /* sampler slots */
    bool warms_up;               /* create runs empty steps of the sizes that will come, so that a device chooses its
                                  * algorithms and records its graphs then, and not in the first requests' steps;
                                  * nothing where kernels have no graphs */

    /* All on the engine thread. */
    /* K and V of the layer are written once kernels_mark() `mark` is reached; 0: already. May be NULL. */
    void (*on_layer)(void *user, const struct step_plan *plan, uint32_t layer, uint64_t mark);
    void (*on_step)(void *user, const struct step_result *result); /* result: until the next submit */
    void *user;
};

/* Bytes that create will take, for the memory plan. */
uint64_t engine_memory_bytes(const struct engine_config *config);

/* Errors  RESOURCE_EXHAUSTED (node), INVALID_ARGUMENT (node); diag says what. */
NODISCARD status_t engine_create(const struct engine_config *config, struct engine **ret_engine, struct diag *diag);

/* Waits for a step that runs, then ends the thread. Takes NULL. */
void engine_destroy(struct engine *engine);

/* Starts a step. At most one is in flight: its on_step must have come before the next. The
 * plan is held until then. */
void engine_submit(struct engine *engine, const struct step_plan *plan);

#endif
