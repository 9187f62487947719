/* kv_cache against a naive model: random sequences over a small tree of prompts, so that prefixes
 * are shared, computed twice side by side, given back from the front, evicted and computed again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "kv/kv_cache.h"
#include "tests/unit/heap/counting_heap.h"

#define NONE UINT32_MAX
enum { TOTAL = 24, DEPTH = 6, NODES = 2 << DEPTH, SEQUENCES = 5, HOLDS = 4 };

/* A node of the tree is its path: 1 is the root, 2n and 2n+1 are the children of n. */
struct sequence {
    bool is_live;
    uint32_t leaf, first, count, published; /* blocks first .. count-1 are still held */
    uint32_t blocks[DEPTH];
};

struct world {
    uint64_t seed;
    uint32_t step;
    struct rng rng;
    struct kv_cache *cache;
    struct kv_hash names[NODES];
    uint32_t refs[TOTAL];
    bool is_quarantined[TOTAL];
    uint32_t node_of[TOTAL];  /* by name; NONE */
    uint32_t alias_of[TOTAL]; /* published while another block had the name; NONE */
    uint32_t block_of[NODES]; /* NONE: the name is not here */
    bool is_orphan[NODES];    /* its parent was evicted while it was held: nothing ties it to the next one */
    struct sequence sequences[SEQUENCES];
    uint32_t holds[HOLDS];
};

