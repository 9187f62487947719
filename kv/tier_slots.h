/* tier_slots: which slot of the host tier and of the disk tier holds what, and which goes next.
 * Flow:    kv_tier: stores, loads, moves -> [tier_slots] -> a slot to fill, a slot to give up
 * Thread:  kv_tier's own; pure.
 * Memory:  taken at create.
 *
 * A slot is free, taken (being filled or emptied, nameless), or kept: it has a name and stands in
 * its tier's queue, the coldest first. One name is kept once, in one of the tiers.
 * What the pool evicts comes children first and so goes children first. Loads come parents first;
 * their touches are gathered and applied from the last to the first (tier_slots_settle), so that
 * the beginning of a prefix stays longest here too. */
#ifndef BATON_KV_TIER_SLOTS_H
#define BATON_KV_TIER_SLOTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kv/kv_hash.h"
#include "kv/tier_index.h"

#define NO_SLOT UINT32_MAX

struct tier_slots;

/* Slots are numbered through both tiers: the host's 0 .. host_count-1, then the disk's. At most 2^30.
 * Errors  RESOURCE_EXHAUSTED (node): no memory. */
NODISCARD status_t tier_slots_create(uint32_t host_count, uint32_t disk_count, struct tier_slots **ret_slots);
void tier_slots_destroy(struct tier_slots *slots); /* takes NULL */
uint64_t tier_slots_bytes(uint32_t host_count, uint32_t disk_count); /* what create takes */

enum kv_tier_kind tier_slots_tier(const struct tier_slots *slots, uint32_t slot);
uint32_t tier_slots_number(const struct tier_slots *slots, uint32_t slot); /* within its tier */
uint32_t tier_slots_at(const struct tier_slots *slots, enum kv_tier_kind tier, uint32_t number);

bool tier_slots_find(const struct tier_slots *slots, struct kv_hash hash, uint32_t *ret_slot);
uint32_t tier_slots_free(const struct tier_slots *slots, enum kv_tier_kind tier);
uint32_t tier_slots_kept(const struct tier_slots *slots, enum kv_tier_kind tier);

/* A free slot is taken; NO_SLOT: there is none. */
uint32_t tier_slots_take(struct tier_slots *slots, enum kv_tier_kind tier);
/* This very one, which must be free: for what a file held already. */
void tier_slots_take_at(struct tier_slots *slots, uint32_t slot);

/* A taken slot is kept, as the warmest of its tier. The name must not be kept yet. */
void tier_slots_keep(struct tier_slots *slots, uint32_t slot, struct kv_hash hash, uint32_t crc);
/* A kept slot is taken; nobody finds it any more. */
void tier_slots_unname(struct tier_slots *slots, uint32_t slot);
/* A taken slot is free. */
void tier_slots_give_back(struct tier_slots *slots, uint32_t slot);

/* A kept slot was used: the next settle makes it warm. */
void tier_slots_touch(struct tier_slots *slots, uint32_t slot);
void tier_slots_settle(struct tier_slots *slots);

/* Input or output under way on a slot: it is not given up meanwhile. Nests. */
void tier_slots_busy(struct tier_slots *slots, uint32_t slot);
bool tier_slots_unbusy(struct tier_slots *slots, uint32_t slot); /* true: that was the last */
bool tier_slots_is_kept(const struct tier_slots *slots, uint32_t slot);
bool tier_slots_is_busy(const struct tier_slots *slots, uint32_t slot);

struct kv_hash tier_slots_hash(const struct tier_slots *slots, uint32_t slot); /* of a kept one */
uint32_t tier_slots_crc(const struct tier_slots *slots, uint32_t slot);

/* The coldest kept slot that is not busy; NO_SLOT: there is none. Settles if it must.
 * Cost  a step for each busy slot that is colder. */
uint32_t tier_slots_coldest(struct tier_slots *slots, enum kv_tier_kind tier);

#endif
