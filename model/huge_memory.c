#include "model/huge_memory.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

static size_t mapped_bytes(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

status_t huge_memory_alloc(size_t bytes, struct diag *diag, void **ret_memory)
{
    size_t want = mapped_bytes(bytes != 0 ? bytes : 1), whole = want + HUGE_PAGE_BYTES;
    uint8_t *base = bytes > SIZE_MAX / 2 ? MAP_FAILED : mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        int cause = bytes > SIZE_MAX / 2 ? ENOMEM : errno;
        diag_set(diag, "no memory for %zu bytes of weights: %s", bytes, strerror(cause));
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, cause);
    }
    size_t head = (HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    if (head != 0) { munmap(base, head); }
    if (whole - head - want != 0) { munmap(base + head + want, whole - head - want); }
    (void)madvise(base + head, want, MADV_HUGEPAGE);
    *ret_memory = base + head;
    return STATUS_OK;
}

void huge_memory_free(void *memory, size_t bytes)
{
    if (memory) { munmap(memory, mapped_bytes(bytes != 0 ? bytes : 1)); }
}
