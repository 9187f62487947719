/* router_metrics: what the router tells Prometheus, under the names this field scrapes.
 * Flow:    router_server -> [router_metrics] -> base/metrics -> /metrics
 * Thread:  updates on the core thread; a scrape on the HTTP server's.
 * Memory:  registered at create; per node once, when it is first attached.
 *
 * Source of the vllm: names and buckets: vLLM's docs/design/metrics.md. */
#ifndef BATON_ROUTER_ROUTER_METRICS_H
#define BATON_ROUTER_ROUTER_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/metrics.h"
#include "router/router_core.h"

struct router_metrics;

struct router_metrics_config {
    const char *listen;     /* "host:port"; NULL: nothing is served, everything is counted */
    const char *model_name; /* label of every vllm: metric */
};

/* Errors  INVALID_ARGUMENT (node), UNAVAILABLE (node): the address; diag names it. */
NODISCARD status_t router_metrics_create(const struct router_metrics_config *config, struct router_metrics **ret_metrics,
                                         struct diag *diag);
void router_metrics_destroy(struct router_metrics *metrics); /* takes NULL */

/* /readyz. Any thread. */
void router_metrics_set_ready(struct router_metrics *metrics, bool is_ready);

void router_metrics_first_token(struct router_metrics *metrics, uint64_t ttft_ns);
void router_metrics_token_gap(struct router_metrics *metrics, uint64_t gap_ns);
void router_metrics_tokens(struct router_metrics *metrics, uint32_t prompt_tokens, uint32_t generated_tokens);

enum router_end { ROUTER_END_STOP, ROUTER_END_LENGTH, ROUTER_END_ABORT, ROUTER_END_ERROR, ROUTER_END_COUNT };

/* One request, when it is over. Histograms take only those that were answered in full (STOP,
 * LENGTH): what was given up says nothing about how long an answer takes. */
struct router_metrics_request {
    enum router_end end;
    uint64_t e2e_ns, ttft_ns;    /* from arrival; ttft_ns 0: no token */
    uint64_t prefill_compute_ns; /* first chunk to first token on a prefill node; 0: not known, it was
                                  * computed where it is decoded, or more than once */
    uint64_t transfer_ns;        /* 0: no KV moved */
    uint32_t prompt_tokens, generation_tokens, max_tokens, sequence_count;
};
void router_metrics_end(struct router_metrics *metrics, const struct router_metrics_request *request);
void router_metrics_refused(struct router_metrics *metrics, uint8_t code);

struct router_gauges {
    struct router_core_stats stats;
    uint32_t running, waiting; /* accepted requests with and without a first token */
    double prefill_backlog_s;  /* prompt tokens queued over the measured rate, all prefill nodes */
    double decode_kv_headroom; /* free share of all decode blocks, 0 .. 1 */
};
void router_metrics_publish(struct router_metrics *metrics, const struct router_gauges *gauges);

/* load  NULL: not attached. Nodes past the 512th name are not shown. */
void router_metrics_node(struct router_metrics *metrics, const char *name, bool is_prefill, const struct ctl_load *load);

/* The registry, for tests. */
struct metrics *router_metrics_registry(struct router_metrics *metrics);

#endif
