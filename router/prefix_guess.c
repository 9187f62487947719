#include "router/prefix_guess.h"

#include <stdlib.h>

#include "base/check.h"
#include "kv/hash_slots.h"

#define NONE UINT32_MAX

struct record {
    struct kv_hash name;
    uint32_t younger, older;
};

struct prefix_guess {
    struct hash_slots slots;
    uint32_t count, blocks_max;
    uint32_t youngest, oldest;
    struct record records[]; /* [blocks_max] */
};

status_t prefix_guess_create(uint32_t blocks_max, struct prefix_guess **ret_guess)
{
    CHECK(blocks_max >= 1);
    struct prefix_guess *guess = calloc(1, sizeof *guess + blocks_max * sizeof guess->records[0]);
    if (!guess) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    status_t st = hash_slots_init(&guess->slots, blocks_max, &guess->records[0].name, sizeof guess->records[0]);
    if (failed(st)) {
        free(guess);
        return st;
    }
    guess->blocks_max = blocks_max;
    guess->youngest = guess->oldest = NONE;
    *ret_guess = guess;
    return STATUS_OK;
}

void prefix_guess_destroy(struct prefix_guess *guess)
{
    if (!guess) { return; }
    hash_slots_fini(&guess->slots);
    free(guess);
}

uint32_t prefix_guess_find(const struct prefix_guess *guess, const struct kv_hash *names, uint32_t count)
{
    uint32_t record;
    /* What is there of a chain is its beginning: the first `low` are there, those from `high` on
     * are not. Doubling first: most chains are short, or not there at all. */
    uint32_t low = 0, high = 1;
    while (high <= count && hash_slots_find(&guess->slots, names[high - 1], &record)) {
        low = high;
        high *= 2;
    }
    if (high > count) { high = count + 1; }
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (hash_slots_find(&guess->slots, names[middle - 1], &record)) { low = middle; } else { high = middle; }
    }
    return low;
}

static void unlink_record(struct prefix_guess *guess, uint32_t at)
{
    const struct record *record = &guess->records[at];
    if (record->younger != NONE) { guess->records[record->younger].older = record->older; } else { guess->youngest = record->older; }
    if (record->older != NONE) { guess->records[record->older].younger = record->younger; } else { guess->oldest = record->younger; }
}

/* Right behind `younger`; NONE: before all. */
static void link_behind(struct prefix_guess *guess, uint32_t younger, uint32_t at)
{
    struct record *record = &guess->records[at];
    record->younger = younger;
    record->older = younger == NONE ? guess->youngest : guess->records[younger].older;
    if (record->older != NONE) { guess->records[record->older].younger = at; } else { guess->oldest = at; }
    if (younger != NONE) { guess->records[younger].older = at; } else { guess->youngest = at; }
}

static uint32_t take_record(struct prefix_guess *guess)
{
    if (guess->count < guess->blocks_max) { return guess->count++; }
    uint32_t at = guess->oldest;
    unlink_record(guess, at);
    hash_slots_remove(&guess->slots, at);
    return at;
}

void prefix_guess_add(struct prefix_guess *guess, const struct kv_hash *names, uint32_t count)
{
    if (count > guess->blocks_max) { count = guess->blocks_max; }
    /* From the end to the beginning, so that the beginning is youngest. */
    for (uint32_t i = count; i-- > 0;) {
        uint32_t at;
        if (hash_slots_find(&guess->slots, names[i], &at)) {
            unlink_record(guess, at);
        } else {
            at = take_record(guess);
            guess->records[at].name = names[i];
            hash_slots_add(&guess->slots, at);
        }
        link_behind(guess, NONE, at);
    }
}

void prefix_guess_extend(struct prefix_guess *guess, struct kv_hash parent, const struct kv_hash *names, uint32_t count)
{
    uint32_t before, at;
    if (!hash_slots_find(&guess->slots, parent, &before)) { return; }
    for (uint32_t i = 0; i < count; i++) {
        if (!hash_slots_find(&guess->slots, names[i], &at)) {
            if (guess->count == guess->blocks_max && guess->oldest == before) { return; } /* the chain itself is the oldest */
            at = take_record(guess);
            guess->records[at].name = names[i];
            hash_slots_add(&guess->slots, at);
            link_behind(guess, before, at);
        }
        before = at;
    }
}

void prefix_guess_names(uint64_t cache_salt, const uint32_t *tokens, uint32_t block_tokens, uint32_t count,
                        struct kv_hash *ret_names)
{
    struct kv_hash name = kv_hash_root(cache_salt);
    for (uint32_t i = 0; i < count; i++) {
        ret_names[i] = name = kv_hash_next(name, tokens + (size_t)i * block_tokens, block_tokens);
    }
}

uint32_t prefix_guess_count(const struct prefix_guess *guess) { return guess->count; }

void prefix_guess_audit(const struct prefix_guess *guess)
{
    uint32_t count = 0, younger = NONE;
    for (uint32_t at = guess->youngest; at != NONE; at = guess->records[at].older) {
        uint32_t found;
        CHECK(hash_slots_find(&guess->slots, guess->records[at].name, &found));
        CHECK(found == at);
        CHECK(guess->records[at].younger == younger);
        younger = at;
        CHECK(++count <= guess->count);
    }
    CHECK(younger == guess->oldest);
    CHECK(count == guess->count);
    CHECK(guess->slots.count == count);
}
