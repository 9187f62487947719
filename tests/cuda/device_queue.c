/* device_queue: streams and events of the emulated device, and who runs which operation when. */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tests/cuda/device_internal.h"
#include "tests/cuda/emu.h"

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- operations --------------------------------------------------------------------------- */

struct op *device_op_create(enum op_kind kind, const void *tail, size_t tail_bytes)
{
    struct op *op = calloc(1, sizeof *op + tail_bytes);
    if (op == NULL) { device_violation("no memory"); }
    op->kind = kind;
    if (tail_bytes > 0) { memcpy(op->tail, tail, tail_bytes); }
    return op;
}

void device_record_unref(struct record *record)
{
    if (record != NULL && --record->refs == 0) { free(record); }
}

void device_event_map_unref(struct event_map *map)
{
    if (map == NULL || --map->refs > 0) { return; }
    munmap(map->shared, sizeof *map->shared);
    if (map->fd >= 0) { close(map->fd); }
    if (map->peer_fd >= 0) { close(map->peer_fd); }
    free(map);
}

void device_op_free(struct device *device, struct op *op)
{
    if (op == NULL) { return; }
    if (op->kind == OP_RECORD || op->kind == OP_WAIT) {
        device_record_unref(op->u.mark.record);
        device_event_map_unref(op->u.mark.map);
    }
    if (op->kind == OP_GRAPH) { device_graph_unref(device, op->u.graph); }
    free(op);
}

/* The exporter of an event is gone: nobody will complete it. What the chip does then is not written anywhere; here the
 * waiter goes on with whatever bytes are there, which is the worse of the two. */
static bool peer_is_dead(const struct event_map *map)
{
    struct pollfd fd = {.fd = map->peer_fd, .events = POLLIN};
    return map->peer_fd >= 0 && poll(&fd, 1, 0) == 1;
}

static bool is_reached(const struct op *wait)
{
    if (wait->u.mark.record != NULL) { return wait->u.mark.record->done; }
    return (int32_t)(atomic_load(&wait->u.mark.map->shared->completed) - wait->u.mark.ticket) >= 0 || peer_is_dead(wait->u.mark.map);
}

/* Whether the stream's next operation can be run by the thread that asks; callbacks are the worker's. */
static bool is_ready(const struct cuda_stream *stream, bool is_worker)
{
    const struct op *op = stream->head;
    if (op == NULL || stream->running) { return false; }
    if (op->kind == OP_WAIT) { return is_reached(op); }
    return op->kind != OP_CALLBACK || is_worker;
}

static void complete(struct device *device, struct op *op)
{
    if (op->kind == OP_RECORD) {
        struct record *record = op->u.mark.record;
        record->done = true;
        record->stream = NULL;
        record->done_ns = now_ns();
        if (op->u.mark.map != NULL) {
            struct shared_event *shared = op->u.mark.map->shared;
            atomic_store(&shared->completed, op->u.mark.ticket);
            syscall(SYS_futex, &shared->completed, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
        }
    }
    (void)device;
}

/* Runs the next operation of a stream that is ready. The lock is given up meanwhile. */
static void run_head(struct device *device, struct cuda_stream *stream)
{
    struct op *op = stream->head;
    char text[512] = "";
    bool sound = true;
    stream->running = true;
    device->operations_run++;
    if (device->break_at != 0 && device->operations_run == device->break_at && device->sticky == 0) {
        device->sticky = CAUSE_ILLEGAL_ADDRESS;
        memcpy(device->sticky_text, "an operation broke the device, as the test wants it", sizeof "an operation broke the device, as the test wants it");
    }
    if (op->kind == OP_CALLBACK) {
        status_t st = device->sticky == 0 ? STATUS_OK : STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, device->sticky);
        pthread_mutex_unlock(&device->lock);
        device_in_callback = true;
        op->u.callback.done(op->u.callback.user, st);
        device_in_callback = false;
        pthread_mutex_lock(&device->lock);
    } else if (device->sticky == 0 && op->kind != OP_RECORD && op->kind != OP_WAIT) {
        struct rng rng = rng_init(rng_next(&device->rng));
        device->busy = true;
        device_show_memory(device);
        pthread_mutex_unlock(&device->lock);
        sound = device_run(device, op, &rng, text, sizeof text);
        pthread_mutex_lock(&device->lock);
        device_hide_memory(device);
        device->busy = false;
    }
    if (!sound) {
        device->sticky = CAUSE_ILLEGAL_ADDRESS;
        memcpy(device->sticky_text, text, sizeof text);
    }
    complete(device, op);
    if (op->kind == OP_CALLBACK || (op->kind == OP_RECORD && op->u.mark.map != NULL)) { stream->awaited--; }
    stream->head = op->next;
    if (stream->head == NULL) { stream->tail = NULL; }
    stream->done++;
    stream->running = false;
    device_op_free(device, op);
    pthread_cond_broadcast(&device->changed);
}

