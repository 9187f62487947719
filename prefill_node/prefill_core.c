#include "prefill_node/prefill_core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "prefill_node/prefill_state.h"
#include "sched/work_copy.h"

/* A duplicate of a PREFILL comes soon after it or not at all. */
#define ENDED_LEGS_REMEMBERED 4096u
/* Far above what a ticket needs; it only bounds what a hostile message can make us keep. */
#define TICKET_BYTES_MAX 4096u
/* Stores and loads under way: kv_tier's own bound. */
#define TIER_QUEUE_MAX 256u

static status_t check_config(const struct prefill_core_config *config, struct diag *diag);
static void take_message(struct prefill_core *core, const struct prefill_event *event);
static void take_prefill(struct prefill_core *core, uint32_t router, const struct ctl_prefill *prefill);
static status_t validate_prefill(struct prefill_core *core, const struct ctl_prefill *prefill);
static void refuse(struct prefill_core *core, uint32_t router, struct leg_id leg, uint8_t code, const char *message);
static void take_cancel(struct prefill_core *core, uint32_t router, const struct ctl_cancel *cancel);
static void take_transfer(struct prefill_core *core, const struct prefill_event *event);
static void send_done(struct prefill_core *core, const struct prefill_job *job, const struct prefill_event *event);
static void drop_router(struct prefill_core *core, uint32_t router);
static void look_at_deadlines(struct prefill_core *core);
static void send_tokens(struct prefill_core *core);
static void send_load(struct prefill_core *core);
static status_t reserve_actions(struct prefill_core *core);

status_t prefill_core_create(const struct prefill_core_config *config, struct prefill_core **ret_core,
                             struct diag *diag)
{
    TRY(check_config(config, diag));
    status_t st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    uint32_t span_max = config->jobs_max < config->step_rows_max ? config->jobs_max : config->step_rows_max;
    struct prefill_core *core = calloc(1, sizeof *core);
    if (core == NULL) { goto fail; }
    core->config = *config;
    struct prefill_plan *step = &core->step;
    core->eos_tokens = calloc((size_t)config->eos_count + 1, sizeof *core->eos_tokens);
    core->commits = calloc(config->slot_count, sizeof *core->commits);
    core->logprobs = calloc(config->step_rows_max, sizeof *core->logprobs);
    core->audit_owners = calloc(config->block_count, sizeof *core->audit_owners);
    core->block_text = calloc(config->block_tokens, sizeof *core->block_text);
    step->opens = calloc(config->slot_count, sizeof *step->opens);
    step->spans = calloc(span_max, sizeof *step->spans);
    step->span_jobs = calloc(span_max, sizeof *step->span_jobs);
    step->sample_slots = calloc(config->slot_count, sizeof *step->sample_slots);
    step->tokens = calloc(config->step_rows_max, sizeof *step->tokens);
    if (core->eos_tokens == NULL || core->commits == NULL || core->logprobs == NULL || core->audit_owners == NULL ||
        core->block_text == NULL ||
        step->opens == NULL || step->spans == NULL || step->span_jobs == NULL || step->sample_slots == NULL ||
        step->tokens == NULL) {
        goto fail;
    }
    struct kv_cache_config cache = {.block_count = config->block_count, .is_enabled = config->prefix_cache};
    st = kv_cache_create(&cache, &core->cache);
    if (failed(st)) { goto fail; }
    if (config->tier_entries_max > 0) {
        struct tier_desk_config tiers = {.cache = core->cache, .entries_max = config->tier_entries_max,
                                         .queue_max = TIER_QUEUE_MAX};
        st = tier_desk_create(&tiers, &core->tiers);
        if (failed(st)) { goto fail; }
    }
    st = leg_index_create(config->jobs_max, ENDED_LEGS_REMEMBERED, &core->index);
    if (failed(st)) { goto fail; }
    st = token_list_create(config->slot_count, &core->tokens);
    if (failed(st)) { goto fail; }
    st = reserve_actions(core);
    if (failed(st)) { goto fail; }
    if (config->eos_count > 0) {
        memcpy(core->eos_tokens, config->eos_tokens, config->eos_count * sizeof *core->eos_tokens);
    }
    core->config.eos_tokens = core->eos_tokens;
    struct list *lists[] = {&core->jobs, &core->ended, &core->resumed, &core->fresh, &core->loading,
                            &core->computing, &core->sent};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) { list_init(lists[i]); }
    *ret_core = core;
    return STATUS_OK;
