/* device_memory_private: what the parts of device_memory share. Private to them.
 * Parts:   device_memory.c (ops, other processes, life), device_memory_slots.c (slots, queues) */
#ifndef BATON_KERNELS_CUDA_DEVICE_MEMORY_PRIVATE_H
#define BATON_KERNELS_CUDA_DEVICE_MEMORY_PRIVATE_H

#include <pthread.h>

#include "kernels/cuda/cuda_marks.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/rows_args.h"

struct piece_area; /* device_memory_slots.c */

/* A slot is an op's place on the device; kv_memory.h's slots, which hold pieces, are areas here. */

/* What a slot's kernel reads and writes: the same on both sides. */
struct slot_area {
    struct cuda_crc32c_range ranges[KV_MEMORY_RANGES_MAX];
    uint32_t crcs[KV_MEMORY_RANGES_MAX];
};

struct slot {
    struct device_memory *memory;
    struct cuda_stream *stream;
    struct slot_area *host;   /* pinned */
    struct slot_area *device; /* an address of the device */
    struct kv_memory_op *op;  /* NULL: free; the thread's */
    status_t status;          /* of the device, by the callback */
    struct slot *next;        /* in the list of those the device is done with */
};

struct device_memory {
    struct kv_memory head; /* first: the ops cast back */
    const struct cuda_driver *driver;
    struct cuda_marks *marks;
    uint8_t *pool;
    struct cuda_event *events[KV_MEMORY_EVENTS];
    struct slot slots[DEVICE_MEMORY_SLOTS];
    struct cuda_crc32c_args crc_args; /* its constants */
    pthread_t thread;
    bool has_thread, has_lock, has_wake;
    pthread_mutex_t lock; /* guards what follows: ops come from any thread, ends from the driver's */
    pthread_cond_t wake;
    struct kv_memory_op *first, *last; /* not yet queued */
    struct slot *landed;               /* done on the device, any order */
    struct kv_memory_op *passed;       /* the same of PASSED ops, with the device's status in them */
    uint32_t awaited;                  /* PASSED ops under way */
    struct piece_area *areas;
    bool is_stopping;
};

static inline struct device_memory *device_memory(struct kv_memory *head) { return (struct device_memory *)head; }

/* GATHER, SCATTER: queues what moves the pieces. */
status_t device_memory_queue_pieces(struct device_memory *memory, const struct kv_memory_op *op, struct cuda_stream *stream);
/* PASSED: its end comes by way of memory->passed, whatever happens. */
void device_memory_queue_passed(struct device_memory *memory, struct kv_memory_op *op);

/* The ops of struct kv_memory_ops. */
status_t device_memory_slots_alloc(struct kv_memory *head, size_t bytes, uint8_t **ret_slots, struct diag *diag);
void device_memory_slots_free(struct kv_memory *head, uint8_t *slots);
void device_memory_host_free(struct kv_memory *head, void *host);
status_t device_memory_queue_create(struct kv_memory *head, struct kv_memory_queue **ret_queue, struct diag *diag);
void device_memory_queue_destroy(struct kv_memory *head, struct kv_memory_queue *queue);
void *device_memory_queue_handle(struct kv_memory *head, struct kv_memory_queue *queue);
status_t device_memory_thread_bind(struct kv_memory *head, struct diag *diag);
status_t device_memory_left(struct kv_memory *head, uint64_t *ret_free, struct diag *diag);

/* Frees the areas that nobody holds. */
void device_memory_slots_end(struct device_memory *memory);

#endif
