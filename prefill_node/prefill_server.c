#include "prefill_node/prefill_server.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "prefill_node/layer_push.h"
#include "prefill_node/prefill_core.h"

/* Longer than the endpoint's own limit for an acknowledgement, which ends most of them. */
#define TRANSFER_STALL_NS (30 * NS_PER_S)

/* A transfer that ended before it began: what the core is told after its actions are done. */
struct stillborn {
    struct leg_id leg;
    status_t status;
    char text[200];
};

struct prefill_server {
    struct node *node;
    struct prefill_core *core;
    struct layer_push *push;
    bool push_is_attached;
    uint32_t layer_count;
    uint32_t stillborn_max, stillborn_count;
    struct stillborn *stillborn; /* [jobs_max] */
};

static void destroy(void *role)
{
    struct prefill_server *server = role;
    if (!server) { return; }
    prefill_core_destroy(server->core);
    layer_push_destroy(server->push);
    free(server->stillborn);
    free(server);
}

static status_t create(struct node *node, const struct node_shape *shape, void **ret_role, struct diag *diag)
{
    const struct node_config *config = shape->config;
    struct prefill_server *server = calloc(1, sizeof *server);
    if (!server) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    server->node = node;
    bool has_cache = strcmp(config->prefix_cache, "on") == 0;
    struct prefill_core_config core = {
        .block_tokens = shape->layout.block_tokens,
        .block_count = shape->block_count,
        .context_tokens = shape->model->context_tokens,
        .vocab_size = shape->model->vocab_size,
        .step_rows_max = config->step_tokens,
        .chunk_tokens = config->chunk_tokens,
        /* Jobs that wait hold tokens, not blocks: a burst is queued as it is on the decode node. */
        .jobs_max = config->batch_max + config->waiting_max,
        .slot_count = config->batch_max,
        .transfer_stall_ns = TRANSFER_STALL_NS,
        .eos_count = shape->model->eos_count,
        .eos_tokens = shape->model->eos_tokens,
        .window_tokens = model_config_window_of_all(shape->model),
        .prefix_cache = has_cache,
        .tier_entries_max = has_cache ? shape->tier_entries_max : 0,
    };
    server->layer_count = shape->layout.layer_count;
    server->stillborn_max = core.jobs_max * 2;
    server->stillborn = calloc(server->stillborn_max, sizeof *server->stillborn);
    status_t st = server->stillborn ? STATUS_OK : STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    /* Twice the jobs: an aborted leg stays in the table until its final event. */
    if (!failed(st)) { st = layer_push_create(core.jobs_max * 2, &server->push); }
    if (!failed(st)) { st = prefill_core_create(&core, &server->core, diag); }
    if (failed(st)) { destroy(server); return st; }
    *ret_role = server;
    return STATUS_OK;
}

static void mark_stillborn(struct prefill_server *server, struct leg_id leg, status_t st, const char *text)
{
    CHECK(server->stillborn_count < server->stillborn_max);
    struct stillborn *entry = &server->stillborn[server->stillborn_count++];
    entry->leg = leg;
    entry->status = st;
    struct diag cut = {{0}};
    diag_set(&cut, "%.190s", text);
    for (size_t i = 0; i < sizeof entry->text; i++) { entry->text[i] = cut.text[i]; }
    entry->text[sizeof entry->text - 1] = '\0';
}

static void commit(struct prefill_server *server, const struct prefill_action *action)
{
    struct ctl_msg msg = {.kind = CTL_TOKENS, .tokens = {.count = action->token_count, .tokens = action->tokens}};
    const uint8_t *payload;
    size_t payload_bytes;
    status_t st = ctl_codec_encode(node_codec(server->node), &msg, &payload, &payload_bytes);
    if (!failed(st)) { st = layer_push_commit(server->push, action->leg, payload, payload_bytes); }
    if (failed(st)) {
        LOGF(LOG_WARN, "commit_failed", "leg=%lx code=%s", (unsigned long)action->leg.lo, status_code_name(st.code));
        (void)layer_push_abort(server->push, action->leg); /* its final event tells the core */
    }
}

