/* One job's life: taken, computed, sent, ended. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "prefill_node/prefill_state.h"
#include "sched/work_copy.h"

struct prefill_job *job_take(struct prefill_core *core, uint32_t router, const struct ctl_prefill *prefill)
{
    const struct ctl_work *work = &prefill->work;
    uint32_t total = work->prompt_count + work->output_count;
    uint32_t table_max = prefill_blocks_for(core, total);
    size_t table_bytes = table_max * (sizeof(uint32_t) + sizeof(struct kv_hash));
    struct prefill_job *job = calloc(1, sizeof *job + table_bytes + work_copy_bytes(work) + prefill->ticket_bytes);
    if (job == NULL) { return NULL; }
    job->id = work->leg;
    job->router = router;
    job->arrival_ns = core->now_ns;
    job->stall_until_ns = UINT64_MAX;
    job->total = total;
    job->grant_first = prefill->grant_first;
    job->ring = prefill_ring_blocks(&core->config, table_max, job->grant_first);
    job->root = kv_hash_root(work->cache_salt);
    job->hashes = (struct kv_hash *)(void *)(job + 1);
    job->blocks = (uint32_t *)(void *)(job->hashes + table_max);
    char *arrays = (char *)(job->blocks + table_max);
    job->work = work_copy(work, arrays);
    job->ticket_bytes = prefill->ticket_bytes;
    job->ticket = (uint8_t *)arrays + work_copy_bytes(work);
    memcpy(job->ticket, prefill->ticket, prefill->ticket_bytes);

    leg_index_add(core->index, job->id, job);
    list_append(&core->jobs, &job->link);
    job_enter(core, job, JOB_WAITING, work->resumed ? &core->resumed : &core->fresh);
    struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_XFER_BEGIN);
    action->router = router;
    action->leg = job->id;
    action->ticket = job->ticket;
    action->ticket_bytes = job->ticket_bytes;
    action->block_count = table_max - job->grant_first;
    return job;
}

/* Where jobs wait for something of ours, blocks or rows, the higher priority goes first; among equals,
 * and elsewhere, the order is that of entering. NULL: at the front. */
static struct list_link *queue_place(const struct prefill_core *core, const struct prefill_job *job, const struct list *queue)
{
    struct list_link *after = list_last(queue);
    if (queue != &core->resumed && queue != &core->fresh && queue != &core->computing) { return after; }
    while (after != NULL && LIST_OWNER(after, struct prefill_job, queue_link)->work.priority < job->work.priority) {
        after = list_previous(queue, after);
    }
    return after;
}

void job_enter(struct prefill_core *core, struct prefill_job *job, enum job_state state, struct list *queue)
{
    if (job->queue != NULL) { list_remove(job->queue, &job->queue_link); }
    job->queue = queue;
    job->state = state;
    if (queue != NULL) { list_insert(queue, queue_place(core, job, queue), &job->queue_link); }
    if (state != JOB_ENDED) { return; }
    switch (job->outcome) {
    case JOB_OPEN: CHECK(job->outcome != JOB_OPEN); break;
    case JOB_DONE: core->jobs_done++; break;
    case JOB_FAILED: core->jobs_failed++; break;
    case JOB_CANCELLED: core->jobs_cancelled++; break;
    }
    core->hold_mean_ns = rate_mean(core->hold_mean_ns, core->now_ns - job->arrival_ns);
    leg_index_remove(core->index, job->id);
    list_remove(&core->jobs, &job->link);
    list_append(&core->ended, &job->link);
}

void job_drop(struct prefill_core *core, struct prefill_job *job, enum job_outcome outcome)
{
    if (job->outcome == JOB_OPEN) { job->outcome = outcome; }
    job->is_over = true;
    job_move(core, job);
}

void job_give_up(struct prefill_core *core, struct prefill_job *job, uint8_t code, const char *message)
{
    if (job->outcome == JOB_OPEN) {
        struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_SEND);
        action->router = job->router;
        action->leg = job->id;
        action->msg.kind = CTL_PREFILL_FAILED;
        action->msg.failure = (struct ctl_failure){.leg = job->id, .code = code, .message = message};
    }
    job_drop(core, job, JOB_FAILED);
}

void job_move(struct prefill_core *core, struct prefill_job *job)
{
    if (!job->is_over) { return; }
    enum job_state before;
    do {
        before = job->state;
        switch (job->state) {
        case JOB_WAITING:
        case JOB_LOADING:
        case JOB_COMPUTING:
        case JOB_SENT:
            if (!job->transfer_is_over) {
                struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_XFER_ABORT);
                action->router = job->router;
                action->leg = job->id;
            }
            job_enter(core, job, JOB_LEAVING, NULL);
            break;
        case JOB_LEAVING:
            if (job->is_in_step || job->loads_pending > 0 || !job->transfer_is_over) { break; }
            kv_cache_release(core->cache, job->block_count, job->blocks);
            job->block_count = 0;
            job_enter(core, job, JOB_ENDED, NULL);
            break;
        case JOB_ENDED:
        case JOB_STATE_COUNT:
            break;
        }
    } while (job->state != before);
}

uint64_t prefill_tokens_queued(const struct prefill_core *core)
{
    uint64_t tokens = 0;
    const struct list *queues[] = {&core->resumed, &core->fresh, &core->loading, &core->computing};
    for (uint32_t i = 0; i < 4; i++) {
        for (struct list_link *link = list_first(queues[i]); link != NULL; link = list_next(queues[i], link)) {
            const struct prefill_job *job = LIST_OWNER(link, struct prefill_job, queue_link);
            uint32_t loaded = job->state == JOB_LOADING ? job->load_good * core->config.block_tokens : 0;
            tokens += job->total - job->computed - loaded;
        }
    }
    return tokens;
}

/* One place comes free after a job's stay divided by how many stay at once. */
uint32_t prefill_retry_after_ms(const struct prefill_core *core)
{
    if (core->hold_mean_ns == 0) { return 1000; }
    return retry_hint_ms(core->hold_mean_ns / (core->jobs.count == 0 ? 1 : core->jobs.count));
}

void jobs_reap(struct prefill_core *core)
{
    struct list_link *link;
    while ((link = list_first(&core->ended)) != NULL) {
        list_remove(&core->ended, link);
        free(LIST_OWNER(link, struct prefill_job, link));
    }
}
