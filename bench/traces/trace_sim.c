/* trace_sim: a public trace through the real cores of a whole cluster, in virtual time.
 * Flow:    trace -> router_core, prefill_core, decode_core over modelled streams, steps and links -> JSON
 * Thread:  one.
 *
 * What is real: placement, leases, blocks, prefix caches, batching and preemption. What is modelled,
 * from measured costs: a step takes
 *     overhead + max(weights, rows * row) + attended positions * attend
 * and a link moves bytes at its rate while its prefill node computes. Nothing fails here; tests/sim
 * is for that. So an hour of a production trace on a dozen nodes takes seconds, and answers what the
 * prefix cache, the batching policy or one more node would change.
 *
 * --policy=static is the comparison: requests go in by groups of --batch-max, and the next group
 * waits until the last sequence of the one before has ended. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/flags.h"
#include "client/workload.h"
#include "control/ctl_codec.h"
#include "decode_node/decode_core.h"
#include "model/sampling_params.h"
#include "prefill_node/prefill_core.h"
#include "router/router_core.h"
#include "sim/event_heap.h"

#define NODES_MAX 64u
#define SLOTS_MAX 1024u
#define VOCAB 50000u
#define MESSAGE_NS (200 * NS_PER_US)
#define NO_EOS UINT32_MAX
#define TURNS_MAX 16u
#define BUCKETS 256u /* even */

struct config {
    const char *trace, *policy, *prefix_cache;
    uint32_t requests, prefill, decode, decode_blocks, prefill_blocks, block_tokens, batch_max, step_rows, chunk_tokens;
    float length_scale, time_scale, weights_ms, row_us, attend_ns, overhead_us, itl_stretch;
    float link_gbps, ttft_limit_s, tpot_limit_ms;
    uint32_t token_bytes;
};

#define AT(field) offsetof(struct config, field)
static const struct flag flags[] = {
    {"trace", FLAG_STRING, AT(trace), NULL, "FILE", "A Mooncake trace.", 0, 0},
    {"requests", FLAG_U32, AT(requests), "0", "N", "Only the first so many; 0: all.", 0, 0},
    {"length-scale", FLAG_F32, AT(length_scale), "1", "X", "Multiplies all lengths.", 0, 0},
    {"time-scale", FLAG_F32, AT(time_scale), "1", "X", "2 is twice the rate.", 0, 0},
    {"policy", FLAG_STRING, AT(policy), "continuous", "continuous|static", "How requests are batched.", 0, 0},
    {"prefix-cache", FLAG_STRING, AT(prefix_cache), "on", "on|off", "On all nodes.", 0, 0},
    {"prefill", FLAG_U32, AT(prefill), "8", "N", "Prefill nodes.", 0, NODES_MAX / 2},
    {"decode", FLAG_U32, AT(decode), "4", "N", "Decode nodes.", 1, NODES_MAX / 2},
    {"decode-blocks", FLAG_U32, AT(decode_blocks), "65536", "N", "KV blocks of a decode node.", 1, 1u << 26},
    {"prefill-blocks", FLAG_U32, AT(prefill_blocks), "65536", "N", "KV blocks of a prefill node.", 1, 1u << 26},
    {"block-tokens", FLAG_U32, AT(block_tokens), "32", "tokens", "Tokens of a block.", 1, 512},
    {"batch-max", FLAG_U32, AT(batch_max), "64", "N", "Sequences that run at once on a decode node.", 1, SLOTS_MAX},
    {"step-rows", FLAG_U32, AT(step_rows), "2048", "N", "Rows of one step.", 1, 1u << 20},
    {"chunk-tokens", FLAG_U32, AT(chunk_tokens), "2048", "N", "Rows of one prompt in a step.", 1, 1u << 20},
    {"weights-ms", FLAG_F32, AT(weights_ms), "15", "MS", "Reading all weights once: a step of one row.", 0, 0},
    {"row-us", FLAG_F32, AT(row_us), "100", "US", "Computing one row in a large step.", 0, 0},
    {"attend-ns", FLAG_F32, AT(attend_ns), "10", "NS", "One row attending to one position, all layers.", 0, 0},
    {"overhead-us", FLAG_F32, AT(overhead_us), "200", "US", "Of a step.", 0, 0},
    {"itl-stretch", FLAG_F32, AT(itl_stretch), "0", "X", "As the nodes' flag; 0: off.", 0, 0},
    {"token-bytes", FLAG_U32, AT(token_bytes), "32768", "BYTES", "KV of one token, all layers.", 1, 1u << 30},
    {"link-gbps", FLAG_F32, AT(link_gbps), "25", "GBPS", "Gigabits per second that leave a prefill node.", 0, 0},
    {"ttft-limit-s", FLAG_F32, AT(ttft_limit_s), "10", "S", "For goodput.", 0, 0},
    {"tpot-limit-ms", FLAG_F32, AT(tpot_limit_ms), "100", "MS", "For goodput.", 0, 0},
};

