/* device_memory_slots: device memory beside the pool, and streams for a library that queues its own work. */
#include <stdlib.h>

#include "base/check.h"
#include "kernels/cuda/device_memory_private.h"
#include "kernels/cuda/slots_args.h"

_Static_assert(CUDA_SLOTS_PIECES_MAX == KV_MEMORY_RANGES_MAX, "one launch moves the pieces of one op");

struct piece_area {
    struct piece_area *next;
    uint8_t *first; /* an address of the device */
    size_t bytes;
    bool is_held;
    bool is_host; /* pinned memory that nobody holds, and that is to be freed */
};

struct kv_memory_queue {
    struct device_memory *memory;
    struct cuda_stream *stream;
};

/* ---- pieces ---------------------------------------------------------------------------------- */

status_t device_memory_queue_pieces(struct device_memory *memory, const struct kv_memory_op *op, struct cuda_stream *stream)
{
    const struct cuda_driver *d = memory->driver;
    const bool to_slot = op->kind == KV_MEMORY_GATHER;
    struct cuda_launch shape;
    if (op->form != NULL) {
        struct cuda_slots_convert_args args;
        cuda_slots_convert_prepare(&op->form->pool, &op->form->slot, &args);
        args.pool = memory->pool;
        args.slot = op->slot;
        args.count = op->count;
        args.to_slot = to_slot;
        for (uint32_t i = 0; i < op->count; i++) { args.offsets[i] = op->offsets[i]; }
        cuda_slots_convert_shape(&args, &shape);
        return d->launch(d, CUDA_KERNEL_slots_convert, &shape, &args, sizeof(args), stream, NULL);
    }
    struct cuda_slots_copy_args args = {.pool = memory->pool, .slot = op->slot, .count = op->count,
                                        .vectors = (uint32_t)(op->range_bytes / 16), .to_slot = to_slot};
    for (uint32_t i = 0; i < op->count; i++) { args.offsets[i] = op->offsets[i]; }
    cuda_slots_copy_shape(&args, &shape);
    return d->launch(d, CUDA_KERNEL_slots_copy, &shape, &args, sizeof(args), stream, NULL);
}

/* ---- slots ----------------------------------------------------------------------------------- */

/* What is given back while transfers of a library are under way (each has a PASSED behind it) is kept for the next who asks
 * for as much: freeing waits for the whole device, and a transfer that hangs would hang everybody who gives slots back. Those
 * who give back and ask later free what is kept as soon as nothing is under way: who counts slots counts those that are
 * held. One that is queued between the look and the free is waited for, and it ends, at the latest by its abort. */
static struct piece_area *area_kept(struct device_memory *memory, size_t bytes)
{
    struct piece_area *area = memory->areas;
    while (area != NULL && (area->is_held || area->is_host || area->bytes != bytes)) { area = area->next; }
    if (area != NULL) { area->is_held = true; }
    return area;
}

/* Takes those that nobody holds out of the list, all of them. */
static struct piece_area *take_kept(struct device_memory *memory)
{
    struct piece_area *kept = NULL;
    for (struct piece_area **link = &memory->areas; *link != NULL;) {
        struct piece_area *area = *link;
        if (area->is_held) {
            link = &area->next;
            continue;
        }
        *link = area->next;
        area->next = kept;
        kept = area;
    }
    return kept;
}

/* The same, where freeing them cannot take for ever. Under the lock. */
static struct piece_area *take_kept_if_safe(struct device_memory *memory) { return memory->awaited == 0 ? take_kept(memory) : NULL; }

static void free_all(const struct cuda_driver *d, struct piece_area *areas)
{
    while (areas != NULL) {
        struct piece_area *area = areas;
        areas = area->next;
        (area->is_host ? d->host_free : d->mem_free)(d, area->first);
        free(area);
    }
}

