/* device_queue: streams and events of the emulated device. */
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/cuda/device_internal.h"

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
    device_stop_foreign(device, stream);
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
    return atomic_load(&shared->completed) == atomic_load(&shared->recorded) || device_peer_is_dead(event->map);
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
        while (!record->done) { device_advance(device, record->stream); }
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
    table->stream_create = stream_create;
    table->stream_destroy = stream_destroy;
    table->stream_sync = stream_sync;
    table->stream_wait_event = stream_wait_event;
    table->stream_callback = stream_callback;
    table->event_create = event_create;
    table->event_destroy = event_destroy;
    table->event_record = event_record;
    table->event_sync = event_sync;
    table->event_elapsed = event_elapsed;
}
