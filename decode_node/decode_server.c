#include "decode_node/decode_server.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "decode_node/decode_core.h"

#define BACKSTOP_LEASE_NS (3600 * NS_PER_S)

struct decode_server {
    struct node *node;
    struct decode_core *core;
    uint32_t legs_max;
    uint32_t lease_ms;
    uint32_t failed_grant_count;
    struct leg_id *failed_grants; /* [legs_max] of the actions being performed */
};

static status_t create(struct node *node, const struct node_shape *shape, void **ret_role, struct diag *diag)
{
    const struct node_config *config = shape->config;
    bool has_cache = strcmp(config->prefix_cache, "on") == 0;
    struct decode_core_config core = {
        .block_tokens = shape->layout.block_tokens,
        .block_count = shape->block_count,
        .context_tokens = shape->model->context_tokens,
        .vocab_size = shape->model->vocab_size,
        .batch_max = config->batch_max,
        .step_rows_max = config->step_tokens,
        .chunk_tokens = config->chunk_tokens,
        .window_tokens = model_config_window_of_all(shape->model),
        .itl_stretch_percent = (uint32_t)(config->itl_stretch * 100 + 0.5f),
        .waiting_max = config->waiting_max,
        .legs_max = config->batch_max * 2 + config->waiting_max,
        .eos_count = shape->model->eos_count,
        .eos_tokens = shape->model->eos_tokens,
        .prefix_cache = has_cache,
        .tier_entries_max = has_cache ? shape->tier_entries_max : 0,
        .preempt = strcmp(config->preempt, "swap") == 0        ? DECODE_PREEMPT_SWAP
                   : strcmp(config->preempt, "recompute") == 0 ? DECODE_PREEMPT_RECOMPUTE
                                                               : DECODE_PREEMPT_AUTO,
        /* The transfer ends a grant that shows no progress, after --lease; it sees the bytes.
         * The core's own lease is only there for a transfer thread that forgot one. */
        .lease_ns = BACKSTOP_LEASE_NS > config->lease_ns ? BACKSTOP_LEASE_NS : config->lease_ns,
    };
    struct decode_server *server = calloc(1, sizeof *server);
    struct leg_id *legs = calloc(core.legs_max, sizeof *legs);
    if (!server || !legs) {
        free(server);
        free(legs);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    server->node = node;
    server->legs_max = core.legs_max;
    server->lease_ms = (uint32_t)(config->lease_ns / NS_PER_MS);
    server->failed_grants = legs;
    status_t st = decode_core_create(&core, &server->core, diag);
    if (failed(st)) {
        free(legs);
        free(server);
        return st;
    }
    *ret_role = server;
    return STATUS_OK;
}

static void destroy(void *role)
{
    struct decode_server *server = role;
    decode_core_destroy(server->core);
    free(server->failed_grants);
    free(server);
}

/* Mints the ticket for what the core has reserved, and answers the router with it. */
static void grant(struct decode_server *server, const struct decode_action *action)
{
    uint8_t ticket[KV_TICKET_BYTES_MAX];
    size_t ticket_bytes = 0;
    status_t st = kv_endpoint_grant(node_endpoint(server->node), node_xfer_id(action->leg), action->blocks,
                                    action->block_count, server->lease_ms, NULL, ticket,
                                    &ticket_bytes);
    if (failed(st)) {
        LOGF(LOG_WARN, "grant_failed", "leg=%lx code=%s", (unsigned long)action->leg.lo, status_code_name(st.code));
        CHECK(server->failed_grant_count < server->legs_max);
        server->failed_grants[server->failed_grant_count++] = action->leg;
        return;
    }
    struct ctl_msg msg = {.kind = CTL_RESERVED,
                          .reserved = {.leg = action->leg, .cached_tokens = action->cached_tokens,
                                       .grant_first = action->grant_first, .ticket = ticket,
                                       .ticket_bytes = (uint32_t)ticket_bytes}};
    node_send(server->node, action->router, &msg);
}

static void perform(struct decode_server *server, const struct decode_actions *actions)
{
    for (uint32_t i = 0; i < actions->count; i++) {
        const struct decode_action *action = &actions->list[i];
        switch (action->kind) {
        case DECODE_ACT_SEND: node_send(server->node, action->router, &action->msg); break;
        case DECODE_ACT_GRANT: grant(server, action); break;
        case DECODE_ACT_REVOKE: kv_endpoint_revoke(node_endpoint(server->node), node_xfer_id(action->leg)); break;
        case DECODE_ACT_STEP: node_step(server->node, action->plan); break;
        case DECODE_ACT_TIER_STORE: node_tier_store(server->node, action->hash, action->block, action->tag); break;
        case DECODE_ACT_TIER_LOAD: node_tier_load(server->node, action->hash, action->block, action->tag); break;
        }
    }
}

static status_t step(struct decode_server *server, const struct decode_event *event)
{
    struct decode_actions actions;
    TRY(decode_core_step(server->core, event, &actions));
    perform(server, &actions);
    /* A grant that the endpoint would not open never was one: nothing can land, so it has
     * failed and is fenced in one go. */
    while (server->failed_grant_count > 0) {
        struct leg_id leg = server->failed_grants[--server->failed_grant_count];
        struct decode_event failure = {.kind = DECODE_EV_XFER_FAILED, .now_ns = event->now_ns, .leg = leg,
                                       .status = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST)};
        TRY(decode_core_step(server->core, &failure, &actions));
        perform(server, &actions);
        failure.kind = DECODE_EV_XFER_FENCED;
        TRY(decode_core_step(server->core, &failure, &actions));
        perform(server, &actions);
    }
    return STATUS_OK;
}

