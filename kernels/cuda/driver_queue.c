/* driver_queue: streams, events, copies and graphs of a real device. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver_real.h"

/* ---- copies ------------------------------------------------------------------------------- */

static status_t copy(const struct cuda_driver *self, enum cuda_copy_kind kind, void *to, const void *from, size_t bytes,
                     struct cuda_stream *stream, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    if (bytes == 0) { return STATUS_OK; }
    TRY(real_enter(real, diag));
    switch (kind) {
    case CUDA_COPY_TO_DEVICE:
        TRY_CU(real, diag, cuMemcpyHtoDAsync, device_address(to), from, bytes, stream_of(stream));
        break;
    case CUDA_COPY_TO_HOST:
        TRY_CU(real, diag, cuMemcpyDtoHAsync, to, device_address(from), bytes, stream_of(stream));
        break;
    case CUDA_COPY_ON_DEVICE:
        TRY_CU(real, diag, cuMemcpyDtoDAsync, device_address(to), device_address(from), bytes, stream_of(stream));
        break;
    }
    return STATUS_OK;
}

static status_t copy_2d(const struct cuda_driver *self, const struct cuda_copy_2d *copy, struct cuda_stream *stream,
                        struct diag *diag)
{
    struct real_driver *real = real_of(self);
    if (copy->row_bytes == 0 || copy->rows == 0) { return STATUS_OK; }
    CUDA_MEMCPY2D params;
    memset(&params, 0, sizeof params);
    if (copy->kind == CUDA_COPY_TO_DEVICE) {
        params.srcMemoryType = CU_MEMORYTYPE_HOST;
        params.srcHost = copy->from;
    } else {
        params.srcMemoryType = CU_MEMORYTYPE_DEVICE;
        params.srcDevice = device_address(copy->from);
    }
    if (copy->kind == CUDA_COPY_TO_HOST) {
        params.dstMemoryType = CU_MEMORYTYPE_HOST;
        params.dstHost = copy->to;
    } else {
        params.dstMemoryType = CU_MEMORYTYPE_DEVICE;
        params.dstDevice = device_address(copy->to);
    }
    params.srcPitch = copy->from_pitch;
    params.dstPitch = copy->to_pitch;
    params.WidthInBytes = copy->row_bytes;
    params.Height = copy->rows;
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuMemcpy2DAsync, &params, stream_of(stream));
    return STATUS_OK;
}

static status_t refuse_capture(struct real_driver *real, struct cuda_stream *stream, const char *what, struct diag *diag)
{
    CUstreamCaptureStatus capturing;
    TRY_CU(real, diag, cuStreamIsCapturing, stream_of(stream), &capturing);
    if (capturing != CU_STREAM_CAPTURE_STATUS_NONE) {
        diag_set(diag, "%s on a CUDA stream that is capturing a graph", what);
        return STATUS_CAUSE(ST_FAILED_PRECONDITION, SCOPE_NODE, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    return STATUS_OK;
}

/* One call of the library for many small copies costs about what a single copy does. */
static status_t copy_batch(const struct cuda_driver *self, enum cuda_copy_kind kind, const struct cuda_copy *copies,
                           size_t count, struct cuda_stream *stream, struct diag *diag)
{
    enum { PART = 256 };
    struct real_driver *real = real_of(self);
    CUdeviceptr to[PART], from[PART];
    size_t bytes[PART], first = 0;
    (void)kind; /* the library tells host from device by the address */
    /* STREAM: the sources are read when the stream gets there, not now. */
    CUmemcpyAttributes attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    TRY(real_enter(real, diag));
    TRY(refuse_capture(real, stream, "copy_batch", diag));
    for (size_t i = 0; i < count;) {
        size_t filled = 0;
        for (; i < count && filled < PART; i++) {
            if (copies[i].bytes == 0) { continue; }
            to[filled] = device_address(copies[i].to);
            from[filled] = device_address(copies[i].from);
            bytes[filled++] = copies[i].bytes;
        }
        if (filled > 0) {
            TRY_CU(real, diag, cuMemcpyBatchAsync, to, from, bytes, filled, &attributes, &first, 1, stream_of(stream));
        }
    }
    return STATUS_OK;
}

static status_t fill(const struct cuda_driver *self, void *device, uint8_t value, size_t bytes, struct cuda_stream *stream,
                     struct diag *diag)
{
    struct real_driver *real = real_of(self);
    if (bytes == 0) { return STATUS_OK; }
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuMemsetD8Async, device_address(device), value, bytes, stream_of(stream));
    return STATUS_OK;
}

/* The library stages pageable memory through its own pinned buffers and returns when it has read the last byte. */
static status_t copy_from_pageable(const struct cuda_driver *self, void *device, const void *host, size_t bytes,
                                   struct cuda_stream *stream, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    if (bytes == 0) { return STATUS_OK; }
    TRY(real_enter(real, diag));
    TRY(refuse_capture(real, stream, "copy_from_pageable", diag));
    TRY_CU(real, diag, cuMemcpyHtoDAsync, device_address(device), host, bytes, stream_of(stream));
    return STATUS_OK;
}

/* ---- streams ------------------------------------------------------------------------------ */

static status_t stream_create(const struct cuda_driver *self, bool urgent, struct cuda_stream **ret_stream,
                              struct diag *diag)
{
    struct real_driver *real = real_of(self);
    CUstream stream;
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuStreamCreateWithPriority, &stream, CU_STREAM_NON_BLOCKING,
           urgent ? real->priority_greatest : real->priority_least);
    *ret_stream = (struct cuda_stream *)(void *)stream;
    return STATUS_OK;
}

