/* sim_plan: the cluster, the requests and the faults of one seed, or of a named scenario.
 * Flow:    seed -> [sim_plan] -> nodes, routers, submissions and faults in the queue */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/sampling_params.h"
#include "sim/sim_world.h"

uint32_t sim_pick(struct sim_world *world, uint32_t low, uint32_t high)
{
    return low + (uint32_t)rng_below(&world->rng, high - low + 1);
}

/* ---- features ---- */

/* A fifth of the seeds is the plain split; the others mix what there is. Drawn apart from all
 * else, so that a new feature leaves the plans of the plain seeds as they were. */
static void plan_features(struct sim_world *world)
{
    struct sim_features *features = &world->features;
    if (world->options.seed % 5 == 0) { return; } /* shares no divisor with the count of shards that run them */
    struct rng plan_rng = world->rng;
    world->rng = rng_init(world->options.seed ^ UINT64_C(0x6665617475726573));
    features->talk_per_mille = sim_pick(world, 2, 9) * 100;
    features->has_salts = sim_chance(world, 400);
    features->has_priorities = sim_chance(world, 300);
    features->prefix_cache = sim_chance(world, 850);
    features->prefill_prefix_cache = sim_chance(world, 850);
    features->has_tiers = sim_chance(world, 500);
    /* Against some 100 us that a row costs: loading pays always, at times, hardly ever. */
    static const uint32_t slow_us[] = {50, 1000, 8000};
    features->tier_slow_us = slow_us[sim_pick(world, 0, 2)];
    features->guess_blocks_max = sim_chance(world, 700) ? sim_pick(world, 1, 300) : 0;
    features->predict_local = features->guess_blocks_max > 0 && sim_chance(world, 500);
    features->itl_stretch_percent = sim_chance(world, 400) ? sim_pick(world, 100, 300) : 0;
    features->preempt = sim_pick(world, 0, 2);
    if (sim_chance(world, 200)) {
        world->window_tokens = sim_pick(world, 2, 40);
        features->has_tiers = false; /* a node uses one or the other */
    }
    for (uint32_t i = 0; i < NODES_MAX && features->has_tiers; i++) {
        struct sim_tier *tier = &world->nodes[i].tier;
        tier->entries_max[KV_TIER_HOST] = sim_chance(world, 800) ? sim_pick(world, 1, 40) : 0;
        tier->entries_max[KV_TIER_DISK] = sim_chance(world, 600) ? sim_pick(world, 1, 80) : 0;
        tier->is_on = tier->entries_max[KV_TIER_HOST] + tier->entries_max[KV_TIER_DISK] > 0;
    }
    world->rng = plan_rng;
}

/* ---- cluster ---- */

static void plan_nodes(struct sim_world *world, uint32_t prefill_count, uint32_t decode_count, uint32_t block_tokens)
{
    world->prefill_count = prefill_count;
    world->node_count = prefill_count + decode_count;
    CHECK(world->node_count <= NODES_MAX);
    for (uint32_t i = 0; i < world->node_count; i++) {
        struct sim_node *node = &world->nodes[i];
        node->index = i;
        node->is_prefill = i < prefill_count;
        node->block_tokens = block_tokens;
        if (!(node->is_prefill ? world->features.prefill_prefix_cache : world->features.prefix_cache)) { node->tier.is_on = false; }
        /* One sequence of the whole context, with three spares for those that share its
         * prompt; most often little more than that, so that sequences are in each other's way. */
        uint32_t least = (CONTEXT + block_tokens - 1) / block_tokens + 3;
        node->block_count = least + (sim_chance(world, 700) ? sim_pick(world, 0, 8) : sim_pick(world, 0, 3 * least));
        if (node->tier.is_on) { node->block_count = least + node->block_count % 4; } /* so that much is evicted */
    }
}

static void start_cluster(struct sim_world *world)
{
    for (uint32_t i = 0; i < world->node_count; i++) { sim_node_start(world, &world->nodes[i]); }
    for (uint32_t r = 0; r < world->router_count; r++) { sim_router_start(world, r); }
}

/* ---- requests ---- */

/* What counts from the arrival, a cancel and a deadline, moves along with it. */
void sim_submit_at(struct sim_world *world, uint32_t index, uint64_t at_ns)
{
    struct sim_request *request = &world->requests[index];
    uint64_t later_ns = at_ns - request->arrival_ns;
    request->arrival_ns = at_ns;
    sim_at(world, at_ns, SIM_SUBMIT)->a = index;
    if (request->deadline_ns != UINT64_MAX) { request->deadline_ns += later_ns; }
    if (request->cancel_ns == UINT64_MAX) { return; }
    request->cancel_ns += later_ns;
    sim_at(world, request->cancel_ns, SIM_CANCEL)->a = index;
}

