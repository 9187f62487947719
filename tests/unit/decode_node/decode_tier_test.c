/* The KV tiers: what is saved and when, what is loaded rather than computed, and what failures cost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/decode_node/decode_world.h"

#define MS UINT64_C(1000000)

static struct world *open_tiered(uint32_t block_count, enum decode_preempt preempt)
{
    struct decode_core_config config = world_config(block_count, 4);
    config.prefix_cache = true;
    config.tier_entries_max = 200;
    config.tier_queue_max = 8;
    config.preempt = preempt;
    return world_open(&config);
}

static struct world_leg *leg_of(struct world *world, uint32_t prompt, uint32_t max_tokens, uint64_t seed, bool is_local)
{
    struct world_leg *leg = world_leg(world, 0, prompt, max_tokens, seed);
    leg->reserve.work.params.ignore_eos = true;
    leg->reserve.local_prefill = is_local;
    return leg;
}

static struct world_leg *run_leg(struct world *world, uint32_t prompt, uint32_t max_tokens, uint64_t seed, bool is_local)
{
    struct world_leg *leg = leg_of(world, prompt, max_tokens, seed, is_local);
    world_reserve(world, leg);
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    return leg;
}

/* Fills the pool with other texts until nothing of what was there before is left in it. */
static void push_out(struct world *world)
{
    for (uint64_t i = 0; i < 3; i++) { run_leg(world, world->config.block_count * 4 - 8, 2, 1000 + world->leg_count, true); }
}

/* Tiers under a pool whose blocks are never found again are a mistake, and said so. */
static void tiers_need_the_prefix_cache(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(32, 4);
    config.tier_entries_max = 10;
    struct decode_core *core = NULL;
    struct diag diag;
    assert_int_equal(decode_core_create(&config, &core, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "prefix_cache"));
}

/* What is cached is stored before it must go; tiers that are smaller than the pool are not filled while
 * half of the pool is free. */
static void blocks_are_stored_ahead_of_eviction(void **state)
{
    (void)state;
    struct world *world = open_tiered(32, DECODE_PREEMPT_AUTO);
    run_leg(world, 40, 2, 1, true);
    assert_int_equal(world->tier_stores, 10);
    world_close(world);
    struct decode_core_config config = world_config(32, 4);
    config.prefix_cache = true;
    config.tier_entries_max = 31;
    world = world_open(&config);
    run_leg(world, 40, 2, 1, true);
    assert_int_equal(world->tier_stores, 0);
    run_leg(world, 40, 2, 2, true);
    assert_true(world->tier_stores > 0);
    assert_int_equal(world_stats(world).tier_stores, world->tier_stores);
    uint32_t stores = world->tier_stores;
    world_tick(world, 10 * MS);
    assert_int_equal(world->tier_stores, stores); /* once each */
    world_close(world);
}

/* What was evicted comes back from the tier, for a prompt computed here and for one that is granted. */
static void evicted_blocks_are_loaded_again(void **state)
{
    (void)state;
    for (uint32_t local = 0; local < 2; local++) {
        struct world *world = open_tiered(12, DECODE_PREEMPT_AUTO);
        run_leg(world, 21, 4, 1, true);
        push_out(world);
        uint64_t computed = world_stats(world).prompt_tokens_computed;
        struct world_leg *leg = leg_of(world, 21, 4, 1, local == 1);
        world_reserve(world, leg);
        assert_false(leg->has_grant);
        assert_null(world->plan);
        assert_true(world->request_count > 0);
        world_tier_end_all(world);
        assert_int_equal(leg->cached_tokens, 20);
        assert_int_equal(leg->has_grant, local == 0);
        world_finish(world);
        assert_true(world_leg_is_complete(leg));
        assert_int_equal(world_stats(world).prompt_tokens_computed - computed, local);
        assert_int_equal(world_stats(world).loads_chosen, 1);
        assert_int_equal(world_stats(world).tier_tokens_loaded, 20);
        world_close(world);
    }
}

/* Where one load fails the chain ends: the blocks behind it are computed, also those that did load. */
static void a_failed_load_ends_the_chain(void **state)
{
    (void)state;
    for (uint32_t bad = 0; bad < 5; bad++) {
        struct world *world = open_tiered(12, DECODE_PREEMPT_AUTO);
        run_leg(world, 21, 4, 1, true);
        push_out(world);
        struct world_leg *leg = leg_of(world, 21, 4, 1, true);
        world_reserve(world, leg);
        assert_int_equal(world->request_count, 5);
        world_tier_end(world, bad, false);
        world_tier_end_all(world);
        assert_true(leg->is_local);
        assert_int_equal(leg->cached_tokens, bad * 4);
        world_finish(world);
        assert_true(world_leg_is_complete(leg));
        assert_int_equal(world_stats(world).tier_load_failures, 1);
        world_close(world);
    }
}

