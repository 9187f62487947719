/* tier_desk: a core's side of the KV tiers: what lies there, what is under way, what it costs.
 * Flow:    decode_core, prefill_core -> [tier_desk] -> TIER_STORE, TIER_LOAD; kv_tier's events -> back
 * Thread:  the core's. Reads no clock; rates come from the events.
 * Memory:  its tables are taken in create; nothing afterwards.
 *
 * Cached blocks are stored ahead of need, what eviction would give away next first, so that eviction
 * itself never waits; where the tiers hold less than the pool, only once half of the pool is not free,
 * or they would give up what nobody else has for what is still here. A sixteenth of the pool at once at
 * most: what is being stored cannot be given away. A store under way holds one reference to its block.
 * A load writes a block that its owner holds and has not published. */
#ifndef BATON_SCHED_TIER_DESK_H
#define BATON_SCHED_TIER_DESK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kv/kv_cache.h"
#include "kv/kv_hash.h"
#include "kv/kv_tier.h"
#include "kv/tier_index.h"

struct tier_desk;

struct tier_desk_config {
    struct kv_cache *cache; /* holds until destroy */
    uint32_t entries_max;   /* of all tiers together */
    uint32_t queue_max;     /* stores and loads under way; stores take at most half of them. 0: 256 */
};

/* One TIER_STORE or TIER_LOAD to carry out. */
struct tier_request {
    struct kv_hash hash;
    uint32_t block;
    uint64_t tag;
};

struct tier_desk_stats {
    uint64_t stores, loads, store_failures, load_failures; /* ended so far */
    uint64_t declined, probes; /* prefixes; probes: those of them that loaded a few blocks all the same */
    uint32_t stores_under_way, loads_under_way;
    uint32_t entries[KV_TIER_COUNT];
};

/* Errors  RESOURCE_EXHAUSTED (node): no memory. */
NODISCARD status_t tier_desk_create(const struct tier_desk_config *config, struct tier_desk **ret_desk);
void tier_desk_destroy(struct tier_desk *desk); /* takes NULL */

/* Requests that may come in one go. */
uint32_t tier_desk_queue_max(const struct tier_desk *desk);

/* Is it in a tier, and which? NULL for a desk: there are no tiers. */
bool tier_desk_find(const struct tier_desk *desk, struct kv_hash hash, enum kv_tier_kind *ret_tier);

/* A cached block was taken again: if a tier no longer has it, it is worth storing once more. */
void tier_desk_note_use(struct tier_desk *desk, uint32_t block, struct kv_hash hash);

/* The next block to store ahead of need; false: none now. */
bool tier_desk_store_ahead(struct tier_desk *desk, struct tier_request *ret_request);

/* Stores a named block whose reference the caller gives to the desk until the store has ended.
 * False: as many are under way as may be; the reference stays the caller's. */
bool tier_desk_store(struct tier_desk *desk, struct kv_hash hash, uint32_t block, struct tier_request *ret_request);

/* Loads into a block that the caller holds until the end is told. False: as many are under way as may be.
 * owner, index  come back with the end. */
bool tier_desk_load(struct tier_desk *desk, struct kv_hash hash, uint32_t block, void *owner, uint32_t index,
                    struct tier_request *ret_request);

/* A load that has ended. */
struct tier_load_end {
    void *owner;
    uint32_t index;
    bool is_loaded; /* the block holds the content; else its bytes mean nothing */
};

/* Takes an event. True: it ended a load. What fits nothing under way is counted and ignored. */
bool tier_desk_take(struct tier_desk *desk, const struct kv_tier_event *event, struct tier_load_end *ret_end);

/* Blocks that stores under way hold: they come back soon. NULL for a desk: none. */
uint32_t tier_desk_store_count(const struct tier_desk *desk);

/* Where stores go now, as the last one that ended said: host memory where there is any, else the disk. */
enum kv_tier_kind tier_desk_store_tier(const struct tier_desk *desk);

/* How long it takes by what was measured; 0: not measured yet. */
uint64_t tier_desk_store_ns(const struct tier_desk *desk, uint32_t blocks);
uint64_t tier_desk_load_ns(const struct tier_desk *desk, const uint32_t blocks_by_tier[KV_TIER_COUNT]);

/* Load rather than compute? token_ns: what one token costs to compute, 0: not known. Before anything
 * is measured: from memory always, from disk two blocks and more, so that something gets measured.
 * ret_predicted_ns  0: not known */
bool tier_desk_load_is_cheaper(const struct tier_desk *desk, const uint32_t blocks_by_tier[KV_TIER_COUNT],
                               uint32_t tokens, uint64_t token_ns, uint64_t *ret_predicted_ns);

/* A way back: what was slow once, such as a disk that stalled, would never be loaded from and so never
 * measured again. Of the prefixes that were declined each 16th loads its first blocks all the same.
 * Returns as how many at most the next one shall load; 0: none, it is not its turn. */
uint32_t tier_desk_probe_blocks(const struct tier_desk *desk);
/* One was declined, and its owner goes on without: not one that waits, and asks again and again. */
void tier_desk_note_declined(struct tier_desk *desk);

struct tier_desk_stats tier_desk_stats(const struct tier_desk *desk); /* takes NULL */

/* Adds the references that stores hold to owners[block_count]. */
void tier_desk_audit(const struct tier_desk *desk, uint32_t *owners); /* takes NULL */

#endif
