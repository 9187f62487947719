/* small_request: the requests of health and reflection, which hold little more than a name.
 * Flow:    on_message of health and reflection -> [small_request] -> a protobuf-c message
 * Thread:  any.
 * Memory:  the unpacked message. protobuf-c makes an entry of some 50 bytes of every two bytes
 *          that it does not know, so what is far longer than a name is refused unread. */
#ifndef BATON_RPC_SMALL_REQUEST_H
#define BATON_RPC_SMALL_REQUEST_H

#include <protobuf-c/protobuf-c.h>

#include "rpc/rpc.h"

#define SMALL_REQUEST_BYTES_MAX 8192u

/* Returns owned: protobuf_c_message_free_unpacked(). NULL: the bytes are no such message, and the
 * call was finished with INVALID_ARGUMENT, which names the message. bytes: Borrows. */
void *small_request_unpack(struct rpc_call *call, const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes,
                           size_t len);

#endif
