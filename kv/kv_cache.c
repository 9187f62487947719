/* The order of eviction. Cached blocks stand in two queues, cold end first:
 *   PROBATION  used by one sequence so far;
 *   PROTECTED  used by more: taken by hash and gone on with, or computed a second time.
 * Probation is given away first, then protected, so that blocks used more than once outlive those
 * used once, however recent these are. Protected holds at most three quarters of the pool; beyond
 * that its coldest block steps down to the warm end of probation, or prefixes that were popular
 * once would stay for ever (the segmented LRU of Karedla et al., 1994).
 *
 * In both queues together a parent stands behind its children. A release puts the blocks of a
 * sequence in from the last one to the first; where a block goes in whose parent is cached already,
 * from an earlier release, the parent and its cached ancestors move behind it (settle). So the cold
 * end is always a leaf, without a count of children and without a search for one. A prefix that many
 * share is released again whenever one of them ends, and goes last.
 *
 * Two sequences may compute the same block side by side. The second one's copy stays nameless but
 * remembers its name (ALIAS): its release makes the named copy younger, or, if that one is gone by
 * then, takes the name over, so that the blocks behind it can be reached. */
#include "kv/kv_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "kv/hash_slots.h"

#define NO_BLOCK UINT32_MAX

enum { PROBATION, PROTECTED, SEGMENT_COUNT };
/* Each segment twice: all its cached blocks, and those that no tier has, so that the next block to
 * save is found without walking over the saved ones. */
enum { ALL, UNSAVED, VIEW_COUNT };

enum {
    FLAG_NAMED = 1,       /* found by its hash */
    FLAG_ALIAS = 2,       /* its hash names another block, or did */
    FLAG_PROTECTED = 4,   /* its segment, now or when it is cached */
    FLAG_SAVED = 8,       /* a tier has it too */
    FLAG_KEEPS_PLACE = 16 /* was cached when kv_cache_hold took it, and nobody else has since */
};

struct queue {
    uint32_t head, tail, count; /* NO_BLOCK: empty; the head is the cold end */
};

struct record {
    struct kv_hash hash, parent; /* while NAMED or ALIAS */
    uint64_t stamp;              /* of the moment when it went into its queue: a queue ascends */
    uint64_t named_at;           /* stamp at that moment */
    uint32_t next[VIEW_COUNT], prev[VIEW_COUNT];
    uint8_t flags;
};

struct kv_cache {
    struct kv_pool *pool;
    bool is_enabled;
    uint32_t total;
    uint32_t protected_max;
    uint64_t clock;         /* counts changes of order; no time */
    struct record *records; /* [total] */
    struct hash_slots names;
    struct queue queues[SEGMENT_COUNT][VIEW_COUNT];
    struct kv_cache_stats stats;
};

status_t kv_cache_create(const struct kv_cache_config *config, struct kv_cache **ret_cache)
{
    if (config->block_count == 0 || config->block_count > UINT32_C(1) << 30) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE); }
    struct kv_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    status_t st = kv_pool_create(config->block_count, &cache->pool);
    if (failed(st)) { goto fail; }
    st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    cache->records = calloc(config->block_count, sizeof *cache->records);
    if (cache->records == NULL) { goto fail; }
    st = hash_slots_init(&cache->names, config->block_count, &cache->records[0].hash, sizeof *cache->records);
    if (failed(st)) { goto fail; }
    cache->total = config->block_count;
    cache->is_enabled = config->is_enabled;
    cache->protected_max = config->block_count - config->block_count / 4;
    for (uint32_t i = 0; i < SEGMENT_COUNT; i++) {
        for (uint32_t v = 0; v < VIEW_COUNT; v++) { cache->queues[i][v] = (struct queue){.head = NO_BLOCK, .tail = NO_BLOCK}; }
    }
    *ret_cache = cache;
    return STATUS_OK;
fail:
    kv_cache_destroy(cache);
    return st;
}

void kv_cache_destroy(struct kv_cache *cache)
{
    if (cache == NULL) { return; }
    hash_slots_fini(&cache->names);
    free(cache->records);
    kv_pool_destroy(cache->pool);
    free(cache);
}

/* --- queues */

