/* Claims on a node's /metrics: every family is there from the start, numbers are what was
 * published, counters only grow, and readiness follows the node. The endpoint is a fake of the one
 * call that a scrape makes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/net_address.h"
#include "node/node_metrics.h"

static struct kv_endpoint_stats stats;

void kv_endpoint_stats_get(struct kv_endpoint *endpoint, struct kv_endpoint_stats *ret_stats)
{
    assert_null(endpoint);
    *ret_stats = stats;
}

static char address[64], page[1 << 16];
static struct node_metrics *metrics;

/* One GET; the body is left in `page`, the status is returned. */
static int get(const char *path)
{
    char host[NET_HOST_CHARS_MAX + 1], request[128];
    uint16_t port;
    assert_false(failed(net_address_split(address, host, &port, NULL)));
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    int len = snprintf(request, sizeof request, "GET %s HTTP/1.0\r\nHost: x\r\n\r\n", path);
    assert_int_equal(send(fd, request, (size_t)len, 0), len);
    size_t got = 0;
    for (ssize_t now; (now = recv(fd, page + got, sizeof page - 1 - got, 0)) > 0;) { got += (size_t)now; }
    page[got] = '\0';
    close(fd);
    int code = 0;
    assert_int_equal(sscanf(page, "HTTP/1.%*d %d", &code), 1);
    return code;
}

static void page_has(const char *line)
{
    char whole[256];
    snprintf(whole, sizeof whole, "\n%s\n", line);
    if (!strstr(page, whole)) { fail_msg("no line \"%s\" in:\n%s", line, page); }
}

