/* What a prefill node's jobs hold, for whoever looks. */
#include "prefill_node/prefill_state.h"

static const char *state_name(enum job_state state)
{
    switch (state) {
    case JOB_WAITING: return "waiting";
    case JOB_LOADING: return "loading";
    case JOB_COMPUTING: return "computing";
    case JOB_SENT: return "sent";
    case JOB_LEAVING: return "leaving";
    case JOB_ENDED:
    case JOB_STATE_COUNT: break;
    }
    return "ended";
}

void prefill_core_inspect(const struct prefill_core *core, inspect_fn visit, void *user)
{
    for (struct list_link *link = list_first(&core->jobs); link != NULL; link = list_next(&core->jobs, link)) {
        const struct prefill_job *job = LIST_OWNER(link, struct prefill_job, link);
        struct inspect_entry entry = {
            .leg = job->id,
            .router = job->router,
            .sequence = job->work.sequence_first,
            .state = state_name(job->state),
            .priority = job->work.priority,
            .age_ns = later_ns(job->work.age_ns, core->now_ns - job->arrival_ns),
            .tokens = job->total,
            .tokens_computed = job->computed,
            .tokens_cached = job->cached,
            .block_count = job->block_count,
            .blocks = job->blocks,
        };
        visit(user, &entry);
    }
}

struct kv_cache_stats prefill_core_cache_stats(const struct prefill_core *core) { return kv_cache_stats(core->cache); }
