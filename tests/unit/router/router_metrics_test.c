/* Claim: a scrape finds the names that this field's tools look for, with the values that the
 * router counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/router_metrics.h"

static void expect(struct router_metrics *metrics, const char *line)
{
    char *text;
    size_t len;
    assert_false(failed(metrics_render(router_metrics_registry(metrics), &text, &len)));
    if (!strstr(text, line)) { fail_msg("no \"%s\" in:\n%s", line, text); }
    free(text);
}

static struct router_metrics *create(void)
{
    struct router_metrics_config config = {.model_name = "m"};
    struct router_metrics *metrics;
    struct diag diag = {{0}};
    status_t st = router_metrics_create(&config, &metrics, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    return metrics;
}

/* An address that cannot be is an error that names the flag. */
static void a_bad_address_names_the_flag(void **state)
{
    (void)state;
    struct router_metrics_config config = {.model_name = "m", .listen = "nowhere"};
    struct router_metrics *metrics;
    struct diag diag = {{0}};
    assert_true(failed(router_metrics_create(&config, &metrics, &diag)));
    assert_non_null(strstr(diag.text, "--metrics-listen=nowhere"));
}

/* Names and labels of requests. */
static void requests_are_counted(void **state)
{
    (void)state;
    struct router_metrics *metrics = create();
    router_metrics_first_token(metrics, UINT64_C(3000000));
    router_metrics_token_gap(metrics, UINT64_C(30000000));
    router_metrics_tokens(metrics, 7, 2);
    router_metrics_end(metrics, ROUTER_END_LENGTH, UINT64_C(400000000));
    router_metrics_end(metrics, ROUTER_END_ABORT, UINT64_C(400000000));
    router_metrics_refused(metrics, ST_RESOURCE_EXHAUSTED);
    struct router_gauges gauges = {
        .stats = {.accepted = 9, .finished = 4, .failed = 1, .cancelled = 2, .live = 2, .resumed_legs = 3},
        .running = 1, .waiting = 1, .prefill_backlog_s = 1.5, .decode_kv_headroom = 0.25,
    };
    router_metrics_publish(metrics, &gauges);
    router_metrics_publish(metrics, &gauges); /* totals do not add up twice */
    static const char *const lines[] = {
        "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.001\"} 0\n",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.005\"} 1\n",
        "vllm:inter_token_latency_seconds_count{model_name=\"m\"} 1\n",
        "vllm:e2e_request_latency_seconds_count{model_name=\"m\"} 1\n", /* an abort has no latency */
        "vllm:prompt_tokens_total{model_name=\"m\"} 7\n",
        "vllm:generation_tokens_total{model_name=\"m\"} 2\n",
        "vllm:request_success_total{model_name=\"m\",finished_reason=\"length\"} 1\n",
        "vllm:request_success_total{model_name=\"m\",finished_reason=\"abort\"} 1\n",
        "vllm:num_requests_running{model_name=\"m\"} 1\n",
        "vllm:num_requests_waiting{model_name=\"m\"} 1\n",
        "baton_router_requests_accepted_total 9\n",
        "baton_router_requests_finished_total 4\n",
        "baton_router_requests_live 2\n",
        "baton_router_legs_resumed_total 3\n",
        "baton_router_requests_refused_total{code=\"RESOURCE_EXHAUSTED\"} 1\n",
        "prefill_backlog_seconds 1.5\n",
        "decode_kv_headroom 0.25\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) { expect(metrics, lines[i]); }
    router_metrics_destroy(metrics);
}

/* A node's gauges go to zero when it leaves, and come back under the same name. */
static void a_node_that_leaves_shows_zero(void **state)
{
    (void)state;
    struct router_metrics *metrics = create();
    struct ctl_load load = {.blocks_total = 10, .blocks_free = 4, .blocks_cached = 2, .sequences_running = 3};
    router_metrics_node(metrics, "d0", false, &load);
    expect(metrics, "baton_router_node_attached{node=\"d0\",role=\"decode\"} 1\n");
    expect(metrics, "baton_router_node_blocks_free{node=\"d0\",role=\"decode\"} 6\n");
    router_metrics_node(metrics, "d0", false, NULL);
    expect(metrics, "baton_router_node_attached{node=\"d0\",role=\"decode\"} 0\n");
    expect(metrics, "baton_router_node_sequences_running{node=\"d0\",role=\"decode\"} 0\n");
    router_metrics_node(metrics, "d0", false, &load);
    expect(metrics, "baton_router_node_sequences_running{node=\"d0\",role=\"decode\"} 3\n");
    router_metrics_destroy(metrics);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bad_address_names_the_flag), cmocka_unit_test(requests_are_counted),
        cmocka_unit_test(a_node_that_leaves_shows_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
