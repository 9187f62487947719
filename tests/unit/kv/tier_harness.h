/* tier_harness: a kv_tier with a small pool, whose events are gathered and waited for.
 * With TIER_ON_DEVICE the pool lies on a fake device (tests/kv_memory), and the tests see it from behind.
 * Every block's content follows from its name, so that what is loaded can be told right from wrong.
 * Thread:  the test's; the tier's own thread adds events under a lock. */
#ifndef BATON_TESTS_UNIT_KV_TIER_HARNESS_H
#define BATON_TESTS_UNIT_KV_TIER_HARNESS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"
#include "kv/kv_tier.h"

enum {
#ifdef TIER_ON_DEVICE
    HARNESS_BLOCK_BYTES = 5008, /* not a whole number of pages, but of what a device copies */
#else
    HARNESS_BLOCK_BYTES = 5000, /* not a whole number of pages, nor of anything */
#endif
    HARNESS_BLOCKS = 16,
    HARNESS_EVENTS = 4096,
    HARNESS_NAMES = 256,
};

struct harness {
    char folder[256];
    char path[300];
    uint8_t *pool;
    struct kv_memory *memory; /* NULL: the pool is host memory */
    struct kv_tier_config config;
    struct kv_tier *tier;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool gate_is_shut; /* the tier's thread waits in its next event */
    uint32_t gated;
    struct kv_tier_event events[HARNESS_EVENTS];
    uint32_t event_count;
    uint32_t answers;  /* STORED, LOADED and their failures */
    uint32_t dropped, found;
};

/* Makes a folder and a pool; no tier yet. host and disk in blocks; 0: none. */
struct harness *harness_create(uint32_t host_blocks, uint32_t disk_blocks);
void harness_destroy(struct harness *harness); /* the tier, the file and the folder too */

/* Disk bytes that hold so many blocks and not one more. */
uint64_t harness_disk_bytes(uint32_t blocks);

status_t harness_open(struct harness *harness, struct diag *diag);
void harness_must_open(struct harness *harness);
void harness_close(struct harness *harness); /* the tier only; forgets its events */

struct kv_hash harness_name(uint32_t id);
void harness_fill(struct harness *harness, uint32_t block, uint32_t id);
bool harness_holds(const struct harness *harness, uint32_t block, uint32_t id);

/* One request to its end; its last event. Block 0 for stores, block 1 for loads. */
struct kv_tier_event harness_store(struct harness *harness, uint32_t id);
struct kv_tier_event harness_load(struct harness *harness, uint32_t id);

/* Waits until `answers` answers have come since open. */
void harness_wait(struct harness *harness, uint32_t answers);
void harness_gate(struct harness *harness, bool is_shut);
void harness_wait_gated(struct harness *harness);

/* The first event of that kind about that name, from event `from` on; NULL: none. */
const struct kv_tier_event *harness_event(struct harness *harness, enum kv_tier_event_kind kind, uint32_t id);

struct kv_tier_stats harness_stats(struct harness *harness);
/* When nothing is under way and nothing is left to move. */
struct kv_tier_stats harness_settled(struct harness *harness);

#endif
