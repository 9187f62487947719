/* reflection: the standard server reflection, v1 and v1alpha, of one server.
 * Flow:    gRPC tools -> rpc -> [reflection] <- descriptor sets linked into the binary
 * Thread:  any.
 * Memory:  an index over the sets, made in create. */
#ifndef BATON_RPC_REFLECTION_H
#define BATON_RPC_REFLECTION_H

#include "rpc/descriptor_index.h"
#include "rpc/rpc.h"

struct rpc_reflection;

/* Registers both services on `server` (before its start). The services it lists are those
 * registered on the server; their files are looked for in `sets`, to which health and reflection
 * themselves are added.
 * sets            [count] Borrows the array, Holds the bytes until destroy
 * ret_reflection  Returns owned; destroy it after the server.
 * Errors          those of rpc_server_register() and descriptor_index_create(). */
NODISCARD status_t rpc_reflection_create(struct rpc_server *server, const struct descriptor_set *sets, size_t count,
                                         struct rpc_reflection **ret_reflection, struct diag *diag);
void rpc_reflection_destroy(struct rpc_reflection *reflection); /* NULL is fine */

#endif
