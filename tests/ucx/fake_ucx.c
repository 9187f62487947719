#include "tests/ucx/fake_ucx.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"

enum { WORKERS_MAX = 256, HANDLERS = 8, DEVICES_MAX = 4, RKEY_BYTES = 18, FAILURE = -3 };

struct memh { uint8_t *base; size_t bytes; uint32_t key; int type; };
struct worker {
    bool used, signalled;
    uint32_t id;
    int efd;
    struct request *first, *last; /* posted here, in order */
    struct endpoint *endpoints;
    struct message *messages, *messages_last;
    struct { ucx_am_recv_fn cb; void *arg; } handlers[HANDLERS];
};
struct endpoint {
    struct endpoint *next;
    struct worker *worker;
    uint32_t peer;
    ucx_err_handler_fn on_error;
    void *arg;
    bool broken, told;
    ucx_status_t status;
};
enum request_kind { RK_PUT, RK_FLUSH, RK_MESSAGE, RK_CLOSE };
struct request {
    struct request *next;
    enum request_kind kind;
    struct endpoint *endpoint; /* NULL once that is closed */
    struct worker *worker;
    bool held, ended, freed_by_us;
    ucx_status_t status;
    ucx_send_fn cb;
    void *user;
    const void *from; /* put: read when it is delivered, as hardware does; message: a copy */
    size_t bytes;
    uint64_t to;
    uint32_t key, peer;
    unsigned id;
};
struct message { struct message *next; unsigned id; size_t bytes; uint8_t data[]; };
struct rkey { uint32_t key; };

struct fake_ucx_world fake_ucx;
/* Guards everything here: two endpoints of one process have a thread each. Callbacks call back in, so it is recursive. */
static pthread_mutex_t mutex;
static pthread_once_t mutex_once = PTHREAD_ONCE_INIT;
static struct worker workers[WORKERS_MAX];
static struct memh *memhs[WORKERS_MAX];
static uint32_t next_id, next_key;
static struct { const uint8_t *base; size_t bytes; uint8_t *view; } devices[DEVICES_MAX];

static void mutex_make(void)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mutex, &attr);
    pthread_mutexattr_destroy(&attr);
}
static pthread_mutex_t *mutex_take(void)
{
    pthread_once(&mutex_once, mutex_make);
    pthread_mutex_lock(&mutex);
    return &mutex;
}
static void mutex_give(pthread_mutex_t **held) { pthread_mutex_unlock(*held); }
/* From here to the function's end. */
#define LOCKED pthread_mutex_t *held_ __attribute__((cleanup(mutex_give), unused)) = mutex_take()

static bool fails(void)
{
    uint64_t call = ++fake_ucx.calls;
    return call == fake_ucx.fail_at || (fake_ucx.refuse_from && call >= fake_ucx.refuse_from);
}

static void signal_worker(struct worker *worker)
{
    uint64_t one = 1;
    worker->signalled = true;
    CHECK(write(worker->efd, &one, sizeof one) == (ssize_t)sizeof one);
}

static struct worker *worker_of_id(uint32_t id)
{
    for (int i = 0; i < WORKERS_MAX; i++) {
        if (workers[i].used && workers[i].id == id) { return &workers[i]; }
    }
    return NULL;
}

/* Where a card finds the bytes at an address: a device's by its view. */
static uint8_t *reach(uint64_t address, size_t bytes, bool *ret_is_device)
{
    *ret_is_device = true;
    for (int i = 0; i < DEVICES_MAX; i++) {
        uint64_t base = (uintptr_t)devices[i].base;
        if (base && address >= base && address - base < devices[i].bytes) {
            CHECK(bytes <= devices[i].bytes - (address - base));
            return devices[i].view + (address - base);
        }
    }
    *ret_is_device = false;
    return (uint8_t *)(uintptr_t)address;
}

/* ---- context and memory */