/* The stream that must go on for `stream` to go on; NULL: what it waits for is run by others. */
static struct cuda_stream *needed_for(struct cuda_stream *stream, bool is_worker)
{
    while (stream != NULL && !stream->running && stream->head != NULL) {
        if (is_ready(stream, is_worker)) { return stream; }
        const struct op *op = stream->head;
        stream = op->kind == OP_WAIT && op->u.mark.record != NULL ? op->u.mark.record->stream : NULL;
    }
    return NULL;
}

static struct cuda_stream *any_ready(struct device *device, bool is_worker)
{
    uint64_t count = 0;
    struct cuda_stream *chosen = NULL;
    for (struct cuda_stream *stream = device->streams; stream != NULL; stream = stream->next) {
        if (is_ready(stream, is_worker) && rng_below(&device->rng, ++count) == 0) { chosen = stream; }
    }
    return chosen;
}

/* What is to run next for `target`: mostly what it needs and nothing else, so that a wait that is missing shows; else anything. */
static struct cuda_stream *pick(struct device *device, struct cuda_stream *target, bool is_worker)
{
    struct cuda_stream *needed = needed_for(target, is_worker);
    return needed != NULL && rng_below(&device->rng, 4) == 0 ? any_ready(device, is_worker) : needed;
}

/* Nothing that this thread could run: another thread or another process must act. */
static void wait_for_others(struct device *device, const struct cuda_stream *target)
{
    const struct op *op = target->head;
    while (op != NULL && op->kind == OP_WAIT && op->u.mark.record != NULL && op->u.mark.record->stream != NULL) {
        op = op->u.mark.record->stream->head;
    }
    if (op != NULL && op->kind == OP_WAIT && op->u.mark.map != NULL) {
        struct event_map *map = op->u.mark.map;
        uint32_t seen = atomic_load(&map->shared->completed);
        if (is_reached(op)) { return; }
        struct timespec limit = {.tv_nsec = 20000000}; /* only to see that the exporter has died */
        map->refs++;
        pthread_mutex_unlock(&device->lock);
        syscall(SYS_futex, &map->shared->completed, FUTEX_WAIT, seen, &limit, NULL, 0);
        pthread_mutex_lock(&device->lock);
        device_event_map_unref(map);
        return;
    }
    pthread_cond_wait(&device->changed, &device->lock);
}

/* One step of a thread that waits for `target` to go on: runs something, or waits for who does. */
static void advance(struct device *device, struct cuda_stream *target)
{
    struct cuda_stream *next = device->busy ? NULL : pick(device, target, false);
    if (next != NULL) {
        run_head(device, next);
    } else if (device->busy) {
        pthread_cond_wait(&device->changed, &device->lock);
    } else {
        wait_for_others(device, target);
    }
}

/* Memory stays in sight throughout: changing the mapping for each operation would cost more than most operations. */
void device_drive(struct device *device, struct cuda_stream *stream, uint64_t ticket)
{
    if (stream->done >= ticket) { return; }
    device_show_memory(device);
    while (stream->done < ticket) { advance(device, stream); }
    device_hide_memory(device);
}

/* The stream of another thread may be gone after each step: its list is read again. What is queued meanwhile is not waited for. */
void device_drive_all(struct device *device)
{
    for (struct cuda_stream *stream = device->streams; stream != NULL; stream = stream->next) { stream->drain_until = stream->queued; }
    device_show_memory(device);
    for (struct cuda_stream *stream = device->streams; stream != NULL;) {
        if (stream->done < stream->drain_until) {
            advance(device, stream);
            stream = device->streams;
        } else {
            stream = stream->next;
        }
    }
    device_hide_memory(device);
}

