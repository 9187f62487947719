#include "kv/tier_index.h"

#include <stdlib.h>

#include "base/check.h"
#include "kv/hash_slots.h"

struct entry {
    struct kv_hash hash;
    enum kv_tier_kind tier;
};

struct tier_index {
    uint32_t entries_max;
    uint32_t counts[KV_TIER_COUNT];
    struct entry *entries; /* [entries_max] */
    uint32_t *unused;      /* [entries_max] a stack; all but the sum of counts lie on it */
    uint32_t unused_count;
    struct hash_slots slots;
};

status_t tier_index_create(uint32_t entries_max, struct tier_index **ret_index)
{
    struct tier_index *index = calloc(1, sizeof *index);
    if (index == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    size_t count = entries_max > 0 ? entries_max : 1; /* an index of nothing is legal: no tier is configured */
    index->entries_max = entries_max;
    index->entries = calloc(count, sizeof *index->entries);
    index->unused = calloc(count, sizeof *index->unused);
    if (index->entries == NULL || index->unused == NULL) { goto fail; }
    if (failed(hash_slots_init(&index->slots, (uint32_t)count, &index->entries[0].hash, sizeof *index->entries))) { goto fail; }
    for (uint32_t i = 0; i < entries_max; i++) { index->unused[i] = entries_max - 1 - i; }
    index->unused_count = entries_max;
    *ret_index = index;
    return STATUS_OK;
fail:
    tier_index_destroy(index);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}

void tier_index_destroy(struct tier_index *index)
{
    if (index == NULL) { return; }
    hash_slots_fini(&index->slots);
    free(index->unused);
    free(index->entries);
    free(index);
}

bool tier_index_add(struct tier_index *index, struct kv_hash hash, enum kv_tier_kind tier)
{
    CHECK(tier < KV_TIER_COUNT);
    uint32_t at;
    if (hash_slots_find(&index->slots, hash, &at)) {
        index->counts[index->entries[at].tier]--;
    } else {
        if (index->unused_count == 0) { return false; }
        at = index->unused[--index->unused_count];
        index->entries[at].hash = hash;
        hash_slots_add(&index->slots, at);
    }
    index->entries[at].tier = tier;
    index->counts[tier]++;
    return true;
}

bool tier_index_remove(struct tier_index *index, struct kv_hash hash)
{
    uint32_t at;
    if (!hash_slots_find(&index->slots, hash, &at)) { return false; }
    hash_slots_remove(&index->slots, at);
    index->counts[index->entries[at].tier]--;
    index->unused[index->unused_count++] = at;
    return true;
}

bool tier_index_find(const struct tier_index *index, struct kv_hash hash, enum kv_tier_kind *ret_tier)
{
    uint32_t at;
    if (!hash_slots_find(&index->slots, hash, &at)) { return false; }
    *ret_tier = index->entries[at].tier;
    return true;
}

uint32_t tier_index_count(const struct tier_index *index, enum kv_tier_kind tier)
{
    CHECK(tier < KV_TIER_COUNT);
    return index->counts[tier];
}
