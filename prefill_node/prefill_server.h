/* prefill_server: the prefill node's role: prefill_core on the node's real threads.
 * Flow:    node facts -> [prefill_server] -> prefill_core -> Attach, engine, layer push
 * Thread:  the node's core thread; on_layer on the engine thread; see send_table. */
#ifndef BATON_PREFILL_NODE_PREFILL_SERVER_H
#define BATON_PREFILL_NODE_PREFILL_SERVER_H

#include "node/node.h"

extern const struct node_role_ops prefill_server_role;

#endif
