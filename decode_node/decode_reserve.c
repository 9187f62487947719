/* What a decode node takes, refuses and lets wait: every RESERVE that it may be sent. */
#include "decode_node/decode_state.h"
#include "sched/work_copy.h"

static status_t validate_reserve(struct decode_core *core, const struct ctl_reserve *reserve);
static void refuse(struct decode_core *core, uint32_t router, struct leg_id leg, uint8_t code, const char *message);

static const char no_blocks[] = "the decode node has no free KV blocks for this request; try again later";

void reserve_take(struct decode_core *core, uint32_t router, const struct ctl_reserve *reserve)
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
    uint32_t waiting = core->preempted.count + core->resumed.count + core->fresh.count;
    const struct decode_seq *head = admit_head(core);
    bool is_behind = head != NULL && head->leg->work.priority >= work->priority;
    bool may_wait = work->resumed || (reserve->wait_ms > 0 && waiting < core->config.waiting_max);
    if (is_behind && !may_wait) {
        refuse(core, router, work->leg, ST_RESOURCE_EXHAUSTED, no_blocks);
        return;
    }
    struct decode_leg *leg = leg_take(core, router, reserve);
    if (leg == NULL) {
        refuse(core, router, work->leg, ST_RESOURCE_EXHAUSTED, "the decode node is out of memory; try again later");
        return;
    }
    /* How many blocks it needs is known only now: what is cached of it counts. */
    if (!may_wait && !admit_fits(core, &leg->seqs[0])) {
        leg_give_up(core, leg, LEG_REFUSED, ST_RESOURCE_EXHAUSTED, no_blocks);
    }
}

/* What can never run is refused now, with the flag that would let it: it would wait for good. */
static status_t validate_reserve(struct decode_core *core, const struct ctl_reserve *reserve)
{
    const struct ctl_work *work = &reserve->work;
    struct work_limits limits = {.vocab_size = core->config.vocab_size, .context_tokens = core->config.context_tokens};
    TRY(work_validate(work, &limits, &core->text));
    uint32_t window = window_blocks_max(core);
    uint32_t longest = blocks_for(core, work->prompt_count + work->params.max_tokens);
    if (longest > window) { longest = window; }
    if (longest > core->config.block_count) {
        diag_set(&core->text, "a prompt of %u tokens with max_tokens %u needs %u KV blocks and this node has %u; "
                 "lower max_tokens, or raise --kv-memory of the decode node",
                 work->prompt_count, work->params.max_tokens, longest, core->config.block_count);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    uint32_t first = blocks_for(core, work->prompt_count + work->output_count + 1);
    if (first > window) { first = window; }
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
