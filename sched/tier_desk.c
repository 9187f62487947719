#include "sched/tier_desk.h"

#include <stdlib.h>

#include "base/check.h"
#include "sched/rate.h"

#define QUEUE_MAX_DEFAULT 256u
/* A request's way to the tier's thread and back through the mailbox. */
#define HOP_NS UINT64_C(200000)
#define NONE UINT32_MAX
/* Each so many declined prefixes one loads so many blocks: enough to move a mean by two thirds. */
#define PROBE_PERIOD 16u
#define PROBE_BLOCKS 8u

enum operation_kind { OPERATION_FREE, OPERATION_AHEAD, OPERATION_GIVEN, OPERATION_LOAD };

struct operation {
    enum operation_kind kind;
    uint32_t generation; /* a tag is never used twice */
    uint32_t next_free;
    uint32_t block;
    struct kv_hash hash;
    void *owner;
    uint32_t index;
};

struct tier_desk {
    struct kv_cache *cache;
    struct tier_index *index;
    bool is_roomy; /* holds as much as the pool */
    uint32_t queue_max, free_first;
    struct operation *operations; /* [queue_max] */
    uint32_t counts[OPERATION_LOAD + 1];
    enum kv_tier_kind store_tier;
    uint64_t store_block_ns;               /* means */
    uint64_t load_block_ns[KV_TIER_COUNT];
    struct tier_desk_stats stats;
};

status_t tier_desk_create(const struct tier_desk_config *config, struct tier_desk **ret_desk)
{
    status_t st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    struct tier_desk *desk = calloc(1, sizeof *desk);
    if (desk == NULL) { goto fail; }
    desk->cache = config->cache;
    desk->is_roomy = config->entries_max >= kv_cache_counts(config->cache).total;
    desk->queue_max = config->queue_max == 0 ? QUEUE_MAX_DEFAULT : config->queue_max;
    desk->operations = calloc(desk->queue_max, sizeof *desk->operations);
    if (desk->operations == NULL) { goto fail; }
    for (uint32_t i = 0; i < desk->queue_max; i++) { desk->operations[i].next_free = i + 1 < desk->queue_max ? i + 1 : NONE; }
    st = tier_index_create(config->entries_max, &desk->index);
    if (failed(st)) { goto fail; }
    *ret_desk = desk;
    return STATUS_OK;
fail:
    tier_desk_destroy(desk);
    return st;
}

void tier_desk_destroy(struct tier_desk *desk)
{
    if (desk == NULL) { return; }
    tier_index_destroy(desk->index);
    free(desk->operations);
    free(desk);
}

uint32_t tier_desk_queue_max(const struct tier_desk *desk) { return desk->queue_max; }

bool tier_desk_find(const struct tier_desk *desk, struct kv_hash hash, enum kv_tier_kind *ret_tier)
{
    return desk != NULL && tier_index_find(desk->index, hash, ret_tier);
}

/* A tier that drops an entry does not make its block worth storing at once: a tier smaller than the
 * pool would be filled round and round. Nor does a store that failed. Both are looked at here. */
void tier_desk_note_use(struct tier_desk *desk, uint32_t block, struct kv_hash hash)
{
    enum kv_tier_kind tier;
    if (desk == NULL || !kv_cache_is_stored(desk->cache, block)) { return; }
    if (!tier_index_find(desk->index, hash, &tier)) { kv_cache_mark_stored(desk->cache, block, false); }
}

/* ---------------------------------------------------------------- requests */

static bool begin(struct tier_desk *desk, struct operation operation, struct tier_request *ret_request)
{
    uint32_t stores = tier_desk_store_count(desk);
    bool is_store = operation.kind != OPERATION_LOAD;
    if (desk->free_first == NONE || (is_store && stores >= (desk->queue_max + 1) / 2)) { return false; }
    uint32_t slot = desk->free_first;
    struct operation *at = &desk->operations[slot];
    desk->free_first = at->next_free;
    operation.generation = at->generation + 1;
    *at = operation;
    desk->counts[operation.kind]++;
    *ret_request = (struct tier_request){.hash = operation.hash, .block = operation.block,
                                         .tag = (uint64_t)operation.generation << 32 | slot};
    return true;
}

