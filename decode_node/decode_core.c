#include "decode_node/decode_core.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "decode_node/decode_state.h"
#include "sched/work_copy.h"

/* A duplicate of a RESERVE comes soon after it or not at all. */
#define ENDED_LEGS_REMEMBERED 4096u

static status_t check_config(const struct decode_core_config *config, struct diag *diag);
static status_t take_message(struct decode_core *core, const struct decode_event *event);
static void take_reserve(struct decode_core *core, uint32_t router, const struct ctl_reserve *reserve);
static status_t validate_reserve(struct decode_core *core, const struct ctl_reserve *reserve);
static void refuse(struct decode_core *core, uint32_t router, struct leg_id leg, uint8_t code, const char *message);
static void take_cancel(struct decode_core *core, uint32_t router, const struct ctl_cancel *cancel);
static void take_prefill_lost(struct decode_core *core, uint32_t router, struct leg_id id);
static void take_landed(struct decode_core *core, const struct decode_event *event);
static bool first_tokens_fit(const struct decode_core *core, const struct decode_leg *leg,
                             const struct decode_event *event);
static void take_xfer_failed(struct decode_core *core, const struct decode_event *event);
static void take_fenced(struct decode_core *core, const struct decode_event *event);
static void drop_router(struct decode_core *core, uint32_t router);
static void look_at_deadlines(struct decode_core *core);
static void send_tokens(struct decode_core *core);
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
    };
}

static void send_load(struct decode_core *core);
static status_t reserve_actions(struct decode_core *core);

status_t decode_core_create(const struct decode_core_config *config, struct decode_core **ret_core,
                            struct diag *diag)
{
    TRY(check_config(config, diag));
    status_t st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    struct decode_core *core = calloc(1, sizeof *core);
    if (core == NULL) { goto fail; }
    core->config = *config;
    uint32_t batch_max = config->batch_max;
    struct decode_plan *step = &core->step;
    core->eos_tokens = calloc(config->eos_count + 1, sizeof *core->eos_tokens);
    core->slots_free = calloc(batch_max, sizeof *core->slots_free);
    core->logprobs = calloc(config->step_rows_max, sizeof *core->logprobs);
    core->audit_owners = calloc(config->block_count, sizeof *core->audit_owners);
    step->opens = calloc(batch_max, sizeof *step->opens);
    step->copies = calloc(config->block_count, sizeof *step->copies);
    step->spans = calloc(batch_max, sizeof *step->spans);
    step->span_seqs = calloc(batch_max, sizeof *step->span_seqs);
    step->sample_seqs = calloc(batch_max, sizeof *step->sample_seqs);
    step->copy_seqs = calloc(config->block_count, sizeof *step->copy_seqs);
    step->sample_slots = calloc(batch_max, sizeof *step->sample_slots);
    step->tokens = calloc(config->step_rows_max, sizeof *step->tokens);
    if (core->eos_tokens == NULL || core->slots_free == NULL || core->logprobs == NULL ||
        core->audit_owners == NULL || step->opens == NULL || step->copies == NULL || step->spans == NULL ||
        step->span_seqs == NULL || step->sample_seqs == NULL || step->copy_seqs == NULL ||
        step->sample_slots == NULL || step->tokens == NULL) {
        goto fail;
    }
    st = kv_pool_create(config->block_count, &core->pool);
    if (failed(st)) { goto fail; }
    st = leg_index_create(config->legs_max, ENDED_LEGS_REMEMBERED, &core->index);
    if (failed(st)) { goto fail; }
    /* One event gives either a step's samples or the first tokens of one leg. */
    st = token_list_create(batch_max + SAMPLING_N_MAX, &core->tokens);
    if (failed(st)) { goto fail; }
    st = reserve_actions(core);
    if (failed(st)) { goto fail; }

