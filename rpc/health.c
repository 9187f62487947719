#include "rpc/health.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "proto/grpc/health/v1/health.pb-c.h"
#include "rpc/reply.h"
#include "rpc/small_request.h"

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_t;
#define SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define SERVICE_UNKNOWN GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN
#define NEVER_TOLD ((serving_t)-1)

struct service {
    struct service *next;
    bool is_serving;
    char name[];
};

/* One open Watch. */
struct watcher {
    struct rpc_health *health;
    struct watcher *prev, *next;
    struct rpc_call *call; /* the library holds it until on_done */
    char *service;         /* NULL until the request has come */
    serving_t told;
};

struct rpc_health {
    pthread_mutex_t lock; /* guards all below; sends are made under it so that updates keep their order */
    struct service *services;
    struct watcher *watchers;
    bool is_draining;
};

static struct service *find(const struct rpc_health *health, const char *name)
{
    struct service *service = health->services;
    while (service != NULL && strcmp(service->name, name) != 0) {
        service = service->next;
    }
    return service;
}

static serving_t status_of(const struct service *service)
{
    return service == NULL ? SERVICE_UNKNOWN : service->is_serving ? SERVING : NOT_SERVING;
}

/* The lock is held. */
static void tell(struct watcher *watcher)
{
    serving_t status = status_of(find(watcher->health, watcher->service));
    if (status == watcher->told) {
        return;
    }
    Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = status;
    if (failed(reply_send(watcher->call, &response.base))) {
        rpc_call_cancel(watcher->call); /* it does not read: its queue is full */
    }
    watcher->told = status;
}

static Grpc__Health__V1__HealthCheckRequest *unpack_request(struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    return small_request_unpack(call, &grpc__health__v1__health_check_request__descriptor, bytes, len);
}

static void check_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct rpc_health *health = user;
    Grpc__Health__V1__HealthCheckRequest *request = unpack_request(call, bytes, len);
    if (request == NULL) {
        return;
    }
    pthread_mutex_lock(&health->lock);
    serving_t status = status_of(find(health, request->service));
    pthread_mutex_unlock(&health->lock);
    if (status == SERVICE_UNKNOWN) {
        struct diag diag;
        diag_set(&diag, "this server knows no service \"%.256s\"; List names those it knows", request->service);
        rpc_call_finish_status(call, STATUS(ST_NOT_FOUND, SCOPE_REQUEST), diag.text, 0);
    } else {
        Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
        response.status = status;
        reply_last(call, &response.base);
    }
    grpc__health__v1__health_check_request__free_unpacked(request, NULL);
}

static void list_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct rpc_health *health = user;
    Grpc__Health__V1__HealthListRequest *request =
        small_request_unpack(call, &grpc__health__v1__health_list_request__descriptor, bytes, len);
    if (request == NULL) {
        return;
    }
    grpc__health__v1__health_list_request__free_unpacked(request, NULL);

    typedef Grpc__Health__V1__HealthListResponse__StatusesEntry entry_t;
    pthread_mutex_lock(&health->lock);
    size_t count = 0;
    for (struct service *service = health->services; service != NULL; service = service->next) {
        count++;
    }
    entry_t *entries = calloc(count + 1, sizeof *entries);
    entry_t **pointers = calloc(count + 1, sizeof(entry_t *));
    Grpc__Health__V1__HealthCheckResponse *values = calloc(count + 1, sizeof *values);
    if (entries != NULL && pointers != NULL && values != NULL) {
        size_t i = 0;
        for (struct service *service = health->services; service != NULL; service = service->next, i++) {
            grpc__health__v1__health_check_response__init(&values[i]);
            values[i].status = status_of(service);
            grpc__health__v1__health_list_response__statuses_entry__init(&entries[i]);
            entries[i].key = service->name;
            entries[i].value = &values[i];
            pointers[i] = &entries[i];
        }
        Grpc__Health__V1__HealthListResponse response = GRPC__HEALTH__V1__HEALTH_LIST_RESPONSE__INIT;
        response.n_statuses = count;
        response.statuses = pointers;
        reply_last(call, &response.base);
    } else {
        rpc_call_finish_status(call, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE), "out of memory", 0);
    }
    pthread_mutex_unlock(&health->lock);
    free(values);
    free(pointers);
    free(entries);
}