/* Goes on where nobody of this process waits but somebody may elsewhere: for a callback, or for an event in another process. */
static void *work(void *user)
{
    struct device *device = user;
    bool is_shown = false;
    pthread_mutex_lock(&device->lock);
    while (!device->stopping) {
        struct cuda_stream *next = NULL, *blocked = NULL;
        for (struct cuda_stream *stream = device->streams; stream != NULL && next == NULL; stream = stream->next) {
            if (stream->awaited == 0) { continue; }
            blocked = stream;
            next = device->busy ? NULL : pick(device, stream, true);
        }
        if ((next != NULL) != is_shown) {
            is_shown = !is_shown;
            if (is_shown) {
                device_show_memory(device);
            } else {
                device_hide_memory(device);
            }
        }
        if (next != NULL) {
            run_head(device, next);
        } else if (blocked != NULL && !device->busy) {
            wait_for_others(device, blocked);
        } else {
            pthread_cond_wait(&device->changed, &device->lock);
        }
    }
    if (is_shown) { device_hide_memory(device); }
    pthread_mutex_unlock(&device->lock);
    return NULL;
}

void device_stop_worker(struct device *device)
{
    if (!device->worker_runs) { return; }
    device->stopping = true;
    pthread_cond_broadcast(&device->changed);
    pthread_mutex_unlock(&device->lock);
    pthread_join(device->worker, NULL);
    pthread_mutex_lock(&device->lock);
    device->worker_runs = false;
}

static void append(struct device *device, struct cuda_stream *stream, struct op *op)
{
    if (stream->tail == NULL) {
        stream->head = op;
    } else {
        stream->tail->next = op;
    }
    stream->tail = op;
    stream->queued++;
    if (op->kind == OP_CALLBACK || (op->kind == OP_RECORD && op->u.mark.map != NULL)) {
        stream->awaited++;
        if (!device->worker_runs) {
            device->worker_runs = true;
            if (pthread_create(&device->worker, NULL, work, device) != 0) { device_violation("no thread"); }
        }
        pthread_cond_broadcast(&device->changed);
    }
}

void device_queue(struct device *device, struct cuda_stream *stream, struct op *op)
{
    if (stream->capture != NULL) {
        stream->last_node = device_graph_add(device, stream->capture, op, stream->last_node, NODE_NONE);
        return;
    }
    append(device, stream, op);
    while (rng_below(&device->rng, 8) < device->eager) {
        struct cuda_stream *next = device->busy ? NULL : any_ready(device, false);
        if (next == NULL) { break; }
        run_head(device, next);
    }
}

status_t device_refuse_in_capture(struct device *device, const char *what, struct diag *diag)
{
    struct cuda_graph *graph = device_capture_here(device);
    if (graph == NULL) { return STATUS_OK; }
    graph->spoiled = what;
    return device_raise(device, CAUSE_CAPTURE_UNSUPPORTED, diag, "%s by a thread that captures a graph", what);
}

/* ---- copies and kernels ------------------------------------------------------------------- */

static status_t check_copy(struct device *device, const struct cuda_copy_2d *copy, struct diag *diag)
{
    if (copy->rows > 1 && (copy->to_pitch < copy->row_bytes || copy->from_pitch < copy->row_bytes)) {
        return device_raise(device, CAUSE_INVALID_VALUE, diag, "a copy's pitch is below its %zu bytes a row", copy->row_bytes);
    }
    size_t to_bytes = copy->to_pitch * (copy->rows - 1) + copy->row_bytes;
    size_t from_bytes = copy->from_pitch * (copy->rows - 1) + copy->row_bytes;
    bool to_device = copy->kind != CUDA_COPY_TO_HOST, from_device = copy->kind != CUDA_COPY_TO_DEVICE;
    if (to_device ? device_range_of(device, copy->to, to_bytes) == NULL : !device_is_pinned(device, copy->to, to_bytes)) {
        return device_raise(device, CAUSE_INVALID_VALUE, diag, "a copy of %zu bytes to %p, which is not within one piece of %s memory", to_bytes,
                            copy->to, to_device ? "device" : "pinned");
    }
    if (from_device ? device_range_of(device, copy->from, from_bytes) == NULL : !device_is_pinned(device, copy->from, from_bytes)) {
        return device_raise(device, CAUSE_INVALID_VALUE, diag, "a copy of %zu bytes from %p, which is not within one piece of %s memory",
                            from_bytes, copy->from, from_device ? "device" : "pinned");
    }
    return STATUS_OK;
}

