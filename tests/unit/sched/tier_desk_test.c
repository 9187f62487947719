/* A core's side of the KV tiers: what is asked for, what an answer changes, and what is cheaper. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kv/busy_time.h"
#include "kv/kv_cache.h"
#include "sched/tier_desk.h"

#define BLOCKS 32u

static struct kv_cache *cache;
static struct tier_desk *desk;

static int open_desk(uint32_t entries_max, uint32_t queue_max)
{
    struct kv_cache_config blocks = {.block_count = BLOCKS, .is_enabled = true};
    if (failed(kv_cache_create(&blocks, &cache))) { return 1; }
    struct tier_desk_config config = {.cache = cache, .entries_max = entries_max, .queue_max = queue_max};
    return failed(tier_desk_create(&config, &desk));
}

static int close_desk(void **state)
{
    (void)state;
    tier_desk_destroy(desk);
    kv_cache_destroy(cache);
    return 0;
}

static int open_roomy(void **state)
{
    (void)state;
    return open_desk(BLOCKS, 8);
}

static int open_small(void **state)
{
    (void)state;
    return open_desk(BLOCKS - 1, 8);
}

static struct kv_hash name_of(uint32_t number)
{
    uint32_t tokens[1] = {number};
    return kv_hash_next(kv_hash_root(0), tokens, 1);
}

/* Makes a cached block named after `number`. */
static uint32_t cache_block(uint32_t number)
{
    uint32_t block;
    status_t st = kv_cache_reserve(cache, 1, &block);
    assert_false(failed(st));
    assert_true(kv_cache_publish(cache, block, name_of(number), kv_hash_root(0)));
    kv_cache_release(cache, 1, &block);
    return block;
}

static bool tell(enum kv_tier_event_kind kind, const struct tier_request *request, uint64_t elapsed_ns, struct tier_load_end *ret_end)
{
    struct kv_tier_event event = {.kind = kind, .tag = request->tag, .hash = request->hash, .block = request->block,
                                  .tier = KV_TIER_HOST, .bytes = 64, .elapsed_ns = elapsed_ns};
    return tier_desk_take(desk, &event, ret_end);
}

static void audit(void)
{
    uint32_t owners[BLOCKS] = {0};
    tier_desk_audit(desk, owners);
    kv_cache_audit(cache, owners);
}

/* Without tiers there is nothing to find, to count or to check. */
static void no_desk_has_nothing(void **state)
{
    (void)state;
    enum kv_tier_kind tier;
    assert_false(tier_desk_find(NULL, name_of(1), &tier));
    assert_int_equal(tier_desk_store_count(NULL), 0);
    assert_int_equal(tier_desk_stats(NULL).stores, 0);
    tier_desk_note_use(NULL, 0, name_of(1));
    tier_desk_audit(NULL, NULL);
    tier_desk_destroy(NULL);
}

/* A store holds its block, which may neither be evicted nor stored twice, until it has ended. */
static void a_store_holds_its_block(void **state)
{
    (void)state;
    uint32_t block = cache_block(1);
    struct tier_request request;
    assert_true(tier_desk_store_ahead(desk, &request));
    assert_int_equal(request.block, block);
    assert_true(kv_hash_equal(request.hash, name_of(1)));
    assert_int_equal(kv_cache_refs(cache, block), 1);
    assert_int_equal(kv_cache_available(cache), BLOCKS - 1);
    audit();
    struct tier_request second;
    assert_false(tier_desk_store_ahead(desk, &second));
    struct tier_load_end end;
    assert_false(tell(KV_TIER_STORED, &request, 1000, &end));
    assert_int_equal(kv_cache_available(cache), BLOCKS);
    enum kv_tier_kind tier;
    assert_true(tier_desk_find(desk, name_of(1), &tier));
    assert_int_equal(tier, KV_TIER_HOST);
    assert_false(tier_desk_store_ahead(desk, &second)); /* it is there */
    assert_false(tell(KV_TIER_STORED, &request, 1000, &end)); /* an answer that comes twice */
    assert_int_equal(tier_desk_stats(desk).stores, 1);
    audit();
}

