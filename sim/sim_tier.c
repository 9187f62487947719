/* sim_tier: host memory and disk below a simulated node's pool, as bad as they can be.
 * Flow:    TIER_STORE, TIER_LOAD of a core -> [sim_tier] -> kv_tier events, in order, a little late
 *
 * What kv/kv_tier.h promises, and not more: a store may read its block at any moment until STORED,
 * a load may write anything into its block until LOADED; entries move, are dropped, turn out
 * to be broken; after a death the host's are gone, and of the disk's some are found again. The
 * core's index is always a little behind. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "sim/sim_world.h"

#define STORE_FAILS_PER_MILLE 30u
#define LOAD_FAILS_PER_MILLE 60u
#define BYTES_PER_SLOT 64u

struct sim_tier_entry {
    struct kv_hash hash;
    enum kv_tier_kind kind;
    uint64_t *kv; /* [LAYERS][block_tokens] */
};

/* A store or load under way, in the bytes of its SIM_TIER_DONE. */
struct operation {
    struct kv_hash hash;
    uint64_t tag, began_ns;
    bool is_load;
    bool is_early; /* a store that has read its block: the values stand behind this */
};

static size_t block_values(const struct sim_node *node) { return (size_t)LAYERS * node->block_tokens; }

static uint32_t find(const struct sim_tier *tier, struct kv_hash hash)
{
    for (uint32_t i = 0; i < tier->count; i++) {
        if (kv_hash_equal(tier->entries[i].hash, hash)) { return i; }
    }
    return UINT32_MAX;
}

static uint32_t count_of(const struct sim_tier *tier, enum kv_tier_kind kind)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < tier->count; i++) { count += tier->entries[i].kind == kind; }
    return count;
}

static void forget(struct sim_tier *tier, uint32_t at)
{
    free(tier->entries[at].kv);
    memmove(tier->entries + at, tier->entries + at + 1, (tier->count - at - 1) * sizeof *tier->entries);
    tier->count--;
}

/* The core has not heard yet that the entry is gone. */
static bool is_drop_on_its_way(const struct sim_world *world, const struct sim_node *node, struct kv_hash hash)
{
    for (size_t i = 0; i < world->heap.count; i++) {
        const struct sim_event *later = event_heap_get(&world->heap, i);
        struct kv_tier_event event;
        if (later->kind != SIM_TIER_EVENT || later->a != node->index || later->generation != node->epoch) { continue; }
        memcpy(&event, later->bytes, sizeof event);
        if (event.kind == KV_TIER_DROPPED && kv_hash_equal(event.hash, hash)) { return true; }
    }
    return false;
}

/* The core hears of it after all that happened before. */
static void tell(struct sim_world *world, struct sim_node *node, struct kv_tier_event event)
{
    struct sim_tier *tier = &node->tier;
    uint64_t at_ns = world->now_ns + rng_below(&world->rng, 200) * NS_PER_US;
    if (at_ns <= tier->last_event_ns) { at_ns = tier->last_event_ns + 1; }
    tier->last_event_ns = at_ns;
    struct sim_event *later = sim_at(world, at_ns, SIM_TIER_EVENT);
    later->a = node->index;
    later->generation = node->epoch;
    later->bytes = malloc(sizeof event);
    CHECK(later->bytes != NULL);
    memcpy(later->bytes, &event, sizeof event);
    later->byte_count = sizeof event;
}

/* ---- room ---- */

static void drop(struct sim_world *world, struct sim_node *node, uint32_t at)
{
    tell(world, node, (struct kv_tier_event){.kind = KV_TIER_DROPPED, .hash = node->tier.entries[at].hash});
    forget(&node->tier, at);
}

static uint32_t oldest(const struct sim_tier *tier, enum kv_tier_kind kind)
{
    for (uint32_t i = 0; i < tier->count; i++) {
        if (tier->entries[i].kind == kind) { return i; }
    }
    return UINT32_MAX;
}

