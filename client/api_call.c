#include "client/api_call.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "client/message_depth.h"
#include "rpc/rpc.h"

#define MESSAGE_BYTES_MAX (64u << 20)
#define QUEUE_MAX 1024u

struct api {
    struct rpc_runtime *runtime;
    struct rpc_channel *channel;
    bool has_tls;
};

struct received {
    struct received *next;
    uint64_t at_ns;
    size_t len;
    uint8_t bytes[];
};

struct api_call {
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t changed;
    struct rpc_call *call;
    struct received *head, **tail;
    uint32_t queued;
    bool paused, done, has_tls;
    uint8_t code;
    struct diag outcome;
};

status_t api_open(const char *router, const struct api_tls *tls, struct api **ret_api, struct diag *diag)
{
    struct api *api = calloc(1, sizeof *api);
    if (!api) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    struct rpc_channel_config config = {
        .target = router,
        .message_bytes_max = MESSAGE_BYTES_MAX,
        .tls = {.enabled = tls && tls->ca_file, .cert_file = tls ? tls->cert_file : NULL,
                .key_file = tls ? tls->key_file : NULL, .ca_file = tls ? tls->ca_file : NULL},
    };
    api->has_tls = config.tls.enabled;
    status_t st = rpc_runtime_create(1, &api->runtime);
    if (!failed(st)) { st = rpc_channel_create(api->runtime, &config, &api->channel, diag); }
    if (failed(st)) { api_close(api); return st; }
    *ret_api = api;
    return STATUS_OK;
}

void api_close(struct api *api)
{
    if (!api) { return; }
    rpc_channel_destroy(api->channel);
    rpc_runtime_destroy(api->runtime);
    free(api);
}

struct rpc_channel *api_channel(struct api *api) { return api->channel; }

static void on_message(void *user, struct rpc_call *rpc, const uint8_t *bytes, size_t len)
{
    struct api_call *call = user;
    struct received *entry = malloc(sizeof *entry + len);
    if (!entry) { rpc_call_cancel(rpc); return; }
    entry->next = NULL;
    entry->at_ns = clock_now_ns();
    entry->len = len;
    if (len > 0) { memcpy(entry->bytes, bytes, len); }
    pthread_mutex_lock(&call->mutex);
    *call->tail = entry;
    call->tail = &entry->next;
    call->queued++;
    if (call->queued >= QUEUE_MAX && !call->paused) {
        call->paused = true;
        rpc_call_pause_reads(rpc);
    }
    pthread_cond_signal(&call->changed);
    pthread_mutex_unlock(&call->mutex);
}

/* A server that hangs up on the first bytes says no more than that. */
static const char *tls_advice(const struct api_call *call, const struct rpc_outcome *outcome)
{
    static const char *const hang_ups[] = {"Socket closed", "reset by peer", "Broken pipe"};
    bool was_hung_up = false;
    for (size_t i = 0; i < sizeof hang_ups / sizeof hang_ups[0]; i++) {
        was_hung_up = was_hung_up || strstr(outcome->message, hang_ups[i]) != NULL;
    }
    if (outcome->code != ST_UNAVAILABLE || !was_hung_up) { return ""; }
    return call->has_tls ? "; the router may speak no TLS, or refuse the certificate: check --tls-cert, --tls-key and --tls-ca"
                         : "; if the router asks for TLS, give --tls-ca, --tls-cert and --tls-key";
}

static void on_done(void *user, struct rpc_call *rpc, const struct rpc_outcome *outcome)
{
    (void)rpc;
    struct api_call *call = user;
    pthread_mutex_lock(&call->mutex);
    call->done = true;
    call->code = outcome->code;
    const char *hint = NULL;
    size_t hint_len = 0;
    for (size_t i = 0; i < outcome->metadata_count; i++) {
        if (strcmp(outcome->metadata[i].key, RPC_RETRY_KEY) == 0) {
            hint = outcome->metadata[i].value;
            hint_len = outcome->metadata[i].value_len;
        }
    }
    if (hint) {
        diag_set(&call->outcome, "%s (retry in %.*s ms)", outcome->message, (int)hint_len, hint);
    } else {
        diag_set(&call->outcome, "%s%s", outcome->message, tls_advice(call, outcome));
    }
    pthread_cond_signal(&call->changed);
    pthread_mutex_unlock(&call->mutex);
}

