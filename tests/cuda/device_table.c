/* device_table: the emulated device as a whole: made, ended, counted, broken. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/cuda/device_internal.h"

_Thread_local bool device_in_callback;

void device_violation(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fputs("emulated CUDA device: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    abort();
}

static const char *name_of(int32_t cause)
{
    switch (cause) {
    case CAUSE_INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case CAUSE_OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case CAUSE_INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
    case CAUSE_INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
    case CAUSE_ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case CAUSE_CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    case CAUSE_CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    case CAUSE_CAPTURE_UNMATCHED: return "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED";
    case CAUSE_CAPTURE_UNJOINED: return "CUDA_ERROR_STREAM_CAPTURE_UNJOINED";
    case CAUSE_CAPTURE_ISOLATION: return "CUDA_ERROR_STREAM_CAPTURE_ISOLATION";
    case CAUSE_CAPTURED_EVENT: return "CUDA_ERROR_CAPTURED_EVENT";
    case CAUSE_UNKNOWN: return "CUDA_ERROR_UNKNOWN";
    case CAUSE_GEMM_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "?";
    }
}

static const char *error_name(const struct cuda_driver *self, int32_t cause)
{
    (void)self;
    return name_of(cause);
}

static uint8_t code_of(int32_t cause)
{
    switch (cause) {
    case CAUSE_INVALID_VALUE:
    case CAUSE_INVALID_HANDLE: return ST_INVALID_ARGUMENT;
    case CAUSE_OUT_OF_MEMORY: return ST_RESOURCE_EXHAUSTED;
    case CAUSE_GEMM_NOT_SUPPORTED: return ST_UNIMPLEMENTED;
    case CAUSE_INVALID_CONTEXT:
    case CAUSE_CAPTURE_UNSUPPORTED:
    case CAUSE_CAPTURE_INVALIDATED:
    case CAUSE_CAPTURE_UNMATCHED:
    case CAUSE_CAPTURE_UNJOINED:
    case CAUSE_CAPTURE_ISOLATION:
    case CAUSE_CAPTURED_EVENT: return ST_FAILED_PRECONDITION;
    default: return ST_INTERNAL;
    }
}

status_t device_raise(const struct device *device, int32_t cause, struct diag *diag, const char *format, ...)
{
    char text[640];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    diag_set(diag, "CUDA device %u (emulated): %s: %s", device->options.device, text, name_of(cause));
    return STATUS_CAUSE(code_of(cause), SCOPE_NODE, cause);
}

void device_enter_void(struct device *device)
{
    if (device_in_callback) { device_violation("a callback of a stream calls the driver"); }
    pthread_mutex_lock(&device->lock);
}

status_t device_enter(struct device *device, enum emulated_call call, struct diag *diag)
{
    device_enter_void(device);
    uint64_t number = ++device->calls[call];
    status_t st = STATUS_OK;
    if (device->failures[call].at == number) {
        st = device_raise(device, device->failures[call].cause, diag, "call %llu of its kind fails as the test wants it",
                          (unsigned long long)number);
    } else if (device->sticky != 0) {
        st = device_raise(device, device->sticky, diag, "%s", device->sticky_text);
    }
    if (failed(st)) { device_leave(device); }
    return st;
}

/* ---- for tests ---------------------------------------------------------------------------- */

uint64_t emulated_device_calls(const struct cuda_driver *driver, enum emulated_call call)
{
    struct device *device = device_of(driver);
    device_enter_void(device);
    uint64_t calls = device->calls[call];
    device_leave(device);
    return calls;
}

void emulated_device_fail(const struct cuda_driver *driver, enum emulated_call call, uint64_t nth, int32_t cause)
{
    struct device *device = device_of(driver);
    device_enter_void(device);
    device->failures[call] = (struct planned_failure){.at = nth == 0 ? 0 : device->calls[call] + nth, .cause = cause};
    device_leave(device);
}

void emulated_device_break(const struct cuda_driver *driver, uint64_t nth)
{
    struct device *device = device_of(driver);
    device_enter_void(device);
    device->break_at = nth == 0 ? 0 : device->operations_run + nth;
    device_leave(device);
}

uint64_t emulated_device_operations_run(const struct cuda_driver *driver)
{
    struct device *device = device_of(driver);
    device_enter_void(device);
    uint64_t count = device->operations_run;
    device_leave(device);
    return count;
}

uint64_t emulated_device_operations_left(const struct cuda_driver *driver)
{
    struct device *device = device_of(driver);
    uint64_t count = 0;
    device_enter_void(device);
    for (struct cuda_stream *stream = device->streams; stream != NULL; stream = stream->next) { count += stream->queued - stream->done; }
    device_leave(device);
    return count;
}

/* ---- made and ended ----------------------------------------------------------------------- */

static void close_device(const struct cuda_driver *self)
{
    struct device *device = device_of(self);
    device_enter_void(device);
    if (device->streams != NULL) { device_violation("closed with a stream that was not destroyed"); }
    if (device->ranges != NULL) {
        device_violation("closed with %zu bytes of device memory that were not %s", device->ranges->bytes,
                         device->ranges->is_imported ? "closed" : "freed");
    }
    if (device->pinned != NULL) { device_violation("closed with %zu bytes of pinned memory that were not freed", device->pinned->bytes); }
    if (device->events + device->graphs + device->gemms > 0) {
        device_violation("closed with %u events, %u graphs and %u plans that were not destroyed", device->events, device->graphs, device->gemms);
    }
    device_stop_worker(device);
    device_leave(device);
    pthread_mutex_destroy(&device->lock);
    pthread_cond_destroy(&device->changed);
    free(device);
}

const struct cuda_driver *emulated_device_create(const struct emulated_options *options)
{
    static _Atomic uint32_t created;
    struct device *device = calloc(1, sizeof *device);
    if (device == NULL) { device_violation("no memory"); }
    device->options = *options;
    if (device->options.seed == 0) { device->options.seed = 1; }
    if (device->options.arch == 0) { device->options.arch = 90; }
    if (device->options.sm_count == 0) { device->options.sm_count = 4; }
    if (device->options.memory_bytes == 0) { device->options.memory_bytes = (uint64_t)4 << 30; }
    device->serial = (uint64_t)getpid() << 32 | (atomic_fetch_add(&created, 1) + 1);
    device->rng = rng_init(device->options.seed);
    device->eager = (uint32_t)rng_below(&device->rng, 4); /* some seeds are lazy throughout */
    pthread_mutex_init(&device->lock, NULL);
    pthread_cond_init(&device->changed, NULL);

    struct cuda_driver *table = &device->table;
    struct cuda_device_info *info = &table->info;
    table->context = device;
    info->device = device->options.device;
    info->arch = device->options.arch;
    info->sm_count = device->options.sm_count;
    info->shared_bytes_max = 232448;
    info->l2_bytes = 50u << 20;
    info->memory_bytes = device->options.memory_bytes;
    info->driver_version = 13000;
    snprintf(info->name, sizeof info->name, "emulated sm_%u", info->arch);
    snprintf((char *)info->uuid, sizeof info->uuid, "emulated-%u", info->device);
    table->close = close_device;
    table->error_name = error_name;
    device_memory_calls(table);
    device_queue_calls(table);
    device_foreign_calls(table);
    device_copy_calls(table);
    device_graph_calls(table);
    device_gemm_calls(table);
    device_ipc_calls(table);
    return table;
}
