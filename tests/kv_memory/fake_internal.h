/* fake_internal: what the parts of fake_memory share. Private to them.
 * Parts:   fake_memory.c (ops, marks, host memory, other processes), fake_slots.c (slots, queues) */
#ifndef BATON_TESTS_KV_MEMORY_FAKE_INTERNAL_H
#define BATON_TESTS_KV_MEMORY_FAKE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/kv_memory/fake_memory.h"

enum { HOSTS_MAX = 64, IMPORTERS_MAX = 256, JOBS_MAX = 4096 };

/* Behind the pool in the same memfd: what a device's driver shares between processes. */
struct shared {
    _Atomic uint32_t event_has_passed[KV_MEMORY_EVENTS];
    _Atomic int32_t importers[IMPORTERS_MAX]; /* pids; 0: free */
};

struct export_bytes {
    uint64_t magic;
    int32_t pid, fd;
    uint64_t pool_bytes;
    uint8_t id[KV_MEMORY_ID_BYTES];
};

struct kv_memory_peer {
    uint8_t *map;
    size_t pool_bytes, map_bytes;
    struct shared *shared;
    uint32_t slot;
};

struct job {
    void (*run)(void *user);
    void *user;
};

struct fake {
    struct kv_memory head; /* first: the ops cast back */
    struct fake_memory_config config;
    int fd;
    size_t map_bytes;
    uint8_t *base, *view;
    struct shared *shared;
    pthread_t worker, compute;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    struct kv_memory_op *first;
    uint32_t under_way;
    uint64_t ops, random;
    bool is_lost, is_held, marks_are_held, is_stopping;
    struct job jobs[JOBS_MAX]; /* job of mark m: [(m - 1) % JOBS_MAX] */
    uint64_t marks, passed;
    struct { uint8_t *at; size_t bytes; } hosts[HOSTS_MAX];
    struct kv_memory_op *running;
    struct kv_memory_queue *queues;
    struct fake_slots *slots;
    uint64_t taken; /* of device memory, the pool apart */
};

#define RULE(cond, ...)                             \
    do {                                            \
        if (!(cond)) {                              \
            fprintf(stderr, "fake_memory: " __VA_ARGS__); \
            fputc('\n', stderr);                    \
            abort();                                \
        }                                           \
    } while (0)

static inline struct fake *fake_of(struct kv_memory *head) { return (struct fake *)head; }

static inline size_t fake_page_up(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }
static inline bool fake_uses_slot(const struct kv_memory_op *op) { return op->kind == KV_MEMORY_GATHER || op->kind == KV_MEMORY_SCATTER; }

uint64_t fake_random_next(struct fake *fake); /* under the lock */
void fake_dawdle(uint64_t random, uint32_t delay_us_max);

/* Under the lock, of ops as they come: the slot is one of ours, and no other op's. */
void fake_check_slot(const struct fake *fake, const struct kv_memory_op *op);
/* Under the lock: notes in a PASSED how far its queue has to get; and whether it has, which any other op need not ask. */
void fake_queue_note(struct fake *fake, struct kv_memory_op *op);
bool fake_queue_has_passed(const struct kv_memory_op *op);

status_t fake_slots_alloc(struct kv_memory *head, size_t bytes, uint8_t **ret_slots, struct diag *diag);
void fake_slots_free(struct kv_memory *head, uint8_t *slots);
status_t fake_queue_create(struct kv_memory *head, struct kv_memory_queue **ret_queue, struct diag *diag);
void fake_queue_destroy(struct kv_memory *head, struct kv_memory_queue *queue);
void *fake_queue_handle(struct kv_memory *head, struct kv_memory_queue *queue);
status_t fake_thread_bind(struct kv_memory *head, struct diag *diag);
status_t fake_memory_left(struct kv_memory *head, uint64_t *ret_free, struct diag *diag);

#endif
