/* sim_node: the nodes of the simulated cluster: their cores, and an engine made of arithmetic.
 * Flow:    sim.c -> [sim_node] -> decode_core, prefill_core -> sim.c, sim_xfer.c */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/stop_rules.h"
#include "sim/sim_world.h"

static const uint32_t eos_tokens[] = {EOS_TOKEN};

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t state = a * UINT64_C(0x9E3779B97F4A7C15) ^ b;
    return rng_splitmix64(&state);
}

/* ---- the model: KV and tokens by arithmetic ---- */

/* KV of one position in one layer: of the token, the layer below, and all that came before. */
static uint64_t kv_value(uint64_t history, uint64_t below, uint32_t token, uint32_t layer, uint32_t position)
{
    return mix(mix(history, below), ((uint64_t)token << 32) | (layer << 24) | position);
}

/* The same without blocks: what one position adds to the history of each layer. */
static void append(uint64_t history[LAYERS], uint32_t token, uint32_t position)
{
    uint64_t below = 0;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        below = kv_value(history[layer], below, token, layer, position);
        history[layer] = mix(history[layer], below);
    }
}

static uint32_t sample_token(uint64_t value, uint64_t seed, uint32_t sequence, uint32_t position)
{
    return (uint32_t)(mix(mix(value, seed), ((uint64_t)sequence << 32) | position) % VOCAB);
}

static uint32_t masked(uint32_t token, const struct sampling_params *params, uint32_t position)
{
    /* Ends are masked until min_tokens, as the sampler does it. */
    return token == EOS_TOKEN && position < params->min_tokens ? EOS_TOKEN + 1 : token;
}

void sim_expect(struct sim_request *request)
{
    const struct sampling_params *params = &request->params;
    struct eos_tokens eos = {.token = eos_tokens, .count = 1};
    for (uint32_t s = 0; s < params->n; s++) {
        uint64_t history[LAYERS] = {0};
        uint32_t total = 0, count = 0;
        for (; total < request->prompt_count; total++) { append(history, request->prompt[total], total); }
        for (;;) {
            uint32_t token = masked(sample_token(history[LAYERS - 1], params->seed, s, count), params, count);
            request->expected[s][count++] = token;
            total++;
            enum stop_verdict verdict = stop_rules_decide(params, eos, token, count, total, CONTEXT);
            if (verdict != STOP_RULES_CONTINUE) {
                request->expected_finish[s] = verdict == STOP_RULES_END_TOKEN ? FINISH_STOP : FINISH_LENGTH;
                break;
            }
            append(history, token, total - 1);
        }
        request->expected_count[s] = count;
    }
}

uint64_t *sim_kv(struct sim_node *node, uint32_t block, uint32_t layer)
{
    CHECK(block < node->block_count);
    return node->kv + ((size_t)block * LAYERS + layer) * node->block_tokens;
}

/* What attention would see: every slot before `position`, through the block table. */
static uint64_t read_history(struct sim_node *node, const struct step_span *span, uint32_t layer, uint32_t position)
{
    uint64_t history = 0;
    for (uint32_t p = 0; p < position; p++) {
        CHECK(p / node->block_tokens < span->block_count);
        history = mix(history, sim_kv(node, span->block_table[p / node->block_tokens], layer)[p % node->block_tokens]);
    }
    return history;
}

static void compute_layer(struct sim_node *node, const struct step_plan *plan, uint32_t layer)
{
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        for (uint32_t row = 0; row < span->row_count; row++) {
            uint32_t position = span->first_position + row;
            uint64_t history = read_history(node, span, layer, position);
            uint32_t block = span->block_table[position / node->block_tokens], slot = position % node->block_tokens;
            uint64_t below = layer > 0 ? sim_kv(node, block, layer - 1)[slot] : 0;
            sim_kv(node, block, layer)[slot] = kv_value(history, below, span->tokens[row], layer, position);
        }
    }
}

static void begin_step(struct sim_node *node, const struct step_plan *plan)
{
    for (uint32_t i = 0; i < plan->open_count; i++) {
        const struct step_open *open = &plan->opens[i];
        CHECK(open->slot < SLOTS_MAX);
        node->slots[open->slot] = (struct sim_slot){.sequence = open->sequence, .output_count = open->output_count,
                                                    .seed = open->params->seed, .logprobs = open->params->logprobs};
    }
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            memcpy(sim_kv(node, plan->copies[i].destination_block, layer),
                   sim_kv(node, plan->copies[i].source_block, layer), node->block_tokens * sizeof(uint64_t));
        }
    }
}

/* The seed of a request names it, so that the model knows its parameters. */
static const struct sampling_params *params_of(struct sim_world *world, uint64_t seed)
{
    for (uint32_t i = 0; i < world->request_count; i++) {
        if (world->requests[i].params.seed == seed) { return &world->requests[i].params; }
    }
    sim_fail(world, "a slot was opened for a seed that no request has");
}