static status_t on_landed(struct decode_server *server, struct decode_event *event, const struct kv_event *xfer)
{
    struct ctl_msg msg;
    struct diag diag = {{0}};
    status_t st = ctl_codec_decode(node_codec(server->node), CTL_FROM_NODE, xfer->payload, xfer->payload_bytes, &msg, &diag);
    if (failed(st) || msg.kind != CTL_TOKENS) {
        LOGF(LOG_WARN, "commit_unreadable", "leg=%lx why=\"%s\"", (unsigned long)event->leg.lo, diag.text);
        event->kind = DECODE_EV_XFER_FAILED;
        event->status = STATUS(ST_DATA_LOSS, SCOPE_PEER);
        TRY(step(server, event));
        event->kind = DECODE_EV_XFER_FENCED;
        return step(server, event);
    }
    /* The prefill node says so as well, but its word may come after all tokens are out. */
    uint32_t router;
    if (decode_core_leg_router(server->core, event->leg, &router)) {
        struct ctl_msg done = {.kind = CTL_PREFILL_DONE,
                               .prefill_done = {.leg = event->leg, .cable = xfer->stats.cable, .bytes = xfer->stats.bytes,
                                                .transfer_ns = xfer->stats.duration_ns}};
        node_send(server->node, router, &done);
    }
    event->kind = DECODE_EV_XFER_LANDED;
    event->token_count = msg.tokens.count;
    event->tokens = msg.tokens.tokens;
    LOGF(LOG_DEBUG, "kv_landed", "leg=%lx cable=%s reason=\"%s\" bytes=%lu us=%lu", (unsigned long)event->leg.lo,
         xfer->stats.cable, xfer->stats.reason, (unsigned long)xfer->stats.bytes,
         (unsigned long)(xfer->stats.duration_ns / NS_PER_US));
    return step(server, event);
}

static status_t on_xfer_fact(struct decode_server *server, uint64_t now_ns, const struct kv_event *xfer)
{
    struct decode_event event = {.now_ns = now_ns, .leg = node_leg_id(xfer->xfer_id), .status = xfer->status};
    switch (xfer->kind) {
    case KV_EVENT_LANDED:
        return on_landed(server, &event, xfer);
    case KV_EVENT_FAILED:
        LOGF(LOG_WARN, "kv_failed", "leg=%lx code=%s why=\"%s\"", (unsigned long)event.leg.lo,
             status_code_name(xfer->status.code), xfer->text);
        event.kind = DECODE_EV_XFER_FAILED;
        TRY(step(server, &event));
        if (!xfer->fenced) { return STATUS_OK; }
        event.kind = DECODE_EV_XFER_FENCED;
        return step(server, &event);
    case KV_EVENT_FENCED:
        event.kind = DECODE_EV_XFER_FENCED;
        return step(server, &event);
    default:
        return STATUS_OK;
    }
}