static uint32_t segment_of(const struct record *record) { return record->flags & FLAG_PROTECTED ? PROTECTED : PROBATION; }

static void queue_insert_before(struct kv_cache *cache, struct queue *queue, uint32_t view, uint32_t block, uint32_t before)
{
    struct record *record = &cache->records[block];
    uint32_t after = before == NO_BLOCK ? queue->tail : cache->records[before].prev[view];
    record->next[view] = before;
    record->prev[view] = after;
    *(after == NO_BLOCK ? &queue->head : &cache->records[after].next[view]) = block;
    *(before == NO_BLOCK ? &queue->tail : &cache->records[before].prev[view]) = block;
    queue->count++;
}

static void queue_remove(struct kv_cache *cache, struct queue *queue, uint32_t view, uint32_t block)
{
    struct record *record = &cache->records[block];
    uint32_t next = record->next[view];
    uint32_t prev = record->prev[view];
    *(prev == NO_BLOCK ? &queue->head : &cache->records[prev].next[view]) = next;
    *(next == NO_BLOCK ? &queue->tail : &cache->records[next].prev[view]) = prev;
    queue->count--;
}

/* To where its stamp says; the search begins at the cold end. */
static void queue_insert_by_stamp(struct kv_cache *cache, struct queue *queue, uint32_t view, uint32_t block)
{
    uint32_t before = queue->head;
    while (before != NO_BLOCK && cache->records[before].stamp < cache->records[block].stamp) { before = cache->records[before].next[view]; }
    queue_insert_before(cache, queue, view, block, before);
}

static void unqueue(struct kv_cache *cache, uint32_t block)
{
    struct record *record = &cache->records[block];
    struct queue *queues = cache->queues[segment_of(record)];
    queue_remove(cache, &queues[ALL], ALL, block);
    if (!(record->flags & FLAG_SAVED)) { queue_remove(cache, &queues[UNSAVED], UNSAVED, block); }
}

static void enqueue_warm(struct kv_cache *cache, uint32_t block)
{
    struct record *record = &cache->records[block];
    struct queue *queues = cache->queues[segment_of(record)];
    record->stamp = ++cache->clock;
    queue_insert_before(cache, &queues[ALL], ALL, block, NO_BLOCK);
    if (!(record->flags & FLAG_SAVED)) { queue_insert_before(cache, &queues[UNSAVED], UNSAVED, block, NO_BLOCK); }
}

/* Whether a is evicted before b, if both are cached where their stamps say. */
static bool goes_before(const struct record *a, const struct record *b)
{
    if (segment_of(a) != segment_of(b)) { return segment_of(a) < segment_of(b); }
    return a->stamp < b->stamp;
}

/* `child` has just gone into a queue: its cached ancestors move behind it. Each step meets a block
 * of one prefix, so a release costs as many steps as the prefix has blocks, not more. */
static void settle(struct kv_cache *cache, uint32_t child)
{
    for (uint32_t steps = 0; steps < cache->total; steps++) {
        struct record *record = &cache->records[child];
        uint32_t parent;
        if (!hash_slots_find(&cache->names, record->parent, &parent) || parent == child) { return; }
        struct record *above = &cache->records[parent];
        if (!kv_pool_is_cached(cache->pool, parent)) {
            /* It is held, and will be cached later than its child; unless a place is kept for it,
             * which must lie behind the child too. */
            if (!goes_before(record, above)) { above->flags &= (uint8_t)~FLAG_KEEPS_PLACE; }
            above->flags |= record->flags & FLAG_PROTECTED;
            return;
        }
        if (goes_before(record, above)) { return; }
        unqueue(cache, parent);
        above->flags |= record->flags & FLAG_PROTECTED;
        enqueue_warm(cache, parent);
        child = parent;
    }
}

static void demote_overflow(struct kv_cache *cache)
{
    while (cache->queues[PROTECTED][ALL].count > cache->protected_max) {
        uint32_t block = cache->queues[PROTECTED][ALL].head;
        unqueue(cache, block);
        cache->records[block].flags &= (uint8_t)~FLAG_PROTECTED;
        enqueue_warm(cache, block);
        settle(cache, block);
    }
}

/* --- names */