enum event_kind { EV_ARRIVE, EV_TO_NODE, EV_TO_ROUTER, EV_STEP_DONE, EV_LANDED, EV_ACKED, EV_FENCED, EV_ENDED, EV_TICK_NODE, EV_TICK_ROUTER };

struct event {
    uint64_t at_ns, order;
    enum event_kind kind;
    uint32_t node;
    struct leg_id leg;
    uint8_t *bytes;
    size_t byte_count;
};

struct node {
    struct decode_core *decode; /* one of the two */
    struct prefill_core *prefill;
    const struct step_plan *plan;
    uint64_t step_ns, step_rows, next_tick_ns, link_free_ns, busy_ns;
    uint64_t rows, steps;
    struct step_sample *samples;
};

/* A grant that lives. */
struct grant {
    struct leg_id leg;
    uint32_t decode_node, prefill_node;
    uint64_t sent_ns; /* when the last byte so far has left */
    bool is_revoked;
    uint8_t *payload;
    size_t payload_bytes;
};

struct outcome {
    uint64_t arrival_ns, submit_ns, first_ns, last_ns;
    uint32_t turn, tokens, cached, prefill_cached;
    bool is_ok;
};

struct world {
    struct config config;
    struct workload workload;
    struct router_core *router;
    uint64_t router_tick_ns;
    uint32_t node_count;
    struct node nodes[NODES_MAX];
    struct grant *grants;
    uint32_t grant_count, grant_capacity;
    struct ctl_codec *codec_out, *codec_in;
    struct event_heap heap;
    uint64_t now_ns, wire_bytes;
    struct outcome *outcomes;
    uint32_t *waiting;  /* static batching: arrived, not submitted; a ring as long as the trace */
    uint32_t waiting_first, waiting_count, group_open, done_count, refused;
    uint32_t *prompt;
    double rows_sum[BUCKETS];
    uint64_t bucket_ns;
};

static struct event *at(struct world *world, uint64_t at_ns, enum event_kind kind, uint32_t node)
{
    return event_heap_add(&world->heap, &(struct event){.at_ns = at_ns, .kind = kind, .node = node});
}

static void send(struct world *world, enum event_kind kind, uint32_t node, const struct ctl_msg *msg)
{
    const uint8_t *bytes;
    size_t byte_count;
    status_t st = ctl_codec_encode(world->codec_out, msg, &bytes, &byte_count);
    CHECK(!failed(st));
    struct event *event = at(world, world->now_ns + MESSAGE_NS, kind, node);
    event->bytes = malloc(byte_count + 1);
    CHECK(event->bytes != NULL);
    memcpy(event->bytes, bytes, byte_count);
    event->byte_count = byte_count;
}

static struct grant *grant_of(struct world *world, struct leg_id leg)
{
    for (uint32_t i = 0; i < world->grant_count; i++) {
        if (leg_id_equal(world->grants[i].leg, leg)) { return &world->grants[i]; }
    }
    return NULL;
}

static void grant_drop(struct world *world, struct grant *grant)
{
    free(grant->payload);
    *grant = world->grants[--world->grant_count];
}

/* ---- steps */

static uint64_t step_cost_ns(const struct world *world, const struct step_plan *plan, uint64_t *ret_rows)
{
    double rows = 0, attended = 0;
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        rows += span->row_count;
        attended += span->row_count * (span->first_position + (span->row_count + 1) / 2.0);
    }
    *ret_rows = (uint64_t)rows;
    const struct config *config = &world->config;
    return (uint64_t)((double)config->overhead_us * 1e3 + fmax((double)config->weights_ms * 1e6, rows * (double)config->row_us * 1e3) +
                      attended * (double)config->attend_ns);
}

static void push(struct world *world, uint32_t node, struct leg_id leg, uint64_t from_ns, uint32_t blocks)
{
    struct grant *grant = grant_of(world, leg);
    if (!grant) { return; }
    struct node *from = &world->nodes[node];
    uint64_t bytes = (uint64_t)blocks * world->config.block_tokens * world->config.token_bytes;
    world->wire_bytes += bytes;
    if (from->link_free_ns < from_ns) { from->link_free_ns = from_ns; }
    from->link_free_ns += (uint64_t)((double)bytes * 8 / (double)world->config.link_gbps);
    grant->sent_ns = from->link_free_ns;
}