    if (config->eos_count > 0) {
        memcpy(core->eos_tokens, config->eos_tokens, config->eos_count * sizeof *core->eos_tokens);
    }
    core->config.eos_tokens = core->eos_tokens;
    core->slot_free_count = batch_max;
    for (uint32_t i = 0; i < batch_max; i++) { core->slots_free[i] = batch_max - 1 - i; }
    struct list *lists[] = {&core->legs,  &core->ended,   &core->preempted, &core->resumed,
                            &core->fresh, &core->granted, &core->ready,     &core->running};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) { list_init(lists[i]); }
    *ret_core = core;
    return STATUS_OK;
fail:
    diag_set(diag, "decode core: no memory for tables of %u blocks, %u legs and a batch of %u; lower one of them",
             config->block_count, config->legs_max, config->batch_max);
    decode_core_destroy(core);
    return st;
}

void decode_core_destroy(struct decode_core *core)
{
    if (core == NULL) { return; }
    struct decode_plan *step = &core->step;
    if (core->legs.head.next != NULL) {
        struct list_link *link;
        while ((link = list_first(&core->legs)) != NULL) {
            list_remove(&core->legs, link);
            free(LIST_OWNER(link, struct decode_leg, link));
        }
    }
    free(core->actions);
    router_set_fini(&core->routers);
    token_list_destroy(core->tokens);
    leg_index_destroy(core->index);
    kv_pool_destroy(core->pool);
    free(step->tokens);
    free(step->sample_slots);
    free(step->copy_seqs);
    free(step->sample_seqs);
    free(step->span_seqs);
    free(step->spans);
    free(step->copies);
    free(step->opens);
    free(core->audit_owners);
    free(core->logprobs);
    free(core->slots_free);
    free(core->eos_tokens);
    free(core);
}

status_t decode_core_step(struct decode_core *core, const struct decode_event *event,
                          struct decode_actions *ret_actions)
{
    if (event->now_ns > core->now_ns) { core->now_ns = event->now_ns; }
    core->action_count = 0;
    core->logprob_count = 0;
    token_list_clear(core->tokens);
    status_t st = STATUS_OK;

    switch (event->kind) {
    case DECODE_EV_ROUTER_UP:
        st = router_set_add(&core->routers, event->router);
        if (!failed(st)) { st = reserve_actions(core); }
        break;
    case DECODE_EV_ROUTER_DOWN:
        drop_router(core, event->router);
        break;
    case DECODE_EV_MESSAGE:
        st = take_message(core, event);
        break;
    case DECODE_EV_STEP_DONE:
        if (core->step.is_in_flight && event->result->id == core->step.plan.id) {
            st = batch_finish_step(core, event->result);
        } else {
            core->late_messages++;
        }
        break;
    case DECODE_EV_XFER_LANDED:
        take_landed(core, event);
        break;
    case DECODE_EV_XFER_FAILED:
        take_xfer_failed(core, event);
        break;
    case DECODE_EV_XFER_FENCED:
        take_fenced(core, event);
        break;
    case DECODE_EV_XFER_PROGRESS: {
        struct decode_leg *leg = leg_index_find(core->index, event->leg);
        if (leg != NULL && leg->seqs[0].state == SEQ_GRANTED) {
            leg->lease_until_ns = later_ns(core->now_ns, core->config.lease_ns);
        } else {
            core->late_messages++;
        }
        break;
    }
    case DECODE_EV_TICK:
        break;
    case DECODE_EV_DRAIN:
        core->is_draining = true;
        break;
    }

    if (!failed(st)) {
        look_at_deadlines(core);
        batch_schedule(core);
        send_load(core);
    }
    send_tokens(core);
    legs_reap(core);
    *ret_actions = (struct decode_actions){.count = core->action_count, .list = core->actions};
    return st;
}

uint64_t decode_core_deadline_ns(const struct decode_core *core)
{
    uint64_t deadline_ns = router_set_load_due_ns(&core->routers);
    const struct list *lists[] = {&core->fresh, &core->granted};
    for (uint32_t i = 0; i < 2; i++) {
        for (struct list_link *link = list_first(lists[i]); link != NULL; link = list_next(lists[i], link)) {
            const struct decode_leg *leg = LIST_OWNER(link, struct decode_seq, link)->leg;
            uint64_t until_ns = i == 0 ? leg->wait_until_ns : leg->lease_until_ns;
            if (until_ns < deadline_ns) { deadline_ns = until_ns; }
        }
    }
    return deadline_ns;
}

