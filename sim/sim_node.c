/* sim_node: the nodes of the simulated cluster: their cores, and steps that take time.
 * Flow:    sim.c -> [sim_node] -> decode_core, prefill_core -> sim.c, sim_xfer.c */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "sim/sim_world.h"

/* ---- steps in time ---- */

static uint32_t plan_rows(const struct step_plan *plan)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < plan->span_count; i++) { rows += plan->spans[i].row_count; }
    return rows;
}

static void start_step(struct sim_world *world, struct sim_node *node, const struct step_plan *plan)
{
    if (node->plan) { sim_fail(world, "%s: a second step while one is in flight", sim_node_name(world, node->index)); }
    node->plan = plan;
    sim_model_begin(world, node, plan);
    node->step_began_ns = world->now_ns;
    uint64_t layer_ns = world->options.scenario ? NS_PER_MS : 200 * NS_PER_US + rng_below(&world->rng, 800) * NS_PER_US + plan_rows(plan) * 5 * NS_PER_US;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        struct sim_event *event = sim_at(world, world->now_ns + (layer + 1) * layer_ns, SIM_STEP_LAYER);
        event->a = node->index;
        event->b = layer;
        event->generation = node->epoch;
    }
    struct sim_event *event = sim_at(world, world->now_ns + (LAYERS + 1) * layer_ns, SIM_STEP_DONE);
    event->a = node->index;
    event->generation = node->epoch;
}

void sim_node_layer(struct sim_world *world, struct sim_node *node, uint32_t layer)
{
    const struct step_plan *plan = node->plan;
    sim_model_layer(world, node, plan, layer);
    for (uint32_t i = 0; i < plan->span_count && node->is_prefill; i++) {
        if (plan->spans[i].push_count > 0) { sim_xfer_push(world, node, &plan->spans[i], layer); }
    }
}

void sim_node_step_done(struct sim_world *world, struct sim_node *node)
{
    const struct step_plan *plan = node->plan;
    sim_model_finish(world, node, plan);
    node->plan = NULL;
    if (node->is_prefill) {
        struct prefill_event event = {.kind = PREFILL_EV_STEP_DONE, .result = &node->result};
        sim_prefill_event(world, node, &event);
    } else {
        struct decode_event event = {.kind = DECODE_EV_STEP_DONE, .result = &node->result};
        sim_decode_event(world, node, &event);
    }
}

/* ---- cores ---- */

static void check_decode(struct sim_world *world, struct sim_node *node)
{
    decode_core_audit(node->decode);
    struct decode_core_stats stats = decode_core_stats(node->decode);
    if (stats.blocks_free + stats.blocks_held + stats.blocks_cached + stats.blocks_quarantined != node->block_count) {
        sim_fail(world, "%s: blocks do not add up", sim_node_name(world, node->index));
    }
}

static void want_tick(struct sim_world *world, struct sim_node *node, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) { return; }
    if (deadline_ns < world->now_ns) { deadline_ns = world->now_ns; }
    if (node->next_tick_ns > world->now_ns && node->next_tick_ns <= deadline_ns) { return; }
    node->next_tick_ns = deadline_ns + 1;
    struct sim_event *event = sim_at(world, node->next_tick_ns, SIM_TICK_NODE);
    event->a = node->index;
    event->generation = node->epoch;
}

