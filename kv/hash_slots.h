/* hash_slots: finds the index of a record by the kv_hash in it; never grows.
 * Flow:    kv_cache, tier_index, kv_tier: an array of records with a name each -> [hash_slots]
 * Thread:  the owner's.
 * Memory:  4 bytes for each of at least twice as many slots as records, taken at init.
 *
 * Open addressing with linear probing; removal moves later records back, so that there are no
 * tombstones and a table that lives for months is as fast as a new one. The names are SHA-256:
 * their first bytes serve as they are. */
#ifndef BATON_KV_HASH_SLOTS_H
#define BATON_KV_HASH_SLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kv/kv_hash.h"

struct hash_slots {
    uint32_t *slots; /* [mask + 1] a record's index + 1; 0: empty */
    uint32_t mask;
    uint32_t count;
    const uint8_t *names; /* borrows until fini: the name of record 0 */
    size_t stride;        /* bytes from one record's name to the next one's */
};

/* records_max  1 .. 2^30
 * Errors  RESOURCE_EXHAUSTED (node): no memory; slots is as after fini. */
NODISCARD status_t hash_slots_init(struct hash_slots *slots, uint32_t records_max, const struct kv_hash *names, size_t stride);
void hash_slots_fini(struct hash_slots *slots); /* takes a zeroed one */

/* Bytes that init takes. */
size_t hash_slots_bytes(uint32_t records_max);

bool hash_slots_find(const struct hash_slots *slots, struct kv_hash hash, uint32_t *ret_record);

/* By the name in the record, which must not be here yet; at most records_max. */
void hash_slots_add(struct hash_slots *slots, uint32_t record);

/* By the name in the record, which must be here (CHECK). */
void hash_slots_remove(struct hash_slots *slots, uint32_t record);

void hash_slots_clear(struct hash_slots *slots);

#endif