/* The parameters are drawn: what must come out? */
static void finish_plan(struct sim_world *world, struct sim_request *request)
{
    struct diag diag = {{0}};
    status_t st = sampling_params_validate(&request->params, VOCAB, CONTEXT, request->prompt_count, &diag);
    if (failed(st)) { sim_fail(world, "the simulator made a request that is not valid: %s", diag.text); }
    sim_expect(world, request);
}

static void plan_request(struct sim_world *world, uint32_t index, uint64_t window_ns)
{
    struct sim_request *request = &world->requests[index];
    struct sampling_params *params = &request->params;
    request->router = sim_pick(world, 0, world->router_count - 1);
    request->arrival_ns = 10 * NS_PER_MS + rng_below(&world->rng, window_ns);
    request->cancel_ns = sim_chance(world, 120) ? request->arrival_ns + rng_below(&world->rng, window_ns) : UINT64_MAX;
    request->deadline_ns = sim_chance(world, 80) ? request->arrival_ns + rng_below(&world->rng, 2 * window_ns) : UINT64_MAX;
    request->prompt_count = sim_chance(world, 300) ? sim_pick(world, 1, 6) : sim_pick(world, 1, 70);
    for (uint32_t i = 0; i < request->prompt_count; i++) { request->prompt[i] = sim_pick(world, 0, VOCAB - 1); }
    request->follows = NO_REQUEST;
    if (world->features.has_priorities && sim_chance(world, 500)) { request->priority = (int32_t)sim_pick(world, 0, 4) - 2; }
    if (world->features.talk_per_mille > 0) { sim_talk_plan(world, index); }
    *params = sampling_params_default();
    /* Names the request (sim_node.c finds its parameters by it), so it differs from all. */
    params->seed = (rng_next(&world->rng) & ~UINT64_C(0xff)) | index;
    uint32_t room = CONTEXT - request->prompt_count;
    params->max_tokens = sim_chance(world, 250) ? sim_pick(world, 1, 3) : sim_pick(world, 1, room);
    if (params->max_tokens > room) { params->max_tokens = room; }
    params->min_tokens = sim_chance(world, 200) ? sim_pick(world, 0, params->max_tokens) : 0;
    params->ignore_eos = sim_chance(world, 300);
    params->n = sim_chance(world, 300) ? sim_pick(world, 2, 4) : 1;
    params->logprobs = sim_chance(world, 300) ? 0 : -1;
    params->prompt_logprobs = sim_chance(world, 200) ? 0 : -1;
    if (sim_chance(world, 300)) {
        request->stop_tokens[0] = sim_pick(world, 2, 30);
        request->stop_tokens[1] = sim_pick(world, 31, VOCAB - 1);
        params->stop_tokens = request->stop_tokens;
        params->stop_token_count = sim_pick(world, 1, 2);
    }
    for (uint32_t s = 0; s < 4; s++) {
        request->stop_after[s] = sim_chance(world, 150) ? sim_pick(world, 1, 20) : UINT32_MAX;
    }
    finish_plan(world, request);
}

static void queue_requests(struct sim_world *world)
{
    for (uint32_t i = 0; i < world->request_count; i++) {
        if (world->requests[i].follows == NO_REQUEST) { sim_submit_at(world, i, world->requests[i].arrival_ns); }
    }
}

/* ---- faults ---- */

static int by_event(const void *a, const void *b)
{
    const struct sim_fault *left = a, *right = b;
    return (left->at_event > right->at_event) - (left->at_event < right->at_event);
}

