/* link_grpc: the link's stream as a gRPC call, /baton.transfer.v1.KvLink/Link.
 * Flow:    endpoint -> [link_grpc] -> rpc -> peer; and back
 * Thread:  the stream ops run on the transfer thread, the callbacks on rpc threads; what they
 *          share is the endpoint's pointer, under a mutex, so that detach is a clean cut.
 * Memory:  one small object per link, on the heap.
 *
 * Order in a node
 *   start  link_grpc_create, kv_endpoint_create (with link_grpc_stream_ops and the link_grpc
 *          as stream_context), link_grpc_attach, link_grpc_serve, rpc_server_start
 *   stop   link_grpc_detach, kv_endpoint_destroy, rpc_server_destroy, link_grpc_destroy,
 *          rpc_runtime_destroy */
#ifndef BATON_TRANSFER_LINK_GRPC_H
#define BATON_TRANSFER_LINK_GRPC_H

#include "rpc/rpc.h"
#include "transfer/transfer.h"

struct link_grpc;

#define LINK_GRPC_METHOD "/baton.transfer.v1.KvLink/Link"

/* runtime  Holds until link_grpc_destroy.
 * tls      for dialling; its strings: Borrows until link_grpc_destroy. NULL: plain text.
 * Errors   RESOURCE_EXHAUSTED (node). */
NODISCARD status_t link_grpc_create(struct rpc_runtime *runtime, const struct rpc_tls *tls, struct link_grpc **ret_link);

/* For kv_endpoint_config.stream. */
struct kv_stream_ops link_grpc_stream_ops(void);

/* Messages go to `endpoint` from now on. */
void link_grpc_attach(struct link_grpc *link, struct kv_endpoint *endpoint);
/* No call into the endpoint comes after this returns. */
void link_grpc_detach(struct link_grpc *link);

/* D: takes the streams that peers open. Before rpc_server_start. */
NODISCARD status_t link_grpc_serve(struct link_grpc *link, struct rpc_server *server, struct diag *diag);

/* Detached, and its endpoint destroyed. Takes NULL. Calls that are still ending finish by
 * themselves, before rpc_runtime_destroy returns. */
void link_grpc_destroy(struct link_grpc *link);

#endif