static void start_step(struct world *world, uint32_t index, const struct step_plan *plan)
{
    struct node *node = &world->nodes[index];
    CHECK(node->plan == NULL);
    uint64_t rows;
    node->plan = plan;
    node->step_ns = step_cost_ns(world, plan, &rows);
    node->step_rows = rows;
    node->rows += rows;
    node->steps++;
    node->busy_ns += node->step_ns;
    /* Layer by layer, so that the bytes leave while the step goes on. */
    for (uint32_t i = 0; i < plan->span_count && node->prefill; i++) {
        if (plan->spans[i].push_count > 0) { push(world, index, plan->spans[i].leg, world->now_ns, plan->spans[i].push_count); }
    }
    at(world, world->now_ns + node->step_ns, EV_STEP_DONE, index);
}

/* ---- cores */

static void node_step(struct world *world, uint32_t index, struct decode_event *decode, struct prefill_event *prefill);

static void decode_act(struct world *world, uint32_t index, const struct decode_action *action)
{
    switch (action->kind) {
    case DECODE_ACT_SEND: send(world, EV_TO_ROUTER, index, &action->msg); return;
    case DECODE_ACT_STEP: start_step(world, index, action->plan); return;
    case DECODE_ACT_REVOKE: {
        struct grant *grant = grant_of(world, action->leg);
        if (!grant || grant->is_revoked) { return; }
        grant->is_revoked = true;
        at(world, world->now_ns + MESSAGE_NS, EV_FENCED, index)->leg = action->leg;
        return;
    }
    case DECODE_ACT_GRANT: {
        if (world->grant_count == world->grant_capacity) {
            world->grant_capacity = world->grant_capacity ? 2 * world->grant_capacity : 256;
            world->grants = realloc(world->grants, world->grant_capacity * sizeof *world->grants);
            CHECK(world->grants != NULL);
        }
        world->grants[world->grant_count++] = (struct grant){.leg = action->leg, .decode_node = index, .prefill_node = NODES_MAX};
        static const uint8_t ticket[32];
        struct ctl_msg msg = {.kind = CTL_RESERVED, .reserved = {.leg = action->leg, .cached_tokens = action->cached_tokens,
                                                                  .grant_first = action->grant_first, .ticket = ticket,
                                                                  .ticket_bytes = sizeof ticket}};
        send(world, EV_TO_ROUTER, index, &msg);
        return;
    }
    default: CHECK(false); /* no tiers here */
    }
}

static void prefill_act(struct world *world, uint32_t index, const struct prefill_action *action)
{
    struct grant *grant;
    switch (action->kind) {
    case PREFILL_ACT_SEND: send(world, EV_TO_ROUTER, index, &action->msg); return;
    case PREFILL_ACT_STEP: start_step(world, index, action->plan); return;
    case PREFILL_ACT_XFER_BEGIN:
        grant = grant_of(world, action->leg);
        if (grant) { grant->prefill_node = index; }
        return;
    case PREFILL_ACT_PUSH_CACHED: push(world, index, action->leg, world->now_ns, action->block_count); return;
    case PREFILL_ACT_XFER_ABORT: at(world, world->now_ns + MESSAGE_NS, EV_ENDED, index)->leg = action->leg; return;
    case PREFILL_ACT_XFER_COMMIT: {
        grant = grant_of(world, action->leg);
        CHECK(grant != NULL);
        struct ctl_msg msg = {.kind = CTL_TOKENS, .tokens = {.count = action->token_count, .tokens = action->tokens}};
        const uint8_t *bytes;
        status_t st = ctl_codec_encode(world->codec_out, &msg, &bytes, &grant->payload_bytes);
        CHECK(!failed(st));
        grant->payload = malloc(grant->payload_bytes);
        CHECK(grant->payload != NULL);
        memcpy(grant->payload, bytes, grant->payload_bytes);
        uint64_t sent_ns = grant->sent_ns > world->now_ns ? grant->sent_ns : world->now_ns;
        at(world, sent_ns + MESSAGE_NS, EV_LANDED, grant->decode_node)->leg = action->leg;
        return;
    }
    default: CHECK(false);
    }
}

static void want_tick(struct world *world, uint32_t index, uint64_t deadline_ns)
{
    struct node *node = &world->nodes[index];
    if (deadline_ns == UINT64_MAX) { return; }
    if (deadline_ns < world->now_ns) { deadline_ns = world->now_ns; }
    if (node->next_tick_ns > world->now_ns && node->next_tick_ns <= deadline_ns) { return; }
    node->next_tick_ns = deadline_ns + 1;
    at(world, node->next_tick_ns, EV_TICK_NODE, index);
}

