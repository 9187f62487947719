/* kv_tier: KV blocks in host memory and on disk, below the pool.
 * Flow:    core: TIER_STORE, TIER_LOAD -> [kv_tier] -> events -> core
 * Thread:  one of its own does all copies and input/output; calls come from the core thread.
 * Memory:  the host slab, the staging buffers and the tables are taken at create.
 *
 * A pool on a device is copied by way of a buffer that the device reaches at full speed, a block at a
 * time: the thread waits for the device, and nobody for the thread.
 *
 * Entries are found by kv_hash. A store copies a block of the pool into the host tier (or, where
 * there is none, to disk); what the host tier must give up goes on to disk. Every entry carries a
 * CRC32C that is checked when it is loaded. The disk file belongs to one layout fingerprint; after a
 * crash its intact entries are found again and no other. */
#ifndef BATON_KV_KV_TIER_H
#define BATON_KV_KV_TIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kv/kv_hash.h"
#include "kv/kv_memory.h"
#include "kv/tier_index.h"

struct kv_tier;

enum kv_tier_event_kind {
    KV_TIER_STORED,       /* tag, hash, tier, bytes, elapsed_ns: the pool block is no longer read; bytes 0: it
                             was here already */
    KV_TIER_STORE_FAILED, /* tag, hash, status: nor is it here */
    KV_TIER_LOADED,       /* tag, hash, tier, bytes, elapsed_ns: the pool block holds the content, verified */
    KV_TIER_LOAD_FAILED,  /* tag, hash, status: the pool block's bytes mean nothing; a DROPPED comes before it;
                             NOT_FOUND: it was given up meanwhile, DATA_LOSS: the checksum, UNAVAILABLE: the disk */
    KV_TIER_DROPPED,      /* hash: no tier holds it any more */
    KV_TIER_MOVED,        /* hash, tier: it is there now (host to disk) */
    KV_TIER_FOUND,        /* hash, tier: the disk file has it from an earlier life; at start only */
};

struct kv_tier_event {
    enum kv_tier_event_kind kind;
    uint64_t tag;
    struct kv_hash hash;
    enum kv_tier_kind tier;
    uint32_t block;
    status_t status;
    uint64_t bytes;
    uint64_t elapsed_ns; /* of the copy, or its part of the time in which the disk served it and others (busy_time.h);
                            without the wait for its turn */
};

/* On the tier's thread (FOUND: inside create). Must not block for long. */
typedef void (*kv_tier_event_fn)(void *user, const struct kv_tier_event *event);

struct kv_tier_config {
    void *pool;                      /* borrows until destroy */
    struct kv_memory *memory;        /* the pool's, where the CPU does not see it (then pool is not looked at); borrows
                                        until destroy. NULL: the pool is host memory */
    size_t block_bytes;
    uint32_t block_count;
    uint8_t fingerprint_hash[32];    /* of the layout: another one's file is not read */
    uint64_t host_bytes;             /* 0: no host tier */
    const char *disk_path;           /* a file; NULL or "": no disk tier */
    uint64_t disk_bytes;
    uint32_t queue_max;              /* stores and loads under way; 0: 256 */
    bool is_without_uring;           /* pread and pwrite even where io_uring works */
    kv_tier_event_fn on_event;
    void *user;
};

/* Bytes of memory that create will take, for the memory plan. */
uint64_t kv_tier_memory_bytes(const struct kv_tier_config *config);

/* Entries that both tiers hold at most: what a tier_index of them needs. */
uint32_t kv_tier_entries_max(const struct kv_tier_config *config);

/* Errors  INVALID_ARGUMENT (node): a budget smaller than one block, a file that is none of ours, no
 *         tier at all; RESOURCE_EXHAUSTED (node): no memory or no room on the disk; UNAVAILABLE
 *         (node): the file cannot be opened, or another process has it. diag says which. */
NODISCARD status_t kv_tier_create(const struct kv_tier_config *config, struct kv_tier **ret_tier, struct diag *diag);

/* Finishes what is under way, makes the disk file whole, stops the thread. No event comes after.
 * Takes NULL. */
void kv_tier_destroy(struct kv_tier *tier);

/* Each ends in one STORED, STORE_FAILED, LOADED or LOAD_FAILED with its tag; the block is read or
 * written until then.
 * Errors  RESOURCE_EXHAUSTED (request): queue_max are under way; nothing happens. */
NODISCARD status_t kv_tier_store(struct kv_tier *tier, struct kv_hash hash, uint32_t block, uint64_t tag);
NODISCARD status_t kv_tier_load(struct kv_tier *tier, struct kv_hash hash, uint32_t block, uint64_t tag);

/* Gives an entry up ahead of its turn: what was loaded and will not be wanted again. A DROPPED follows
 * if it was here; no other event. Where queue_max are under way it stays until its turn comes. */
void kv_tier_drop(struct kv_tier *tier, struct kv_hash hash);

struct kv_tier_stats {
    uint64_t entries[KV_TIER_COUNT], entries_max[KV_TIER_COUNT], bytes[KV_TIER_COUNT]; /* now */
    uint64_t stored[KV_TIER_COUNT], loaded[KV_TIER_COUNT], dropped[KV_TIER_COUNT];     /* since create */
    uint64_t store_failures, load_failures, checksum_failures;
    uint64_t bytes_per_s_store[KV_TIER_COUNT], bytes_per_s_load[KV_TIER_COUNT]; /* measured; 0: not yet */
    uint64_t moved;     /* entries from host to disk since create */
    uint64_t found;     /* entries that the file had at create */
    uint32_t in_flight; /* requests */
    uint32_t disk_ops;  /* blocks on their way from or to the disk */
    bool is_idle;       /* nothing under way, nothing to move */
    bool is_disk_paused; /* its writes fail again and again: not used for some seconds */
    bool is_disk_direct; /* past the page cache */
    const char *disk_io;    /* "io_uring", "pread/pwrite", or "" without a disk tier */
    const char *disk_state; /* "new", "kept", "reset: ..." with the reason: what create made of the file */
};
void kv_tier_stats_get(struct kv_tier *tier, struct kv_tier_stats *ret_stats); /* any thread */

#endif
