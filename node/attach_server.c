#include "node/attach_server.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"

/* A step's tokens are a few hundred bytes; this is minutes of them. A router that is so far
 * behind is not coming back. */
#define SEND_QUEUE_BYTES_MAX (32u << 20)
#define SEND_QUEUE_MESSAGES_MAX 65536u

struct router_slot {
    struct attach_server *server;
    uint32_t index;
    bool taken;            /* from accept to forget */
    struct rpc_call *call; /* our reference, until forget */
    bool greeted;          /* rpc thread of the call only: UP was posted */
};

struct attach_server {
    pthread_mutex_t mutex; /* guards `taken` and `call`: accept runs on any rpc thread */
    attach_post_fn post;
    void *post_user;
    uint8_t *hello;
    size_t hello_bytes;
    uint32_t routers_max;
    struct router_slot slots[];
};

static void on_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct router_slot *slot = user;
    struct attach_server *server = slot->server;
    if (!slot->greeted) {
        slot->greeted = true;
        struct attach_post up = {.kind = ATTACH_POST_UP, .router = slot->index};
        if (!server->post(server->post_user, &up)) { rpc_call_cancel(call); return; }
    }
    struct attach_post post = {.kind = ATTACH_POST_BYTES, .router = slot->index, .byte_count = len};
    post.bytes = malloc(len ? len : 1);
    if (!post.bytes) { rpc_call_cancel(call); return; }
    memcpy(post.bytes, bytes, len);
    if (!server->post(server->post_user, &post)) {
        free(post.bytes);
        LOGF(LOG_WARN, "attach_overrun", "router=%u dropped its stream: the node's mailbox is full", slot->index);
        rpc_call_cancel(call);
    }
}

static void on_half_close(void *user, struct rpc_call *call)
{
    (void)user; /* a router that closes its side leaves */
    rpc_call_finish_status(call, STATUS_OK, "", 0);
}

static void on_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    struct router_slot *slot = user;
    struct attach_server *server = slot->server;
    LOGF(LOG_INFO, "router_down", "router=%u code=%s why=\"%s\"", slot->index, status_code_name(outcome->code),
         outcome->message);
    struct attach_post down = {.kind = ATTACH_POST_DOWN, .router = slot->index};
    bool taken = server->post(server->post_user, &down);
    CHECK(taken);
}

static const struct rpc_callbacks attach_callbacks = {
    .on_message = on_message,
    .on_half_close = on_half_close,
    .on_done = on_done,
};

static status_t accept_attach(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    struct attach_server *server = service;
    struct router_slot *slot = NULL;
    pthread_mutex_lock(&server->mutex);
    for (uint32_t i = 0; i < server->routers_max; i++) {
        if (!server->slots[i].taken) { slot = &server->slots[i]; break; }
    }
    if (slot) {
        slot->taken = true;
        slot->greeted = false;
        slot->call = call;
        rpc_call_ref(call);
    }
    pthread_mutex_unlock(&server->mutex);
    if (!slot) {
        diag_set(diag, "this node already serves %u routers; raise --routers-max", server->routers_max);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    struct rpc_send_limits limits = {.messages_max = SEND_QUEUE_MESSAGES_MAX, .bytes_max = SEND_QUEUE_BYTES_MAX};
    rpc_call_set_send_limits(call, &limits);
    char peer[128];
    rpc_call_peer(call, peer, sizeof peer);
    LOGF(LOG_INFO, "router_up", "router=%u peer=%s", slot->index, peer);
    ret_handler->callbacks = &attach_callbacks;
    ret_handler->user = slot;
    status_t st = rpc_call_send(call, server->hello, server->hello_bytes);
    if (failed(st)) { rpc_call_cancel(call); }
    return STATUS_OK;
}

status_t attach_server_create(uint32_t routers_max, const uint8_t *hello, size_t hello_bytes, attach_post_fn post,
                              void *post_user, struct attach_server **ret_server)
{
    struct attach_server *server = calloc(1, sizeof *server + routers_max * sizeof server->slots[0]);
    uint8_t *copy = malloc(hello_bytes);
    if (!server || !copy) {
        free(server);
        free(copy);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    memcpy(copy, hello, hello_bytes);
    pthread_mutex_init(&server->mutex, NULL);
    server->hello = copy;
    server->hello_bytes = hello_bytes;
    server->post = post;
    server->post_user = post_user;
    server->routers_max = routers_max;
    for (uint32_t i = 0; i < routers_max; i++) {
        server->slots[i].server = server;
        server->slots[i].index = i;
    }
    *ret_server = server;
    return STATUS_OK;
}

status_t attach_server_register(struct attach_server *server, struct rpc_server *rpc, struct diag *diag)
{
    return rpc_server_register(rpc, "/baton.control.v1.NodeControl/Attach", accept_attach, server, diag);
}

void attach_server_destroy(struct attach_server *server)
{
    if (!server) { return; }
    for (uint32_t i = 0; i < server->routers_max; i++) { rpc_call_unref(server->slots[i].call); }
    pthread_mutex_destroy(&server->mutex);
    free(server->hello);
    free(server);
}

void attach_server_send(struct attach_server *server, uint32_t router, const uint8_t *bytes, size_t byte_count)
{
    struct router_slot *slot = &server->slots[router];
    status_t st = rpc_call_send(slot->call, bytes, byte_count);
    if (failed(st) && st.code == ST_RESOURCE_EXHAUSTED) {
        LOGF(LOG_WARN, "router_too_slow", "router=%u dropped its stream: its send queue is full", router);
        rpc_call_cancel(slot->call);
    }
}

void attach_server_drop(struct attach_server *server, uint32_t router, const char *why)
{
    LOGF(LOG_WARN, "router_dropped", "router=%u why=\"%s\"", router, why);
    rpc_call_finish_status(server->slots[router].call, STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER), why, 0);
}

void attach_server_forget(struct attach_server *server, uint32_t router)
{
    struct router_slot *slot = &server->slots[router];
    pthread_mutex_lock(&server->mutex);
    struct rpc_call *call = slot->call;
    slot->call = NULL;
    slot->taken = false;
    pthread_mutex_unlock(&server->mutex);
    rpc_call_unref(call);
}