void sim_decode_event(struct sim_world *world, struct sim_node *node, struct decode_event *event)
{
    struct decode_actions actions;
    event->now_ns = world->now_ns;
    struct decode_core_stats before = decode_core_stats(node->decode);
    status_t st = decode_core_step(node->decode, event, &actions);
    if (failed(st)) { sim_fail(world, "%s: decode_core failed with %s at line %u", sim_node_name(world, node->index), status_code_name(st.code), st.line); }
    for (uint32_t i = 0; i < actions.count; i++) {
        const struct decode_action *action = &actions.list[i];
        switch (action->kind) {
        case DECODE_ACT_SEND: sim_node_send(world, node, action->router, &action->msg); break;
        case DECODE_ACT_GRANT: sim_xfer_grant(world, node, action); break;
        case DECODE_ACT_REVOKE: sim_xfer_revoke(world, node, action->leg); break;
        case DECODE_ACT_TIER_STORE: sim_tier_store(world, node, action->hash, action->block, action->tag); break;
        case DECODE_ACT_TIER_LOAD: sim_tier_load(world, node, action->hash, action->block, action->tag); break;
        case DECODE_ACT_STEP:
            for (uint32_t k = 0; k < action->plan->copy_count; k++) { world->result.forked++; }
            start_step(world, node, action->plan);
            break;
        }
    }
    struct decode_core_stats after = decode_core_stats(node->decode);
    uint64_t preemptions = after.preemptions - before.preemptions;
    world->result.swaps += after.swaps - before.swaps;
    if (preemptions > 0) { sim_trace(world, "%s: out of blocks, %u must give way", sim_node_name(world, node->index), (unsigned)preemptions); }
    world->result.preemptions += preemptions;
    check_decode(world, node);
    want_tick(world, node, decode_core_deadline_ns(node->decode));
}

void sim_prefill_event(struct sim_world *world, struct sim_node *node, struct prefill_event *event)
{
    struct prefill_actions actions;
    event->now_ns = world->now_ns;
    status_t st = prefill_core_step(node->prefill, event, &actions);
    if (failed(st)) { sim_fail(world, "%s: prefill_core failed with %s at line %u", sim_node_name(world, node->index), status_code_name(st.code), st.line); }
    for (uint32_t i = 0; i < actions.count; i++) {
        const struct prefill_action *action = &actions.list[i];
        switch (action->kind) {
        case PREFILL_ACT_SEND: sim_node_send(world, node, action->router, &action->msg); break;
        case PREFILL_ACT_XFER_BEGIN: sim_xfer_begin(world, node, action); break;
        case PREFILL_ACT_PUSH_CACHED:
            sim_xfer_push_cached(world, node, action->leg, action->grant_index, action->block_count, action->blocks);
            break;
        case PREFILL_ACT_TIER_STORE: sim_tier_store(world, node, action->hash, action->block, action->tag); break;
        case PREFILL_ACT_TIER_LOAD: sim_tier_load(world, node, action->hash, action->block, action->tag); break;
        case PREFILL_ACT_STEP: start_step(world, node, action->plan); break;
        case PREFILL_ACT_XFER_COMMIT: sim_xfer_commit(world, node, action); break;
        case PREFILL_ACT_XFER_ABORT: sim_xfer_abort(world, node, action->leg); break;
        }
    }
    prefill_core_audit(node->prefill);
    struct prefill_core_stats stats = prefill_core_stats(node->prefill);
    if (stats.blocks_free + stats.blocks_held + stats.blocks_cached + stats.blocks_quarantined != node->block_count) {
        sim_fail(world, "%s: blocks do not add up", sim_node_name(world, node->index));
    }
    want_tick(world, node, prefill_core_deadline_ns(node->prefill));
}

void sim_node_message(struct sim_world *world, struct sim_node *node, uint32_t handle, const struct ctl_msg *msg)
{
    if (node->is_prefill) {
        struct prefill_event event = {.kind = PREFILL_EV_MESSAGE, .router = handle, .msg = msg};
        sim_prefill_event(world, node, &event);
    } else {
        struct decode_event event = {.kind = DECODE_EV_MESSAGE, .router = handle, .msg = msg};
        sim_decode_event(world, node, &event);
    }
}

void sim_node_attach(struct sim_world *world, struct sim_node *node, uint32_t handle, bool up)
{
    if (node->is_prefill) {
        struct prefill_event event = {.kind = up ? PREFILL_EV_ROUTER_UP : PREFILL_EV_ROUTER_DOWN, .router = handle};
        sim_prefill_event(world, node, &event);
    } else {
        struct decode_event event = {.kind = up ? DECODE_EV_ROUTER_UP : DECODE_EV_ROUTER_DOWN, .router = handle};
        sim_decode_event(world, node, &event);
    }
}

