/* sim_xfer: transfers of the simulated cluster, as bad as a network and a peer can make them.
 * Flow:    sim_node.c (grant, push, commit) -> [sim_xfer] -> events of both cores
 *
 * Slices read the source when they land, not when they are pushed, so that a prefill node
 * that frees blocks too early is found out; and they land until FENCED, revoked or not, as a
 * one-sided write would, so that a decode node that reuses blocks too early is too. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "sim/sim_world.h"

static struct sim_xfer *find(struct sim_world *world, struct leg_id leg)
{
    for (uint32_t i = 0; i < world->xfer_count; i++) {
        if (world->xfers[i].is_used && leg_id_equal(world->xfers[i].leg, leg)) { return &world->xfers[i]; }
    }
    return NULL;
}

static struct sim_event *at(struct sim_world *world, struct sim_xfer *xfer, uint64_t at_ns, enum sim_event_kind kind)
{
    struct sim_event *event = sim_at(world, at_ns, kind);
    event->a = (uint32_t)(xfer - world->xfers);
    event->generation = xfer->generation;
    return event;
}

static void drop(struct sim_xfer *xfer)
{
    if (xfer->d_open || xfer->p_open) { return; }
    free(xfer->blocks);
    free(xfer->landed);
    free(xfer->payload);
    memset(xfer, 0, sizeof *xfer);
}

/* ---- D ---- */

void sim_xfer_grant(struct sim_world *world, struct sim_node *node, const struct decode_action *action)
{
    if (find(world, action->leg)) { sim_fail(world, "leg %lx is granted twice", (unsigned long)action->leg.lo); }
    struct sim_xfer *xfer = NULL;
    for (uint32_t i = 0; i < world->xfer_count && !xfer; i++) {
        if (!world->xfers[i].is_used) { xfer = &world->xfers[i]; }
    }
    if (!xfer) {
        uint32_t capacity = world->xfer_capacity ? world->xfer_capacity * 2 : 64;
        world->xfers = realloc(world->xfers, capacity * sizeof *world->xfers);
        CHECK(world->xfers != NULL);
        memset(world->xfers + world->xfer_capacity, 0, (capacity - world->xfer_capacity) * sizeof *world->xfers);
        xfer = &world->xfers[world->xfer_count];
        world->xfer_capacity = capacity;
        world->xfer_count = capacity;
    }
    *xfer = (struct sim_xfer){.is_used = true, .generation = ++world->xfer_generation, .leg = action->leg,
                              .decode_node = node->index, .decode_epoch = node->epoch, .prefill_node = NODES_MAX,
                              .block_count = action->block_count, .d_open = true};
    xfer->blocks = malloc(action->block_count * sizeof *xfer->blocks);
    xfer->landed = calloc(action->block_count * LAYERS, sizeof *xfer->landed);
    CHECK(xfer->blocks != NULL);
    CHECK(xfer->landed != NULL);
    memcpy(xfer->blocks, action->blocks, action->block_count * sizeof *xfer->blocks);
    uint8_t ticket[TICKET_BYTES] = {0};
    memcpy(ticket, &xfer->generation, sizeof xfer->generation);
    struct ctl_msg msg = {.kind = CTL_RESERVED, .reserved = {.leg = action->leg, .ticket = ticket, .ticket_bytes = sizeof ticket,
                                                               .cached_tokens = action->cached_tokens,
                                                               .grant_first = action->grant_first}};
    sim_node_send(world, node, action->router, &msg);
    /* The endpoint's own lease. */
    xfer->lease_until_ns = world->now_ns + XFER_LEASE_NS;
    struct sim_event *lease = at(world, xfer, xfer->lease_until_ns, SIM_XFER_FAIL_D);
    lease->b = ST_DEADLINE_EXCEEDED;
}

void sim_xfer_revoke(struct sim_world *world, struct sim_node *node, struct leg_id leg)
{
    struct sim_xfer *xfer = find(world, leg);
    if (!xfer || xfer->decode_node != node->index || xfer->decode_epoch != node->epoch || xfer->d_revoked) { return; }
    if (!xfer->d_open) { return; } /* its final event is on its way, or was */
    world->result.revoked++;
    xfer->d_revoked = true;
    at(world, xfer, world->now_ns + sim_delay_ns(world) * 3, SIM_XFER_FENCE);
}

