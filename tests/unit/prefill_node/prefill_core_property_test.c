/* Random jobs, transfers that end in any order, cancels at every point, tiny pools: the
 * checks are in prefill_world. PREFILL_SEED=n replays one seed, PREFILL_SEEDS=n runs many. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/rng.h"
#include "tests/unit/prefill_node/prefill_world.h"

static struct prefill_core_config random_config(struct rng *rng)
{
    struct prefill_core_config config = pworld_config(3 + (uint32_t)rng_below(rng, 40));
    config.step_rows_max = 1 + (uint32_t)rng_below(rng, 40);
    config.chunk_tokens = 1 + (uint32_t)rng_below(rng, 20);
    config.jobs_max = 1 + (uint32_t)rng_below(rng, 16);
    config.slot_count = 1 + (uint32_t)rng_below(rng, 10);
    config.block_tokens = 1 + (uint32_t)rng_below(rng, 6);
    config.prefix_cache = rng_below(rng, 4) > 0;
    if (rng_below(rng, 4) == 0) { config.window_tokens = 2 + (uint32_t)rng_below(rng, 20); }
    if (config.prefix_cache && rng_below(rng, 2) == 0) { config.tier_entries_max = 1 + (uint32_t)rng_below(rng, 400); }
    return config;
}

static void random_job(struct pworld *world, struct rng *rng)
{
    uint32_t router = (uint32_t)rng_below(rng, PWORLD_ROUTERS);
    uint32_t prompt = 1 + (uint32_t)rng_below(rng, 1 + rng_below(rng, 100));
    uint32_t output = rng_below(rng, 4) == 0 ? (uint32_t)rng_below(rng, 30) : 0;
    /* Jobs of one seed have one text, cut where each ends. */
    uint64_t text = rng_below(rng, 2) == 0 ? 1 + rng_below(rng, 6) : rng_next(rng);
    struct pworld_job *job = pworld_job(world, router, prompt, output, text);
    struct ctl_work *work = &job->prefill.work;
    work->cache_salt = rng_below(rng, 9) == 0;
    work->priority = rng_below(rng, 3) == 0 ? (int32_t)rng_below(rng, 5) - 2 : 0;
    if (world->job_count > 1 && rng_below(rng, 2) == 0) { /* the next turn of a chat, or the same again */
        uint32_t recent = world->job_count - 1 < 4 ? world->job_count - 1 : 4;
        const struct pworld_job *other = world->jobs[world->job_count - 2 - rng_below(rng, recent)];
        uint32_t others = other->prefill.work.prompt_count + other->prefill.work.output_count;
        uint32_t most = others < prompt + output ? others : prompt + output;
        if (rng_below(rng, 2) == 0) { most = (uint32_t)rng_below(rng, most + 1); }
        bool is_salted = work->cache_salt;
        pworld_share(job, other, most);
        if (rng_below(rng, 6) == 0) { work->cache_salt = is_salted; }
    }
    work->params.max_tokens = output + 1 + (uint32_t)rng_below(rng, 4);
    work->resumed = rng_below(rng, 3) == 0;
    if (output == 0 && rng_below(rng, 3) == 0) {
        work->params.n = 1 + (uint32_t)rng_below(rng, PWORLD_SEQS_MAX);
        work->sequence_first = (uint32_t)rng_below(rng, work->params.n);
        work->sequence_count = 1 + (uint32_t)rng_below(rng, work->params.n - work->sequence_first);
    }
    if (output == 0 && rng_below(rng, 3) == 0) { work->params.prompt_logprobs = 1; }
    if (world->config.window_tokens > 0 && rng_below(rng, 4) > 0) { /* what the window of the next row needs */
        uint32_t total = prompt + output, window = world->config.window_tokens;
        uint32_t blocks = (total + world->config.block_tokens - 1) / world->config.block_tokens;
        uint32_t first = total >= window ? (total - window + 1) / world->config.block_tokens : 0;
        job->prefill.grant_first = first < blocks ? first : blocks - 1;
    } else if (rng_below(rng, 3) == 0) {
        uint32_t blocks = (prompt + output + world->config.block_tokens - 1) / world->config.block_tokens;
        job->prefill.grant_first = (uint32_t)rng_below(rng, blocks + rng_below(rng, 2)); /* at times one too far */
    }
    if (!world->router_is_up[router]) { job->end = PWORLD_DROPPED; }
    pworld_send(world, job);
    if (rng_below(rng, 20) == 0) { pworld_send(world, job); }
}