static void get_version(unsigned *major, unsigned *minor, unsigned *release)
{
    LOCKED;
    *major = 1;
    *minor = fake_ucx.version_minor;
    *release = 0;
}
static ucx_status_t config_read(const char *prefix, const char *file, void **ret)
{
    LOCKED;
    (void)prefix;
    (void)file;
    if (fails()) { return FAILURE; }
    *ret = malloc(1);
    fake_ucx.buffers++;
    return UCX_OK;
}
static ucx_status_t config_modify(void *config, const char *name, const char *value)
{
    LOCKED;
    (void)config;
    if (fails()) { return FAILURE; }
    if (strcmp(name, "TLS") == 0) { snprintf(fake_ucx.tls, sizeof fake_ucx.tls, "%s", value); }
    return UCX_OK;
}
static void buffer_release(void *buffer)
{
    LOCKED;
    fake_ucx.buffers--;
    free(buffer);
}
static ucx_status_t init_version(unsigned major, unsigned minor, const struct ucx_params *params, const void *config, void **ret)
{
    LOCKED;
    (void)config;
    CHECK(major == UCX_VERSION_MAJOR);
    CHECK(minor == UCX_VERSION_MINOR_MIN);
    CHECK(params->features == (UCX_FEATURE_RMA | UCX_FEATURE_AM | UCX_FEATURE_WAKEUP));
    if (fails()) { return FAILURE; }
    static char context; /* nothing of it is looked at */
    *ret = &context;
    fake_ucx.contexts++;
    return UCX_OK;
}
static void cleanup(void *context)
{
    LOCKED;
    (void)context;
    fake_ucx.contexts--;
}
static ucx_status_t context_query(void *context, struct ucx_context_attr *attr)
{
    LOCKED;
    CHECK(context != NULL);
    CHECK(attr->field_mask == UCX_ATTR_FIELD_MEMORY_TYPES);
    if (fails()) { return FAILURE; }
    bool has_cuda = fake_ucx.knows_cuda && strstr(fake_ucx.tls, ",cuda_copy");
    attr->memory_types = 1u << UCX_MEMORY_TYPE_HOST | (has_cuda ? 1u << UCX_MEMORY_TYPE_CUDA : 0);
    return UCX_OK;
}
static ucx_status_t mem_map(void *context, const struct ucx_mem_map_params *params, void **ret)
{
    LOCKED;
    (void)context;
    bool is_device;
    (void)reach((uintptr_t)params->address, params->length, &is_device);
    CHECK(params->field_mask & UCX_MEM_MAP_PARAM_FIELD_MEMORY_TYPE);
    CHECK(params->memory_type == (is_device ? UCX_MEMORY_TYPE_CUDA : UCX_MEMORY_TYPE_HOST));
    if (fails() || (is_device && fake_ucx.maps_no_cuda)) { return FAILURE; }
    fake_ucx.maps++;
    fake_ucx.maps_cuda += is_device;
    struct memh *memh = malloc(sizeof *memh);
    *memh = (struct memh){params->address, params->length, ++next_key, params->memory_type};
    for (int i = 0; i < WORKERS_MAX; i++) {
        if (!memhs[i]) {
            memhs[i] = memh;
            break;
        }
    }
    fake_ucx.memhs++;
    *ret = memh;
    return UCX_OK;
}
static ucx_status_t mem_unmap(void *context, void *memh)
{
    LOCKED;
    (void)context;
    for (int i = 0; i < WORKERS_MAX; i++) {
        if (memhs[i] == memh) { memhs[i] = NULL; }
    }
    fake_ucx.memhs--;
    free(memh);
    return UCX_OK;
}
static ucx_status_t rkey_pack(void *context, void *memh, void **ret, size_t *ret_bytes)
{
    LOCKED;
    (void)context;
    if (fails()) { return FAILURE; }
    /* As UCX does: two domains, the one that copies within the host with a key of no bytes, then the card's. */
    const struct memh *of = memh;
    bool has_card = of->type == UCX_MEMORY_TYPE_HOST || fake_ucx.is_direct;
    uint8_t *buffer = calloc(1, RKEY_BYTES);
    buffer[0] = has_card ? 5 : 1;
    buffer[8] = (uint8_t)of->type;
    if (has_card) {
        buffer[10] = 4;
        memcpy(buffer + 11, &of->key, sizeof of->key);
    }
    fake_ucx.buffers++;
    *ret = buffer;
    *ret_bytes = has_card ? RKEY_BYTES : 11; /* a byte behind the keys: where the memory's device is */
    return UCX_OK;
}
static ucx_status_t ep_rkey_unpack(void *endpoint, const void *buffer, void **ret)
{
    LOCKED;
    CHECK(endpoint != NULL);
    if (fails()) { return FAILURE; }
    struct rkey *rkey = malloc(sizeof *rkey);
    memcpy(&rkey->key, (const uint8_t *)buffer + 11, sizeof rkey->key);
    fake_ucx.rkeys++;
    *ret = rkey;
    return UCX_OK;
}
static void rkey_destroy(void *rkey)
{
    LOCKED;
    fake_ucx.rkeys--;
    free(rkey);
}

