/* device_ipc: memory and events of the emulated device in another process.
 *
 * Both are memfds. A handle names the exporter's process and file descriptor, and the importer opens it through /proc; the inode
 * tells a later file under the same number. So nothing is left behind when a process is killed. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/cuda/device_internal.h"

enum { KIND_MEMORY = 0x6d656d31, KIND_EVENT = 0x65766e31 };

struct handle {
    uint32_t kind;
    int32_t pid, fd;
    uint32_t device;
    uint64_t serial, inode, map_bytes, offset, bytes;
};
_Static_assert(sizeof(struct handle) <= sizeof(struct cuda_ipc_handle), "a handle has 64 bytes");

static void write_handle(const struct device *device, uint32_t kind, int fd, struct handle *handle, struct cuda_ipc_handle *ret_handle)
{
    struct stat status;
    if (fstat(fd, &status) != 0) { device_violation("fstat of a memfd"); }
    handle->kind = kind;
    handle->pid = getpid();
    handle->fd = fd;
    handle->device = device->options.device;
    handle->serial = device->serial;
    handle->inode = status.st_ino;
    memset(ret_handle, 0, sizeof *ret_handle);
    memcpy(ret_handle, handle, sizeof *handle);
}

/* Opens what a handle names; -1: no such thing, or no longer. */
static int open_handle(const struct handle *handle)
{
    char path[64];
    struct stat status;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", handle->pid, handle->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && (fstat(fd, &status) != 0 || status.st_ino != handle->inode)) {
        close(fd);
        return -1;
    }
    return fd;
}

static status_t check_handle(struct device *device, const struct handle *handle, uint32_t kind, struct diag *diag)
{
    if (handle->kind != kind) { return device_raise(device, CAUSE_INVALID_VALUE, diag, "an IPC handle of another kind, or of none"); }
    if (handle->serial == device->serial) {
        return device_raise(device, CAUSE_INVALID_CONTEXT, diag, "a process opens its own IPC handle");
    }
    return STATUS_OK;
}

static status_t ipc_export_memory(const struct cuda_driver *self, void *memory, struct cuda_ipc_handle *ret_handle, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_IPC, diag));
    status_t st = STATUS_OK;
    struct range *range = device_range_of(device, memory, 1);
    if (range == NULL || range->is_imported || range->first != memory) {
        st = device_raise(device, CAUSE_INVALID_VALUE, diag, "export of %p, which mem_alloc did not give", memory);
    } else {
        struct handle handle = {.map_bytes = range->map_bytes, .offset = (uint64_t)(range->first - range->map), .bytes = range->bytes};
        write_handle(device, KIND_MEMORY, range->fd, &handle, ret_handle);
    }
    device_leave(device);
    return st;
}

static status_t ipc_import_memory(const struct cuda_driver *self, const struct cuda_ipc_handle *bytes, void **ret_device, struct diag *diag)
{
    struct device *device = device_of(self);
    struct handle handle;
    memcpy(&handle, bytes, sizeof handle);
    TRY(device_enter(device, EMULATED_IPC, diag));
    status_t st = device_refuse_in_capture(device, "ipc_import_memory", diag);
    if (!failed(st)) { st = check_handle(device, &handle, KIND_MEMORY, diag); }
    if (!failed(st)) {
        int fd = open_handle(&handle);
        if (fd < 0) {
            st = device_raise(device, CAUSE_INVALID_VALUE, diag, "an IPC handle of memory that is gone");
        } else {
            device_add_range(device, fd, true, handle.map_bytes, handle.offset, handle.bytes, ret_device);
            close(fd);
        }
    }
    device_leave(device);
    return st;
}

static bool touches(const struct op *op, const struct range *range)
{
    const unsigned char *to = op->u.copy.to, *from = op->u.copy.from;
    return op->kind == OP_COPY && ((to >= range->first && to < range->first + range->bytes) ||
                                   (from >= range->first && from < range->first + range->bytes));
}

static void ipc_close_memory(const struct cuda_driver *self, void *memory)
{
    struct device *device = device_of(self);
    if (memory == NULL) { return; }
    device_enter_void(device);
    struct range *range = device_range_of(device, memory, 1);
    if (range == NULL || !range->is_imported || range->first != memory) { device_violation("ipc_close_memory of %p, which was not imported", memory); }
    for (struct cuda_stream *stream = device->streams; stream != NULL; stream = stream->next) {
        for (const struct op *op = stream->head; op != NULL; op = op->next) {
            if (touches(op, range)) { device_violation("imported memory is closed while a copy of it is queued"); }
        }
    }
    device_drop_range(device, range);
    device_leave(device);
}

static struct shared_event *map_event(int fd)
{
    void *shared = mmap(NULL, sizeof(struct shared_event), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED) { device_violation("cannot map an event"); }
    return shared;
}

struct event_map *device_event_map_create(void)
{
    struct event_map *map = calloc(1, sizeof *map);
    int fd = memfd_create("emulated-event", MFD_CLOEXEC);
    if (map == NULL || fd < 0 || ftruncate(fd, sizeof(struct shared_event)) != 0) { device_violation("no memory for an event"); }
    *map = (struct event_map){.refs = 1, .fd = fd, .peer_fd = -1, .shared = map_event(fd)};
    return map;
}

static status_t ipc_export_event(const struct cuda_driver *self, struct cuda_event *event, struct cuda_ipc_handle *ret_handle, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_IPC, diag));
    status_t st = STATUS_OK;
    if (event->map == NULL || event->map->fd < 0) {
        st = device_raise(device, CAUSE_INVALID_HANDLE, diag, "export of an event that is not interprocess, or not ours");
    } else {
        struct handle handle = {.bytes = sizeof(struct shared_event)};
        write_handle(device, KIND_EVENT, event->map->fd, &handle, ret_handle);
    }
    device_leave(device);
    return st;
}

static status_t ipc_import_event(const struct cuda_driver *self, const struct cuda_ipc_handle *bytes, struct cuda_event **ret_event,
                                 struct diag *diag)
{
    struct device *device = device_of(self);
    struct handle handle;
    memcpy(&handle, bytes, sizeof handle);
    TRY(device_enter(device, EMULATED_IPC, diag));
    status_t st = check_handle(device, &handle, KIND_EVENT, diag);
    if (!failed(st)) {
        int fd = open_handle(&handle);
        int peer = handle.pid == getpid() ? -1 : (int)syscall(SYS_pidfd_open, handle.pid, 0);
        if (fd < 0) {
            st = device_raise(device, CAUSE_INVALID_VALUE, diag, "an IPC handle of an event that is gone");
            if (peer >= 0) { close(peer); }
        } else {
            struct event_map *map = calloc(1, sizeof *map);
            struct cuda_event *event = calloc(1, sizeof *event);
            if (map == NULL || event == NULL) { device_violation("no memory"); }
            *map = (struct event_map){.refs = 1, .fd = -1, .peer_fd = peer, .shared = map_event(fd)};
            *event = (struct cuda_event){.kind = CUDA_EVENT_INTERPROCESS, .map = map, .node = NODE_NONE};
            close(fd);
            device->events++;
            *ret_event = event;
        }
    }
    device_leave(device);
    return st;
}

void device_ipc_calls(struct cuda_driver *table)
{
    table->ipc_export_memory = ipc_export_memory;
    table->ipc_import_memory = ipc_import_memory;
    table->ipc_close_memory = ipc_close_memory;
    table->ipc_export_event = ipc_export_event;
    table->ipc_import_event = ipc_import_event;
}
