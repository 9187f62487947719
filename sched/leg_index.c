#include "sched/leg_index.h"

#include <stdlib.h>

#include "base/check.h"

/* Linear probing with backward shift: no tombstones, so the table never has to be rebuilt. */
struct entry {
    struct leg_id id;
    void *leg;   /* NULL: ended */
    bool is_set;
};

struct leg_index {
    uint32_t mask;
    uint32_t live_count, live_max;
    struct entry *entries;  /* [mask + 1], at most half full */
    uint32_t ended_count, ended_max, ended_next;
    struct leg_id *ended;   /* [ended_max], a ring */
};

static uint32_t find_entry(const struct leg_index *index, struct leg_id id);
static void remove_entry(struct leg_index *index, uint32_t at);

static uint32_t hash(struct leg_id id)
{
    uint64_t mixed = (id.hi ^ (id.lo * UINT64_C(0x9e3779b97f4a7c15))) * UINT64_C(0xbf58476d1ce4e5b9);
    return (uint32_t)(mixed >> 32);
}

status_t leg_index_create(uint32_t live_max, uint32_t ended_max, struct leg_index **ret_index)
{
    struct leg_index *index = calloc(1, sizeof *index);
    if (index == NULL) { goto fail; }
    uint64_t slots = 16;
    while (slots < 2 * ((uint64_t)live_max + ended_max + 1)) { slots *= 2; }
    if (slots > UINT32_MAX) { goto fail; }
    index->mask = (uint32_t)(slots - 1);
    index->live_max = live_max;
    index->ended_max = ended_max;
    index->entries = calloc(slots, sizeof *index->entries);
    if (index->entries == NULL) { goto fail; }
    index->ended = calloc((size_t)ended_max + 1, sizeof *index->ended);
    if (index->ended == NULL) { goto fail; }
    *ret_index = index;
    return STATUS_OK;
fail:
    leg_index_destroy(index);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}

void leg_index_destroy(struct leg_index *index)
{
    if (index == NULL) { return; }
    free(index->ended);
    free(index->entries);
    free(index);
}

void leg_index_add(struct leg_index *index, struct leg_id id, void *leg)
{
    CHECK(index->live_count < index->live_max);
    uint32_t at = find_entry(index, id);
    CHECK(!index->entries[at].is_set);
    index->entries[at] = (struct entry){.id = id, .leg = leg, .is_set = true};
    index->live_count++;
}

void leg_index_remove(struct leg_index *index, struct leg_id id)
{
    uint32_t at = find_entry(index, id);
    CHECK(index->entries[at].is_set);
    CHECK(index->entries[at].leg != NULL);
    index->live_count--;
    remove_entry(index, at);
    leg_index_remember(index, id);
}

void leg_index_remember(struct leg_index *index, struct leg_id id)
{
    if (index->ended_max == 0) { return; }
    if (index->ended_count == index->ended_max) {
        remove_entry(index, find_entry(index, index->ended[index->ended_next]));
    } else {
        index->ended_count++;
    }
    uint32_t at = find_entry(index, id);
    CHECK(!index->entries[at].is_set);
    index->entries[at] = (struct entry){.id = id, .is_set = true};
    index->ended[index->ended_next] = id;
    index->ended_next = (index->ended_next + 1) % index->ended_max;
}

void *leg_index_find(const struct leg_index *index, struct leg_id id)
{
    return index->entries[find_entry(index, id)].leg;
}

bool leg_index_is_known(const struct leg_index *index, struct leg_id id)
{
    return index->entries[find_entry(index, id)].is_set;
}

uint32_t leg_index_live_count(const struct leg_index *index) { return index->live_count; }

/* Where the id is, or where it would go. */
static uint32_t find_entry(const struct leg_index *index, struct leg_id id)
{
    uint32_t at = hash(id) & index->mask;
    while (index->entries[at].is_set && !leg_id_equal(index->entries[at].id, id)) { at = (at + 1) & index->mask; }
    return at;
}

static void remove_entry(struct leg_index *index, uint32_t at)
{
    uint32_t hole = at;
    for (uint32_t next = (at + 1) & index->mask; index->entries[next].is_set; next = (next + 1) & index->mask) {
        uint32_t home = hash(index->entries[next].id) & index->mask;
        /* An entry may move into the hole only if its home is not behind the hole. */
        if (((next - home) & index->mask) < ((next - hole) & index->mask)) { continue; }
        index->entries[hole] = index->entries[next];
        hole = next;
    }
    index->entries[hole] = (struct entry){0};
}
