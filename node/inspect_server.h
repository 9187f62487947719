/* inspect_server: the unary call NodeControl/Inspect, by which an operator sees a node's KV cache.
 * Flow:    baton kv -> rpc thread -> [inspect_server] -> mailbox -> core thread: inspect_answer -> reply
 * Thread:  requests on rpc threads; inspect_answer on the core thread, which owns what is shown.
 * Memory:  the answer, until it is packed. */
#ifndef BATON_NODE_INSPECT_SERVER_H
#define BATON_NODE_INSPECT_SERVER_H

#include <stdbool.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"
#include "kv/kv_tier.h"
#include "rpc/rpc.h"
#include "sched/inspect.h"

struct inspect_server;

/* One request, with a reference to its call that inspect_answer or inspect_drop gives back. */
struct inspect_post {
    struct rpc_call *call;
    bool with_blocks;
};

/* On an rpc thread. False: no room; the call is refused. */
typedef bool (*inspect_post_fn)(void *user, const struct inspect_post *post);

NODISCARD status_t inspect_server_create(inspect_post_fn post, void *user, struct inspect_server **ret_server);
NODISCARD status_t inspect_server_register(struct inspect_server *server, struct rpc_server *rpc, struct diag *diag);
void inspect_server_destroy(struct inspect_server *server); /* after the rpc server; takes NULL */

/* What is shown beside the core's own. */
struct inspect_about {
    const char *name, *role, *model; /* borrows */
    uint32_t block_tokens;
    uint64_t block_bytes;
    uint64_t boot_epoch;
    const struct kv_tier_stats *tiers; /* NULL: none */
};

/* What only the role's core knows; since boot. */
struct node_cache_numbers {
    uint64_t blocks_published, blocks_taken, blocks_evicted; /* of the prefix cache; taken: by whom was admitted */
    uint64_t tier_tokens_loaded;
    uint64_t loads_chosen, loads_declined; /* prefixes in a tier: loaded; computed again, because that was cheaper */
};

/* Of the role: fills its argument and calls visit for each holder of blocks. */
typedef void (*node_inspect_fn)(void *role, struct node_cache_numbers *ret_numbers, inspect_fn visit, void *user);

/* Sends the answer and lets go of the call. load: of the same moment. */
void inspect_answer(const struct inspect_post *post, const struct inspect_about *about, const struct ctl_load *load,
                    node_inspect_fn inspect, void *role);

/* The node has ended first, and its rpc server with it, which ended the call. */
void inspect_drop(const struct inspect_post *post);

#endif
