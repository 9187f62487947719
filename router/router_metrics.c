#include "router/router_metrics.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/metrics_http.h"
#include "base/net_address.h"

#define NODES_SHOWN_MAX 512u
#define CODE_COUNT 17u

enum node_gauge {
    NODE_ATTACHED,
    NODE_BLOCKS_TOTAL,
    NODE_BLOCKS_FREE,
    NODE_RUNNING,
    NODE_WAITING,
    NODE_TOKENS_QUEUED,
    NODE_GAUGE_COUNT
};

struct node_gauges {
    char name[128];
    bool is_prefill;
    struct gauge *gauges[NODE_GAUGE_COUNT];
};

struct router_metrics {
    struct metrics *registry;
    struct metrics_http *http;
    _Atomic bool is_ready;
    struct histogram *ttft, *itl, *e2e;
    struct histogram *queue, *prefill, *decode, *inference, *tpot, *transfer;
    struct histogram *request_prompt, *request_generation, *request_max;
    struct counter *prompt_tokens, *generation_tokens;
    struct counter *success[ROUTER_END_COUNT];
    struct counter *refused[CODE_COUNT];
    struct gauge *running, *waiting;
    struct counter *accepted, *finished, *failed, *cancelled, *resumed, *late, *duplicates;
    struct counter *cache_asked, *cache_guessed, *cache_found;
    struct gauge *live, *prefill_nodes, *decode_nodes, *backlog, *headroom;
    uint32_t node_count;
    struct node_gauges nodes[NODES_SHOWN_MAX];
};

static const double ttft_bounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
                                     160, 640, 2560};
