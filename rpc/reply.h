/* reply: packs a protobuf-c message straight into the buffer that gRPC sends.
 * Flow:    a service's answer -> [reply] -> rpc_call_send_buffer()
 * Thread:  any. Memory: one buffer per message. */
#ifndef BATON_RPC_REPLY_H
#define BATON_RPC_REPLY_H

#include <protobuf-c/protobuf-c.h>

#include "rpc/rpc.h"

/* Sends one message. message: Borrows. Errors: those of rpc_call_send_buffer(); no memory. */
NODISCARD status_t reply_send(struct rpc_call *call, const ProtobufCMessage *message);

/* Sends the one message of a unary answer and finishes with OK; where it cannot be queued,
 * finishes with that status. */
void reply_last(struct rpc_call *call, const ProtobufCMessage *message);

/* An on_half_close for unary methods: no request came. Where one came the call is finished
 * already, and this does nothing. */
void reply_no_message(void *user, struct rpc_call *call);

#endif
