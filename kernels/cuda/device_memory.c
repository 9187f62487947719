#include "kernels/cuda/device_memory.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/check.h"
#include "kernels/cuda/cuda_handle.h"
#include "kernels/cuda/device_memory_private.h"
#include "kernels/cuda/rows_args.h"

#define EXPORT_MAGIC 0x314d4442u /* "BDM1" */

struct kv_memory_peer {
    uint8_t *base; /* the imported pool */
    size_t bytes;
    struct cuda_event *events[KV_MEMORY_EVENTS];
};

/* What another process imports, as it goes over a local connection: one machine, one byte order. */
struct export_form {
    uint32_t magic, events;
    uint64_t process; /* a number that no other process of the machine drew */
    uint64_t pool_bytes;
    uint8_t device[KV_MEMORY_ID_BYTES];
    struct cuda_ipc_handle pool;
    struct cuda_ipc_handle event[KV_MEMORY_EVENTS];
};
_Static_assert(sizeof(struct export_form) <= KV_MEMORY_EXPORT_BYTES_MAX, "an export fits the room that it is given");

/* ---- an op on the device, by the thread ------------------------------------------------------ */

static status_t queue_copies(struct device_memory *memory, const struct slot *slot)
{
    const struct kv_memory_op *op = slot->op;
    struct cuda_copy copies[KV_MEMORY_RANGES_MAX];
    for (uint32_t i = 0; i < op->count; i++) {
        uint8_t *range = memory->pool + op->offsets[i];
        copies[i].bytes = op->range_bytes;
        switch (op->kind) {
        case KV_MEMORY_READ:
            copies[i].to = op->host + i * op->range_bytes;
            copies[i].from = range;
            break;
        case KV_MEMORY_WRITE:
            copies[i].to = range;
            copies[i].from = op->host + i * op->range_bytes;
            break;
        default:
            copies[i].to = range;
            copies[i].from = op->peer->base + op->peer_offsets[i];
            break;
        }
    }
    const enum cuda_copy_kind kind = op->kind == KV_MEMORY_READ    ? CUDA_COPY_TO_HOST
                                     : op->kind == KV_MEMORY_WRITE ? CUDA_COPY_TO_DEVICE
                                                                   : CUDA_COPY_ON_DEVICE;
    return memory->driver->copy_batch(memory->driver, kind, copies, op->count, slot->stream, NULL);
}

/* Of the ranges; of pieces in a slot, where there is one. */
static status_t queue_checksums(struct device_memory *memory, const struct slot *slot)
{
    const struct cuda_driver *d = memory->driver;
    const struct kv_memory_op *op = slot->op;
    const bool in_slot = op->kind == KV_MEMORY_GATHER || op->kind == KV_MEMORY_SCATTER;
    const size_t bytes = in_slot ? kv_memory_piece_bytes(op) : op->range_bytes;
    struct cuda_crc32c_args args = memory->crc_args;
    struct cuda_launch shape;
    for (uint32_t i = 0; i < op->count; i++) {
        slot->host->ranges[i] = (struct cuda_crc32c_range){.offset = in_slot ? i * bytes : op->offsets[i], .bytes = (uint32_t)bytes};
        slot->host->crcs[i] = 0; /* goes with the ranges: the kernel adds to it */
    }
    args.base = in_slot ? op->slot : memory->pool;
    args.ranges = slot->device->ranges;
    args.range_count = op->count;
    args.bytes_max = (uint32_t)bytes;
    args.ret_crcs = slot->device->crcs;
    cuda_crc32c_shape(&args, &shape);
    TRY(d->copy(d, CUDA_COPY_TO_DEVICE, slot->device, slot->host, sizeof(*slot->host), slot->stream, NULL));
    TRY(d->launch(d, CUDA_KERNEL_crc32c, &shape, &args, sizeof(args), slot->stream, NULL));
    return d->copy(d, CUDA_COPY_TO_HOST, slot->host->crcs, slot->device->crcs, op->count * sizeof(slot->host->crcs[0]), slot->stream, NULL);
}

static void landed(void *user, status_t st)
{
    struct slot *slot = user;
    struct device_memory *memory = slot->memory;
    pthread_mutex_lock(&memory->lock);
    slot->status = st;
    slot->next = memory->landed;
    memory->landed = slot;
    pthread_cond_signal(&memory->wake);
    pthread_mutex_unlock(&memory->lock);
}