static void node_step(struct world *world, uint32_t index, struct decode_event *decode, struct prefill_event *prefill)
{
    struct node *node = &world->nodes[index];
    if (node->decode) {
        struct decode_actions actions;
        decode->now_ns = world->now_ns;
        status_t st = decode_core_step(node->decode, decode, &actions);
        CHECK(!failed(st));
        for (uint32_t i = 0; i < actions.count; i++) { decode_act(world, index, &actions.list[i]); }
        want_tick(world, index, decode_core_deadline_ns(node->decode));
    } else {
        struct prefill_actions actions;
        prefill->now_ns = world->now_ns;
        status_t st = prefill_core_step(node->prefill, prefill, &actions);
        CHECK(!failed(st));
        for (uint32_t i = 0; i < actions.count; i++) { prefill_act(world, index, &actions.list[i]); }
        want_tick(world, index, prefill_core_deadline_ns(node->prefill));
    }
}

/* Mean rows in the steps of all decode nodes, by buckets of time that grow with the run. */
static void note_rows(struct world *world, uint64_t from_ns, uint64_t rows)
{
    while (world->now_ns >= BUCKETS * world->bucket_ns) {
        for (uint32_t i = 0; i < BUCKETS; i++) {
            double *sum = world->rows_sum;
            sum[i] = 2 * i < BUCKETS ? (sum[2 * i] + sum[2 * i + 1]) / 2 : 0;
        }
        world->bucket_ns *= 2;
    }
    while (from_ns < world->now_ns) {
        uint64_t bucket = from_ns / world->bucket_ns, end_ns = (bucket + 1) * world->bucket_ns;
        if (end_ns > world->now_ns) { end_ns = world->now_ns; }
        world->rows_sum[bucket] += (double)rows * (double)(end_ns - from_ns) / (double)world->bucket_ns;
        from_ns = end_ns;
    }
}

static void step_done(struct world *world, uint32_t index)
{
    struct node *node = &world->nodes[index];
    if (node->decode) { note_rows(world, world->now_ns - node->step_ns, node->step_rows); }
    struct step_result result = {.id = node->plan->id, .samples = node->samples, .compute_ns = node->step_ns};
    for (uint32_t i = 0; i < node->plan->span_count; i++) { result.sample_count += node->plan->spans[i].sample_count; }
    node->plan = NULL;
    node_step(world, index, &(struct decode_event){.kind = DECODE_EV_STEP_DONE, .result = &result},
              &(struct prefill_event){.kind = PREFILL_EV_STEP_DONE, .result = &result});
}

static void router_step(struct world *world, struct router_event *event);

static void submit(struct world *world, uint32_t index)
{
    const struct workload_request *request = &world->workload.requests[index];
    struct sampling_params params = sampling_params_default();
    params.max_tokens = request->output_tokens;
    params.ignore_eos = true;
    params.seed = index + 1;
    workload_prompt(&world->workload, index, VOCAB, world->prompt);
    world->outcomes[index].submit_ns = world->now_ns;
    struct router_event event = {.kind = ROUTER_EV_SUBMIT, .request = index + 1, .prompt = world->prompt,
                                 .prompt_count = request->input_tokens, .params = &params, .deadline_ns = UINT64_MAX};
    router_step(world, &event);
}

static bool is_static(const struct world *world) { return strcmp(world->config.policy, "static") == 0; }

static void open_group(struct world *world)
{
    if (!is_static(world) || world->group_open > 0) { return; }
    uint32_t count = world->waiting_count;
    uint32_t most = world->config.batch_max * world->config.decode;
    if (count > most) { count = most; }
    world->group_open = count;
    for (; count > 0; count--) {
        uint32_t index = world->waiting[world->waiting_first++];
        world->waiting_count--;
        submit(world, index);
    }
}

static void finished(struct world *world, const struct router_action *action)
{
    struct outcome *outcome = &world->outcomes[action->request - 1];
    outcome->is_ok = action->code == ST_OK;
    outcome->cached = action->route.cached_prompt_tokens;
    outcome->prefill_cached = action->route.prefill_cached_tokens;
    world->done_count++;
    world->refused += !outcome->is_ok;
    if (is_static(world)) { world->group_open--; }
}

static void router_step(struct world *world, struct router_event *event)
{
    struct router_actions actions;
    event->now_ns = world->now_ns;
    status_t st = router_core_step(world->router, event, &actions);
    CHECK(!failed(st));
    for (uint32_t i = 0; i < actions.count; i++) {
        const struct router_action *action = &actions.list[i];
        if (action->kind == ROUTER_ACT_SEND) { send(world, EV_TO_NODE, action->node, &action->msg); }
        if (action->kind == ROUTER_ACT_EMIT) {
            struct outcome *outcome = &world->outcomes[action->request - 1];
            if (outcome->tokens++ == 0) { outcome->first_ns = world->now_ns; }
            outcome->last_ns = world->now_ns;
        }
        if (action->kind == ROUTER_ACT_FINISHED) { finished(world, action); }
    }
    uint64_t deadline_ns = router_core_deadline_ns(world->router);
    if (deadline_ns == UINT64_MAX || (world->router_tick_ns > world->now_ns && world->router_tick_ns <= deadline_ns)) { return; }
    world->router_tick_ns = deadline_ns > world->now_ns ? deadline_ns : world->now_ns + 1;
    at(world, world->router_tick_ns, EV_TICK_ROUTER, 0);
}