static void perform(struct prefill_server *server, const struct prefill_actions *actions)
{
    for (uint32_t i = 0; i < actions->count; i++) {
        const struct prefill_action *action = &actions->list[i];
        switch (action->kind) {
        case PREFILL_ACT_SEND: node_send(server->node, action->router, &action->msg); break;
        case PREFILL_ACT_STEP: node_step(server->node, action->plan); break;
        case PREFILL_ACT_XFER_COMMIT: commit(server, action); break;
        case PREFILL_ACT_TIER_STORE: node_tier_store(server->node, action->hash, action->block, action->tag); break;
        case PREFILL_ACT_TIER_LOAD: node_tier_load(server->node, action->hash, action->block, action->tag); break;
        case PREFILL_ACT_PUSH_CACHED:
            layer_push_blocks(server->push, action->leg, server->layer_count, action->grant_index, action->blocks,
                              action->block_count);
            break;
        case PREFILL_ACT_XFER_BEGIN: {
            struct diag diag = {{0}};
            status_t st = layer_push_begin(server->push, action->leg, action->ticket, action->ticket_bytes, &diag);
            if (failed(st)) { mark_stillborn(server, action->leg, st, diag.text); }
            break;
        }
        case PREFILL_ACT_XFER_ABORT:
            if (!layer_push_abort(server->push, action->leg)) {
                mark_stillborn(server, action->leg, STATUS(ST_ABORTED, SCOPE_REQUEST), "aborted before it began");
            }
            break;
        }
    }
}

static status_t step(struct prefill_server *server, const struct prefill_event *event)
{
    struct prefill_actions actions;
    TRY(prefill_core_step(server->core, event, &actions));
    perform(server, &actions);
    while (server->stillborn_count > 0) {
        struct stillborn entry = server->stillborn[--server->stillborn_count];
        struct prefill_event failure = {
            .kind = entry.status.code == ST_ABORTED ? PREFILL_EV_XFER_ENDED : PREFILL_EV_XFER_FAILED,
            .now_ns = event->now_ns, .leg = entry.leg, .status = entry.status, .message = entry.text};
        TRY(prefill_core_step(server->core, &failure, &actions));
        perform(server, &actions);
    }
    return STATUS_OK;
}

static status_t on_xfer_fact(struct prefill_server *server, uint64_t now_ns, const struct kv_event *xfer)
{
    struct prefill_event event = {
        .now_ns = now_ns,
        .leg = node_leg_id(xfer->xfer_id),
        .status = xfer->status,
        .message = xfer->text,
        .cable = xfer->stats.cable,
        .bytes = xfer->stats.bytes,
        .transfer_ns = xfer->stats.duration_ns,
    };
    if (!layer_push_end(server->push, event.leg)) { return STATUS_OK; }
    if (xfer->kind == KV_EVENT_ACKED) {
        event.kind = PREFILL_EV_XFER_ACKED;
        LOGF(LOG_DEBUG, "kv_acked", "leg=%lx cable=%s reason=\"%s\" bytes=%lu us=%lu", (unsigned long)event.leg.lo,
             xfer->stats.cable, xfer->stats.reason, (unsigned long)xfer->stats.bytes,
             (unsigned long)(xfer->stats.duration_ns / NS_PER_US));
    } else {
        event.kind = PREFILL_EV_XFER_FAILED; /* also the answer to an abort: the core knows what it asked */
        LOGF(LOG_WARN, "kv_send_failed", "leg=%lx code=%s why=\"%s\"", (unsigned long)event.leg.lo,
             status_code_name(xfer->status.code), xfer->text);
    }
    return step(server, &event);
}

