/* link_wire: link messages as bytes (baton.transfer.v1.LinkMessage).
 * Flow:    endpoint -> [link_wire] -> stream; and back, from a peer that may lie
 * Thread:  any; the scratch is the caller's.
 * Memory:  the caller's, of fixed size; no heap. */
#ifndef BATON_TRANSFER_LINK_WIRE_H
#define BATON_TRANSFER_LINK_WIRE_H

#include "transfer/link_msg.h"

/* A commit of 4096 layers and a full payload needs the most to unpack. */
#define LINK_WIRE_SCRATCH_BYTES (KV_PAYLOAD_BYTES_MAX + 64u * 1024u)

/* ret_bytes  [capacity]. Returns the size, or 0 if it does not fit: KV_LINK_MESSAGE_BYTES_MAX is
 * enough for every message whose payload is within KV_PAYLOAD_BYTES_MAX and whose layers are
 * within LINK_LAYERS_MAX. */
size_t link_wire_encode(const struct link_msg *msg, uint8_t *ret_bytes, size_t capacity);

/* scratch  [LINK_WIRE_SCRATCH_BYTES], aligned to 16; ret_msg borrows from it.
 * Errors: INVALID_ARGUMENT (peer) with a diag naming the field. */
NODISCARD status_t link_wire_decode(const void *bytes, size_t size, void *scratch, struct diag *diag,
                                    struct link_msg *ret_msg);

#endif