/* A tier may drop an entry at any moment, also one that is being loaded. */
static void an_entry_that_is_gone_is_computed(void **state)
{
    (void)state;
    struct world *world = open_tiered(12, DECODE_PREEMPT_AUTO);
    run_leg(world, 21, 4, 1, true);
    push_out(world);
    while (world->entry_count > 0) { world_tier_drop(world, 0); }
    struct world_leg *leg = leg_of(world, 21, 4, 1, true);
    world_reserve(world, leg);
    assert_int_equal(leg->cached_tokens, 0);
    world_finish(world);
    push_out(world);
    leg = leg_of(world, 21, 4, 1, true);
    world_reserve(world, leg);
    assert_true(world->request_count > 0);
    while (world->entry_count > 0) { world_tier_drop(world, 0); }
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    assert_int_equal(leg->cached_tokens, 0);
    world_close(world);
}

/* Blocks that a load may still write are not given to anybody, whoever cancels. */
static void cancel_waits_for_the_loads_under_way(void **state)
{
    (void)state;
    struct world *world = open_tiered(12, DECODE_PREEMPT_AUTO);
    run_leg(world, 21, 4, 1, true);
    push_out(world);
    struct world_leg *leg = leg_of(world, 21, 4, 1, false);
    world_reserve(world, leg);
    assert_int_equal(world_stats(world).blocks_held, 6);
    world_cancel(world, leg);
    assert_int_equal(world_stats(world).blocks_held, 6);
    while (world->request_count > 1) { world_tier_end(world, 0, true); }
    assert_int_equal(world_stats(world).blocks_held, 6);
    world_tier_end(world, 0, true);
    assert_int_equal(world_stats(world).legs, 0);
    world_finish(world);
    assert_int_equal(world_stats(world).blocks_held, 0);
    assert_true(world_stats(world).idle);
    world_close(world);
}

/* A carrier that is cancelled goes on loading for the sequences that it stands for. */
static void a_cancelled_carrier_loads_for_the_others(void **state)
{
    (void)state;
    for (uint32_t ended = 0; ended < 6; ended++) {
        struct decode_core_config config = world_config(14, 4);
        config.prefix_cache = true;
        config.tier_entries_max = 200;
        config.tier_queue_max = 2; /* so that some loads are asked for after the cancel */
        struct world *world = world_open(&config);
        run_leg(world, 21, 4, 1, true);
        push_out(world);
        struct world_leg *leg = leg_of(world, 21, 4, 1, true);
        leg->reserve.work.params.n = 2;
        leg->reserve.work.sequence_count = 2;
        world_reserve(world, leg);
        for (uint32_t i = 0; i < ended && world->request_count > 0; i++) { world_tier_end(world, 0, true); }
        world_cancel_seq(world, leg, 0);
        world_finish(world);
        assert_int_equal(leg->output_count[1], 4);
        assert_int_equal(leg->cached_tokens, 20);
        world_close(world);
    }
}

/* A text longer than the queue is loaded in several goes. */
static void a_full_queue_of_the_tiers_takes_turns(void **state)
{
    (void)state;
    struct decode_core_config config = world_config(40, 4);
    config.prefix_cache = true;
    config.tier_entries_max = 200;
    config.tier_queue_max = 3;
    struct world *world = world_open(&config);
    run_leg(world, 81, 4, 1, true);
    for (uint64_t i = 0; i < 3; i++) { run_leg(world, 150, 2, 1000 + i, true); }
    struct world_leg *leg = leg_of(world, 81, 4, 1, false);
    world_reserve(world, leg);
    while (!leg->has_grant) {
        assert_in_range(world->request_count, 1, 3);
        world_tier_end(world, world->request_count - 1, true);
    }
    assert_int_equal(leg->cached_tokens, 80);
    world_finish(world);
    assert_true(world_leg_is_complete(leg));
    world_close(world);
}

/* By measured rates: slow loads are declined, and counted, where computing is cheaper. */
static void the_cheaper_one_is_chosen_by_measured_rates(void **state)
{
    (void)state;
    struct world *world = open_tiered(12, DECODE_PREEMPT_AUTO);
    run_leg(world, 21, 4, 1, true);
    push_out(world);
    run_leg(world, 21, 4, 1, true); /* not measured yet: loaded */
    assert_int_equal(world_stats(world).loads_chosen, 1);
    push_out(world);
    /* 500 ns a block and 200 us for the way, against 20 tokens of about 1 us. */
    struct world_leg *leg = run_leg(world, 21, 4, 1, true);
    assert_int_equal(leg->cached_tokens, 0);
    assert_int_equal(world_stats(world).loads_chosen, 1);
    assert_int_equal(world_stats(world).loads_declined, 1);
    world_close(world);
}