static status_t on_fact(void *role, const struct node_fact *fact)
{
    struct prefill_server *server = role;
    if (!server->push_is_attached) {
        layer_push_attach(server->push, node_endpoint(server->node));
        server->push_is_attached = true;
    }
    struct prefill_event event = {.now_ns = fact->now_ns, .router = fact->router, .msg = fact->msg, .result = fact->result};
    switch (fact->kind) {
    case NODE_FACT_ROUTER_UP: event.kind = PREFILL_EV_ROUTER_UP; break;
    case NODE_FACT_ROUTER_DOWN: event.kind = PREFILL_EV_ROUTER_DOWN; break;
    case NODE_FACT_MESSAGE: event.kind = PREFILL_EV_MESSAGE; break;
    case NODE_FACT_STEP: event.kind = PREFILL_EV_STEP_DONE; break;
    case NODE_FACT_XFER: return on_xfer_fact(server, fact->now_ns, fact->xfer);
    case NODE_FACT_TIER:
        event.kind = PREFILL_EV_TIER;
        event.tier = fact->tier;
        break;
    case NODE_FACT_TICK:
        layer_push_room(server->push); /* where the ring was full and no push is under way to say so */
        event.kind = PREFILL_EV_TICK;
        break;
    case NODE_FACT_DRAIN: event.kind = PREFILL_EV_DRAIN; break;
    }
    return step(server, &event);
}

static uint64_t deadline_ns(void *role)
{
    struct prefill_server *server = role;
    return prefill_core_deadline_ns(server->core);
}

static void report(void *role, struct ctl_load *ret_load, struct node_totals *ret_totals)
{
    struct prefill_server *server = role;
    struct prefill_core_stats stats = prefill_core_stats(server->core);
    *ret_load = prefill_core_load(server->core);
    *ret_totals = (struct node_totals){
        .prompt_tokens = stats.prompt_tokens_computed,
        .loads_chosen = stats.loads_chosen,
        .loads_declined = stats.loads_declined,
        .tier_tokens_loaded = stats.tier_tokens_loaded,
        .load_predicted_ns = stats.load_predicted_ns,
        .load_actual_ns = stats.load_actual_ns,
        .legs_finished = stats.jobs_done,
        .legs_failed = stats.jobs_failed,
        .legs_cancelled = stats.jobs_cancelled,
        .legs_refused = stats.jobs_refused,
        .late_messages = stats.late_messages,
        .steps = stats.steps,
        .legs = stats.jobs,
        .idle = stats.idle,
    };
}

static void on_layer(void *role, const struct step_plan *plan, uint32_t layer, uint64_t mark)
{
    struct prefill_server *server = role;
    layer_push_layer(server->push, plan, layer, mark);
}

static void inspect(void *role, struct node_cache_numbers *ret_numbers, inspect_fn visit, void *user)
{
    struct prefill_server *server = role;
    struct prefill_core_stats stats = prefill_core_stats(server->core);
    struct kv_cache_stats cache = prefill_core_cache_stats(server->core);
    *ret_numbers = (struct node_cache_numbers){
        .blocks_published = cache.blocks_published,
        .blocks_taken = stats.cache_blocks_taken,
        .blocks_evicted = cache.blocks_evicted,
        .tier_tokens_loaded = stats.tier_tokens_loaded,
        .loads_chosen = stats.loads_chosen,
        .loads_declined = stats.loads_declined,
    };
    prefill_core_inspect(server->core, visit, user);
}

static bool on_xfer(void *role, const struct kv_event *event)
{
    struct prefill_server *server = role;
    if (event->kind == KV_EVENT_PUSH_DONE) {
        layer_push_room(server->push);
        return false;
    }
    return event->kind == KV_EVENT_ACKED || event->kind == KV_EVENT_SEND_FAILED;
}

const struct node_role_ops prefill_server_role = {
    .role = NODE_ROLE_PREFILL,
    .name = "prefill",
    .slot_count_of_batch = 1,
    .create = create,
    .destroy = destroy,
    .on_fact = on_fact,
    .deadline_ns = deadline_ns,
    .report = report,
    .inspect = inspect,
    .on_layer = on_layer,
    .on_xfer = on_xfer,
};