/* What the host must give up goes on to disk; what the disk must give up is gone. */
static void make_room(struct sim_world *world, struct sim_node *node)
{
    struct sim_tier *tier = &node->tier;
    while (count_of(tier, KV_TIER_HOST) > tier->entries_max[KV_TIER_HOST]) {
        uint32_t at = oldest(tier, KV_TIER_HOST);
        if (tier->entries_max[KV_TIER_DISK] == 0 || sim_chance(world, 50)) { drop(world, node, at); continue; }
        tier->entries[at].kind = KV_TIER_DISK;
        tell(world, node, (struct kv_tier_event){.kind = KV_TIER_MOVED, .hash = tier->entries[at].hash, .tier = KV_TIER_DISK});
    }
    while (count_of(tier, KV_TIER_DISK) > tier->entries_max[KV_TIER_DISK]) { drop(world, node, oldest(tier, KV_TIER_DISK)); }
}

/* ---- what the core asks for ---- */

static void begin(struct sim_world *world, struct sim_node *node, uint32_t block, struct operation operation)
{
    operation.began_ns = world->now_ns;
    struct sim_event *done = sim_at(world, world->now_ns + 5 * NS_PER_US + rng_below(&world->rng, world->features.tier_slow_us) * NS_PER_US, SIM_TIER_DONE);
    done->a = node->index;
    done->b = block;
    done->generation = node->epoch;
    size_t value_bytes = operation.is_early ? block_values(node) * sizeof(uint64_t) : 0;
    done->bytes = malloc(sizeof operation + value_bytes);
    CHECK(done->bytes != NULL);
    memcpy(done->bytes, &operation, sizeof operation);
    if (operation.is_early) { memcpy(done->bytes + sizeof operation, sim_kv(node, block, 0), value_bytes); }
    done->byte_count = sizeof operation + value_bytes;
}

static uint64_t *copy_of(const struct sim_node *node, const void *values)
{
    uint64_t *kv = malloc(block_values(node) * sizeof *kv);
    CHECK(kv != NULL);
    memcpy(kv, values, block_values(node) * sizeof *kv);
    return kv;
}

void sim_tier_store(struct sim_world *world, struct sim_node *node, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    if (!node->tier.is_on) { sim_fail(world, "%s stores a block and has no tier", sim_node_name(world, node->index)); }
    world->result.tier_stores++;
    begin(world, node, block, (struct operation){.hash = hash, .tag = tag, .is_early = sim_chance(world, 500)});
}

void sim_tier_load(struct sim_world *world, struct sim_node *node, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    if (!node->tier.is_on) { sim_fail(world, "%s loads a block and has no tier", sim_node_name(world, node->index)); }
    if (find(&node->tier, hash) == UINT32_MAX && !is_drop_on_its_way(world, node, hash)) {
        sim_fail(world, "%s loads a block that no tier has", sim_node_name(world, node->index));
    }
    world->result.tier_loads++;
    uint64_t *kv = sim_kv(node, block, 0);
    for (size_t i = 0; i < block_values(node); i++) { kv[i] = rng_next(&world->rng); }
    begin(world, node, block, (struct operation){.hash = hash, .tag = tag, .is_load = true});
}

/* ---- what becomes of it ---- */