static void plan_faults(struct sim_world *world, uint64_t window_ns)
{
    /* Fewer than the legs without progress after which the router calls a request poison. */
    world->fault_count = sim_pick(world, 1, 10);
    world->poison_per_mille = sim_chance(world, 400) ? sim_pick(world, 0, 300) : 0;
    world->repeat_per_mille = sim_chance(world, 400) ? sim_pick(world, 0, 300) : 0;
    for (uint32_t i = 0; i < world->fault_count; i++) {
        struct sim_fault *fault = &world->faults[i];
        /* Deaths and cuts are what most of the code is for. */
        fault->kind = sim_chance(world, 550) ? sim_pick(world, FAULT_DIE, FAULT_PARTITION) : sim_pick(world, 0, FAULT_KIND_COUNT - 1);
        if (sim_chance(world, 500)) {
            fault->at_event = sim_pick(world, 50, 3000);
        } else {
            fault->at_ns = rng_below(&world->rng, window_ns * 2);
        }
        fault->node = sim_pick(world, 0, world->node_count - 1);
        fault->router = sim_pick(world, 0, world->router_count - 1);
        fault->for_ns = sim_chance(world, 150) ? UINT64_MAX : rng_below(&world->rng, 300) * NS_PER_MS;
        /* Now and then longer than any lease. */
        if (fault->kind == FAULT_STOP && sim_chance(world, 300)) { fault->for_ns = XFER_LEASE_NS + fault->for_ns % (2 * NS_PER_S); }
        if (fault->kind == FAULT_PARTITION) {
            if (world->prefill_count == 0) { fault->kind = FAULT_DIE; continue; }
            fault->prefill_node = sim_pick(world, 0, world->prefill_count - 1);
            fault->node = sim_pick(world, world->prefill_count, world->node_count - 1);
        }
    }
    qsort(world->faults, world->fault_count, sizeof *world->faults, by_event);
}

static void queue_faults(struct sim_world *world)
{
    for (uint32_t i = 0; i < world->fault_count; i++) {
        if (world->faults[i].at_event == 0) { sim_at(world, world->faults[i].at_ns, SIM_FAULT)->a = i; }
    }
}

static uint64_t until(const struct sim_world *world, const struct sim_fault *fault)
{
    return fault->for_ns > world->quiet_at_ns ? world->quiet_at_ns : world->now_ns + fault->for_ns;
}

void sim_fault(struct sim_world *world, const struct sim_fault *fault)
{
    struct sim_node *node = &world->nodes[fault->node];
    if (world->is_quiet) { return; }
    switch (fault->kind) {
    case FAULT_DIE:
        if (node->is_alive) { sim_node_die(world, node, fault->for_ns); }
        return;
    case FAULT_CUT: {
        uint32_t conn = world->routers[fault->router].conns[fault->node];
        if (conn != NO_CONN) { sim_conn_cut(world, conn); }
        return;
    }
    case FAULT_PARTITION:
        sim_trace(world, "no KV passes from %s to %s", sim_node_name(world, fault->prefill_node), sim_node_name(world, fault->node));
        world->cut_until_ns[fault->prefill_node][fault->node] = until(world, fault);
        world->result.partitions++;
        return;
    case FAULT_DRAIN:
        if (!node->is_alive || node->is_draining) { return; }
        world->result.drains++;
        sim_node_drain(world, node);
        return;
    case FAULT_STOP:
        if (!node->is_alive || node->stopped_until_ns > world->now_ns) { return; }
        sim_trace(world, "%s stands still", sim_node_name(world, node->index));
        node->stopped_until_ns = until(world, fault);
        world->result.stops++;
        return;
    case FAULT_STEP: node->next_step_fails = node->is_alive; return;
    case FAULT_SLOW: world->slow_until_ns = until(world, fault); return;
    case FAULT_ROUTER_DIE: sim_router_die(world, fault->router); return;
    case FAULT_ROUTER_DRAIN: {
        world->result.router_drains++;
        sim_trace(world, "r%u drains", fault->router);
        struct router_event event = {.kind = ROUTER_EV_DRAIN};
        sim_router_event(world, fault->router, &event);
        return;
    }
    case FAULT_KIND_COUNT: break;
    }
    CHECK(fault->kind < FAULT_KIND_COUNT);
}

/* From now on nothing breaks, and everybody comes back. */
void sim_go_quiet(struct sim_world *world)
{
    sim_trace(world, "quiet");
    world->is_quiet = true;
    world->slow_until_ns = 0;
    memset(world->cut_until_ns, 0, sizeof world->cut_until_ns);
    for (uint32_t i = 0; i < world->node_count; i++) {
        struct sim_node *node = &world->nodes[i];
        node->next_step_fails = false;
        node->stopped_until_ns = 0; /* what was put off happens at the time it was put off to */
        if (node->is_alive && node->is_draining) { sim_node_die(world, node, UINT64_MAX); }
        if (!node->is_alive) { sim_node_start(world, node); }
    }
}

/* ---- the whole ---- */