static void random_event(struct pworld *world, struct rng *rng)
{
    struct pworld_job *job = NULL;
    if (world->job_count > 0) {
        uint32_t recent = world->job_count < 20 || rng_below(rng, 8) == 0 ? world->job_count : 20;
        job = world->jobs[world->job_count - 1 - rng_below(rng, recent)];
    }
    if (world->operation_count > 0 && rng_below(rng, 3) == 0) {
        pworld_tier_end(world, (uint32_t)rng_below(rng, world->operation_count), rng_below(rng, 8) > 0);
        return;
    }
    if (world->entry_count > 0 && rng_below(rng, 30) == 0) {
        uint32_t entry = (uint32_t)rng_below(rng, world->entry_count);
        if (rng_below(rng, 2) == 0) { pworld_tier_drop(world, entry); } else { pworld_tier_move(world, entry); }
        return;
    }
    if (job != NULL && rng_below(rng, 4) == 0) { /* most of what is committed arrives */
        for (uint32_t i = world->job_count < 30 ? 0 : world->job_count - 30; i < world->job_count; i++) {
            if (world->jobs[i]->has_transfer && world->jobs[i]->is_committed) { pworld_ack(world, world->jobs[i]); return; }
        }
    }
    uint64_t dice = rng_below(rng, 1000);
    if (dice < 180) {
        random_job(world, rng);
    } else if (dice < 560) {
        if (world->plan != NULL) { pworld_step_done(world); }
    } else if (job == NULL) {
        pworld_tick(world, 1000);
    } else if (dice < 720) {
        if (job->has_transfer && job->is_committed) { pworld_ack(world, job); }
    } else if (dice < 740) {
        if (job->has_transfer) { pworld_fail(world, job); }
    } else if (dice < 840) {
        if (job->has_transfer && (job->is_aborted || rng_below(rng, 20) == 0)) { pworld_ended(world, job); }
    } else if (dice < 880) {
        pworld_cancel(world, job);
    } else if (dice < 910) {
        pworld_cancel_seq(world, job, (uint32_t)rng_below(rng, job->prefill.work.sequence_count));
    } else if (dice < 960) {
        pworld_tick(world, rng_below(rng, 100000000));
    } else if (dice < 966) {
        if (world->plan != NULL) { pworld_step_failed(world, SCOPE_REQUEST); }
    } else if (dice < 974) {
        pworld_router_down(world, (uint32_t)rng_below(rng, PWORLD_ROUTERS));
    } else if (dice < 984) {
        pworld_router_up(world, (uint32_t)rng_below(rng, PWORLD_ROUTERS));
    } else if (dice < 990) {
        struct step_result stale = {.id = rng_below(rng, 3)};
        if (world->plan == NULL || world->plan->id != stale.id) {
            pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_STEP_DONE, .result = &stale});
        }
    } else if (!job->has_transfer) {
        enum prefill_event_kind kinds[] = {PREFILL_EV_XFER_ACKED, PREFILL_EV_XFER_FAILED, PREFILL_EV_XFER_ENDED};
        pworld_event(world, &(struct prefill_event){.kind = kinds[rng_below(rng, 3)], .leg = job->id});
    }
}

static uint64_t found, cached_pushed, loaded, load_failures; /* over all seeds: the cache must have had something to do */

static void run_seed(uint64_t seed)
{
    struct rng rng = rng_init(seed);
    struct prefill_core_config config = random_config(&rng);
    struct pworld *world = pworld_open(&config);
    world->slowness = rng_below(&rng, 3) == 0 ? 0 : 1000; /* a tier is worth it, or not */
    pworld_router_up(world, 1);
    for (uint32_t i = 0; i < 600; i++) { random_event(world, &rng); }
    pworld_finish(world);
    for (uint32_t i = 0; i < world->job_count; i++) { assert_int_not_equal(world->jobs[i]->end, PWORLD_OPEN); }
    struct prefill_core_stats stats = pworld_stats(world);
    assert_int_equal(stats.blocks_free + stats.blocks_cached, config.block_count);
    assert_true(config.prefix_cache || stats.blocks_cached == 0);
    found += stats.cache_tokens_found;
    loaded += stats.tier_tokens_loaded;
    load_failures += stats.tier_load_failures;
    for (uint32_t i = 0; i < world->job_count; i++) { cached_pushed += world->jobs[i]->cached_pushed; }
    pworld_close(world);
}

/* Whatever happens in whatever order: no block is lost or reused while it is read, and every
 * job has exactly one end. */
static void any_order_of_events_keeps_blocks_and_tokens(void **state)
{
    (void)state;
    const char *one = getenv("PREFILL_SEED");
    const char *many = getenv("PREFILL_SEEDS");
    uint64_t first = one != NULL ? strtoull(one, NULL, 10) : 1;
    uint64_t count = one != NULL ? 1 : many != NULL ? strtoull(many, NULL, 10) : 1000;
    for (uint64_t seed = first; seed < first + count; seed++) {
        printf("PREFILL_SEED=%llu\n", (unsigned long long)seed);
        fflush(stdout);
        run_seed(seed);
    }
    printf("found %llu tokens, pushed %llu cached blocks\n", (unsigned long long)found, (unsigned long long)cached_pushed);
    printf("loaded %llu tokens from tiers, %llu loads failed\n", (unsigned long long)loaded, (unsigned long long)load_failures);
    if (one == NULL) { assert_true(found > 0 && cached_pushed > 0 && loaded > 0 && load_failures > 0); }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_order_of_events_keeps_blocks_and_tokens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