struct decode_core_stats decode_core_stats(const struct decode_core *core)
{
    struct kv_pool_counts blocks = kv_pool_counts(core->pool);
    struct decode_core_stats stats = {
        .blocks_total = blocks.total,
        .blocks_free = blocks.free,
        .blocks_held = blocks.held,
        .blocks_cached = blocks.cached,
        .blocks_quarantined = blocks.quarantined,
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
        .idle = core->legs.count == 0 && !core->step.is_in_flight,
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

/* ---------------------------------------------------------------- messages */

static status_t take_message(struct decode_core *core, const struct decode_event *event)
{
    const struct ctl_msg *msg = event->msg;
    if (!router_set_has(&core->routers, event->router)) {
        core->late_messages++;
        return STATUS_OK;
    }
    if (msg->kind == CTL_RESERVE) {
        take_reserve(core, event->router, &msg->reserve);
    } else if (msg->kind == CTL_CANCEL) {
        take_cancel(core, event->router, &msg->cancel);
    } else if (msg->kind == CTL_PREFILL_LOST) {
        take_prefill_lost(core, event->router, msg->prefill_lost);
    } else {
        core->late_messages++;
    }
    return STATUS_OK;
}

static void take_reserve(struct decode_core *core, uint32_t router, const struct ctl_reserve *reserve)
{
    const struct ctl_work *work = &reserve->work;
    if (leg_index_is_known(core->index, work->leg)) {
        core->late_messages++;
        return;
    }
    if (core->is_draining) {
        refuse(core, router, work->leg, ST_UNAVAILABLE, "the decode node is draining; use another one");
        return;
    }
    if (failed(validate_reserve(core, reserve))) {
        refuse(core, router, work->leg, ST_INVALID_ARGUMENT, core->text.text);
        return;
    }
    if (core->legs.count == core->config.legs_max) {
        refuse(core, router, work->leg, ST_RESOURCE_EXHAUSTED,
               "the decode node holds as many requests as it can; try again later");
        return;
    }
    /* Resumed legs go before new ones, and are not refused for load. */
    uint32_t ahead = core->preempted.count + core->resumed.count + core->fresh.count;
    uint32_t blocks = blocks_for(core, work->prompt_count + work->output_count + 1) + work->sequence_count - 1;
    bool must_wait = ahead > 0 || blocks > kv_pool_free_count(core->pool);
    if (!work->resumed && must_wait && (reserve->wait_ms == 0 || ahead >= core->config.waiting_max)) {
        refuse(core, router, work->leg, ST_RESOURCE_EXHAUSTED,
               "the decode node has no free KV blocks for this request; try again later");
        return;
    }
    if (leg_take(core, router, reserve) == NULL) {
        refuse(core, router, work->leg, ST_RESOURCE_EXHAUSTED, "the decode node is out of memory; try again later");
    }
}

/* What can never run is refused now, with the flag that would let it: it would wait for good. */
static status_t validate_reserve(struct decode_core *core, const struct ctl_reserve *reserve)
{
    const struct ctl_work *work = &reserve->work;
    struct work_limits limits = {.vocab_size = core->config.vocab_size, .context_tokens = core->config.context_tokens};
    TRY(work_validate(work, &limits, &core->text));
    uint32_t longest = blocks_for(core, work->prompt_count + work->params.max_tokens);
    if (longest > core->config.block_count) {
        diag_set(&core->text, "a prompt of %u tokens with max_tokens %u needs %u KV blocks and this node has %u; "
                 "lower max_tokens, or raise --kv-memory of the decode node",
                 work->prompt_count, work->params.max_tokens, longest, core->config.block_count);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    uint32_t first = blocks_for(core, work->prompt_count + work->output_count + 1);
    if (first > core->config.block_count - (work->sequence_count - 1) ||
        work->sequence_count > core->config.block_count) {
        diag_set(&core->text, "a prompt of %u tokens with n %u needs %llu KV blocks to start and this node has %u; "
                 "lower n, or raise --kv-memory of the decode node", work->prompt_count, work->sequence_count,
                 (unsigned long long)first + work->sequence_count - 1, core->config.block_count);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    if (reserve->local_prefill && work->sequence_count > core->config.batch_max) {
        diag_set(&core->text, "n is %u and this node runs %u sequences at once; lower n, or raise --batch-max of the "
                 "decode node", work->sequence_count, core->config.batch_max);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    return STATUS_OK;
}

static void refuse(struct decode_core *core, uint32_t router, struct leg_id leg, uint8_t code, const char *message)
{
    struct decode_action *action = action_add(core, DECODE_ACT_SEND);
    action->router = router;
    action->leg = leg;
    action->msg.kind = CTL_REFUSED;
    action->msg.failure = (struct ctl_failure){
        .leg = leg,
        .code = code,
        .retry_after_ms = code == ST_RESOURCE_EXHAUSTED ? retry_after_ms(core) : 0,
        .message = message,
    };
    core->legs_refused++;
    leg_index_remember(core->index, leg);
}

bool decode_core_leg_router(const struct decode_core *core, struct leg_id id, uint32_t *ret_router)
{
    const struct decode_leg *leg = leg_index_find(core->index, id);
    if (leg == NULL || leg->outcome != LEG_OPEN) { return false; }
    *ret_router = leg->router;
    return true;
}

/* A leg answers to the router that made it, and to no other. */
static struct decode_leg *find_leg(struct decode_core *core, uint32_t router, struct leg_id id)
{
    struct decode_leg *leg = leg_index_find(core->index, id);
    if (leg == NULL || leg->router != router || leg->outcome != LEG_OPEN) { return NULL; }
    return leg;
}

static void take_cancel(struct decode_core *core, uint32_t router, const struct ctl_cancel *cancel)
{
    struct decode_leg *leg = find_leg(core, router, cancel->leg);
    if (leg == NULL) {
        core->late_messages++;
        return;
    }
    if (!cancel->one_sequence) {
        leg_drop(core, leg, LEG_CANCELLED);
        return;
    }
    uint32_t first = leg->work.sequence_first;
    if (cancel->sequence < first || cancel->sequence - first >= leg->seq_count) {
        core->late_messages++;
        return;
    }
    leg_cancel_seq(core, leg, cancel->sequence - first);
}

static void take_prefill_lost(struct decode_core *core, uint32_t router, struct leg_id id)
{
    struct decode_leg *leg = find_leg(core, router, id);
    if (leg == NULL || !leg->is_remote || leg->is_forked) {
        core->late_messages++;
        return;
    }
    leg_give_up(core, leg, LEG_FAILED, ST_UNAVAILABLE, "the prefill node was lost before its blocks had landed");
}

static void drop_router(struct decode_core *core, uint32_t router)
{
    router_set_remove(&core->routers, router);
    struct list_link *next;
    for (struct list_link *link = list_first(&core->legs); link != NULL; link = next) {
        next = list_next(&core->legs, link);
        struct decode_leg *leg = LIST_OWNER(link, struct decode_leg, link);
        if (leg->router == router) { leg_drop(core, leg, LEG_CANCELLED); }
    }
}

/* ---------------------------------------------------------------- transfer */

static void take_landed(struct decode_core *core, const struct decode_event *event)
{
    struct decode_leg *leg = leg_index_find(core->index, event->leg);
    struct decode_seq *carrier = leg == NULL ? NULL : &leg->seqs[0];
    if (carrier == NULL || (carrier->state != SEQ_GRANTED && carrier->state != SEQ_FENCING)) {
        core->late_messages++;
        return;
    }
    /* A verified commit ends the transfer: nothing of it lands any more. */
    leg->is_fenced = true;
    if (carrier->state == SEQ_FENCING) {
        core->late_messages++;
        seq_move(core, carrier);
        return;
    }
    seq_enter(core, carrier, SEQ_READY, &core->ready);
    leg->lease_until_ns = UINT64_MAX;
    if (!first_tokens_fit(core, leg, event)) {
        leg_give_up(core, leg, LEG_FAILED, ST_DATA_LOSS,
                    "the prefill node's first tokens do not fit the request; the request must run again");
        return;
    }
    carrier->computed = seq_total(carrier);
    for (uint32_t i = 0; i < event->token_count; i++) {
        const struct ctl_token *token = &event->tokens[i];
        struct decode_seq *seq = &leg->seqs[token->sequence - leg->work.sequence_first];
        if (seq->is_over) { continue; }
        seq_take_token(core, seq, token->token, token->has_logprob, &token->logprob);
    }
    leg_fork(core, leg);
}

/* They come from another machine: one for each sequence, at the position that comes next. */
static bool first_tokens_fit(const struct decode_core *core, const struct decode_leg *leg,
                             const struct decode_event *event)
{
    if (event->token_count != leg->seq_count) { return false; }
    uint64_t seen = 0;
    for (uint32_t i = 0; i < event->token_count; i++) {
        const struct ctl_token *token = &event->tokens[i];
        uint32_t first = leg->work.sequence_first;
        if (token->sequence < first || token->sequence - first >= leg->seq_count) { return false; }
        if (token->position != leg->work.output_count) { return false; }
        if (token->token >= core->config.vocab_size) { return false; }
        if (token->has_logprob && token->logprob.alternative_count > SAMPLING_LOGPROBS_MAX) { return false; }
        seen |= UINT64_C(1) << (token->sequence - first);
    }
    _Static_assert(SAMPLING_N_MAX <= 64, "one bit for each sequence");
    return seen == UINT64_MAX >> (64 - leg->seq_count);
}

static void take_xfer_failed(struct decode_core *core, const struct decode_event *event)
{
    struct decode_leg *leg = leg_index_find(core->index, event->leg);
    if (leg == NULL || leg->seqs[0].state != SEQ_GRANTED) {
        core->late_messages++;
        return;
    }
    uint8_t code = failed(event->status) ? event->status.code : ST_UNAVAILABLE;
    leg_give_up(core, leg, LEG_FAILED, code, "the transfer of the prompt's KV blocks failed");
}

static void take_fenced(struct decode_core *core, const struct decode_event *event)
{
    struct decode_leg *leg = leg_index_find(core->index, event->leg);
    struct decode_seq *carrier = leg == NULL ? NULL : &leg->seqs[0];
    if (carrier == NULL || (carrier->state != SEQ_GRANTED && carrier->state != SEQ_FENCING)) {
        core->late_messages++;
        return;
    }
    leg->is_fenced = true;
    if (carrier->state == SEQ_GRANTED) {
        leg_give_up(core, leg, LEG_FAILED, ST_UNAVAILABLE, "the transfer of the prompt's KV blocks ended unfinished");
        return;
    }
    seq_move(core, carrier);
}

/* ---------------------------------------------------------------- time and reports */

static void look_at_deadlines(struct decode_core *core)
{
    struct list_link *next;
    for (struct list_link *link = list_first(&core->fresh); link != NULL; link = next) {
        next = list_next(&core->fresh, link);
        struct decode_leg *leg = LIST_OWNER(link, struct decode_seq, link)->leg;
        /* What can be admitted in this very event is: leave the head to the scheduler. */
        bool is_next = core->preempted.count == 0 && core->resumed.count == 0 &&
                       link == list_first(&core->fresh) &&
                       seq_blocks_needed(core, &leg->seqs[0]) <= kv_pool_free_count(core->pool);
        if (core->now_ns < leg->wait_until_ns || is_next) { continue; }
        leg_give_up(core, leg, LEG_REFUSED, ST_RESOURCE_EXHAUSTED,
                    "no KV blocks came free on the decode node in time; try again later");
    }
    for (struct list_link *link = list_first(&core->granted); link != NULL; link = next) {
        next = list_next(&core->granted, link);
        struct decode_leg *leg = LIST_OWNER(link, struct decode_seq, link)->leg;
        if (core->now_ns < leg->lease_until_ns) { continue; }
        leg_give_up(core, leg, LEG_FAILED, ST_DEADLINE_EXCEEDED,
                    "the prefill node sent nothing for the whole lease of the blocks");
    }
}

static void send_tokens(struct decode_core *core)
{
    uint32_t router;
    struct ctl_tokens tokens;
    while (token_list_next(core->tokens, &router, &tokens)) {
        struct decode_action *action = action_add(core, DECODE_ACT_SEND);
        action->router = router;
        action->msg.kind = CTL_TOKENS;
        action->msg.tokens = tokens;
    }
}

static void send_load(struct decode_core *core)
{
    if (!router_set_wants_load(&core->routers, core->now_ns)) { return; }
    struct ctl_load load = decode_core_load(core);
    uint32_t router;
    while (router_set_next_load(&core->routers, &load, core->now_ns, &router)) {
        struct decode_action *action = action_add(core, DECODE_ACT_SEND);
        action->router = router;
        action->msg.kind = CTL_LOAD;
        action->msg.load = load;
    }
}

/* At most two actions of one leg in one event, two messages to one router, one refusal, one
 * step, and the prompt log-probabilities of each span. */
static status_t reserve_actions(struct decode_core *core)
{
    uint32_t needed = 2 * core->config.legs_max + 2 * core->routers.count + core->config.batch_max + 8;
    if (needed <= core->action_max) { return STATUS_OK; }
    struct decode_action *actions = realloc(core->actions, needed * sizeof *actions);
    if (actions == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    core->actions = actions;
    core->action_max = needed;
    return STATUS_OK;
}

struct decode_action *action_add(struct decode_core *core, enum decode_action_kind kind)
{
    CHECK(core->action_count < core->action_max);
    struct decode_action *action = &core->actions[core->action_count++];
    memset(action, 0, sizeof *action);
    action->kind = kind;
    return action;
}

/* ---------------------------------------------------------------- config and audit */

static status_t check_config(const struct decode_core_config *config, struct diag *diag)
{
    const struct {
        const char *name;
        uint32_t value, low, high;
    } ranges[] = {
        {"block_tokens", config->block_tokens, 1, 4096},
        {"block_count", config->block_count, 1, 1u << 30},
        {"context_tokens", config->context_tokens, 2, 1u << 30},
        {"vocab_size", config->vocab_size, 1, 1u << 30},
        {"batch_max", config->batch_max, 1, 1u << 16},
        {"step_rows_max", config->step_rows_max, config->batch_max, 1u << 20},
        {"chunk_tokens", config->chunk_tokens, 1, 1u << 20},
        {"waiting_max", config->waiting_max, 0, 1u << 20},
        {"legs_max", config->legs_max, 1, 1u << 20},
        {"eos_count", config->eos_count, 0, 1u << 16},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].value >= ranges[i].low && ranges[i].value <= ranges[i].high) { continue; }
        diag_set(diag, "decode core: %s is %u; it must be %u .. %u", ranges[i].name, ranges[i].value, ranges[i].low,
                 ranges[i].high);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (config->lease_ns == 0) {
        diag_set(diag, "decode core: lease_ns is 0; every grant would be revoked at once");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}

static void own(const struct decode_core *core, uint32_t count, const uint32_t *blocks)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK(blocks[i] < core->config.block_count);
        core->audit_owners[blocks[i]]++;
    }
}

static void audit_seq(const struct decode_core *core, const struct decode_seq *seq, uint32_t *ret_slots)
{
    const struct decode_leg *leg = seq->leg;
    const struct list *lists[SEQ_STATE_COUNT] = {
        [SEQ_GRANTED] = &core->granted, [SEQ_READY] = &core->ready, [SEQ_RUNNING] = &core->running};
    if (seq->state == SEQ_WAITING) {
        CHECK(seq->list == &core->preempted || seq->list == &core->resumed || seq->list == &core->fresh);
        CHECK(seq->block_count == 0);
        CHECK(seq->computed == 0);
    } else {
        CHECK(seq->list == lists[seq->state]);
    }
    CHECK(list_link_is_in(&seq->link) == (seq->list != NULL));
    CHECK(seq->block_count <= leg->table_max);
    CHECK(seq->output_count <= leg->output_max);
    CHECK(seq->computed <= seq_total(seq));
    bool is_carrier = seq->index == 0;
    switch (seq->state) {
    case SEQ_FORKING:
        CHECK(!leg->is_forked);
        CHECK(!is_carrier);
        CHECK(!seq->is_over);
        CHECK(seq->block_count == 0);
        break;
    case SEQ_GRANTED:
        CHECK(is_carrier);
        CHECK(leg->is_remote);
        CHECK(!leg->is_forked);
        break;
    case SEQ_FENCING:
        CHECK(seq->is_over);
        CHECK(!leg->is_fenced);
        break;
    case SEQ_READY:
        CHECK(seq->slot == NO_SLOT);
        CHECK(seq->block_count > 0);
        break;
    case SEQ_RUNNING:
        CHECK(seq->block_count > 0);
        CHECK(seq->computed < seq_total(seq));
        break;
    case SEQ_LEAVING:
        CHECK(seq->is_over);
        CHECK(seq->is_in_step);
        break;
    case SEQ_ENDED:
        CHECK(seq->is_over);
        CHECK(seq->block_count == 0);
        CHECK(seq->slot == NO_SLOT);
        CHECK(seq->spare == NO_BLOCK);
        break;
    default:
        break;
    }
    if (seq->is_in_step) { CHECK(core->step.is_in_flight); }
    if (seq->slot != NO_SLOT) { (*ret_slots)++; }
    if (seq->state != SEQ_FENCING) { own(core, seq->block_count, seq->blocks); }
    if (seq->spare != NO_BLOCK) { own(core, 1, &seq->spare); }
    if (seq->copy_source != NO_BLOCK) { own(core, 1, &seq->copy_source); }
}

void decode_core_audit(const struct decode_core *core)
{
    const struct list *lists[] = {&core->preempted, &core->resumed, &core->fresh,
                                  &core->granted,   &core->ready,   &core->running};
    memset(core->audit_owners, 0, core->config.block_count * sizeof *core->audit_owners);
    uint32_t slots = 0;
    uint32_t listed = 0;
    uint32_t quarantined = 0;
    CHECK(core->ended.count == 0);
    CHECK(core->legs.count == leg_index_live_count(core->index));
    for (struct list_link *link = list_first(&core->legs); link != NULL; link = list_next(&core->legs, link)) {
        const struct decode_leg *leg = LIST_OWNER(link, struct decode_leg, link);
        CHECK(leg_index_find(core->index, leg->id) == leg);
        uint32_t ended = 0;
        for (uint32_t i = 0; i < leg->seq_count; i++) {
            const struct decode_seq *seq = &leg->seqs[i];
            audit_seq(core, seq, &slots);
            ended += seq->state == SEQ_ENDED;
            listed += seq->list != NULL;
            if (seq->state == SEQ_FENCING) { quarantined += seq->block_count; }
        }
        CHECK(ended == leg->ended_count);
        CHECK(ended < leg->seq_count);
    }
    uint32_t in_lists = 0;
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) { in_lists += lists[i]->count; }
    CHECK(in_lists == listed);
    CHECK(slots + core->slot_free_count == core->config.batch_max);
    if (core->step.is_in_flight) {
        for (uint32_t i = 0; i < core->step.plan.copy_count; i++) { own(core, 1, &core->step.copies[i].source_block); }
    }
    kv_pool_audit(core->pool, core->audit_owners);
    struct kv_pool_counts counts = kv_pool_counts(core->pool);
    CHECK(counts.free + counts.held + counts.cached + counts.quarantined == counts.total);
    CHECK(counts.quarantined == quarantined);
}