bool tier_desk_store_ahead(struct tier_desk *desk, struct tier_request *ret_request)
{
    struct kv_pool_counts blocks = kv_cache_counts(desk->cache);
    if (blocks.cached == 0 || (!desk->is_roomy && blocks.free >= (blocks.total + 1) / 2)) { return false; }
    if (desk->counts[OPERATION_AHEAD] > blocks.total / 16) { return false; }
    uint32_t block;
    struct kv_hash hash;
    if (kv_cache_victims(desk->cache, 1, &block, &hash) == 0) { return false; }
    if (!begin(desk, (struct operation){.kind = OPERATION_AHEAD, .block = block, .hash = hash}, ret_request)) { return false; }
    kv_cache_hold(desk->cache, block);
    return true;
}

bool tier_desk_store(struct tier_desk *desk, struct kv_hash hash, uint32_t block, struct tier_request *ret_request)
{
    return begin(desk, (struct operation){.kind = OPERATION_GIVEN, .block = block, .hash = hash}, ret_request);
}

bool tier_desk_load(struct tier_desk *desk, struct kv_hash hash, uint32_t block, void *owner, uint32_t index,
                    struct tier_request *ret_request)
{
    struct operation operation = {.kind = OPERATION_LOAD, .block = block, .hash = hash, .owner = owner, .index = index};
    return begin(desk, operation, ret_request);
}

/* ---------------------------------------------------------------- events */

static struct operation *find_operation(struct tier_desk *desk, uint64_t tag, bool is_load)
{
    uint32_t slot = (uint32_t)tag;
    if (slot >= desk->queue_max) { return NULL; }
    struct operation *operation = &desk->operations[slot];
    if (operation->kind == OPERATION_FREE || operation->generation != tag >> 32) { return NULL; }
    return (operation->kind == OPERATION_LOAD) == is_load ? operation : NULL;
}

static void end(struct tier_desk *desk, struct operation *operation)
{
    desk->counts[operation->kind]--;
    operation->kind = OPERATION_FREE;
    operation->next_free = desk->free_first;
    desk->free_first = (uint32_t)(operation - desk->operations);
}

static void take_store_end(struct tier_desk *desk, const struct kv_tier_event *event, bool is_stored)
{
    struct operation *operation = find_operation(desk, event->tag, false);
    if (operation == NULL) { return; }
    if (is_stored) {
        desk->stats.stores++;
        (void)tier_index_add(desk->index, event->hash, event->tier); /* no room: never loaded, as its header says */
        if (event->bytes > 0) { /* it was copied now, and that is where copies go */
            desk->store_tier = event->tier;
            desk->store_block_ns = rate_mean(desk->store_block_ns, event->elapsed_ns + 1);
        }
    } else {
        desk->stats.store_failures++;
    }
    /* One that failed is not tried again until it is used again: a full disk would keep us busy. */
    kv_cache_mark_stored(desk->cache, operation->block, true);
    kv_cache_release(desk->cache, 1, &operation->block);
    end(desk, operation);
}

static bool take_load_end(struct tier_desk *desk, const struct kv_tier_event *event, bool is_loaded,
                          struct tier_load_end *ret_end)
{
    struct operation *operation = find_operation(desk, event->tag, true);
    if (operation == NULL) { return false; }
    if (is_loaded) {
        desk->stats.loads++;
        desk->load_block_ns[event->tier] = rate_mean(desk->load_block_ns[event->tier], event->elapsed_ns + 1);
    } else {
        desk->stats.load_failures++;
    }
    *ret_end = (struct tier_load_end){.owner = operation->owner, .index = operation->index, .is_loaded = is_loaded};
    end(desk, operation);
    return true;
}

