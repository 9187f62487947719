/* kv_hash: the name of a full block by what it holds: its tokens and all tokens before them.
 * Flow:    tokens of a sequence -> [kv_hash] -> kv_cache, tier_index, kv_tier, the router's guess
 * Thread:  any; plain values.
 * Memory:  none.
 *
 * A chain: hash(block i) = SHA-256(hash(block i-1) | its tokens), cut to 128 bits; before the first
 * block stands the root, which differs by salt. Equal hashes mean equal tokens: a chain that
 * somebody could forge would hand one client another's KV, so it is a cryptographic hash. What the
 * model, its number formats and the layout are is not in it: a node has one of each, and a tier's
 * file carries the layout fingerprint.
 * Source: the block hashes of arXiv 2309.06180, section 4.4, and vLLM's automatic prefix caching. */
#ifndef BATON_KV_KV_HASH_H
#define BATON_KV_KV_HASH_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct kv_hash {
    uint8_t bytes[16];
};

/* The chain before any block. salt: 0 is shared by all; another value keeps its users apart. */
struct kv_hash kv_hash_root(uint64_t salt);

/* The name of the block that holds tokens[block_tokens] after `parent`. Cost about 200 ns. */
struct kv_hash kv_hash_next(struct kv_hash parent, const uint32_t *tokens, uint32_t block_tokens);

static inline bool kv_hash_equal(struct kv_hash a, struct kv_hash b) { return memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0; }

#endif