#define EXPECT(world, cond)                                                                              \
    do {                                                                                                 \
        if (!(cond)) { fail_msg("seed %llu, step %u: %s", (unsigned long long)(world)->seed, (world)->step, #cond); } \
    } while (0)

static uint32_t below(struct world *world, uint32_t bound) { return (uint32_t)rng_below(&world->rng, bound); }

static uint32_t node_at(const struct sequence *sequence, uint32_t depth)
{
    return sequence->leaf >> (DEPTH - 1 - depth);
}

static void model_count(const struct world *world, uint32_t *ret_held, uint32_t *ret_cached, uint32_t *ret_quarantined)
{
    *ret_held = *ret_cached = *ret_quarantined = 0;
    for (uint32_t b = 0; b < TOTAL; b++) {
        *ret_held += world->refs[b] > 0;
        *ret_cached += world->refs[b] == 0 && world->node_of[b] != NONE;
        *ret_quarantined += world->is_quarantined[b];
    }
}

/* What was evicted: as many as were needed, none of it held, and no cached child before whom its
 * parent went. */
static void model_evict(struct world *world, uint32_t needed)
{
    bool was_evicted[NODES] = {false};
    uint32_t evicted = 0;
    for (uint32_t n = 1; n < NODES; n++) {
        uint32_t block = world->block_of[n];
        if (block == NONE || kv_cache_has(world->cache, world->names[n])) { continue; }
        EXPECT(world, world->refs[block] == 0);
        world->block_of[n] = NONE;
        world->node_of[block] = NONE;
        was_evicted[n] = true;
        evicted++;
    }
    EXPECT(world, evicted == needed);
    for (uint32_t n = 2; n < NODES; n++) {
        if (!was_evicted[n / 2] || world->block_of[n] == NONE) { continue; }
        EXPECT(world, world->refs[world->block_of[n]] > 0 || world->is_orphan[n]);
        world->is_orphan[n] = true;
    }
}

static bool reserve(struct world *world, uint32_t count, uint32_t *ret_blocks)
{
    uint32_t held, cached, quarantined;
    model_count(world, &held, &cached, &quarantined);
    uint32_t free_count = TOTAL - held - cached - quarantined;
    EXPECT(world, kv_cache_available(world->cache) == free_count + cached);
    bool fits = !failed(kv_cache_reserve(world->cache, count, ret_blocks));
    EXPECT(world, fits == (count <= free_count + cached));
    model_evict(world, fits && count > free_count ? count - free_count : 0);
    for (uint32_t i = 0; fits && i < count; i++) {
        uint32_t block = ret_blocks[i];
        EXPECT(world, world->refs[block] == 0);
        EXPECT(world, world->node_of[block] == NONE);
        EXPECT(world, !world->is_quarantined[block]);
        world->refs[block] = 1;
        world->alias_of[block] = NONE;
    }
    return fits;
}

static void give_back(struct world *world, uint32_t count, const uint32_t *blocks)
{
    for (uint32_t i = count; i-- > 0;) {
        uint32_t block = blocks[i];
        uint32_t alias = world->alias_of[block];
        if (--world->refs[block] > 0) { continue; }
        world->alias_of[block] = NONE;
        if (world->node_of[block] != NONE || alias == NONE || world->block_of[alias] != NONE) { continue; }
        world->node_of[block] = alias;
        world->block_of[alias] = block;
        world->is_orphan[alias] = false;
    }
    kv_cache_release(world->cache, count, blocks);
}

static void publish_next(struct world *world, struct sequence *sequence)
{
    if (sequence->published == sequence->count) { return; }
    uint32_t depth = sequence->published++;
    if (depth < sequence->first) { return; }
    uint32_t block = sequence->blocks[depth];
    uint32_t node = node_at(sequence, depth);
    bool is_named = kv_cache_publish(world->cache, block, world->names[node], world->names[node / 2]);
    EXPECT(world, is_named == (world->block_of[node] == NONE));
    if (is_named) {
        world->block_of[node] = block;
        world->node_of[block] = node;
        world->is_orphan[node] = false;
    } else {
        world->alias_of[block] = node;
    }
}

static void start(struct world *world, struct sequence *sequence)
{
    *sequence = (struct sequence){.leaf = (1u << DEPTH) + below(world, 1u << DEPTH), .count = 1 + below(world, DEPTH)};
    sequence->leaf >>= 1; /* a node of depth DEPTH - 1 stands for the whole path */
    bool tries = below(world, 2) == 0;
    bool only_looks = tries && below(world, 2) == 0;
    while (sequence->published < sequence->count) {
        uint32_t node = node_at(sequence, sequence->published);
        uint32_t block;
        bool is_found = tries ? kv_cache_try(world->cache, world->names[node], &block)
                              : kv_cache_take(world->cache, world->names[node], &block);
        EXPECT(world, is_found == (world->block_of[node] != NONE));
        if (!is_found) { break; }
        EXPECT(world, block == world->block_of[node]);
        world->refs[block]++;
        world->is_orphan[node] = false;
        sequence->blocks[sequence->published++] = block;
    }
    if (only_looks || !reserve(world, sequence->count - sequence->published, sequence->blocks + sequence->published)) {
        give_back(world, sequence->published, sequence->blocks);
        return;
    }
    for (uint32_t i = 0; tries && i < sequence->published; i++) { kv_cache_note_use(world->cache, sequence->blocks[i]); }
    sequence->is_live = true;
}

static void move_sequence(struct world *world)
{
    struct sequence *sequence = &world->sequences[below(world, SEQUENCES)];
    if (!sequence->is_live) {
        start(world, sequence);
        return;
    }
    switch (below(world, 6)) {
    case 0: /* its window slides: the front is given back while the rest is held */
        if (sequence->first < sequence->published) { give_back(world, 1, &sequence->blocks[sequence->first++]); }
        break;
    case 1:
        give_back(world, sequence->count - sequence->first, sequence->blocks + sequence->first);
        sequence->is_live = false;
        break;
    default:
        publish_next(world, sequence);
        break;
    }
}

static void move_hold(struct world *world)
{
    uint32_t *hold = &world->holds[below(world, HOLDS)];
    if (*hold != NONE) {
        if (below(world, 2) == 0) { kv_cache_mark_stored(world->cache, *hold, below(world, 4) != 0); }
        give_back(world, 1, hold);
        *hold = NONE;
        return;
    }
    uint32_t blocks[TOTAL];
    struct kv_hash names[TOTAL];
    uint32_t count = kv_cache_victims(world->cache, TOTAL, blocks, names);
    for (uint32_t i = 0; i < count; i++) {
        EXPECT(world, world->refs[blocks[i]] == 0);
        EXPECT(world, !kv_cache_is_stored(world->cache, blocks[i]));
        EXPECT(world, world->node_of[blocks[i]] != NONE);
        EXPECT(world, kv_hash_equal(names[i], world->names[world->node_of[blocks[i]]]));
    }
    if (count == 0) { return; }
    *hold = blocks[below(world, count)];
    kv_cache_hold(world->cache, *hold);
    world->refs[*hold]++;
}

static void move_quarantine(struct world *world)
{
    uint32_t block = below(world, TOTAL);
    if (world->is_quarantined[block]) {
        kv_cache_fence(world->cache, 1, &block);
        world->is_quarantined[block] = false;
    } else if (reserve(world, 1, &block)) {
        kv_cache_quarantine(world->cache, 1, &block);
        world->refs[block] = 0;
        world->is_quarantined[block] = true;
    }
}

static void compare(struct world *world)
{
    struct kv_pool_counts counts = kv_cache_counts(world->cache);
    uint32_t held, cached, quarantined;
    model_count(world, &held, &cached, &quarantined);
    EXPECT(world, counts.held == held);
    EXPECT(world, counts.cached == cached);
    EXPECT(world, counts.quarantined == quarantined);
    EXPECT(world, counts.free == TOTAL - held - cached - quarantined);
    for (uint32_t n = 1; n < NODES; n++) { EXPECT(world, kv_cache_has(world->cache, world->names[n]) == (world->block_of[n] != NONE)); }
    kv_cache_audit(world->cache, world->refs);
}

static void one_run(uint64_t seed)
{
    struct world world = {.seed = seed, .rng = rng_init(seed)};
    struct kv_cache_config config = {.block_count = TOTAL, .is_enabled = true};
    assert_false(failed(kv_cache_create(&config, &world.cache)));
    memset(world.node_of, 0xff, sizeof world.node_of);
    memset(world.alias_of, 0xff, sizeof world.alias_of);
    memset(world.block_of, 0xff, sizeof world.block_of);
    memset(world.holds, 0xff, sizeof world.holds);
    world.names[1] = world.names[0] = kv_hash_root(0);
    for (uint32_t n = 1; n < NODES; n++) { world.names[n] = kv_hash_next(world.names[n / 2], &n, 1); }
    uint64_t after_create = heap_allocations();
    for (world.step = 0; world.step < 1500; world.step++) {
        uint32_t choice = below(&world, 100);
        if (choice < 80) {
            move_sequence(&world);
        } else if (choice < 90) {
            move_hold(&world);
        } else if (choice < 94) {
            move_quarantine(&world);
        } else if (choice < 98) {
            uint32_t blocks[TOTAL];
            uint32_t count = below(&world, TOTAL);
            if (reserve(&world, count, blocks)) { give_back(&world, count, blocks); }
        } else {
            uint32_t block = below(&world, TOTAL);
            if (world.node_of[block] != NONE) { kv_cache_mark_stored(world.cache, block, below(&world, 2) != 0); }
        }
        compare(&world);
    }
    assert_int_equal(heap_allocations(), after_create);
    kv_cache_destroy(world.cache);
}

/* The cache finds exactly what the model says, evicts no more than it must, never a parent before
 * its cached child, and allocates nothing after create. */
static void random_sequences_agree_with_a_naive_cache(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) { one_run(seed); }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_sequences_agree_with_a_naive_cache)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
