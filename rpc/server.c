/* server: listens, gives each new call to the method's accept callback, drains.
 * Flow:    C core -> [server] -> accept callback -> call.c
 * Thread:  create, register, start, shutdown, destroy by their caller; accepts on rpc threads.
 * Memory:  one block, the list of methods, one accept slot per rpc thread. */
#include "rpc/rpc_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"

#define CALLS_MAX_DEFAULT 4096u
#define RETRY_HINT_MS_DEFAULT 100u
#define METHODS_MAX 256u
#define ACCEPTS_PER_LOOP 4u /* calls the C core can hand over before the thread comes back */
/* After the last call the final bytes may still be on their way; connections get this long to
 * close by themselves before they are cut. */
#define CLOSE_GRACE_NS (200 * NS_PER_MS)

struct method {
    char *name;    /* "/package.Service/Method" */
    char *service; /* "package.Service" */
    rpc_accept_fn accept;
    void *user;
};

/* One outstanding request for a new call. */
struct accept_slot {
    struct rpc_tag tag;
    struct rpc_server *server;
    struct rpc_loop *loop;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
};

struct rpc_server {
    struct rpc_owner owner;
    grpc_server *grpc;
    grpc_server_credentials *creds;
    struct method *methods;
    uint32_t method_count;
    char *listen[RPC_LISTEN_MAX];
    uint16_t ports[RPC_LISTEN_MAX];
    uint32_t listen_count;
    uint32_t calls_max;
    uint32_t retry_hint_ms;
    struct rpc_send_limits send_limits;
    atomic_uint accepted_count;
    struct accept_slot *slots;
    uint32_t slot_count;
    uint32_t slots_busy;   /* guarded by owner.lock; each holds an owner reference */
    bool is_started;
    bool is_shut;          /* guarded by owner.lock */
    bool is_notified;      /* guarded by owner.lock: the C core is through */
    struct rpc_tag on_shut;
};

static void server_free(struct rpc_owner *owner)
{
    struct rpc_server *server = CONTAINER_OF(owner, struct rpc_server, owner);
    for (uint32_t i = 0; i < server->method_count; i++) {
        free(server->methods[i].name);
        free(server->methods[i].service);
    }
    free(server->methods);
    for (uint32_t i = 0; i < server->listen_count; i++) {
        free(server->listen[i]);
    }
    free(server->slots);
    if (server->creds != NULL) {
        grpc_server_credentials_release(server->creds);
    }
    if (server->grpc != NULL) {
        grpc_server_destroy(server->grpc);
    }
    owner_fini(owner);
    free(server);
}