/* One that failed is not tried again and again; when its block is used again it is. */
static void a_failed_store_waits_for_the_next_use(void **state)
{
    (void)state;
    uint32_t block = cache_block(1);
    struct tier_request request;
    struct tier_load_end end;
    assert_true(tier_desk_store_ahead(desk, &request));
    assert_false(tell(KV_TIER_STORE_FAILED, &request, 0, &end));
    enum kv_tier_kind tier;
    assert_false(tier_desk_find(desk, name_of(1), &tier));
    assert_int_equal(kv_cache_available(cache), BLOCKS);
    assert_false(tier_desk_store_ahead(desk, &request));
    tier_desk_note_use(desk, block, name_of(1));
    assert_true(tier_desk_store_ahead(desk, &request));
    assert_int_equal(tier_desk_stats(desk).store_failures, 1);
    audit();
}

/* What a tier drops is not found any more, and its cached block is not stored again until it is used. */
static void a_dropped_entry_is_not_stored_round_and_round(void **state)
{
    (void)state;
    uint32_t block = cache_block(1);
    struct tier_request request;
    struct tier_load_end end;
    assert_true(tier_desk_store_ahead(desk, &request));
    assert_false(tell(KV_TIER_STORED, &request, 1000, &end));
    assert_false(tell(KV_TIER_DROPPED, &request, 0, &end));
    enum kv_tier_kind tier;
    assert_false(tier_desk_find(desk, name_of(1), &tier));
    assert_false(tier_desk_store_ahead(desk, &request));
    tier_desk_note_use(desk, block, name_of(1));
    assert_true(tier_desk_store_ahead(desk, &request));
}

/* Tiers that hold less than the pool take nothing while half of it is free. */
static void small_tiers_wait_until_half_is_not_free(void **state)
{
    (void)state;
    struct tier_request request;
    for (uint32_t i = 0; i < BLOCKS / 2; i++) {
        cache_block(i);
        assert_false(tier_desk_store_ahead(desk, &request));
    }
    cache_block(BLOCKS / 2);
    assert_true(tier_desk_store_ahead(desk, &request));
}

/* Stores ahead take a part of the pool and of the queue, so that loads always get through. */
static void stores_leave_room_for_loads(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < BLOCKS; i++) { cache_block(i); }
    struct tier_request request;
    uint32_t ahead = 0;
    while (tier_desk_store_ahead(desk, &request)) { ahead++; }
    assert_in_range(ahead, 1, BLOCKS / 16 + 1);
    uint32_t given = 0;
    uint32_t block;
    while (kv_cache_take(cache, name_of(BLOCKS - 1 - given), &block)) {
        if (!tier_desk_store(desk, name_of(BLOCKS - 1 - given), block, &request)) { break; }
        given++;
    }
    assert_int_equal(ahead + given, 4); /* half of 8 */
    assert_int_equal(tier_desk_store_count(desk), 4);
    kv_cache_release(cache, 1, &block);
    uint32_t target;
    status_t st = kv_cache_reserve(cache, 1, &target);
    assert_false(failed(st));
    uint32_t loads = 0;
    while (tier_desk_load(desk, name_of(100 + loads), target, &loads, loads, &request)) { loads++; }
    assert_int_equal(loads, 4);
    kv_cache_release(cache, 1, &target);
    audit();
}

/* A load comes back with its owner; a tag of another life, or of a store, ends none. */
static void a_load_ends_once_and_with_its_owner(void **state)
{
    (void)state;
    uint32_t block;
    status_t st = kv_cache_reserve(cache, 1, &block);
    assert_false(failed(st));
    struct tier_request request;
    int owner;
    assert_true(tier_desk_load(desk, name_of(1), block, &owner, 7, &request));
    struct tier_load_end end;
    assert_false(tell(KV_TIER_STORED, &request, 0, &end));
    struct tier_request other = request;
    other.tag += UINT64_C(1) << 32;
    assert_false(tell(KV_TIER_LOADED, &other, 0, &end));
    other.tag = UINT64_MAX;
    assert_false(tell(KV_TIER_LOADED, &other, 0, &end));
    assert_true(tell(KV_TIER_LOAD_FAILED, &request, 0, &end));
    assert_ptr_equal(end.owner, &owner);
    assert_int_equal(end.index, 7);
    assert_false(end.is_loaded);
    assert_false(tell(KV_TIER_LOADED, &request, 0, &end));
    assert_true(tier_desk_load(desk, name_of(1), block, &owner, 8, &other));
    assert_true(other.tag != request.tag); /* the same slot, another tag */
    assert_true(tell(KV_TIER_LOADED, &other, 5000, &end));
    assert_true(end.is_loaded);
    assert_int_equal(tier_desk_stats(desk).loads, 1);
    assert_int_equal(tier_desk_stats(desk).load_failures, 1);
    kv_cache_release(cache, 1, &block);
}

