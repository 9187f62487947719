#include "kv/tier_slots.h"

#include <stdlib.h>

#include "base/check.h"
#include "kv/hash_slots.h"

/* Touches that wait for a settle; more settle at once. A run of loads that is longer than this
 * loses the order of its two parts, not more. */
#define TOUCHED_MAX 256u

enum slot_state { SLOT_FREE, SLOT_TAKEN, SLOT_KEPT };

struct slot {
    struct kv_hash hash;
    uint32_t next, prev; /* KEPT: in the queue; FREE: in the free list */
    uint32_t crc;
    uint16_t busy;
    uint8_t state;
    bool is_touched; /* in touched[], and not in the queue */
};

struct queue {
    uint32_t cold, warm;
    uint32_t free; /* the free list's first */
    uint32_t free_count, kept_count;
};

struct tier_slots {
    uint32_t counts[KV_TIER_COUNT];
    struct slot *slots; /* [sum of counts] */
    struct queue queues[KV_TIER_COUNT];
    struct hash_slots names;
    uint32_t touched[TOUCHED_MAX];
    uint32_t touched_count;
};

uint64_t tier_slots_bytes(uint32_t host_count, uint32_t disk_count)
{
    uint64_t count = (uint64_t)host_count + disk_count;
    return sizeof(struct tier_slots) + count * sizeof(struct slot) + hash_slots_bytes((uint32_t)count);
}

static void free_add(struct tier_slots *slots, uint32_t slot)
{
    struct queue *queue = &slots->queues[tier_slots_tier(slots, slot)];
    slots->slots[slot].prev = NO_SLOT;
    slots->slots[slot].next = queue->free;
    if (queue->free != NO_SLOT) { slots->slots[queue->free].prev = slot; }
    queue->free = slot;
    queue->free_count++;
    slots->slots[slot].state = SLOT_FREE;
}

