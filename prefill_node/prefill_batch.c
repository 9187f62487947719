/* Blocks and steps: which prompts share the next step, and what becomes of its result. */
#include "base/check.h"
#include "model/stop_rules.h"
#include "prefill_node/prefill_state.h"
#include "sched/work_copy.h"

static void admit_waiting(struct prefill_core *core);
static bool admit(struct prefill_core *core, struct prefill_job *job);
static void plan_step(struct prefill_core *core);
static void plan_span(struct prefill_core *core, struct prefill_job *job, uint32_t row_count);
static void plan_samples(struct prefill_core *core, struct prefill_job *job, struct step_span *span);
static void fail_step(struct prefill_core *core);
static void take_samples(struct prefill_core *core, struct prefill_job *job, const struct step_sample *samples);
static void take_prompt_logprobs(struct prefill_core *core, const struct prefill_job *job,
                                 const struct step_span *span, const struct token_logprob *entries);

static struct prefill_job *job_of(struct list_link *link)
{
    return link == NULL ? NULL : LIST_OWNER(link, struct prefill_job, queue_link);
}

static uint32_t logprob_rows(const struct step_span *span)
{
    return span->prompt_logprobs < 0 ? 0 : span->row_count - !span->has_next_token;
}

void prefill_schedule(struct prefill_core *core)
{
    admit_waiting(core);
    if (!core->step.is_in_flight) { plan_step(core); }
}

/* The highest priority; among equals those that resume first. */
static struct prefill_job *next_waiting(const struct prefill_core *core)
{
    struct prefill_job *resumed = job_of(list_first(&core->resumed)), *fresh = job_of(list_first(&core->fresh));
    if (resumed == NULL || fresh == NULL) { return resumed != NULL ? resumed : fresh; }
    return fresh->work.priority > resumed->work.priority ? fresh : resumed;
}

/* Strictly in order: a long prompt at the head waits for its blocks and the short ones behind
 * it wait with it, or it could wait for good. */
static void admit_waiting(struct prefill_core *core)
{
    struct prefill_job *job = next_waiting(core);
    while (job != NULL && admit(core, job)) { job = next_waiting(core); }
}

/* What is cached first, then the rest; all or none. */
static bool admit(struct prefill_core *core, struct prefill_job *job)
{
    const struct admit_miss *last = &core->miss;
    struct admit_miss now = {.is_set = true, .leg = job->id, .available = kv_cache_available(core->cache),
                             .published = kv_cache_stats(core->cache).blocks_published};
    if (last->is_set && leg_id_equal(last->leg, now.leg) && last->available == now.available &&
        last->published == now.published) {
        return false;
    }
    uint32_t taken = prefill_prefix_take(core, job);
    uint32_t count = job->ring > 0 ? job->ring : prefill_blocks_for(core, job->total);
    if (failed(kv_cache_reserve(core->cache, count - taken, job->blocks + taken))) {
        kv_cache_release(core->cache, taken, job->blocks);
        core->miss = now;
        return false;
    }
    job->block_count = count;
    if (job->ring > 0) { prefill_ring_fill(job, prefill_blocks_for(core, job->total)); }
    if (prefill_tier_plan_load(core, job, taken) > 0) {
        job_enter(core, job, JOB_LOADING, &core->loading);
        return true;
    }
    prefill_prefix_use(core, job, taken);
    job_enter(core, job, JOB_COMPUTING, &core->computing);
    return true;
}

static void plan_step(struct prefill_core *core)
{
    struct prefill_plan *step = &core->step;
    step->plan = (struct step_plan){.id = step->plan.id, .opens = step->opens, .spans = step->spans};
    step->sample_count = 0;
    step->token_count = 0;
    step->logprob_count = 0;
    for (struct list_link *link = list_first(&core->computing); link != NULL;
         link = list_next(&core->computing, link)) {
        struct prefill_job *job = job_of(link);
        uint32_t left = job->total - job->computed;
        uint32_t room = core->config.step_rows_max - step->token_count;
        uint32_t rows = left < core->config.chunk_tokens ? left : core->config.chunk_tokens;
        if (rows > room) { rows = room; }
        /* Without a slot for every first token the last row waits for the next step. */
        bool has_slots = step->sample_count + job->work.sequence_count <= core->config.slot_count;
        if (rows == left && !has_slots) { rows--; }
        if (rows == 0) { continue; }
        plan_span(core, job, rows);
    }
    if (step->plan.span_count == 0) { return; }
    step->plan.id++;
    step->is_in_flight = true;
    struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_STEP);
    action->plan = &step->plan;
}

static void plan_span(struct prefill_core *core, struct prefill_job *job, uint32_t row_count)
{
    struct prefill_plan *step = &core->step;
    uint32_t block_tokens = core->config.block_tokens;
    uint32_t *tokens = step->tokens + step->token_count;
    work_tokens(&job->work, job->work.output, job->computed, row_count, tokens);
    step->token_count += row_count;

    uint32_t end = job->computed + row_count;
    bool is_last = end == job->total;
    uint32_t push_first = job->computed / block_tokens;
    uint32_t push_end = is_last ? prefill_blocks_for(core, end) : end / block_tokens;
    if (push_first < job->grant_first) { push_first = push_end < job->grant_first ? push_end : job->grant_first; }
    uint32_t at = step->plan.span_count++;
    struct step_span *span = &step->spans[at];
    *span = (struct step_span){
        .first_position = job->computed,
        .row_count = row_count,
        .tokens = tokens,
        .block_count = prefill_blocks_for(core, end),
        .block_table = job->blocks,
        .sample_slots = step->sample_slots + step->sample_count,
        .prompt_logprobs = job->work.params.prompt_logprobs,
        .leg = job->id,
        .grant_first = job->grant_first,
        .push_first = push_first,
        .push_count = push_end - push_first,
    };
    if (end < job->work.prompt_count) {
        span->has_next_token = true;
        span->next_token = job->work.prompt[end];
    }
    step->logprob_count += logprob_rows(span);
    step->span_jobs[at] = job;
    job->is_in_step = true;
    if (job->computed == job->cached) { job->first_chunk_ns = core->now_ns; }
    if (is_last) { plan_samples(core, job, span); }
}

