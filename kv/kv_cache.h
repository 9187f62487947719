/* kv_cache: the blocks of one node, which outlive their sequences and are found again by hash.
 * Flow:    a core's reservation -> [kv_cache] -> block tables, grants -> release -> found again
 * Thread:  the node's core thread only.
 * Memory:  everything is taken in create; nothing afterwards. The blocks' bytes are not here.
 *
 * A block is free, held by references, cached (no reference, but its content has a name and may be
 * taken again) or in quarantine. free + held + cached + quarantined == total at every moment.
 * Only full blocks whose bytes are final get a name. Where free blocks run out, cached ones are
 * given away: children before their parents, so that the prefix that most share goes last; see
 * kv_cache.c for the order.
 * Source: prefix caching with reference counts and leaf-first eviction, SGLang's RadixAttention
 * (arXiv 2312.07104) and arXiv 2309.06180, section 4.4. */
#ifndef BATON_KV_KV_CACHE_H
#define BATON_KV_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kv/kv_hash.h"
#include "kv/kv_pool.h"

struct kv_cache;

struct kv_cache_config {
    uint32_t block_count;
    bool is_enabled; /* false: nothing is ever found; a released block is free at once */
};

/* Since create; never go down. */
struct kv_cache_stats {
    uint64_t blocks_published; /* new names */
    uint64_t blocks_taken;     /* by kv_cache_take, and by kv_cache_try whatever became of it */
    uint64_t blocks_missed;    /* they found nothing */
    uint64_t blocks_evicted;   /* cached blocks given away */
};

/* Errors  INVALID_ARGUMENT (node): no blocks; RESOURCE_EXHAUSTED (node): no memory. */
NODISCARD status_t kv_cache_create(const struct kv_cache_config *config, struct kv_cache **ret_cache);
void kv_cache_destroy(struct kv_cache *cache); /* takes NULL */

/* Finds the block named `hash` and takes one reference to it. False: no block has that name now.
 * Walk a prompt from block 0 until the first false. Cost O(1). */
bool kv_cache_take(struct kv_cache *cache, struct kv_hash hash, uint32_t *ret_block);

/* The same, but not a use yet: for whoever must give it back where the rest does not fit. Once it goes
 * on, it says kv_cache_note_use() of the block, which it still holds. Else what a waiting sequence merely
 * looked at would outlive what others used. */
bool kv_cache_try(struct kv_cache *cache, struct kv_hash hash, uint32_t *ret_block);
void kv_cache_note_use(struct kv_cache *cache, uint32_t block);

/* Without a reference and without counting: is it here? */
bool kv_cache_has(const struct kv_cache *cache, struct kv_hash hash);

/* Blocks that a reservation could get: free ones, and cached ones that would be evicted. Blocks that
 * a take or try is about to reference count as long as it has not: take first, then ask. */
uint32_t kv_cache_available(const struct kv_cache *cache);

/* Takes `count` blocks, all or none, one reference each; evicts where free ones do not suffice.
 * ret_blocks  [count], written only on success
 * Errors  RESOURCE_EXHAUSTED (request): kv_cache_available() is less; nothing changed.
 * Cost    O(count). */
NODISCARD status_t kv_cache_reserve(struct kv_cache *cache, uint32_t count, uint32_t *ret_blocks);

/* A held block is full and final: from now on it is found by `hash`; `parent` is the name before
 * it in its chain (the root for block 0) and orders eviction. Where another block has the name
 * already, or the cache is off, or the block has a name, nothing changes.
 * Returns whether the block has the name now. */
bool kv_cache_publish(struct kv_cache *cache, uint32_t block, struct kv_hash hash, struct kv_hash parent);

/* One more reference to a held block. */
void kv_cache_ref(struct kv_cache *cache, uint32_t block);

/* Gives back one reference to each of blocks[count]. The last reference to a named block makes it
 * cached, to a nameless one free. Pass the blocks of a sequence in table order: the last ones are
 * evicted first. Cost O(count), and where the prefix before blocks[0] was released earlier, its
 * length once. */
void kv_cache_release(struct kv_cache *cache, uint32_t count, const uint32_t *blocks);

/* Moves held nameless blocks, one reference each, to quarantine; frees them again. */
void kv_cache_quarantine(struct kv_cache *cache, uint32_t count, const uint32_t *blocks);
void kv_cache_fence(struct kv_cache *cache, uint32_t count, const uint32_t *blocks);

/* What would be evicted next and is not marked as stored: at most `max` cached blocks, in order of
 * eviction. A tier saves them ahead of time: kv_cache_hold() one, store it, mark it, release it. */
uint32_t kv_cache_victims(const struct kv_cache *cache, uint32_t max, uint32_t *ret_blocks, struct kv_hash *ret_hashes);
/* A reference to a cached or held block, for the time of a copy; does not make it younger. Meant for
 * victims: giving it back costs a step for each cached block that would be evicted before it. */
void kv_cache_hold(struct kv_cache *cache, uint32_t block);
/* The block's content lies in a tier too, or (false) no longer. */
void kv_cache_mark_stored(struct kv_cache *cache, uint32_t block, bool is_stored);
bool kv_cache_is_stored(const struct kv_cache *cache, uint32_t block);

/* The block's name; false: it has none. */
bool kv_cache_name(const struct kv_cache *cache, uint32_t block, struct kv_hash *ret_hash);

/* Drops all names and frees all cached blocks; held ones stay held, nameless. */
void kv_cache_clear(struct kv_cache *cache);

uint32_t kv_cache_free_count(const struct kv_cache *cache);
struct kv_pool_counts kv_cache_counts(const struct kv_cache *cache);
struct kv_cache_stats kv_cache_stats(const struct kv_cache *cache);
uint32_t kv_cache_refs(const struct kv_cache *cache, uint32_t block);

/* CHECKs states, counts, names and the order of eviction against each other.
 * owners  [total] references that the caller knows of, or NULL. Cost O(total). */
void kv_cache_audit(const struct kv_cache *cache, const uint32_t *owners);

#endif