/* Before anything is measured: memory always, a disk for two blocks and more. Then by the rates. */
static void the_cheaper_one_by_what_was_measured(void **state)
{
    (void)state;
    uint64_t predicted;
    assert_true(tier_desk_load_is_cheaper(desk, (uint32_t[]){1, 0}, 16, 1, &predicted));
    assert_int_equal(predicted, 0);
    assert_false(tier_desk_load_is_cheaper(desk, (uint32_t[]){0, 1}, 16, 1000000, &predicted));
    assert_true(tier_desk_load_is_cheaper(desk, (uint32_t[]){0, 2}, 32, 1, &predicted));
    uint32_t block;
    status_t st = kv_cache_reserve(cache, 1, &block);
    assert_false(failed(st));
    struct tier_request request;
    struct tier_load_end end;
    assert_true(tier_desk_load(desk, name_of(1), block, NULL, 0, &request));
    assert_true(tell(KV_TIER_LOADED, &request, 1000000, &end)); /* 1 ms a block from memory */
    assert_true(tier_desk_load_is_cheaper(desk, (uint32_t[]){10, 0}, 160, 1000000, &predicted));
    assert_in_range(predicted, 10000000, 11000000);
    assert_false(tier_desk_load_is_cheaper(desk, (uint32_t[]){10, 0}, 160, 10000, &predicted));
    /* The rate of computing is not known: as before it was measured. */
    assert_true(tier_desk_load_is_cheaper(desk, (uint32_t[]){10, 0}, 160, 0, &predicted));
    /* Of the disk nothing is known yet, so nothing is of a mixture. */
    assert_int_equal(tier_desk_load_ns(desk, (uint32_t[]){1, 1}), 0);
    kv_cache_release(cache, 1, &block);
}

/* A disk that serves a block in a millisecond, with sixteen of them under way at any time: 64 blocks are
 * predicted to take what they do take, whether they are seen to end one by one or several at once. An
 * idle minute between two such loads costs nothing. */
static void loads_side_by_side_are_priced_by_what_they_take(void **state)
{
    (void)state;
    enum { LOADS = 64, DEPTH = 16 };
    const uint64_t ms = 1000000;
    for (uint32_t at_once = 1; at_once <= DEPTH; at_once *= 2) {
        assert_int_equal(open_desk(BLOCKS, LOADS), 0);
        uint32_t block;
        status_t st = kv_cache_reserve(cache, 1, &block);
        assert_false(failed(st));
        struct busy_time busy = {0};
        for (uint64_t start_ns = ms; start_ns < 121000 * ms; start_ns += 60000 * ms) {
            uint64_t begin_ns[LOADS];
            for (uint32_t i = 0; i < DEPTH; i++) { begin_ns[i] = start_ns; }
            for (uint32_t ended = 0; ended < LOADS; ended += at_once) {
                uint64_t now_ns = start_ns + (ended + at_once) * ms;
                uint64_t share_ns = busy_time_share(&busy, begin_ns[ended], at_once, now_ns);
                for (uint32_t i = ended; i < ended + at_once; i++) {
                    if (i + DEPTH < LOADS) { begin_ns[i + DEPTH] = now_ns; }
                    struct tier_request request;
                    struct tier_load_end end;
                    assert_true(tier_desk_load(desk, name_of(i), block, NULL, i, &request));
                    assert_true(tell(KV_TIER_LOADED, &request, share_ns, &end));
                }
            }
            uint64_t predicted_ns = tier_desk_load_ns(desk, (uint32_t[KV_TIER_COUNT]){LOADS});
            assert_in_range(predicted_ns, LOADS * ms * 95 / 100, LOADS * ms * 105 / 100);
        }
        assert_int_equal(busy_time_share(&busy, 0, 0, UINT64_MAX), 0);
        assert_int_equal(busy_time_share(&busy, 0, 1, 0), 0); /* before what is counted already */
        kv_cache_release(cache, 1, &block);
        (void)close_desk(NULL);
    }
}

