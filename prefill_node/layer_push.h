/* layer_push: the layer-wise push of one node's prompts, between engine and transfer.
 * Flow:    engine (a layer's KV is complete) -> [layer_push] -> kv_endpoint -> decode node
 * Thread:  begin, blocks, commit, abort, end on the core thread; layer on the engine thread; room on
 *          the transfer thread. One mutex: the engine and the transfer thread meet here once a
 *          layer, and a message each way would cost a copy of every block list.
 * Memory:  one table of jobs_max; one allocation for each push that waits for room, so at most
 *          layers * chunks of the open legs, and of their cached blocks layers for each 256.
 *
 * The endpoint takes a bounded number of pushes at a time. What it refuses waits here in
 * order; a commit waits behind its own pushes. */
#ifndef BATON_PREFILL_NODE_LAYER_PUSH_H
#define BATON_PREFILL_NODE_LAYER_PUSH_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"
#include "engine/step_plan.h"
#include "transfer/transfer.h"

struct layer_push;

/* endpoint may be NULL until layer_push_attach(); jobs_max bounds legs that are open at once. */
NODISCARD status_t layer_push_create(uint32_t jobs_max, struct layer_push **ret_push);
void layer_push_destroy(struct layer_push *push); /* takes NULL */
void layer_push_attach(struct layer_push *push, struct kv_endpoint *endpoint);

/* Opens the transfer of a leg by its ticket.
 * Errors  as kv_endpoint_send_begin; nothing is held then. */
NODISCARD status_t layer_push_begin(struct layer_push *push, struct leg_id leg, const uint8_t *ticket,
                                    size_t ticket_bytes, struct diag *diag);

/* Pushes the slices of one layer that the plan's spans complete, as of `mark` (kv/kv_memory.h). */
void layer_push_layer(struct layer_push *push, const struct step_plan *plan, uint32_t layer, uint64_t mark);

/* Pushes blocks that were final already, every layer of them; `first` is their first one's index in
 * the grant. Nothing happens where the leg is not open here. */
void layer_push_blocks(struct layer_push *push, struct leg_id leg, uint32_t layer_count, uint32_t first,
                       const uint32_t *blocks, uint32_t count);

/* All layers of all chunks were given to layer_push_layer; payload is copied.
 * Errors  INVALID_ARGUMENT (request): over KV_PAYLOAD_BYTES_MAX; RESOURCE_EXHAUSTED (request): no
 *         memory, or the endpoint's ring is full. Abort the leg then. */
NODISCARD status_t layer_push_commit(struct layer_push *push, struct leg_id leg, const uint8_t *payload,
                                     size_t payload_bytes);

/* Gives up; a final event follows from the endpoint. False: the leg is not open here. */
bool layer_push_abort(struct layer_push *push, struct leg_id leg);

/* The endpoint has taken a push: what waits may go. A commit that cannot go even now is turned
 * into an abort, so that a final event comes. */
void layer_push_room(struct layer_push *push);

/* The transfer's final event has come: forget the leg. True: it was open. */
bool layer_push_end(struct layer_push *push, struct leg_id leg);

#endif
