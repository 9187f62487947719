#include "kernels/cpu/pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Some 30 us on the machines tried: longer than the serial stretch between two products of a
 * decode step, shorter than a scheduler's slice by far. */
#define SPIN_TURNS 1000u

struct pool;

struct worker {
    struct pool *pool;
    uint32_t index;
    pthread_t thread;
};

/* Atomics and not messages: a decode step starts some hundred jobs of a few microseconds each.
 * `ticket` holds the job's number in its high half and the next piece in its low half. A worker
 * takes a piece by compare-and-swap, which fails once the job is another one; so a worker that
 * wakes late cannot take a piece of a job that it did not read. fn, job and piece_count change
 * only when all pieces of the job before are done and its ticket is used up. */
struct pool {
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic uint32_t done; /* pieces of this job that have returned; the caller sleeps on it */
    _Atomic uint32_t caller_sleeps;
    _Alignas(64) _Atomic uint32_t generation; /* counts jobs; idle workers sleep on it */
    _Atomic uint32_t sleepers;
    _Atomic(pool_piece_fn) fn;
    _Atomic(const void *) job;
    _Atomic uint32_t piece_count;
    _Atomic bool stop;
    uint32_t threads;
    uint32_t started;
    struct worker *workers;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int count)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Works through job `number` until no piece is left. */
static void work(struct pool *pool, uint32_t number, uint32_t worker)
{
    pool_piece_fn fn = atomic_load_explicit(&pool->fn, memory_order_acquire);
    const void *job = atomic_load_explicit(&pool->job, memory_order_acquire);
    uint32_t count = atomic_load_explicit(&pool->piece_count, memory_order_acquire);
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    for (;;) {
        uint32_t piece = (uint32_t)ticket;
        if ((uint32_t)(ticket >> 32) != number || piece >= count) { return; }
        if (!atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket + 1, memory_order_acq_rel,
                                                   memory_order_acquire)) {
            continue;
        }
        fn(job, worker, piece);
        /* seq_cst here and at caller_sleeps: one of the two sides must see the other's store. */
        if (atomic_fetch_add(&pool->done, 1) + 1 == count && atomic_load(&pool->caller_sleeps) != 0) {
            futex_wake(&pool->done, 1);
        }
        ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    }
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct pool *pool = worker->pool;
    uint32_t seen = 0;
    for (;;) {
        uint32_t generation = atomic_load(&pool->generation);
        for (uint32_t turn = 0; generation == seen && turn < SPIN_TURNS; turn++) {
            relax();
            generation = atomic_load(&pool->generation);
        }
        while (generation == seen) {
            atomic_fetch_add(&pool->sleepers, 1);
            futex_wait(&pool->generation, seen); /* returns at once if a job came meanwhile */
            atomic_fetch_sub(&pool->sleepers, 1);
            generation = atomic_load(&pool->generation);
        }
        seen = generation;
        if (atomic_load(&pool->stop)) { return NULL; }
        work(pool, generation, worker->index);
    }
}

/* Announces what the fields now say and wakes those who sleep. */
static uint32_t publish(struct pool *pool)
{
    uint32_t number = atomic_load_explicit(&pool->generation, memory_order_relaxed) + 1;
    atomic_store(&pool->ticket, (uint64_t)number << 32);
    atomic_store(&pool->generation, number);
    if (atomic_load(&pool->sleepers) != 0) { futex_wake(&pool->generation, (int)pool->threads); }
    return number;
}

void pool_run(struct pool *pool, uint32_t piece_count, pool_piece_fn fn, const void *job)
{
    if (pool->threads == 1 || piece_count <= 1) {
        for (uint32_t piece = 0; piece < piece_count; piece++) { fn(job, 0, piece); }
        return;
    }
    /* A worker may still be on its way out of the job before: it must not find that job's ticket
     * beside the new job's fields, or it would take a piece before there is one. So the old
     * ticket is used up first; whoever reads a new field (acquire) sees that (release). */
    atomic_store(&pool->ticket, (uint64_t)atomic_load(&pool->generation) << 32 | UINT32_MAX);
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->fn, fn, memory_order_release);
    atomic_store_explicit(&pool->job, job, memory_order_release);
    atomic_store_explicit(&pool->piece_count, piece_count, memory_order_release);
    work(pool, publish(pool), 0);
    uint32_t done = atomic_load(&pool->done);
    for (uint32_t turn = 0; done != piece_count && turn < SPIN_TURNS; turn++) {
        relax();
        done = atomic_load(&pool->done);
    }
    if (done == piece_count) { return; }
    atomic_store(&pool->caller_sleeps, 1);
    while ((done = atomic_load(&pool->done)) != piece_count) { futex_wait(&pool->done, done); }
    atomic_store(&pool->caller_sleeps, 0);
}

uint32_t pool_threads(const struct pool *pool) { return pool->threads; }

status_t pool_create(uint32_t threads, struct pool **ret_pool, struct diag *diag)
{
    struct pool *pool = aligned_alloc(64, (sizeof(*pool) + 63) / 64 * 64);
    if (pool == NULL) {
        diag_set(diag, "no memory for the thread pool");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    memset(pool, 0, sizeof(*pool));
    pool->threads = threads;
    pool->workers = calloc(threads, sizeof(*pool->workers));
    if (pool->workers == NULL) {
        diag_set(diag, "no memory for %u threads", threads);
        pool_destroy(pool);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    /* Signals belong to the process's main loop, never to a worker. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    for (uint32_t i = 1; i < threads && error == 0; i++) {
        pool->workers[i] = (struct worker){.pool = pool, .index = i};
        error = pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]);
        if (error == 0) { pool->started++; }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        diag_set(diag, "cannot start worker thread %u of %u: %s; lower --threads", pool->started + 1, threads, strerror(error));
        pool_destroy(pool);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, error);
    }
    *ret_pool = pool;
    return STATUS_OK;
}

void pool_destroy(struct pool *pool)
{
    if (pool == NULL) { return; }
    if (pool->started != 0) {
        atomic_store(&pool->stop, true);
        publish(pool);
        for (uint32_t i = 1; i <= pool->started; i++) { pthread_join(pool->workers[i].thread, NULL); }
    }
    free(pool->workers);
    free(pool);
}