status_t tier_slots_create(uint32_t host_count, uint32_t disk_count, struct tier_slots **ret_slots)
{
    uint32_t count = host_count + disk_count;
    struct tier_slots *slots = calloc(1, sizeof *slots);
    if (slots == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    slots->slots = calloc(count, sizeof *slots->slots);
    if (slots->slots == NULL || failed(hash_slots_init(&slots->names, count, &slots->slots[0].hash, sizeof *slots->slots))) {
        tier_slots_destroy(slots);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    slots->counts[KV_TIER_HOST] = host_count;
    slots->counts[KV_TIER_DISK] = disk_count;
    for (uint32_t tier = 0; tier < KV_TIER_COUNT; tier++) {
        struct queue *queue = &slots->queues[tier];
        *queue = (struct queue){.cold = NO_SLOT, .warm = NO_SLOT, .free = NO_SLOT};
        /* Number 0 comes out first. */
        for (uint32_t i = slots->counts[tier]; i-- > 0;) { free_add(slots, tier_slots_at(slots, (enum kv_tier_kind)tier, i)); }
    }
    *ret_slots = slots;
    return STATUS_OK;
}

void tier_slots_destroy(struct tier_slots *slots)
{
    if (slots == NULL) { return; }
    hash_slots_fini(&slots->names);
    free(slots->slots);
    free(slots);
}

enum kv_tier_kind tier_slots_tier(const struct tier_slots *slots, uint32_t slot)
{
    return slot < slots->counts[KV_TIER_HOST] ? KV_TIER_HOST : KV_TIER_DISK;
}

uint32_t tier_slots_number(const struct tier_slots *slots, uint32_t slot)
{
    return slot < slots->counts[KV_TIER_HOST] ? slot : slot - slots->counts[KV_TIER_HOST];
}

uint32_t tier_slots_at(const struct tier_slots *slots, enum kv_tier_kind tier, uint32_t number)
{
    return tier == KV_TIER_HOST ? number : slots->counts[KV_TIER_HOST] + number;
}

bool tier_slots_find(const struct tier_slots *slots, struct kv_hash hash, uint32_t *ret_slot)
{
    return hash_slots_find(&slots->names, hash, ret_slot);
}

uint32_t tier_slots_free(const struct tier_slots *slots, enum kv_tier_kind tier) { return slots->queues[tier].free_count; }
uint32_t tier_slots_kept(const struct tier_slots *slots, enum kv_tier_kind tier) { return slots->queues[tier].kept_count; }

void tier_slots_take_at(struct tier_slots *slots, uint32_t slot)
{
    struct queue *queue = &slots->queues[tier_slots_tier(slots, slot)];
    uint32_t next = slots->slots[slot].next;
    uint32_t prev = slots->slots[slot].prev;
    CHECK(slots->slots[slot].state == SLOT_FREE);
    *(prev == NO_SLOT ? &queue->free : &slots->slots[prev].next) = next;
    if (next != NO_SLOT) { slots->slots[next].prev = prev; }
    queue->free_count--;
    slots->slots[slot].state = SLOT_TAKEN;
}

uint32_t tier_slots_take(struct tier_slots *slots, enum kv_tier_kind tier)
{
    uint32_t slot = slots->queues[tier].free;
    if (slot != NO_SLOT) { tier_slots_take_at(slots, slot); }
    return slot;
}

static void queue_add_warm(struct tier_slots *slots, uint32_t slot)
{
    struct queue *queue = &slots->queues[tier_slots_tier(slots, slot)];
    slots->slots[slot].prev = queue->warm;
    slots->slots[slot].next = NO_SLOT;
    *(queue->warm == NO_SLOT ? &queue->cold : &slots->slots[queue->warm].next) = slot;
    queue->warm = slot;
}

static void queue_remove(struct tier_slots *slots, uint32_t slot)
{
    struct queue *queue = &slots->queues[tier_slots_tier(slots, slot)];
    uint32_t next = slots->slots[slot].next;
    uint32_t prev = slots->slots[slot].prev;
    *(prev == NO_SLOT ? &queue->cold : &slots->slots[prev].next) = next;
    *(next == NO_SLOT ? &queue->warm : &slots->slots[next].prev) = prev;
}

void tier_slots_keep(struct tier_slots *slots, uint32_t slot, struct kv_hash hash, uint32_t crc)
{
    CHECK(slots->slots[slot].state == SLOT_TAKEN);
    slots->slots[slot].state = SLOT_KEPT;
    slots->slots[slot].hash = hash;
    slots->slots[slot].crc = crc;
    slots->queues[tier_slots_tier(slots, slot)].kept_count++;
    hash_slots_add(&slots->names, slot);
    queue_add_warm(slots, slot);
}

void tier_slots_unname(struct tier_slots *slots, uint32_t slot)
{
    CHECK(slots->slots[slot].state == SLOT_KEPT);
    if (slots->slots[slot].is_touched) { tier_slots_settle(slots); }
    queue_remove(slots, slot);
    hash_slots_remove(&slots->names, slot);
    slots->queues[tier_slots_tier(slots, slot)].kept_count--;
    slots->slots[slot].state = SLOT_TAKEN;
}

void tier_slots_give_back(struct tier_slots *slots, uint32_t slot)
{
    CHECK(slots->slots[slot].state == SLOT_TAKEN);
    CHECK(slots->slots[slot].busy == 0);
    free_add(slots, slot);
}

void tier_slots_touch(struct tier_slots *slots, uint32_t slot)
{
    CHECK(slots->slots[slot].state == SLOT_KEPT);
    if (slots->slots[slot].is_touched) { return; }
    if (slots->touched_count == TOUCHED_MAX) { tier_slots_settle(slots); }
    queue_remove(slots, slot);
    slots->slots[slot].is_touched = true;
    slots->touched[slots->touched_count++] = slot;
}

void tier_slots_settle(struct tier_slots *slots)
{
    while (slots->touched_count > 0) {
        uint32_t slot = slots->touched[--slots->touched_count];
        slots->slots[slot].is_touched = false;
        queue_add_warm(slots, slot);
    }
}

void tier_slots_busy(struct tier_slots *slots, uint32_t slot)
{
    CHECK(slots->slots[slot].busy < UINT16_MAX);
    slots->slots[slot].busy++;
}

bool tier_slots_unbusy(struct tier_slots *slots, uint32_t slot)
{
    CHECK(slots->slots[slot].busy > 0);
    return --slots->slots[slot].busy == 0;
}

bool tier_slots_is_kept(const struct tier_slots *slots, uint32_t slot) { return slots->slots[slot].state == SLOT_KEPT; }
bool tier_slots_is_busy(const struct tier_slots *slots, uint32_t slot) { return slots->slots[slot].busy > 0; }
struct kv_hash tier_slots_hash(const struct tier_slots *slots, uint32_t slot) { return slots->slots[slot].hash; }
uint32_t tier_slots_crc(const struct tier_slots *slots, uint32_t slot) { return slots->slots[slot].crc; }

uint32_t tier_slots_coldest(struct tier_slots *slots, enum kv_tier_kind tier)
{
    for (uint32_t round = 0; round < 2; round++) {
        uint32_t slot = slots->queues[tier].cold;
        while (slot != NO_SLOT && slots->slots[slot].busy > 0) { slot = slots->slots[slot].next; }
        if (slot != NO_SLOT || slots->touched_count == 0) { return slot; }
        tier_slots_settle(slots);
    }
    return NO_SLOT;
}
