/* message_depth: how deep messages are nested in a message's bytes, looked at before they are unpacked.
 * Flow:    bytes from a router -> [message_depth] -> protobuf_c_message_unpack
 * Thread:  any; nothing is kept.
 *
 * protobuf_c_message_unpack() calls itself for each message within a message. A type that holds its own
 * kind, as TokenLogprob.alternatives does, takes a few bytes a level: a message of some megabytes ends the stack. */
#ifndef BATON_CLIENT_MESSAGE_DEPTH_H
#define BATON_CLIENT_MESSAGE_DEPTH_H

#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/diag.h"
#include "base/status.h"

/* The API's deepest answer, a Generate with alternatives, has 3 levels. */
#define MESSAGE_DEPTH_MAX 8u

/* protobuf_c_message_unpack() for foreign bytes.
 * ret_message  Returns owned: protobuf_c_message_free_unpacked()
 * Errors  DATA_LOSS (peer): not such a message, or more than MESSAGE_DEPTH_MAX in each other; diag says which.
 * Cost    the look ahead reads each field's head once. */
NODISCARD status_t message_unpack_shallow(const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes, size_t len,
                                          ProtobufCMessage **ret_message, struct diag *diag);

#endif