static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};

static void free_call(struct api_call *call)
{
    while (call->head) {
        struct received *next = call->head->next;
        free(call->head);
        call->head = next;
    }
    pthread_cond_destroy(&call->changed);
    pthread_mutex_destroy(&call->mutex);
    free(call);
}

status_t api_call_start(struct api *api, const char *method, const ProtobufCMessage *request, uint64_t deadline_ns,
                        bool wait_for_ready, struct api_call **ret_call, struct diag *diag)
{
    struct api_call *call = calloc(1, sizeof *call);
    size_t len = protobuf_c_message_get_packed_size(request);
    uint8_t *bytes = malloc(len ? len : 1);
    if (!call || !bytes) {
        free(call);
        free(bytes);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    protobuf_c_message_pack(request, bytes);
    pthread_mutex_init(&call->mutex, NULL);
    pthread_cond_init(&call->changed, NULL);
    call->tail = &call->head;
    call->has_tls = api->has_tls;
    struct rpc_call_options options = {.method = method, .deadline_ns = deadline_ns, .wait_for_ready = wait_for_ready,
                                       .callbacks = &callbacks, .user = call};
    status_t st = rpc_channel_call(api->channel, &options, &call->call, diag);
    if (failed(st)) {
        free(bytes);
        free_call(call);
        return st;
    }
    /* An empty queue takes a message of any size, so this fails only where the call is over;
     * then on_done says why. */
    st = rpc_call_send(call->call, bytes, len);
    free(bytes);
    if (!failed(st)) { rpc_call_half_close(call->call); }
    *ret_call = call;
    return STATUS_OK;
}

status_t api_call_next(struct api_call *call, const ProtobufCMessageDescriptor *descriptor,
                       ProtobufCMessage **ret_message, uint64_t *ret_at_ns, struct diag *diag)
{
    *ret_message = NULL;
    pthread_mutex_lock(&call->mutex);
    while (!call->head && !call->done) { pthread_cond_wait(&call->changed, &call->mutex); }
    struct received *entry = call->head;
    if (entry) {
        call->head = entry->next;
        if (!call->head) { call->tail = &call->head; }
        call->queued--;
        if (call->paused && call->queued < QUEUE_MAX / 2) {
            call->paused = false;
            rpc_call_resume_reads(call->call);
        }
    }
    pthread_mutex_unlock(&call->mutex);
    if (!entry) {
        if (call->code == ST_OK) { return STATUS_OK; }
        diag_set(diag, "%s: %s", status_code_name(call->code), call->outcome.text);
        return STATUS(call->code, SCOPE_REQUEST);
    }
    if (ret_at_ns) { *ret_at_ns = entry->at_ns; }
    status_t st = message_unpack_shallow(descriptor, entry->bytes, entry->len, ret_message, diag);
    free(entry);
    return st;
}

void api_call_end(struct api_call *call)
{
    if (!call) { return; }
    rpc_call_cancel(call->call);
    pthread_mutex_lock(&call->mutex);
    while (!call->done) {
        if (call->paused) {
            call->paused = false;
            rpc_call_resume_reads(call->call);
        }
        pthread_cond_wait(&call->changed, &call->mutex);
    }
    pthread_mutex_unlock(&call->mutex);
    rpc_call_unref(call->call);
    free_call(call);
}

status_t api_unary(struct api *api, const char *method, const ProtobufCMessage *request,
                   const ProtobufCMessageDescriptor *descriptor, uint64_t timeout_ns, ProtobufCMessage **ret_message,
                   struct diag *diag)
{
    struct api_call *call;
    uint64_t now_ns = clock_now_ns();
    uint64_t deadline_ns = timeout_ns < UINT64_MAX - now_ns ? now_ns + timeout_ns : UINT64_MAX;
    TRY(api_call_start(api, method, request, deadline_ns, false, &call, diag));
    status_t st = api_call_next(call, descriptor, ret_message, NULL, diag);
    if (!failed(st) && !*ret_message) {
        diag_set(diag, "the router ended the call without an answer");
        st = STATUS(ST_INTERNAL, SCOPE_PEER);
    }
    api_call_end(call);
    return st;
}
