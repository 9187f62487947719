#include "kv/hash_slots.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static uint32_t slot_count_for(uint32_t records_max)
{
    uint32_t count = 4;
    while (count < 2 * (uint64_t)records_max) { count *= 2; }
    return count;
}

size_t hash_slots_bytes(uint32_t records_max) { return sizeof(uint32_t) * (size_t)slot_count_for(records_max); }

status_t hash_slots_init(struct hash_slots *slots, uint32_t records_max, const struct kv_hash *names, size_t stride)
{
    CHECK(records_max >= 1);
    CHECK(records_max <= UINT32_C(1) << 30);
    uint32_t count = slot_count_for(records_max);
    *slots = (struct hash_slots){.mask = count - 1, .names = names->bytes, .stride = stride};
    slots->slots = calloc(count, sizeof *slots->slots);
    if (slots->slots == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    return STATUS_OK;
}

void hash_slots_fini(struct hash_slots *slots)
{
    free(slots->slots);
    slots->slots = NULL;
}

static const uint8_t *name_of(const struct hash_slots *slots, uint32_t record) { return slots->names + record * slots->stride; }

static uint32_t home_of(const struct hash_slots *slots, const uint8_t *name)
{
    uint32_t word;
    memcpy(&word, name, sizeof word);
    return word & slots->mask;
}

bool hash_slots_find(const struct hash_slots *slots, struct kv_hash hash, uint32_t *ret_record)
{
    for (uint32_t at = home_of(slots, hash.bytes); slots->slots[at] != 0; at = (at + 1) & slots->mask) {
        uint32_t record = slots->slots[at] - 1;
        if (memcmp(name_of(slots, record), hash.bytes, sizeof hash.bytes) != 0) { continue; }
        *ret_record = record;
        return true;
    }
    return false;
}

void hash_slots_add(struct hash_slots *slots, uint32_t record)
{
    CHECK(slots->count <= slots->mask / 2);
    uint32_t at = home_of(slots, name_of(slots, record));
    while (slots->slots[at] != 0) { at = (at + 1) & slots->mask; }
    slots->slots[at] = record + 1;
    slots->count++;
}

void hash_slots_remove(struct hash_slots *slots, uint32_t record)
{
    uint32_t hole = home_of(slots, name_of(slots, record));
    while (slots->slots[hole] != record + 1) {
        CHECK(slots->slots[hole] != 0);
        hole = (hole + 1) & slots->mask;
    }
    slots->slots[hole] = 0;
    slots->count--;
    /* A record may fill the hole if its home does not lie after the hole: then the hole is on its
     * way. Distances are taken around the ring, from the record's home. */
    for (uint32_t at = (hole + 1) & slots->mask; slots->slots[at] != 0; at = (at + 1) & slots->mask) {
        uint32_t home = home_of(slots, name_of(slots, slots->slots[at] - 1));
        if (((at - home) & slots->mask) < ((at - hole) & slots->mask)) { continue; }
        slots->slots[hole] = slots->slots[at];
        slots->slots[at] = 0;
        hole = at;
    }
}

void hash_slots_clear(struct hash_slots *slots)
{
    memset(slots->slots, 0, sizeof *slots->slots * ((size_t)slots->mask + 1));
    slots->count = 0;
}
