/* cable_shm: two processes of one host. P lends its pool, D copies out of it.
 * Flow:    P push -> descriptor over a Unix socket -> D copies into its own blocks -> done
 * Thread:  the transfer thread.
 * Memory:  one mapping of P's pool per link, read-only.
 *
 * P's pool is a memfd; its descriptor goes over the socket once. The socket stays open: its
 * hangup is how a death is seen, within milliseconds and also for a zombie. Both sides check
 * that the other runs as the same user (SO_PEERCRED), and D that P knows the link's token.
 * D checks each slice's CRC32C over the bytes that it wrote, so it does not matter what P does
 * to the source meanwhile. */
#ifndef BATON_TRANSFER_CABLE_SHM_H
#define BATON_TRANSFER_CABLE_SHM_H

#include "transfer/transfer.h"

extern const struct kv_cable_ops kv_cable_shm;

/* The packets, which tests write by hand. Little-endian; SOCK_SEQPACKET keeps their borders.
 *   hello       u32 magic, u32 1, token[32], u64 pool bytes; with P's memfd      P -> D
 *   welcome     u32 magic, u32 2                                                  D -> P
 *   descriptor  u32 magic, u32 3, xfer_id[16], u64 grant_epoch, u32 layer, u32 first,
 *               u32 count, u32 block[count], u32 crc[count]                       P -> D
 *   done        u32 magic, u32 4, u32 how many more descriptors are done         D -> P */
#define SHM_MAGIC 0x424b5653u
enum shm_packet { SHM_HELLO = 1, SHM_WELCOME = 2, SHM_DESCRIPTOR = 3, SHM_DONE = 4 };
#define SHM_HELLO_BYTES 48u
#define SHM_DESCRIPTOR_HEAD_BYTES 44u
#define SHM_PACKET_BYTES_MAX (SHM_DESCRIPTOR_HEAD_BYTES + 8u * KV_FRAME_BLOCKS_MAX)

#endif
