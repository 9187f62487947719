/* decode_server: the decode node's role: decode_core on the node's real threads.
 * Flow:    node facts -> [decode_server] -> decode_core -> Attach, transfer, engine
 * Thread:  the node's core thread. */
#ifndef BATON_DECODE_NODE_DECODE_SERVER_H
#define BATON_DECODE_NODE_DECODE_SERVER_H

#include "node/node.h"

extern const struct node_role_ops decode_server_role;

#endif