static struct sim_node *decode_of(struct sim_world *world, const struct sim_xfer *xfer)
{
    struct sim_node *node = &world->nodes[xfer->decode_node];
    return node->is_alive && node->epoch == xfer->decode_epoch ? node : NULL;
}

static struct sim_node *prefill_of(struct sim_world *world, const struct sim_xfer *xfer)
{
    if (xfer->prefill_node == NODES_MAX) { return NULL; }
    struct sim_node *node = &world->nodes[xfer->prefill_node];
    return node->is_alive && node->epoch == xfer->prefill_epoch ? node : NULL;
}

/* ---- P ---- */

static void end_at_p(struct sim_world *world, struct sim_xfer *xfer, uint64_t at_ns, uint32_t code)
{
    struct sim_event *event = at(world, xfer, at_ns, SIM_XFER_END_P);
    event->b = code;
}

void sim_xfer_begin(struct sim_world *world, struct sim_node *node, const struct prefill_action *action)
{
    struct sim_xfer *xfer = find(world, action->leg);
    uint64_t generation = 0;
    if (action->ticket_bytes == TICKET_BYTES) { memcpy(&generation, action->ticket, sizeof generation); }
    if (!xfer || xfer->generation != generation || world->now_ns < world->cut_until_ns[node->index][xfer->decode_node] || xfer->prefill_node != NODES_MAX || !decode_of(world, xfer)) {
        /* D is gone, or has taken the grant back: P learns it after a while. A record of its
         * own, so that the core gets its answer. */
        struct sim_event *event = sim_at(world, world->now_ns + sim_delay_ns(world), SIM_XFER_END_P);
        event->a = UINT32_MAX;
        event->b = ST_UNAVAILABLE;
        event->c = node->index;
        event->generation = node->epoch;
        event->bytes = malloc(sizeof action->leg);
        CHECK(event->bytes != NULL);
        memcpy(event->bytes, &action->leg, sizeof action->leg);
        event->byte_count = sizeof action->leg;
        return;
    }
    xfer->prefill_node = node->index;
    xfer->prefill_epoch = node->epoch;
    xfer->p_open = true;
    xfer->is_poisoned = !world->is_quiet && sim_chance(world, world->poison_per_mille);
    if (action->block_count != xfer->block_count) {
        sim_fail(world, "leg %lx: granted %u blocks, the prefill node wants %u", (unsigned long)action->leg.lo,
                 xfer->block_count, action->block_count);
    }
}

static void push_slice(struct sim_world *world, struct sim_xfer *xfer, uint32_t index, uint32_t layer, uint32_t block)
{
    if (index >= xfer->block_count) { sim_fail(world, "leg %lx: pushes block %u of %u", (unsigned long)xfer->leg.lo, index, xfer->block_count); }
    uint64_t at_ns = world->now_ns + sim_delay_ns(world);
    if (at_ns > xfer->last_slice_ns) { xfer->last_slice_ns = at_ns; }
    struct sim_event *event = at(world, xfer, at_ns, SIM_XFER_SLICE);
    event->b = index;
    event->c = (layer << 24) | block;
    xfer->pushed++;
}

static struct sim_xfer *open_at_p(struct sim_world *world, const struct sim_node *node, struct leg_id leg)
{
    struct sim_xfer *xfer = find(world, leg);
    return xfer && xfer->prefill_node == node->index && xfer->prefill_epoch == node->epoch && xfer->p_open ? xfer : NULL;
}

void sim_xfer_push(struct sim_world *world, struct sim_node *node, const struct step_span *span, uint32_t layer)
{
    struct sim_xfer *xfer = open_at_p(world, node, span->leg);
    if (!xfer) { return; }
    for (uint32_t i = span->push_first; i < span->push_first + span->push_count; i++) {
        if (i < span->grant_first) { sim_fail(world, "leg %lx: pushes block %u, which lies before its grant", (unsigned long)span->leg.lo, i); }
        push_slice(world, xfer, i - span->grant_first, layer, span->block_table[i]);
    }
}

