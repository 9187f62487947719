/* router_cache: what of a leg's text the router believes to be cached, by node.
 * Flow:    router_core (what nodes said) -> [router_cache] -> router_cost (what is missing where)
 * Thread:  the router's core thread.
 * Memory:  one prefix_guess a node, taken when the node comes and given back when it goes; a node that
 *          finds no memory for one is served without. A request's names lie in its allocation.
 *
 * A node counts as having a prompt when it said so: a decode node with RESERVED or its first token, a
 * prefill node with its first token. Before that a burst of one prompt spreads out, for nobody could
 * share with a prompt that is still being computed. When a sequence ends, its decode node has its
 * output, too: the next turn of a conversation finds both. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "router/router_state.h"

/* Nodes have 16 or 32; what else a hello may say is not worth a guess. */
#define NAME_BLOCK_TOKENS_MAX 256u

static bool is_on(const struct router_core *core) { return core->config.guess_blocks_max > 0; }

void router_cache_node_up(struct router_core *core, struct node_entry *node)
{
    if (!is_on(core) || node->block_tokens == 0 || node->block_tokens > NAME_BLOCK_TOKENS_MAX || node->block_count == 0) { return; }
    /* All nodes of a cluster have one block size: attaching compares. Should it change, then with all
     * of them: the requests that were named before are placed without a guess. */
    bool is_first = core->stats.nodes_prefill + core->stats.nodes_decode == 1;
    if (is_first || core->name_block_tokens == 0) { core->name_block_tokens = node->block_tokens; }
    if (node->block_tokens != core->name_block_tokens) { return; }
    uint32_t most = core->config.guess_blocks_max;
    if (failed(prefix_guess_create(node->block_count < most ? node->block_count : most, &node->guess))) { node->guess = NULL; }
}

void router_cache_node_down(struct node_entry *node)
{
    prefix_guess_destroy(node->guess);
    node->guess = NULL;
}

uint32_t router_cache_name_count(const struct router_core *core, uint32_t prompt_count)
{
    return is_on(core) && core->name_block_tokens > 0 ? prompt_count / core->name_block_tokens : 0;
}

void router_cache_name(struct router_core *core, struct request *request, const struct router_event *event)
{
    request->name_block_tokens = core->name_block_tokens;
    if (request->name_count == 0) { return; }
    if (event->names && event->name_block_tokens == core->name_block_tokens) {
        memcpy(request->names, event->names, request->name_count * sizeof *request->names);
        return;
    }
    prefix_guess_names(request->cache_salt, request->prompt, core->name_block_tokens, request->name_count, request->names);
}

static struct prefix_guess *guess_for(const struct router_core *core, const struct request *request, uint32_t node)
{
    return request->name_block_tokens == core->name_block_tokens ? core->nodes[node].guess : NULL;
}

uint32_t router_cache_find(const struct router_core *core, const struct leg *leg, uint32_t node)
{
    const struct request *request = leg->request;
    const struct prefix_guess *guess = guess_for(core, request, node);
    /* Whoever wants the prompt's log-probabilities has it computed, cached or not. */
    bool wants_rows = !request->has_prompt_logprobs && request->sequences[leg->sequence_first].output_count == 0;
    if (!guess || wants_rows) { return 0; }
    /* One token is always computed: of a prompt that is cached whole, the last block is not used. */
    uint32_t most = (router_leg_tokens(leg) - 1) / core->name_block_tokens;
    uint32_t count = request->name_count < most ? request->name_count : most;
    return prefix_guess_find(guess, request->names, count) * core->name_block_tokens;
}

void router_cache_prompt_is_at(struct router_core *core, const struct leg *leg, uint32_t node)
{
    const struct request *request = leg->request;
    struct prefix_guess *guess = guess_for(core, request, node);
    if (guess) { prefix_guess_add(guess, request->names, request->name_count); }
}

/* The names of the blocks behind the prompt's, as far as they are full of computed tokens. Returns how
 * many; core->tail_names has them. */
static uint32_t name_tail(struct router_core *core, const struct request *request, const struct sequence *sequence)
{
    uint32_t block_tokens = core->name_block_tokens;
    /* The last token was sampled and never computed: nothing came after it. */
    uint32_t full = (request->prompt_count + sequence->output_count - 1) / block_tokens;
    if (full <= request->name_count) { return 0; }
    uint32_t count = full - request->name_count;
    if (count > core->tail_capacity) {
        struct kv_hash *grown = realloc(core->tail_names, count * sizeof *grown);
        if (!grown) { return 0; }
        core->tail_names = grown;
        core->tail_capacity = count;
    }
    struct kv_hash name = request->name_count > 0 ? request->names[request->name_count - 1] : kv_hash_root(request->cache_salt);
    uint32_t text[NAME_BLOCK_TOKENS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t t = 0; t < block_tokens; t++) {
            uint32_t at = (request->name_count + i) * block_tokens + t;
            text[t] = at < request->prompt_count ? request->prompt[at] : sequence->output[at - request->prompt_count];
        }
        core->tail_names[i] = name = kv_hash_next(name, text, block_tokens);
    }
    return count;
}

void router_cache_sequence_is_at(struct router_core *core, const struct request *request, const struct sequence *sequence,
                                 uint32_t node)
{
    struct prefix_guess *guess = guess_for(core, request, node);
    if (!guess || sequence->output_count == 0) { return; }
    uint32_t count = name_tail(core, request, sequence);
    if (count == 0) { return; }
    if (request->name_count > 0) {
        prefix_guess_extend(guess, request->names[request->name_count - 1], core->tail_names, count);
    } else {
        prefix_guess_add(guess, core->tail_names, count);
    }
}
