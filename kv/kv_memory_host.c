#include "kv/kv_memory_host.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/check.h"
#include "base/crc32c.h"

struct host_memory {
    struct kv_memory head; /* first: the ops cast back */
    uint8_t *pool;
    pthread_t thread;
    bool has_thread, has_lock, has_wake;
    /* Guards what follows; ops come from any thread. */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct kv_memory_op *first, *last;
    bool is_stopping;
};

static void op_run(struct host_memory *memory, struct kv_memory_op *op)
{
    for (uint32_t i = 0; i < op->count; i++) {
        uint8_t *range = memory->pool + op->offsets[i];
        switch (op->kind) {
        case KV_MEMORY_READ: memcpy(op->host + i * op->range_bytes, range, op->range_bytes); break;
        case KV_MEMORY_WRITE: memcpy(range, op->host + i * op->range_bytes, op->range_bytes); break;
        case KV_MEMORY_CHECKSUM: op->crc[i] = crc32c(0, range, op->range_bytes); break;
        case KV_MEMORY_COPY: CHECK(op->kind != KV_MEMORY_COPY); break; /* submit has refused it */
        }
    }
    op->status = STATUS_OK;
}

static void *thread_main(void *user)
{
    struct host_memory *memory = user;
    for (;;) {
        pthread_mutex_lock(&memory->lock);
        while (memory->first == NULL && !memory->is_stopping) { pthread_cond_wait(&memory->wake, &memory->lock); }
        struct kv_memory_op *op = memory->first;
        if (op != NULL) { memory->first = op->next; }
        pthread_mutex_unlock(&memory->lock);
        if (op == NULL) { return NULL; }
        op_run(memory, op);
        op->done(op);
    }
}

static void submit(struct kv_memory *head, struct kv_memory_op *op)
{
    struct host_memory *memory = (struct host_memory *)head;
    kv_memory_op_check(head, op);
    CHECK(op->mark == 0);
    CHECK(op->kind != KV_MEMORY_COPY);
    op->next = NULL;
    pthread_mutex_lock(&memory->lock);
    *(memory->first == NULL ? &memory->first : &memory->last->next) = op;
    memory->last = op;
    pthread_cond_signal(&memory->wake);
    pthread_mutex_unlock(&memory->lock);
}

static status_t host_alloc(struct kv_memory *head, size_t bytes, void **ret_host, struct diag *diag)
{
    (void)head;
    void *host = NULL;
    if (posix_memalign(&host, (size_t)sysconf(_SC_PAGESIZE), bytes) != 0) {
        diag_set(diag, "no memory for %zu bytes of copy buffers", bytes);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    memset(host, 0, bytes);
    *ret_host = host;
    return STATUS_OK;
}

static void host_free(struct kv_memory *head, void *host)
{
    (void)head;
    free(host);
}

static status_t export_pool(struct kv_memory *head, uint8_t *ret_bytes, size_t *ret_count, struct diag *diag)
{
    (void)head;
    (void)ret_bytes;
    (void)ret_count;
    diag_set(diag, "host memory is not lent this way");
    return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
}

static status_t import_pool(struct kv_memory *head, const uint8_t *bytes, size_t count, struct kv_memory_peer **ret_peer,
                            size_t *ret_pool_bytes, struct diag *diag)
{
    (void)head;
    (void)bytes;
    (void)count;
    (void)ret_peer;
    (void)ret_pool_bytes;
    diag_set(diag, "this pool lies in host memory, the peer's does not");
    return STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
}

static void release_peer(struct kv_memory *head, struct kv_memory_peer *peer)
{
    (void)head;
    CHECK(peer == NULL); /* none was ever imported */
}

static const struct kv_memory_ops host_ops = {
    .submit = submit,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .export_pool = export_pool,
    .import_pool = import_pool,
    .release_peer = release_peer,
};

status_t kv_memory_host_create(void *pool, size_t bytes, struct kv_memory **ret_memory)
{
    struct host_memory *memory = calloc(1, sizeof *memory);
    if (memory == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    memory->head = (struct kv_memory){.ops = &host_ops, .pool_bytes = bytes};
    memory->pool = pool;
    memory->has_lock = pthread_mutex_init(&memory->lock, NULL) == 0;
    if (!memory->has_lock) { goto fail; }
    memory->has_wake = pthread_cond_init(&memory->wake, NULL) == 0;
    if (!memory->has_wake) { goto fail; }
    /* Signals are the main thread's. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    memory->has_thread = pthread_create(&memory->thread, NULL, thread_main, memory) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!memory->has_thread) { goto fail; }
    *ret_memory = &memory->head;
    return STATUS_OK;
fail:
    kv_memory_host_destroy(&memory->head);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}

void kv_memory_host_destroy(struct kv_memory *head)
{
    struct host_memory *memory = (struct host_memory *)head;
    if (memory == NULL) { return; }
    if (memory->has_thread) {
        pthread_mutex_lock(&memory->lock);
        memory->is_stopping = true;
        pthread_cond_signal(&memory->wake);
        pthread_mutex_unlock(&memory->lock);
        pthread_join(memory->thread, NULL);
    }
    CHECK(memory->first == NULL);
    if (memory->has_wake) { pthread_cond_destroy(&memory->wake); }
    if (memory->has_lock) { pthread_mutex_destroy(&memory->lock); }
    free(memory);
}
