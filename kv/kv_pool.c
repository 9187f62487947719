#include "kv/kv_pool.h"

#include <stdlib.h>

#include "base/check.h"

/* refs[] holds the count of a held block; these three stand for the other states, so that one
 * word per block says everything and a double release cannot pass unseen. */
#define BLOCK_FREE 0u
#define BLOCK_QUARANTINED UINT32_MAX
#define BLOCK_CACHED (UINT32_MAX - 1)

struct kv_pool {
    uint32_t total;
    uint32_t free_count;
    uint32_t held_count;
    uint32_t cached_count;
    uint32_t quarantined_count;
    uint32_t *refs;  /* [total] */
    uint32_t *stack; /* [total]; the first free_count entries are free, the last freed is taken
                        first: its bytes are the warmest, and a too early reuse shows soonest */
};

status_t kv_pool_create(uint32_t block_count, struct kv_pool **ret_pool)
{
    if (block_count == 0) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE); }
    struct kv_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL) { goto fail; }
    pool->refs = calloc(block_count, sizeof *pool->refs);
    if (pool->refs == NULL) { goto fail; }
    pool->stack = calloc(block_count, sizeof *pool->stack);
    if (pool->stack == NULL) { goto fail; }
    pool->total = block_count;
    pool->free_count = block_count;
    /* Block 0 lies on top: block numbers in logs start small. */
    for (uint32_t i = 0; i < block_count; i++) { pool->stack[i] = block_count - 1 - i; }
    *ret_pool = pool;
    return STATUS_OK;
fail:
    kv_pool_destroy(pool);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}

void kv_pool_destroy(struct kv_pool *pool)
{
    if (pool == NULL) { return; }
    free(pool->stack);
    free(pool->refs);
    free(pool);
}

status_t kv_pool_reserve(struct kv_pool *pool, uint32_t count, uint32_t *ret_blocks)
{
    if (count > pool->free_count) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = pool->stack[--pool->free_count];
        CHECK(pool->refs[block] == BLOCK_FREE);
        pool->refs[block] = 1;
        ret_blocks[i] = block;
    }
    pool->held_count += count;
    return STATUS_OK;
}

void kv_pool_ref(struct kv_pool *pool, uint32_t block)
{
    CHECK(block < pool->total);
    CHECK(pool->refs[block] != BLOCK_FREE);
    CHECK(pool->refs[block] < BLOCK_CACHED - 1);
    pool->refs[block]++;
}

void kv_pool_release(struct kv_pool *pool, uint32_t count, const uint32_t *blocks)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = blocks[i];
        CHECK(block < pool->total);
        CHECK(pool->refs[block] != BLOCK_FREE);
        CHECK(pool->refs[block] < BLOCK_CACHED);
        if (--pool->refs[block] > 0) { continue; }
        pool->held_count--;
        pool->stack[pool->free_count++] = block;
    }
}

void kv_pool_keep(struct kv_pool *pool, uint32_t block)
{
    CHECK(block < pool->total);
    CHECK(pool->refs[block] == 1);
    pool->refs[block] = BLOCK_CACHED;
    pool->held_count--;
    pool->cached_count++;
}

void kv_pool_retake(struct kv_pool *pool, uint32_t block)
{
    CHECK(block < pool->total);
    CHECK(pool->refs[block] == BLOCK_CACHED);
    pool->refs[block] = 1;
    pool->cached_count--;
    pool->held_count++;
}

void kv_pool_evict(struct kv_pool *pool, uint32_t block)
{
    CHECK(block < pool->total);
    CHECK(pool->refs[block] == BLOCK_CACHED);
    pool->refs[block] = BLOCK_FREE;
    pool->cached_count--;
    pool->stack[pool->free_count++] = block;
}

void kv_pool_quarantine(struct kv_pool *pool, uint32_t count, const uint32_t *blocks)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK(blocks[i] < pool->total);
        CHECK(pool->refs[blocks[i]] == 1);
        pool->refs[blocks[i]] = BLOCK_QUARANTINED;
    }
    pool->held_count -= count;
    pool->quarantined_count += count;
}

void kv_pool_fence(struct kv_pool *pool, uint32_t count, const uint32_t *blocks)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK(blocks[i] < pool->total);
        CHECK(pool->refs[blocks[i]] == BLOCK_QUARANTINED);
        pool->refs[blocks[i]] = BLOCK_FREE;
        pool->stack[pool->free_count++] = blocks[i];
    }
    pool->quarantined_count -= count;
}

uint32_t kv_pool_free_count(const struct kv_pool *pool) { return pool->free_count; }

struct kv_pool_counts kv_pool_counts(const struct kv_pool *pool)
{
    return (struct kv_pool_counts){
        .total = pool->total,
        .free = pool->free_count,
        .held = pool->held_count,
        .cached = pool->cached_count,
        .quarantined = pool->quarantined_count,
    };
}

uint32_t kv_pool_refs(const struct kv_pool *pool, uint32_t block)
{
    CHECK(block < pool->total);
    return pool->refs[block] >= BLOCK_CACHED ? 0 : pool->refs[block];
}

bool kv_pool_is_cached(const struct kv_pool *pool, uint32_t block)
{
    CHECK(block < pool->total);
    return pool->refs[block] == BLOCK_CACHED;
}

void kv_pool_audit(const struct kv_pool *pool, const uint32_t *owners)
{
    uint32_t free_count = 0;
    uint32_t held_count = 0;
    uint32_t cached_count = 0;
    uint32_t quarantined_count = 0;
    for (uint32_t block = 0; block < pool->total; block++) {
        uint32_t refs = pool->refs[block];
        if (refs == BLOCK_FREE) {
            free_count++;
        } else if (refs == BLOCK_CACHED) {
            cached_count++;
        } else if (refs == BLOCK_QUARANTINED) {
            quarantined_count++;
        } else {
            held_count++;
        }
        if (owners != NULL) { CHECK(owners[block] == kv_pool_refs(pool, block)); }
    }
    CHECK(free_count == pool->free_count);
    CHECK(held_count == pool->held_count);
    CHECK(cached_count == pool->cached_count);
    CHECK(quarantined_count == pool->quarantined_count);
    CHECK(free_count + held_count + cached_count + quarantined_count == pool->total);
    /* As many free blocks as stack entries, and each entry is free: if one were there twice,
     * another would be missing, which reserve's own CHECK meets when it is taken again. */
    for (uint32_t i = 0; i < pool->free_count; i++) { CHECK(pool->refs[pool->stack[i]] == BLOCK_FREE); }
}