static status_t on_fact(void *role, const struct node_fact *fact)
{
    struct decode_server *server = role;
    struct decode_event event = {.now_ns = fact->now_ns, .router = fact->router, .msg = fact->msg, .result = fact->result};
    switch (fact->kind) {
    case NODE_FACT_ROUTER_UP: event.kind = DECODE_EV_ROUTER_UP; break;
    case NODE_FACT_ROUTER_DOWN: event.kind = DECODE_EV_ROUTER_DOWN; break;
    case NODE_FACT_MESSAGE: event.kind = DECODE_EV_MESSAGE; break;
    case NODE_FACT_STEP: event.kind = DECODE_EV_STEP_DONE; break;
    case NODE_FACT_XFER: return on_xfer_fact(server, fact->now_ns, fact->xfer);
    case NODE_FACT_TIER:
        event.kind = DECODE_EV_TIER;
        event.tier = fact->tier;
        break;
    case NODE_FACT_TICK: event.kind = DECODE_EV_TICK; break;
    case NODE_FACT_DRAIN: event.kind = DECODE_EV_DRAIN; break;
    }
    return step(server, &event);
}

static uint64_t deadline_ns(void *role)
{
    struct decode_server *server = role;
    return decode_core_deadline_ns(server->core);
}

static void report(void *role, struct ctl_load *ret_load, struct node_totals *ret_totals)
{
    struct decode_server *server = role;
    struct decode_core_stats stats = decode_core_stats(server->core);
    *ret_load = decode_core_load(server->core);
    *ret_totals = (struct node_totals){
        .prompt_tokens = stats.prompt_tokens_computed,
        .generation_tokens = stats.tokens_generated,
        .preemptions = stats.preemptions,
        .swaps = stats.swaps,
        .slot_preemptions = stats.slot_preemptions,
        .loads_chosen = stats.loads_chosen,
        .loads_declined = stats.loads_declined,
        .tier_tokens_loaded = stats.tier_tokens_loaded,
        .load_predicted_ns = stats.load_predicted_ns,
        .load_actual_ns = stats.load_actual_ns,
        .legs_finished = stats.legs_finished,
        .legs_failed = stats.legs_failed,
        .legs_cancelled = stats.legs_cancelled,
        .legs_refused = stats.legs_refused,
        .late_messages = stats.late_messages,
        .steps = stats.steps,
        .legs = stats.legs,
        .idle = stats.idle,
    };
}

static void inspect(void *role, struct node_cache_numbers *ret_numbers, inspect_fn visit, void *user)
{
    struct decode_server *server = role;
    struct decode_core_stats stats = decode_core_stats(server->core);
    struct kv_cache_stats cache = decode_core_cache_stats(server->core);
    *ret_numbers = (struct node_cache_numbers){
        .blocks_published = cache.blocks_published,
        .blocks_taken = stats.cache_blocks_taken,
        .blocks_evicted = cache.blocks_evicted,
        .tier_tokens_loaded = stats.tier_tokens_loaded,
        .loads_chosen = stats.loads_chosen,
        .loads_declined = stats.loads_declined,
    };
    decode_core_inspect(server->core, visit, user);
}

static bool on_xfer(void *role, const struct kv_event *event)
{
    (void)role;
    return event->kind == KV_EVENT_LANDED || event->kind == KV_EVENT_FAILED || event->kind == KV_EVENT_FENCED;
}

const struct node_role_ops decode_server_role = {
    .role = NODE_ROLE_DECODE,
    .name = "decode",
    .slot_count_of_batch = 1,
    .create = create,
    .destroy = destroy,
    .on_fact = on_fact,
    .deadline_ns = deadline_ns,
    .report = report,
    .inspect = inspect,
    .on_xfer = on_xfer,
};
