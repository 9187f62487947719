/* node_private: what the parts of a node share. Private to node/node*.c.
 * Flow:    node_run.c (signals, the process) -> node_open.c (what a node is made of) -> node.c (the core thread) */
#ifndef BATON_NODE_NODE_PRIVATE_H
#define BATON_NODE_NODE_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/diag.h"
#include "base/mailbox.h"
#include "base/status.h"
#include "engine/engine.h"
#include "node/attach_server.h"
#include "node/inspect_server.h"
#include "node/node.h"
#include "node/node_compute.h"
#include "node/node_metrics.h"
#include "node/tier_service.h"
#include "rpc/health.h"
#include "rpc/reflection.h"
#include "rpc/rpc.h"
#include "transfer/link_grpc.h"

enum post_kind { POST_ATTACH, POST_STEP, POST_XFER, POST_TIER, POST_INSPECT, POST_DRAIN, POST_STOP };

/* A transfer's final event, copied off the transfer thread. */
struct xfer_post {
    struct kv_event event;
    char text[256];
    char reason[160]; /* the whole sentence: why a better cable was not taken */
    uint8_t payload[];
};

struct post {
    enum post_kind kind;
    struct attach_post attach;
    const struct step_result *result;
    struct xfer_post *xfer;
    struct kv_tier_event tier;
    struct inspect_post inspect;
};

struct node {
    const struct node_config *config;
    const struct node_role_ops *ops;
    void *role;
    char name[128];
    char model_name[256]; /* the last part of --model */
    char advertise[300];
    char listen[300];
    uint64_t boot_epoch;

    struct node_compute compute;
    struct engine *engine;
    struct rpc_runtime *runtime;
    struct rpc_server *server;
    struct rpc_health *health;
    struct rpc_reflection *reflection;
    struct attach_server *attach;
    struct inspect_server *inspect;
    struct rpc_tls tls;
    struct link_grpc *link;
    struct kv_endpoint *endpoint;
    pthread_mutex_t wire_lock; /* guards wire_is_closed: a layer's push on the engine's thread, against the endpoint's end */
    bool wire_is_closed;
    struct tier_service *tiers; /* NULL: none */
    struct node_metrics *metrics;
    struct mailbox *mailbox;
    struct ctl_codec *codec;        /* core thread: what routers say and hear */
    struct ctl_codec *role_codec;   /* core thread: payloads of commits */
    bool *router_is_up;             /* [routers_max], core thread */

    pthread_t core_thread;
    bool core_runs;
    _Atomic bool core_failed;
    _Atomic bool core_idle; /* after a drain: nothing is left */
    pid_t main_pid;
};

/* ---- node.c */

/* Facts from other threads, each posted to the core thread; `user` is the node. */
bool node_on_attach_post(void *user, const struct attach_post *attach);
void node_on_step(void *user, const struct step_result *result);
void node_on_layer(void *user, const struct step_plan *plan, uint32_t layer, uint64_t mark);
void node_on_kv_event(void *user, const struct kv_event *event);
void node_on_tier_event(void *user, const struct kv_tier_event *event);
bool node_on_inspect(void *user, const struct inspect_post *inspect);

/* Starts the core thread. Errors: RESOURCE_EXHAUSTED (node). */
NODISCARD status_t node_core_start(struct node *node);
/* Ends it, where it runs. */
void node_core_stop(struct node *node);
/* Frees what was posted and never taken. */
void node_posts_drop(struct node *node);

/* ---- node_open.c */

/* Makes all that a node is, and serves. On failure node_close takes what is there. */
NODISCARD status_t node_open(struct node *node, struct diag *diag);
/* Takes one that is half open. False: a library does not let go of the device (kv_endpoint_destroy). Then all that may wait for
 * the device is left as it is, threads run, and the process must end by _exit(): an exit handler may wait for the device too. */
NODISCARD bool node_close(struct node *node);

/* What the flags say of UCX. */
struct kv_ucx_config node_ucx_config(const struct node_config *config);

#endif