static status_t queue_op(struct device_memory *memory, struct slot *slot)
{
    const struct cuda_driver *d = memory->driver;
    const struct kv_memory_op *op = slot->op;
    TRY(cuda_marks_wait_on(memory->marks, op->mark, slot->stream, NULL));
    if (op->kind == KV_MEMORY_COPY && op->event != KV_MEMORY_EVENT_NONE) {
        TRY(d->stream_wait_event(d, slot->stream, op->peer->events[op->event], NULL));
    }
    if (op->kind == KV_MEMORY_GATHER || op->kind == KV_MEMORY_SCATTER) {
        TRY(device_memory_queue_pieces(memory, op, slot->stream));
    } else if (op->kind != KV_MEMORY_CHECKSUM) {
        TRY(queue_copies(memory, slot));
    }
    if (kv_memory_op_has_crcs(op)) { TRY(queue_checksums(memory, slot)); }
    if (op->kind == KV_MEMORY_CHECKSUM && op->event != KV_MEMORY_EVENT_NONE) {
        TRY(d->event_record(d, memory->events[op->event], slot->stream, NULL));
    }
    return d->stream_callback(d, slot->stream, landed, slot, NULL);
}

static void say_done(struct kv_memory_op *op, status_t st)
{
    op->status = failed(st) ? STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, st.cause) : STATUS_OK;
    op->done(op);
}

/* Frees the slot first: `done` may be the last that anyone hears of the op. */
static void end_op(struct slot *slot, status_t st)
{
    struct kv_memory_op *op = slot->op;
    if (kv_memory_op_has_crcs(op) && !failed(st)) { memcpy(op->crc, slot->host->crcs, op->count * sizeof(op->crc[0])); }
    slot->op = NULL;
    say_done(op, st);
}

static void start_op(struct device_memory *memory, struct slot *slot, struct kv_memory_op *op)
{
    slot->op = op;
    status_t st = queue_op(memory, slot);
    if (!failed(st)) { return; }
    /* Half of it may be queued: nobody gets his memory back before the stream is quiet. */
    (void)memory->driver->stream_sync(memory->driver, slot->stream, NULL);
    end_op(slot, st);
}

static struct slot *free_slot(struct device_memory *memory)
{
    for (uint32_t i = 0; i < DEVICE_MEMORY_SLOTS; i++) {
        if (memory->slots[i].op == NULL) { return &memory->slots[i]; }
    }
    return NULL;
}

static bool is_idle(const struct device_memory *memory)
{
    if (memory->first != NULL || memory->awaited > 0) { return false; }
    for (uint32_t i = 0; i < DEVICE_MEMORY_SLOTS; i++) {
        if (memory->slots[i].op != NULL) { return false; }
    }
    return true;
}

static void *thread_main(void *user)
{
    struct device_memory *memory = user;
    pthread_mutex_lock(&memory->lock);
    for (;;) {
        if (memory->landed != NULL) {
            struct slot *slot = memory->landed;
            memory->landed = slot->next;
            status_t st = slot->status;
            pthread_mutex_unlock(&memory->lock);
            end_op(slot, st);
            pthread_mutex_lock(&memory->lock);
            continue;
        }
        if (memory->passed != NULL) {
            struct kv_memory_op *op = memory->passed;
            memory->passed = op->next;
            memory->awaited--;
            pthread_mutex_unlock(&memory->lock);
            say_done(op, op->status);
            pthread_mutex_lock(&memory->lock);
            continue;
        }
        struct slot *slot = memory->first != NULL ? free_slot(memory) : NULL;
        if (slot != NULL) {
            struct kv_memory_op *op = memory->first;
            memory->first = op->next;
            pthread_mutex_unlock(&memory->lock);
            start_op(memory, slot, op);
            pthread_mutex_lock(&memory->lock);
            continue;
        }
        if (memory->is_stopping && is_idle(memory)) { break; }
        pthread_cond_wait(&memory->wake, &memory->lock);
    }
    pthread_mutex_unlock(&memory->lock);
    return NULL;
}

/* ---- calls of any thread --------------------------------------------------------------------- */

static void submit(struct kv_memory *head, struct kv_memory_op *op)
{
    struct device_memory *memory = device_memory(head);
    kv_memory_op_check(head, op);
    if (op->kind == KV_MEMORY_COPY) {
        CHECK(op->range_bytes <= op->peer->bytes);
        for (uint32_t i = 0; i < op->count; i++) { CHECK(op->peer_offsets[i] <= op->peer->bytes - op->range_bytes); }
    }
    if (op->kind == KV_MEMORY_PASSED) {
        device_memory_queue_passed(memory, op);
        return;
    }
    op->next = NULL;
    pthread_mutex_lock(&memory->lock);
    *(memory->first == NULL ? &memory->first : &memory->last->next) = op;
    memory->last = op;
    pthread_cond_signal(&memory->wake);
    pthread_mutex_unlock(&memory->lock);
}

