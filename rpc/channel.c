/* channel: a client's connection to one target, and the calls it starts.
 * Thread: any; state changes are told on an rpc thread.
 * Memory: one block, alive until the creator and every call have let go. */
#include "rpc/rpc_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define BACKOFF_MIN_MS_DEFAULT 100u
#define BACKOFF_MAX_MS_DEFAULT 1000u
#define CONNECT_TIMEOUT_MS 5000

struct rpc_channel {
    struct rpc_owner owner;
    grpc_channel *grpc;
    struct rpc_send_limits send_limits;
    void (*on_state)(void *user, struct rpc_channel *channel, enum rpc_channel_state state);
    void *on_state_user;
    struct rpc_tag on_watch;
    grpc_connectivity_state told; /* only the watch's thread */
    bool is_closing;              /* guarded by owner.lock */
    bool is_watching;             /* guarded by owner.lock: on_state may still be called */
};

static void channel_free(struct rpc_owner *owner)
{
    struct rpc_channel *channel = CONTAINER_OF(owner, struct rpc_channel, owner);
    owner_fini(owner);
    free(channel);
}

static enum rpc_channel_state state_from_grpc(grpc_connectivity_state state)
{
    switch (state) {
    case GRPC_CHANNEL_IDLE: return RPC_CHANNEL_IDLE;
    case GRPC_CHANNEL_CONNECTING: return RPC_CHANNEL_CONNECTING;
    case GRPC_CHANNEL_READY: return RPC_CHANNEL_READY;
    case GRPC_CHANNEL_TRANSIENT_FAILURE: return RPC_CHANNEL_TRANSIENT_FAILURE;
    case GRPC_CHANNEL_SHUTDOWN: break;
    }
    return RPC_CHANNEL_SHUTDOWN;
}

static void watch_arm(struct rpc_channel *channel)
{
    TAG_HANDED_IN(&channel->on_watch);
    grpc_channel_watch_connectivity_state(channel->grpc, channel->told, gpr_inf_future(GPR_CLOCK_MONOTONIC),
                                          channel->owner.runtime->loops[0].cq, &channel->on_watch);
}

static void handle_watch(struct rpc_tag *tag, bool ok)
{
    (void)ok;
    struct rpc_channel *channel = CONTAINER_OF(tag, struct rpc_channel, on_watch);
    pthread_mutex_lock(&channel->owner.lock);
    bool is_over = channel->is_closing;
    grpc_connectivity_state state = GRPC_CHANNEL_SHUTDOWN;
    if (!is_over) {
        /* try_to_connect, since a lost connection leaves the channel idle otherwise. */
        state = grpc_channel_check_connectivity_state(channel->grpc, 1);
    }
    pthread_mutex_unlock(&channel->owner.lock);
    if (!is_over && state != channel->told) {
        channel->told = state;
        channel->on_state(channel->on_state_user, channel, state_from_grpc(state));
    }
    pthread_mutex_lock(&channel->owner.lock);
    is_over = channel->is_closing;
    if (!is_over) {
        watch_arm(channel);
    } else {
        channel->is_watching = false;
        pthread_cond_broadcast(&channel->owner.changed);
    }
    pthread_mutex_unlock(&channel->owner.lock);
    if (is_over) {
        owner_unref(&channel->owner);
    }
}

