/* device_copy: the work that streams of the emulated device take: copies, fills and kernels, checked when they are asked for. */
#include <stdlib.h>
#include <sys/mman.h>

#include "tests/cuda/device_internal.h"
#include "tests/cuda/emu.h"

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

void device_copy_calls(struct cuda_driver *table)
{
    table->copy = copy;
    table->copy_2d = copy_2d;
    table->copy_batch = copy_batch;
    table->fill = fill;
    table->copy_from_pageable = copy_from_pageable;
    table->launch = launch;
}
