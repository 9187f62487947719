/* inference_api: baton.v1.Inference over rpc.
 * Flow:    clients -> rpc threads -> [inference_api] -> router_server -> clients
 * Thread:  callbacks on rpc threads: they unpack, render and tokenize there, and post. Answers
 *          about the router's state are made on the core thread.
 * Memory:  one small object per call. */
#ifndef BATON_ROUTER_INFERENCE_API_H
#define BATON_ROUTER_INFERENCE_API_H

#include "base/diag.h"
#include "base/status.h"
#include "router/router_server.h"
#include "router/served_model.h"
#include "rpc/rpc.h"

#define INFERENCE_SERVICE "baton.v1.Inference"

struct inference_api {
    const struct served_model *model; /* held */
    struct router_server *server;     /* held until the rpc server is destroyed */
};

/* Registers all methods on `rpc`. api: held until the rpc server is destroyed.
 * Errors  those of rpc_server_register(). */
NODISCARD status_t inference_api_register(struct inference_api *api, struct rpc_server *rpc, struct diag *diag);

/* --- inference_unary.c, for inference_api.c */
NODISCARD status_t inference_unary_register(struct inference_api *api, struct rpc_server *rpc, struct diag *diag);

#endif
