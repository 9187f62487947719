/* sim_conn: the routers, and the Attach streams between them and the nodes.
 * Flow:    router_core -> bytes of control.proto -> node cores, and back
 *
 * A stream keeps its order, loses what is on its way when it breaks, and its two ends learn of
 * the break at different times: for a while a node serves legs that nobody reads, and the
 * router's next stream to it may come before the node has seen the end of the last. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "sim/sim_world.h"

/* ---- bytes on their way ---- */

static void post(struct sim_world *world, uint32_t id, bool to_router, const struct ctl_msg *msg)
{
    struct sim_conn *conn = &world->conns[id];
    if (conn->is_cut) { return; }
    const uint8_t *bytes;
    size_t byte_count;
    status_t st = ctl_codec_encode(world->codec_out, msg, &bytes, &byte_count);
    if (failed(st)) { sim_fail(world, "a %s cannot be encoded: %s", ctl_kind_name(msg->kind), status_code_name(st.code)); }
    uint64_t *last_ns = to_router ? &conn->last_to_router_ns : &conn->last_to_node_ns;
    uint64_t at_ns = world->now_ns + sim_delay_ns(world);
    if (at_ns <= *last_ns) { at_ns = *last_ns + 1; }
    *last_ns = at_ns;
    /* Now and then the same bytes come once more, at once or much later. A load report only at
     * once: it is a state, and an old one is simply wrong. */
    uint32_t copies = !world->is_quiet && sim_chance(world, world->repeat_per_mille) ? 2 : 1;
    for (uint32_t i = 0; i < copies; i++) {
        struct sim_event *event = sim_at(world, at_ns, to_router ? SIM_TO_ROUTER : SIM_TO_NODE);
        event->a = id;
        event->bytes = malloc(byte_count + 1);
        CHECK(event->bytes != NULL);
        memcpy(event->bytes, bytes, byte_count);
        event->byte_count = byte_count;
        if (msg->kind != CTL_LOAD) { at_ns += rng_below(&world->rng, 20) * NS_PER_MS; }
    }
    world->result.repeated += copies - 1;
}

void sim_node_send(struct sim_world *world, struct sim_node *node, uint32_t handle, const struct ctl_msg *msg)
{
    CHECK(handle < world->conn_count);
    const struct sim_conn *conn = &world->conns[handle];
    if (conn->node != node->index || conn->node_epoch != node->epoch || !conn->up_at_node) {
        sim_fail(world, "%s sends a %s on a stream that is over", sim_node_name(world, node->index), ctl_kind_name(msg->kind));
    }
    post(world, handle, true, msg);
}

static void trace_message(struct sim_world *world, const char *from, const char *to, const struct ctl_msg *msg)
{
    struct leg_id leg = {0};
    const char *text = "";
    switch (msg->kind) {
    case CTL_LOAD: return; /* often, and of little interest */
    case CTL_RESERVE: leg = msg->reserve.work.leg; text = msg->reserve.local_prefill ? " (prefill there)" : ""; break;
    case CTL_PREFILL: leg = msg->prefill.work.leg; break;
    case CTL_PREFILL_LOST: leg = msg->prefill_lost; break;
    case CTL_CANCEL: leg = msg->cancel.leg; text = msg->cancel.one_sequence ? " (one sequence)" : ""; break;
    case CTL_RESERVED:
        leg = msg->reserved.leg;
        text = msg->reserved.is_local ? " (prefill there)" : "";
        if (msg->reserved.cached_tokens > 0) {
            sim_trace(world, "%s->%s RESERVED leg %llu%s, %u tokens cached", from, to, (unsigned long long)leg.lo >> 24, text,
                      msg->reserved.cached_tokens);
            return;
        }
        break;
    case CTL_REFUSED:
    case CTL_PREFILL_FAILED:
    case CTL_LEG_FAILED: leg = msg->failure.leg; text = msg->failure.message; break;
    case CTL_PROMPT_LOGPROBS: leg = msg->prompt_logprobs.leg; break;
    case CTL_PREFILL_DONE: leg = msg->prefill_done.leg; break;
    case CTL_TOKENS:
        sim_trace(world, "%s->%s TOKENS: %u, first of leg %llu seq %u at %u", from, to, msg->tokens.count,
                  (unsigned long long)msg->tokens.tokens[0].leg.lo >> 24, msg->tokens.tokens[0].sequence,
                  msg->tokens.tokens[0].position);
        return;
    default: break;
    }
    if (leg.lo == 0) {
        sim_trace(world, "%s->%s %s", from, to, ctl_kind_name(msg->kind));
    } else {
        const char *colon = text[0] != '\0' && text[0] != ' ' ? ": " : "";
        sim_trace(world, "%s->%s %s leg %llu%s%s", from, to, ctl_kind_name(msg->kind), (unsigned long long)leg.lo >> 24, colon, text);
    }
}

