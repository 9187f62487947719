/* kv_pool: who owns which KV block of one node.
 * Flow:    a core's reservation -> [kv_pool] -> block tables, grants -> release
 * Thread:  the node's core thread only.
 * Memory:  everything is taken in create; nothing afterwards. The blocks' bytes are not here.
 *
 * A block is free, held by one or more references, cached (nobody holds it, but its content may be
 * wanted again: kv_cache decides), or in quarantine: a remote write may still touch it.
 * free + held + cached + quarantined == total at every moment. */
#ifndef BATON_KV_KV_POOL_H
#define BATON_KV_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct kv_pool;

struct kv_pool_counts {
    uint32_t total, free, held, cached, quarantined;
};

/* Errors  INVALID_ARGUMENT (node): no blocks; RESOURCE_EXHAUSTED (node): no memory. */
NODISCARD status_t kv_pool_create(uint32_t block_count, struct kv_pool **ret_pool);
void kv_pool_destroy(struct kv_pool *pool); /* takes NULL */

/* Takes `count` blocks, all or none, one reference each.
 * ret_blocks  [count], written only on success
 * Errors  RESOURCE_EXHAUSTED (request): fewer than `count` are free; nothing changed.
 * Cost    O(count). */
NODISCARD status_t kv_pool_reserve(struct kv_pool *pool, uint32_t count, uint32_t *ret_blocks);

/* One more reference to a held block. */
void kv_pool_ref(struct kv_pool *pool, uint32_t block);

/* Gives back one reference to each of blocks[count]; the last one frees the block. */
void kv_pool_release(struct kv_pool *pool, uint32_t count, const uint32_t *blocks);

/* The last reference to a held block becomes nobody's: it is cached, and not free. */
void kv_pool_keep(struct kv_pool *pool, uint32_t block);

/* A cached block is held again, by one reference. */
void kv_pool_retake(struct kv_pool *pool, uint32_t block);

/* A cached block is free. */
void kv_pool_evict(struct kv_pool *pool, uint32_t block);

/* Moves held blocks, one reference each, to quarantine. */
void kv_pool_quarantine(struct kv_pool *pool, uint32_t count, const uint32_t *blocks);

/* Frees quarantined blocks: the writer is quiet or fenced. */
void kv_pool_fence(struct kv_pool *pool, uint32_t count, const uint32_t *blocks);

uint32_t kv_pool_free_count(const struct kv_pool *pool);
struct kv_pool_counts kv_pool_counts(const struct kv_pool *pool);

/* References to a block; 0 when it is free, cached or in quarantine. */
uint32_t kv_pool_refs(const struct kv_pool *pool, uint32_t block);
bool kv_pool_is_cached(const struct kv_pool *pool, uint32_t block);

/* CHECKs the free list, every state and every count against each other.
 * owners  [total] references that the caller knows of, or NULL. Cost O(total). */
void kv_pool_audit(const struct kv_pool *pool, const uint32_t *owners);

#endif