static void queue_copy(struct device *device, struct cuda_stream *stream, const struct cuda_copy_2d *copy)
{
    struct op *op = device_op_create(OP_COPY, NULL, 0);
    op->u.copy = *copy;
    device_queue(device, stream, op);
}

static struct cuda_copy_2d flat_copy(enum cuda_copy_kind kind, void *to, const void *from, size_t bytes)
{
    return (struct cuda_copy_2d){
        .kind = kind, .to = to, .to_pitch = bytes, .from = from, .from_pitch = bytes, .row_bytes = bytes, .rows = 1};
}

static status_t copy_2d(const struct cuda_driver *self, const struct cuda_copy_2d *copy, struct cuda_stream *stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_COPY, diag));
    status_t st = STATUS_OK;
    if (copy->row_bytes > 0 && copy->rows > 0) {
        st = check_copy(device, copy, diag);
        if (!failed(st)) { queue_copy(device, stream, copy); }
    }
    device_leave(device);
    return st;
}

static status_t copy(const struct cuda_driver *self, enum cuda_copy_kind kind, void *to, const void *from, size_t bytes,
                     struct cuda_stream *stream, struct diag *diag)
{
    struct cuda_copy_2d flat = flat_copy(kind, to, from, bytes);
    return copy_2d(self, &flat, stream, diag);
}

/* Queued in any order, since none is promised. */
static status_t copy_batch(const struct cuda_driver *self, enum cuda_copy_kind kind, const struct cuda_copy *copies, size_t count,
                           struct cuda_stream *stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_COPY, diag));
    status_t st = STATUS_OK;
    if (stream->capture != NULL) {
        stream->capture->spoiled = "copy_batch";
        st = device_raise(device, CAUSE_CAPTURE_UNSUPPORTED, diag, "copy_batch on a stream that is capturing");
    }
    for (size_t i = 0; i < count && !failed(st); i++) {
        struct cuda_copy_2d flat = flat_copy(kind, copies[i].to, copies[i].from, copies[i].bytes);
        if (copies[i].bytes > 0) { st = check_copy(device, &flat, diag); }
    }
    if (!failed(st) && count > 0) {
        uint32_t *order = calloc(count, sizeof *order);
        if (order == NULL) { device_violation("no memory"); }
        for (size_t i = 0; i < count; i++) {
            size_t j = rng_below(&device->rng, i + 1);
            order[i] = order[j];
            order[j] = (uint32_t)i;
        }
        for (size_t i = 0; i < count; i++) {
            const struct cuda_copy *one = &copies[order[i]];
            struct cuda_copy_2d flat = flat_copy(kind, one->to, one->from, one->bytes);
            if (one->bytes > 0) { queue_copy(device, stream, &flat); }
        }
        free(order);
    }
    device_leave(device);
    return st;
}

static status_t fill(const struct cuda_driver *self, void *memory, uint8_t value, size_t bytes, struct cuda_stream *stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_COPY, diag));
    status_t st = STATUS_OK;
    if (bytes > 0 && device_range_of(device, memory, bytes) == NULL) {
        st = device_raise(device, CAUSE_INVALID_VALUE, diag, "a fill of %zu bytes at %p, which is not within one piece of device memory", bytes,
                          memory);
    } else if (bytes > 0) {
        struct op *op = device_op_create(OP_FILL, NULL, 0);
        op->u.fill.device = memory;
        op->u.fill.bytes = bytes;
        op->u.fill.value = value;
        device_queue(device, stream, op);
    }
    device_leave(device);
    return st;
}

