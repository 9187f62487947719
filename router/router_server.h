/* router_server: the router's core thread and everything it owns.
 * Flow:    rpc threads, resolver -> mailbox -> [router_server: router_core, attach_client,
 *          sessions] -> Attach streams, clients' streams
 * Thread:  one core thread; the functions here say who calls them.
 * Memory:  tables sized at create; a session per request.
 *
 * All that the core decides is carried out here: messages go to nodes, tokens to their
 * session, and sessions to their streams, once per turn of the loop, so that tokens that came
 * together leave in one message. Nothing here waits for a client or a node. */
#ifndef BATON_ROUTER_ROUTER_SERVER_H
#define BATON_ROUTER_ROUTER_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "router/attach_client.h"
#include "router/node_address.h"
#include "router/router_core.h"
#include "router/router_metrics.h"
#include "router/session.h"
#include "rpc/rpc.h"

struct router_server;

struct router_server_config {
    struct router_core_config core;       /* nodes_max, requests_max and the waits */
    struct attach_client_config attach;   /* post, post_user and nodes_max are set by the server */
    const struct node_address_list *nodes; /* held until destroy */
    uint64_t resolve_interval_ns;
    struct router_metrics *metrics;       /* held until destroy */
    /* Core thread: can the router take requests now? Called when that changes. */
    void (*on_serving)(void *user, bool is_serving);
    void *user;
};

/* Starts the core thread, which dials the nodes.
 * Errors  as its parts; RESOURCE_EXHAUSTED (node). */
NODISCARD status_t router_server_create(const struct router_server_config *config, struct router_server **ret_server,
                                        struct diag *diag);

/* Refuse new requests, finish what is accepted. Main thread. */
void router_server_drain(struct router_server *server);
/* After drain: nothing is left here. Any thread. */
bool router_server_is_idle(const struct router_server *server);

/* Ends the streams to the nodes and the core thread. Every client's gone must have been
 * called: shut the rpc server down first. Main thread. Takes NULL. */
void router_server_stop(struct router_server *server);
void router_server_destroy(struct router_server *server); /* stops; takes NULL */

/* --- one request; on the rpc thread of its call, in this order ------------------------------ */

/* Made by the service on accept; the server owns it from submit to gone. */
struct router_client {
    struct rpc_call *call;   /* a reference of ours */
    struct session *session; /* owned */
    uint64_t deadline_ns;    /* UINT64_MAX: none */
    uint32_t name_block_tokens;
    struct kv_hash *names;   /* owned; of the prompt's full blocks, or NULL: submit makes them */
    /* the core thread's */
    uint64_t handle;         /* 0: refused by the server */
    bool is_accepted, is_gone, core_is_done, is_finished, is_dirty, is_blocked, has_token;
    uint8_t code;            /* of the end */
    uint8_t own_code;        /* not 0: an error here, which goes before the core's */
    uint32_t retry_ms;
    uint64_t blocked_ns;
    char message[512];
};

/* Hands the client over.
 * Errors  RESOURCE_EXHAUSTED (request): the mailbox is full; the caller keeps it. */
NODISCARD status_t router_server_submit(struct router_server *server, struct router_client *client);
void router_server_writable(struct router_server *server, struct router_client *client);
/* From on_done: the server frees the client. */
void router_server_gone(struct router_server *server, struct router_client *client);
/* Frees one that was never submitted. */
void router_client_destroy(struct router_client *client);

/* --- questions about the state, answered on the core thread ---------------------------------- */

struct router_view {
    struct router_core_stats stats;
    uint64_t refused_here; /* before the core was asked */
    uint64_t start_ns, now_ns;
    bool is_serving, is_draining;
    const uint8_t *model_hash; /* NULL: no node */
    const struct router_core *core;
    const struct attach_client *nodes;
    uint32_t nodes_max;
};

typedef void (*router_answer_fn)(void *user, struct rpc_call *call, const struct router_view *view);

/* Calls `answer` on the core thread with a reference to `call`. False: the mailbox is full. */
bool router_server_ask(struct router_server *server, struct rpc_call *call, router_answer_fn answer, void *user);

/* A refusal that did not come to the core, for the books. Any thread. */
void router_server_count_refusal(struct router_server *server, uint8_t code);

#endif