static int start(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    memset(&stats, 0, sizeof stats);
    assert_false(failed(net_address_listen("127.0.0.1:0", address, sizeof address, &diag)));
    struct node_metrics_config config = {.listen = address, .role = "decode", .model_name = "tiny", .block_tokens = 16,
                                         .block_count = 100};
    status_t st = node_metrics_create(&config, &metrics, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    return 0;
}

static int stop(void **state)
{
    (void)state;
    node_metrics_destroy(metrics);
    node_metrics_destroy(NULL);
    return 0;
}

/* Before anything happened every series is there, at zero: a rate needs a first value. */
static void all_series_exist_from_the_start(void **state)
{
    (void)state;
    assert_int_equal(get("/metrics"), 200);
    page_has("vllm:num_requests_running{model_name=\"tiny\"} 0");
    page_has("baton_node_generation_tokens_total{model_name=\"tiny\"} 0");
    page_has("baton_legs_total{model_name=\"tiny\",outcome=\"finished\"} 0");
    page_has("baton_nccl_frames_total{model_name=\"tiny\"} 0");
    page_has("baton_nccl_pairs{model_name=\"tiny\",state=\"stuck\"} 0");
    page_has("baton_kv_blocks{model_name=\"tiny\",state=\"quarantined\"} 0");
    page_has("vllm:cache_config_info{model_name=\"tiny\",block_size=\"16\",num_gpu_blocks=\"100\"} 1");
}

/* What was published is what is scraped. */
static void published_numbers_are_scraped(void **state)
{
    (void)state;
    struct ctl_load load = {.blocks_total = 100, .blocks_free = 25, .blocks_held = 60, .blocks_cached = 10,
                            .blocks_quarantined = 5, .sequences_running = 7, .sequences_waiting = 2,
                            .tokens_queued = 3000, .tokens_per_s = 1500, .draining = true,
                            .cache_tokens_asked = 900, .cache_tokens_found = 600};
    struct node_totals totals = {.prompt_tokens = 11, .generation_tokens = UINT64_C(1) << 40, .legs_finished = 3, .legs = 4,
                                 .preemptions = 9, .swaps = 4, .slot_preemptions = 2, .loads_chosen = 6, .loads_declined = 1,
                                 .tier_tokens_loaded = 320, .load_predicted_ns = 5000000, .load_actual_ns = 6000000};
    node_metrics_publish(metrics, &load, &totals);
    stats = (struct kv_endpoint_stats){.bytes_landed = 4096, .landed = 2, .links_up = 3, .links_lost = 1, .live = 6};
    get("/metrics");
    page_has("vllm:num_requests_running{model_name=\"tiny\"} 7");
    page_has("vllm:num_requests_waiting{model_name=\"tiny\"} 2");
    page_has("vllm:kv_cache_usage_perc{model_name=\"tiny\"} 0.65");
    page_has("baton_prefill_backlog_seconds{model_name=\"tiny\"} 2");
    page_has("baton_kv_headroom_tokens{model_name=\"tiny\"} 560");
    page_has("baton_draining{model_name=\"tiny\"} 1");
    page_has("baton_preemptions_total{model_name=\"tiny\",how=\"swap\"} 4");
    page_has("baton_preemptions_total{model_name=\"tiny\",how=\"recompute\"} 5");
    page_has("baton_preemptions_total{model_name=\"tiny\",how=\"slot\"} 2");
    page_has("baton_kv_tier_prefixes_total{model_name=\"tiny\",choice=\"load\"} 6");
    page_has("baton_kv_tier_prefixes_total{model_name=\"tiny\",choice=\"recompute\"} 1");
    page_has("baton_kv_tier_tokens_loaded_total{model_name=\"tiny\"} 320");
    page_has("baton_kv_tier_load_microseconds_total{model_name=\"tiny\",kind=\"predicted\"} 5000");
    page_has("baton_kv_tier_load_microseconds_total{model_name=\"tiny\",kind=\"actual\"} 6000");
    page_has("vllm:prefix_cache_queries_total{model_name=\"tiny\"} 900");
    page_has("vllm:prefix_cache_hits_total{model_name=\"tiny\"} 600");
    page_has("baton_node_generation_tokens_total{model_name=\"tiny\"} 1099511627776");
    page_has("baton_kv_bytes_total{model_name=\"tiny\",direction=\"in\"} 4096");
    page_has("baton_kv_links{model_name=\"tiny\"} 2");
    page_has("baton_kv_grants{model_name=\"tiny\",state=\"live\"} 6");
}

/* Each number of the nccl cable has its own line, in the unit that the line's name says. */
static void the_nccl_cable_is_scraped(void **state)
{
    (void)state;
    stats.nccl = (struct kv_nccl_stats){.pairs_up = 3, .pairs_opening = 2, .pairs_stuck = 1, .pairs_opened = 10, .pairs_closed = 4,
                                        .pairs_broken = 5, .pairs_denied = 6, .memory_bytes = 52428801, .init_ns_last = 1500000000,
                                        .init_ns_max = 2500000000, .abort_ns_last = 250000000, .abort_ns_max = 750000000,
                                        .frames = 7, .bytes = 7340032, .busy_ns = 9000000, .messages_stale = 8};
    get("/metrics");
    page_has("baton_nccl_pairs{model_name=\"tiny\",state=\"up\"} 3");
    page_has("baton_nccl_pairs{model_name=\"tiny\",state=\"opening\"} 2");
    page_has("baton_nccl_pairs{model_name=\"tiny\",state=\"stuck\"} 1");
    page_has("baton_nccl_pairs_total{model_name=\"tiny\",what=\"opened\"} 10");
    page_has("baton_nccl_pairs_total{model_name=\"tiny\",what=\"closed\"} 4");
    page_has("baton_nccl_pairs_total{model_name=\"tiny\",what=\"broken\"} 5");
    page_has("baton_nccl_pairs_total{model_name=\"tiny\",what=\"denied\"} 6");
    page_has("baton_nccl_memory_bytes{model_name=\"tiny\"} 52428801");
    page_has("baton_nccl_init_seconds{model_name=\"tiny\",which=\"last\"} 1.5");
    page_has("baton_nccl_init_seconds{model_name=\"tiny\",which=\"max\"} 2.5");
    page_has("baton_nccl_abort_seconds{model_name=\"tiny\",which=\"last\"} 0.25");
    page_has("baton_nccl_abort_seconds{model_name=\"tiny\",which=\"max\"} 0.75");
    page_has("baton_nccl_frames_total{model_name=\"tiny\"} 7");
    page_has("baton_nccl_bytes_total{model_name=\"tiny\"} 7340032");
    page_has("baton_nccl_busy_microseconds_total{model_name=\"tiny\"} 9000");
    page_has("baton_nccl_messages_stale_total{model_name=\"tiny\"} 8");
    stats.nccl = (struct kv_nccl_stats){.frames = 9}; /* what is now falls, what was stays */
    get("/metrics");
    page_has("baton_nccl_pairs{model_name=\"tiny\",state=\"up\"} 0");
    page_has("baton_nccl_pairs_total{model_name=\"tiny\",what=\"opened\"} 10");
    page_has("baton_nccl_frames_total{model_name=\"tiny\"} 9");
}

/* Publishing the same totals adds nothing; a total that went back does not wrap. */
static void counters_only_grow(void **state)
{
    (void)state;
    struct ctl_load load = {0};
    struct node_totals totals = {.steps = 10, .prompt_tokens = 5};
    for (int i = 0; i < 3; i++) { node_metrics_publish(metrics, &load, &totals); }
    totals.steps = 4;
    node_metrics_publish(metrics, &load, &totals);
    totals.steps = 12;
    node_metrics_publish(metrics, &load, &totals);
    stats.links_lost = 2; /* of links that were lost before they were up */
    get("/metrics");
    get("/metrics");
    page_has("baton_engine_steps_total{model_name=\"tiny\"} 12");
    page_has("baton_node_prompt_tokens_total{model_name=\"tiny\"} 5");
    page_has("baton_kv_links{model_name=\"tiny\"} 0");
    page_has("baton_kv_links_lost_total{model_name=\"tiny\"} 2");
}

/* Alive from the start; ready only while the node says so. */
static void readiness_follows_the_node(void **state)
{
    (void)state;
    assert_int_equal(get("/healthz"), 200);
    assert_int_equal(get("/readyz"), 503);
    node_metrics_set_ready(metrics, true);
    assert_int_equal(get("/readyz"), 200);
    node_metrics_set_ready(metrics, false);
    assert_int_equal(get("/readyz"), 503);
    assert_int_equal(get("/metrics"), 200); /* a node that drains is still watched */
}

/* An address that is none is refused by the flag's name; none at all serves nothing and counts. */
static void the_address_is_checked(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct node_metrics *other = NULL;
    struct node_metrics_config config = {.listen = "nowhere", .model_name = "tiny", .block_tokens = 16};
    assert_int_equal(node_metrics_create(&config, &other, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "--metrics-listen: address \"nowhere\""));
    config.listen = NULL;
    assert_false(failed(node_metrics_create(&config, &other, &diag)));
    node_metrics_publish(other, &(struct ctl_load){0}, &(struct node_totals){0});
    node_metrics_destroy(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(all_series_exist_from_the_start, start, stop),
        cmocka_unit_test_setup_teardown(published_numbers_are_scraped, start, stop),
        cmocka_unit_test_setup_teardown(the_nccl_cable_is_scraped, start, stop),
        cmocka_unit_test_setup_teardown(counters_only_grow, start, stop),
        cmocka_unit_test_setup_teardown(readiness_follows_the_node, start, stop),
        cmocka_unit_test(the_address_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
