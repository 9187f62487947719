/* rpc_testing: a recorder of what a call hears, a server of small behaviours, and a TCP relay
 * that can cut or freeze a connection. For tests of rpc/ only. */
#ifndef BATON_TESTS_UNIT_RPC_RPC_TESTING_H
#define BATON_TESTS_UNIT_RPC_RPC_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "rpc/rpc.h"

/* How long a test waits for what must come: never reached unless something is broken. */
#define PATIENCE_NS UINT64_C(20000000000)

/* One side of one call. Every callback writes here under the lock. */
struct ear {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t messages;
    size_t bytes;
    uint8_t last[64];
    size_t last_len;
    uint32_t half_closes;
    uint32_t writables;
    uint32_t dones;
    uint32_t out_of_order; /* callbacks after on_done, and messages whose first 4 bytes are not the count */
    bool counts_messages;
    struct rpc_outcome outcome; /* without pointers */
    char text[512];
    char retry_hint[32];
    char trailing[64]; /* value of "x-trailing" */
    struct rpc_call *call; /* server side: referenced */
    /* What to do in on_message, on the rpc thread. */
    void (*react)(struct ear *ear, struct rpc_call *call, const uint8_t *bytes, size_t len);
    void (*react_half_close)(struct ear *ear, struct rpc_call *call);
    void (*react_writable)(struct ear *ear, struct rpc_call *call);
    uint32_t next; /* for reactions */
};

extern const struct rpc_callbacks ear_callbacks;

void ear_init(struct ear *ear);
void ear_fini(struct ear *ear);
uint32_t ear_get(struct ear *ear, const uint32_t *field);
/* Waits until *field >= value; fails the test after PATIENCE_NS. */
void ear_wait(struct ear *ear, const uint32_t *field, uint32_t value);

/* A server with /test.T/Ear: each call goes to the next of `ears`; and /test.T/Echo. */
struct rig {
    struct rpc_runtime *runtime;
    struct rpc_server *server;
    struct rpc_channel *channel;
    struct ear *ears[64];
    atomic_uint ear_count; /* handed out */
    atomic_uint ear_total;
    char target[64];
    struct rpc_server_config server_config;
    struct rpc_channel_config channel_config;
};

/* Fills configs with loopback, plain text; change them before rig_start(). */
void rig_init(struct rig *rig);
void rig_start(struct rig *rig);
void rig_stop(struct rig *rig);
/* An ear that the next call to /test.T/Ear goes to. */
void rig_expect(struct rig *rig, struct ear *ear);
/* Starts a call on rig->channel with `ear`. */
struct rpc_call *rig_call(struct rig *rig, const char *method, struct ear *ear);
struct rpc_call *channel_call(struct rpc_channel *channel, const char *method, uint64_t deadline_ns, struct ear *ear);

/* A relay on its own thread: listens on a port of loopback, and forwards to `to_port`. */
struct relay;
struct relay *relay_start(uint16_t to_port);
uint16_t relay_port(const struct relay *relay);
void relay_freeze(struct relay *relay); /* forwards nothing more, keeps the sockets open */
void relay_cut(struct relay *relay);    /* closes both sockets with RST */
void relay_stop(struct relay *relay);

#endif
