/* router_bench: what one request costs the router's core thread, with and without looking for cached
 * prefixes, and what naming a prompt costs the thread that tokenized it.
 *
 * Estimate: a name is two SHA-256 blocks, about 100 ns each with the processor's SHA instructions: 2,048
 * names of a prompt of 32,768 tokens are 0.3 to 0.5 ms. A lookup doubles and halves: 12 for such a
 * prompt, each a miss of the processor's cache, so 1 us a node. Adding a prompt touches every one of its
 * names in a table of the decode node and one of the prefill node, 50 to 100 ns each: 0.2 to 0.4 ms.
 * A prompt of 128 tokens is 8 names: lost in the rest.
 *
 * One request is SUBMIT, RESERVED, the first token, PREFILL_DONE and 16 tokens. Prompts share their
 * first half with one of 64 others. Prints one JSON line per case; checks that all finished. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "model/sampling_params.h"
#include "router/prefix_guess.h"
#include "router/router_core.h"

enum { OUTPUT = 16, BLOCK_TOKENS = 16, PROMPT_MAX = 32768, FAMILIES = 64 };

struct bench {
    struct router_core *core;
    uint32_t nodes; /* of each kind */
    uint64_t now_ns, request, spent_ns, finished;
};

static const struct router_action *find(const struct router_actions *actions, enum router_action_kind kind, enum ctl_kind msg)
{
    for (uint32_t i = 0; i < actions->count; i++) {
        const struct router_action *action = &actions->list[i];
        if (action->kind == kind && (kind != ROUTER_ACT_SEND || action->msg.kind == msg)) { return action; }
    }
    fprintf(stderr, "the core did not do what was expected\n");
    exit(1);
}

static struct router_actions step(struct bench *bench, struct router_event event)
{
    struct router_actions actions;
    event.now_ns = bench->now_ns += 1000;
    uint64_t start_ns = clock_now_ns();
    if (failed(router_core_step(bench->core, &event, &actions))) { exit(1); }
    bench->spent_ns += clock_now_ns() - start_ns;
    return actions;
}

static struct router_actions tell(struct bench *bench, uint32_t node, const struct ctl_msg *msg)
{
    return step(bench, (struct router_event){.kind = ROUTER_EV_MESSAGE, .node = node, .msg = msg});
}

static void one_request(struct bench *bench, const uint32_t *prompt, uint32_t count, const struct kv_hash *names)
{
    struct sampling_params params = sampling_params_default();
    params.max_tokens = OUTPUT;
    struct router_event submit = {.kind = ROUTER_EV_SUBMIT, .request = ++bench->request, .prompt = prompt, .prompt_count = count,
                                  .params = &params, .deadline_ns = UINT64_MAX, .names = names,
                                  .name_block_tokens = names ? BLOCK_TOKENS : 0};
    struct router_actions actions = step(bench, submit);
    const struct router_action *action = find(&actions, ROUTER_ACT_SEND, CTL_RESERVE);
    uint32_t decode = action->node;
    struct leg_id leg = action->msg.reserve.work.leg;
    static const uint8_t ticket[64];
    struct ctl_msg msg = {.kind = CTL_RESERVED, .reserved = {.leg = leg, .ticket = ticket, .ticket_bytes = sizeof ticket}};
    actions = tell(bench, decode, &msg);
    uint32_t prefill = find(&actions, ROUTER_ACT_SEND, CTL_PREFILL)->node;
    struct ctl_token token = {.leg = leg, .token = 7};
    msg = (struct ctl_msg){.kind = CTL_TOKENS, .tokens = {.count = 1, .tokens = &token}};
    (void)tell(bench, prefill, &msg);
    struct ctl_msg done = {.kind = CTL_PREFILL_DONE, .prefill_done = {.leg = leg, .cable = "tcp", .bytes = 1}};
    (void)tell(bench, prefill, &done);
    for (uint32_t i = 0; i < OUTPUT; i++) {
        token.position = i;
        token.finish = i + 1 == OUTPUT ? FINISH_LENGTH : FINISH_NONE;
        actions = tell(bench, decode, &msg);
    }
    bench->finished += find(&actions, ROUTER_ACT_FINISHED, 0)->code == ST_OK;
}