void sim_node_drain(struct sim_world *world, struct sim_node *node)
{
    sim_trace(world, "%s drains", sim_node_name(world, node->index));
    node->is_draining = true;
    if (node->is_prefill) {
        struct prefill_event event = {.kind = PREFILL_EV_DRAIN};
        sim_prefill_event(world, node, &event);
    } else {
        struct decode_event event = {.kind = DECODE_EV_DRAIN};
        sim_decode_event(world, node, &event);
    }
}

void sim_node_tick(struct sim_world *world, struct sim_node *node)
{
    if (node->is_prefill) {
        struct prefill_event event = {.kind = PREFILL_EV_TICK};
        sim_prefill_event(world, node, &event);
    } else {
        struct decode_event event = {.kind = DECODE_EV_TICK};
        sim_decode_event(world, node, &event);
    }
}

void sim_node_tier_event(struct sim_world *world, struct sim_node *node, const struct kv_tier_event *fact)
{
    if (node->is_prefill) {
        struct prefill_event event = {.kind = PREFILL_EV_TIER, .tier = fact};
        sim_prefill_event(world, node, &event);
    } else {
        struct decode_event event = {.kind = DECODE_EV_TIER, .tier = fact};
        sim_decode_event(world, node, &event);
    }
}

void sim_node_start(struct sim_world *world, struct sim_node *node)
{
    struct diag diag = {{0}};
    status_t st;
    node->epoch++;
    node->is_alive = true;
    node->is_draining = false;
    node->next_step_fails = false;
    node->stopped_until_ns = 0;
    if (node->epoch > 1) { sim_trace(world, "%s starts, epoch %u", sim_node_name(world, node->index), (unsigned)node->epoch); }
    node->plan = NULL;
    node->next_tick_ns = 0;
    size_t slots = (size_t)node->block_count * LAYERS * node->block_tokens;
    node->kv = malloc(slots * sizeof *node->kv);
    node->samples = calloc(SLOTS_MAX + 256, sizeof *node->samples);
    node->logprobs = calloc(256, sizeof *node->logprobs);
    CHECK(node->kv != NULL);
    CHECK(node->samples != NULL);
    CHECK(node->logprobs != NULL);
    for (size_t i = 0; i < slots; i++) { node->kv[i] = rng_next(&world->rng); } /* garbage, as memory is */
    if (node->is_prefill) {
        struct prefill_core_config config = {
            .block_tokens = node->block_tokens,
            .block_count = node->block_count,
            .context_tokens = CONTEXT,
            .vocab_size = VOCAB,
            .step_rows_max = world->options.scenario ? 64 : 8 + (uint32_t)rng_below(&world->rng, 56),
            .jobs_max = 2 + (uint32_t)rng_below(&world->rng, 8),
            .slot_count = SLOTS_MAX,
            .transfer_stall_ns = XFER_LEASE_NS,
            .prefix_cache = world->features.prefill_prefix_cache,
            .window_tokens = world->window_tokens,
            .tier_entries_max = node->tier.is_on ? node->tier.entries_max[KV_TIER_HOST] + node->tier.entries_max[KV_TIER_DISK] : 0,
            .eos_count = 1,
            .eos_tokens = sim_eos_tokens,
        };
        config.chunk_tokens = world->options.scenario ? 64 : 4 + (uint32_t)rng_below(&world->rng, config.step_rows_max);
        st = prefill_core_create(&config, &node->prefill, &diag);
    } else {
        struct decode_core_config config = {
            .block_tokens = node->block_tokens,
            .block_count = node->block_count,
            .context_tokens = CONTEXT,
            .vocab_size = VOCAB,
            .batch_max = 4 + (uint32_t)rng_below(&world->rng, 12),
            .waiting_max = 2 + (uint32_t)rng_below(&world->rng, 20),
            .eos_count = 1,
            .eos_tokens = sim_eos_tokens,
            .lease_ns = XFER_LEASE_NS + NS_PER_S,
            .prefix_cache = world->features.prefix_cache,
            .window_tokens = world->window_tokens,
            .itl_stretch_percent = world->features.itl_stretch_percent,
            .tier_entries_max = node->tier.is_on ? node->tier.entries_max[KV_TIER_HOST] + node->tier.entries_max[KV_TIER_DISK] : 0,
            .preempt = (enum decode_preempt)world->features.preempt,
        };
        config.step_rows_max = config.batch_max + (uint32_t)rng_below(&world->rng, 48);
        config.chunk_tokens = 4 + (uint32_t)rng_below(&world->rng, config.step_rows_max);
        if (world->options.scenario) { config.batch_max = 8; config.step_rows_max = 64; config.chunk_tokens = 64; config.waiting_max = 8; }
        config.legs_max = config.batch_max * 2 + config.waiting_max;
        st = decode_core_create(&config, &node->decode, &diag);
    }
    if (failed(st)) { sim_fail(world, "node %u: cannot start: %s", node->index, diag.text); }
    if (node->tier.is_on) { sim_tier_start(world, node); }
}

