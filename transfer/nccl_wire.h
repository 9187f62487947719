/* nccl_wire: the bytes of the nccl cable's offer and messages: written, and read from foreign bytes.
 * Thread:  any; pure.
 * Memory:  none; what is read is copied.
 *
 * Little-endian. The offer goes in D's hello, the rest as messages of the cable, all on the link. Each begins with a
 * head of u32 "BNCL", u16 version, u16 kind, u64 gen; gen numbers the pairs of a link, is chosen by P and grows.
 *   offer    identity, nccl version, device[16]; kind and gen 0                     D -> P
 *   open     identity, nccl version, slots, bytes of a slot, what lies in one       P -> D
 *   opened                                      the pair may be made                D -> P
 *   denied   u32 code, u32 retry_ms, text       or not now                          D -> P
 *   id       128 bytes, NCCL's own              where the ranks meet                P -> D
 *   up                                          this rank is                        both
 *   send     u32 slot, frame, crc[count]        gathered; may it come?              P -> D
 *   ready    u32 slot                           it may: D's pair has the receive    D -> P
 *   refused  u32 slot                           no grant takes it; the slot is free D -> P
 *   close                                       the pair idles and its room is needed  both
 *   broken   u32 code, text                                                         both */
#ifndef BATON_TRANSFER_NCCL_WIRE_H
#define BATON_TRANSFER_NCCL_WIRE_H

#include <stdbool.h>

#include "transfer/nccl_abi.h"
#include "transfer/transfer.h"

#define NCCL_WIRE_MAGIC 0x4c434e42u
#define NCCL_WIRE_VERSION 1u
#define NCCL_WIRE_TEXT_CHARS_MAX 200u
#define NCCL_WIRE_OFFER_BYTES 48u

enum nccl_wire_kind {
    NCCL_WIRE_OPEN = 1, NCCL_WIRE_OPENED, NCCL_WIRE_DENIED, NCCL_WIRE_ID, NCCL_WIRE_UP, NCCL_WIRE_SEND,
    NCCL_WIRE_READY, NCCL_WIRE_REFUSED, NCCL_WIRE_CLOSE, NCCL_WIRE_BROKEN,
};

struct nccl_wire_offer {
    uint64_t identity; /* of this start of the process, the same in all its offers and opens */
    uint32_t nccl_version;
    uint8_t device[KV_MEMORY_ID_BYTES];
};

struct nccl_wire_open {
    uint64_t identity;
    uint32_t nccl_version;
    uint32_t slot_count;
    uint64_t slot_bytes;
    uint32_t dtype, order; /* enum dtype, enum kv_order: of the slices in a slot */
};

/* Each kind uses what it has above. */
struct nccl_wire_msg {
    enum nccl_wire_kind kind;
    uint64_t gen;
    struct nccl_wire_open open;
    uint8_t id[NCCL_ID_BYTES];
    uint32_t slot;
    struct kv_frame frame;              /* count 1 to KV_FRAME_BLOCKS_MAX */
    uint32_t crc[KV_FRAME_BLOCKS_MAX];
    uint32_t code, retry_ms;
    char text[NCCL_WIRE_TEXT_CHARS_MAX + 1]; /* cut when longer; read: fit for a log's quotes, control characters are '?' and " is ' */
};

void nccl_offer_write(const struct nccl_wire_offer *offer, struct kv_cable_offer *ret_offer);
bool nccl_offer_read(const void *bytes, size_t size, struct nccl_wire_offer *ret_offer);

/* ret_bytes  [KV_CABLE_MESSAGE_BYTES_MAX]. Returns the size. */
size_t nccl_wire_write(const struct nccl_wire_msg *msg, uint8_t *ret_bytes);
/* False: no such message, or a part of it is out of its range: ret_msg is of no meaning. */
bool nccl_wire_read(const void *bytes, size_t size, struct nccl_wire_msg *ret_msg);

#endif