fail:
    diag_set(diag, "prefill core: no memory for tables of %u blocks, %u jobs and steps of %u rows; lower one of them",
             config->block_count, config->jobs_max, config->step_rows_max);
    prefill_core_destroy(core);
    return st;
}

void prefill_core_destroy(struct prefill_core *core)
{
    if (core == NULL) { return; }
    struct list_link *link;
    while (core->jobs.head.next != NULL && (link = list_first(&core->jobs)) != NULL) {
        list_remove(&core->jobs, link);
        free(LIST_OWNER(link, struct prefill_job, link));
    }
    free(core->actions);
    router_set_fini(&core->routers);
    token_list_destroy(core->tokens);
    leg_index_destroy(core->index);
    tier_desk_destroy(core->tiers);
    kv_cache_destroy(core->cache);
    free(core->step.tokens);
    free(core->step.sample_slots);
    free(core->step.span_jobs);
    free(core->step.spans);
    free(core->step.opens);
    free(core->block_text);
    free(core->audit_owners);
    free(core->logprobs);
    free(core->commits);
    free(core->eos_tokens);
    free(core);
}

status_t prefill_core_step(struct prefill_core *core, const struct prefill_event *event,
                           struct prefill_actions *ret_actions)
{
    if (event->now_ns > core->now_ns) { core->now_ns = event->now_ns; }
    core->action_count = 0;
    core->commit_count = 0;
    core->logprob_count = 0;
    token_list_clear(core->tokens);
    status_t st = STATUS_OK;

    switch (event->kind) {
    case PREFILL_EV_ROUTER_UP:
        st = router_set_add(&core->routers, event->router);
        if (!failed(st)) { st = reserve_actions(core); }
        break;
    case PREFILL_EV_ROUTER_DOWN:
        drop_router(core, event->router);
        break;
    case PREFILL_EV_MESSAGE:
        take_message(core, event);
        break;
    case PREFILL_EV_STEP_DONE:
        if (core->step.is_in_flight && event->result->id == core->step.plan.id) {
            st = prefill_finish_step(core, event->result);
        } else {
            core->late_messages++;
        }
        break;
    case PREFILL_EV_XFER_ACKED:
    case PREFILL_EV_XFER_FAILED:
    case PREFILL_EV_XFER_ENDED:
        take_transfer(core, event);
        break;
    case PREFILL_EV_TIER:
        prefill_tier_take(core, event->tier);
        break;
    case PREFILL_EV_TICK:
        break;
    case PREFILL_EV_DRAIN:
        core->is_draining = true;
        break;
    }

    send_tokens(core); /* before the next step is begun: somebody waits for these */
    if (!failed(st)) {
        look_at_deadlines(core);
        prefill_schedule(core);
        prefill_tier_issue(core);
        send_load(core);
    }
    jobs_reap(core);
    *ret_actions = (struct prefill_actions){.count = core->action_count, .list = core->actions};
    return st;
}

uint64_t prefill_core_deadline_ns(const struct prefill_core *core)
{
    uint64_t deadline_ns = router_set_load_due_ns(&core->routers);
    struct list_link *link = list_first(&core->sent);
    if (link == NULL) { return deadline_ns; }
    uint64_t stall_ns = LIST_OWNER(link, struct prefill_job, queue_link)->stall_until_ns;
    return stall_ns < deadline_ns ? stall_ns : deadline_ns;
}

/* ---------------------------------------------------------------- messages */

static void take_message(struct prefill_core *core, const struct prefill_event *event)
{
    const struct ctl_msg *msg = event->msg;
    bool is_up = router_set_has(&core->routers, event->router);
    if (is_up && msg->kind == CTL_PREFILL) {
        take_prefill(core, event->router, &msg->prefill);
    } else if (is_up && msg->kind == CTL_CANCEL) {
        take_cancel(core, event->router, &msg->cancel);
    } else {
        core->late_messages++;
    }
}

static void take_prefill(struct prefill_core *core, uint32_t router, const struct ctl_prefill *prefill)
{
    struct leg_id leg = prefill->work.leg;
    if (leg_index_is_known(core->index, leg)) {
        core->late_messages++;
        return;
    }
    if (core->is_draining) {
        refuse(core, router, leg, ST_UNAVAILABLE, "the prefill node is draining; use another one");
        return;
    }
    if (failed(validate_prefill(core, prefill))) {
        refuse(core, router, leg, ST_INVALID_ARGUMENT, core->text.text);
        return;
    }
    if (core->jobs.count == core->config.jobs_max) {
        refuse(core, router, leg, ST_RESOURCE_EXHAUSTED,
               "the prefill node holds as many prompts as it can; try again later");
        return;
    }
    if (job_take(core, router, prefill) == NULL) {
        refuse(core, router, leg, ST_RESOURCE_EXHAUSTED, "the prefill node is out of memory; try again later");
    }
}

