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
    struct router_metrics_request request = {.end = ROUTER_END_LENGTH, .e2e_ns = UINT64_C(400000000)};
    router_metrics_end(metrics, &request);
    request.end = ROUTER_END_ABORT;
    router_metrics_end(metrics, &request);
    router_metrics_refused(metrics, ST_RESOURCE_EXHAUSTED);
    struct router_gauges gauges = {
        .stats = {.accepted = 9, .finished = 4, .failed = 1, .cancelled = 2, .live = 2, .resumed_legs = 3,
                  .cache_tokens_asked = 50, .cache_tokens_guessed = 30, .cache_tokens_found = 20},
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
        "baton_router_cache_tokens_asked_total 50\n",
        "baton_router_cache_tokens_guessed_total 30\n",
        "baton_router_cache_tokens_found_total 20\n",
        "baton_router_requests_refused_total{code=\"RESOURCE_EXHAUSTED\"} 1\n",
        "baton_router_prefill_backlog_seconds 1.5\n",
        "baton_router_decode_kv_headroom 0.25\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) { expect(metrics, lines[i]); }
    router_metrics_destroy(metrics);
}

/* The phases of a request add up: queue + prefill is the time to the first token, and
 * inference is all but the queue. What was computed more than once, or where it is decoded,
 * has no prefill time; a request that was given up has no times at all. */
static void phases_add_up(void **state)
{
    (void)state;
    struct router_metrics *metrics = create();
    struct router_metrics_request request = {
        .end = ROUTER_END_STOP,
        .e2e_ns = UINT64_C(8000000000), .ttft_ns = UINT64_C(3000000000), .prefill_compute_ns = UINT64_C(1000000000),
        .transfer_ns = UINT64_C(50000000),
        .prompt_tokens = 7, .generation_tokens = 12, .max_tokens = 100, .sequence_count = 2,
    };
    router_metrics_end(metrics, &request);
    static const char *const once[] = {
        "vllm:request_queue_time_seconds_sum{model_name=\"m\"} 2\n",
        "vllm:request_prefill_time_seconds_sum{model_name=\"m\"} 1\n",
        "vllm:request_decode_time_seconds_sum{model_name=\"m\"} 5\n",
        "vllm:request_inference_time_seconds_sum{model_name=\"m\"} 6\n",
        "vllm:request_time_per_output_token_seconds_sum{model_name=\"m\"} 1\n", /* two sequences of 5 gaps in 5 s */
        "vllm:request_prompt_tokens_bucket{model_name=\"m\",le=\"5\"} 0\n",
        "vllm:request_prompt_tokens_bucket{model_name=\"m\",le=\"10\"} 1\n",
        "vllm:request_generation_tokens_sum{model_name=\"m\"} 12\n",
        "vllm:request_params_max_tokens_sum{model_name=\"m\"} 100\n",
        "baton_kv_transfer_seconds_bucket{model_name=\"m\",le=\"0.025\"} 0\n",
        "baton_kv_transfer_seconds_bucket{model_name=\"m\",le=\"0.05\"} 1\n",
    };
    for (size_t i = 0; i < sizeof once / sizeof once[0]; i++) { expect(metrics, once[i]); }

    request.prefill_compute_ns = 0;
    request.transfer_ns = 0;
    request.generation_tokens = 2; /* one each: no gap */
    router_metrics_end(metrics, &request);
    request.prefill_compute_ns = request.ttft_ns + 1; /* a node's word that cannot be */
    router_metrics_end(metrics, &request);
    request.end = ROUTER_END_ERROR;
    router_metrics_end(metrics, &request);
    static const char *const later[] = {
        "vllm:request_queue_time_seconds_count{model_name=\"m\"} 1\n",
        "vllm:request_prefill_time_seconds_count{model_name=\"m\"} 1\n",
        "vllm:request_inference_time_seconds_count{model_name=\"m\"} 1\n",
        "vllm:request_decode_time_seconds_count{model_name=\"m\"} 3\n",
        "vllm:request_time_per_output_token_seconds_count{model_name=\"m\"} 1\n",
        "vllm:request_prompt_tokens_count{model_name=\"m\"} 3\n",
        "baton_kv_transfer_seconds_count{model_name=\"m\"} 1\n",
    };
    for (size_t i = 0; i < sizeof later / sizeof later[0]; i++) { expect(metrics, later[i]); }
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
        cmocka_unit_test(phases_add_up),
        cmocka_unit_test(a_node_that_leaves_shows_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
