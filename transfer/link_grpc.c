#include "transfer/link_grpc.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct link_grpc {
    struct rpc_runtime *runtime;
    struct rpc_tls tls;
    atomic_uint references; /* the owner's, and one per stream */
    pthread_mutex_t mutex;  /* guards endpoint, and is held over calls into it; those never block */
    struct kv_endpoint *endpoint;
};

struct stream {
    struct link_grpc *all;
    atomic_uint references; /* rpc's until on_done, the endpoint's until close */
    struct rpc_call *call;  /* a reference of our own */
    struct rpc_channel *channel; /* P: each link has its own, so that a dead one is not shared */
    uint64_t link;
};

static void all_unref(struct link_grpc *all)
{
    if (atomic_fetch_sub(&all->references, 1) != 1) { return; }
    pthread_mutex_destroy(&all->mutex);
    free(all);
}

static void stream_unref(struct stream *stream)
{
    if (atomic_fetch_sub(&stream->references, 1) != 1) { return; }
    rpc_call_unref(stream->call);
    all_unref(stream->all);
    free(stream);
}

static struct stream *stream_make(struct link_grpc *all)
{
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream) { return NULL; }
    stream->all = all;
    atomic_init(&stream->references, 2);
    atomic_fetch_add(&all->references, 1);
    return stream;
}

/* ---- rpc threads */

static void on_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct stream *stream = user;
    bool refused = true;
    pthread_mutex_lock(&stream->all->mutex);
    if (stream->all->endpoint) {
        refused = failed(kv_endpoint_stream_message(stream->all->endpoint, stream->link, bytes, len));
    }
    pthread_mutex_unlock(&stream->all->mutex);
    if (refused) { rpc_call_cancel(call); } /* on_done tells the endpoint */
}

static void stream_ended(struct stream *stream)
{
    pthread_mutex_lock(&stream->all->mutex);
    if (stream->all->endpoint) {
        kv_endpoint_stream_closed(stream->all->endpoint, stream->link, STATUS(ST_UNAVAILABLE, SCOPE_PEER));
    }
    pthread_mutex_unlock(&stream->all->mutex);
}

static void on_half_close(void *user, struct rpc_call *call)
{
    (void)call;
    stream_ended(user); /* P has left; the endpoint closes, which finishes the call */
}

static void on_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    (void)outcome;
    stream_ended(user);
    stream_unref(user);
}

static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_half_close = on_half_close, .on_done = on_done};

static status_t accept_link(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    struct link_grpc *all = service;
    struct stream *stream = stream_make(all);
    if (!stream) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM); }
    rpc_call_ref(call);
    stream->call = call;
    status_t st = STATUS(ST_UNAVAILABLE, SCOPE_PEER);
    pthread_mutex_lock(&all->mutex);
    if (all->endpoint) { st = kv_endpoint_stream_accept(all->endpoint, stream, &stream->link); }
    pthread_mutex_unlock(&all->mutex);
    if (failed(st)) {
        diag_set(diag, st.code == ST_UNAVAILABLE ? "the node is stopping" : "the node has as many KV links as it may have");
        stream_unref(stream);
        stream_unref(stream);
        return st;
    }
    *ret_handler = (struct rpc_handler){.callbacks = &callbacks, .user = stream};
    return STATUS_OK;
}

/* ---- the transfer thread */

static status_t link_dial(void *context, const char *address, uint64_t link, void **ret_stream)
{
    struct link_grpc *all = context;
    struct stream *stream = stream_make(all);
    if (!stream) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM); }
    stream->link = link;
    const struct rpc_channel_config config = {.target = address, .tls = all->tls};
    const struct rpc_call_options options = {.method = LINK_GRPC_METHOD, .deadline_ns = RPC_NO_DEADLINE,
                                             .callbacks = &callbacks, .user = stream};
    status_t st = rpc_channel_create(all->runtime, &config, &stream->channel, NULL);
    if (!failed(st)) { st = rpc_channel_call(stream->channel, &options, &stream->call, NULL); }
    if (failed(st)) {
        rpc_channel_destroy(stream->channel);
        stream_unref(stream); /* no callback will come: rpc's share too */
        stream_unref(stream);
        return st;
    }
    *ret_stream = stream;
    return STATUS_OK;
}

static status_t link_send(void *context, void *handle, const void *message, size_t bytes)
{
    (void)context;
    struct stream *stream = handle;
    return rpc_call_send(stream->call, message, bytes);
}

static void link_close(void *context, void *handle)
{
    (void)context;
    struct stream *stream = handle;
    if (stream->channel) {
        rpc_call_cancel(stream->call);
        rpc_channel_destroy(stream->channel);
    } else { /* after what is queued: a refusal must arrive */
        rpc_call_finish_status(stream->call, STATUS_OK, "", 0);
    }
    stream_unref(stream);
}

struct kv_stream_ops link_grpc_stream_ops(void)
{
    return (struct kv_stream_ops){.dial = link_dial, .send = link_send, .close = link_close};
}

/* ---- the owner */

status_t link_grpc_create(struct rpc_runtime *runtime, const struct rpc_tls *tls, struct link_grpc **ret_link)
{
    struct link_grpc *all = calloc(1, sizeof *all);
    if (!all || pthread_mutex_init(&all->mutex, NULL) != 0) {
        free(all);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
    }
    all->runtime = runtime;
    if (tls) { all->tls = *tls; }
    atomic_init(&all->references, 1);
    *ret_link = all;
    return STATUS_OK;
}

void link_grpc_attach(struct link_grpc *all, struct kv_endpoint *endpoint)
{
    pthread_mutex_lock(&all->mutex);
    all->endpoint = endpoint;
    pthread_mutex_unlock(&all->mutex);
}

void link_grpc_detach(struct link_grpc *all) { link_grpc_attach(all, NULL); }

status_t link_grpc_serve(struct link_grpc *all, struct rpc_server *server, struct diag *diag)
{
    return rpc_server_register(server, LINK_GRPC_METHOD, accept_link, all, diag);
}

void link_grpc_destroy(struct link_grpc *all)
{
    if (all) { all_unref(all); }
}
