/* device_foreign: what a library of its own queues on a stream of the emulated device, as NCCL does.
 *
 * A stream that such work was queued on has a thread that runs it, so that what blocks there blocks nothing else: neither
 * the device's own thread, which callbacks are on, nor who waits for another stream. */
#include <stdlib.h>

#include "tests/cuda/device_internal.h"

static _Thread_local const struct cuda_driver *bound;

static status_t thread_bind(const struct cuda_driver *self, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_STREAM, diag));
    bound = self;
    device_leave(device);
    return STATUS_OK;
}

const struct cuda_driver *emulated_device_bound(void) { return bound; }

static void *stream_handle(const struct cuda_driver *self, struct cuda_stream *stream)
{
    (void)self;
    return stream;
}

/* Runs the stream's first operation whenever it is one of those. */
static void *run_foreign(void *user)
{
    struct cuda_stream *stream = user;
    struct device *device = stream->device;
    pthread_mutex_lock(&device->lock);
    while (!stream->foreign_stops) {
        if (stream->head != NULL && stream->head->kind == OP_FOREIGN) {
            device_run_head(device, stream);
        } else {
            pthread_cond_wait(&device->changed, &device->lock);
        }
    }
    pthread_mutex_unlock(&device->lock);
    return NULL;
}

void emulated_device_stream_run(const struct cuda_driver *driver, void *handle, void (*fn)(void *user), void *user)
{
    struct device *device = device_of(driver);
    struct cuda_stream *stream = NULL;
    device_enter_void(device);
    for (struct cuda_stream *one = device->streams; one != NULL && stream == NULL; one = one->next) {
        if (one == handle) { stream = one; }
    }
    if (stream == NULL) { device_violation("a library was given a stream that is none of this device's"); }
    if (stream->capture != NULL) { device_violation("a library's work on a stream that is capturing"); }
    struct op *op = device_op_create(OP_FOREIGN, NULL, 0);
    op->u.foreign.run = fn;
    op->u.foreign.user = user;
    if (!stream->has_foreign) {
        stream->device = device;
        stream->has_foreign = true;
        if (pthread_create(&stream->foreign, NULL, run_foreign, stream) != 0) { device_violation("no thread"); }
    }
    device_queue(device, stream, op);
    device_leave(device);
}

void device_stop_foreign(struct device *device, struct cuda_stream *stream)
{
    if (!stream->has_foreign) { return; }
    stream->foreign_stops = true;
    pthread_cond_broadcast(&device->changed);
    pthread_mutex_unlock(&device->lock);
    pthread_join(stream->foreign, NULL);
    pthread_mutex_lock(&device->lock);
    stream->has_foreign = false;
}

bool emulated_device_take(const struct cuda_driver *driver, uint64_t bytes)
{
    struct device *device = device_of(driver);
    device_enter_void(device);
    const bool is_there = bytes <= device->options.memory_bytes - device->memory_used;
    if (is_there) { device->memory_used += bytes; }
    device_leave(device);
    return is_there;
}

void emulated_device_give_back(const struct cuda_driver *driver, uint64_t bytes)
{
    struct device *device = device_of(driver);
    device_enter_void(device);
    if (bytes > device->memory_used) { device_violation("%llu bytes are given back that nobody took", (unsigned long long)bytes); }
    device->memory_used -= bytes;
    device_leave(device);
}

void device_foreign_calls(struct cuda_driver *table)
{
    table->thread_bind = thread_bind;
    table->stream_handle = stream_handle;
}
