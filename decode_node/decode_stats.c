/* The numbers of a decode node: for LOAD, for /metrics, for whoever drains it. */
#include "decode_node/decode_state.h"

struct decode_core_stats decode_core_stats(const struct decode_core *core)
{
    struct kv_pool_counts blocks = kv_cache_counts(core->cache);
    struct tier_desk_stats tiers = tier_desk_stats(core->tiers);
    struct decode_core_stats stats = {
        .blocks_total = blocks.total,
        .blocks_free = blocks.free,
        .blocks_held = blocks.held,
        .blocks_cached = blocks.cached,
        .blocks_quarantined = blocks.quarantined,
        .cache_tokens_asked = core->cache_tokens_asked,
        .cache_tokens_found = core->cache_tokens_found,
        .cache_blocks_taken = core->cache_blocks_taken,
        .tier_stores = tiers.stores,
        .tier_loads = tiers.loads,
        .tier_store_failures = tiers.store_failures,
        .tier_load_failures = tiers.load_failures,
        .tier_tokens_loaded = core->tier_tokens_loaded,
        .loads_chosen = core->loads_chosen,
        .loads_declined = core->loads_declined,
        .load_predicted_ns = core->load_predicted_ns,
        .load_actual_ns = core->load_actual_ns,
        .swaps = core->swaps,
        .slot_preemptions = core->slot_preemptions,
        .legs = core->legs.count,
        .sequences_running = core->running.count,
        .sequences_preempted = core->preempted.count,
        .tokens_generated = core->tokens_generated,
        .prompt_tokens_computed = core->prompt_tokens_computed,
        .preemptions = core->preemptions,
        .legs_finished = core->legs_finished,
        .legs_failed = core->legs_failed,
        .legs_cancelled = core->legs_cancelled,
        .legs_refused = core->legs_refused,
        .late_messages = core->late_messages,
        .steps = core->steps,
        .draining = core->is_draining,
        .idle = core->legs.count == 0 && !core->step.is_in_flight && tiers.stores_under_way == 0,
    };
    for (struct list_link *link = list_first(&core->legs); link != NULL; link = list_next(&core->legs, link)) {
        const struct decode_leg *leg = LIST_OWNER(link, struct decode_leg, link);
        for (uint32_t i = 0; i < leg->seq_count; i++) {
            const struct decode_seq *seq = &leg->seqs[i];
            bool is_computed_here = !leg->is_remote || leg->is_forked;
            bool has_work = seq->list != NULL && is_computed_here;
            if (has_work && seq_total(seq) - seq->computed > 1) {
                stats.tokens_queued += seq_total(seq) - seq->computed;
            }
            if (!seq->is_over && seq->state != SEQ_RUNNING) { stats.sequences_waiting++; }
        }
    }
    return stats;
}

struct ctl_load decode_core_load(const struct decode_core *core)
{
    struct decode_core_stats stats = decode_core_stats(core);
    return (struct ctl_load){
        .blocks_total = stats.blocks_total,
        .blocks_free = stats.blocks_free,
        .blocks_held = stats.blocks_held,
        .blocks_cached = stats.blocks_cached,
        .blocks_quarantined = stats.blocks_quarantined,
        .sequences_running = stats.sequences_running,
        .sequences_waiting = stats.sequences_waiting,
        .tokens_queued = stats.tokens_queued,
        .tokens_per_s = token_rate_per_s(&core->prefill_rate),
        .draining = stats.draining,
        .cache_tokens_asked = stats.cache_tokens_asked,
        .cache_tokens_found = stats.cache_tokens_found,
    };
}
