/* tier_index: what the tiers below the pool hold, as the core knows it.
 * Flow:    kv_tier's events -> [tier_index] -> a core's choice: load or compute again
 * Thread:  the node's core thread only; pure.
 * Memory:  sized at create. */
#ifndef BATON_KV_TIER_INDEX_H
#define BATON_KV_TIER_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kv/kv_hash.h"

enum kv_tier_kind { KV_TIER_HOST = 0, KV_TIER_DISK = 1, KV_TIER_COUNT };

struct tier_index;

/* entries_max: of all tiers together; what comes beyond is not remembered (and so never loaded).
 * Errors  RESOURCE_EXHAUSTED (node). */
NODISCARD status_t tier_index_create(uint32_t entries_max, struct tier_index **ret_index);
void tier_index_destroy(struct tier_index *index); /* takes NULL */

/* The tier holds it now; known already: it moved. False: the index is full. */
bool tier_index_add(struct tier_index *index, struct kv_hash hash, enum kv_tier_kind tier);
/* No tier holds it any more. False: it was not known. */
bool tier_index_remove(struct tier_index *index, struct kv_hash hash);
/* Where it is; false: nowhere. */
bool tier_index_find(const struct tier_index *index, struct kv_hash hash, enum kv_tier_kind *ret_tier);
uint32_t tier_index_count(const struct tier_index *index, enum kv_tier_kind tier);

#endif