static void name_drop(struct kv_cache *cache, uint32_t block)
{
    struct record *record = &cache->records[block];
    if (record->flags & FLAG_NAMED) { hash_slots_remove(&cache->names, block); }
    record->flags = 0;
}

static void evict_one(struct kv_cache *cache)
{
    uint32_t block = cache->queues[PROBATION][ALL].head;
    if (block == NO_BLOCK) { block = cache->queues[PROTECTED][ALL].head; }
    CHECK(block != NO_BLOCK);
    unqueue(cache, block);
    name_drop(cache, block);
    kv_pool_evict(cache->pool, block);
    cache->stats.blocks_evicted++;
}

bool kv_cache_publish(struct kv_cache *cache, uint32_t block, struct kv_hash hash, struct kv_hash parent)
{
    CHECK(block < cache->total);
    CHECK(kv_pool_refs(cache->pool, block) > 0);
    if (!cache->is_enabled) { return false; }
    struct record *record = &cache->records[block];
    if (record->flags & FLAG_NAMED) { return true; }
    record->hash = hash;
    record->parent = parent;
    uint32_t other;
    if (hash_slots_find(&cache->names, hash, &other)) {
        record->flags |= FLAG_ALIAS;
        return false;
    }
    record->flags = FLAG_NAMED;
    record->named_at = ++cache->clock;
    hash_slots_add(&cache->names, block);
    cache->stats.blocks_published++;
    return true;
}

bool kv_cache_take(struct kv_cache *cache, struct kv_hash hash, uint32_t *ret_block)
{
    if (!kv_cache_try(cache, hash, ret_block)) { return false; }
    kv_cache_note_use(cache, *ret_block);
    return true;
}

void kv_cache_note_use(struct kv_cache *cache, uint32_t block)
{
    CHECK(block < cache->total);
    CHECK(kv_pool_refs(cache->pool, block) > 0);
    if (cache->records[block].flags & FLAG_NAMED) { cache->records[block].flags |= FLAG_PROTECTED; }
}

bool kv_cache_try(struct kv_cache *cache, struct kv_hash hash, uint32_t *ret_block)
{
    uint32_t block;
    if (!hash_slots_find(&cache->names, hash, &block)) {
        cache->stats.blocks_missed++;
        return false;
    }
    if (kv_pool_is_cached(cache->pool, block)) {
        unqueue(cache, block);
        kv_pool_retake(cache->pool, block);
    } else {
        kv_pool_ref(cache->pool, block);
    }
    cache->records[block].flags &= (uint8_t)~FLAG_KEEPS_PLACE;
    cache->stats.blocks_taken++;
    *ret_block = block;
    return true;
}

bool kv_cache_has(const struct kv_cache *cache, struct kv_hash hash)
{
    uint32_t block;
    return hash_slots_find(&cache->names, hash, &block);
}

bool kv_cache_name(const struct kv_cache *cache, uint32_t block, struct kv_hash *ret_hash)
{
    CHECK(block < cache->total);
    if (!(cache->records[block].flags & FLAG_NAMED)) { return false; }
    *ret_hash = cache->records[block].hash;
    return true;
}

/* --- references */

uint32_t kv_cache_available(const struct kv_cache *cache)
{
    struct kv_pool_counts counts = kv_pool_counts(cache->pool);
    return counts.free + counts.cached;
}

status_t kv_cache_reserve(struct kv_cache *cache, uint32_t count, uint32_t *ret_blocks)
{
    if (count > kv_cache_available(cache)) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    while (kv_pool_free_count(cache->pool) < count) { evict_one(cache); }
    return kv_pool_reserve(cache->pool, count, ret_blocks);
}

void kv_cache_ref(struct kv_cache *cache, uint32_t block) { kv_pool_ref(cache->pool, block); }

/* The last reference to a block whose name another one has. */
static void release_alias(struct kv_cache *cache, uint32_t block)
{
    struct record *record = &cache->records[block];
    record->flags &= (uint8_t)~FLAG_ALIAS;
    uint32_t twin;
    bool is_named = hash_slots_find(&cache->names, record->hash, &twin);
    if (!is_named) {
        bool took = kv_cache_publish(cache, block, record->hash, record->parent);
        CHECK(took);
        return;
    }
    if (kv_pool_is_cached(cache->pool, twin)) {
        unqueue(cache, twin);
        cache->records[twin].flags |= FLAG_PROTECTED;
        enqueue_warm(cache, twin);
        settle(cache, twin);
    } else {
        cache->records[twin].flags |= FLAG_PROTECTED;
        cache->records[twin].flags &= (uint8_t)~FLAG_KEEPS_PLACE;
    }
}