static const char *router_name(uint32_t router) { return router == 0 ? "r0" : "r1"; }

static void decode(struct sim_world *world, enum ctl_direction direction, const struct sim_event *event, struct ctl_msg *ret_msg)
{
    struct diag diag = {{0}};
    status_t st = ctl_codec_decode(world->codec_in, direction, event->bytes, event->byte_count, ret_msg, &diag);
    if (failed(st)) { sim_fail(world, "our own message cannot be read: %s", diag.text); }
}

static void greet(struct sim_world *world, struct sim_node *node, uint32_t id)
{
    world->conns[id].up_at_node = true;
    struct ctl_msg hello = {.kind = CTL_NODE_HELLO,
                            .node_hello = {.protocol_version = CTL_PROTOCOL_VERSION,
                                           .node_id = node->index + 1,
                                           .boot_epoch = node->epoch,
                                           .role = node->is_prefill ? NODE_ROLE_PREFILL : NODE_ROLE_DECODE,
                                           .node_name = sim_node_name(world, node->index),
                                           .model_name = "arithmetic",
                                           .vocab_size = VOCAB,
                                           .context_tokens = CONTEXT,
                                           .block_tokens = node->block_tokens,
                                           .block_count = node->block_count,
                                           .sequences_max = 16}};
    sim_node_send(world, node, id, &hello);
    sim_node_attach(world, node, id, true);
}

static void to_node(struct sim_world *world, const struct sim_event *event)
{
    struct sim_conn *conn = &world->conns[event->a];
    struct sim_node *node = &world->nodes[conn->node];
    if (!conn->open_at_node || !node->is_alive || node->epoch != conn->node_epoch) { return; }
    struct ctl_msg msg;
    decode(world, CTL_FROM_ROUTER, event, &msg);
    trace_message(world, router_name(conn->router), sim_node_name(world, conn->node), &msg);
    if (msg.kind == CTL_ROUTER_HELLO) {
        if (!conn->up_at_node) { greet(world, node, event->a); }
        return;
    }
    CHECK(conn->up_at_node); /* the hello came first: the stream keeps its order */
    if (msg.kind == CTL_RESERVE && msg.reserve.local_prefill) { world->result.local_prefills++; }
    if (msg.kind == CTL_RESERVE && !msg.reserve.local_prefill && msg.reserve.local_max_tokens > 0) { world->result.local_offers++; }
    if (msg.kind == CTL_PREFILL) { world->result.remote_prefills++; }
    sim_node_message(world, node, event->a, &msg);
}

static void to_router(struct sim_world *world, const struct sim_event *event)
{
    struct sim_conn *conn = &world->conns[event->a];
    if (!conn->open_at_router) { return; }
    struct ctl_msg msg;
    decode(world, CTL_FROM_NODE, event, &msg);
    trace_message(world, sim_node_name(world, conn->node), router_name(conn->router), &msg);
    struct router_event fact = {.kind = ROUTER_EV_MESSAGE, .node = conn->node, .msg = &msg};
    if (!conn->up_at_router) {
        CHECK(msg.kind == CTL_NODE_HELLO);
        conn->up_at_router = true;
        fact.kind = ROUTER_EV_NODE_UP;
    }
    if (msg.kind == CTL_RESERVED) { world->result.cached_tokens += msg.reserved.cached_tokens; }
    if (msg.kind == CTL_PREFILL_DONE) { world->result.prefill_cached_tokens += msg.prefill_done.cached_tokens; }
    if (msg.kind == CTL_TOKENS && world->options.calm) {
        for (uint32_t i = 0; i < msg.tokens.count; i++) { sim_client_check_wanted(world, &msg.tokens.tokens[i]); }
    }
    sim_router_event(world, conn->router, &fact);
}

/* ---- streams ---- */

void sim_conn_want(struct sim_world *world, uint32_t router, uint32_t node)
{
    struct sim_event *event = sim_at(world, world->now_ns + sim_delay_ns(world), SIM_CONN_OPEN);
    event->a = router;
    event->b = node;
    event->generation = world->routers[router].epoch;
}