static const double itl_bounds[] = {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
static const double e2e_bounds[] = {.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
/* vLLM's nixl_xfer_time_seconds. */
static const double transfer_bounds[] = {.005, .01, .025, .05, .075, .1, .2, .3, .5, .75, 1, 5};
static const double token_bounds[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6};

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static status_t add_vllm(struct router_metrics *metrics, const char *model, struct diag *diag)
{
    struct metrics *registry = metrics->registry;
    metric_labels_t labels = METRIC_LABELS("model_name", model);
    const struct {
        const char *name, *help;
        const double *bounds;
        size_t bound_count;
        struct histogram **ret;
    } histograms[] = {
        {"vllm:time_to_first_token_seconds", "From arrival to the first token.", ttft_bounds, COUNT_OF(ttft_bounds),
         &metrics->ttft},
        {"vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", itl_bounds, COUNT_OF(itl_bounds),
         &metrics->itl},
        {"vllm:e2e_request_latency_seconds", "From arrival to the last token.", e2e_bounds, COUNT_OF(e2e_bounds),
         &metrics->e2e},
        {"vllm:request_queue_time_seconds", "From arrival until a prefill node computes the first chunk.", e2e_bounds,
         COUNT_OF(e2e_bounds), &metrics->queue},
        {"vllm:request_prefill_time_seconds", "First chunk to first token, on a prefill node.", e2e_bounds,
         COUNT_OF(e2e_bounds), &metrics->prefill},
        {"vllm:request_decode_time_seconds", "From the first token to the last.", e2e_bounds, COUNT_OF(e2e_bounds),
         &metrics->decode},
        {"vllm:request_inference_time_seconds", "Prefill and decode, without the queue.", e2e_bounds,
         COUNT_OF(e2e_bounds), &metrics->inference},
        {"vllm:request_time_per_output_token_seconds", "A request's mean time between tokens of a sequence.",
         itl_bounds, COUNT_OF(itl_bounds), &metrics->tpot},
        {"vllm:request_prompt_tokens", "Prompt tokens of a request.", token_bounds, COUNT_OF(token_bounds),
         &metrics->request_prompt},
        {"vllm:request_generation_tokens", "Tokens generated for a request.", token_bounds, COUNT_OF(token_bounds),
         &metrics->request_generation},
        {"vllm:request_params_max_tokens", "max_tokens of a request.", token_bounds, COUNT_OF(token_bounds),
         &metrics->request_max},
        {"baton_kv_transfer_seconds", "A prompt's KV: first push to acknowledgement.", transfer_bounds,
         COUNT_OF(transfer_bounds), &metrics->transfer},
    };
    for (size_t i = 0; i < COUNT_OF(histograms); i++) {
        TRY(metrics_add_histogram(registry, histograms[i].name, histograms[i].help, labels, histograms[i].bounds,
                                  histograms[i].bound_count, histograms[i].ret, diag));
    }
    TRY(metrics_add_counter(registry, "vllm:prompt_tokens_total", "Prompt tokens of accepted requests.", labels,
                            &metrics->prompt_tokens, diag));
    TRY(metrics_add_counter(registry, "vllm:generation_tokens_total", "Tokens generated.", labels,
                            &metrics->generation_tokens, diag));
    TRY(metrics_add_gauge(registry, "vllm:num_requests_running", "Requests that have their first token.", labels,
                          &metrics->running, diag));
    TRY(metrics_add_gauge(registry, "vllm:num_requests_waiting", "Accepted requests without a first token.", labels,
                          &metrics->waiting, diag));
    static const char *const ends[ROUTER_END_COUNT] = {"stop", "length", "abort", "error"};
    for (unsigned i = 0; i < ROUTER_END_COUNT; i++) {
        TRY(metrics_add_counter(registry, "vllm:request_success_total", "Requests that ended, by reason.",
                                METRIC_LABELS("model_name", model, "finished_reason", ends[i]), &metrics->success[i], diag));
    }
    return STATUS_OK;
}

static status_t add_own(struct router_metrics *metrics, struct diag *diag)
{
    struct metrics *registry = metrics->registry;
    const struct {
        const char *name, *help;
        struct counter **ret;
    } counters[] = {
        {"baton_router_requests_accepted_total", "accepted == finished + failed + cancelled + live.", &metrics->accepted},
        {"baton_router_requests_finished_total", "Requests answered in full.", &metrics->finished},
        {"baton_router_requests_failed_total", "Accepted requests that ended with an error.", &metrics->failed},
        {"baton_router_requests_cancelled_total", "Requests whose client left.", &metrics->cancelled},
        {"baton_router_legs_resumed_total", "Legs cut again after a death or a failure.", &metrics->resumed},
        {"baton_router_cache_tokens_asked_total", "Tokens of placed legs, resumed ones with their output.",
         &metrics->cache_asked},
        {"baton_router_cache_tokens_guessed_total", "Of those, believed to be in the decode node's cache.",
         &metrics->cache_guessed},
        {"baton_router_cache_tokens_found_total", "Of those, found in the decode node's cache.", &metrics->cache_found},
        {"baton_router_late_messages_total", "Node messages about legs that are over.", &metrics->late},
        {"baton_router_duplicate_tokens_total", "Tokens that came twice and were shown once.", &metrics->duplicates},
    };
    for (size_t i = 0; i < COUNT_OF(counters); i++) {
        TRY(metrics_add_counter(registry, counters[i].name, counters[i].help, NULL, counters[i].ret, diag));
    }
    const struct {
        const char *name, *help;
        struct gauge **ret;
    } gauges[] = {
        {"baton_router_requests_live", "Accepted requests that are not over.", &metrics->live},
        {"baton_router_prefill_nodes", "Prefill nodes attached.", &metrics->prefill_nodes},
        {"baton_router_decode_nodes", "Decode nodes attached.", &metrics->decode_nodes},
        {"baton_router_prefill_backlog_seconds", "Prompt tokens queued on prefill nodes over their measured rate.", &metrics->backlog},
        {"baton_router_decode_kv_headroom", "Free share of the decode nodes' KV blocks.", &metrics->headroom},
    };
    for (size_t i = 0; i < COUNT_OF(gauges); i++) {
        TRY(metrics_add_gauge(registry, gauges[i].name, gauges[i].help, NULL, gauges[i].ret, diag));
    }
    for (uint8_t code = 1; code < CODE_COUNT; code++) {
        TRY(metrics_add_counter(registry, "baton_router_requests_refused_total", "Requests refused before any work, by code.",
                                METRIC_LABELS("code", status_code_name(code)), &metrics->refused[code], diag));
    }
    return STATUS_OK;
}

static bool is_ready(void *user)
{
    struct router_metrics *metrics = user;
    return atomic_load(&metrics->is_ready);
}

static status_t serve(struct router_metrics *metrics, const char *listen, struct diag *diag)
{
    char host[NET_HOST_CHARS_MAX + 1];
    uint16_t port;
    status_t st = net_address_split(listen, host, &port, diag);
    if (!failed(st)) {
        struct metrics_http_config http = {.address = host, .port = port, .is_ready = is_ready, .user = metrics};
        st = metrics_http_create(metrics->registry, &http, &metrics->http, diag);
    }
    if (failed(st)) { diag_prefix(diag, "--metrics-listen=%s", listen); }
    return st;
}

status_t router_metrics_create(const struct router_metrics_config *config, struct router_metrics **ret_metrics,
                               struct diag *diag)
{
    struct router_metrics *metrics = calloc(1, sizeof *metrics);
    if (!metrics) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    status_t st = metrics_create(&metrics->registry);
    if (failed(st)) { goto fail; }
    st = add_vllm(metrics, config->model_name, diag);
    if (failed(st)) { goto fail; }
    st = add_own(metrics, diag);
    if (failed(st)) { goto fail; }
    if (config->listen) { st = serve(metrics, config->listen, diag); }
    if (failed(st)) { goto fail; }
    *ret_metrics = metrics;
    return STATUS_OK;
fail:
    router_metrics_destroy(metrics);
    return st;
}

void router_metrics_destroy(struct router_metrics *metrics)
{
    if (!metrics) { return; }
    metrics_http_destroy(metrics->http);
    metrics_destroy(metrics->registry);
    free(metrics);
}

void router_metrics_set_ready(struct router_metrics *metrics, bool ready) { atomic_store(&metrics->is_ready, ready); }

static double seconds(uint64_t ns) { return (double)ns / (double)NS_PER_S; }

void router_metrics_first_token(struct router_metrics *metrics, uint64_t ttft_ns)
{
    histogram_observe(metrics->ttft, seconds(ttft_ns));
}

void router_metrics_token_gap(struct router_metrics *metrics, uint64_t gap_ns)
{
    histogram_observe(metrics->itl, seconds(gap_ns));
}

void router_metrics_tokens(struct router_metrics *metrics, uint32_t prompt_tokens, uint32_t generated_tokens)
{
    if (prompt_tokens > 0) { counter_add(metrics->prompt_tokens, prompt_tokens); }
    if (generated_tokens > 0) { counter_add(metrics->generation_tokens, generated_tokens); }
}

/* Clocks are not compared across processes: the prefill node says how long it computed, and
 * the queue is what is left of our own time to the first token. */
static void observe_phases(struct router_metrics *metrics, const struct router_metrics_request *request)
{
    uint64_t decode_ns = request->e2e_ns - request->ttft_ns;
    histogram_observe(metrics->decode, seconds(decode_ns));
    if (request->generation_tokens > request->sequence_count) {
        uint32_t gaps = request->generation_tokens - request->sequence_count;
        histogram_observe(metrics->tpot, seconds(decode_ns) * request->sequence_count / gaps);
    }
    if (request->prefill_compute_ns == 0 || request->prefill_compute_ns > request->ttft_ns) { return; }
    histogram_observe(metrics->queue, seconds(request->ttft_ns - request->prefill_compute_ns));
    histogram_observe(metrics->prefill, seconds(request->prefill_compute_ns));
    histogram_observe(metrics->inference, seconds(request->prefill_compute_ns + decode_ns));
}

void router_metrics_end(struct router_metrics *metrics, const struct router_metrics_request *request)
{
    counter_add(metrics->success[request->end], 1);
    if (request->transfer_ns > 0) { histogram_observe(metrics->transfer, seconds(request->transfer_ns)); }
    if (request->end != ROUTER_END_STOP && request->end != ROUTER_END_LENGTH) { return; }
    histogram_observe(metrics->e2e, seconds(request->e2e_ns));
    histogram_observe(metrics->request_prompt, request->prompt_tokens);
    histogram_observe(metrics->request_generation, request->generation_tokens);
    histogram_observe(metrics->request_max, request->max_tokens);
    if (request->ttft_ns > 0 && request->e2e_ns >= request->ttft_ns) { observe_phases(metrics, request); }
}

void router_metrics_refused(struct router_metrics *metrics, uint8_t code)
{
    if (code > 0 && code < CODE_COUNT) { counter_add(metrics->refused[code], 1); }
}

/* The core keeps totals; a counter only grows, and the core thread alone moves it. */
static void follow(struct counter *counter, uint64_t total)
{
    uint64_t known = counter_value(counter);
    if (total > known) { counter_add(counter, total - known); }
}

void router_metrics_publish(struct router_metrics *metrics, const struct router_gauges *gauges)
{
    const struct router_core_stats *stats = &gauges->stats;
    follow(metrics->accepted, stats->accepted);
    follow(metrics->finished, stats->finished);
    follow(metrics->failed, stats->failed);
    follow(metrics->cancelled, stats->cancelled);
    follow(metrics->resumed, stats->resumed_legs);
    follow(metrics->late, stats->late_messages);
    follow(metrics->cache_asked, stats->cache_tokens_asked);
    follow(metrics->cache_guessed, stats->cache_tokens_guessed);
    follow(metrics->cache_found, stats->cache_tokens_found);
    follow(metrics->duplicates, stats->duplicate_tokens);
    gauge_set(metrics->live, stats->live);
    gauge_set(metrics->prefill_nodes, stats->nodes_prefill);
    gauge_set(metrics->decode_nodes, stats->nodes_decode);
    gauge_set(metrics->running, gauges->running);
    gauge_set(metrics->waiting, gauges->waiting);
    gauge_set(metrics->backlog, gauges->prefill_backlog_s);
    gauge_set(metrics->headroom, gauges->decode_kv_headroom);
}

static struct node_gauges *node_gauges(struct router_metrics *metrics, const char *name, bool is_prefill)
{
    for (uint32_t i = 0; i < metrics->node_count; i++) {
        struct node_gauges *node = &metrics->nodes[i];
        if (node->is_prefill == is_prefill && strcmp(node->name, name) == 0) { return node; }
    }
    if (metrics->node_count == NODES_SHOWN_MAX) { return NULL; }
    static const struct {
        const char *name, *help;
    } names[NODE_GAUGE_COUNT] = {
        [NODE_ATTACHED] = {"baton_router_node_attached", "1 while the node's Attach stream is up."},
        [NODE_BLOCKS_TOTAL] = {"baton_router_node_blocks_total", "KV blocks of the node."},
        [NODE_BLOCKS_FREE] = {"baton_router_node_blocks_free", "KV blocks that are free or only cached."},
        [NODE_RUNNING] = {"baton_router_node_sequences_running", "Sequences or jobs in its batch."},
        [NODE_WAITING] = {"baton_router_node_sequences_waiting", "Sequences or jobs that wait there."},
        [NODE_TOKENS_QUEUED] = {"baton_router_node_tokens_queued", "Prompt tokens still to be computed there."},
    };
    struct node_gauges *node = &metrics->nodes[metrics->node_count];
    snprintf(node->name, sizeof node->name, "%s", name);
    node->is_prefill = is_prefill;
    for (unsigned i = 0; i < NODE_GAUGE_COUNT; i++) {
        status_t st = metrics_add_gauge(metrics->registry, names[i].name, names[i].help,
                                        METRIC_LABELS("node", node->name, "role", is_prefill ? "prefill" : "decode"),
                                        &node->gauges[i], NULL);
        if (failed(st)) { return NULL; }
    }
    metrics->node_count++;
    return node;
}

void router_metrics_node(struct router_metrics *metrics, const char *name, bool is_prefill, const struct ctl_load *load)
{
    struct node_gauges *node = node_gauges(metrics, name, is_prefill);
    if (!node) { return; }
    const struct ctl_load none = {0};
    const struct ctl_load *from = load ? load : &none;
    gauge_set(node->gauges[NODE_ATTACHED], load ? 1 : 0);
    gauge_set(node->gauges[NODE_BLOCKS_TOTAL], from->blocks_total);
    gauge_set(node->gauges[NODE_BLOCKS_FREE], (double)from->blocks_free + from->blocks_cached);
    gauge_set(node->gauges[NODE_RUNNING], from->sequences_running);
    gauge_set(node->gauges[NODE_WAITING], from->sequences_waiting);
    gauge_set(node->gauges[NODE_TOKENS_QUEUED], (double)from->tokens_queued);
}

struct metrics *router_metrics_registry(struct router_metrics *metrics) { return metrics->registry; }