bool tier_desk_take(struct tier_desk *desk, const struct kv_tier_event *event, struct tier_load_end *ret_end)
{
    switch (event->kind) {
    case KV_TIER_STORED: take_store_end(desk, event, true); return false;
    case KV_TIER_STORE_FAILED: take_store_end(desk, event, false); return false;
    case KV_TIER_LOADED: return take_load_end(desk, event, true, ret_end);
    case KV_TIER_LOAD_FAILED: return take_load_end(desk, event, false, ret_end);
    case KV_TIER_DROPPED: (void)tier_index_remove(desk->index, event->hash); return false;
    case KV_TIER_MOVED:
    case KV_TIER_FOUND: (void)tier_index_add(desk->index, event->hash, event->tier); return false;
    }
    return false;
}

/* ---------------------------------------------------------------- costs */

uint32_t tier_desk_store_count(const struct tier_desk *desk)
{
    return desk == NULL ? 0 : desk->counts[OPERATION_AHEAD] + desk->counts[OPERATION_GIVEN];
}

enum kv_tier_kind tier_desk_store_tier(const struct tier_desk *desk) { return desk->store_tier; }

uint64_t tier_desk_store_ns(const struct tier_desk *desk, uint32_t blocks)
{
    return desk->store_block_ns == 0 ? 0 : desk->store_block_ns * blocks + HOP_NS;
}

uint64_t tier_desk_load_ns(const struct tier_desk *desk, const uint32_t blocks_by_tier[KV_TIER_COUNT])
{
    uint64_t ns = HOP_NS;
    for (uint32_t tier = 0; tier < KV_TIER_COUNT; tier++) {
        if (blocks_by_tier[tier] > 0 && desk->load_block_ns[tier] == 0) { return 0; }
        ns += desk->load_block_ns[tier] * blocks_by_tier[tier];
    }
    return ns;
}

bool tier_desk_load_is_cheaper(const struct tier_desk *desk, const uint32_t blocks_by_tier[KV_TIER_COUNT],
                               uint32_t tokens, uint64_t token_ns, uint64_t *ret_predicted_ns)
{
    uint64_t load_ns = tier_desk_load_ns(desk, blocks_by_tier);
    *ret_predicted_ns = load_ns;
    if (load_ns > 0 && token_ns > 0) { return load_ns <= token_ns * tokens; }
    return blocks_by_tier[KV_TIER_HOST] > 0 || blocks_by_tier[KV_TIER_DISK] >= 2;
}

uint32_t tier_desk_probe_blocks(const struct tier_desk *desk)
{
    return (desk->stats.declined + 1) % PROBE_PERIOD == 0 ? PROBE_BLOCKS : 0;
}

void tier_desk_note_declined(struct tier_desk *desk)
{
    desk->stats.probes += tier_desk_probe_blocks(desk) > 0;
    desk->stats.declined++;
}

/* ---------------------------------------------------------------- numbers */

struct tier_desk_stats tier_desk_stats(const struct tier_desk *desk)
{
    if (desk == NULL) { return (struct tier_desk_stats){0}; }
    struct tier_desk_stats stats = desk->stats;
    stats.stores_under_way = tier_desk_store_count(desk);
    stats.loads_under_way = desk->counts[OPERATION_LOAD];
    for (uint32_t tier = 0; tier < KV_TIER_COUNT; tier++) {
        stats.entries[tier] = tier_index_count(desk->index, (enum kv_tier_kind)tier);
    }
    return stats;
}

void tier_desk_audit(const struct tier_desk *desk, uint32_t *owners)
{
    if (desk == NULL) { return; }
    uint32_t counts[OPERATION_LOAD + 1] = {0};
    for (uint32_t i = 0; i < desk->queue_max; i++) {
        const struct operation *operation = &desk->operations[i];
        counts[operation->kind]++;
        if (operation->kind == OPERATION_AHEAD || operation->kind == OPERATION_GIVEN) { owners[operation->block]++; }
    }
    for (uint32_t kind = OPERATION_AHEAD; kind <= OPERATION_LOAD; kind++) { CHECK(counts[kind] == desk->counts[kind]); }
}