/* A disk that has it from an earlier life serves it; one block alone is not worth the first trip. */
static void what_the_disk_had_is_found(void **state)
{
    (void)state;
    struct world *world = open_tiered(12, DECODE_PREEMPT_AUTO);
    run_leg(world, 21, 4, 1, true);
    push_out(world);
    struct world_tier_entry entries[WORLD_TIER_MAX];
    uint32_t count = world->entry_count;
    memcpy(entries, world->entries, sizeof entries);
    world_close(world);
    world = open_tiered(12, DECODE_PREEMPT_AUTO);
    for (uint32_t i = 0; i < count; i++) {
        entries[i].tier = KV_TIER_DISK;
        world_tier_find(world, &entries[i]);
    }
    struct world_leg *leg = run_leg(world, 6, 2, 1, true); /* one block */
    assert_int_equal(leg->cached_tokens, 0);
    leg = run_leg(world, 21, 4, 1, true); /* one is in the pool now */
    assert_int_equal(leg->cached_tokens, 20);
    assert_int_equal(world_stats(world).tier_loads, 4);
    world_close(world);
}

/* Preempted by swap: every full block is saved before it is given up, and loaded again; by recompute:
 * nothing is. Either way the tokens are the same, which the world checks. */
static void a_preempted_sequence_is_swapped_or_computed(void **state)
{
    (void)state;
    for (uint32_t swap = 0; swap < 2; swap++) {
        struct world *world = open_tiered(16, swap ? DECODE_PREEMPT_SWAP : DECODE_PREEMPT_RECOMPUTE);
        struct world_leg *old = leg_of(world, 11, 45, 1, true);
        struct world_leg *young = leg_of(world, 11, 30, 2, true);
        old->reserve.work.age_ns = 500 * MS;
        world_reserve(world, old);
        world_reserve(world, young);
        while (world_stats(world).preemptions == 0) { world_step_done(world); }
        assert_int_equal(world_stats(world).swaps, swap);
        uint64_t computed = world_stats(world).prompt_tokens_computed;
        world_finish(world);
        assert_true(world_leg_is_complete(old));
        assert_true(world_leg_is_complete(young));
        if (swap) { assert_in_range(world_stats(world).prompt_tokens_computed - computed, 0, 4); }
        assert_int_equal(world_stats(world).preemptions, 1);
        world_close(world);
    }
}

/* Two sequences that do not fit side by side; the second gives way once. */
static void preempt_one(struct world *world, uint64_t seed)
{
    uint64_t before = world_stats(world).preemptions;
    struct world_leg *old = leg_of(world, 11, 45, seed, true);
    struct world_leg *young = leg_of(world, 11, 30, seed + 1, true);
    old->reserve.work.age_ns = 500 * MS;
    world_reserve(world, old);
    world_reserve(world, young);
    world_finish(world);
    assert_true(world_leg_is_complete(old));
    assert_true(world_leg_is_complete(young));
    assert_int_equal(world_stats(world).preemptions, before + 1);
}

/* With a disk and no host memory, stores and loads are priced as the disk's: the first swap measures it,
 * and from then on the cheaper one is chosen. */
static void auto_on_a_disk_alone_measures_and_decides(void **state)
{
    (void)state;
    for (uint32_t slow = 0; slow < 2; slow++) {
        struct world *world = open_tiered(16, DECODE_PREEMPT_AUTO);
        world->store_tier = KV_TIER_DISK;
        world->tier_extra_ns = slow ? 1000 * MS : 0;
        world->step_extra_ns = 10 * MS;
        preempt_one(world, 1);
        assert_int_equal(world_stats(world).swaps, 1); /* nothing was known */
        assert_true(world_stats(world).tier_loads > 0);
        preempt_one(world, 3);
        assert_int_equal(world_stats(world).swaps, slow ? 1 : 2);
        world_close(world);
    }
}

/* A disk that stalled is not given up for ever: of the prefixes that are declined each 16th is loaded in
 * part, until what is measured says that it is worth it. */
