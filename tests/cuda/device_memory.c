/* device_memory: device, pinned and registered memory of the emulated device. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cuda/device_internal.h"

#define PAGE 4096u
#define ALIGNMENT 256u          /* as driver.h promises; and the granularity in which an overrun meets the guard page */
#define POISON 0xffu            /* NaN in every format */
#define SLACK 0xcbu             /* beside an allocation */
#define POISON_MAX ((size_t)256 << 20)

static size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

static void *map_between_guards(int fd, size_t map_bytes, int protection)
{
    unsigned char *all = mmap(NULL, map_bytes + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) { device_violation("no address space for %zu bytes", map_bytes); }
    int flags = MAP_FIXED | (fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
    if (mmap(all + PAGE, map_bytes, protection, flags, fd, 0) == MAP_FAILED) { device_violation("cannot map %zu bytes", map_bytes); }
    return all + PAGE;
}

static void unmap_with_guards(unsigned char *map, size_t map_bytes) { munmap(map - PAGE, map_bytes + 2 * PAGE); }

struct range *device_range_of(struct device *device, const void *address, size_t bytes)
{
    const unsigned char *first = address;
    for (struct range *range = device->ranges; range != NULL; range = range->next) {
        if (first >= range->first && first < range->first + range->bytes && bytes <= (size_t)(range->first + range->bytes - first)) {
            return range;
        }
    }
    return NULL;
}

bool device_is_pinned(struct device *device, const void *address, size_t bytes)
{
    const unsigned char *first = address;
    for (struct pinned *pinned = device->pinned; pinned != NULL; pinned = pinned->next) {
        if (first >= pinned->first && first < pinned->first + pinned->bytes && bytes <= (size_t)(pinned->first + pinned->bytes - first)) {
            return true;
        }
    }
    return false;
}

static void protect(struct device *device, int protection)
{
    for (struct range *range = device->ranges; range != NULL; range = range->next) {
        if (mprotect(range->map, range->map_bytes, protection) != 0) { device_violation("mprotect failed"); }
    }
}

void device_show_memory(struct device *device)
{
    if (device->unlocked++ == 0) { protect(device, PROT_READ | PROT_WRITE); }
}

void device_hide_memory(struct device *device)
{
    if (--device->unlocked == 0) { protect(device, PROT_NONE); }
}

/* The caller's bytes end where the mapping does, so that the first 256 bytes past them are a guard page. */
void device_add_range(struct device *device, int fd, bool is_imported, size_t map_bytes, size_t offset, size_t bytes, void **ret_first)
{
    struct range *range = calloc(1, sizeof *range);
    if (range == NULL) { device_violation("no memory"); }
    range->map = map_between_guards(fd, map_bytes, device->unlocked > 0 || !is_imported ? PROT_READ | PROT_WRITE : PROT_NONE);
    range->map_bytes = map_bytes;
    range->first = range->map + offset;
    range->bytes = bytes;
    range->fd = is_imported ? -1 : fd;
    range->is_imported = is_imported;
    if (!is_imported) {
        memset(range->map, SLACK, offset);
        memset(range->first, POISON, bytes < POISON_MAX ? bytes : POISON_MAX);
        memset(range->first + bytes, SLACK, map_bytes - offset - bytes);
        if (device->unlocked == 0 && mprotect(range->map, map_bytes, PROT_NONE) != 0) { device_violation("mprotect failed"); }
    }
    range->next = device->ranges;
    device->ranges = range;
    *ret_first = range->first;
}

void device_drop_range(struct device *device, struct range *range)
{
    if (!range->is_imported) {
        if (mprotect(range->map, range->map_bytes, PROT_READ) != 0) { device_violation("mprotect failed"); }
        for (unsigned char *at = range->map; at < range->map + range->map_bytes; at++) {
            if (at == range->first) { at += range->bytes; }
            if (at < range->map + range->map_bytes && *at != SLACK) {
                device_violation("byte %td of an allocation of %zu bytes was written", at - range->first, range->bytes);
            }
        }
        device->memory_used -= range->map_bytes;
        close(range->fd);
    }
    for (struct range **at = &device->ranges; *at != NULL; at = &(*at)->next) {
        if (*at == range) {
            *at = range->next;
            break;
        }
    }
    unmap_with_guards(range->map, range->map_bytes);
    free(range);
}

static status_t memory_left(const struct cuda_driver *self, uint64_t *ret_free, uint64_t *ret_total, struct diag *diag)
{
    struct device *device = device_of(self);
    (void)diag;
    device_enter_void(device);
    *ret_free = device->options.memory_bytes - device->memory_used;
    *ret_total = device->options.memory_bytes;
    device_leave(device);
    return STATUS_OK;
}

static status_t mem_alloc(const struct cuda_driver *self, size_t bytes, void **ret_device, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_MEM_ALLOC, diag));
    status_t st = device_refuse_in_capture(device, "mem_alloc", diag);
    size_t map_bytes = round_up(bytes, PAGE);
    if (!failed(st) && bytes == 0) { st = device_raise(device, CAUSE_INVALID_VALUE, diag, "mem_alloc of 0 bytes"); }
    if (!failed(st) && (bytes > device->options.memory_bytes || map_bytes > device->options.memory_bytes - device->memory_used)) {
        st = device_raise(device, CAUSE_OUT_OF_MEMORY, diag, "mem_alloc of %zu bytes with %llu of %llu in use", bytes,
                          (unsigned long long)device->memory_used, (unsigned long long)device->options.memory_bytes);
    }
    if (!failed(st)) {
        int fd = memfd_create("emulated-device", MFD_CLOEXEC);
        if (fd < 0 || ftruncate(fd, (off_t)map_bytes) != 0) { device_violation("no memfd of %zu bytes", map_bytes); }
        device->memory_used += map_bytes;
        device_add_range(device, fd, false, map_bytes, map_bytes - round_up(bytes, ALIGNMENT), bytes, ret_device);
    }
    device_leave(device);
    return st;
}

