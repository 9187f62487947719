/* A whole transfer whose link is a real gRPC stream, in one process. */
#include "transfer/link_grpc.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

enum { BLOCKS = 32 };

static const struct kv_layout layout = {.block_tokens = 16, .layer_count = 3, .kv_heads = 2, .head_dim = 64, .dtype = DTYPE_BF16};

struct node {
    struct kv_endpoint *endpoint;
    struct link_grpc *link;
    struct kv_endpoint_pool pool;
    pthread_mutex_t mutex;
    bool ended;
    struct kv_event last;
    char text[600];
    char payload[32];
};

static void on_event(void *context, const struct kv_event *event)
{
    struct node *node = context;
    if (event->kind == KV_EVENT_PUSH_DONE) { return; }
    pthread_mutex_lock(&node->mutex);
    node->ended = true;
    node->last = *event;
    snprintf(node->text, sizeof node->text, "%s", event->text);
    if (event->payload_bytes < sizeof node->payload && event->payload) { memcpy(node->payload, event->payload, event->payload_bytes); }
    pthread_mutex_unlock(&node->mutex);
}

static struct kv_event end_wait(struct node *node)
{
    for (int i = 0; i < 30000; i++) {
        pthread_mutex_lock(&node->mutex);
        bool ended = node->ended;
        struct kv_event last = node->last;
        node->ended = false;
        pthread_mutex_unlock(&node->mutex);
        if (ended) { return last; }
        clock_sleep_ns(NS_PER_MS);
    }
    fail_msg("no event came");
    return node->last;
}

static void node_start(struct node *node, const char *id, const char *address, const char *kernels, struct rpc_runtime *runtime)
{
    const uint8_t model_hash[32] = {1};
    memset(node, 0, sizeof *node);
    pthread_mutex_init(&node->mutex, NULL);
    assert_false(failed(kv_endpoint_pool_alloc(BLOCKS * kv_layout_block_bytes(&layout), NULL, &node->pool)));
    assert_false(failed(link_grpc_create(runtime, NULL, &node->link)));
    struct kv_endpoint_config config = {.node_id = id, .boot_epoch = 4, .link_address = address, .pool = node->pool,
        .cables = "auto", .tcp_listen = address[0] ? "127.0.0.1:0" : NULL, .on_event = on_event, .on_event_context = node,
        .stream = link_grpc_stream_ops(), .stream_context = node->link};
    kv_fingerprint_init(&config.fingerprint, model_hash, &layout, kernels);
    assert_false(failed(kv_endpoint_create(&config, NULL, &node->endpoint)));
    link_grpc_attach(node->link, node->endpoint);
}

static void node_stop(struct node *node)
{
    link_grpc_detach(node->link);
    kv_endpoint_destroy(node->endpoint);
    link_grpc_destroy(node->link);
    kv_endpoint_pool_free(&node->pool);
    pthread_mutex_destroy(&node->mutex);
}

static void send_all(struct node *p, const uint8_t *ticket, size_t size, const uint32_t *blocks, uint32_t count)
{
    kv_send_t send;
    assert_int_equal(kv_endpoint_send_begin(p->endpoint, ticket, size, NULL, NULL, &send).code, ST_OK);
    for (uint32_t layer = 0; layer < layout.layer_count; layer++) {
        assert_int_equal(kv_endpoint_push(p->endpoint, send, layer, 0, blocks, count, 0).code, ST_OK);
    }
    assert_int_equal(kv_endpoint_commit(p->endpoint, send, "first", 6).code, ST_OK);
}

/* Hello, begin, commit and ack travel over gRPC; a refused hello brings its reason; a node that
 * goes away ends the transfers of the other. */