static status_t copy_from_pageable(const struct cuda_driver *self, void *memory, const void *host, size_t bytes, struct cuda_stream *stream,
                                   struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_COPY, diag));
    status_t st = STATUS_OK;
    if (stream->capture != NULL) {
        stream->capture->spoiled = "copy_from_pageable";
        st = device_raise(device, CAUSE_CAPTURE_UNSUPPORTED, diag, "copy_from_pageable on a stream that is capturing");
    } else if (bytes > 0 && (device_range_of(device, memory, bytes) == NULL || device_range_of(device, host, 1) != NULL)) {
        st = device_raise(device, CAUSE_INVALID_VALUE, diag, "a copy of %zu bytes from the host's %p to the device's %p: one is not", bytes, host,
                          memory);
    } else if (bytes > 0) {
        struct op *op = device_op_create(OP_COPY, host, bytes);
        op->u.copy = flat_copy(CUDA_COPY_TO_DEVICE, memory, op->tail, bytes);
        device_queue(device, stream, op);
    }
    device_leave(device);
    return st;
}

/* Below it nobody's heap, stack or program lies on this kind of machine, but a sanitizer's shadow may: there, two small
 * numbers side by side would look like an address. */
#define HOST_ADDRESS_MIN 0x500000000000u

/* A word of the arguments that is an address of the host's is one that the kernel would follow. */
static status_t check_args(struct device *device, enum cuda_kernel kernel, const void *args, size_t args_bytes, struct diag *diag)
{
    for (size_t at = 0; at + 8 <= args_bytes; at += 8) {
        uint64_t word;
        unsigned char resident;
        memcpy(&word, (const unsigned char *)args + at, 8);
        const void *address = (const void *)(uintptr_t)word;
        if (word < HOST_ADDRESS_MIN || word >> 47 != 0 || device_range_of(device, address, 1) != NULL) { continue; }
        /* A number, and behind it padding that nobody reads, with half of an address from an earlier use of the stack. */
        if ((uint32_t)word < 0x10000) { continue; }
        if (device_is_pinned(device, address, 1) || mincore((void *)(uintptr_t)(word & ~(uint64_t)4095), 1, &resident) == 0) {
            return device_raise(device, CAUSE_INVALID_VALUE, diag, "the arguments of cuda_%s hold a host address at byte %zu",
                                emu_kernel_of(kernel)->name, at);
        }
    }
    return STATUS_OK;
}

static status_t launch(const struct cuda_driver *self, enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args,
                       size_t args_bytes, struct cuda_stream *stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_LAUNCH, diag));
    status_t st = STATUS_OK;
    uint64_t threads = (uint64_t)shape->block[0] * shape->block[1] * shape->block[2];
    bool is_empty = shape->grid[0] == 0 || shape->grid[1] == 0 || shape->grid[2] == 0;
    if ((uint32_t)kernel >= CUDA_KERNEL_COUNT || emu_kernel_of(kernel)->args_bytes != args_bytes) {
        st = device_raise(device, CAUSE_INVALID_VALUE, diag, "kernel number %u was given %zu bytes of arguments", (unsigned)kernel, args_bytes);
    } else if (!is_empty && (threads == 0 || threads > 1024 || shape->block[2] > 64 || shape->shared_bytes > self->info.shared_bytes_max ||
                             shape->grid[0] > INT32_MAX || shape->grid[1] > 65535 || shape->grid[2] > 65535)) {
        st = device_raise(device, CAUSE_INVALID_VALUE, diag, "cuda_%s: grid %u %u %u, block %u %u %u, %u bytes of shared memory is no launch",
                          emu_kernel_of(kernel)->name, shape->grid[0], shape->grid[1], shape->grid[2], shape->block[0], shape->block[1],
                          shape->block[2], shape->shared_bytes);
    } else if (!is_empty) {
        st = check_args(device, kernel, args, args_bytes, diag);
    }
    if (!failed(st) && !is_empty) {
        struct op *op = device_op_create(OP_LAUNCH, args, args_bytes);
        op->u.launch.kernel = kernel;
        op->u.launch.shape = *shape;
        op->u.launch.args_bytes = args_bytes;
        device_queue(device, stream, op);
    }
    device_leave(device);
    return st;
}