static void open_conn(struct sim_world *world, uint32_t router, struct sim_node *node)
{
    CHECK(world->routers[router].conns[node->index] == NO_CONN);
    if (!node->is_alive) {
        struct sim_event *again = sim_at(world, world->now_ns + 5 * NS_PER_MS, SIM_CONN_OPEN);
        again->a = router;
        again->b = node->index;
        again->generation = world->routers[router].epoch;
        return;
    }
    if (world->conn_count == world->conn_capacity) {
        world->conn_capacity = world->conn_capacity ? world->conn_capacity * 2 : 32;
        world->conns = realloc(world->conns, world->conn_capacity * sizeof *world->conns);
        CHECK(world->conns != NULL);
    }
    uint32_t id = world->conn_count++;
    world->conns[id] = (struct sim_conn){.node = node->index, .router = router, .node_epoch = node->epoch,
                                         .open_at_router = true, .open_at_node = true};
    world->routers[router].conns[node->index] = id;
    struct ctl_msg hello = {.kind = CTL_ROUTER_HELLO,
                            .router_hello = {.protocol_version = CTL_PROTOCOL_VERSION,
                                             .router_boot_id = world->routers[router].config.router_boot_id}};
    post(world, id, false, &hello);
}

/* When an end learns of a break: mostly at once, sometimes by a time-out. */
static void tell_end(struct sim_world *world, uint32_t id, enum sim_event_kind kind)
{
    uint64_t at_ns = world->now_ns + sim_delay_ns(world);
    if (!world->options.scenario && sim_chance(world, 200)) { at_ns += rng_below(&world->rng, 200) * NS_PER_MS; }
    sim_at(world, at_ns, kind)->a = id;
}

void sim_conn_cut(struct sim_world *world, uint32_t id)
{
    if (world->conns[id].is_cut) { return; }
    world->conns[id].is_cut = true;
    world->result.cuts++;
    tell_end(world, id, SIM_CONN_DOWN_ROUTER);
    tell_end(world, id, SIM_CONN_DOWN_NODE);
}

void sim_conn_node_died(struct sim_world *world, struct sim_node *node)
{
    for (uint32_t id = 0; id < world->conn_count; id++) {
        struct sim_conn *conn = &world->conns[id];
        if (conn->node != node->index || conn->node_epoch != node->epoch) { continue; }
        conn->open_at_node = false;
        conn->is_cut = true;
        if (conn->open_at_router) { tell_end(world, id, SIM_CONN_DOWN_ROUTER); }
    }
}

static void down_at_router(struct sim_world *world, uint32_t id)
{
    struct sim_conn *conn = &world->conns[id];
    if (!conn->open_at_router) { return; }
    uint32_t router = conn->router, node = conn->node;
    bool was_up = conn->up_at_router;
    conn->open_at_router = conn->up_at_router = false;
    world->routers[router].conns[node] = NO_CONN;
    sim_trace(world, "%s: the stream to %s broke", router_name(router), sim_node_name(world, node));
    if (was_up) {
        struct router_event fact = {.kind = ROUTER_EV_NODE_DOWN, .node = node};
        sim_router_event(world, router, &fact);
    }
    sim_conn_want(world, router, node);
}

static void down_at_node(struct sim_world *world, uint32_t id)
{
    struct sim_conn *conn = &world->conns[id];
    struct sim_node *node = &world->nodes[conn->node];
    if (!conn->open_at_node || !node->is_alive || node->epoch != conn->node_epoch) { return; }
    bool was_up = conn->up_at_node;
    conn->open_at_node = conn->up_at_node = false;
    sim_trace(world, "%s: the stream of %s broke", sim_node_name(world, conn->node), router_name(conn->router));
    if (was_up) { sim_node_attach(world, node, id, false); }
}

/* ---- legs ---- */

static uint32_t leg_at(struct sim_world *world, struct leg_id leg)
{
    uint32_t at = (uint32_t)((leg.lo >> 24) * 7 + leg.hi * 131) % LEGS_MAX;
    for (uint32_t tries = 0; tries < LEGS_MAX; tries++, at = (at + 1) % LEGS_MAX) {
        if (world->legs[at].leg.hi == 0 || leg_id_equal(world->legs[at].leg, leg)) { return at; }
    }
    sim_fail(world, "more than %u legs", LEGS_MAX);
}

