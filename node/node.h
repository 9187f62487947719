/* node: what a prefill node and a decode node share: start-up, the core thread, shutdown.
 * Flow:    main -> [node]: model, pool, engine, transfer, rpc -> mailbox -> the role's core
 * Thread:  node_run is the main thread; one core thread runs the role; see REQUEST.md.
 * Memory:  planned, printed and taken before the node listens.
 *
 * A role (decode_node/decode_server.c, prefill_node/prefill_server.c) owns its pure core and
 * turns facts into its events and its actions into calls of the node. */
#ifndef BATON_NODE_NODE_H
#define BATON_NODE_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_codec.h"
#include "control/ctl_msg.h"
#include "engine/step_plan.h"
#include "kv/kv_layout.h"
#include "kv/kv_tier.h"
#include "model/model.h"
#include "node/inspect_server.h"
#include "node/node_config.h"
#include "transfer/transfer.h"

struct node;

enum node_fact_kind {
    NODE_FACT_ROUTER_UP,
    NODE_FACT_ROUTER_DOWN,
    NODE_FACT_MESSAGE, /* router, msg */
    NODE_FACT_STEP,    /* result */
    NODE_FACT_XFER,    /* xfer, a final event; its pointers are good during the call */
    NODE_FACT_TIER,    /* tier */
    NODE_FACT_TICK,
    NODE_FACT_DRAIN,
};

struct node_fact {
    enum node_fact_kind kind;
    uint64_t now_ns;
    uint32_t router;
    const struct ctl_msg *msg;
    const struct step_result *result;
    const struct kv_event *xfer;
    const struct kv_tier_event *tier;
};

/* What the role needs to size its core. */
struct node_shape {
    const struct node_config *config;
    const struct model_config *model;
    struct kv_layout layout;
    uint32_t block_count;
    uint32_t tier_entries_max; /* of host and disk together; 0: there are no tiers */
};

struct node_totals {
    uint64_t prompt_tokens, generation_tokens;
    uint64_t preemptions, swaps, slot_preemptions; /* swaps among the preemptions; slots given up alone beside them */
    uint64_t loads_chosen, loads_declined, tier_tokens_loaded, load_predicted_ns, load_actual_ns; /* of the KV tiers */
    uint64_t legs_finished, legs_failed, legs_cancelled, legs_refused, late_messages, steps;
    uint32_t legs;
    bool idle; /* nothing held, nothing in flight */
};

struct node_role_ops {
    enum node_role role;
    const char *name; /* "prefill", "decode" */
    uint32_t slot_count_of_batch; /* sampler slots per --batch-max: 1 */
    status_t (*create)(struct node *node, const struct node_shape *shape, void **ret_role, struct diag *diag);
    void (*destroy)(void *role);
    /* Core thread. Errors: SCOPE_NODE only; the node drains and exits. */
    status_t (*on_fact)(void *role, const struct node_fact *fact);
    uint64_t (*deadline_ns)(void *role);
    void (*report)(void *role, struct ctl_load *ret_load, struct node_totals *ret_totals);
    /* Core thread: what `baton kv` shows. NULL: the call is not served. */
    node_inspect_fn inspect;
    /* Engine thread; NULL: nothing to do per layer. The layer's KV is in the blocks after `mark`
     * (kernels_mark; 0: it is there now). */
    void (*on_layer)(void *role, const struct step_plan *plan, uint32_t layer, uint64_t mark);
    /* Transfer thread, every event; true: it is final, hand it to on_fact as well. */
    bool (*on_xfer)(void *role, const struct kv_event *event);
};

/* main() of a node: flags, --help and --print-config, then node_run. */
int node_main(int argc, char **argv, const struct node_role_ops *ops);

/* Runs a node until SIGTERM or SIGINT has drained it, or something of SCOPE_NODE failed.
 * Returns the process's exit status; what went wrong is on standard error. */
int node_run(const struct node_config *config, const struct node_role_ops *ops);

/* --- for roles, on the core thread */

void node_send(struct node *node, uint32_t router, const struct ctl_msg *msg);
void node_step(struct node *node, const struct step_plan *plan);
struct kv_endpoint *node_endpoint(struct node *node);

/* Only with tier_entries_max > 0. Each comes back as one NODE_FACT_TIER with its tag; the block is
 * read, or written, until then. */
void node_tier_store(struct node *node, struct kv_hash hash, uint32_t block, uint64_t tag);
void node_tier_load(struct node *node, struct kv_hash hash, uint32_t block, uint64_t tag);

struct ctl_codec *node_codec(struct node *node);

/* The leg's id as the transfer's key. */
kv_xfer_id_t node_xfer_id(struct leg_id leg);
struct leg_id node_leg_id(kv_xfer_id_t id);

#endif