/* By threads and shared memory; registers are not known here. */
static status_t occupancy(const struct cuda_driver *self, enum cuda_kernel kernel, const struct cuda_launch *shape, uint32_t *ret_blocks,
                          struct diag *diag)
{
    uint32_t threads = shape->block[0] * shape->block[1] * shape->block[2];
    if ((uint32_t)kernel >= CUDA_KERNEL_COUNT || threads == 0 || threads > 1024 || shape->shared_bytes > self->info.shared_bytes_max) {
        return device_raise(device_of(self), CAUSE_INVALID_VALUE, diag, "occupancy of no launch");
    }
    uint32_t by_threads = 2048 / threads, by_shared = 233472 / (shape->shared_bytes + 1024);
    uint32_t blocks = by_threads < by_shared ? by_threads : by_shared;
    *ret_blocks = blocks > 32 ? 32 : blocks;
    return STATUS_OK;
}

/* ---- streams ------------------------------------------------------------------------------ */

static status_t stream_create(const struct cuda_driver *self, bool urgent, struct cuda_stream **ret_stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_STREAM, diag));
    struct cuda_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) { device_violation("no memory"); }
    stream->urgent = urgent;
    stream->last_node = NODE_NONE;
    stream->next = device->streams;
    device->streams = stream;
    device_leave(device);
    *ret_stream = stream;
    return STATUS_OK;
}

static void stream_destroy(const struct cuda_driver *self, struct cuda_stream *stream)
{
    struct device *device = device_of(self);
    if (stream == NULL) { return; }
    device_enter_void(device);
    if (stream->capture != NULL) { device_violation("a stream is destroyed while it captures"); }
    device_drive(device, stream, stream->queued);
    for (struct cuda_stream **at = &device->streams; *at != NULL; at = &(*at)->next) {
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    }
    free(stream);
    device_leave(device);
}

/* A wait on a stream that captures is an error on any thread; on the capturing thread, any wait is. */
static status_t enter_wait(struct device *device, struct cuda_stream *stream, const char *what, struct diag *diag)
{
    TRY(device_enter(device, EMULATED_WAIT, diag));
    status_t st = device_refuse_in_capture(device, what, diag);
    if (!failed(st) && stream != NULL && stream->capture != NULL) {
        stream->capture->spoiled = what;
        st = device_raise(device, CAUSE_CAPTURE_UNSUPPORTED, diag, "%s of a stream that is capturing", what);
    }
    if (failed(st)) { device_leave(device); }
    return st;
}

/* After waiting: what went wrong meanwhile is said now. */
static status_t leave_wait(struct device *device, struct diag *diag)
{
    status_t st = device->sticky == 0 ? STATUS_OK : device_raise(device, device->sticky, diag, "%s", device->sticky_text);
    device_leave(device);
    return st;
}

static status_t stream_sync(const struct cuda_driver *self, struct cuda_stream *stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(enter_wait(device, stream, "stream_sync", diag));
    device_drive(device, stream, stream->queued);
    return leave_wait(device, diag);
}

/* Each look moves things on by a step, so that who polls comes to an end. */
static void step_for(struct device *device, struct cuda_stream *stream)
{
    struct cuda_stream *next = device->busy ? NULL : pick(device, stream, false);
    if (next != NULL) { run_head(device, next); }
}

static status_t stream_query(const struct cuda_driver *self, struct cuda_stream *stream, bool *ret_done, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(enter_wait(device, stream, "stream_query", diag));
    uint64_t ticket = stream->queued;
    if (stream->done < ticket) { step_for(device, stream); }
    *ret_done = stream->done >= ticket;
    return leave_wait(device, diag);
}

static status_t stream_callback(const struct cuda_driver *self, struct cuda_stream *stream, cuda_done_fn done, void *user, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_CALLBACK, diag));
    status_t st = STATUS_OK;
    if (stream->capture != NULL) {
        stream->capture->spoiled = "stream_callback";
        st = device_raise(device, CAUSE_CAPTURE_UNSUPPORTED, diag, "stream_callback on a stream that is capturing");
    } else {
        struct op *op = device_op_create(OP_CALLBACK, NULL, 0);
        op->u.callback.done = done;
        op->u.callback.user = user;
        device_queue(device, stream, op);
    }
    device_leave(device);
    return st;
}

/* ---- events ------------------------------------------------------------------------------- */