status_t rpc_server_create(struct rpc_runtime *runtime, const struct rpc_server_config *config,
                           struct rpc_server **ret_server, struct diag *diag)
{
    if (config->listen_count == 0 || config->listen_count > RPC_LISTEN_MAX) {
        diag_set(diag, "a server listens on 1 to %u addresses, got %u", RPC_LISTEN_MAX, config->listen_count);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct arg_list args = {.count = 0};
    TRY(arg_common(&args, &config->keepalive, config->message_bytes_max, diag));
    /* Two servers on one port would share its connections silently. */
    arg_int(&args, GRPC_ARG_ALLOW_REUSEPORT, 0);
    grpc_server_credentials *creds = NULL;
    TRY(tls_server_credentials(&config->tls, &creds, diag));

    struct rpc_server *server = calloc(1, sizeof *server);
    if (server == NULL) {
        grpc_server_credentials_release(creds);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    owner_init(&server->owner, runtime, server_free);
    server->creds = creds;
    server->calls_max = config->calls_max != 0 ? config->calls_max : CALLS_MAX_DEFAULT;
    server->retry_hint_ms = config->retry_hint_ms != 0 ? config->retry_hint_ms : RETRY_HINT_MS_DEFAULT;
    server->send_limits = send_limits_or_default(&config->send_limits);
    server->slot_count = runtime->loop_count * ACCEPTS_PER_LOOP;
    server->slots = calloc(server->slot_count, sizeof *server->slots);
    server->methods = calloc(METHODS_MAX, sizeof *server->methods);
    bool has_memory = server->slots != NULL && server->methods != NULL;
    for (uint32_t i = 0; has_memory && i < config->listen_count; i++) {
        server->listen[i] = strdup(config->listen[i]);
        server->listen_count = i + 1;
        has_memory = server->listen[i] != NULL;
    }
    if (!has_memory) {
        owner_unref(&server->owner);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    grpc_channel_args channel_args = {.num_args = args.count, .args = args.args};
    server->grpc = grpc_server_create(&channel_args, NULL);
    for (uint32_t i = 0; i < runtime->loop_count; i++) {
        grpc_server_register_completion_queue(server->grpc, runtime->loops[i].cq, NULL);
    }
    *ret_server = server;
    return STATUS_OK;
}

status_t rpc_server_register(struct rpc_server *server, const char *method, rpc_accept_fn accept, void *service,
                             struct diag *diag)
{
    const char *slash = method[0] == '/' ? strchr(method + 1, '/') : NULL;
    if (slash == NULL || slash == method + 1 || slash[1] == '\0' || strchr(slash + 1, '/') != NULL) {
        diag_set(diag, "method \"%s\" is not of the form /package.Service/Method", method);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (server->is_started) {
        diag_set(diag, "method %s comes after the start of the server", method);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    for (uint32_t i = 0; i < server->method_count; i++) {
        if (strcmp(server->methods[i].name, method) == 0) {
            diag_set(diag, "method %s is registered twice", method);
            return STATUS(ST_ALREADY_EXISTS, SCOPE_NODE);
        }
    }
    if (server->method_count == METHODS_MAX) {
        diag_set(diag, "method %s is one more than the %u that a server takes", method, METHODS_MAX);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    struct method *entry = &server->methods[server->method_count];
    entry->name = strdup(method);
    entry->service = strndup(method + 1, (size_t)(slash - method - 1));
    entry->accept = accept;
    entry->user = service;
    if (entry->name == NULL || entry->service == NULL) {
        free(entry->name);
        free(entry->service);
        *entry = (struct method){0};
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    server->method_count++;
    return STATUS_OK;
}

const char *rpc_server_service_name(const struct rpc_server *server, uint32_t index)
{
    return index < server->method_count ? server->methods[index].service : NULL;
}

uint16_t rpc_server_port(const struct rpc_server *server, uint32_t index)
{
    CHECK(index < server->listen_count);
    return server->ports[index];
}

uint32_t rpc_server_call_count(const struct rpc_server *server)
{
    return atomic_load_explicit(&server->accepted_count, memory_order_relaxed);
}

void server_call_gone(struct rpc_server *server)
{
    atomic_fetch_sub_explicit(&server->accepted_count, 1, memory_order_relaxed);
}

static const struct method *find_method(const struct rpc_server *server, const grpc_slice *name)
{
    for (uint32_t i = 0; i < server->method_count; i++) {
        size_t len = strlen(server->methods[i].name);
        if (len == GRPC_SLICE_LENGTH(*name) && memcmp(server->methods[i].name, GRPC_SLICE_START_PTR(*name), len) == 0) {
            return &server->methods[i];
        }
    }
    return NULL;
}

/* Asks for the next call; the slot's owner reference lasts until its event. */
static void slot_arm(struct accept_slot *slot)
{
    grpc_call_details_init(&slot->details);
    grpc_metadata_array_init(&slot->metadata);
    slot->call = NULL;
    TAG_HANDED_IN(&slot->tag);
    grpc_call_error err = grpc_server_request_call(slot->server->grpc, &slot->call, &slot->details, &slot->metadata,
                                                   slot->loop->cq, slot->loop->cq, &slot->tag);
    CHECK(err == GRPC_CALL_OK);
}

static void welcome(struct rpc_server *server, struct rpc_call *call, const struct method *method)
{
    struct diag diag = {.text = ""};
    if (method == NULL) {
        diag_set(&diag, "unknown method %s", call->method);
        rpc_call_finish_status(call, STATUS(ST_UNIMPLEMENTED, SCOPE_REQUEST), diag.text, 0);
        call_start_server(call, false);
        return;
    }
    if (atomic_fetch_add_explicit(&server->accepted_count, 1, memory_order_relaxed) >= server->calls_max) {
        server_call_gone(server);
        diag_set(&diag, "this server has its %u calls open; try again in %u ms or elsewhere", server->calls_max,
                 server->retry_hint_ms);
        rpc_call_finish_status(call, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST), diag.text, server->retry_hint_ms);
        call_start_server(call, false);
        return;
    }
    call->counted_by = server;
    struct rpc_handler handler = {0};
    status_t st = method->accept(method->user, call, &handler, &diag);
    if (failed(st)) {
        rpc_call_finish_status(call, st, diag.text, 0);
        call_start_server(call, false);
        return;
    }
    if (handler.callbacks != NULL) {
        call->callbacks = handler.callbacks;
    }
    call->user = handler.user;
    call_start_server(call, true);
}

static void handle_accept(struct rpc_tag *tag, bool ok)
{
    struct accept_slot *slot = CONTAINER_OF(tag, struct accept_slot, tag);
    struct rpc_server *server = slot->server;
    if (!ok) { /* the server shuts down */
        grpc_call_details_destroy(&slot->details);
        grpc_metadata_array_destroy(&slot->metadata);
        pthread_mutex_lock(&server->owner.lock);
        server->slots_busy--;
        pthread_cond_broadcast(&server->owner.changed);
        pthread_mutex_unlock(&server->owner.lock);
        owner_unref(&server->owner);
        return;
    }
    struct rpc_call *call = NULL;
    status_t st = call_create(&server->owner, slot->call, true, &slot->details.method, &server->send_limits, &call);
    if (failed(st)) {
        (void)grpc_call_cancel(slot->call, NULL);
        grpc_call_unref(slot->call);
    } else {
        call->deadline_ns = deadline_from_gpr(slot->details.deadline);
        (void)!metadata_copy_init(&call->head, &slot->metadata).code; /* without memory: as if none came */
    }
    const struct method *method = find_method(server, &slot->details.method);
    grpc_call_details_destroy(&slot->details);
    grpc_metadata_array_destroy(&slot->metadata);
    slot_arm(slot);
    if (call != NULL) {
        welcome(server, call, method);
    }
}

static void handle_shut(struct rpc_tag *tag, bool ok)
{
    (void)ok;
    struct rpc_server *server = CONTAINER_OF(tag, struct rpc_server, on_shut);
    pthread_mutex_lock(&server->owner.lock);
    server->is_notified = true;
    pthread_cond_broadcast(&server->owner.changed);
    pthread_mutex_unlock(&server->owner.lock);
    owner_unref(&server->owner);
}

status_t rpc_server_start(struct rpc_server *server, struct diag *diag)
{
    CHECK(!server->is_started);
    for (uint32_t i = 0; i < server->listen_count; i++) {
        int port = grpc_server_add_http2_port(server->grpc, server->listen[i], server->creds);
        if (port == 0) {
            diag_set(diag, "cannot listen on %s: the address is in use, is not of this host, or is malformed (want host:port)",
                     server->listen[i]);
            return STATUS(ST_UNAVAILABLE, SCOPE_NODE);
        }
        /* The C core answers 1 for a unix socket, which has no port. */
        server->ports[i] = strncmp(server->listen[i], "unix", 4) == 0 ? 0 : (uint16_t)port;
    }
    grpc_server_start(server->grpc);
    server->is_started = true;
    struct rpc_runtime *runtime = server->owner.runtime;
    pthread_mutex_lock(&server->owner.lock);
    server->slots_busy = server->slot_count;
    server->owner.refs += server->slot_count;
    pthread_mutex_unlock(&server->owner.lock);
    for (uint32_t i = 0; i < server->slot_count; i++) {
        struct accept_slot *slot = &server->slots[i];
        slot->tag.on_event = handle_accept;
        slot->server = server;
        slot->loop = &runtime->loops[i % runtime->loop_count];
        slot_arm(slot);
    }
    return STATUS_OK;
}

/* Waits under owner.lock until all that `server` waits for is over, or the time has come. */
static bool wait_until(struct rpc_server *server, bool (*is_over)(const struct rpc_server *), uint64_t end_ns)
{
    struct timespec end = {.tv_sec = (time_t)(end_ns / NS_PER_S), .tv_nsec = (long)(end_ns % NS_PER_S)};
    while (!is_over(server)) {
        if (end_ns == UINT64_MAX) {
            pthread_cond_wait(&server->owner.changed, &server->owner.lock);
        } else if (pthread_cond_timedwait(&server->owner.changed, &server->owner.lock, &end) == ETIMEDOUT) {
            return is_over(server);
        }
    }
    return true;
}

static bool calls_are_gone(const struct rpc_server *server)
{
    return server->owner.call_count == 0;
}

static bool core_is_through(const struct rpc_server *server)
{
    return server->is_notified && server->slots_busy == 0 && server->owner.call_count == 0;
}

void rpc_server_shutdown(struct rpc_server *server, uint64_t grace_ns)
{
    CHECK(!runtime_is_current(server->owner.runtime));
    pthread_mutex_lock(&server->owner.lock);
    if (server->is_shut) {
        pthread_mutex_unlock(&server->owner.lock);
        return;
    }
    server->is_shut = true;
    server->owner.refs++; /* until handle_shut */
    server->on_shut.on_event = handle_shut;
    pthread_mutex_unlock(&server->owner.lock);
    TAG_HANDED_IN(&server->on_shut);
    grpc_server_shutdown_and_notify(server->grpc, server->owner.runtime->loops[0].cq, &server->on_shut);

    uint64_t now = clock_now_ns();
    pthread_mutex_lock(&server->owner.lock);
    if (wait_until(server, calls_are_gone, grace_ns > UINT64_MAX - 1 - now ? UINT64_MAX : now + grace_ns) &&
        grace_ns > 0) {
        (void)wait_until(server, core_is_through, clock_now_ns() + CLOSE_GRACE_NS);
    }
    pthread_mutex_unlock(&server->owner.lock);
    owner_cancel_calls(&server->owner);
    grpc_server_cancel_all_calls(server->grpc);
    pthread_mutex_lock(&server->owner.lock);
    (void)wait_until(server, core_is_through, UINT64_MAX);
    pthread_mutex_unlock(&server->owner.lock);
}

void rpc_server_destroy(struct rpc_server *server)
{
    if (server == NULL) {
        return;
    }
    rpc_server_shutdown(server, 0);
    owner_unref(&server->owner);
}
