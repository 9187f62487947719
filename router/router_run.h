/* router_run: the router as a process: opens everything, serves, drains, stops.
 * Flow:    main -> [router_run] -> router_server, inference_api, health, reflection, metrics
 * Thread:  the main thread.
 * Memory:  owns all parts. */
#ifndef BATON_ROUTER_ROUTER_RUN_H
#define BATON_ROUTER_ROUTER_RUN_H

#include "router/router_config.h"

struct router_process;

/* Everything up to serving; --check stops before anything listens.
 * config  held until close
 * Errors  INVALID_ARGUMENT (node) and others, diag says which flag or file. */
NODISCARD status_t router_open(const struct router_config *config, struct router_process **ret_process, struct diag *diag);

/* "127.0.0.1:41234": where clients are served. */
const char *router_listen_address(const struct router_process *process);

/* Health says not serving, new requests are refused, accepted ones go on. */
void router_drain(struct router_process *process);
bool router_is_idle(const struct router_process *process);
void router_close(struct router_process *process); /* takes NULL */

/* The process's life: until SIGTERM or SIGINT, then a drain. Returns the exit status. */
int router_run(const struct router_config *config);

#endif