/* Its last record was captured: 1 in a capture that goes on, 2 in one that has ended. */
enum { NOT_CAPTURED, IN_CAPTURE, CAPTURE_ENDED };
static int captured(const struct cuda_event *event)
{
    return event->graph == NULL ? NOT_CAPTURED : event->graph->has_ended ? CAPTURE_ENDED : IN_CAPTURE;
}

static void note_capture(struct device *device, struct cuda_event *event, struct cuda_graph *graph, uint32_t node)
{
    if (graph != NULL) { graph->refs++; }
    device_graph_unref(device, event->graph);
    event->graph = graph;
    event->node = node;
}

static status_t event_create(const struct cuda_driver *self, enum cuda_event_kind kind, struct cuda_event **ret_event, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_EVENT, diag));
    struct cuda_event *event = calloc(1, sizeof *event);
    if (event == NULL) { device_violation("no memory"); }
    event->kind = kind;
    event->node = NODE_NONE;
    if (kind == CUDA_EVENT_INTERPROCESS) { event->map = device_event_map_create(); }
    device->events++;
    device_leave(device);
    *ret_event = event;
    return STATUS_OK;
}

static void event_destroy(const struct cuda_driver *self, struct cuda_event *event)
{
    struct device *device = device_of(self);
    if (event == NULL) { return; }
    device_enter_void(device);
    note_capture(device, event, NULL, NODE_NONE);
    device_record_unref(event->last);
    device_event_map_unref(event->map);
    free(event);
    device->events--;
    device_leave(device);
}

static status_t event_record(const struct cuda_driver *self, struct cuda_event *event, struct cuda_stream *stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_EVENT, diag));
    status_t st = STATUS_OK;
    if (stream->capture != NULL) {
        if (event->map != NULL) {
            stream->capture->spoiled = "event_record of an interprocess event";
            st = device_raise(device, CAUSE_CAPTURE_UNSUPPORTED, diag, "an interprocess event is recorded in a capture");
        } else {
            note_capture(device, event, stream->capture, stream->last_node);
        }
    } else if (event->map != NULL && event->map->fd < 0) {
        /* On the chip it may be recorded by both; Baton's exporter alone does. */
        st = device_raise(device, CAUSE_INVALID_HANDLE, diag, "an imported event is recorded");
    } else {
        struct record *record = calloc(1, sizeof *record);
        struct op *op = device_op_create(OP_RECORD, NULL, 0);
        if (record == NULL) { device_violation("no memory"); }
        record->refs = 2;
        record->stream = stream;
        device_record_unref(event->last);
        event->last = record;
        note_capture(device, event, NULL, NODE_NONE);
        op->u.mark.record = record;
        if (event->map != NULL) {
            op->u.mark.map = event->map;
            event->map->refs++;
            op->u.mark.ticket = atomic_fetch_add(&event->map->shared->recorded, 1) + 1;
        }
        device_queue(device, stream, op);
    }
    device_leave(device);
    return st;
}

static status_t wait_in_capture(struct device *device, struct cuda_stream *stream, struct cuda_event *event, struct diag *diag)
{
    struct cuda_graph *graph = captured(event) == IN_CAPTURE ? event->graph : NULL;
    if (graph == NULL || (stream->capture != NULL && stream->capture != graph)) {
        stream->capture->spoiled = "a wait for what is outside of it";
        return device_raise(device, CAUSE_CAPTURE_ISOLATION, diag, "a stream that is capturing waits for what is not in the same capture");
    }
    if (stream->capture == NULL) { /* joins */
        stream->capture = graph;
        stream->last_node = event->node;
    } else if (event->node != NODE_NONE) {
        stream->last_node = device_graph_add(device, graph, NULL, stream->last_node, event->node);
    }
    return STATUS_OK;
}

