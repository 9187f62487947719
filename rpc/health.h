/* health: the standard grpc.health.v1.Health of one server: Check, List, Watch.
 * Flow:    probes -> rpc -> [health] <- the process says what serves
 * Thread:  any.
 * Memory:  one entry per service name set, one per open Watch. */
#ifndef BATON_RPC_HEALTH_H
#define BATON_RPC_HEALTH_H

#include <stdbool.h>

#include "rpc/rpc.h"

struct rpc_health;

/* Registers the service on `server` (before its start). The server as a whole, the empty name,
 * starts as not serving.
 * ret_health  Returns owned; destroy it after the server.
 * Errors      those of rpc_server_register(). */
NODISCARD status_t rpc_health_create(struct rpc_server *server, struct rpc_health **ret_health, struct diag *diag);
void rpc_health_destroy(struct rpc_health *health); /* NULL is fine */

/* Sets a service's status and tells its watchers. service: "" is the server as a whole; a new
 * name is added (copied).
 * Errors   RESOURCE_EXHAUSTED (node): no memory. */
status_t rpc_health_set(struct rpc_health *health, const char *service, bool is_serving);

/* Everything is not serving from now on, later sets included, and open Watch calls end with
 * UNAVAILABLE, so that they do not hold up a drain. Before rpc_server_shutdown(). */
void rpc_health_drain(struct rpc_health *health);

#endif