status_t device_memory_slots_alloc(struct kv_memory *head, size_t bytes, uint8_t **ret_slots, struct diag *diag)
{
    struct device_memory *memory = device_memory(head);
    const struct cuda_driver *d = memory->driver;
    pthread_mutex_lock(&memory->lock);
    struct piece_area *area = area_kept(memory, bytes), *others = take_kept_if_safe(memory);
    pthread_mutex_unlock(&memory->lock);
    free_all(d, others);
    if (area != NULL) {
        *ret_slots = area->first;
        return STATUS_OK;
    }
    area = calloc(1, sizeof(*area));
    if (area == NULL) {
        diag_set(diag, "no memory for the slots of a CUDA device");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    void *first = NULL;
    status_t st = d->mem_alloc(d, bytes, &first, diag);
    if (failed(st)) {
        free(area);
        return STATUS_CAUSE(st.code == ST_RESOURCE_EXHAUSTED ? ST_RESOURCE_EXHAUSTED : ST_INTERNAL, SCOPE_NODE, st.cause);
    }
    *area = (struct piece_area){.first = first, .bytes = bytes, .is_held = true};
    pthread_mutex_lock(&memory->lock);
    area->next = memory->areas;
    memory->areas = area;
    pthread_mutex_unlock(&memory->lock);
    *ret_slots = first;
    return STATUS_OK;
}

void device_memory_slots_free(struct kv_memory *head, uint8_t *slots)
{
    struct device_memory *memory = device_memory(head);
    if (slots == NULL) { return; }
    pthread_mutex_lock(&memory->lock);
    struct piece_area *area = memory->areas;
    while (area != NULL && area->first != slots) { area = area->next; }
    CHECK(area != NULL);
    CHECK(area->is_held);
    area->is_held = false;
    struct piece_area *kept = take_kept_if_safe(memory);
    pthread_mutex_unlock(&memory->lock);
    free_all(memory->driver, kept);
}

/* Pinned memory is freed as slots are: it waits for the device too. */
void device_memory_host_free(struct kv_memory *head, void *host)
{
    struct device_memory *memory = device_memory(head);
    struct piece_area *area = host != NULL ? calloc(1, sizeof(*area)) : NULL;
    if (area == NULL) {
        memory->driver->host_free(memory->driver, host);
        return;
    }
    *area = (struct piece_area){.first = host, .is_host = true};
    pthread_mutex_lock(&memory->lock);
    area->next = memory->areas;
    memory->areas = area;
    struct piece_area *kept = take_kept_if_safe(memory);
    pthread_mutex_unlock(&memory->lock);
    free_all(memory->driver, kept);
}

/* One that is held still is that of a transfer that never ended: a kernel may yet write there, and freeing it would wait for
 * that one. Its device is about to be given up with the process. */
void device_memory_slots_end(struct device_memory *memory)
{
    free_all(memory->driver, take_kept(memory));
    while (memory->areas != NULL) {
        struct piece_area *area = memory->areas;
        memory->areas = area->next;
        free(area);
    }
}

/* ---- queues ---------------------------------------------------------------------------------- */

status_t device_memory_queue_create(struct kv_memory *head, struct kv_memory_queue **ret_queue, struct diag *diag)
{
    struct device_memory *memory = device_memory(head);
    const struct cuda_driver *d = memory->driver;
    struct kv_memory_queue *queue = calloc(1, sizeof(*queue));
    if (queue == NULL) {
        diag_set(diag, "no memory for a queue of a CUDA device");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    queue->memory = memory;
    status_t st = d->stream_create(d, true, &queue->stream, diag);
    if (failed(st)) {
        free(queue);
        return STATUS_CAUSE(st.code == ST_RESOURCE_EXHAUSTED ? ST_RESOURCE_EXHAUSTED : ST_INTERNAL, SCOPE_NODE, st.cause);
    }
    *ret_queue = queue;
    return STATUS_OK;
}

void device_memory_queue_destroy(struct kv_memory *head, struct kv_memory_queue *queue)
{
    const struct cuda_driver *d = device_memory(head)->driver;
    if (queue == NULL) { return; }
    d->stream_destroy(d, queue->stream);
    free(queue);
}

void *device_memory_queue_handle(struct kv_memory *head, struct kv_memory_queue *queue)
{
    const struct cuda_driver *d = device_memory(head)->driver;
    return d->stream_handle(d, queue->stream);
}

/* By the driver's thread, or by the submitter's where nothing could be queued: it only posts. */
static void passed(void *user, status_t st)
{
    struct kv_memory_op *op = user;
    struct device_memory *memory = op->queue->memory;
    op->status = st;
    pthread_mutex_lock(&memory->lock);
    op->next = memory->passed;
    memory->passed = op;
    pthread_cond_signal(&memory->wake);
    pthread_mutex_unlock(&memory->lock);
}

/* By the submitter's thread and not by ours: what he queues next shall not be waited for. */
void device_memory_queue_passed(struct device_memory *memory, struct kv_memory_op *op)
{
    const struct cuda_driver *d = memory->driver;
    CHECK(op->queue->memory == memory);
    pthread_mutex_lock(&memory->lock);
    memory->awaited++;
    pthread_mutex_unlock(&memory->lock);
    status_t st = d->stream_callback(d, op->queue->stream, passed, op, NULL);
    if (failed(st)) { passed(op, st); }
}

/* ---- the device ------------------------------------------------------------------------------ */

status_t device_memory_thread_bind(struct kv_memory *head, struct diag *diag)
{
    const struct cuda_driver *d = device_memory(head)->driver;
    status_t st = d->thread_bind(d, diag);
    return failed(st) ? STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, st.cause) : STATUS_OK;
}

status_t device_memory_left(struct kv_memory *head, uint64_t *ret_free, struct diag *diag)
{
    const struct cuda_driver *d = device_memory(head)->driver;
    uint64_t total;
    status_t st = d->memory_left(d, ret_free, &total, diag);
    return failed(st) ? STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, st.cause) : STATUS_OK;
}
