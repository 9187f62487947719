/* cable_shm: two processes of one host. P lends its pool, D copies out of it.
 * Flow:    P push -> descriptor over a Unix socket -> D copies into its own blocks -> done
 * Thread:  the transfer thread.
 * Memory:  one mapping of P's pool per link, read-only.
 *
 * Two forms, by where the two pools lie; both in host memory, or both on one device. Else another
 * cable is used, and the reason told.
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
/* The device form. P's export goes over the socket instead of a descriptor. P sums its slices on the device
 * once their mark has passed, records an event behind that, and only then tells D: so a copy never
 * waits for an event that a killed P would leave unreached. D copies on the device's own stream behind
 * the event and sums what has landed there; nothing of the slices passes through the CPU. The ends of
 * sums and copies come through a descriptor of the loop. A frame is named by its tag, a number below
 * SHM_DEVICE_WINDOW that is D's until D says done: copies end in any order.
 *   hello       u32 magic, u32 5, token[32], u64 pool bytes, u32 n, export[n]     P -> D
 *   descriptor  u32 magic, u32 6, xfer_id[16], u64 grant_epoch, u32 layer, u32 first,
 *               u32 count, u32 tag, u32 event, u32 block[count], u32 crc[count]    P -> D
 *   done        u32 magic, u32 7, u32 tag                                         D -> P
 * When a connection ends, P keeps its pool until D has closed its side, which D does after its last
 * copy: then nobody reads what P frees. */
#define SHM_MAGIC 0x424b5653u
enum shm_packet { SHM_HELLO = 1, SHM_WELCOME = 2, SHM_DESCRIPTOR = 3, SHM_DONE = 4,
                  SHM_DEVICE_HELLO = 5, SHM_DEVICE_DESCRIPTOR = 6, SHM_DEVICE_DONE = 7 };
#define SHM_HELLO_BYTES 48u
#define SHM_DESCRIPTOR_HEAD_BYTES 44u
#define SHM_DEVICE_WINDOW 8u
#define SHM_DEVICE_HELLO_HEAD_BYTES 52u
#define SHM_DEVICE_HELLO_BYTES_MAX (SHM_DEVICE_HELLO_HEAD_BYTES + KV_MEMORY_EXPORT_BYTES_MAX)
#define SHM_DEVICE_DESCRIPTOR_HEAD_BYTES 52u
#define SHM_PACKET_BYTES_MAX (SHM_DEVICE_DESCRIPTOR_HEAD_BYTES + 8u * KV_FRAME_BLOCKS_MAX) /* after the set-up */

#endif
