/* attach_client: the router's end of the Attach streams, one per node.
 * Flow:    nodes -> rpc threads -> the router's mailbox -> [attach_client] -> router_core, and back
 * Thread:  the router's core thread; its rpc callbacks only copy and post.
 * Memory:  one table of nodes_max; one copy of each message on its way to the core thread.
 *
 * A stream begins with the router's hello; the node's must come in time and fit: the role of
 * the list it is in, our protocol, the model's vocabulary and context, and the model hash and
 * block layout of the first node attached (the reference, until all are gone). A node that
 * does not fit is kept off with the difference in words, and asked again: it may have been
 * restarted. A stream that breaks is dialled again after 100 ms to 2 s. */
#ifndef BATON_ROUTER_ATTACH_CLIENT_H
#define BATON_ROUTER_ATTACH_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"
#include "router/node_address.h"
#include "rpc/rpc.h"

struct attach_client;

/* What an rpc thread has for the core thread. */
struct attach_post {
    uint32_t node;
    bool is_done;      /* the stream is over: bytes are its reason, in words */
    uint8_t code;      /* is_done: enum status_code */
    uint8_t *bytes;    /* malloc'd; attach_client_take() frees it */
    size_t byte_count;
};

/* Called on rpc threads; must take every post, and may wait for room. */
typedef void (*attach_post_fn)(void *user, const struct attach_post *post);

struct attach_client_config {
    struct rpc_runtime *runtime; /* held until destroy */
    struct rpc_tls tls;          /* its strings are held */
    uint32_t nodes_max;
    uint64_t router_boot_id;
    uint32_t vocab_size, context_tokens; /* of the model that the router serves */
    uint64_t hello_wait_ns;
    attach_post_fn post;
    void *post_user;
};

NODISCARD status_t attach_client_create(const struct attach_client_config *config, struct attach_client **ret_client);
/* Only when closed. Takes NULL. */
void attach_client_destroy(struct attach_client *client);

/* A node at a fixed address. It is dialled by the next tick. */
void attach_client_add(struct attach_client *client, const struct node_address *address);

/* What a name stands for now: new targets become nodes, those that are gone leave once their
 * stream is down.
 * targets  [count], Borrows */
void attach_client_resolved(struct attach_client *client, const struct node_address *name, uint32_t count,
                            const char (*targets)[NODE_TARGET_CHARS_MAX]);

enum attach_event {
    ATTACH_NOTHING,
    ATTACH_UP,      /* ret_msg is the NODE_HELLO of a node that fits */
    ATTACH_MESSAGE, /* ret_msg came from an attached node */
    ATTACH_DOWN,    /* an attached node's stream is over */
};

/* Takes the post's bytes. ret_msg's pointers are good until the next take. */
enum attach_event attach_client_take(struct attach_client *client, struct attach_post *post, uint64_t now_ns,
                                     struct ctl_msg *ret_msg);

/* To an attached node; to others nothing. A node whose queue is full loses its stream. */
void attach_client_send(struct attach_client *client, uint32_t node, const struct ctl_msg *msg);

/* Dials what is due and gives up on hellos that did not come. */
void attach_client_tick(struct attach_client *client, uint64_t now_ns);
uint64_t attach_client_deadline_ns(const struct attach_client *client);

/* Breaks all streams and dials none again; is_closed once the last DONE was taken. */
void attach_client_close(struct attach_client *client);
bool attach_client_is_closed(const struct attach_client *client);

/* One entry as people see it; strings are borrowed until the next call that changes it. */
struct attach_node {
    const char *name;    /* "" before the first hello */
    const char *address;
    enum node_role role; /* as configured */
    bool is_attached;
    const char *problem; /* "" when attached */
    uint64_t boot_epoch;
};

/* False: the handle is not in use. */
bool attach_client_node(const struct attach_client *client, uint32_t node, struct attach_node *ret_node);

/* Of the attached nodes; NULL while there is none. */
const uint8_t *attach_client_model_hash(const struct attach_client *client);

#endif
