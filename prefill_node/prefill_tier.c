/* The KV tiers as jobs see them: what is loaded rather than computed, and what is saved ahead of need.
 *
 * LOADING: has its blocks; those of its text that lie in a tier are being written. It computes when all
 * loads have ended; where one failed the chain ends, and the rest is computed. */
#include "base/check.h"
#include "prefill_node/prefill_state.h"

static void finish_load(struct prefill_core *core, struct prefill_job *job);

uint32_t prefill_tier_plan_load(struct prefill_core *core, struct prefill_job *job, uint32_t taken)
{
    job->load_first = job->load_next = job->load_good = job->load_end = taken;
    job->load_predicted_ns = 0;
    if (core->tiers == NULL || !prefill_prefix_is_wanted(core, job)) { return 0; }
    uint32_t most = (job->total - 1) / core->config.block_tokens;
    uint32_t blocks[KV_TIER_COUNT] = {0};
    uint32_t count = 0;
    enum kv_tier_kind tier;
    for (; taken + count < most; count++) {
        prefill_name_blocks(core, job, taken + count + 1);
        if (!tier_desk_find(core->tiers, job->hashes[taken + count], &tier)) { break; }
        blocks[tier]++;
    }
    if (count == 0) { return 0; }
    uint64_t rate = token_rate_per_s(&core->rate);
    uint64_t token_ns = rate == 0 ? 0 : UINT64_C(1000000000) / rate;
    uint32_t tokens = count * core->config.block_tokens;
    if (!tier_desk_load_is_cheaper(core->tiers, blocks, tokens, token_ns, &job->load_predicted_ns)) {
        uint32_t probe = tier_desk_probe_blocks(core->tiers);
        core->loads_declined++;
        tier_desk_note_declined(core->tiers);
        if (probe == 0) { return 0; }
        if (count > probe) { count = probe; }
        job->load_predicted_ns = 0; /* that was for all of it */
    } else {
        core->loads_chosen++;
    }
    job->load_good = job->load_end = taken + count;
    job->load_began_ns = core->now_ns;
    return count;
}

void prefill_tier_take(struct prefill_core *core, const struct kv_tier_event *event)
{
    struct tier_load_end end;
    if (core->tiers == NULL) {
        core->late_messages++;
        return;
    }
    if (!tier_desk_take(core->tiers, event, &end)) { return; }
    struct prefill_job *job = end.owner;
    CHECK(job->loads_pending > 0);
    job->loads_pending--;
    if (!end.is_loaded && end.index < job->load_good) { job->load_good = end.index; }
    if (job->loads_pending > 0) { return; }
    if (job->is_over) {
        job_move(core, job);
    } else if (job->load_next >= job->load_good) {
        finish_load(core, job);
    }
}

static void finish_load(struct prefill_core *core, struct prefill_job *job)
{
    CHECK(job->state == JOB_LOADING);
    job->published = job->load_first;
    job->computed = job->load_good * core->config.block_tokens;
    prefill_prefix_publish(core, job);
    for (uint32_t b = job->load_first; b < job->load_good; b++) { kv_cache_mark_stored(core->cache, job->blocks[b], true); }
    core->tier_tokens_loaded += (uint64_t)(job->load_good - job->load_first) * core->config.block_tokens;
    if (job->load_good == job->load_end && job->load_predicted_ns > 0) {
        core->load_predicted_ns += job->load_predicted_ns;
        core->load_actual_ns += core->now_ns - job->load_began_ns;
    }
    prefill_prefix_use(core, job, job->load_good);
    job_enter(core, job, JOB_COMPUTING, &core->computing);
}

static void add_request(struct prefill_core *core, enum prefill_action_kind kind, const struct tier_request *request)
{
    struct prefill_action *action = prefill_action_add(core, kind);
    action->hash = request->hash;
    action->block = request->block;
    action->tag = request->tag;
}

/* In the order of their coming, as many at once as the tiers take. */
static void issue_loads(struct prefill_core *core)
{
    for (struct list_link *link = list_first(&core->loading); link != NULL; link = list_next(&core->loading, link)) {
        struct prefill_job *job = LIST_OWNER(link, struct prefill_job, queue_link);
        for (; job->load_next < job->load_good; job->load_next++) {
            uint32_t b = job->load_next;
            struct tier_request request;
            if (!tier_desk_load(core->tiers, job->hashes[b], job->blocks[b], job, b, &request)) { return; }
            job->loads_pending++;
            add_request(core, PREFILL_ACT_TIER_LOAD, &request);
        }
    }
}

void prefill_tier_issue(struct prefill_core *core)
{
    if (core->tiers == NULL) { return; }
    issue_loads(core); /* somebody waits for them; stores ahead of need take what room is left */
    struct tier_request request;
    while (tier_desk_store_ahead(core->tiers, &request)) { add_request(core, PREFILL_ACT_TIER_STORE, &request); }
}
