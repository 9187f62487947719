/* ticket: what a decode node gives out when it has reserved blocks for a prompt. Whoever
 * holds it may fill those blocks, once, through a link to that node, and nothing else.
 * Flow:    decode node mints -> router carries (never reads it) -> prefill node opens a link
 * Thread:  any; a plain value.
 * Memory:  the caller's; fixed size.
 *
 * The ticket holds a secret: it is sent only on the control streams and never logged. */
#ifndef BATON_TRANSFER_TICKET_H
#define BATON_TRANSFER_TICKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/diag.h"
#include "base/status.h"
#include "transfer/fingerprint.h"

/* Issued by the router; never an engine's own request number. */
typedef struct { uint8_t bytes[16]; } kv_xfer_id_t;

static inline bool kv_xfer_id_equal(kv_xfer_id_t a, kv_xfer_id_t b)
{
    return memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0;
}

#define KV_NODE_ID_CHARS_MAX 63u
#define KV_ADDRESS_CHARS_MAX 255u
#define KV_SECRET_BYTES 32u
#define KV_TICKET_BYTES_MAX 640u
/* 2^20 blocks of 16 tokens are 16 million tokens; anything above is a broken ticket. */
#define KV_TICKET_BLOCKS_MAX (1u << 20)

struct kv_ticket {
    char link_address[KV_ADDRESS_CHARS_MAX + 1]; /* host:port of the decode node's gRPC server */
    kv_xfer_id_t xfer_id;
    char node_id[KV_NODE_ID_CHARS_MAX + 1]; /* of the decode node */
    uint64_t boot_epoch;                    /* of the decode node; another boot refuses the ticket */
    uint64_t grant_epoch;                   /* counts the node's grants; a retry is a new one */
    uint8_t secret[KV_SECRET_BYTES];
    uint32_t block_count; /* blocks of the grant, at least 1 */
    uint32_t lease_ms;    /* the grant lapses after this long without progress */
    uint8_t fingerprint_hash[KV_FINGERPRINT_HASH_BYTES];
    bool converts; /* convert_hash is there: blocks of another dtype or order may come */
    uint8_t convert_hash[KV_FINGERPRINT_HASH_BYTES];
};

/* ret_bytes  [KV_TICKET_BYTES_MAX]; ret_size is how many were written. Cannot fail: the
 * fields are bounded and the largest ticket fits (asserted). */
void kv_ticket_encode(const struct kv_ticket *ticket, uint8_t *ret_bytes, size_t *ret_size);

/* Foreign bytes: takes no heap, reads nothing past size. Errors: INVALID_ARGUMENT (request)
 * with a diag that names the field; ret_ticket is written only on success. */
NODISCARD status_t kv_ticket_decode(const void *bytes, size_t size, struct diag *diag,
                                    struct kv_ticket *ret_ticket);

#endif