static void remember_leg(struct sim_world *world, const struct ctl_work *work)
{
    uint32_t at = leg_at(world, work->leg), request = (uint32_t)(work->params.seed & 0xff);
    if (world->legs[at].leg.hi != 0 && world->legs[at].request != request) { sim_fail(world, "a leg of request %u serves request %u", world->legs[at].request, request); }
    world->legs[at].leg = work->leg;
    world->legs[at].request = request;
}

uint32_t sim_request_of(struct sim_world *world, struct leg_id leg)
{
    uint32_t at = leg_at(world, leg);
    if (world->legs[at].leg.hi == 0) { sim_fail(world, "leg %lx was never placed", (unsigned long)leg.lo); }
    return world->legs[at].request;
}

/* ---- routers ---- */

void sim_router_start(struct sim_world *world, uint32_t index)
{
    struct sim_router *router = &world->routers[index];
    struct diag diag = {{0}};
    router->epoch++;
    router->next_tick_ns = 0;
    router->is_draining = false;
    router->config.router_boot_id = (router->epoch << 8) | (index + 1);
    status_t st = router_core_create(&router->config, &router->core, &diag);
    if (failed(st)) { sim_fail(world, "a router cannot start: %s", diag.text); }
    for (uint32_t i = 0; i < world->node_count; i++) {
        router->conns[i] = NO_CONN;
        sim_conn_want(world, index, i);
    }
}

void sim_router_die(struct sim_world *world, uint32_t index)
{
    sim_trace(world, "%s dies", router_name(index));
    world->result.router_deaths++;
    sim_client_router_died(world, index);
    for (uint32_t id = 0; id < world->conn_count; id++) {
        struct sim_conn *conn = &world->conns[id];
        if (conn->router != index) { continue; }
        conn->is_cut = true;
        conn->open_at_router = conn->up_at_router = false;
        if (conn->open_at_node) { tell_end(world, id, SIM_CONN_DOWN_NODE); }
    }
    router_core_destroy(world->routers[index].core);
    sim_router_start(world, index);
}

void sim_router_event(struct sim_world *world, uint32_t index, struct router_event *event)
{
    struct sim_router *router = &world->routers[index];
    struct router_actions actions;
    event->now_ns = world->now_ns;
    status_t st = router_core_step(router->core, event, &actions);
    if (failed(st)) { sim_fail(world, "router_core failed with %s", status_code_name(st.code)); }
    for (uint32_t i = 0; i < actions.count; i++) {
        const struct router_action *action = &actions.list[i];
        if (action->kind != ROUTER_ACT_SEND) {
            sim_client_action(world, index, action);
            continue;
        }
        uint32_t id = action->node < world->node_count ? router->conns[action->node] : NO_CONN;
        if (id == NO_CONN || !world->conns[id].up_at_router) {
            sim_fail(world, "the router sends a %s to a node that is not there", ctl_kind_name(action->msg.kind));
        }
        post(world, id, false, &action->msg);
        if (action->msg.kind == CTL_RESERVE) { remember_leg(world, &action->msg.reserve.work); }
    }
    router_core_audit(router->core);
    uint64_t deadline_ns = router_core_deadline_ns(router->core);
    if (deadline_ns == UINT64_MAX) { return; }
    if (deadline_ns < world->now_ns) { deadline_ns = world->now_ns; }
    if (router->next_tick_ns > world->now_ns && router->next_tick_ns <= deadline_ns) { return; }
    router->next_tick_ns = deadline_ns > world->now_ns ? deadline_ns : world->now_ns + 1;
    struct sim_event *tick = sim_at(world, router->next_tick_ns, SIM_TICK_ROUTER);
    tick->a = index;
    tick->generation = router->epoch;
}

void sim_conn_event(struct sim_world *world, const struct sim_event *event)
{
    switch (event->kind) {
    case SIM_TO_NODE: to_node(world, event); return;
    case SIM_TO_ROUTER: to_router(world, event); return;
    case SIM_CONN_DOWN_ROUTER: down_at_router(world, event->a); return;
    case SIM_CONN_DOWN_NODE: down_at_node(world, event->a); return;
    case SIM_CONN_OPEN:
        if (world->routers[event->a].epoch == event->generation) { open_conn(world, event->a, &world->nodes[event->b]); }
        return;
    default: break;
    }
    CHECK(event->kind == SIM_TICK_ROUTER);
    if (world->routers[event->a].epoch != event->generation) { return; }
    struct router_event fact = {.kind = ROUTER_EV_TICK};
    sim_router_event(world, event->a, &fact);
}
