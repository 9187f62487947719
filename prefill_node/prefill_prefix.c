/* The prefix cache as a job sees it: what of its text is here, and what it leaves behind.
 *
 * A job's full blocks have names, job->hashes, that say all tokens up to their end. It takes the
 * blocks of its text that are here under their names, and publishes its own after the step that
 * filled them. One token is always left to compute, or nothing could be sampled: of a text that is
 * cached whole, the last block is not taken. */
#include "base/check.h"
#include "prefill_node/prefill_state.h"
#include "sched/work_copy.h"

static struct kv_hash name_before(const struct prefill_job *job, uint32_t index)
{
    return index == 0 ? job->root : job->hashes[index - 1];
}

void prefill_name_blocks(struct prefill_core *core, struct prefill_job *job, uint32_t count)
{
    uint32_t block_tokens = core->config.block_tokens;
    for (; job->hash_count < count; job->hash_count++) {
        uint32_t b = job->hash_count;
        work_tokens(&job->work, job->work.output, b * block_tokens, block_tokens, core->block_text);
        job->hashes[b] = kv_hash_next(name_before(job, b), core->block_text, block_tokens);
    }
}

bool prefill_prefix_is_wanted(const struct prefill_core *core, const struct prefill_job *job)
{
    return core->config.prefix_cache && job->work.params.prompt_logprobs < 0 && job->ring == 0;
}

uint32_t prefill_prefix_take(struct prefill_core *core, struct prefill_job *job)
{
    CHECK(job->block_count == 0);
    if (!prefill_prefix_is_wanted(core, job)) { return 0; }
    uint32_t most = (job->total - 1) / core->config.block_tokens;
    uint32_t taken = 0;
    for (; taken < most; taken++) {
        prefill_name_blocks(core, job, taken + 1);
        if (!kv_cache_try(core->cache, job->hashes[taken], &job->blocks[taken])) { break; }
    }
    return taken;
}

void prefill_prefix_use(struct prefill_core *core, struct prefill_job *job, uint32_t taken)
{
    if (!prefill_prefix_is_wanted(core, job)) { return; }
    /* Not where they are taken: a job that waits for room takes and gives back again and again, and
     * each time they would be stored anew where the tiers have no room for them either. */
    for (uint32_t b = 0; b < taken; b++) { tier_desk_note_use(core->tiers, job->blocks[b], job->hashes[b]); }
    for (uint32_t b = 0; b < job->load_first; b++) { kv_cache_note_use(core->cache, job->blocks[b]); }
    job->cached = taken * core->config.block_tokens;
    job->computed = job->cached;
    job->published = taken;
    core->cache_tokens_asked += job->total;
    core->cache_tokens_found += job->cached;
    core->cache_blocks_taken += job->load_first; /* what was loaded begins there */
    if (taken <= job->grant_first) { return; }
    struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_PUSH_CACHED);
    action->router = job->router;
    action->leg = job->id;
    action->blocks = job->blocks + job->grant_first;
    action->block_count = taken - job->grant_first;
    action->grant_index = 0;
}

void prefill_prefix_publish(struct prefill_core *core, struct prefill_job *job)
{
    if (!core->config.prefix_cache || job->ring > 0) { return; }
    uint32_t full = job->computed / core->config.block_tokens;
    if (full <= job->published) { return; }
    prefill_name_blocks(core, job, full);
    for (; job->published < full; job->published++) {
        uint32_t b = job->published;
        kv_cache_publish(core->cache, job->blocks[b], job->hashes[b], name_before(job, b));
    }
}
