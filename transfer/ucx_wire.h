/* ucx_wire: the bytes of the ucx cable's offer and messages: written, and read from foreign bytes.
 * Thread:  any; pure.
 * Memory:  none; what is read points into the caller's bytes.
 *
 * Little-endian. The offer goes over the link, the rest as UCX active messages on the connection.
 *   offer    u32 "BKVU", u16 version, u16 rkey_bytes, u16 address_bytes, u16 0, u64 base, u64 pool_bytes,
 *            rkey, address                                                          D -> P, on the link
 *   hello    u32 "BKVU", u16 version, u16 address_bytes, token[32], address         P -> D
 *   welcome  u32 "BKVU", u16 version, u16 0                                         D -> P
 *   grant    u32 count, u32 check, u64 grant_epoch, u32 block[count]                D -> P
 *   forget   the same with count 0                                                  D -> P
 *   frame    as the head of a frame of the tcp cable; the slices have landed by then P -> D
 * rkey and address are UCX's own; check is the CRC32C of the rest.
 *
 * UCX reads its rkeys and addresses without being told their size. So they are kept in memory that goes
 * on in zeros, and come only from a peer that the link let in; a hostile one is not kept from crashing
 * us by this, a truncated or mixed-up one is. */
#ifndef BATON_TRANSFER_UCX_WIRE_H
#define BATON_TRANSFER_UCX_WIRE_H

#include <stdbool.h>

#include "transfer/transfer.h"

#define UCX_WIRE_MAGIC 0x55564b42u
#define UCX_WIRE_VERSION 1u
#define UCX_RKEY_BYTES_MAX 512u
#define UCX_ADDRESS_BYTES_MAX 1488u /* so that any offer fits into KV_OFFER_BYTES_MAX */
#define UCX_BLOB_TAIL_BYTES 4096u   /* zeros behind a foreign rkey or address */
#define UCX_OFFER_HEAD_BYTES 28u
#define UCX_HELLO_HEAD_BYTES 40u
#define UCX_WELCOME_BYTES 8u
#define UCX_GRANT_HEAD_BYTES 16u
_Static_assert(UCX_OFFER_HEAD_BYTES + UCX_RKEY_BYTES_MAX + UCX_ADDRESS_BYTES_MAX <= KV_OFFER_BYTES_MAX, "an offer fits");

enum ucx_message { UCX_MSG_HELLO = 1, UCX_MSG_WELCOME, UCX_MSG_GRANT, UCX_MSG_FRAME }; /* active message ids */

struct ucx_offer {
    uint64_t base, pool_bytes; /* D's pool in D's address space */
    const uint8_t *rkey, *address;
    uint32_t rkey_bytes, address_bytes;
};
struct ucx_hello {
    const uint8_t *token, *address;
    uint32_t address_bytes;
};
struct ucx_grant {
    uint64_t grant_epoch; /* D's, which gives no two grants the same */
    uint32_t count;       /* 0: forget it */
    const uint8_t *blocks; /* [count] u32 */
};

/* Whether some network device has registered the memory of a key that UCX packed. UCX packs one for memory
 * that none has, too, and carries puts to it as messages, which the receiver's CPU copies.
 * The form of a key is UCX's own, and the same from 1.19 to 1.22: u64 map of memory domains, u8 memory type, then
 * for each domain u8 bytes, key[bytes]; a domain that only copies within the host has a key of no bytes. What
 * does not read so, or is of another type, is not taken for registered. */
bool ucx_rkey_is_registered(const void *rkey, size_t size, int memory_type);

/* False: rkey or address do not fit. */
bool ucx_offer_write(const struct ucx_offer *offer, struct kv_cable_offer *ret_offer);
bool ucx_offer_read(const void *bytes, size_t size, struct ucx_offer *ret_offer);

/* ret_bytes  [UCX_HELLO_HEAD_BYTES + address_bytes]. Returns the size. */
size_t ucx_hello_write(const struct ucx_hello *hello, uint8_t *ret_bytes);
bool ucx_hello_read(const void *bytes, size_t size, struct ucx_hello *ret_hello);

void ucx_welcome_write(uint8_t ret_bytes[UCX_WELCOME_BYTES]);
bool ucx_welcome_read(const void *bytes, size_t size);

/* blocks     [count]
 * ret_bytes  [UCX_GRANT_HEAD_BYTES + 4 * count]. Returns the size. */
size_t ucx_grant_write(uint64_t grant_epoch, const uint32_t *blocks, uint32_t count, uint8_t *ret_bytes);
/* False also when a block is not below block_count. */
bool ucx_grant_read(const void *bytes, size_t size, uint32_t block_count, struct ucx_grant *ret_grant);

#endif