void sim_plan_from_seed(struct sim_world *world)
{
    static const uint32_t block_tokens[] = {1, 4, 8, 8, 16};
    static const uint32_t local_tokens[] = {0, 0, 8, 30, 1000};
    plan_features(world);
    uint64_t window_ns = (uint64_t)sim_pick(world, 20, 600) * NS_PER_MS;
    uint32_t prefill_count = sim_pick(world, 0, 3), decode_count = sim_pick(world, 1, 3);
    plan_nodes(world, prefill_count, decode_count, block_tokens[sim_pick(world, 0, 4)]);
    world->router_count = sim_chance(world, 250) ? 2 : 1;
    for (uint32_t r = 0; r < world->router_count; r++) {
        world->routers[r].config = (struct router_core_config){
            .requests_max = sim_chance(world, 200) ? sim_pick(world, 1, 6) : 64,
            .sequences_max = SAMPLING_N_MAX,
            .nodes_max = NODES_MAX,
            .local_prefill_tokens = local_tokens[sim_pick(world, 0, 4)],
            .reserve_wait_ns = sim_chance(world, 300) ? rng_below(&world->rng, 100) * NS_PER_MS : 20 * NS_PER_S,
            .resume_wait_ns = 10000 * NS_PER_S,
            .suspect_ttl_ns = 500 * NS_PER_MS,
            .predict_local = world->features.predict_local,
            .guess_blocks_max = world->features.guess_blocks_max,
        };
    }
    /* One decode node that long requests do not fit: they must find the other. */
    if (decode_count > 1 && sim_chance(world, 150)) {
        world->has_small_node = true;
        struct sim_node *node = &world->nodes[sim_pick(world, prefill_count, world->node_count - 1)];
        node->block_count = 4 + node->block_count / 4;
    }
    world->request_count = sim_pick(world, 4, REQUESTS_MAX);
    for (uint32_t i = 0; i < world->request_count; i++) { plan_request(world, i, window_ns); }
    /* Drawn in any case, so that a calm run has the cluster and the requests of the other. */
    bool is_stormy = sim_chance(world, 800);
    plan_faults(world, window_ns);
    if (world->options.calm || !is_stormy) { world->fault_count = world->poison_per_mille = world->repeat_per_mille = 0; }
    world->quiet_at_ns = 10 * NS_PER_MS + 3 * window_ns;
    for (uint32_t i = 0; i < world->fault_count; i++) {
        const struct sim_fault *fault = &world->faults[i];
        if (fault->kind == FAULT_STOP && fault->for_ns > XFER_LEASE_NS) { world->quiet_at_ns += 2 * XFER_LEASE_NS; }
    }
    start_cluster(world);
    queue_requests(world);
    queue_faults(world);
    sim_at(world, world->quiet_at_ns, SIM_QUIET);
}

void sim_plan_from_scenario(struct sim_world *world, const struct sim_scenario *scenario)
{
    plan_nodes(world, scenario->prefill_count, scenario->decode_count, scenario->block_tokens);
    for (uint32_t i = 0; i < world->node_count; i++) { world->nodes[i].block_count = scenario->block_count; }
    world->features.prefix_cache = world->features.prefill_prefix_cache = scenario->prefix_cache;
    world->router_count = 1;
    world->routers[0].config = (struct router_core_config){
        .requests_max = 64,
        .sequences_max = SAMPLING_N_MAX,
        .nodes_max = NODES_MAX,
        .local_prefill_tokens = scenario->local_prefill_tokens,
        .reserve_wait_ns = NS_PER_S,
        .resume_wait_ns = 10 * NS_PER_S,
        .suspect_ttl_ns = NS_PER_S,
    };
    world->request_count = scenario->request_count;
    for (uint32_t i = 0; i < world->request_count; i++) {
        struct sim_request *request = &world->requests[i];
        request->arrival_ns = scenario->requests[i].at_ns;
        request->cancel_ns = scenario->requests[i].cancel_ns > 0 ? scenario->requests[i].cancel_ns : UINT64_MAX;
        request->deadline_ns = UINT64_MAX;
        request->prompt_count = scenario->requests[i].prompt_count;
        for (uint32_t t = 0; t < request->prompt_count; t++) { request->prompt[t] = (t + i) % VOCAB; }
        request->follows = NO_REQUEST;
        if (scenario->requests[i].is_turn) { sim_talk_turn(world, i); }
        request->params = sampling_params_default();
        request->params.seed = i + 1;
        request->params.ignore_eos = true;
        request->params.max_tokens = scenario->requests[i].max_tokens;
        request->params.n = scenario->requests[i].n;
        for (uint32_t s = 0; s < 4; s++) { request->stop_after[s] = UINT32_MAX; }
        finish_plan(world, request);
    }
    world->fault_count = scenario->fault_count;
    for (uint32_t i = 0; i < scenario->fault_count; i++) { world->faults[i] = scenario->faults[i]; }
    world->quiet_at_ns = 10 * NS_PER_S;
    start_cluster(world);
    queue_requests(world);
    queue_faults(world);
    sim_at(world, world->quiet_at_ns, SIM_QUIET);
}