static void release_last(struct kv_cache *cache, uint32_t block)
{
    struct record *record = &cache->records[block];
    if (record->flags & FLAG_ALIAS) { release_alias(cache, block); }
    if (!(record->flags & FLAG_NAMED)) {
        record->flags = 0;
        kv_pool_release(cache->pool, 1, &block);
        return;
    }
    kv_pool_keep(cache->pool, block);
    if (record->flags & FLAG_KEEPS_PLACE) {
        struct queue *queues = cache->queues[segment_of(record)];
        record->flags &= (uint8_t)~FLAG_KEEPS_PLACE;
        queue_insert_by_stamp(cache, &queues[ALL], ALL, block);
        if (!(record->flags & FLAG_SAVED)) { queue_insert_by_stamp(cache, &queues[UNSAVED], UNSAVED, block); }
    } else {
        enqueue_warm(cache, block);
    }
    settle(cache, block);
}

void kv_cache_release(struct kv_cache *cache, uint32_t count, const uint32_t *blocks)
{
    /* From the last to the first: children go in before their parents. */
    for (uint32_t i = count; i-- > 0;) {
        CHECK(blocks[i] < cache->total);
        if (kv_pool_refs(cache->pool, blocks[i]) == 1) {
            release_last(cache, blocks[i]);
        } else {
            kv_pool_release(cache->pool, 1, &blocks[i]);
        }
    }
    demote_overflow(cache);
}

void kv_cache_quarantine(struct kv_cache *cache, uint32_t count, const uint32_t *blocks)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK(blocks[i] < cache->total);
        CHECK(!(cache->records[blocks[i]].flags & FLAG_NAMED));
        cache->records[blocks[i]].flags = 0;
    }
    kv_pool_quarantine(cache->pool, count, blocks);
}

void kv_cache_fence(struct kv_cache *cache, uint32_t count, const uint32_t *blocks) { kv_pool_fence(cache->pool, count, blocks); }

/* --- tiers */

uint32_t kv_cache_victims(const struct kv_cache *cache, uint32_t max, uint32_t *ret_blocks, struct kv_hash *ret_hashes)
{
    uint32_t count = 0;
    for (uint32_t segment = PROBATION; segment < SEGMENT_COUNT; segment++) {
        uint32_t block = cache->queues[segment][UNSAVED].head;
        for (; block != NO_BLOCK && count < max; block = cache->records[block].next[UNSAVED]) {
            ret_blocks[count] = block;
            ret_hashes[count] = cache->records[block].hash;
            count++;
        }
    }
    return count;
}

void kv_cache_hold(struct kv_cache *cache, uint32_t block)
{
    CHECK(block < cache->total);
    if (!kv_pool_is_cached(cache->pool, block)) {
        kv_pool_ref(cache->pool, block);
        return;
    }
    unqueue(cache, block);
    kv_pool_retake(cache->pool, block);
    cache->records[block].flags |= FLAG_KEEPS_PLACE;
}

void kv_cache_mark_stored(struct kv_cache *cache, uint32_t block, bool is_stored)
{
    CHECK(block < cache->total);
    struct record *record = &cache->records[block];
    if (!(record->flags & FLAG_NAMED) || kv_cache_is_stored(cache, block) == is_stored) { return; }
    record->flags ^= FLAG_SAVED;
    if (!kv_pool_is_cached(cache->pool, block)) { return; }
    struct queue *unsaved = &cache->queues[segment_of(record)][UNSAVED];
    if (is_stored) {
        queue_remove(cache, unsaved, UNSAVED, block);
    } else {
        queue_insert_by_stamp(cache, unsaved, UNSAVED, block);
    }
}

bool kv_cache_is_stored(const struct kv_cache *cache, uint32_t block)
{
    CHECK(block < cache->total);
    return (cache->records[block].flags & FLAG_SAVED) != 0;
}