/* ---- events */

static void transfer_event(struct world *world, const struct event *event)
{
    struct grant *grant = grant_of(world, event->leg);
    if (event->kind == EV_ENDED || event->kind == EV_ACKED) {
        enum prefill_event_kind kind = event->kind == EV_ENDED ? PREFILL_EV_XFER_ENDED : PREFILL_EV_XFER_ACKED;
        node_step(world, event->node, NULL, &(struct prefill_event){.kind = kind, .leg = event->leg, .cable = "modelled"});
        return;
    }
    if (!grant) { return; }
    uint32_t prefill_node = grant->prefill_node;
    if (event->kind == EV_FENCED) {
        grant_drop(world, grant);
        node_step(world, event->node, &(struct decode_event){.kind = DECODE_EV_XFER_FENCED, .leg = event->leg}, NULL);
        if (prefill_node == NODES_MAX) { return; }
        node_step(world, prefill_node, NULL, &(struct prefill_event){.kind = PREFILL_EV_XFER_FAILED, .leg = event->leg,
                                                                     .status = STATUS(ST_CANCELLED, SCOPE_PEER), .message = "revoked"});
        return;
    }
    if (grant->is_revoked) { return; }
    struct ctl_msg msg;
    struct diag diag = {{0}};
    status_t st = ctl_codec_decode(world->codec_in, CTL_FROM_NODE, grant->payload, grant->payload_bytes, &msg, &diag);
    CHECK(!failed(st));
    grant_drop(world, grant);
    node_step(world, event->node, &(struct decode_event){.kind = DECODE_EV_XFER_LANDED, .leg = event->leg,
                                                         .token_count = msg.tokens.count, .tokens = msg.tokens.tokens}, NULL);
    at(world, world->now_ns + MESSAGE_NS, EV_ACKED, prefill_node)->leg = event->leg;
}

static void happen(struct world *world, const struct event *event)
{
    struct ctl_msg msg;
    struct diag diag = {{0}};
    status_t st;
    switch (event->kind) {
    case EV_ARRIVE:
        if (!is_static(world)) { submit(world, event->node); return; }
        world->waiting[world->waiting_first + world->waiting_count++] = event->node;
        return;
    case EV_TO_NODE:
        st = ctl_codec_decode(world->codec_in, CTL_FROM_ROUTER, event->bytes, event->byte_count, &msg, &diag);
        CHECK(!failed(st));
        node_step(world, event->node, &(struct decode_event){.kind = DECODE_EV_MESSAGE, .router = 1, .msg = &msg},
                  &(struct prefill_event){.kind = PREFILL_EV_MESSAGE, .router = 1, .msg = &msg});
        return;
    case EV_TO_ROUTER:
        st = ctl_codec_decode(world->codec_in, CTL_FROM_NODE, event->bytes, event->byte_count, &msg, &diag);
        CHECK(!failed(st));
        router_step(world, &(struct router_event){.kind = ROUTER_EV_MESSAGE, .node = event->node, .msg = &msg});
        return;
    case EV_STEP_DONE: step_done(world, event->node); return;
    case EV_LANDED:
    case EV_ACKED:
    case EV_FENCED:
    case EV_ENDED: transfer_event(world, event); return;
    case EV_TICK_NODE:
        node_step(world, event->node, &(struct decode_event){.kind = DECODE_EV_TICK}, &(struct prefill_event){.kind = PREFILL_EV_TICK});
        return;
    case EV_TICK_ROUTER: router_step(world, &(struct router_event){.kind = ROUTER_EV_TICK}); return;
    }
}

/* ---- the cluster */

