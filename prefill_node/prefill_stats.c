/* What a prefill node says of itself: to routers, to /metrics, to tests. */
#include "prefill_node/prefill_state.h"

struct prefill_core_stats prefill_core_stats(const struct prefill_core *core)
{
    struct kv_pool_counts blocks = kv_cache_counts(core->cache);
    struct tier_desk_stats tiers = tier_desk_stats(core->tiers);
    return (struct prefill_core_stats){
        .blocks_total = blocks.total,
        .blocks_free = blocks.free,
        .blocks_held = blocks.held,
        .blocks_cached = blocks.cached,
        .blocks_quarantined = blocks.quarantined,
        .jobs = core->jobs.count,
        .jobs_computing = core->computing.count + core->loading.count,
        .jobs_waiting = core->resumed.count + core->fresh.count,
        .tokens_queued = prefill_tokens_queued(core),
        .cache_tokens_asked = core->cache_tokens_asked,
        .cache_tokens_found = core->cache_tokens_found,
        .cache_blocks_taken = core->cache_blocks_taken,
        .tier_stores = tiers.stores,
        .tier_loads = tiers.loads,
        .tier_load_failures = tiers.load_failures,
        .tier_tokens_loaded = core->tier_tokens_loaded,
        .loads_chosen = core->loads_chosen,
        .loads_declined = core->loads_declined,
        .load_predicted_ns = core->load_predicted_ns,
        .load_actual_ns = core->load_actual_ns,
        .prompt_tokens_computed = core->prompt_tokens_computed,
        .jobs_done = core->jobs_done,
        .jobs_failed = core->jobs_failed,
        .jobs_cancelled = core->jobs_cancelled,
        .jobs_refused = core->jobs_refused,
        .late_messages = core->late_messages,
        .steps = core->steps,
        .draining = core->is_draining,
        .idle = core->jobs.count == 0 && !core->step.is_in_flight,
    };
}

struct ctl_load prefill_core_load(const struct prefill_core *core)
{
    struct prefill_core_stats stats = prefill_core_stats(core);
    return (struct ctl_load){
        .blocks_total = stats.blocks_total,
        .blocks_free = stats.blocks_free,
        .blocks_held = stats.blocks_held,
        .blocks_cached = stats.blocks_cached,
        .blocks_quarantined = stats.blocks_quarantined,
        .sequences_running = stats.jobs_computing,
        .sequences_waiting = stats.jobs_waiting,
        .tokens_queued = stats.tokens_queued,
        .tokens_per_s = token_rate_per_s(&core->rate),
        .draining = stats.draining,
        .cache_tokens_asked = stats.cache_tokens_asked,
        .cache_tokens_found = stats.cache_tokens_found,
    };
}
