/* Random legs, nodes that die, transfers that land or fail in any order, cancels at every
 * point, tiny pools: the checks are in decode_world. DECODE_SEED=n replays one seed,
 * DECODE_SEEDS=n runs that many. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/rng.h"
#include "tests/unit/decode_node/decode_world.h"

static uint64_t found, loaded, swapped; /* of all seeds */

static struct decode_core_config random_config(struct rng *rng)
{
    struct decode_core_config config = world_config(6 + (uint32_t)rng_below(rng, 40), 1 + (uint32_t)rng_below(rng, 8));
    config.step_rows_max = config.batch_max + (uint32_t)rng_below(rng, 20);
    config.chunk_tokens = 1 + (uint32_t)rng_below(rng, 12);
    config.waiting_max = (uint32_t)rng_below(rng, 8);
    config.legs_max = 1 + (uint32_t)rng_below(rng, 20);
    config.block_tokens = 1 + (uint32_t)rng_below(rng, 6);
    config.itl_stretch_percent = rng_below(rng, 2) == 0 ? 0 : 100 + (uint32_t)rng_below(rng, 200);
    config.prefix_cache = rng_below(rng, 4) != 0;
    if (rng_below(rng, 3) == 0) { config.window_tokens = 2 + (uint32_t)rng_below(rng, 24); }
    if (config.prefix_cache && rng_below(rng, 2) == 0) {
        config.tier_entries_max = 1 + (uint32_t)rng_below(rng, 200);
        config.tier_queue_max = 1 + (uint32_t)rng_below(rng, rng_below(rng, 2) == 0 ? 4 : 100);
        config.preempt = (enum decode_preempt)rng_below(rng, 3);
    }
    return config;
}

static void random_leg(struct world *world, struct rng *rng)
{
    uint32_t router = (uint32_t)rng_below(rng, WORLD_ROUTERS);
    uint32_t prompt = 1 + (uint32_t)rng_below(rng, 1 + rng_below(rng, 30));
    uint32_t max_tokens = 1 + (uint32_t)rng_below(rng, 1 + rng_below(rng, 40));
    /* Mostly the next turn of a conversation, or a sibling of one. */
    const struct world_leg *earlier = NULL;
    uint32_t index = 0;
    uint32_t shared = 0;
    if (world->leg_count > 0 && rng_below(rng, 4) != 0) {
        earlier = world->legs[world->leg_count - 1 - rng_below(rng, world->leg_count < 12 ? world->leg_count : 12)];
        index = (uint32_t)rng_below(rng, earlier->reserve.work.sequence_count);
        uint32_t had = earlier->reserve.work.prompt_count + earlier->output_count[index];
        shared = rng_below(rng, 3) == 0 ? (uint32_t)rng_below(rng, had + 1) : had;
        if (shared > 60) { shared = 60; }
        prompt = shared + 1 + (uint32_t)rng_below(rng, 8);
    }
    struct world_leg *leg = world_leg(world, router, prompt, max_tokens, rng_next(rng));
    if (earlier != NULL) { world_leg_extend(leg, earlier, index, shared); }
    struct ctl_reserve *reserve = &leg->reserve;
    reserve->work.params.ignore_eos = rng_below(rng, 2);
    reserve->work.age_ns = rng_below(rng, 2000000000);
    reserve->wait_ms = (uint32_t)rng_below(rng, 3) * 200;
    reserve->local_prefill = rng_below(rng, 2);
    if (rng_below(rng, 2) == 0) { reserve->work.priority = (int32_t)rng_below(rng, 4) - 1; }
    reserve->work.cache_salt = rng_below(rng, 4) == 0;
    if (rng_below(rng, 3) == 0) { reserve->local_max_tokens = (uint32_t)rng_below(rng, 30); }
    if (rng_below(rng, 4) == 0) {
        if (!world_leg_resume(world, leg, (uint32_t)rng_below(rng, max_tokens))) {
            leg->end = WORLD_DROPPED; /* it ended before that: nothing to resume */
            return;
        }
    } else if (rng_below(rng, 3) == 0) {
        reserve->work.params.n = 1 + (uint32_t)rng_below(rng, WORLD_SEQS_MAX);
        reserve->work.sequence_first = (uint32_t)rng_below(rng, reserve->work.params.n);
        reserve->work.sequence_count =
            1 + (uint32_t)rng_below(rng, reserve->work.params.n - reserve->work.sequence_first);
    }
    if (reserve->work.output_count == 0 && rng_below(rng, 3) == 0) { reserve->work.params.prompt_logprobs = 2; }
    if (!world->router_is_up[router]) { leg->end = WORLD_DROPPED; }
    world_reserve(world, leg);
    if (rng_below(rng, 20) == 0) { world_reserve(world, leg); }
}

