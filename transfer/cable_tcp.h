/* cable_tcp: any two processes that can reach each other. Our own frames over TCP, received
 * straight into the scattered blocks.
 * Flow:    P push -> header, checksums, then the slices out of the pool -> D's blocks
 * Thread:  the transfer thread; a name that must be looked up is so on a thread of its own.
 * Memory:  one connection per link; nothing per frame. Between a pool on a device and the wire lie buffers
 *          taken at open: cable_tcp_stage.c.
 *
 * The first bytes on a connection are the link's token; with certificates configured it is
 * TLS 1.3 below that, and both sides must show a certificate of the configured CA.
 * A frame's header is checked, and its grant looked up, before a byte of it is placed; what
 * has no live grant is read and thrown away. A slice's CRC32C is checked as it arrives. */
#ifndef BATON_TRANSFER_CABLE_TCP_H
#define BATON_TRANSFER_CABLE_TCP_H

#include "transfer/transfer.h"

extern const struct kv_cable_ops kv_cable_tcp;

/* The wire, little-endian; tests write it by hand.
 *   hello    u32 "BKVT", u32 version, token[32]                                     P -> D
 *   welcome  u32 "BKVT", u32 version                                                D -> P
 *   frame    u32 "BKVF", u32 count, xfer_id[16], u64 grant_epoch, u32 layer, u32 first,
 *            u32 slice_bytes, u32 check, u32 crc[count], slices                     P -> D
 * check is the CRC32C of the header before it and the crc array. */
#define TCP_HELLO_MAGIC 0x54564b42u
#define TCP_FRAME_MAGIC 0x46564b42u
#define TCP_VERSION 1u
#define TCP_HELLO_BYTES 40u
#define TCP_WELCOME_BYTES 8u
#define TCP_HEADER_BYTES 48u
#define TCP_HEAD_BYTES_MAX (TCP_HEADER_BYTES + 4u * KV_FRAME_BLOCKS_MAX)

/* Writes header and crc array of a frame; ret_head holds TCP_HEAD_BYTES_MAX. Returns its size. */
size_t tcp_frame_head_write(const struct kv_frame *frame, uint32_t slice_bytes, const uint32_t *crc, uint8_t *ret_head);

/* The first TCP_HEADER_BYTES of a foreign frame. False: not a frame, or of other slices. */
bool tcp_frame_header_read(const uint8_t header[TCP_HEADER_BYTES], uint32_t slice_bytes, struct kv_frame *ret_frame);
/* Whether the header and the crc array behind it are as they were written. */
bool tcp_frame_head_check(const uint8_t *head, uint32_t count);

#endif