static status_t validate_prefill(struct prefill_core *core, const struct ctl_prefill *prefill)
{
    const struct ctl_work *work = &prefill->work;
    struct work_limits limits = {.vocab_size = core->config.vocab_size, .context_tokens = core->config.context_tokens};
    TRY(work_validate(work, &limits, &core->text));
    if (prefill->ticket_bytes < 1 || prefill->ticket_bytes > TICKET_BYTES_MAX) {
        diag_set(&core->text, "ticket has %u bytes; it must have 1 .. %u", prefill->ticket_bytes, TICKET_BYTES_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    uint32_t blocks = prefill_blocks_for(core, work->prompt_count + work->output_count);
    if (prefill->grant_first >= blocks) {
        diag_set(&core->text, "grant_first is %u; it must be less than the %u blocks of prompt and output",
                 prefill->grant_first, blocks);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    uint32_t ring = prefill_ring_blocks(&core->config, blocks, prefill->grant_first);
    if ((ring > 0 ? ring : blocks) > core->config.block_count) {
        diag_set(&core->text, "a prompt of %u tokens with %u output tokens needs %u KV blocks and this node has %u; "
                 "shorten it, or raise --kv-memory of the prefill node",
                 work->prompt_count, work->output_count, ring > 0 ? ring : blocks, core->config.block_count);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    if (work->sequence_count > core->config.slot_count) {
        diag_set(&core->text, "n is %u and this node samples %u sequences at once; lower n, or raise --batch-max of the "
                 "prefill node", work->sequence_count, core->config.slot_count);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    return STATUS_OK;
}

static void refuse(struct prefill_core *core, uint32_t router, struct leg_id leg, uint8_t code, const char *message)
{
    struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_SEND);
    action->router = router;
    action->leg = leg;
    action->msg.kind = CTL_REFUSED;
    action->msg.failure = (struct ctl_failure){
        .leg = leg,
        .code = code,
        .retry_after_ms = code == ST_RESOURCE_EXHAUSTED ? prefill_retry_after_ms(core) : 0,
        .message = message,
    };
    core->jobs_refused++;
    leg_index_remember(core->index, leg);
}

static void take_cancel(struct prefill_core *core, uint32_t router, const struct ctl_cancel *cancel)
{
    struct prefill_job *job = leg_index_find(core->index, cancel->leg);
    if (job == NULL || job->router != router || job->outcome != JOB_OPEN) {
        core->late_messages++;
        return;
    }
    if (cancel->one_sequence) {
        uint32_t first = job->work.sequence_first;
        if (cancel->sequence < first || cancel->sequence - first >= job->work.sequence_count) {
            core->late_messages++;
            return;
        }
        /* The decode node expects a first token of every sequence: it is sampled all the same. */
        job->cancelled |= UINT64_C(1) << (cancel->sequence - first);
        _Static_assert(SAMPLING_N_MAX <= 64, "one bit for each sequence");
        if (job->cancelled != UINT64_MAX >> (64 - job->work.sequence_count)) { return; }
    }
    job_drop(core, job, JOB_CANCELLED);
}

static void drop_router(struct prefill_core *core, uint32_t router)
{
    router_set_remove(&core->routers, router);
    struct list_link *next;
    for (struct list_link *link = list_first(&core->jobs); link != NULL; link = next) {
        next = list_next(&core->jobs, link);
        struct prefill_job *job = LIST_OWNER(link, struct prefill_job, link);
        if (job->router == router) { job_drop(core, job, JOB_CANCELLED); }
    }
}

/* ---------------------------------------------------------------- transfer */

/* All three mean that the source blocks are no longer read. Only an acknowledgement of what
 * was committed is a success. */
static void take_transfer(struct prefill_core *core, const struct prefill_event *event)
{
    struct prefill_job *job = leg_index_find(core->index, event->leg);
    if (job == NULL || job->transfer_is_over) {
        core->late_messages++;
        return;
    }
    job->transfer_is_over = true;
    if (job->is_over) {
        job_move(core, job);
        return;
    }
    if (event->kind == PREFILL_EV_XFER_ACKED && job->state == JOB_SENT) {
        send_done(core, job, event);
        job_drop(core, job, JOB_DONE);
        return;
    }
    uint8_t code = failed(event->status) ? event->status.code : ST_UNAVAILABLE;
    bool has_text = event->message != NULL && event->message[0] != '\0';
    diag_set(&core->text, "%s", has_text ? event->message : "the transfer to the decode node ended before its commit");
    job_give_up(core, job, code, core->text.text);
}

static void send_done(struct prefill_core *core, const struct prefill_job *job, const struct prefill_event *event)
{
    snprintf(core->cable, sizeof core->cable, "%s", event->cable == NULL ? "" : event->cable);
    struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_SEND);
    action->router = job->router;
    action->leg = job->id;
    action->msg.kind = CTL_PREFILL_DONE;
    action->msg.prefill_done = (struct ctl_prefill_done){
        .leg = job->id,
        .cable = core->cable,
        .bytes = event->bytes,
        .queue_ns = job->first_chunk_ns - job->arrival_ns,
        .compute_ns = job->first_token_ns - job->first_chunk_ns,
        .transfer_ns = event->transfer_ns,
        .cached_tokens = job->cached,
    };
}

/* ---------------------------------------------------------------- time and reports */

static void look_at_deadlines(struct prefill_core *core)
{
    struct list_link *link;
    while ((link = list_first(&core->sent)) != NULL) {
        struct prefill_job *job = LIST_OWNER(link, struct prefill_job, queue_link);
        if (core->now_ns < job->stall_until_ns) { return; }
        job_give_up(core, job, ST_DEADLINE_EXCEEDED, "the decode node did not acknowledge the blocks in time");
    }
}

static void send_tokens(struct prefill_core *core)
{
    uint32_t router;
    struct ctl_tokens tokens;
    while (token_list_next(core->tokens, &router, &tokens)) {
        struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_SEND);
        action->router = router;
        action->msg.kind = CTL_TOKENS;
        action->msg.tokens = tokens;
    }
}

static void send_load(struct prefill_core *core)
{
    if (!router_set_wants_load(&core->routers, core->now_ns)) { return; }
    struct ctl_load load = prefill_core_load(core);
    uint32_t router;
    while (router_set_next_load(&core->routers, &load, core->now_ns, &router)) {
        struct prefill_action *action = prefill_action_add(core, PREFILL_ACT_SEND);
        action->router = router;
        action->msg.kind = CTL_LOAD;
        action->msg.load = load;
    }
}

/* At most four actions of one job in one event, two messages to one router, one refusal, one step,
 * and what the tiers take at once. */
static status_t reserve_actions(struct prefill_core *core)
{
    uint32_t needed = 4 * core->config.jobs_max + 2 * core->routers.count + TIER_QUEUE_MAX + 8;
    if (needed <= core->action_max) { return STATUS_OK; }
    struct prefill_action *actions = realloc(core->actions, needed * sizeof *actions);
    if (actions == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    core->actions = actions;
    core->action_max = needed;
    return STATUS_OK;
}

struct prefill_action *prefill_action_add(struct prefill_core *core, enum prefill_action_kind kind)
{
    CHECK(core->action_count < core->action_max);
    struct prefill_action *action = &core->actions[core->action_count++];
    memset(action, 0, sizeof *action);
    action->kind = kind;
    return action;
}

/* ---------------------------------------------------------------- config */

static status_t check_config(const struct prefill_core_config *config, struct diag *diag)
{
    const struct {
        const char *name;
        uint32_t value, low, high;
    } ranges[] = {
        {"block_tokens", config->block_tokens, 1, 4096},
        {"block_count", config->block_count, 1, 1u << 30},
        {"context_tokens", config->context_tokens, 2, 1u << 30},
        {"vocab_size", config->vocab_size, 1, 1u << 30},
        {"step_rows_max", config->step_rows_max, 1, 1u << 20},
        {"chunk_tokens", config->chunk_tokens, 1, 1u << 20},
        {"jobs_max", config->jobs_max, 1, 1u << 20},
        {"slot_count", config->slot_count, 1, 1u << 16},
        {"eos_count", config->eos_count, 0, 1u << 16},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].value >= ranges[i].low && ranges[i].value <= ranges[i].high) { continue; }
        diag_set(diag, "prefill core: %s is %u; it must be %u .. %u", ranges[i].name, ranges[i].value, ranges[i].low,
                 ranges[i].high);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (config->tier_entries_max > 0 && !config->prefix_cache) {
        diag_set(diag, "prefill core: tier_entries_max is %u and prefix_cache is off; a tier's blocks are found by its names",
                 config->tier_entries_max);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (config->transfer_stall_ns == 0) {
        diag_set(diag, "prefill core: transfer_stall_ns is 0; every transfer would be given up at once");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}