static void stored(struct sim_world *world, struct sim_node *node, uint32_t block, const struct operation *operation, const uint8_t *early)
{
    struct sim_tier *tier = &node->tier;
    struct kv_tier_event event = {.kind = KV_TIER_STORED, .tag = operation->tag, .hash = operation->hash, .block = block,
                                  .bytes = BYTES_PER_SLOT * node->block_tokens, .elapsed_ns = world->now_ns - operation->began_ns};
    uint64_t *kv = copy_of(node, operation->is_early ? (const void *)early : sim_kv(node, block, 0));
    uint32_t at = find(tier, operation->hash);
    if (sim_chance(world, STORE_FAILS_PER_MILLE) && at == UINT32_MAX) {
        free(kv);
        world->result.tier_failures++;
        event.kind = KV_TIER_STORE_FAILED;
        event.status = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
        tell(world, node, event);
        return;
    }
    if (at != UINT32_MAX) {
        /* Equal names are equal bytes: the promise that the whole cache stands on. */
        if (memcmp(kv, tier->entries[at].kv, block_values(node) * sizeof *kv) != 0) {
            sim_fail(world, "%s stores block %u under a name that stands for other bytes", sim_node_name(world, node->index), block);
        }
        free(kv);
        event.tier = tier->entries[at].kind;
        event.bytes = 0;
        tell(world, node, event);
        return;
    }
    if (tier->count == tier->capacity) {
        tier->capacity = tier->capacity ? 2 * tier->capacity : 32;
        tier->entries = realloc(tier->entries, tier->capacity * sizeof *tier->entries);
        CHECK(tier->entries != NULL);
    }
    event.tier = tier->entries_max[KV_TIER_HOST] > 0 ? KV_TIER_HOST : KV_TIER_DISK;
    tier->entries[tier->count++] = (struct sim_tier_entry){.hash = operation->hash, .kind = event.tier, .kv = kv};
    tell(world, node, event);
    make_room(world, node);
}

static void loaded(struct sim_world *world, struct sim_node *node, uint32_t block, const struct operation *operation)
{
    struct sim_tier *tier = &node->tier;
    struct kv_tier_event event = {.kind = KV_TIER_LOADED, .tag = operation->tag, .hash = operation->hash, .block = block,
                                  .bytes = BYTES_PER_SLOT * node->block_tokens, .elapsed_ns = world->now_ns - operation->began_ns};
    uint32_t at = find(tier, operation->hash);
    bool is_broken = at != UINT32_MAX && sim_chance(world, LOAD_FAILS_PER_MILLE);
    if (is_broken) {
        drop(world, node, at);
        at = UINT32_MAX;
    }
    if (at == UINT32_MAX) {
        world->result.tier_failures++;
        event.kind = KV_TIER_LOAD_FAILED;
        event.status = STATUS(is_broken ? ST_DATA_LOSS : ST_NOT_FOUND, SCOPE_REQUEST);
    } else {
        event.tier = tier->entries[at].kind;
        memcpy(sim_kv(node, block, 0), tier->entries[at].kv, block_values(node) * sizeof(uint64_t));
    }
    tell(world, node, event);
}

void sim_tier_event(struct sim_world *world, struct sim_node *node, const struct sim_event *event)
{
    if (event->kind == SIM_TIER_EVENT) {
        struct kv_tier_event fact;
        CHECK(event->byte_count == sizeof fact);
        memcpy(&fact, event->bytes, sizeof fact);
        sim_node_tier_event(world, node, &fact);
        return;
    }
    struct operation operation;
    CHECK(event->byte_count >= sizeof operation);
    memcpy(&operation, event->bytes, sizeof operation);
    if (operation.is_load) {
        loaded(world, node, event->b, &operation);
    } else {
        stored(world, node, event->b, &operation, event->bytes + sizeof operation);
    }
}

/* ---- lives ---- */

/* Of the life before, the host's entries are gone; the disk's file may be gone, or torn. */
void sim_tier_start(struct sim_world *world, struct sim_node *node)
{
    struct sim_tier *tier = &node->tier;
    tier->last_event_ns = 0;
    bool is_file_lost = sim_chance(world, 200);
    for (uint32_t i = tier->count; i-- > 0;) {
        if (tier->entries[i].kind == KV_TIER_HOST || is_file_lost || sim_chance(world, 100)) { forget(tier, i); }
    }
    for (uint32_t i = 0; i < tier->count; i++) {
        struct kv_tier_event event = {.kind = KV_TIER_FOUND, .hash = tier->entries[i].hash, .tier = tier->entries[i].kind};
        world->result.tier_found++;
        sim_node_tier_event(world, node, &event);
    }
}

void sim_tier_fini(struct sim_node *node)
{
    while (node->tier.count > 0) { forget(&node->tier, node->tier.count - 1); }
    free(node->tier.entries);
    node->tier.entries = NULL;
    node->tier.capacity = 0;
}