static void finish_step(struct sim_world *world, struct sim_node *node, const struct step_plan *plan)
{
    uint32_t samples = 0, logprobs = 0;
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        uint32_t end = span->first_position + span->row_count;
        for (uint32_t row = 0; row < span->row_count && span->prompt_logprobs >= 0; row++) {
            if (row + 1 == span->row_count && !span->has_next_token) { continue; }
            uint32_t next = row + 1 == span->row_count ? span->next_token : span->tokens[row + 1];
            node->logprobs[logprobs++] = (struct token_logprob){.logprob = -(float)next, .rank = span->first_position + row + 1};
        }
        for (uint32_t s = 0; s < span->sample_count; s++) {
            struct sim_slot *slot = &node->slots[span->sample_slots[s]];
            uint64_t history = read_history(node, span, LAYERS - 1, end);
            uint32_t token = sample_token(history, slot->seed, slot->sequence, slot->output_count);
            token = masked(token, params_of(world, slot->seed), slot->output_count);
            slot->output_count++;
            node->samples[samples++] = (struct step_sample){.token = token, .has_logprob = slot->logprobs >= 0,
                                                            .logprob = {.logprob = -(float)token, .rank = 1}};
        }
    }
    if (node->next_step_fails) {
        node->next_step_fails = false;
        world->result.failed_steps++;
        sim_trace(world, "%s: a step fails", sim_node_name(world, node->index));
        node->result = (struct step_result){.id = plan->id, .status = STATUS(ST_INTERNAL, SCOPE_REQUEST)};
        return;
    }
    node->result = (struct step_result){.id = plan->id, .sample_count = samples, .samples = node->samples,
                                        .prompt_logprob_count = logprobs, .prompt_logprobs = node->logprobs,
                                        .compute_ns = 2 * NS_PER_MS};
}

/* ---- steps in time ---- */

static void start_step(struct sim_world *world, struct sim_node *node, const struct step_plan *plan)
{
    if (node->plan) { sim_fail(world, "%s: a second step while one is in flight", sim_node_name(world, node->index)); }
    node->plan = plan;
    begin_step(node, plan);
    uint64_t layer_ns = world->options.scenario ? NS_PER_MS : 200 * NS_PER_US + rng_below(&world->rng, 800) * NS_PER_US;
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
    compute_layer(node, plan, layer);
    for (uint32_t i = 0; i < plan->span_count && node->is_prefill; i++) {
        if (plan->spans[i].push_count > 0) { sim_xfer_push(world, node, &plan->spans[i], layer); }
    }
}

void sim_node_step_done(struct sim_world *world, struct sim_node *node)
{
    const struct step_plan *plan = node->plan;
    finish_step(world, node, plan);
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
    uint64_t preemptions = decode_core_stats(node->decode).preemptions;
    status_t st = decode_core_step(node->decode, event, &actions);
    if (failed(st)) { sim_fail(world, "%s: decode_core failed with %s at line %u", sim_node_name(world, node->index), status_code_name(st.code), st.line); }
    for (uint32_t i = 0; i < actions.count; i++) {
        const struct decode_action *action = &actions.list[i];
        switch (action->kind) {
        case DECODE_ACT_SEND: sim_node_send(world, node, action->router, &action->msg); break;
        case DECODE_ACT_GRANT: sim_xfer_grant(world, node, action); break;
        case DECODE_ACT_REVOKE: sim_xfer_revoke(world, node, action->leg); break;
        case DECODE_ACT_STEP:
            for (uint32_t k = 0; k < action->plan->copy_count; k++) { world->result.forked++; }
            start_step(world, node, action->plan);
            break;
        }
    }
    preemptions = decode_core_stats(node->decode).preemptions - preemptions;
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
            .eos_count = 1,
            .eos_tokens = eos_tokens,
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
            .eos_tokens = eos_tokens,
            .lease_ns = XFER_LEASE_NS + NS_PER_S,
        };
        config.step_rows_max = config.batch_max + (uint32_t)rng_below(&world->rng, 48);
        config.chunk_tokens = 4 + (uint32_t)rng_below(&world->rng, config.step_rows_max);
        if (world->options.scenario) { config.batch_max = 8; config.step_rows_max = 64; config.chunk_tokens = 64; config.waiting_max = 8; }
        config.legs_max = config.batch_max * 2 + config.waiting_max;
        st = decode_core_create(&config, &node->decode, &diag);
    }
    if (failed(st)) { sim_fail(world, "node %u: cannot start: %s", node->index, diag.text); }
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
        if (stats.blocks_free != node->block_count) { sim_fail(world, "%s has %u blocks free of %u", name, stats.blocks_free, node->block_count); }
    } else {
        struct decode_core_stats stats = decode_core_stats(node->decode);
        if (!stats.idle) { sim_fail(world, "%s still has %u legs", name, stats.legs); }
        if (stats.blocks_free != node->block_count) { sim_fail(world, "%s has %u blocks free of %u", name, stats.blocks_free, node->block_count); }
    }
}

const char *sim_node_name(const struct sim_world *world, uint32_t index)
{
    static const char *const prefill[] = {"p0", "p1", "p2", "p3", "p4", "p5"};
    static const char *const decode[] = {"d0", "d1", "d2", "d3", "d4", "d5"};
    return index < world->prefill_count ? prefill[index] : decode[index - world->prefill_count];
}
