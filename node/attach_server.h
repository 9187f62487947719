/* attach_server: the node's end of the Attach streams, one per router.
 * Flow:    routers -> rpc threads -> [attach_server] -> the node's mailbox, and back
 * Thread:  callbacks on rpc threads; attach_server_send and _drop on the core thread.
 * Memory:  one table of routers_max; one copy of each message on its way to the core.
 *
 * The stream is the lease. Its first message is the router's hello; the answer is ours. A
 * router that sends what cannot be read, or reads so slowly that its queue fills, loses its
 * stream, and with it everything it held here. */
#ifndef BATON_NODE_ATTACH_SERVER_H
#define BATON_NODE_ATTACH_SERVER_H

#include <stdint.h>

#include "base/diag.h"
#include "base/mailbox.h"
#include "base/status.h"
#include "control/ctl_codec.h"
#include "rpc/rpc.h"

struct attach_server;

/* What the core thread finds in its mailbox from here. */
enum attach_post_kind { ATTACH_POST_UP, ATTACH_POST_DOWN, ATTACH_POST_BYTES };

struct attach_post {
    enum attach_post_kind kind;
    uint32_t router;     /* handle; used again only after its DOWN was taken and freed */
    uint8_t *bytes;      /* BYTES: malloc'd, the core thread frees */
    size_t byte_count;
};

/* Called on rpc threads. False: the mailbox is full; the stream is dropped. A DOWN must be
 * taken always. */
typedef bool (*attach_post_fn)(void *user, const struct attach_post *post);

/* hello  encoded NODE_HELLO, copied: sent as the first message of every stream */
NODISCARD status_t attach_server_create(uint32_t routers_max, const uint8_t *hello, size_t hello_bytes,
                                        attach_post_fn post, void *post_user, struct attach_server **ret_server);

/* Registers /baton.control.v1.NodeControl/Attach. Before rpc_server_start(). */
NODISCARD status_t attach_server_register(struct attach_server *server, struct rpc_server *rpc, struct diag *diag);

/* After the rpc server is destroyed. Takes NULL. */
void attach_server_destroy(struct attach_server *server);

/* Core thread. A full queue drops the stream; the DOWN comes through the mailbox. */
void attach_server_send(struct attach_server *server, uint32_t router, const uint8_t *bytes, size_t byte_count);

/* Core thread: breaks the stream of a router that sent nonsense. */
void attach_server_drop(struct attach_server *server, uint32_t router, const char *why);

/* Core thread, after it has handled DOWN: the handle may be given to another stream. */
void attach_server_forget(struct attach_server *server, uint32_t router);

#endif
