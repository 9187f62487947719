/* baton status: the router and its nodes, now. */
#include <inttypes.h>
#include <stdio.h>

#include <jansson.h>

#include "base/clock.h"
#include "client/connect_flags.h"
#include "proto/baton/v1/inference.pb-c.h"

struct status_config {
    struct connect_flags connect;
    uint64_t timeout_ns;
    bool json;
};

static const struct flag status_flags[] = {
    CONNECT_FLAGS(offsetof(struct status_config, connect)),
    {"timeout", FLAG_DURATION, offsetof(struct status_config, timeout_ns), "5s", "TIME", "Longest wait for the router.", 0, 0},
    {"json", FLAG_BOOL, offsetof(struct status_config, json), NULL, NULL, "One JSON object.", 0, 0},
};

static json_t *node_json(const Baton__V1__NodeStatus *node)
{
    return json_pack("{s:s, s:s, s:s, s:b, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:i, s:b, s:I, s:I, s:I}", "name", node->name,
                     "address", node->address, "role", node->role, "attached", node->attached, "problem", node->problem,
                     "blocks_total", (int)node->blocks_total, "blocks_free", (int)node->blocks_free, "blocks_held",
                     (int)node->blocks_held, "blocks_cached", (int)node->blocks_cached, "blocks_quarantined",
                     (int)node->blocks_quarantined, "sequences_running", (int)node->sequences_running,
                     "sequences_waiting", (int)node->sequences_waiting, "tokens_queued", (json_int_t)node->tokens_queued,
                     "tokens_per_s", (int)node->tokens_per_s, "draining", node->draining, "boot_epoch",
                     (json_int_t)node->boot_epoch, "cache_tokens_asked", (json_int_t)node->cache_tokens_asked,
                     "cache_tokens_found", (json_int_t)node->cache_tokens_found);
}

static void print_json(const Baton__V1__GetStatusResponse *status)
{
    json_t *nodes = json_array();
    for (size_t i = 0; i < status->n_nodes; i++) { json_array_append_new(nodes, node_json(status->nodes[i])); }
    json_t *object = json_pack(
        "{s:s, s:b, s:b, s:f, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "version", status->version, "ready",
        status->ready, "draining", status->draining, "uptime_s", status->uptime_s, "requests_live",
        (int)status->requests_live, "requests_waiting", (int)status->requests_waiting, "requests_accepted",
        (json_int_t)status->requests_accepted, "requests_finished", (json_int_t)status->requests_finished,
        "requests_failed", (json_int_t)status->requests_failed, "requests_cancelled",
        (json_int_t)status->requests_cancelled, "requests_refused", (json_int_t)status->requests_refused,
        "legs_resumed", (json_int_t)status->legs_resumed, "nodes", nodes);
    json_dumpf(object, stdout, JSON_INDENT(2));
    fputc('\n', stdout);
    json_decref(object);
}

static void print_text(const Baton__V1__GetStatusResponse *status)
{
    printf("router     %s, up %.0f s%s\n", status->ready ? "ready" : "not ready: no decode node is attached",
           status->uptime_s, status->draining ? ", draining" : "");
    printf("requests   %u live (%u waiting), %" PRIu64 " finished, %" PRIu64 " failed, %" PRIu64 " cancelled, %" PRIu64
           " refused, %" PRIu64 " resumed\n", status->requests_live, status->requests_waiting, status->requests_finished,
           status->requests_failed, status->requests_cancelled, status->requests_refused, status->legs_resumed);
    printf("%-8s %-32s %-22s %9s %9s %9s %7s %7s %7s %s\n", "role", "name", "address", "blocks", "free", "cached", "hits",
           "running", "waiting", "state");
    for (size_t i = 0; i < status->n_nodes; i++) {
        const Baton__V1__NodeStatus *node = status->nodes[i];
        char hits[16] = "-"; /* of the prompt tokens that were looked for; none yet: no rate */
        if (node->cache_tokens_asked > 0) {
            snprintf(hits, sizeof hits, "%.0f%%", 100.0 * (double)node->cache_tokens_found / (double)node->cache_tokens_asked);
        }
        printf("%-8s %-32s %-22s %9u %9u %9u %7s %7u %7u %s%s%s\n", node->role, node->name, node->address, node->blocks_total,
               node->blocks_free, node->blocks_cached, hits, node->sequences_running, node->sequences_waiting,
               node->draining ? "draining" : node->attached ? "attached" : "away", node->problem[0] ? ": " : "",
               node->problem);
    }
}

int command_status(int argc, char **argv)
{
    struct status_config config;
    int exit_status;
    if (!command_flags(status_flags, sizeof status_flags / sizeof status_flags[0], "baton status --router=H:P [--json]",
                       &config, argc, argv, &exit_status)) {
        return exit_status;
    }
    struct diag diag = {{0}};
    struct api *api = NULL;
    Baton__V1__GetStatusRequest request = BATON__V1__GET_STATUS_REQUEST__INIT;
    ProtobufCMessage *message = NULL;
    status_t st = connect_open(&config.connect, &api, &diag);
    if (!failed(st)) {
        st = api_unary(api, "/baton.v1.Inference/GetStatus", &request.base, &baton__v1__get_status_response__descriptor,
                       config.timeout_ns, &message, &diag);
    }
    api_close(api);
    if (failed(st)) { return command_fail("status", st, &diag); }
    const Baton__V1__GetStatusResponse *status = (const Baton__V1__GetStatusResponse *)message;
    if (config.json) { print_json(status); } else { print_text(status); }
    protobuf_c_message_free_unpacked(message, NULL);
    return 0;
}
