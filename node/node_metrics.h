/* node_metrics: a node's numbers for Prometheus, under the names this field already scrapes.
 * Flow:    core thread (publish) -> [node_metrics] -> /metrics
 * Thread:  publish on the core thread; a scrape on the HTTP server's.
 * Memory:  a fixed set of metrics.
 *
 * vllm:* are the names that autoscalers and inference gateways read of every engine; baton_*
 * are ours. Counts conserve: free + held + cached + quarantined == total blocks. */
#ifndef BATON_NODE_NODE_METRICS_H
#define BATON_NODE_NODE_METRICS_H

#include <stdbool.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"
#include "node/node.h"

struct node_metrics;

struct node_metrics_config {
    const char *listen;       /* NULL: count, but serve no HTTP */
    const char *role;
    const char *model_name;
    struct kv_endpoint *endpoint; /* holds until destroy */
    struct tier_service *tiers;   /* holds until destroy; NULL: their rows stay 0 */
    uint32_t block_tokens, block_count;
};

NODISCARD status_t node_metrics_create(const struct node_metrics_config *config, struct node_metrics **ret_metrics,
                                       struct diag *diag);
void node_metrics_destroy(struct node_metrics *metrics); /* takes NULL */

void node_metrics_publish(struct node_metrics *metrics, const struct ctl_load *load, const struct node_totals *totals);
void node_metrics_set_ready(struct node_metrics *metrics, bool is_ready);

#endif
