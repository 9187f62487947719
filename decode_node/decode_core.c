#include "decode_node/decode_core.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "decode_node/decode_state.h"

/* A duplicate of a RESERVE comes soon after it or not at all. */
#define ENDED_LEGS_REMEMBERED 4096u

static status_t check_config(const struct decode_core_config *config, struct diag *diag);
static status_t take_message(struct decode_core *core, const struct decode_event *event);
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
    core->victim_refs = calloc(config->block_count, sizeof *core->victim_refs);
    core->block_text = calloc(config->block_tokens, sizeof *core->block_text);
    step->opens = calloc(batch_max, sizeof *step->opens);
    step->copies = calloc(config->block_count, sizeof *step->copies);
    step->spans = calloc(batch_max, sizeof *step->spans);
    step->span_seqs = calloc(batch_max, sizeof *step->span_seqs);
    step->sample_seqs = calloc(batch_max, sizeof *step->sample_seqs);
    step->copy_seqs = calloc(config->block_count, sizeof *step->copy_seqs);
    step->sample_slots = calloc(batch_max, sizeof *step->sample_slots);
    step->tokens = calloc(config->step_rows_max, sizeof *step->tokens);
    if (core->eos_tokens == NULL || core->slots_free == NULL || core->logprobs == NULL ||
        core->audit_owners == NULL || core->victim_refs == NULL || core->block_text == NULL ||
        step->opens == NULL || step->copies == NULL || step->spans == NULL || step->span_seqs == NULL ||
        step->sample_seqs == NULL || step->copy_seqs == NULL || step->sample_slots == NULL || step->tokens == NULL) {
        goto fail;
    }
    struct kv_cache_config cache = {.block_count = config->block_count, .is_enabled = config->prefix_cache};
    st = kv_cache_create(&cache, &core->cache);
    if (failed(st)) { goto fail; }
    /* What a window needs of a text changes from row to row, and is little: it is computed again. */
    if (config->tier_entries_max > 0 && config->window_tokens == 0) {
        struct tier_desk_config tiers = {.cache = core->cache, .entries_max = config->tier_entries_max,
                                         .queue_max = config->tier_queue_max};
        st = tier_desk_create(&tiers, &core->tiers);
        if (failed(st)) { goto fail; }
    }
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
    struct list *lists[] = {&core->legs,    &core->ended,   &core->preempted, &core->resumed, &core->fresh,
                            &core->loading, &core->granted, &core->swapping,  &core->ready,   &core->running};
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
    tier_desk_destroy(core->tiers);
    kv_cache_destroy(core->cache);
    free(step->tokens);
    free(step->sample_slots);
    free(step->copy_seqs);
    free(step->sample_seqs);
    free(step->span_seqs);
    free(step->spans);
    free(step->copies);
    free(step->opens);
    free(core->block_text);
    free(core->victim_refs);
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
    case DECODE_EV_TIER:
        tier_take(core, event->tier);
        break;
    case DECODE_EV_TICK:
        break;
    case DECODE_EV_DRAIN:
        core->is_draining = true;
        break;
    }

    if (!failed(st)) {
        look_at_deadlines(core);
        batch_schedule(core);
        tier_issue(core);
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

/* ---------------------------------------------------------------- messages */

static status_t take_message(struct decode_core *core, const struct decode_event *event)
{
    const struct ctl_msg *msg = event->msg;
    if (!router_set_has(&core->routers, event->router)) {
        core->late_messages++;
        return STATUS_OK;
    }
    if (msg->kind == CTL_RESERVE) {
        reserve_take(core, event->router, &msg->reserve);
    } else if (msg->kind == CTL_CANCEL) {
        take_cancel(core, event->router, &msg->cancel);
    } else if (msg->kind == CTL_PREFILL_LOST) {
        take_prefill_lost(core, event->router, msg->prefill_lost);
    } else {
        core->late_messages++;
    }
    return STATUS_OK;
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
    seq_publish(core, carrier);
    window_slide(core, carrier);
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
        if (core->now_ns < leg->wait_until_ns) { continue; }
        if (admit_head(core) == &leg->seqs[0] && admit_fits(core, &leg->seqs[0])) { continue; }
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
 * step, the prompt log-probabilities of each span, and what the tiers take at once. */
static status_t reserve_actions(struct decode_core *core)
{
    uint32_t needed = 2 * core->config.legs_max + 2 * core->routers.count + core->config.batch_max + 8;
    if (core->tiers != NULL) { needed += tier_desk_queue_max(core->tiers); }
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

/* ---------------------------------------------------------------- config */

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
        {"window_tokens", config->window_tokens, 0, 1u << 30},
        {"tier_queue_max", config->tier_queue_max, 0, 1u << 16},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].value >= ranges[i].low && ranges[i].value <= ranges[i].high) { continue; }
        diag_set(diag, "decode core: %s is %u; it must be %u .. %u", ranges[i].name, ranges[i].value, ranges[i].low,
                 ranges[i].high);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (config->tier_entries_max > 0 && !config->prefix_cache) {
        diag_set(diag, "decode core: tier_entries_max is %u without prefix_cache; nothing would ever be found in a tier",
                 config->tier_entries_max);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (config->window_tokens == 1) {
        diag_set(diag, "decode core: window_tokens is 1; a row would see nothing but itself");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (config->lease_ns == 0) {
        diag_set(diag, "decode core: lease_ns is 0; every grant would be revoked at once");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}