static void start_node(struct world *world, uint32_t index)
{
    static const uint32_t no_eos[] = {NO_EOS};
    const struct config *config = &world->config;
    struct node *node = &world->nodes[index];
    struct diag diag = {{0}};
    bool is_prefill = index < config->prefill, has_cache = strcmp(config->prefix_cache, "on") == 0;
    uint32_t block_count = is_prefill ? config->prefill_blocks : config->decode_blocks, context = block_count * config->block_tokens;
    status_t st;
    if (is_prefill) {
        struct prefill_core_config core = {.block_tokens = config->block_tokens, .block_count = block_count, .context_tokens = context,
                                           .vocab_size = VOCAB, .step_rows_max = config->step_rows, .chunk_tokens = config->chunk_tokens,
                                           .jobs_max = 4096, .slot_count = SLOTS_MAX, .eos_count = 1, .eos_tokens = no_eos,
                                           .transfer_stall_ns = 3600 * NS_PER_S, .prefix_cache = has_cache};
        st = prefill_core_create(&core, &node->prefill, &diag);
    } else {
        struct decode_core_config core = {.block_tokens = config->block_tokens, .block_count = block_count, .context_tokens = context,
                                          .vocab_size = VOCAB, .batch_max = config->batch_max, .step_rows_max = config->step_rows,
                                          .chunk_tokens = config->chunk_tokens, .waiting_max = 65536, .legs_max = 65536, .eos_count = 1,
                                          .eos_tokens = no_eos, .lease_ns = 3600 * NS_PER_S, .prefix_cache = has_cache};
        st = decode_core_create(&core, &node->decode, &diag);
    }
    if (failed(st)) {
        fprintf(stderr, "trace_sim: node %u: %s\n", index, diag.text);
        exit(1);
    }
    node->samples = calloc(SLOTS_MAX, sizeof *node->samples);
    CHECK(node->samples != NULL);
    for (uint32_t i = 0; i < SLOTS_MAX; i++) { node->samples[i].token = 7; }
    node_step(world, index, &(struct decode_event){.kind = DECODE_EV_ROUTER_UP, .router = 1},
              &(struct prefill_event){.kind = PREFILL_EV_ROUTER_UP, .router = 1});
    struct ctl_msg hello = {.kind = CTL_NODE_HELLO,
                            .node_hello = {.protocol_version = CTL_PROTOCOL_VERSION, .node_id = index + 1, .boot_epoch = 1,
                                           .role = is_prefill ? NODE_ROLE_PREFILL : NODE_ROLE_DECODE, .node_name = "n", .model_name = "m",
                                           .vocab_size = VOCAB, .context_tokens = context, .block_tokens = config->block_tokens,
                                           .block_count = block_count, .sequences_max = config->batch_max}};
    router_step(world, &(struct router_event){.kind = ROUTER_EV_NODE_UP, .node = index, .msg = &hello});
}

/* A request goes on where an earlier one ended when its prompt begins with all full blocks of that
 * one, at least two. Its turn is one more. */
static void find_turns(struct world *world)
{
    const struct workload *workload = &world->workload;
    uint64_t hash_max = 0;
    for (uint32_t i = 0; i < workload->count; i++) {
        for (uint32_t h = 0; h < workload->requests[i].hash_count; h++) {
            if (workload->requests[i].hashes[h] > hash_max) { hash_max = workload->requests[i].hashes[h]; }
        }
    }
    uint32_t *turn_of_end = calloc(hash_max + 1, sizeof *turn_of_end);
    CHECK(turn_of_end != NULL);
    for (uint32_t i = 0; i < workload->count; i++) {
        const struct workload_request *request = &workload->requests[i];
        uint32_t turn = 1;
        for (uint32_t depth = request->hash_count; depth > 2; depth--) {
            uint32_t before = turn_of_end[request->hashes[depth - 2]];
            if (before == 0) { continue; }
            turn = before + 1;
            break;
        }
        world->outcomes[i].turn = turn;
        uint32_t full = workload->hash_tokens > 0 ? request->input_tokens / workload->hash_tokens : 0;
        if (full < 2 || full > request->hash_count) { continue; }
        uint32_t *end = &turn_of_end[request->hashes[full - 1]];
        if (*end < turn) { *end = turn; }
    }
    free(turn_of_end);
}

/* ---- figures */

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double quantile(double *values, uint32_t count, double q)
{
    if (count == 0) { return 0; }
    qsort(values, count, sizeof *values, by_value);
    return values[(uint32_t)((count - 1) * q)];
}

struct sum { uint32_t count; uint64_t asked, cached, prefill_cached; double *ttft_s; };

static void print_turns(const struct world *world, double *values)
{
    for (uint32_t turn = 1; turn <= TURNS_MAX; turn++) {
        struct sum sum = {.ttft_s = values};
        for (uint32_t i = 0; i < world->workload.count; i++) {
            const struct outcome *outcome = &world->outcomes[i];
            if (!outcome->is_ok || outcome->turn != turn) { continue; }
            sum.asked += world->workload.requests[i].input_tokens;
            sum.cached += outcome->cached;
            sum.prefill_cached += outcome->prefill_cached;
            sum.ttft_s[sum.count++] = (double)(outcome->first_ns - outcome->arrival_ns) / 1e9;
        }
        if (sum.count == 0) { continue; }
        printf("{\"bench\": \"trace_turn\", \"prefix_cache\": \"%s\", \"turn\": %u, \"requests\": %u, \"prompt_tokens\": %.0f, "
               "\"hit_rate_decode\": %.4f, \"hit_rate_prefill\": %.4f, \"ttft_s_p50\": %.3f, \"ttft_s_p90\": %.3f}\n",
               world->config.prefix_cache, turn, sum.count, (double)sum.asked / sum.count, (double)sum.cached / (double)sum.asked,
               (double)sum.prefill_cached / (double)sum.asked, quantile(values, sum.count, 0.5), quantile(values, sum.count, 0.9));
    }
}