static void mem_free(const struct cuda_driver *self, void *memory)
{
    struct device *device = device_of(self);
    if (memory == NULL) { return; }
    device_enter_void(device);
    struct range *range = device_range_of(device, memory, 1);
    if (range == NULL || range->is_imported || range->first != memory) { device_violation("mem_free of %p, which mem_alloc did not give", memory); }
    (void)device_refuse_in_capture(device, "mem_free", NULL);
    device_drive_all(device);
    device_drop_range(device, range);
    device_leave(device);
}

static void add_pinned(struct device *device, unsigned char *first, size_t bytes, unsigned char *map, size_t map_bytes)
{
    struct pinned *pinned = calloc(1, sizeof *pinned);
    if (pinned == NULL) { device_violation("no memory"); }
    *pinned = (struct pinned){.next = device->pinned, .first = first, .bytes = bytes, .map = map, .map_bytes = map_bytes};
    device->pinned = pinned;
}

static void drop_pinned(struct device *device, void *first, bool is_registered)
{
    for (struct pinned **at = &device->pinned; *at != NULL; at = &(*at)->next) {
        struct pinned *pinned = *at;
        if (pinned->first == first && (pinned->map == NULL) == is_registered) {
            *at = pinned->next;
            if (pinned->map != NULL) { unmap_with_guards(pinned->map, pinned->map_bytes); }
            free(pinned);
            return;
        }
    }
    device_violation("%p is freed or unregistered as pinned memory, which it is not", first);
}

static status_t host_alloc(const struct cuda_driver *self, size_t bytes, void **ret_pinned, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_HOST_ALLOC, diag));
    status_t st = device_refuse_in_capture(device, "host_alloc", diag);
    if (!failed(st) && bytes == 0) { st = device_raise(device, CAUSE_INVALID_VALUE, diag, "host_alloc of 0 bytes"); }
    if (!failed(st)) {
        size_t map_bytes = round_up(bytes, PAGE);
        unsigned char *map = map_between_guards(-1, map_bytes, PROT_READ | PROT_WRITE);
        add_pinned(device, map, bytes, map, map_bytes);
        *ret_pinned = map;
    }
    device_leave(device);
    return st;
}

static void host_free(const struct cuda_driver *self, void *memory)
{
    struct device *device = device_of(self);
    if (memory == NULL) { return; }
    device_enter_void(device);
    (void)device_refuse_in_capture(device, "host_free", NULL);
    device_drive_all(device);
    drop_pinned(device, memory, false);
    device_leave(device);
}

static status_t host_register(const struct cuda_driver *self, void *host, size_t bytes, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_HOST_ALLOC, diag));
    status_t st = device_refuse_in_capture(device, "host_register", diag);
    if (!failed(st) && (bytes == 0 || (uintptr_t)host % PAGE != 0)) {
        st = device_raise(device, CAUSE_INVALID_VALUE, diag, "host_register of %zu bytes at %p: not whole pages", bytes, host);
    }
    for (struct pinned *pinned = device->pinned; !failed(st) && pinned != NULL; pinned = pinned->next) {
        if (pinned->first < (unsigned char *)host + bytes && (unsigned char *)host < pinned->first + pinned->bytes) {
            st = device_raise(device, CAUSE_INVALID_VALUE, diag, "host_register of %p, part of which is pinned", host);
        }
    }
    if (!failed(st)) { add_pinned(device, host, bytes, NULL, 0); }
    device_leave(device);
    return st;
}

static void host_unregister(const struct cuda_driver *self, void *host)
{
    struct device *device = device_of(self);
    if (host == NULL) { return; }
    device_enter_void(device);
    device_drive_all(device);
    drop_pinned(device, host, true);
    device_leave(device);
}

bool emulated_device_peek(const struct cuda_driver *driver, const void *device_bytes, void *ret_bytes, size_t bytes)
{
    struct device *device = device_of(driver);
    device_enter_void(device);
    bool found = device_range_of(device, device_bytes, bytes) != NULL;
    if (found) {
        device_show_memory(device);
        memcpy(ret_bytes, device_bytes, bytes);
        device_hide_memory(device);
    }
    device_leave(device);
    return found;
}

bool emulated_device_poke(const struct cuda_driver *driver, void *device_bytes, const void *from, size_t bytes)
{
    struct device *device = device_of(driver);
    device_enter_void(device);
    bool found = device_range_of(device, device_bytes, bytes) != NULL;
    if (found) {
        device_show_memory(device);
        memcpy(device_bytes, from, bytes);
        device_hide_memory(device);
    }
    device_leave(device);
    return found;
}

void device_memory_calls(struct cuda_driver *table)
{
    table->memory_left = memory_left;
    table->mem_alloc = mem_alloc;
    table->mem_free = mem_free;
    table->host_alloc = host_alloc;
    table->host_free = host_free;
    table->host_register = host_register;
    table->host_unregister = host_unregister;
}