static void stream_destroy(const struct cuda_driver *self, struct cuda_stream *stream)
{
    struct real_driver *real = real_of(self);
    if (stream == NULL || failed(real_enter(real, NULL))) { return; }
    (void)real->cu.cuStreamSynchronize(stream_of(stream)); /* destroying alone would not wait */
    (void)real->cu.cuStreamDestroy(stream_of(stream));
}

static void *stream_handle(const struct cuda_driver *self, struct cuda_stream *stream)
{
    (void)self;
    return stream_of(stream);
}

static status_t stream_sync(const struct cuda_driver *self, struct cuda_stream *stream, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuStreamSynchronize, stream_of(stream));
    return STATUS_OK;
}

static status_t stream_wait_event(const struct cuda_driver *self, struct cuda_stream *stream, struct cuda_event *event,
                                  struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuStreamWaitEvent, stream_of(stream), event_of(event), CU_EVENT_WAIT_DEFAULT);
    return STATUS_OK;
}

static void give_back(struct real_driver *real, struct real_callback *callback)
{
    pthread_mutex_lock(&real->callbacks_lock);
    callback->next = real->callbacks_free;
    real->callbacks_free = callback;
    pthread_mutex_unlock(&real->callbacks_lock);
}

/* On libcuda's thread, which may not call libcuda: so the status is made without asking for the error's name. */
static void CUDA_CB call_back(CUstream stream, CUresult result, void *user)
{
    struct real_callback *callback = user;
    struct real_driver *real = callback->real;
    cuda_done_fn done = callback->done;
    void *done_user = callback->user;
    (void)stream;
    give_back(real, callback);
    done(done_user, result == CUDA_SUCCESS ? STATUS_OK : STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, result));
}

/* cuStreamAddCallback and not its successor cuLaunchHostFunc: that one is never called when the device fails, and
 * whoever waits for `done` would wait for ever. */
static status_t stream_callback(const struct cuda_driver *self, struct cuda_stream *stream, cuda_done_fn done, void *user,
                                struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    pthread_mutex_lock(&real->callbacks_lock);
    struct real_callback *callback = real->callbacks_free;
    if (callback != NULL) { real->callbacks_free = callback->next; }
    pthread_mutex_unlock(&real->callbacks_lock);
    if (callback == NULL) { callback = malloc(sizeof *callback); }
    if (callback == NULL) {
        diag_set(diag, "no memory for a callback of a CUDA stream");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    *callback = (struct real_callback){.real = real, .done = done, .user = user};
    CUresult result = real->cu.cuStreamAddCallback(stream_of(stream), call_back, callback, 0);
    if (result != CUDA_SUCCESS) {
        give_back(real, callback);
        return real_raise(real, result, __LINE__, "cuStreamAddCallback", diag);
    }
    return STATUS_OK;
}

/* ---- events ------------------------------------------------------------------------------- */

static status_t event_create(const struct cuda_driver *self, enum cuda_event_kind kind, struct cuda_event **ret_event,
                             struct diag *diag)
{
    struct real_driver *real = real_of(self);
    CUevent event;
    unsigned flags = kind == CUDA_EVENT_TIMING         ? CU_EVENT_DEFAULT
                     : kind == CUDA_EVENT_INTERPROCESS ? CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS
                                                       : CU_EVENT_DISABLE_TIMING;
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuEventCreate, &event, flags);
    *ret_event = (struct cuda_event *)(void *)event;
    return STATUS_OK;
}