static status_t host_alloc(struct kv_memory *head, size_t bytes, void **ret_host, struct diag *diag)
{
    const struct cuda_driver *d = device_memory(head)->driver;
    return d->host_alloc(d, bytes, ret_host, diag);
}

static pthread_once_t process_once = PTHREAD_ONCE_INIT;
static uint64_t process_number;

static void process_draw(void)
{
    if (getrandom(&process_number, sizeof(process_number), 0) != (ssize_t)sizeof(process_number)) { process_number = 1; }
}

/* Process ids alone mean little across containers that share a device; a number alone is the same in a forked child. */
static uint64_t process_id(void)
{
    pthread_once(&process_once, process_draw);
    return process_number ^ (uint64_t)getpid() << 32;
}

static status_t export_pool(struct kv_memory *head, uint8_t *ret_bytes, size_t *ret_count, struct diag *diag)
{
    struct device_memory *memory = device_memory(head);
    const struct cuda_driver *d = memory->driver;
    struct export_form form = {.magic = EXPORT_MAGIC, .events = KV_MEMORY_EVENTS, .pool_bytes = head->pool_bytes};
    form.process = process_id();
    memcpy(form.device, head->id, sizeof(form.device));
    TRY(d->ipc_export_memory(d, memory->pool, &form.pool, diag));
    for (uint32_t i = 0; i < KV_MEMORY_EVENTS; i++) { TRY(d->ipc_export_event(d, memory->events[i], &form.event[i], diag)); }
    memcpy(ret_bytes, &form, sizeof(form));
    *ret_count = sizeof(form);
    return STATUS_OK;
}

static void release_peer(struct kv_memory *head, struct kv_memory_peer *peer)
{
    const struct cuda_driver *d = device_memory(head)->driver;
    if (peer == NULL) { return; }
    for (uint32_t i = 0; i < KV_MEMORY_EVENTS; i++) { d->event_destroy(d, peer->events[i]); }
    d->ipc_close_memory(d, peer->base);
    free(peer);
}

static status_t check_form(const struct kv_memory *head, const struct export_form *form, struct diag *diag)
{
    if (form->magic != EXPORT_MAGIC || form->events != KV_MEMORY_EVENTS || form->pool_bytes == 0 ||
        form->pool_bytes % KV_MEMORY_ALIGN != 0 || form->pool_bytes > SIZE_MAX) {
        diag_set(diag, "these bytes are not the export of a CUDA device's pool that this version knows");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER);
    }
    if (memcmp(form->device, head->id, sizeof(form->device)) != 0) {
        diag_set(diag, "the peer's pool lies on another CUDA device");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
    }
    if (form->process == process_id()) {
        diag_set(diag, "the pool is one of this very process, which the driver does not import");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
    }
    return STATUS_OK;
}

static status_t import_pool(struct kv_memory *head, const uint8_t *bytes, size_t count, struct kv_memory_peer **ret_peer,
                            size_t *ret_pool_bytes, struct diag *diag)
{
    const struct cuda_driver *d = device_memory(head)->driver;
    struct export_form form;
    if (count != sizeof(form)) {
        diag_set(diag, "the export of a CUDA device's pool is %zu bytes, these are %zu", sizeof(form), count);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER);
    }
    memcpy(&form, bytes, sizeof(form));
    TRY(check_form(head, &form, diag));
    struct kv_memory_peer *peer = calloc(1, sizeof(*peer));
    if (peer == NULL) {
        diag_set(diag, "no memory for an imported pool");
        return STATUS(ST_UNAVAILABLE, SCOPE_PEER);
    }
    void *base = NULL;
    status_t st = d->ipc_import_memory(d, &form.pool, &base, diag);
    peer->base = base;
    peer->bytes = (size_t)form.pool_bytes;
    for (uint32_t i = 0; i < KV_MEMORY_EVENTS && !failed(st); i++) { st = d->ipc_import_event(d, &form.event[i], &peer->events[i], diag); }
    if (failed(st)) {
        release_peer(head, peer);
        return STATUS_CAUSE(st.code == ST_FAILED_PRECONDITION ? ST_FAILED_PRECONDITION : ST_UNAVAILABLE, SCOPE_PEER, st.cause);
    }
    *ret_peer = peer;
    *ret_pool_bytes = peer->bytes;
    return STATUS_OK;
}

/* ---- life ------------------------------------------------------------------------------------ */