static void a_tier_that_was_slow_once_is_tried_again(void **state)
{
    (void)state;
    struct world *world = open_tiered(12, DECODE_PREEMPT_AUTO);
    world->store_tier = KV_TIER_DISK;
    world->step_extra_ns = MS;
    world->tier_extra_ns = 20 * MS;
    run_leg(world, 21, 4, 1, true);
    push_out(world);
    run_leg(world, 21, 4, 1, true); /* measured: 20 ms a block, of four tokens that take one */
    assert_int_equal(world_stats(world).loads_chosen, 1);
    world->tier_extra_ns = 0;
    uint64_t declined = 0;
    for (;;) {
        push_out(world);
        uint64_t loads = world_stats(world).tier_loads;
        struct world_leg *leg = run_leg(world, 21, 4, 1, true);
        if (world_stats(world).loads_chosen == 2) { break; }
        declined++;
        assert_int_equal(world_stats(world).loads_declined, declined);
        assert_int_equal(world_stats(world).tier_loads - loads, declined % 16 == 0 ? 5 : 0);
        assert_int_equal(leg->cached_tokens, declined % 16 == 0 ? 20 : 0);
        assert_true(declined < 160);
    }
    assert_true(declined >= 16);
    world_close(world);
}

/* While blocks are being saved, whoever needs one waits for it; nobody else is disturbed, and a store
 * that fails frees its block as well. */
static void growing_waits_for_blocks_that_are_being_saved(void **state)
{
    (void)state;
    for (uint32_t good = 0; good < 2; good++) {
        struct world *world = open_tiered(12, DECODE_PREEMPT_SWAP);
        struct world_leg *legs[3];
        for (uint32_t i = 0; i < 3; i++) {
            legs[i] = leg_of(world, 11, 13, 1 + i, true);
            legs[i]->reserve.work.age_ns = (3 - i) * 100 * MS;
            world_reserve(world, legs[i]);
        }
        while (world_stats(world).preemptions == 0) { world_step_done(world); }
        uint32_t requests = world->request_count;
        assert_true(requests > 0);
        while (world->plan != NULL) { world_step_done(world); }
        assert_int_equal(world_stats(world).preemptions, 1);
        world_tier_end(world, 0, good == 1);
        assert_non_null(world->plan);
        world_finish(world);
        for (uint32_t i = 0; i < 3; i++) { assert_true(world_leg_is_complete(legs[i])); }
        assert_int_equal(world_stats(world).preemptions, 1);
        world_close(world);
    }
}

/* Events that fit nothing under way change nothing. */
static void strange_events_are_ignored(void **state)
{
    (void)state;
    struct world *world = open_tiered(12, DECODE_PREEMPT_AUTO);
    for (uint32_t kind = KV_TIER_STORED; kind <= KV_TIER_FOUND; kind++) {
        struct kv_tier_event event = {.kind = (enum kv_tier_event_kind)kind, .tag = UINT64_C(7) << 32 | 300, .block = 3};
        world_event(world, &(struct decode_event){.kind = DECODE_EV_TIER, .tier = &event});
        event.tag = 0;
        world_event(world, &(struct decode_event){.kind = DECODE_EV_TIER, .tier = &event});
    }
    assert_int_equal(world_stats(world).tier_stores + world_stats(world).tier_loads, 0);
    run_leg(world, 21, 4, 1, true);
    world_close(world);
    struct decode_core_config config = world_config(12, 4);
    world = world_open(&config);
    struct kv_tier_event event = {.kind = KV_TIER_LOADED};
    world_event(world, &(struct decode_event){.kind = DECODE_EV_TIER, .tier = &event});
    assert_int_equal(world_stats(world).late_messages, 1);
    world_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiers_need_the_prefix_cache),
        cmocka_unit_test(blocks_are_stored_ahead_of_eviction),
        cmocka_unit_test(evicted_blocks_are_loaded_again),
        cmocka_unit_test(a_failed_load_ends_the_chain),
        cmocka_unit_test(an_entry_that_is_gone_is_computed),
        cmocka_unit_test(cancel_waits_for_the_loads_under_way),
        cmocka_unit_test(a_cancelled_carrier_loads_for_the_others),
        cmocka_unit_test(a_full_queue_of_the_tiers_takes_turns),
        cmocka_unit_test(the_cheaper_one_is_chosen_by_measured_rates),
        cmocka_unit_test(what_the_disk_had_is_found),
        cmocka_unit_test(a_preempted_sequence_is_swapped_or_computed),
        cmocka_unit_test(auto_on_a_disk_alone_measures_and_decides),
        cmocka_unit_test(a_tier_that_was_slow_once_is_tried_again),
        cmocka_unit_test(growing_waits_for_blocks_that_are_being_saved),
        cmocka_unit_test(strange_events_are_ignored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