static void watch_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct watcher *watcher = user;
    if (watcher->service != NULL) {
        return; /* one request per call; more change nothing */
    }
    Grpc__Health__V1__HealthCheckRequest *request = unpack_request(call, bytes, len);
    if (request == NULL) {
        return;
    }
    struct rpc_health *health = watcher->health;
    char *service = strdup(request->service);
    grpc__health__v1__health_check_request__free_unpacked(request, NULL);
    if (service == NULL) {
        rpc_call_finish_status(call, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE), "out of memory", 0);
        return;
    }
    pthread_mutex_lock(&health->lock);
    watcher->service = service;
    watcher->next = health->watchers;
    if (watcher->next != NULL) {
        watcher->next->prev = watcher;
    }
    health->watchers = watcher;
    tell(watcher);
    bool is_draining = health->is_draining;
    pthread_mutex_unlock(&health->lock);
    if (is_draining) {
        rpc_call_finish_status(call, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the server shuts down", 0);
    }
}

static void watch_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    (void)outcome;
    struct watcher *watcher = user;
    struct rpc_health *health = watcher->health;
    if (watcher->service != NULL) {
        pthread_mutex_lock(&health->lock);
        if (watcher->prev != NULL) {
            watcher->prev->next = watcher->next;
        } else {
            health->watchers = watcher->next;
        }
        if (watcher->next != NULL) {
            watcher->next->prev = watcher->prev;
        }
        pthread_mutex_unlock(&health->lock);
    }
    free(watcher->service);
    free(watcher);
}

static void watch_half_close(void *user, struct rpc_call *call)
{
    struct watcher *watcher = user;
    if (watcher->service == NULL) {
        reply_no_message(user, call);
    }
}

static const struct rpc_callbacks check_callbacks = {.on_message = check_message, .on_half_close = reply_no_message};
static const struct rpc_callbacks list_callbacks = {.on_message = list_message, .on_half_close = reply_no_message};
static const struct rpc_callbacks watch_callbacks = {
    .on_message = watch_message, .on_half_close = watch_half_close, .on_done = watch_done};

static status_t accept_check(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)call;
    (void)diag;
    *ret_handler = (struct rpc_handler){.callbacks = &check_callbacks, .user = service};
    return STATUS_OK;
}

static status_t accept_list(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)call;
    (void)diag;
    *ret_handler = (struct rpc_handler){.callbacks = &list_callbacks, .user = service};
    return STATUS_OK;
}

static status_t accept_watch(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    struct watcher *watcher = calloc(1, sizeof *watcher);
    if (watcher == NULL) {
        diag_set(diag, "out of memory");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    watcher->health = service;
    watcher->call = call;
    watcher->told = NEVER_TOLD;
    *ret_handler = (struct rpc_handler){.callbacks = &watch_callbacks, .user = watcher};
    return STATUS_OK;
}

status_t rpc_health_create(struct rpc_server *server, struct rpc_health **ret_health, struct diag *diag)
{
    struct rpc_health *health = calloc(1, sizeof *health);
    if (health == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    pthread_mutex_init(&health->lock, NULL);
    status_t st = rpc_health_set(health, "", false);
    if (!failed(st)) {
        st = rpc_server_register(server, "/grpc.health.v1.Health/Check", accept_check, health, diag);
    }
    if (!failed(st)) {
        st = rpc_server_register(server, "/grpc.health.v1.Health/List", accept_list, health, diag);
    }
    if (!failed(st)) {
        st = rpc_server_register(server, "/grpc.health.v1.Health/Watch", accept_watch, health, diag);
    }
    if (failed(st)) {
        rpc_health_destroy(health);
        return st;
    }
    *ret_health = health;
    return STATUS_OK;
}

void rpc_health_destroy(struct rpc_health *health)
{
    if (health == NULL) {
        return;
    }
    while (health->services != NULL) {
        struct service *next = health->services->next;
        free(health->services);
        health->services = next;
    }
    pthread_mutex_destroy(&health->lock);
    free(health);
}

status_t rpc_health_set(struct rpc_health *health, const char *service, bool is_serving)
{
    pthread_mutex_lock(&health->lock);
    struct service *entry = find(health, service);
    if (entry == NULL) {
        size_t len = strlen(service) + 1;
        entry = malloc(sizeof *entry + len);
        if (entry == NULL) {
            pthread_mutex_unlock(&health->lock);
            return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        }
        memcpy(entry->name, service, len);
        entry->next = health->services;
        health->services = entry;
    }
    entry->is_serving = is_serving && !health->is_draining;
    for (struct watcher *watcher = health->watchers; watcher != NULL; watcher = watcher->next) {
        tell(watcher);
    }
    pthread_mutex_unlock(&health->lock);
    return STATUS_OK;
}

void rpc_health_drain(struct rpc_health *health)
{
    pthread_mutex_lock(&health->lock);
    health->is_draining = true;
    for (struct service *service = health->services; service != NULL; service = service->next) {
        service->is_serving = false;
    }
    for (struct watcher *watcher = health->watchers; watcher != NULL; watcher = watcher->next) {
        tell(watcher);
        rpc_call_finish_status(watcher->call, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the server shuts down", 0);
    }
    pthread_mutex_unlock(&health->lock);
}
