/* endpoint_nodes: two endpoints in one process for a test: D, which receives, and P, which sends, joined by a socket.
 * Thread:  the test's; events are noted on the transfer threads.
 * Memory:  the pools are in memfds. */
#ifndef BATON_TESTS_UNIT_TRANSFER_ENDPOINT_NODES_H
#define BATON_TESTS_UNIT_TRANSFER_ENDPOINT_NODES_H

#include <pthread.h>

#include "tests/conformance/socket_stream.h"
#include "transfer/transfer.h"

enum { BLOCKS = 64, LAYERS = 2, EVENTS_MAX = 4096 };

extern const struct kv_layout layout;

struct node {
    struct kv_endpoint *endpoint;
    struct socket_streams *streams;
    struct kv_endpoint_pool pool;
    pthread_mutex_t mutex;
    struct kv_event events[EVENTS_MAX]; /* without PUSH_DONE */
    char texts[EVENTS_MAX][128], reasons[EVENTS_MAX][128];
    uint8_t payload[64];
    size_t payload_bytes;
    uint32_t count, seen, pushes_done;
};

extern struct node d, p;
extern const kv_xfer_id_t id1, id2;
extern uint8_t ticket[KV_TICKET_BYTES_MAX];
extern size_t ticket_bytes;
extern const uint32_t run[48]; /* 0, 1, 2 ... */

/* The next event; its text and reason are copies. Fails the test after half a minute. */
struct kv_event event_wait(struct node *node);
struct kv_endpoint_config config_of(struct node *node, bool receives);

/* Set-up and teardown. adjust: the last word on a configuration, or NULL. */
int nodes_start_with(void (*adjust)(struct kv_endpoint_config *config, bool receives));
int nodes_start(void **state);
int nodes_stop(void **state);

#endif
