/* The pool's memory: a memfd, so that the shm cable can lend it to a process on this host. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "transfer/transfer.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

status_t kv_endpoint_pool_alloc(size_t bytes, struct diag *diag, struct kv_endpoint_pool *ret_pool)
{
    const char *step = "memfd_create";
    void *base = MAP_FAILED;
    int fd = memfd_create("baton-kv-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) { goto fail; }
    step = "ftruncate";
    if (ftruncate(fd, (off_t)bytes) != 0) { goto fail; }
    step = "mmap";
    base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) { goto fail; }
    madvise(base, bytes, MADV_HUGEPAGE); /* where the system lets shared memory have them */
    step = "touching its pages";
    if (madvise(base, bytes, MADV_POPULATE_WRITE) != 0) {
        if (errno != EINVAL) { goto fail; }
        memset(base, 0, bytes); /* a kernel before 5.14 */
    }
    /* No one can shrink it under a reader, which would kill the reader by SIGBUS; and no one
     * to whom it is lent can map it writable. Older kernels lack the last seal; then the
     * read-only descriptor that is lent does the same against all but our own user. */
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) != 0) {
        step = "fcntl(F_ADD_SEALS)";
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) { goto fail; }
    }
    *ret_pool = (struct kv_endpoint_pool){.base = base, .bytes = bytes, .memfd = fd};
    return STATUS_OK;
fail:;
    int cause = errno;
    diag_set(diag, "KV pool of %zu bytes: %s: %s; lower --kv-memory or free some memory", bytes, step, strerror(cause));
    if (base != MAP_FAILED) { munmap(base, bytes); }
    if (fd >= 0) { close(fd); }
    return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, cause);
}

void kv_endpoint_pool_free(struct kv_endpoint_pool *pool)
{
    if (!pool->base) { return; }
    munmap(pool->base, pool->bytes);
    if (pool->memfd >= 0) { close(pool->memfd); }
    memset(pool, 0, sizeof *pool);
}
