/* host_buffer: memory, copies and order of backends that work in host memory. */
#include "kernels/backend.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

/* A mapping starts at a page border; a large one is stretched to a huge page's border by mapping
 * more and giving back both ends, else the kernel could not back its first part with huge pages. */
status_t kernels_host_buffer_alloc(struct kernels *kernels, size_t bytes, void **ret_buffer, struct diag *diag)
{
    (void)kernels;
    size_t want = bytes != 0 ? bytes : 1;
    size_t slack = want >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 0;
    if (want > SIZE_MAX / 2) {
        diag_set(diag, "a buffer of %zu bytes cannot be had", bytes);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    unsigned char *base = mmap(NULL, want + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        diag_set(diag, "cannot map a buffer of %zu bytes: %s; lower --kv-memory or add memory", bytes, strerror(errno));
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, errno);
    }
    if (slack != 0) {
        size_t page = 4096;
        size_t head = (HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
        if (head != 0) { munmap(base, head); }
        size_t tail = (slack - head) / page * page;
        unsigned char *end = base + ((want + slack + page - 1) / page) * page;
        if (tail != 0) { munmap(end - tail, tail); }
        base += head;
        /* Refusal leaves small pages: slower, not wrong. */
        (void)madvise(base, want, MADV_HUGEPAGE);
    }
    *ret_buffer = base;
    return STATUS_OK;
}

void kernels_host_buffer_free(struct kernels *kernels, void *buffer, size_t bytes)
{
    (void)kernels;
    if (buffer != NULL) { munmap(buffer, bytes != 0 ? bytes : 1); }
}

void kernels_host_copy(struct kernels *kernels, void *to, const void *from, size_t bytes)
{
    (void)kernels;
    if (bytes != 0) { memcpy(to, from, bytes); }
}

status_t kernels_host_sync(struct kernels *kernels)
{
    (void)kernels;
    return STATUS_OK;
}

void kernels_host_exchange_send(struct kernels *kernels, const void *first, size_t bytes)
{
    (void)kernels;
    (void)first;
    (void)bytes;
}

uint64_t kernels_host_mark(struct kernels *kernels)
{
    (void)kernels;
    return 0;
}

status_t kernels_host_wait(struct kernels *kernels, uint64_t mark)
{
    (void)kernels;
    (void)mark;
    return STATUS_OK;
}

bool kernels_host_graph_begin(struct kernels *kernels, uint64_t key)
{
    (void)kernels;
    (void)key;
    return true;
}

void kernels_host_graph_end(struct kernels *kernels) { (void)kernels; }

void kernels_host_copy_block(struct kernels *kernels, const struct kernels_copy_block *args)
{
    (void)kernels;
    unsigned char *pool = args->pool;
    const size_t bytes = kv_layout_block_bytes(&args->layout);
    memcpy(pool + args->to * bytes, pool + args->from * bytes, bytes);
}