static void a_link_over_grpc(void **state)
{
    (void)state;
    struct rpc_runtime *runtime = NULL;
    struct rpc_server *server = NULL;
    static struct node d, p, stranger;
    char address[64];
    const char *listen[1] = {"127.0.0.1:0"};
    const struct rpc_server_config server_config = {.listen = listen, .listen_count = 1};
    struct diag diag = {.text = ""};
    uint8_t ticket[KV_TICKET_BYTES_MAX];
    size_t size;
    assert_false(failed(rpc_runtime_create(2, &runtime)));

    /* The port must be known before the endpoint names it: a first server picks one. */
    assert_false(failed(rpc_server_create(runtime, &server_config, &server, &diag)));
    assert_false(failed(rpc_server_start(server, &diag)));
    uint16_t port = rpc_server_port(server, 0);
    rpc_server_destroy(server);
    snprintf(address, sizeof address, "127.0.0.1:%u", port);
    listen[0] = address;
    node_start(&d, "d0", address, "k", runtime);
    if (failed(rpc_server_create(runtime, &server_config, &server, &diag)) || failed(link_grpc_serve(d.link, server, &diag)) ||
        failed(rpc_server_start(server, &diag))) {
        fail_msg("%s", diag.text);
    }
    node_start(&p, "p0", "", "k", runtime);

    const uint32_t to[4] = {9, 3, 20, 1}, from[4] = {5, 6, 2, 30};
    for (size_t i = 0; i < p.pool.bytes; i++) { ((uint8_t *)p.pool.base)[i] = (uint8_t)(i * 31 >> 4); }
    const kv_xfer_id_t id1 = {{1}}, id2 = {{2}}, id3 = {{3}};
    assert_int_equal(kv_endpoint_grant(d.endpoint, id1, to, 4, 20000, NULL, ticket, &size).code, ST_OK);
    send_all(&p, ticket, size, from, 4);
    struct kv_event event = end_wait(&d);
    if (event.kind != KV_EVENT_LANDED) { fail_msg("%s: %s", status_code_name(event.status.code), d.text); }
    assert_string_equal(d.payload, "first");
    for (uint32_t i = 0; i < 4; i++) {
        assert_memory_equal((uint8_t *)d.pool.base + to[i] * kv_layout_block_bytes(&layout),
                            (uint8_t *)p.pool.base + from[i] * kv_layout_block_bytes(&layout), kv_layout_block_bytes(&layout));
    }
    event = end_wait(&p);
    assert_int_equal(event.kind, KV_EVENT_ACKED);
    assert_string_equal(event.stats.cable, "shm");

    /* A node with other kernels and a ticket that hides it. */
    struct kv_ticket lie;
    struct kv_fingerprint other;
    const uint8_t model_hash[32] = {1};
    node_start(&stranger, "p1", "", "other", runtime);
    assert_int_equal(kv_endpoint_grant(d.endpoint, id2, to, 4, 20000, NULL, ticket, &size).code, ST_OK);
    assert_int_equal(kv_ticket_decode(ticket, size, NULL, &lie).code, ST_OK);
    kv_fingerprint_init(&other, model_hash, &layout, "other");
    kv_fingerprint_hash(&other, lie.fingerprint_hash);
    kv_ticket_encode(&lie, ticket, &size);
    send_all(&stranger, ticket, size, from, 4);
    event = end_wait(&stranger);
    assert_int_equal(event.status.code, ST_FAILED_PRECONDITION);
    if (!strstr(stranger.text, "kernel_set: ours other, theirs k")) { fail_msg("the refusal does not say why: %s", stranger.text); }
    node_stop(&stranger);
    kv_endpoint_revoke(d.endpoint, id2);
    assert_int_equal(end_wait(&d).kind, KV_EVENT_FENCED);

    /* P goes away with a transfer half way. */
    kv_send_t send;
    assert_int_equal(kv_endpoint_grant(d.endpoint, id3, to, 4, 20000, NULL, ticket, &size).code, ST_OK);
    assert_int_equal(kv_endpoint_send_begin(p.endpoint, ticket, size, NULL, NULL, &send).code, ST_OK);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, 0, from, 4, 0).code, ST_OK);
    struct kv_endpoint_stats stats = {0};
    for (int i = 0; i < 30000 && stats.slices_landed < 16; i++) {
        clock_sleep_ns(NS_PER_MS);
        kv_endpoint_stats_get(d.endpoint, &stats);
    }
    node_stop(&p);
    event = end_wait(&d);
    assert_int_equal(event.kind, KV_EVENT_FAILED);
    assert_int_equal(event.status.code, ST_UNAVAILABLE);
    assert_true(event.fenced);

    link_grpc_detach(d.link);
    kv_endpoint_destroy(d.endpoint);
    rpc_server_destroy(server);
    link_grpc_destroy(d.link);
    kv_endpoint_pool_free(&d.pool);
    rpc_runtime_destroy(runtime);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_link_over_grpc)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