void sim_node_stop(struct sim_world *world, struct sim_node *node)
{
    (void)world;
    decode_core_destroy(node->decode);
    prefill_core_destroy(node->prefill);
    free(node->kv);
    free(node->samples);
    free(node->logprobs);
    node->decode = NULL;
    node->prefill = NULL;
    node->kv = NULL;
    node->samples = NULL;
    node->logprobs = NULL;
    node->plan = NULL;
    node->is_alive = false;
}

/* kill -9: whatever it was about to do does not happen. */
void sim_node_die(struct sim_world *world, struct sim_node *node, uint64_t back_after_ns)
{
    sim_trace(world, "%s dies", sim_node_name(world, node->index));
    world->result.deaths++;
    sim_node_stop(world, node);
    sim_conn_node_died(world, node);
    sim_xfer_node_died(world, node);
    if (back_after_ns == UINT64_MAX) { return; } /* sim_go_quiet() brings it back */
    struct sim_event *event = sim_at(world, world->now_ns + back_after_ns, SIM_NODE_START);
    event->a = node->index;
    event->generation = node->epoch;
}

void sim_node_check_idle(struct sim_world *world, struct sim_node *node)
{
    const char *name = sim_node_name(world, node->index);
    if (!node->is_alive) { sim_fail(world, "%s did not come back", name); }
    if (node->is_prefill) {
        struct prefill_core_stats stats = prefill_core_stats(node->prefill);
        if (!stats.idle) { sim_fail(world, "%s still has %u jobs", name, stats.jobs); }
        if (stats.blocks_free + stats.blocks_cached != node->block_count) {
            sim_fail(world, "%s has %u blocks free and %u cached of %u", name, stats.blocks_free, stats.blocks_cached, node->block_count);
        }
    } else {
        struct decode_core_stats stats = decode_core_stats(node->decode);
        if (!stats.idle) { sim_fail(world, "%s still has %u legs", name, stats.legs); }
        if (stats.blocks_free + stats.blocks_cached != node->block_count) {
            sim_fail(world, "%s has %u blocks free and %u cached of %u", name, stats.blocks_free, stats.blocks_cached, node->block_count);
        }
    }
}

const char *sim_node_name(const struct sim_world *world, uint32_t index)
{
    static const char *const prefill[] = {"p0", "p1", "p2", "p3", "p4", "p5"};
    static const char *const decode[] = {"d0", "d1", "d2", "d3", "d4", "d5"};
    return index < world->prefill_count ? prefill[index] : decode[index - world->prefill_count];
}