/* Whole blocks that the prefill node's cache had, from grant index `first` on. */
void sim_xfer_push_cached(struct sim_world *world, struct sim_node *node, struct leg_id leg, uint32_t first, uint32_t count,
                          const uint32_t *blocks)
{
    struct sim_xfer *xfer = open_at_p(world, node, leg);
    if (!xfer) { return; }
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) { push_slice(world, xfer, first + i, layer, blocks[i]); }
    }
    world->result.pushed_cached += count;
}

void sim_xfer_commit(struct sim_world *world, struct sim_node *node, const struct prefill_action *action)
{
    struct sim_xfer *xfer = open_at_p(world, node, action->leg);
    if (!xfer) { return; }
    if (xfer->pushed != xfer->block_count * LAYERS) {
        sim_fail(world, "leg %lx: commit after %u of %u slices", (unsigned long)action->leg.lo, xfer->pushed, xfer->block_count * LAYERS);
    }
    struct ctl_msg msg = {.kind = CTL_TOKENS, .tokens = {.count = action->token_count, .tokens = action->tokens}};
    const uint8_t *bytes;
    size_t byte_count;
    status_t st = ctl_codec_encode(world->codec_out, &msg, &bytes, &byte_count);
    CHECK(!failed(st));
    xfer->payload = malloc(byte_count);
    CHECK(xfer->payload != NULL);
    memcpy(xfer->payload, bytes, byte_count);
    xfer->payload_bytes = byte_count;
    xfer->is_committed = true;
    uint64_t at_ns = world->now_ns + sim_delay_ns(world);
    at(world, xfer, at_ns > xfer->last_slice_ns ? at_ns : xfer->last_slice_ns + 1, SIM_XFER_COMMIT);
}

void sim_xfer_abort(struct sim_world *world, struct sim_node *node, struct leg_id leg)
{
    struct sim_xfer *xfer = open_at_p(world, node, leg);
    if (!xfer) { return; }
    /* What was handed to the cable goes on until both have heard, commit and all. */
    uint64_t heard_ns = world->now_ns + sim_delay_ns(world);
    if (!world->options.scenario && !world->options.calm) { heard_ns += rng_below(&world->rng, 8) * NS_PER_MS; }
    end_at_p(world, xfer, heard_ns, ST_ABORTED);
    if (xfer->d_open && !xfer->d_revoked) {
        struct sim_event *event = at(world, xfer, heard_ns, SIM_XFER_FAIL_D);
        event->b = ST_ABORTED;
    }
}

/* ---- what happens in between ---- */

static void tell_d(struct sim_world *world, struct sim_xfer *xfer, enum decode_event_kind kind, uint8_t code)
{
    struct sim_node *node = decode_of(world, xfer);
    if (!node) { return; }
    struct decode_event event = {.kind = kind, .leg = xfer->leg, .status = STATUS(code, SCOPE_PEER)};
    sim_decode_event(world, node, &event);
}

static void tell_p(struct sim_world *world, struct sim_xfer *xfer, uint8_t code)
{
    struct sim_node *node = prefill_of(world, xfer);
    if (!xfer->p_open) { return; }
    xfer->p_open = false;
    if (!node) { return; }
    struct prefill_event event = {.kind = code == ST_OK        ? PREFILL_EV_XFER_ACKED
                                          : code == ST_ABORTED ? PREFILL_EV_XFER_ENDED
                                                               : PREFILL_EV_XFER_FAILED,
                                  .leg = xfer->leg, .status = STATUS(code, SCOPE_PEER), .message = "the simulated network",
                                  .cable = "sim", .bytes = xfer->block_count * 64, .transfer_ns = 1000};
    sim_prefill_event(world, node, &event);
}

static void trace(struct sim_world *world, const struct sim_xfer *xfer, const char *what)
{
    const char *from = xfer->prefill_node == NODES_MAX ? "nobody" : sim_node_name(world, xfer->prefill_node);
    sim_trace(world, "%s->%s leg %llu: %s", from, sim_node_name(world, xfer->decode_node), (unsigned long long)xfer->leg.lo >> 24, what);
}