/* Slots are numbered anew in each step: a job samples in one step only. */
static void plan_samples(struct prefill_core *core, struct prefill_job *job, struct step_span *span)
{
    struct prefill_plan *step = &core->step;
    for (uint32_t i = 0; i < job->work.sequence_count; i++) {
        uint32_t slot = step->sample_count++;
        step->sample_slots[slot] = slot;
        span->sample_count++;
        step->opens[step->plan.open_count++] = (struct step_open){
            .slot = slot,
            .sequence = job->work.sequence_first + i,
            .params = &job->work.params,
            .prompt_count = job->work.prompt_count,
            .prompt = job->work.prompt,
            .output_count = job->work.output_count,
            .output = job->work.output,
        };
    }
}

status_t prefill_finish_step(struct prefill_core *core, const struct step_result *result)
{
    struct prefill_plan *step = &core->step;
    step->is_in_flight = false;
    core->steps++;
    for (uint32_t i = 0; i < step->plan.span_count; i++) { step->span_jobs[i]->is_in_step = false; }
    status_t st = result->status;
    if (!failed(st) && (result->sample_count != step->sample_count ||
                        result->prompt_logprob_count != step->logprob_count)) {
        st = STATUS(ST_INTERNAL, SCOPE_NODE);
    }
    if (failed(st)) {
        fail_step(core);
        return st.scope == SCOPE_NODE ? st : STATUS_OK;
    }
    core->prompt_tokens_computed += step->token_count;
    token_rate_add(&core->rate, step->token_count, result->compute_ns);
    const struct step_sample *samples = result->samples;
    const struct token_logprob *logprobs = result->prompt_logprobs;
    for (uint32_t i = 0; i < step->plan.span_count; i++) {
        const struct step_span *span = &step->spans[i];
        struct prefill_job *job = step->span_jobs[i];
        job->computed += span->row_count;
        prefill_prefix_publish(core, job); /* also of one that was cancelled meanwhile: somebody may ask again */
        if (job->is_over) {
            job_move(core, job);
        } else {
            if (logprob_rows(span) > 0) { take_prompt_logprobs(core, job, span, logprobs); }
            if (span->sample_count > 0) { take_samples(core, job, samples); }
        }
        samples += span->sample_count;
        logprobs += logprob_rows(span);
    }
    return STATUS_OK;
}

static void fail_step(struct prefill_core *core)
{
    for (uint32_t i = 0; i < core->step.plan.span_count; i++) {
        job_give_up(core, core->step.span_jobs[i], ST_INTERNAL,
                    "the prefill node's engine failed in this step; its log says why");
    }
}

/* First tokens go to the router now, and with the commit to the decode node, which sends
 * them again with its own: the router keeps whichever comes first. */
static void take_samples(struct prefill_core *core, struct prefill_job *job, const struct step_sample *samples)
{
    const struct ctl_work *work = &job->work;
    struct eos_tokens eos = {.token = core->eos_tokens, .count = core->config.eos_count};
    struct ctl_token *commit = core->commits + core->commit_count;
    for (uint32_t i = 0; i < work->sequence_count; i++) {
        CHECK(samples[i].token < core->config.vocab_size);
        enum stop_verdict verdict = stop_rules_decide(&work->params, eos, samples[i].token, work->output_count + 1,
                                                      job->total + 1, core->config.context_tokens);
        CHECK(core->commit_count < core->config.slot_count);
        struct ctl_token *token = &core->commits[core->commit_count++];
        *token = (struct ctl_token){
            .leg = job->id,
            .sequence = work->sequence_first + i,
            .position = work->output_count,
            .token = samples[i].token,
            .finish = verdict == STOP_RULES_END_TOKEN ? FINISH_STOP
                      : verdict == STOP_RULES_LENGTH  ? FINISH_LENGTH
                                                      : FINISH_NONE,
            .has_logprob = samples[i].has_logprob,
        };
        if (samples[i].has_logprob) { token->logprob = samples[i].logprob; }
        if ((job->cancelled >> i & 1) == 0) { *token_list_add(core->tokens, job->router) = *token; }
    }
    job->first_token_ns = core->now_ns;
    job->stall_until_ns = later_ns(core->now_ns, core->config.transfer_stall_ns);
    job_enter(core, job, JOB_SENT, &core->sent);
    struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_XFER_COMMIT);
    action->router = job->router;
    action->leg = job->id;
    action->token_count = work->sequence_count;
    action->tokens = commit;
}

/* The entries are copied: the engine may use its result's memory again before the message
 * has been sent. */
static void take_prompt_logprobs(struct prefill_core *core, const struct prefill_job *job,
                                 const struct step_span *span, const struct token_logprob *entries)
{
    uint32_t count = logprob_rows(span);
    CHECK(core->logprob_count + count <= core->config.step_rows_max);
    struct token_logprob *copied = core->logprobs + core->logprob_count;
    for (uint32_t i = 0; i < count; i++) { copied[i] = entries[i]; }
    core->logprob_count += count;
    struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_SEND);
    action->router = job->router;
    action->leg = job->id;
    action->msg.kind = CTL_PROMPT_LOGPROBS;
    action->msg.prompt_logprobs = (struct ctl_prompt_logprobs){
        .leg = job->id, .first = span->first_position + 1, .count = count, .entries = copied};
}