/* ---- workers */

static ucx_status_t worker_create(void *context, const struct ucx_worker_params *params, void **ret)
{
    LOCKED;
    (void)context;
    CHECK(params->thread_mode == UCX_THREAD_MODE_SERIALIZED);
    if (fails()) { return FAILURE; }
    struct worker *worker = workers;
    while (worker->used) { worker++; }
    *worker = (struct worker){.used = true, .id = ++next_id, .efd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    fake_ucx.workers++;
    if (fake_ucx.workers > fake_ucx.workers_most) { fake_ucx.workers_most = fake_ucx.workers; }
    *ret = worker;
    return UCX_OK;
}
static void worker_destroy(void *worker_)
{
    LOCKED;
    struct worker *worker = worker_;
    CHECK(worker->used);
    CHECK(worker->first == NULL); /* UCX asserts here */
    CHECK(worker->endpoints == NULL);
    while (worker->messages) {
        struct message *message = worker->messages;
        worker->messages = message->next;
        free(message);
    }
    close(worker->efd);
    worker->used = false;
    fake_ucx.workers--;
}
static ucx_status_t worker_get_efd(void *worker, int *ret)
{
    LOCKED;
    if (fails()) { return FAILURE; }
    *ret = ((struct worker *)worker)->efd;
    return UCX_OK;
}
static ucx_status_t worker_query(void *worker, struct ucx_worker_attr *attr)
{
    LOCKED;
    CHECK(attr->address_flags == UCX_WORKER_ADDRESS_FLAG_NET_ONLY);
    if (fails()) { return FAILURE; }
    attr->address = malloc(sizeof(uint32_t));
    memcpy(attr->address, &((struct worker *)worker)->id, sizeof(uint32_t));
    attr->address_length = sizeof(uint32_t);
    fake_ucx.buffers++;
    return UCX_OK;
}
static void worker_release_address(void *worker, void *address)
{
    LOCKED;
    CHECK(((struct worker *)worker)->used);
    buffer_release(address);
}
static ucx_status_t set_handler(void *worker, const struct ucx_am_handler_param *param)
{
    LOCKED;
    CHECK(param->id < HANDLERS);
    if (fails()) { return FAILURE; }
    ((struct worker *)worker)->handlers[param->id].cb = param->cb;
    ((struct worker *)worker)->handlers[param->id].arg = param->arg;
    return UCX_OK;
}

/* ---- endpoints and requests */

static ucx_status_t ep_create(void *worker_, const struct ucx_ep_params *params, void **ret)
{
    LOCKED;
    struct worker *worker = worker_;
    CHECK(params->err_mode == UCX_ERR_HANDLING_MODE_PEER);
    if (fails()) { return FAILURE; }
    struct endpoint *endpoint = calloc(1, sizeof *endpoint);
    endpoint->worker = worker;
    memcpy(&endpoint->peer, params->address, sizeof endpoint->peer);
    endpoint->on_error = params->err_handler.cb;
    endpoint->arg = params->err_handler.arg;
    endpoint->next = worker->endpoints;
    worker->endpoints = endpoint;
    fake_ucx.endpoints++;
    *ret = endpoint;
    return UCX_OK;
}
static ucx_status_t ep_query(void *endpoint, struct ucx_ep_attr *attr)
{
    LOCKED;
    (void)endpoint;
    attr->transports.num_entries = 1;
    attr->transports.entries[0] = (struct ucx_transport_entry){"rc_fake", "fake0:1"};
    return UCX_OK;
}

static void deliver(const struct request *request)
{
    struct worker *peer = worker_of_id(request->peer);
    if (request->kind == RK_PUT) {
        struct memh *memh = NULL;
        for (int i = 0; i < WORKERS_MAX; i++) {
            if (memhs[i] && memhs[i]->key == request->key) { memh = memhs[i]; }
        }
        bool inside = memh && request->to >= (uintptr_t)memh->base && request->to + request->bytes <= (uintptr_t)memh->base + memh->bytes;
        if (!peer || !inside) {
            fake_ucx.puts_dropped++;
            return;
        }
        bool is_device;
        uint8_t *to = reach(request->to, request->bytes, &is_device);
        memcpy(to, reach((uintptr_t)request->from, request->bytes, &is_device), request->bytes);
        if (fake_ucx.flips > 0) {
            fake_ucx.flips--;
            to[request->bytes / 2] ^= 0x10;
        }
        fake_ucx.puts_landed++;
    } else if (request->kind == RK_MESSAGE && peer) {
        struct message *message = malloc(sizeof *message + request->bytes);
        message->next = NULL;
        message->id = request->id;
        message->bytes = request->bytes;
        memcpy(message->data, request->from, request->bytes);
        if (peer->messages) { peer->messages_last->next = message; } else { peer->messages = message; }
        peer->messages_last = message;
        signal_worker(peer);
    }
}

/* Inside whatever call has found out, as UCX does it. */
static void break_now(struct endpoint *endpoint)
{
    struct worker *worker = endpoint->worker;
    struct request *rest = worker->first;
    endpoint->broken = true;
    endpoint->status = FAILURE;
    worker->first = worker->last = NULL;
    while (rest) {
        struct request *request = rest;
        rest = request->next;
        if (request->endpoint != endpoint || !request->cb) {
            request->next = NULL;
            if (worker->first) { worker->last->next = request; } else { worker->first = request; }
            worker->last = request;
            continue;
        }
        request->ended = true;
        request->status = FAILURE;
        request->cb(request, FAILURE, request->user);
        CHECK(request->freed_by_us);
        fake_ucx.requests--;
        free(request);
    }
    signal_worker(worker);
}

static ucx_request_t post(struct endpoint *endpoint, struct request filled, const struct ucx_request_param *param)
{
    if (fails()) { return (ucx_request_t)(intptr_t)FAILURE; }
    CHECK(endpoint->worker->used);
    if (endpoint->broken) { return (ucx_request_t)(intptr_t)endpoint->status; }
    filled.peer = endpoint->peer;
    if (fake_ucx.at_once && !fake_ucx.hold && !endpoint->worker->first) {
        deliver(&filled);
        return NULL;
    }
    struct request *request = malloc(sizeof *request);
    *request = filled;
    request->endpoint = endpoint;
    request->worker = endpoint->worker;
    request->held = fake_ucx.hold;
    request->cb = param->op_attr_mask & UCX_OP_ATTR_FIELD_CALLBACK ? param->cb.send : NULL;
    request->user = param->user_data;
    if (endpoint->worker->first) { endpoint->worker->last->next = request; } else { endpoint->worker->first = request; }
    endpoint->worker->last = request;
    fake_ucx.requests++;
    signal_worker(endpoint->worker);
    return request;
}

static ucx_request_t put_nbx(void *endpoint, const void *from, size_t bytes, uint64_t to, void *rkey, const struct ucx_request_param *param)
{
    LOCKED;
    CHECK((param->op_attr_mask & UCX_OP_ATTR_FIELD_MEMH) && param->memh); /* or UCX would register anew */
    bool is_device;
    (void)reach((uintptr_t)from, bytes, &is_device);
    CHECK(is_device == ((param->op_attr_mask & UCX_OP_ATTR_FIELD_MEMORY_TYPE) && param->memory_type == UCX_MEMORY_TYPE_CUDA));
    if (++fake_ucx.puts_posted == fake_ucx.break_in_put) { break_now(endpoint); }
    return post(endpoint, (struct request){.kind = RK_PUT, .from = from, .bytes = bytes, .to = to, .key = ((struct rkey *)rkey)->key}, param);
}
static ucx_request_t flush_nbx(void *endpoint, const struct ucx_request_param *param)
{
    LOCKED;
    return post(endpoint, (struct request){.kind = RK_FLUSH}, param);
}
static ucx_request_t am_send_nbx(void *endpoint, unsigned id, const void *header, size_t header_bytes, const void *data,
                                 size_t bytes, const struct ucx_request_param *param)
{
    LOCKED;
    (void)header;
    CHECK(header_bytes == 0);
    CHECK(param->flags & UCX_AM_SEND_FLAG_EAGER);
    return post(endpoint, (struct request){.kind = RK_MESSAGE, .from = data, .bytes = bytes, .id = id}, param);
}
static ucx_request_t close_nbx(void *endpoint_, const struct ucx_request_param *param)
{
    LOCKED;
    struct endpoint *endpoint = endpoint_;
    struct worker *worker = endpoint->worker;
    CHECK(param->flags == UCX_EP_CLOSE_FLAG_FORCE);
    struct endpoint **at = &worker->endpoints;
    while (*at != endpoint) { at = &(*at)->next; }
    *at = endpoint->next;
    bool any = false;
    for (struct request *each = worker->first; each; each = each->next) {
        if (each->endpoint != endpoint) { continue; }
        each->endpoint = NULL;
        each->status = UCX_ERR_CANCELED;
        if (!fake_ucx.hold_for_ever) { each->held = false; }
        any = true;
    }
    free(endpoint);
    fake_ucx.endpoints--;
    if (!any) { return NULL; }
    struct request *request = calloc(1, sizeof *request);
    *request = (struct request){.kind = RK_CLOSE, .worker = worker, .held = fake_ucx.hold_for_ever};
    worker->last->next = request;
    worker->last = request;
    fake_ucx.requests++;
    return request;
}
static void request_free(ucx_request_t request_)
{
    LOCKED;
    struct request *request = request_;
    CHECK(request->ended);
    if (request->cb) {
        request->freed_by_us = true; /* inside its callback, from progress, which frees it */
        return;
    }
    fake_ucx.requests--;
    free(request);
}
static ucx_status_t check_status(ucx_request_t request)
{
    LOCKED;
    return ((struct request *)request)->ended ? ((struct request *)request)->status : UCX_INPROGRESS;
}

static unsigned worker_progress(void *worker_)
{
    LOCKED;
    struct worker *worker = worker_;
    CHECK(worker->used);
    unsigned moved = 0;
    uint64_t count;
    worker->signalled = false;
    (void)!read(worker->efd, &count, sizeof count);
    for (struct endpoint *each = worker->endpoints; each; each = each->next) {
        if (!each->broken || each->told) { continue; }
        each->told = true;
        for (struct request *request = worker->first; request; request = request->next) {
            if (request->endpoint == each && !fake_ucx.hold_for_ever) {
                request->held = false;
                request->status = each->status;
            }
        }
        each->on_error(each->arg, each, each->status);
        CHECK(worker->used);
        moved++;
    }
    /* In order: one that is held holds those behind it. */
    while (worker->first && !worker->first->held) {
        struct request *request = worker->first;
        worker->first = request->next;
        request->ended = true;
        if (request->status == UCX_OK) { deliver(request); }
        moved++;
        if (!request->cb) { continue; } /* its owner looks at it, and frees it */
        request->cb(request, request->status, request->user);
        CHECK(worker->used);
        CHECK(request->freed_by_us);
        fake_ucx.requests--;
        free(request);
    }
    while (worker->messages) {
        struct message *message = worker->messages;
        worker->messages = message->next;
        const struct ucx_am_recv_param param = {0};
        if (worker->handlers[message->id].cb) {
            (void)worker->handlers[message->id].cb(worker->handlers[message->id].arg, NULL, 0, message->data, message->bytes, &param);
        }
        CHECK(worker->used);
        free(message);
        moved++;
    }
    return moved;
}
static ucx_status_t worker_arm(void *worker_)
{
    LOCKED;
    struct worker *worker = worker_;
    if (fails()) { return FAILURE; }
    return worker->signalled || worker->messages || (worker->first && !worker->first->held) ? UCX_ERR_BUSY : UCX_OK;
}
static const char *status_string(ucx_status_t status) { return status == UCX_OK ? "Success" : "a fake failure"; }

static const struct ucx_api api = {
    get_version, config_read, config_modify, buffer_release, init_version, cleanup, context_query, mem_map, mem_unmap,
    rkey_pack, buffer_release, ep_rkey_unpack, rkey_destroy, worker_create, worker_destroy, worker_progress, worker_get_efd,
    worker_arm, worker_query, worker_release_address, set_handler, ep_create, ep_query, close_nbx, flush_nbx, put_nbx,
    am_send_nbx, request_free, check_status, status_string,
};

const struct ucx_api *fake_ucx_begin(void)
{
    LOCKED;
    fake_ucx = (struct fake_ucx_world){.version_minor = 19, .knows_cuda = true, .is_direct = true};
    memset(devices, 0, sizeof devices);
    return &api;
}

void fake_ucx_device(const void *base, size_t bytes, uint8_t *view)
{
    LOCKED;
    int at = 0;
    while (at < DEVICES_MAX && devices[at].base) { at++; }
    CHECK(at < DEVICES_MAX);
    devices[at].base = base;
    devices[at].bytes = bytes;
    devices[at].view = view;
}

bool fake_ucx_end(void)
{
    LOCKED;
    const struct fake_ucx_world *w = &fake_ucx;
    bool clean = w->contexts + w->workers + w->endpoints + w->rkeys + w->memhs + w->requests + w->buffers == 0;
    if (!clean) {
        printf("left: contexts %u workers %u endpoints %u rkeys %u memhs %u requests %u buffers %u\n", w->contexts, w->workers,
               w->endpoints, w->rkeys, w->memhs, w->requests, w->buffers);
    }
    return clean;
}

void fake_ucx_release(void)
{
    LOCKED;
    fake_ucx.hold = fake_ucx.hold_for_ever = false;
    for (int i = 0; i < WORKERS_MAX; i++) {
        if (!workers[i].used) { continue; }
        for (struct request *each = workers[i].first; each; each = each->next) { each->held = false; }
        signal_worker(&workers[i]);
    }
}

void fake_ucx_break(ucx_status_t status)
{
    LOCKED;
    for (int i = 0; i < WORKERS_MAX; i++) {
        for (struct endpoint *each = workers[i].used ? workers[i].endpoints : NULL; each; each = each->next) {
            each->broken = true;
            each->status = status;
        }
        if (workers[i].used) { signal_worker(&workers[i]); }
    }
}