static void event_destroy(const struct cuda_driver *self, struct cuda_event *event)
{
    struct real_driver *real = real_of(self);
    if (event == NULL || failed(real_enter(real, NULL))) { return; }
    (void)real->cu.cuEventDestroy(event_of(event));
}

static status_t event_record(const struct cuda_driver *self, struct cuda_event *event, struct cuda_stream *stream,
                             struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuEventRecord, event_of(event), stream_of(stream));
    return STATUS_OK;
}

static status_t event_sync(const struct cuda_driver *self, struct cuda_event *event, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuEventSynchronize, event_of(event));
    return STATUS_OK;
}

static status_t event_elapsed(const struct cuda_driver *self, struct cuda_event *first, struct cuda_event *last,
                              float *ret_ms, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuEventElapsedTime, ret_ms, event_of(first), event_of(last));
    return STATUS_OK;
}

/* ---- graphs ------------------------------------------------------------------------------- */

/* THREAD_LOCAL: a transfer thread may allocate or wait while the engine captures. */
static status_t capture_begin(const struct cuda_driver *self, struct cuda_stream *stream, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuStreamBeginCapture, stream_of(stream), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    return STATUS_OK;
}

static status_t capture_end(const struct cuda_driver *self, struct cuda_stream *stream, struct cuda_graph **ret_graph,
                            struct diag *diag)
{
    struct real_driver *real = real_of(self);
    CUgraph graph = NULL;
    CUgraphExec exec = NULL;
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuStreamEndCapture, stream_of(stream), &graph);
    CUresult result = real->cu.cuGraphInstantiateWithFlags(&exec, graph, 0);
    (void)real->cu.cuGraphDestroy(graph); /* the executable one has its own copy */
    if (result != CUDA_SUCCESS) { return real_raise(real, result, __LINE__, "cuGraphInstantiate", diag); }
    /* Puts it on the device now, so that the first launch is as quick as the next. */
    result = real->cu.cuGraphUpload(exec, stream_of(stream));
    if (result != CUDA_SUCCESS) {
        (void)real->cu.cuGraphExecDestroy(exec);
        return real_raise(real, result, __LINE__, "cuGraphUpload", diag);
    }
    *ret_graph = (struct cuda_graph *)(void *)exec;
    return STATUS_OK;
}

static status_t graph_launch(const struct cuda_driver *self, struct cuda_graph *graph, struct cuda_stream *stream,
                             struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuGraphLaunch, (CUgraphExec)(void *)graph, stream_of(stream));
    return STATUS_OK;
}

static void graph_destroy(const struct cuda_driver *self, struct cuda_graph *graph)
{
    struct real_driver *real = real_of(self);
    if (graph == NULL || failed(real_enter(real, NULL))) { return; }
    (void)real->cu.cuGraphExecDestroy((CUgraphExec)(void *)graph);
}

void real_queue_calls(struct cuda_driver *table)
{
    table->copy = copy;
    table->copy_2d = copy_2d;
    table->copy_batch = copy_batch;
    table->fill = fill;
    table->copy_from_pageable = copy_from_pageable;
    table->stream_create = stream_create;
    table->stream_destroy = stream_destroy;
    table->stream_handle = stream_handle;
    table->stream_sync = stream_sync;
    table->stream_wait_event = stream_wait_event;
    table->stream_callback = stream_callback;
    table->event_create = event_create;
    table->event_destroy = event_destroy;
    table->event_record = event_record;
    table->event_sync = event_sync;
    table->event_elapsed = event_elapsed;
    table->capture_begin = capture_begin;
    table->capture_end = capture_end;
    table->graph_launch = graph_launch;
    table->graph_destroy = graph_destroy;
}
