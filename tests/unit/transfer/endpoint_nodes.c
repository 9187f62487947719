#include "tests/unit/transfer/endpoint_nodes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

const struct kv_layout layout = {.block_tokens = 16, .layer_count = LAYERS, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_F32};

struct node d, p;
const kv_xfer_id_t id1 = {{1}}, id2 = {{2}};
uint8_t ticket[KV_TICKET_BYTES_MAX];
size_t ticket_bytes;
const uint32_t run[48] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
                          24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47};

static void on_event(void *context, const struct kv_event *event)
{
    struct node *node = context;
    pthread_mutex_lock(&node->mutex);
    if (event->kind == KV_EVENT_PUSH_DONE) {
        node->pushes_done++;
    } else if (node->count < EVENTS_MAX) {
        struct kv_event *noted = &node->events[node->count];
        *noted = *event;
        snprintf(node->texts[node->count], 128, "%s", event->text);
        snprintf(node->reasons[node->count], 128, "%s", event->stats.reason);
        noted->text = node->texts[node->count];
        noted->stats.reason = node->reasons[node->count++];
        if (event->payload_bytes && event->payload_bytes <= sizeof node->payload) {
            memcpy(node->payload, event->payload, event->payload_bytes);
            node->payload_bytes = event->payload_bytes;
        }
    }
    pthread_mutex_unlock(&node->mutex);
}

struct kv_event event_wait(struct node *node)
{
    for (int i = 0; i < 30000; i++) {
        pthread_mutex_lock(&node->mutex);
        bool any = node->seen < node->count;
        struct kv_event event = node->events[any ? node->seen : 0];
        node->seen += any;
        pthread_mutex_unlock(&node->mutex);
        if (any) { return event; }
        clock_sleep_ns(NS_PER_MS);
    }
    fail_msg("no event came");
    return node->events[0];
}

struct kv_endpoint_config config_of(struct node *node, bool receives)
{
    const uint8_t model_hash[32] = {1};
    struct kv_endpoint_config config = {.node_id = receives ? "d0" : "p0", .boot_epoch = 3, .link_address = "",
        .pool = node->pool, .cables = "tcp", .on_event = on_event, .on_event_context = node, .stream = socket_stream_ops()};
    config.limits = (struct kv_endpoint_limits){.grants_max = 4, .sends_max = 4, .pushes_max = 8, .grant_blocks_max = 48};
    kv_fingerprint_init(&config.fingerprint, model_hash, &layout, "k");
    return config;
}

int nodes_start_with(void (*adjust)(struct kv_endpoint_config *config, bool receives))
{
    struct node *const nodes[2] = {&d, &p};
    for (int i = 0; i < 2; i++) {
        struct node *node = nodes[i];
        memset(node, 0, sizeof *node);
        pthread_mutex_init(&node->mutex, NULL);
        if (failed(kv_endpoint_pool_alloc(BLOCKS * kv_layout_block_bytes(&layout), NULL, &node->pool))) { return -1; }
        struct kv_endpoint_config config = config_of(node, node == &d);
        node->streams = socket_streams_create(node == &d ? "127.0.0.1:0" : NULL);
        config.stream_context = node->streams;
        config.link_address = socket_streams_address(node->streams);
        config.tcp_listen = node == &d ? "127.0.0.1:0" : NULL;
        if (adjust) { adjust(&config, node == &d); }
        if (failed(kv_endpoint_create(&config, NULL, &node->endpoint))) { return -1; }
        socket_streams_start(node->streams, node->endpoint);
    }
    return 0;
}

int nodes_start(void **state)
{
    (void)state;
    return nodes_start_with(NULL);
}

int nodes_stop(void **state)
{
    struct node *const nodes[2] = {&p, &d};
    (void)state;
    for (int i = 0; i < 2; i++) {
        socket_streams_stop(nodes[i]->streams);
        kv_endpoint_destroy(nodes[i]->endpoint);
        socket_streams_destroy(nodes[i]->streams);
        kv_endpoint_pool_free(&nodes[i]->pool);
        pthread_mutex_destroy(&nodes[i]->mutex);
    }
    return 0;
}