static bool is_cut(const struct sim_world *world, const struct sim_xfer *xfer)
{
    return xfer->prefill_node != NODES_MAX && world->now_ns < world->cut_until_ns[xfer->prefill_node][xfer->decode_node];
}

/* Both ends find out, each in its own time. */
static void break_off(struct sim_world *world, struct sim_xfer *xfer)
{
    if (xfer->d_open && !xfer->d_revoked) {
        struct sim_event *event = at(world, xfer, world->now_ns + sim_delay_ns(world), SIM_XFER_FAIL_D);
        event->b = ST_UNAVAILABLE;
    }
    if (xfer->p_open) { end_at_p(world, xfer, world->now_ns + sim_delay_ns(world), ST_UNAVAILABLE); }
}

static void land_slice(struct sim_world *world, struct sim_xfer *xfer, uint32_t index, uint32_t where)
{
    struct sim_node *from = prefill_of(world, xfer), *to = decode_of(world, xfer);
    uint32_t layer = where >> 24, block = where & 0xffffffu;
    if (!from || !to || !xfer->d_open || !xfer->p_open) { return; }
    if (is_cut(world, xfer)) { break_off(world, xfer); return; }
    if (xfer->d_revoked) { world->result.late_landings++; }
    memcpy(sim_kv(to, xfer->blocks[index], layer), sim_kv(from, block, layer), to->block_tokens * sizeof(uint64_t));
    if (xfer->is_poisoned) {
        /* The checksum finds it at once; the bytes are in the granted block all the same. */
        xfer->is_poisoned = false;
        xfer->is_bad = true;
        sim_kv(to, xfer->blocks[index], layer)[0] ^= 1;
        world->result.corrupted++;
        if (!xfer->d_revoked) {
            struct sim_event *event = at(world, xfer, world->now_ns, SIM_XFER_FAIL_D);
            event->b = ST_DATA_LOSS;
        }
    }
    if (xfer->landed[index * LAYERS + layer]) { sim_fail(world, "a slice was pushed twice"); }
    xfer->landed[index * LAYERS + layer] = true;
    xfer->arrived++;
    xfer->lease_until_ns = world->now_ns + XFER_LEASE_NS;
    uint32_t count = 0;
    for (uint32_t i = 0; i < xfer->block_count; i++) { count += xfer->landed[i * LAYERS + layer]; }
    if (count == xfer->block_count) {
        sim_trace(world, "%s->%s leg %llu: layer %u, %u blocks landed%s", sim_node_name(world, xfer->prefill_node),
                  sim_node_name(world, xfer->decode_node), (unsigned long long)xfer->leg.lo >> 24, layer, count,
                  xfer->d_revoked ? ", too late" : "");
    }
    if (!xfer->d_revoked && !xfer->d_told) { tell_d(world, xfer, DECODE_EV_XFER_PROGRESS, ST_OK); }
}

static void take_commit(struct sim_world *world, struct sim_xfer *xfer)
{
    struct sim_node *to = decode_of(world, xfer);
    if (!to || !xfer->d_open || xfer->d_revoked || xfer->d_told || xfer->is_bad || !prefill_of(world, xfer) || !xfer->p_open) { return; }
    if (is_cut(world, xfer)) { break_off(world, xfer); return; }
    if (xfer->arrived != xfer->block_count * LAYERS) { return; }
    trace(world, xfer, "committed");
    struct ctl_msg msg;
    struct diag diag = {{0}};
    status_t st = ctl_codec_decode(world->codec_in, CTL_FROM_NODE, xfer->payload, xfer->payload_bytes, &msg, &diag);
    CHECK(!failed(st));
    xfer->d_open = false;
    at(world, xfer, world->now_ns + sim_delay_ns(world), SIM_XFER_ACK);
    struct decode_event event = {.kind = DECODE_EV_XFER_LANDED, .leg = xfer->leg, .token_count = msg.tokens.count,
                                 .tokens = msg.tokens.tokens};
    sim_decode_event(world, to, &event);
}

