/* tier_state: the insides of kv_tier, shared by its parts and nobody else.
 * Flow:    kv_tier.c (start, thread, end) -> tier_queue.c (requests in, events out), tier_work.c (what
 *          is done with the two tiers), tier_pool.c (blocks from and to the pool)
 * Thread:  the tiers' own, but for what stands below the lock in struct kv_tier.
 * Memory:  taken in kv_tier_create. */
#ifndef BATON_KV_TIER_STATE_H
#define BATON_KV_TIER_STATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "kv/busy_time.h"
#include "kv/kv_memory_inbox.h"
#include "kv/kv_tier.h"
#include "kv/tier_disk.h"
#include "kv/tier_slots.h"

/* Blocks under way on the disk. A block is 100 KB to 2 MB, so that a few of them fill any disk's
 * queue. */
#define DISK_DEPTH 16u

#define NO_REQUEST UINT32_MAX

enum request_kind { REQUEST_STORE, REQUEST_LOAD, REQUEST_DROP };

struct request {
    enum request_kind kind;
    struct kv_hash hash;
    uint32_t block;
    uint64_t tag;
    uint32_t next;
};

struct request_list {
    uint32_t first, last;
};

enum op_kind { OP_NONE, OP_STORE, OP_LOAD, OP_MOVE };

struct op {
    enum op_kind kind;
    uint32_t request;   /* STORE, LOAD */
    uint32_t slot;      /* the disk's */
    uint32_t host_slot; /* MOVE */
    struct kv_hash hash;
    uint32_t crc;
    uint64_t begin_ns;
};

/* Bytes per second while at least one op of the kind is under way, so that ops side by side count
 * as the disk serves them. */
struct rate {
    double bytes_per_s;
    uint64_t bytes, begin_ns;
    uint32_t ops;
};

enum { RATE_LOAD, RATE_STORE, RATE_COUNT };

struct kv_tier {
    struct kv_tier_config config;
    size_t host_stride;
    uint8_t *host; /* [host slots][host_stride] */
    size_t host_bytes;
    struct tier_disk *disk; /* NULL: no disk tier */
    uint8_t *staging;       /* [DISK_DEPTH][slot bytes]; with a pool on a device of its host memory */
    size_t staging_stride;
    uint8_t *bounce;        /* [block_bytes]; a pool on a device: between it and the host tier */
    struct kv_memory_op *op; /* the one that is under way, waited for */
    struct kv_memory_inbox inbox;
    struct tier_slots *slots;
    uint32_t moves_ahead; /* free host slots to keep */

    struct op ops[DISK_DEPTH];
    uint32_t ops_unused[DISK_DEPTH];
    uint32_t ops_unused_count, moves;
    struct request_list loads, stores; /* drops go with the stores */
    uint64_t generation;
    uint32_t write_failures; /* in a row */
    uint64_t paused_until_ns;
    struct rate rates[KV_TIER_COUNT][RATE_COUNT];
    struct busy_time busy[RATE_COUNT];   /* of the disk */
    struct kv_tier_stats counts;         /* the thread's; published copies it */

    int wake_fd;
    pthread_t thread;
    bool has_thread, has_lock;
    /* Guards what follows. A lock, not a ring: two lists change hands in it at once, and who holds
     * it never waits. */
    pthread_mutex_t lock;
    struct request *requests; /* [queue_max] a request's fields are the owner's of its index */
    uint32_t unused;          /* first of the unused requests */
    uint32_t in_flight;
    struct request_list incoming;
    bool is_asleep, is_stopping;
    struct kv_tier_stats published;
};

/* --- tier_queue.c */

void tier_list_add(struct kv_tier *tier, struct request_list *list, uint32_t request);
uint32_t tier_list_take(struct kv_tier *tier, struct request_list *list); /* NO_REQUEST: it is empty */
void tier_wake(struct kv_tier *tier);
void tier_publish(struct kv_tier *tier);

/* A request ends before its event is told, so that who hears of it may ask for the next thing at once. */
void tier_end_request(struct kv_tier *tier, uint32_t request);
void tier_tell(struct kv_tier *tier, uint32_t request, struct kv_tier_event *event);
void tier_tell_failed(struct kv_tier *tier, uint32_t request, enum kv_tier_event_kind kind, status_t status);
/* An event that answers no request. */
void tier_tell_about(struct kv_tier *tier, enum kv_tier_event_kind kind, struct kv_hash hash, enum kv_tier_kind where);

/* --- tier_pool.c */

/* The buffers that a pool on a device needs; nothing for one in host memory.
 * Errors  RESOURCE_EXHAUSTED (node). */
NODISCARD status_t tier_pool_open(struct kv_tier *tier, struct diag *diag);
void tier_pool_close(struct kv_tier *tier); /* half open too */

/* tier->staging, in memory that the pool is copied to and from.
 * Errors  RESOURCE_EXHAUSTED (node). */
NODISCARD status_t tier_staging_alloc(struct kv_tier *tier, size_t bytes, struct diag *diag);
void tier_staging_free(struct kv_tier *tier);

/* Copies a block out of the pool, or into it, and sums what was copied. is_staging: the memory is tier->staging.
 * Errors  INTERNAL (node): the device is lost. */
NODISCARD status_t tier_pool_read(struct kv_tier *tier, uint32_t block, uint8_t *to, bool is_staging, uint32_t *ret_crc);
NODISCARD status_t tier_pool_write(struct kv_tier *tier, uint32_t block, uint8_t *from, bool is_staging, uint32_t *ret_crc);

/* --- tier_work.c: each does one thing that can be done now, and says whether there was one */

bool tier_reap(struct kv_tier *tier);
bool tier_start_load(struct kv_tier *tier);
bool tier_start_store(struct kv_tier *tier);
bool tier_start_move(struct kv_tier *tier);

#endif