static void random_event(struct world *world, struct rng *rng)
{
    struct world_leg *leg = world->leg_count == 0 ? NULL : world->legs[rng_below(rng, world->leg_count)];
    /* Mostly among the recent ones: the old ones have ended. */
    if (leg != NULL && rng_below(rng, 8) != 0) {
        uint32_t recent = world->leg_count < 24 ? world->leg_count : 24;
        leg = world->legs[world->leg_count - 1 - rng_below(rng, recent)];
    }
    uint64_t dice = rng_below(rng, 1000);
    if (world->request_count > 0 && rng_below(rng, 4) == 0) {
        world_tier_end(world, (uint32_t)rng_below(rng, world->request_count), rng_below(rng, 8) != 0);
        return;
    }
    if (world->entry_count > 0 && rng_below(rng, 40) == 0) {
        uint32_t at = (uint32_t)rng_below(rng, world->entry_count);
        if (rng_below(rng, 2) == 0) { world_tier_drop(world, at); } else { world_tier_move(world, at); }
        return;
    }
    if (dice < 120) {
        random_leg(world, rng);
    } else if (dice < 560) {
        if (world->plan != NULL) { world_step_done(world); }
    } else if (leg == NULL) {
        world_tick(world, 1000);
    } else if (dice < 720) {
        if (leg->has_grant) { world_land(world, leg); }
    } else if (dice < 740) {
        if (leg->has_grant) { world_fail_transfer(world, leg); }
    } else if (dice < 840) {
        if (leg->has_grant && (leg->is_revoked || rng_below(rng, 10) == 0)) { world_fence(world, leg); }
    } else if (dice < 870) {
        world_cancel(world, leg);
    } else if (dice < 900) {
        world_cancel_seq(world, leg, (uint32_t)rng_below(rng, leg->reserve.work.sequence_count));
    } else if (dice < 920) {
        world_prefill_lost(world, leg);
    } else if (dice < 970) {
        world_tick(world, rng_below(rng, 50000000));
    } else if (dice < 974) {
        if (world->plan != NULL) { world_step_failed(world, SCOPE_REQUEST); }
    } else if (dice < 980) {
        world_router_down(world, (uint32_t)rng_below(rng, WORLD_ROUTERS));
    } else if (dice < 988) {
        world_router_up(world, (uint32_t)rng_below(rng, WORLD_ROUTERS));
    } else if (dice < 994) {
        struct step_result stale = {.id = rng_below(rng, 3)};
        if (world->plan == NULL || world->plan->id != stale.id) {
            world_event(world, &(struct decode_event){.kind = DECODE_EV_STEP_DONE, .result = &stale});
        }
    } else if (!leg->has_grant) {
        /* Late and duplicate ends of a transfer. */
        struct ctl_token token = {.leg = leg->id};
        enum decode_event_kind kinds[] = {DECODE_EV_XFER_LANDED, DECODE_EV_XFER_FAILED, DECODE_EV_XFER_FENCED,
                                          DECODE_EV_XFER_PROGRESS};
        world_event(world, &(struct decode_event){.kind = kinds[rng_below(rng, 4)], .leg = leg->id, .token_count = 1,
                                                  .tokens = &token});
    }
}

static void run_seed(uint64_t seed)
{
    struct rng rng = rng_init(seed);
    struct decode_core_config config = random_config(&rng);
    struct world *world = world_open(&config);
    world_router_up(world, 1);
    for (uint32_t i = 0; i < 900; i++) { random_event(world, &rng); }
    world_finish(world);
    for (uint32_t i = 0; i < world->leg_count; i++) {
        const struct world_leg *leg = world->legs[i];
        if (leg->end == WORLD_OPEN) { assert_true(world_leg_is_complete(leg)); }
    }
    struct decode_core_stats stats = world_stats(world);
    assert_int_equal(stats.blocks_free + stats.blocks_cached, config.block_count);
    if (!config.prefix_cache) { assert_int_equal(stats.blocks_cached, 0); }
    found += stats.cache_tokens_found;
    loaded += stats.tier_loads;
    swapped += stats.swaps;
    world_close(world);
}

/* Whatever happens in whatever order: no block is lost or shared in writing, and every token
 * that goes out is the right one. */
static void any_order_of_events_keeps_blocks_and_tokens(void **state)
{
    (void)state;
    const char *one = getenv("DECODE_SEED");
    const char *many = getenv("DECODE_SEEDS");
    uint64_t first = one != NULL ? strtoull(one, NULL, 10) : 1;
    uint64_t count = one != NULL ? 1 : many != NULL ? strtoull(many, NULL, 10) : 1000;
    for (uint64_t seed = first; seed < first + count; seed++) {
        printf("DECODE_SEED=%llu\n", (unsigned long long)seed);
        fflush(stdout);
        run_seed(seed);
    }
    if (count < 100) { return; }
    /* Or it tests no cache and no tiers. */
    printf("found %llu loaded %llu swapped %llu\n", (unsigned long long)found, (unsigned long long)loaded,
           (unsigned long long)swapped);
    assert_true(found > 20 * count);
    assert_true(loaded > count / 4);
    assert_true(swapped > count / 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_order_of_events_keeps_blocks_and_tokens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