static const struct kv_memory_ops device_ops = {
    .submit = submit,
    .host_alloc = host_alloc,
    .host_free = device_memory_host_free,
    .export_pool = export_pool,
    .import_pool = import_pool,
    .release_peer = release_peer,
    .slots_alloc = device_memory_slots_alloc,
    .slots_free = device_memory_slots_free,
    .queue_create = device_memory_queue_create,
    .queue_destroy = device_memory_queue_destroy,
    .queue_handle = device_memory_queue_handle,
    .thread_bind = device_memory_thread_bind,
    .memory_left = device_memory_left,
};

static status_t slot_init(struct device_memory *memory, struct slot *slot, struct diag *diag)
{
    const struct cuda_driver *d = memory->driver;
    void *host = NULL, *device = NULL;
    slot->memory = memory;
    TRY(d->stream_create(d, true, &slot->stream, diag));
    TRY(d->host_alloc(d, sizeof(struct slot_area), &host, diag));
    slot->host = host;
    TRY(d->mem_alloc(d, sizeof(struct slot_area), &device, diag));
    slot->device = device;
    return STATUS_OK;
}

static status_t thread_start(struct device_memory *memory, struct diag *diag)
{
    sigset_t all, before; /* signals are the main thread's */
    int error = pthread_mutex_init(&memory->lock, NULL);
    memory->has_lock = error == 0;
    if (error == 0) {
        error = pthread_cond_init(&memory->wake, NULL);
        memory->has_wake = error == 0;
    }
    if (error == 0) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&memory->thread, NULL, thread_main, memory);
        memory->has_thread = error == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (error == 0) { return STATUS_OK; }
    diag_set(diag, "no thread for the memory of a CUDA device: %s", strerror(error));
    return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, error);
}

static status_t build(struct device_memory *memory, struct diag *diag)
{
    const struct cuda_driver *d = memory->driver;
    for (uint32_t i = 0; i < KV_MEMORY_EVENTS; i++) { TRY(d->event_create(d, CUDA_EVENT_INTERPROCESS, &memory->events[i], diag)); }
    for (uint32_t i = 0; i < DEVICE_MEMORY_SLOTS; i++) { TRY(slot_init(memory, &memory->slots[i], diag)); }
    cuda_crc32c_prepare(&memory->crc_args);
    return thread_start(memory, diag);
}

status_t device_memory_create_on(const struct cuda_driver *driver, struct cuda_marks *marks, void *pool, size_t pool_bytes,
                                 struct kv_memory **ret_memory, struct diag *diag)
{
    struct device_memory *memory = calloc(1, sizeof(*memory));
    if (memory == NULL) {
        diag_set(diag, "no memory for the KV memory of a device");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    _Static_assert(sizeof(driver->info.uuid) == KV_MEMORY_ID_BYTES, "a device's UUID is the pool's id");
    memory->head = (struct kv_memory){.ops = &device_ops, .pool_bytes = pool_bytes};
    memcpy(memory->head.id, driver->info.uuid, sizeof(memory->head.id));
    memory->driver = driver;
    memory->marks = marks;
    memory->pool = pool;
    status_t st = build(memory, diag);
    if (failed(st)) {
        device_memory_destroy(&memory->head);
        return st;
    }
    *ret_memory = &memory->head;
    return STATUS_OK;
}

status_t device_memory_create(struct kernels *kernels, void *pool, size_t pool_bytes, struct kv_memory **ret_memory, struct diag *diag)
{
    CHECK(!kernels->uses_host_memory);
    const struct cuda_handle *handle = cuda_handle(kernels);
    return device_memory_create_on(handle->driver, handle->marks, pool, pool_bytes, ret_memory, diag);
}

void device_memory_destroy(struct kv_memory *head)
{
    if (head == NULL) { return; }
    struct device_memory *memory = device_memory(head);
    const struct cuda_driver *d = memory->driver;
    if (memory->has_thread) {
        pthread_mutex_lock(&memory->lock);
        memory->is_stopping = true;
        pthread_cond_signal(&memory->wake);
        pthread_mutex_unlock(&memory->lock);
        pthread_join(memory->thread, NULL);
    }
    for (uint32_t i = 0; i < DEVICE_MEMORY_SLOTS; i++) {
        d->stream_destroy(d, memory->slots[i].stream);
        d->host_free(d, memory->slots[i].host);
        d->mem_free(d, memory->slots[i].device);
    }
    for (uint32_t i = 0; i < KV_MEMORY_EVENTS; i++) { d->event_destroy(d, memory->events[i]); }
    device_memory_slots_end(memory);
    if (memory->has_wake) { pthread_cond_destroy(&memory->wake); }
    if (memory->has_lock) { pthread_mutex_destroy(&memory->lock); }
    free(memory);
}
