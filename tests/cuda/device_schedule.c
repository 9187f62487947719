/* device_schedule: which operation of which stream of the emulated device runs when, and who waits. */
#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/cuda/device_internal.h"

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
bool device_peer_is_dead(const struct event_map *map)
{
    struct pollfd fd = {.fd = map->peer_fd, .events = POLLIN};
    return map->peer_fd >= 0 && poll(&fd, 1, 0) == 1;
}

static bool is_reached(const struct op *wait)
{
    if (wait->u.mark.record != NULL) { return wait->u.mark.record->done; }
    return (int32_t)(atomic_load(&wait->u.mark.map->shared->completed) - wait->u.mark.ticket) >= 0 || device_peer_is_dead(wait->u.mark.map);
}

/* Operations that somebody outside may wait for: the worker sees to it that their turn comes. */
static bool is_awaited(const struct op *op)
{
    return op->kind == OP_CALLBACK || op->kind == OP_FOREIGN || (op->kind == OP_RECORD && op->u.mark.map != NULL);
}

/* Whether the stream's next operation can be run by the thread that asks; callbacks are the worker's, a library's work is the
 * thread's of its stream. */
static bool is_ready(const struct cuda_stream *stream, bool is_worker)
{
    const struct op *op = stream->head;
    if (op == NULL || stream->running) { return false; }
    if (op->kind == OP_WAIT) { return is_reached(op); }
    return op->kind != OP_FOREIGN && (op->kind != OP_CALLBACK || is_worker);
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
void device_run_head(struct device *device, struct cuda_stream *stream)
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
    } else if (op->kind == OP_FOREIGN) { /* of a broken device too: the library has something to clear away */
        pthread_mutex_unlock(&device->lock);
        op->u.foreign.run(op->u.foreign.user);
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
    if (is_awaited(op)) { stream->awaited--; }
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
struct cuda_stream *device_pick(struct device *device, struct cuda_stream *target, bool is_worker)
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
void device_advance(struct device *device, struct cuda_stream *target)
{
    struct cuda_stream *next = device->busy ? NULL : device_pick(device, target, false);
    if (next != NULL) {
        device_run_head(device, next);
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
    while (stream->done < ticket) { device_advance(device, stream); }
    device_hide_memory(device);
}

/* The stream of another thread may be gone after each step: its list is read again. What is queued meanwhile is not waited for. */
void device_drive_all(struct device *device)
{
    for (struct cuda_stream *stream = device->streams; stream != NULL; stream = stream->next) { stream->drain_until = stream->queued; }
    device_show_memory(device);
    for (struct cuda_stream *stream = device->streams; stream != NULL;) {
        if (stream->done < stream->drain_until) {
            device_advance(device, stream);
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
            next = device->busy ? NULL : device_pick(device, stream, true);
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
            device_run_head(device, next);
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
    if (is_awaited(op)) {
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
        device_run_head(device, next);
    }
}

status_t device_refuse_in_capture(struct device *device, const char *what, struct diag *diag)
{
    struct cuda_graph *graph = device_capture_here(device);
    if (graph == NULL) { return STATUS_OK; }
    graph->spoiled = what;
    return device_raise(device, CAUSE_CAPTURE_UNSUPPORTED, diag, "%s by a thread that captures a graph", what);
}