static void print_rows(const struct world *world)
{
    uint32_t used = (uint32_t)(world->now_ns / world->bucket_ns) + 1;
    printf("{\"bench\": \"trace_rows\", \"policy\": \"%s\", \"batch_max\": %u, \"decode_nodes\": %u, \"bucket_s\": %.3f, \"rows\": [",
           world->config.policy, world->config.batch_max, world->config.decode, (double)world->bucket_ns / 1e9);
    for (uint32_t i = 0; i < used && i < BUCKETS; i++) { printf("%s%.2f", i > 0 ? ", " : "", world->rows_sum[i]); }
    printf("]}\n");
}

static void print_all(struct world *world)
{
    const struct config *config = &world->config;
    double *ttft = malloc(world->workload.count * sizeof *ttft), *tpot = malloc(world->workload.count * sizeof *tpot);
    CHECK(ttft != NULL);
    CHECK(tpot != NULL);
    uint32_t ok = 0, many = 0, good = 0;
    uint64_t asked = 0, cached = 0, prefill_cached = 0, tokens = 0, first_ns = UINT64_MAX, last_ns = 0;
    for (uint32_t i = 0; i < world->workload.count; i++) {
        const struct outcome *outcome = &world->outcomes[i];
        if (!outcome->is_ok) { continue; }
        asked += world->workload.requests[i].input_tokens;
        cached += outcome->cached;
        prefill_cached += outcome->prefill_cached;
        tokens += outcome->tokens;
        if (outcome->arrival_ns < first_ns) { first_ns = outcome->arrival_ns; }
        if (outcome->last_ns > last_ns) { last_ns = outcome->last_ns; }
        double wait_s = (double)(outcome->first_ns - outcome->arrival_ns) / 1e9, each_ms = 0;
        ttft[ok++] = wait_s;
        if (outcome->tokens > 1) { each_ms = tpot[many++] = (double)(outcome->last_ns - outcome->first_ns) / 1e6 / (outcome->tokens - 1); }
        good += wait_s <= (double)config->ttft_limit_s && each_ms <= (double)config->tpot_limit_ms;
    }
    double seconds = (double)(last_ns - first_ns) / 1e9;
    uint64_t prefill_rows = 0, prefill_busy_ns = 0, decode_rows = 0, decode_steps = 0, decode_busy_ns = 0, preemptions = 0;
    for (uint32_t n = 0; n < world->node_count; n++) {
        struct node *node = &world->nodes[n];
        if (node->prefill) { prefill_rows += node->rows; prefill_busy_ns += node->busy_ns; continue; }
        decode_rows += node->rows;
        decode_steps += node->steps;
        decode_busy_ns += node->busy_ns;
        preemptions += decode_core_stats(node->decode).preemptions;
    }
    printf("{\"bench\": \"trace\", \"policy\": \"%s\", \"prefix_cache\": \"%s\", \"requests\": %u, \"ok\": %u, \"refused\": %u, \"prefill_nodes\": %u, "
           "\"decode_nodes\": %u, \"batch_max\": %u, \"seconds\": %.1f, \"prompt_tokens\": %llu, \"hit_rate_decode\": %.4f, \"hit_rate_prefill\": %.4f, "
           "\"rows_prefill\": %llu, \"rows_decode\": %llu, \"output_tokens\": %llu, \"output_tokens_per_s\": %.1f, \"rows_per_decode_step\": %.2f, "
           "\"busy_prefill\": %.3f, \"busy_decode\": %.3f, \"wire_gb\": %.1f, \"preemptions\": %llu, ",
           config->policy, config->prefix_cache, world->workload.count, ok, world->refused, config->prefill, config->decode, config->batch_max,
           seconds, (unsigned long long)asked, asked ? (double)cached / (double)asked : 0, asked ? (double)prefill_cached / (double)asked : 0,
           (unsigned long long)prefill_rows, (unsigned long long)decode_rows, (unsigned long long)tokens, (double)tokens / seconds,
           decode_steps ? (double)decode_rows / (double)decode_steps : 0, config->prefill ? (double)prefill_busy_ns / 1e9 / seconds / config->prefill : 0,
           (double)decode_busy_ns / 1e9 / seconds / config->decode, (double)world->wire_bytes / 1e9, (unsigned long long)preemptions);
    printf("\"ttft_s_p50\": %.3f, \"ttft_s_p90\": %.3f, \"ttft_s_p99\": %.3f, \"tpot_ms_p50\": %.2f, \"tpot_ms_p99\": %.2f, \"good_share\": %.4f}\n",
           quantile(ttft, ok, 0.5), quantile(ttft, ok, 0.9), quantile(ttft, ok, 0.99), quantile(tpot, many, 0.5), quantile(tpot, many, 0.99),
           (double)good / world->workload.count);
    print_turns(world, ttft);
    print_rows(world);
    free(ttft);
    free(tpot);
}