/* Of declined prefixes each 16th is loaded in part, so that a tier that was slow once is measured again. */
static void each_sixteenth_declined_prefix_is_a_probe(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 64; i++) {
        assert_int_equal(tier_desk_probe_blocks(desk) > 0, i % 16 == 15);
        tier_desk_note_declined(desk);
    }
    assert_int_equal(tier_desk_stats(desk).declined, 64);
    assert_int_equal(tier_desk_stats(desk).probes, 4);
}

/* Stores go where the last copy went: one that a tier had already says nothing of that. */
static void stores_go_where_the_last_one_went(void **state)
{
    (void)state;
    struct tier_load_end end;
    for (uint32_t i = 0; i < 3; i++) {
        (void)cache_block(i);
        struct tier_request request;
        assert_true(tier_desk_store_ahead(desk, &request));
        struct kv_tier_event event = {.kind = KV_TIER_STORED, .tag = request.tag, .hash = request.hash, .block = request.block,
                                      .tier = i == 1 ? KV_TIER_HOST : KV_TIER_DISK, .bytes = i == 1 ? 0 : 64, .elapsed_ns = 1000};
        assert_false(tier_desk_take(desk, &event, &end));
        assert_int_equal(tier_desk_store_tier(desk), KV_TIER_DISK);
    }
    assert_true(tier_desk_store_ns(desk, 1) > 0);
    assert_int_equal(tier_desk_load_ns(desk, (uint32_t[KV_TIER_COUNT]){[KV_TIER_DISK] = 1}), 0);
}

/* What moved or was found on disk is known to be there. */
static void the_index_follows_the_tiers(void **state)
{
    (void)state;
    struct tier_load_end end;
    struct kv_tier_event event = {.kind = KV_TIER_FOUND, .hash = name_of(1), .tier = KV_TIER_DISK};
    assert_false(tier_desk_take(desk, &event, &end));
    assert_int_equal(tier_desk_stats(desk).entries[KV_TIER_DISK], 1);
    event = (struct kv_tier_event){.kind = KV_TIER_MOVED, .hash = name_of(1), .tier = KV_TIER_HOST};
    assert_false(tier_desk_take(desk, &event, &end));
    assert_int_equal(tier_desk_stats(desk).entries[KV_TIER_DISK], 0);
    assert_int_equal(tier_desk_stats(desk).entries[KV_TIER_HOST], 1);
    event.kind = KV_TIER_DROPPED;
    assert_false(tier_desk_take(desk, &event, &end));
    assert_false(tier_desk_take(desk, &event, &end));
    assert_int_equal(tier_desk_stats(desk).entries[KV_TIER_HOST], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_desk_has_nothing),
        cmocka_unit_test_setup_teardown(a_store_holds_its_block, open_roomy, close_desk),
        cmocka_unit_test_setup_teardown(a_failed_store_waits_for_the_next_use, open_roomy, close_desk),
        cmocka_unit_test_setup_teardown(a_dropped_entry_is_not_stored_round_and_round, open_roomy, close_desk),
        cmocka_unit_test_setup_teardown(small_tiers_wait_until_half_is_not_free, open_small, close_desk),
        cmocka_unit_test_setup_teardown(stores_leave_room_for_loads, open_roomy, close_desk),
        cmocka_unit_test_setup_teardown(a_load_ends_once_and_with_its_owner, open_roomy, close_desk),
        cmocka_unit_test_setup_teardown(the_cheaper_one_by_what_was_measured, open_roomy, close_desk),
        cmocka_unit_test(loads_side_by_side_are_priced_by_what_they_take),
        cmocka_unit_test_setup_teardown(each_sixteenth_declined_prefix_is_a_probe, open_roomy, close_desk),
        cmocka_unit_test_setup_teardown(stores_go_where_the_last_one_went, open_roomy, close_desk),
        cmocka_unit_test_setup_teardown(the_index_follows_the_tiers, open_roomy, close_desk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
