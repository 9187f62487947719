/* peer: one side of a transfer in a process of its own, led by lines of text on its standard
 * input, answering on its standard output. The conformance driver starts them.
 *
 *   D   grant XFER COUNT LEASE_MS      -> ticket XFER HEX | refused XFER CODE
 *       revoke XFER
 *   P   send XFER SEED TICKET MODE     MODE full: all, then commit; half: half of the layers,
 *                                      then wait; -> begun XFER | refused XFER CODE TEXT
 *       abort XFER
 *   both stats                         -> stats key=value ...
 *        hold, unhold, lose, compute 0 | 1    of a fake device, which computes or stands still: see
 *                                      tests/kv_memory/fake_memory.h
 *        letgo 0                       calls of NCCL that hang go on, see tests/nccl/fake_nccl.h
 *        quit
 *   events  landed XFER good|bad BYTES; failed XFER CODE fenced|unfenced TEXT; fenced XFER;
 *           half XFER (the half is pushed); acked XFER CABLE BYTES NS REASON;
 *           send_failed XFER CODE TEXT
 *
 * XFER is 16 hex digits, the low half of the transfer's id. D fills every block that is free
 * with a canary and looks at it before it grants the block again; canary_bad counts wounds. */
#ifndef BATON_TESTS_CONFORMANCE_PEER_H
#define BATON_TESTS_CONFORMANCE_PEER_H

#include "transfer/transfer.h"

/* Of the nccl cable, which is on when cables= names it: channels pairs nccl_mib init_ms stall_ms, and faults=: what
 * FAKE_NCCL says in tests/nccl/fake_nccl.h.
 * from=DTYPE[-rows] to=DTYPE[-rows]: the layouts of P's pool and of D's, which both convert; P's slices are then numbers, and
 * D's have to be what tests/kv_memory/kv_convert.h makes of them. says=no: this side does not say that it does.
 * key=value arguments: role node epoch cables listen tcp layers heads dim blocks tls dead_ms, and
 * memory=fake device=N: a pool that the CPU cannot touch, on fake device N, 0 one that lends nothing */
int peer_main(int argc, char **argv);

kv_xfer_id_t peer_xfer_id(uint64_t xfer);
uint64_t peer_xfer_of(kv_xfer_id_t id);
/* What slice (layer, index) of transfer `seed` holds. */
void peer_slice_fill(uint8_t *slice, size_t bytes, uint64_t seed, uint32_t layer, uint32_t index);
bool peer_slice_matches(const uint8_t *slice, size_t bytes, uint64_t seed, uint32_t layer, uint32_t index);

size_t hex_decode(const char *text, uint8_t *ret_bytes, size_t capacity);
void hex_encode(const uint8_t *bytes, size_t size, char *ret_text);

#endif