static void prepare(struct world *world)
{
    const struct config *config = &world->config;
    struct diag diag = {{0}};
    uint32_t least = config->prefill > 0 && config->prefill_blocks < config->decode_blocks ? config->prefill_blocks : config->decode_blocks;
    status_t st = workload_read_trace(config->trace, (double)config->length_scale, (double)config->time_scale, config->requests,
                                      (least - 1) * config->block_tokens / 2, 1, &world->workload, &diag);
    if (failed(st)) {
        fprintf(stderr, "trace_sim: %s\n", diag.text);
        exit(1);
    }
    uint32_t count = world->workload.count;
    world->outcomes = calloc(count, sizeof *world->outcomes);
    world->waiting = calloc(2 * (size_t)count, sizeof *world->waiting);
    world->prompt = calloc((size_t)least * config->block_tokens, sizeof *world->prompt);
    CHECK(world->outcomes != NULL);
    CHECK(world->waiting != NULL);
    CHECK(world->prompt != NULL);
    find_turns(world);
    world->bucket_ns = 50 * NS_PER_MS;
    st = ctl_codec_create(16u << 20, &world->codec_out);
    CHECK(!failed(st));
    st = ctl_codec_create(16u << 20, &world->codec_in);
    CHECK(!failed(st));
    struct router_core_config router = {.router_boot_id = 1, .requests_max = count + 1, .sequences_max = count + SAMPLING_N_MAX,
                                        .nodes_max = NODES_MAX, .reserve_wait_ns = 36000 * NS_PER_S, .resume_wait_ns = 36000 * NS_PER_S,
                                        .suspect_ttl_ns = NS_PER_S,
                                        .guess_blocks_max = strcmp(config->prefix_cache, "on") == 0 ? 1u << 20 : 0};
    st = router_core_create(&router, &world->router, &diag);
    CHECK(!failed(st));
    world->node_count = config->prefill + config->decode;
    for (uint32_t i = 0; i < world->node_count; i++) { start_node(world, i); }
    for (uint32_t i = 0; i < count; i++) {
        world->outcomes[i].arrival_ns = NS_PER_S + world->workload.requests[i].at_ns;
        at(world, world->outcomes[i].arrival_ns, EV_ARRIVE, i);
    }
}

int main(int argc, char **argv)
{
    static struct world world = {.heap = {.event_bytes = sizeof(struct event)}};
    struct diag diag = {{0}};
    bool wants_help = false;
    status_t st = flags_parse(flags, sizeof flags / sizeof flags[0], &world.config, argc, argv, NULL, NULL, &wants_help, &diag);
    if (!failed(st) && !wants_help && world.config.trace == NULL) {
        diag_set(&diag, "--trace: needed");
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    if (failed(st)) {
        fprintf(stderr, "trace_sim: %s\n", diag.text);
        return 2;
    }
    if (wants_help) {
        flags_print_help(flags, sizeof flags / sizeof flags[0], "trace_sim --trace=FILE ...", stdout);
        return 0;
    }
    prepare(&world);
    struct event event;
    while (world.heap.count > 0 && world.done_count < world.workload.count) {
        event_heap_take(&world.heap, &event);
        world.now_ns = event.at_ns;
        happen(&world, &event);
        open_group(&world);
        free(event.bytes);
    }
    print_all(&world);
    for (uint32_t i = 0; i < world.node_count; i++) {
        decode_core_destroy(world.nodes[i].decode);
        prefill_core_destroy(world.nodes[i].prefill);
        free(world.nodes[i].samples);
    }
    while (world.heap.count > 0) {
        event_heap_take(&world.heap, &event);
        free(event.bytes);
    }
    while (world.grant_count > 0) { grant_drop(&world, &world.grants[0]); }
    router_core_destroy(world.router);
    ctl_codec_destroy(world.codec_in);
    ctl_codec_destroy(world.codec_out);
    workload_fini(&world.workload);
    free(world.grants);
    event_heap_fini(&world.heap);
    free(world.outcomes);
    free(world.waiting);
    free(world.prompt);
    return 0;
}