static struct bench open_bench(uint32_t nodes, uint32_t guess_blocks_max)
{
    struct bench bench = {.nodes = nodes};
    struct router_core_config config = {.router_boot_id = 1, .requests_max = 1024, .sequences_max = 4096, .nodes_max = 2 * nodes,
                                        .reserve_wait_ns = NS_PER_S, .resume_wait_ns = NS_PER_S, .suspect_ttl_ns = NS_PER_S,
                                        .guess_blocks_max = guess_blocks_max};
    struct diag diag = {{0}};
    if (failed(router_core_create(&config, &bench.core, &diag))) { exit(1); }
    for (uint32_t i = 0; i < 2 * nodes; i++) {
        struct ctl_msg hello = {.kind = CTL_NODE_HELLO,
                                .node_hello = {.role = i < nodes ? NODE_ROLE_PREFILL : NODE_ROLE_DECODE, .block_tokens = BLOCK_TOKENS,
                                               .block_count = 1u << 16, .sequences_max = 64, .node_name = "n"}};
        (void)step(&bench, (struct router_event){.kind = ROUTER_EV_NODE_UP, .node = i, .msg = &hello});
    }
    return bench;
}

static int compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static void run_case(uint32_t nodes, uint32_t prompt_count, bool looks, bool is_named, uint32_t rounds)
{
    static uint32_t prompt[PROMPT_MAX];
    static struct kv_hash names[PROMPT_MAX / BLOCK_TOKENS];
    struct bench bench = open_bench(nodes, looks ? 1u << 16 : 0);
    uint64_t *spent = calloc(rounds, sizeof *spent);
    uint64_t naming_ns = 0;
    for (uint32_t r = 0; r < rounds + FAMILIES; r++) { /* each family once before it counts */
        struct rng family = rng_init(r % FAMILIES), own = rng_init(r + 1000000);
        for (uint32_t i = 0; i < prompt_count; i++) {
            prompt[i] = (uint32_t)rng_below(i < prompt_count / 2 ? &family : &own, 32000);
        }
        uint64_t start_ns = clock_now_ns();
        if (is_named) { prefix_guess_names(0, prompt, BLOCK_TOKENS, prompt_count / BLOCK_TOKENS, names); }
        naming_ns += clock_now_ns() - start_ns;
        bench.spent_ns = 0;
        one_request(&bench, prompt, prompt_count, is_named ? names : NULL);
        if (r >= FAMILIES) { spent[r - FAMILIES] = bench.spent_ns; }
    }
    if (bench.finished != rounds + FAMILIES) { fprintf(stderr, "a request did not finish\n"); exit(1); }
    qsort(spent, rounds, sizeof *spent, compare);
    printf("{\"bench\":\"router_core\",\"nodes\":%u,\"prompt_tokens\":%u,\"prefix_cache\":%s,\"named_before\":%s,"
           "\"core_p50_us\":%.1f,\"core_p99_us\":%.1f,\"naming_us\":%.1f}\n",
           2 * nodes, prompt_count, looks ? "true" : "false", is_named ? "true" : "false", (double)spent[rounds / 2] / 1e3,
           (double)spent[rounds * 99 / 100] / 1e3, (double)naming_ns / (rounds + FAMILIES) / 1e3);
    free(spent);
    router_core_destroy(bench.core);
}

int main(void)
{
    static const uint32_t lengths[] = {128, 2048, PROMPT_MAX};
    static const uint32_t nodes[] = {2, 32, 128};
    for (unsigned n = 0; n < 3; n++) {
        for (unsigned i = 0; i < 3; i++) {
            uint32_t rounds = lengths[i] == PROMPT_MAX ? 200 : 1000;
            run_case(nodes[n], lengths[i], false, false, rounds);
            run_case(nodes[n], lengths[i], true, false, rounds);
            run_case(nodes[n], lengths[i], true, true, rounds);
        }
    }
    return 0;
}