void kv_cache_clear(struct kv_cache *cache)
{
    for (uint32_t block = 0; block < cache->total; block++) {
        if (kv_pool_is_cached(cache->pool, block)) {
            unqueue(cache, block);
            kv_pool_evict(cache->pool, block);
        }
        cache->records[block].flags = 0;
    }
    hash_slots_clear(&cache->names);
}

/* --- what is where */

uint32_t kv_cache_free_count(const struct kv_cache *cache) { return kv_pool_free_count(cache->pool); }

struct kv_pool_counts kv_cache_counts(const struct kv_cache *cache) { return kv_pool_counts(cache->pool); }

struct kv_cache_stats kv_cache_stats(const struct kv_cache *cache) { return cache->stats; }

uint32_t kv_cache_refs(const struct kv_cache *cache, uint32_t block) { return kv_pool_refs(cache->pool, block); }

/* Links both ways, stamps that ascend, and who belongs there. */
static void audit_queue(const struct kv_cache *cache, uint32_t segment, uint32_t view)
{
    const struct queue *queue = &cache->queues[segment][view];
    uint32_t count = 0;
    uint32_t prev = NO_BLOCK;
    for (uint32_t block = queue->head; block != NO_BLOCK; block = cache->records[block].next[view]) {
        const struct record *record = &cache->records[block];
        CHECK(count < cache->total);
        CHECK(record->prev[view] == prev);
        CHECK(kv_pool_is_cached(cache->pool, block));
        CHECK(segment_of(record) == segment);
        if (view == UNSAVED) { CHECK(!(record->flags & FLAG_SAVED)); }
        if (prev != NO_BLOCK) { CHECK(cache->records[prev].stamp < record->stamp); }
        prev = block;
        count++;
    }
    CHECK(queue->tail == prev);
    CHECK(queue->count == count);
}

static void audit_block(const struct kv_cache *cache, uint32_t block)
{
    const struct record *record = &cache->records[block];
    bool is_cached = kv_pool_is_cached(cache->pool, block);
    uint32_t at;
    if (!(record->flags & FLAG_NAMED)) {
        CHECK(!is_cached);
        CHECK((record->flags & ~FLAG_ALIAS) == 0);
        if (record->flags & FLAG_ALIAS) { CHECK(kv_pool_refs(cache->pool, block) > 0); }
        return;
    }
    CHECK(is_cached || kv_pool_refs(cache->pool, block) > 0);
    bool is_found = hash_slots_find(&cache->names, record->hash, &at);
    CHECK(is_found);
    CHECK(at == block);
    if (!is_cached) { return; }
    CHECK(!(record->flags & FLAG_KEEPS_PLACE));
    if (!hash_slots_find(&cache->names, record->parent, &at) || at == block || !kv_pool_is_cached(cache->pool, at)) { return; }
    /* A parent that was evicted and came again knows nothing of a child that stayed; the child's
     * next release settles it. */
    const struct record *parent = &cache->records[at];
    if (parent->named_at < record->stamp) { CHECK(goes_before(record, parent)); }
}

void kv_cache_audit(const struct kv_cache *cache, const uint32_t *owners)
{
    kv_pool_audit(cache->pool, owners);
    uint32_t queued = 0;
    uint32_t named = 0;
    uint32_t unsaved = 0;
    for (uint32_t segment = 0; segment < SEGMENT_COUNT; segment++) {
        for (uint32_t view = 0; view < VIEW_COUNT; view++) { audit_queue(cache, segment, view); }
        queued += cache->queues[segment][ALL].count;
    }
    for (uint32_t block = 0; block < cache->total; block++) {
        audit_block(cache, block);
        named += (cache->records[block].flags & FLAG_NAMED) != 0;
        unsaved += kv_pool_is_cached(cache->pool, block) && !(cache->records[block].flags & FLAG_SAVED);
    }
    CHECK(queued == kv_pool_counts(cache->pool).cached);
    CHECK(named == cache->names.count);
    CHECK(unsaved == cache->queues[PROBATION][UNSAVED].count + cache->queues[PROTECTED][UNSAVED].count);
    CHECK(cache->queues[PROTECTED][ALL].count <= cache->protected_max);
}