status_t rpc_channel_create(struct rpc_runtime *runtime, const struct rpc_channel_config *config,
                            struct rpc_channel **ret_channel, struct diag *diag)
{
    if (config->target == NULL || config->target[0] == '\0') {
        diag_set(diag, "a channel needs a target, host:port");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    uint32_t backoff_min = config->reconnect_backoff_min_ms != 0 ? config->reconnect_backoff_min_ms : BACKOFF_MIN_MS_DEFAULT;
    uint32_t backoff_max = config->reconnect_backoff_max_ms != 0 ? config->reconnect_backoff_max_ms : BACKOFF_MAX_MS_DEFAULT;
    if (backoff_min > INT32_MAX || backoff_max > INT32_MAX || backoff_min > backoff_max) {
        diag_set(diag, "reconnect backoff %u ms to %u ms is not a range", backoff_min, backoff_max);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct arg_list args = {.count = 0};
    TRY(arg_common(&args, &config->keepalive, config->message_bytes_max, diag));
    arg_int(&args, GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, (int)backoff_min);
    /* Despite its name this is how long one attempt may take: gRPC's subchannel uses it as its
     * connect deadline. A loaded machine needs more than the backoff for TCP, TLS and SETTINGS. */
    arg_int(&args, GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, CONNECT_TIMEOUT_MS);
    arg_int(&args, GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, (int)backoff_max);
    arg_int(&args, GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, (int)backoff_max);
    arg_int(&args, GRPC_ARG_ENABLE_RETRIES, 0);
    arg_int(&args, GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arg_int(&args, GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
    arg_int(&args, GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    if (config->tls.enabled && config->tls.server_name != NULL) {
        arg_string(&args, GRPC_SSL_TARGET_NAME_OVERRIDE_ARG, config->tls.server_name);
    }
    grpc_channel_credentials *creds = NULL;
    TRY(tls_channel_credentials(&config->tls, &creds, diag));
    struct rpc_channel *channel = calloc(1, sizeof *channel);
    if (channel == NULL) {
        grpc_channel_credentials_release(creds);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    owner_init(&channel->owner, runtime, channel_free);
    channel->send_limits = send_limits_or_default(&config->send_limits);
    grpc_channel_args channel_args = {.num_args = args.count, .args = args.args};
    channel->grpc = grpc_channel_create(config->target, creds, &channel_args);
    grpc_channel_credentials_release(creds);
    if (config->on_state != NULL) {
        channel->on_state = config->on_state;
        channel->on_state_user = config->on_state_user;
        channel->on_watch.on_event = handle_watch;
        channel->told = GRPC_CHANNEL_IDLE;
        channel->is_watching = true;
        channel->owner.refs++; /* until the last watch event */
        (void)grpc_channel_check_connectivity_state(channel->grpc, 1);
        pthread_mutex_lock(&channel->owner.lock);
        watch_arm(channel);
        pthread_mutex_unlock(&channel->owner.lock);
    }
    *ret_channel = channel;
    return STATUS_OK;
}

void rpc_channel_destroy(struct rpc_channel *channel)
{
    if (channel == NULL) {
        return;
    }
    pthread_mutex_lock(&channel->owner.lock);
    CHECK(!channel->is_closing);
    channel->is_closing = true;
    pthread_mutex_unlock(&channel->owner.lock);
    owner_cancel_calls(&channel->owner);
    /* Ends the watch too: the state becomes SHUTDOWN. Open calls keep the core's side alive. */
    grpc_channel_destroy(channel->grpc);
    if (!runtime_is_current(channel->owner.runtime)) {
        pthread_mutex_lock(&channel->owner.lock);
        while (channel->is_watching) {
            pthread_cond_wait(&channel->owner.changed, &channel->owner.lock);
        }
        pthread_mutex_unlock(&channel->owner.lock);
    }
    owner_unref(&channel->owner);
}

enum rpc_channel_state rpc_channel_state(struct rpc_channel *channel, bool try_connect)
{
    return state_from_grpc(grpc_channel_check_connectivity_state(channel->grpc, try_connect ? 1 : 0));
}

status_t rpc_channel_call(struct rpc_channel *channel, const struct rpc_call_options *options,
                          struct rpc_call **ret_call, struct diag *diag)
{
    if (options->method == NULL || options->method[0] != '/' || strchr(options->method + 1, '/') == NULL) {
        diag_set(diag, "method \"%s\" is not of the form /package.Service/Method",
                 options->method != NULL ? options->method : "");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    TRY(metadata_check(options->metadata, options->metadata_count, diag));
    struct metadata_out head;
    TRY(metadata_out_init(&head, options->metadata, options->metadata_count));

    struct rpc_runtime *runtime = channel->owner.runtime;
    uint32_t loop = atomic_fetch_add_explicit(&runtime->next_loop, 1, memory_order_relaxed) % runtime->loop_count;
    grpc_slice method = grpc_slice_from_copied_string(options->method);
    grpc_call *grpc = grpc_channel_create_call(channel->grpc, NULL, GRPC_PROPAGATE_DEFAULTS, runtime->loops[loop].cq,
                                               method, NULL, deadline_to_gpr(options->deadline_ns), NULL);
    struct rpc_call *call = NULL;
    status_t st = call_create(&channel->owner, grpc, false, &method, &channel->send_limits, &call);
    grpc_slice_unref(method);
    if (failed(st)) {
        grpc_call_unref(grpc);
        metadata_out_fini(&head);
        return st;
    }
    call->send_head = head;
    call->deadline_ns = options->deadline_ns != 0 ? options->deadline_ns : RPC_NO_DEADLINE;
    if (options->callbacks != NULL) {
        call->callbacks = options->callbacks;
    }
    call->user = options->user;
    if (ret_call != NULL) {
        rpc_call_ref(call);
        *ret_call = call; /* before the first callback can look for it there */
    }
    call_start_client(call, options->wait_for_ready);
    return STATUS_OK;
}
