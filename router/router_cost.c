/* router_cost: what it costs to run a leg on a node.
 * Flow:    loads, what is cached where -> [router_cost] -> router_place
 * Thread:  the router's core thread.
 * Memory:  none.
 *
 * Without guesses (router_core_config.guess_blocks_max is 0) a decode node's cost is its load, a
 * prefill node's the length of its queue. With them both are seconds: what the leg itself waits for is
 * added, so that work saved is weighed against a queue. A prefix that everybody wants does not pile up
 * on one node: as soon as its queue is longer than computing the prefix elsewhere, the next one goes
 * there, and then two nodes have it. */
#include "base/clock.h"
#include "router/router_state.h"

/* Where a rate is not known yet. */
#define TOKENS_PER_S_DEFAULT 1000.0
/* RESERVED to the router, PREFILL to a node that is in the middle of a step, and the first token back. */
#define HOP_S 0.002
/* Computing on a decode node that generates lengthens the steps of all that it generates: it must be
 * this many times faster. */
#define LOCAL_BIAS 2.0

static bool is_on(const struct router_core *core) { return core->config.guess_blocks_max > 0; }

bool router_node_can_take(const struct node_entry *node, enum node_role role)
{
    return node->up && node->role == (uint32_t)role && !node->load.draining;
}

uint32_t router_leg_blocks(const struct leg *leg, const struct node_entry *node, uint32_t cached_tokens)
{
    /* The prompt's blocks, and for each sequence beyond the first a copy of the last one. */
    uint32_t per_block = node->block_tokens > 0 ? node->block_tokens : 16;
    return (router_leg_tokens(leg) + per_block) / per_block + leg->sequence_count - 1 - cached_tokens / per_block;
}

static double rate_of(const struct node_entry *node)
{
    return node->load.tokens_per_s > 0 ? node->load.tokens_per_s : TOKENS_PER_S_DEFAULT;
}

double router_cost_prefill(const struct router_core *core, const struct leg *leg, uint32_t index)
{
    const struct node_entry *node = &core->nodes[index];
    double tokens = (double)node->load.tokens_queued > node->own_tokens ? (double)node->load.tokens_queued : node->own_tokens;
    if (is_on(core)) { tokens += router_leg_tokens(leg) - router_cache_find(core, leg, index); }
    return tokens / rate_of(node);
}

double router_cost_remote(const struct router_core *core, const struct leg *leg)
{
    double best = -1;
    for (uint32_t i = 0; i < core->config.nodes_max; i++) {
        if (!router_node_can_take(&core->nodes[i], NODE_ROLE_PREFILL)) { continue; }
        double cost = router_cost_prefill(core, leg, i);
        if (best < 0 || cost < best) { best = cost; }
    }
    return best < 0 ? best : HOP_S + best;
}

/* A decode node computes prompts seldom and may never have measured; a prefill node's rate on the same
 * kind of machine is the best guess there is. */
static double local_rate(const struct router_core *core, const struct node_entry *node)
{
    if (node->load.tokens_per_s > 0) { return node->load.tokens_per_s; }
    for (uint32_t i = 0; i < core->config.nodes_max; i++) {
        const struct node_entry *prefill = &core->nodes[i];
        if (prefill->up && prefill->role == NODE_ROLE_PREFILL && prefill->load.tokens_per_s > 0) { return prefill->load.tokens_per_s; }
    }
    return TOKENS_PER_S_DEFAULT;
}

static double local_queue(const struct node_entry *node)
{
    return (double)node->load.tokens_queued + node->pending_tokens;
}

uint32_t router_cost_local_max(const struct router_core *core, const struct leg *leg, uint32_t index, uint32_t cached_tokens,
                               double remote_s)
{
    /* A prompt of which nothing is cached is what the prefill pool is for. */
    if (!is_on(core) || !core->config.predict_local || cached_tokens == 0 || remote_s < 0) { return 0; }
    const struct node_entry *node = &core->nodes[index];
    bool generates = node->load.sequences_running > 0 || node->own_legs > 0;
    /* bias * (queued + tokens) / rate <= remote */
    double tokens = remote_s * local_rate(core, node) / (generates ? LOCAL_BIAS : 1.0) - local_queue(node);
    uint32_t total = router_leg_tokens(leg);
    return tokens < 1 ? 0 : tokens > total ? total : (uint32_t)tokens;
}

/* Seconds until the leg's first tokens are there, and its blocks with them. */
static double wait_for_tokens(const struct router_core *core, const struct leg *leg, uint32_t index, uint32_t cached_tokens,
                              double remote_s)
{
    const struct node_entry *node = &core->nodes[index];
    uint32_t missing = router_leg_tokens(leg) - cached_tokens;
    uint32_t local_max = router_cost_local_max(core, leg, index, cached_tokens, remote_s);
    if (core->config.local_prefill_tokens > local_max) { local_max = core->config.local_prefill_tokens; }
    if (remote_s < 0 || missing <= local_max) { return (local_queue(node) + missing) / local_rate(core, node); }
    return remote_s + (double)missing * (double)core->handover_token_ns / 1e9;
}

double router_cost_decode(const struct router_core *core, const struct leg *leg, uint32_t index, uint32_t cached_tokens,
                          double remote_s)
{
    const struct node_entry *node = &core->nodes[index];
    double total = node->block_count > 0 ? node->block_count : 1;
    double available = node->has_load ? (double)node->load.blocks_free + node->load.blocks_cached : total;
    double left = available - node->pending_blocks - router_leg_blocks(leg, node, cached_tokens);
    double slots = node->sequences_max > 0 ? node->sequences_max : 1;
    double sequences = node->load.sequences_running > node->own_legs ? node->load.sequences_running : node->own_legs;
    /* Least loaded by blocks: the share of its pool that would be in use with this leg, and above
     * that everything that already waits there, and the share of its slots. */
    double load = 1.0 - left / total + node->load.sequences_waiting * 0.05 + sequences / slots;
    double queue_s = node->load.tokens_per_s > 0 ? (double)node->load.tokens_queued / node->load.tokens_per_s : 0;
    if (!is_on(core)) { return load + queue_s + (left < 0 ? 1.0 : 0.0); }
    /* A full node generates slower, for as long as legs stay: that makes a share into seconds. One
     * without room gives it to one leg after the other, as those that run end. */
    double hold_s = core->hold_ns > 0 ? (double)core->hold_ns / 1e9 : 1.0;
    double room_s = left < 0 ? hold_s * (1.0 + node->load.sequences_waiting) / (sequences > 1 ? sequences : 1) : 0;
    return hold_s * load + room_s + wait_for_tokens(core, leg, index, cached_tokens, remote_s);
}
