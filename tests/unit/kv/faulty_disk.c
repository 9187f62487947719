#include "tests/unit/kv/faulty_disk.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>
#include <unistd.h>

static _Atomic int fault_now;
static _Atomic uint64_t fault_from, fault_end, writes, reads, allocations;

void faulty_disk_plan(enum disk_fault fault, uint64_t from, uint64_t count)
{
    fault_now = DISK_SOUND;
    writes = reads = allocations = 0;
    fault_from = from;
    fault_end = from + count;
    fault_now = (int)fault;
}

uint64_t faulty_disk_writes(void) { return writes; }
uint64_t faulty_disk_allocations(void) { return allocations; }

ssize_t __real_pwrite(int fd, const void *bytes, size_t count, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *bytes, size_t count, off_t offset);
ssize_t __real_pread(int fd, void *bytes, size_t count, off_t offset);
ssize_t __wrap_pread(int fd, void *bytes, size_t count, off_t offset);

int __real_fallocate(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes);

static bool is_hit(uint64_t call) { return call >= fault_from && call < fault_end; }

ssize_t __wrap_pwrite(int fd, const void *bytes, size_t count, off_t offset)
{
    uint64_t call = ++writes;
    int fault = fault_now;
    bool hits = is_hit(call);
    if (hits && fault == DISK_FULL) {
        errno = ENOSPC;
        return -1;
    }
    if (hits && fault == DISK_BROKEN) {
        errno = EIO;
        return -1;
    }
    /* Half, to the page where it is more than one: what O_DIRECT can do. */
    size_t half = count > 4096 ? count / 2 / 4096 * 4096 : count / 2;
    if (hits && fault == PROCESS_DIES) {
        ssize_t wrote = __real_pwrite(fd, bytes, half, offset);
        (void)wrote;
        _exit(9);
    }
    if (hits && fault == DISK_STOPS_SHORT) {
        ssize_t wrote = __real_pwrite(fd, bytes, half, offset);
        fault_from = call + 1; /* the rest of it meets a full disk */
        fault_end = call + 2;
        fault_now = DISK_FULL;
        return wrote;
    }
    return __real_pwrite(fd, bytes, count, offset);
}

ssize_t __wrap_pread(int fd, void *bytes, size_t count, off_t offset)
{
    bool hits = is_hit(++reads);
    int fault = fault_now;
    if (hits && fault == DISK_READ_BROKEN) {
        errno = EIO;
        return -1;
    }
    if (hits && fault == DISK_READ_SHORT) { return 0; }
    return __real_pread(fd, bytes, count, offset);
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    bool hits = is_hit(++allocations);
    if (!hits || fault_now != DISK_FULL) { return __real_fallocate(fd, mode, offset, bytes); }
    /* As a real one that runs out half way: part of it is taken. */
    int took = __real_fallocate(fd, mode, offset, bytes / 2);
    (void)took;
    errno = ENOSPC;
    return -1;
}