static status_t stream_wait_event(const struct cuda_driver *self, struct cuda_stream *stream, struct cuda_event *event, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_STREAM, diag));
    status_t st = STATUS_OK;
    if (captured(event) == CAPTURE_ENDED && stream->capture == NULL) {
        st = device_raise(device, CAUSE_CAPTURED_EVENT, diag, "a stream waits for an event whose last record was in a capture that has ended");
    } else if (stream->capture != NULL || captured(event) == IN_CAPTURE) {
        st = wait_in_capture(device, stream, event, diag);
    } else if (event->map != NULL && event->map->fd < 0) {
        struct op *op = device_op_create(OP_WAIT, NULL, 0);
        op->u.mark.map = event->map;
        event->map->refs++;
        op->u.mark.ticket = atomic_load(&event->map->shared->recorded);
        device_queue(device, stream, op);
    } else if (event->last != NULL && !event->last->done) {
        struct op *op = device_op_create(OP_WAIT, NULL, 0);
        op->u.mark.record = event->last;
        event->last->refs++;
        device_queue(device, stream, op);
    }
    device_leave(device);
    return st;
}

static status_t enter_event_wait(struct device *device, struct cuda_event *event, const char *what, struct diag *diag)
{
    TRY(enter_wait(device, NULL, what, diag));
    if (captured(event) != NOT_CAPTURED) {
        status_t st = device_raise(device, CAUSE_CAPTURED_EVENT, diag, "%s of an event whose last record was captured", what);
        if (captured(event) == IN_CAPTURE) { event->graph->spoiled = what; }
        device_leave(device);
        return st;
    }
    return STATUS_OK;
}

static bool imported_is_done(const struct cuda_event *event)
{
    const struct shared_event *shared = event->map->shared;
    return atomic_load(&shared->completed) == atomic_load(&shared->recorded) || peer_is_dead(event->map);
}

static status_t event_query(const struct cuda_driver *self, struct cuda_event *event, bool *ret_done, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(enter_event_wait(device, event, "event_query", diag));
    struct record *record = event->last;
    if (event->map != NULL && event->map->fd < 0) {
        *ret_done = imported_is_done(event);
    } else {
        if (record != NULL && !record->done) { step_for(device, record->stream); }
        *ret_done = record == NULL || record->done;
    }
    return leave_wait(device, diag);
}

static status_t event_sync(const struct cuda_driver *self, struct cuda_event *event, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(enter_event_wait(device, event, "event_sync", diag));
    struct record *record = event->last;
    if (event->map != NULL && event->map->fd < 0) {
        struct shared_event *shared = event->map->shared;
        while (!imported_is_done(event)) {
            uint32_t seen = atomic_load(&shared->completed);
            struct timespec limit = {.tv_nsec = 20000000};
            if (imported_is_done(event)) { break; }
            pthread_mutex_unlock(&device->lock);
            syscall(SYS_futex, &shared->completed, FUTEX_WAIT, seen, &limit, NULL, 0);
            pthread_mutex_lock(&device->lock);
        }
    } else if (record != NULL) {
        record->refs++;
        device_show_memory(device);
        while (!record->done) { advance(device, record->stream); }
        device_hide_memory(device);
        device_record_unref(record);
    }
    return leave_wait(device, diag);
}

static status_t event_elapsed(const struct cuda_driver *self, struct cuda_event *first, struct cuda_event *last, float *ret_ms,
                              struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_EVENT, diag));
    status_t st = STATUS_OK;
    if (first->kind != CUDA_EVENT_TIMING || last->kind != CUDA_EVENT_TIMING || first->last == NULL || last->last == NULL ||
        !first->last->done || !last->last->done) {
        st = device_raise(device, CAUSE_INVALID_HANDLE, diag, "event_elapsed of events that are not timed, or not done");
    } else {
        *ret_ms = (float)((double)(last->last->done_ns - first->last->done_ns) * 1e-6);
    }
    device_leave(device);
    return st;
}

void device_queue_calls(struct cuda_driver *table)
{
    table->copy = copy;
    table->copy_2d = copy_2d;
    table->copy_batch = copy_batch;
    table->fill = fill;
    table->copy_from_pageable = copy_from_pageable;
    table->launch = launch;
    table->occupancy = occupancy;
    table->stream_create = stream_create;
    table->stream_destroy = stream_destroy;
    table->stream_sync = stream_sync;
    table->stream_query = stream_query;
    table->stream_wait_event = stream_wait_event;
    table->stream_callback = stream_callback;
    table->event_create = event_create;
    table->event_destroy = event_destroy;
    table->event_record = event_record;
    table->event_query = event_query;
    table->event_sync = event_sync;
    table->event_elapsed = event_elapsed;
}
