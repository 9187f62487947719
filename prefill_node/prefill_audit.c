/* Walks every table of the core: a CHECK fails where they disagree. */
#include <string.h>

#include "base/check.h"
#include "prefill_node/prefill_state.h"

static void audit_job(const struct prefill_core *core, const struct prefill_job *job)
{
    CHECK(list_link_is_in(&job->queue_link) == (job->queue != NULL));
    CHECK(leg_index_find(core->index, job->id) == job);
    CHECK(job->computed <= job->total);
    CHECK(job->cached <= job->computed);
    CHECK(job->cached < job->total);
    CHECK(job->published <= job->computed / core->config.block_tokens);
    CHECK(job->hash_count >= job->published);
    CHECK(job->ring == 0 || job->published == 0);
    switch (job->state) {
    case JOB_WAITING:
        CHECK(job->queue == &core->resumed || job->queue == &core->fresh);
        CHECK(job->block_count == 0);
        CHECK(job->computed == 0);
        break;
    case JOB_LOADING:
        CHECK(job->queue == &core->loading);
        CHECK(job->block_count == (job->ring > 0 ? job->ring : prefill_blocks_for(core, job->total)));
        CHECK(job->computed == 0);
        CHECK(!job->is_over);
        CHECK(job->load_first <= job->load_good);
        CHECK(job->load_good <= job->load_end);
        CHECK(job->loads_pending <= job->load_next - job->load_first);
        break;
    case JOB_COMPUTING:
        CHECK(job->queue == &core->computing);
        CHECK(job->block_count == (job->ring > 0 ? job->ring : prefill_blocks_for(core, job->total)));
        CHECK(job->computed < job->total);
        CHECK(!job->is_over);
        break;
    case JOB_SENT:
        CHECK(job->queue == &core->sent);
        CHECK(job->computed == job->total);
        CHECK(!job->is_over);
        CHECK(!job->transfer_is_over);
        break;
    case JOB_LEAVING:
        CHECK(job->queue == NULL);
        CHECK(job->is_over);
        CHECK(job->is_in_step || job->loads_pending > 0 || !job->transfer_is_over);
        break;
    case JOB_ENDED:
    case JOB_STATE_COUNT:
        CHECK(job->state < JOB_ENDED);
        break;
    }
    if (job->loads_pending > 0) { CHECK(job->state == JOB_LOADING || job->state == JOB_LEAVING); }
    if (job->is_in_step) { CHECK(core->step.is_in_flight); }
    for (uint32_t i = 0; i < job->block_count; i++) {
        CHECK(job->blocks[i] < core->config.block_count);
        core->audit_owners[job->blocks[i]]++;
    }
}

void prefill_core_audit(const struct prefill_core *core)
{
    memset(core->audit_owners, 0, core->config.block_count * sizeof *core->audit_owners);
    uint32_t queued = 0;
    for (struct list_link *link = list_first(&core->jobs); link != NULL; link = list_next(&core->jobs, link)) {
        const struct prefill_job *job = LIST_OWNER(link, struct prefill_job, link);
        audit_job(core, job);
        queued += job->queue != NULL;
    }
    CHECK(core->ended.count == 0);
    CHECK(core->jobs.count == leg_index_live_count(core->index));
    CHECK(queued == core->resumed.count + core->fresh.count + core->loading.count + core->computing.count + core->sent.count);
    tier_desk_audit(core->tiers, core->audit_owners);
    kv_cache_audit(core->cache, core->audit_owners);
    struct kv_pool_counts counts = kv_cache_counts(core->cache);
    CHECK(counts.free + counts.held + counts.cached + counts.quarantined == counts.total);
}