void sim_xfer_event(struct sim_world *world, const struct sim_event *event)
{
    if (event->kind == SIM_XFER_END_P && event->a == UINT32_MAX) {
        struct sim_node *node = &world->nodes[event->c];
        if (!node->is_alive || node->epoch != event->generation) { return; }
        struct prefill_event end = {.kind = PREFILL_EV_XFER_FAILED, .status = STATUS(ST_UNAVAILABLE, SCOPE_PEER), .message = "no such grant"};
        memcpy(&end.leg, event->bytes, sizeof end.leg);
        sim_prefill_event(world, node, &end);
        return;
    }
    struct sim_xfer *xfer = &world->xfers[event->a];
    if (!xfer->is_used || xfer->generation != event->generation) { return; }
    switch (event->kind) {
    case SIM_XFER_SLICE: land_slice(world, xfer, event->b, event->c); return;
    case SIM_XFER_COMMIT: take_commit(world, xfer); break;
    case SIM_XFER_ACK:
        /* A lost acknowledgement is a failure to the one who waits for it. */
        if (xfer->p_open) { trace(world, xfer, is_cut(world, xfer) ? "the acknowledgement is lost" : "acknowledged"); }
        tell_p(world, xfer, is_cut(world, xfer) ? ST_UNAVAILABLE : ST_OK);
        break;
    case SIM_XFER_END_P:
        if (xfer->p_open) { trace(world, xfer, "over at the source"); }
        tell_p(world, xfer, (uint8_t)event->b); break;
    case SIM_XFER_FAIL_D:
        if (!xfer->d_open || xfer->d_revoked || xfer->d_told) { return; }
        if (event->b == ST_DEADLINE_EXCEEDED && world->now_ns < xfer->lease_until_ns) {
            at(world, xfer, xfer->lease_until_ns, SIM_XFER_FAIL_D)->b = ST_DEADLINE_EXCEEDED;
            return;
        }
        if (event->b == ST_DEADLINE_EXCEEDED) {
            /* The lease is for nodes that stand still. In any other case somebody forgot to
             * say that the transfer will not be. */
            if (world->result.stops == 0) { sim_fail(world, "the transfer of leg %llu ran into its lease", (unsigned long long)xfer->leg.lo >> 24); }
            world->result.leases++;
        }
        trace(world, xfer, event->b == ST_DATA_LOSS ? "a checksum is wrong" : "failed");
        xfer->d_told = true;
        if (xfer->p_open) { end_at_p(world, xfer, world->now_ns + sim_delay_ns(world), event->b); }
        at(world, xfer, world->now_ns + sim_delay_ns(world), SIM_XFER_FENCE);
        tell_d(world, xfer, DECODE_EV_XFER_FAILED, (uint8_t)event->b);
        return;
    case SIM_XFER_FENCE:
        if (!xfer->d_open) { return; }
        trace(world, xfer, "fenced");
        xfer->d_open = false;
        if (xfer->p_open) { end_at_p(world, xfer, world->now_ns + sim_delay_ns(world), ST_CANCELLED); }
        tell_d(world, xfer, DECODE_EV_XFER_FENCED, ST_ABORTED);
        break;
    default: CHECK(false);
    }
    xfer = &world->xfers[event->a]; /* the table may have moved */
    if (xfer->is_used && xfer->generation == event->generation) { drop(xfer); }
}

void sim_xfer_node_died(struct sim_world *world, struct sim_node *node)
{
    for (uint32_t i = 0; i < world->xfer_count; i++) {
        struct sim_xfer *xfer = &world->xfers[i];
        if (!xfer->is_used) { continue; }
        if (!node->is_prefill && xfer->decode_node == node->index && xfer->decode_epoch == node->epoch) {
            xfer->d_open = false;
            if (xfer->p_open) { end_at_p(world, xfer, world->now_ns + sim_delay_ns(world), ST_UNAVAILABLE); }
            drop(xfer);
        } else if (node->is_prefill && xfer->prefill_node == node->index && xfer->prefill_epoch == node->epoch) {
            xfer->p_open = false;
            if (xfer->d_open && !xfer->d_revoked) {
                struct sim_event *event = at(world, xfer, world->now_ns + sim_delay_ns(world), SIM_XFER_FAIL_D);
                event->b = ST_UNAVAILABLE;
            }
            drop(xfer);
        }
    }
}
