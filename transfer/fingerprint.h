/* fingerprint: says in one value whether two nodes mean the same bytes by "a KV block".
 * Flow:    model + kv_layout + kernel set -> [fingerprint] -> ticket (hash), link hello (whole)
 * Thread:  any; a plain value.
 * Memory:  the caller's.
 *
 * Two nodes whose fingerprints differ never exchange a block: a cache written with another
 * layout, number format or kernel set reads as plausible numbers and wrong text. The hash
 * is compared first, before anything else of a peer is believed; the whole value is sent
 * once per link, so that a refusal can say which field differs.
 *
 * The exception is asked for by both: of two that say `converts` the dtype and the order of values may
 * differ, and the cable converts on the way. The bit itself is no part of "the same bytes". */
#ifndef BATON_TRANSFER_FINGERPRINT_H
#define BATON_TRANSFER_FINGERPRINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kv/kv_layout.h"

#define KV_FINGERPRINT_HASH_BYTES 32u
#define KV_KERNEL_SET_CHARS_MAX 31u

struct kv_fingerprint {
    uint8_t model_hash[32]; /* of config and weights; who makes it decides what it covers */
    struct kv_layout layout;
    uint32_t layout_version;                      /* KV_LAYOUT_VERSION of the writer */
    char kernel_set[KV_KERNEL_SET_CHARS_MAX + 1]; /* "cpu-f32-1": printable ASCII, NUL-ended */
    bool converts; /* blocks may come from, or go to, another dtype and order; zero: never */
};

/* The bytes that go over the wire; fixed size, little-endian, version byte first. */
#define KV_FINGERPRINT_WIRE_BYTES 89u

/* Fills a fingerprint for our own layout version. kernel_set longer than the field is cut. */
void kv_fingerprint_init(struct kv_fingerprint *ret_fingerprint, const uint8_t model_hash[32],
                         const struct kv_layout *layout, const char *kernel_set);

void kv_fingerprint_encode(const struct kv_fingerprint *fingerprint,
                           uint8_t ret_wire[KV_FINGERPRINT_WIRE_BYTES]);

/* Foreign bytes. Errors: INVALID_ARGUMENT (peer) for a wrong size, version, dtype, a zero or
 * absurd dimension, or a kernel set that is not printable; nothing is written then. */
NODISCARD status_t kv_fingerprint_decode(const void *wire, size_t wire_bytes, struct diag *diag,
                                         struct kv_fingerprint *ret_fingerprint);

/* SHA-256 of the wire bytes, `converts` left out. */
void kv_fingerprint_hash(const struct kv_fingerprint *fingerprint,
                         uint8_t ret_hash[KV_FINGERPRINT_HASH_BYTES]);

/* SHA-256 of what has to agree where both convert: all but dtype and order. */
void kv_fingerprint_convert_hash(const struct kv_fingerprint *fingerprint,
                                 uint8_t ret_hash[KV_FINGERPRINT_HASH_BYTES]);

enum kv_fit {
    KV_FIT_NONE,     /* they exchange no block */
    KV_FIT_SAME,     /* as they are */
    KV_FIT_CONVERTS, /* both convert, and only dtype or order differ */
};
enum kv_fit kv_fingerprint_fit(const struct kv_fingerprint *a, const struct kv_fingerprint *b);

/* Writes "block_tokens: ours 16, theirs 32; dtype: ours f32, theirs bf16" (empty if equal),
 * cut at text_bytes and NUL-ended. Returns how many fields differ. */
uint32_t kv_fingerprint_diff(const struct kv_fingerprint *ours, const struct kv_fingerprint *theirs,
                             char *text, size_t text_bytes);

#endif
