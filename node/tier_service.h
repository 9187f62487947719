/* tier_service: a node's KV tiers, opened as the flags say; what they tell becomes facts of the core.
 * Flow:    core: TIER_STORE, TIER_LOAD -> role -> node -> [tier_service] -> kv_tier -> post -> mailbox -> core
 * Thread:  create and destroy: start-up; store, load and refused: the core thread; stats: any. The
 *          post function runs on the tiers' own thread.
 * Memory:  that of kv_tier, and what the disk had at start until the core has heard of it. */
#ifndef BATON_NODE_TIER_SERVICE_H
#define BATON_NODE_TIER_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kv/kv_tier.h"
#include "node/node_config.h"

struct tier_service;

struct tier_service_config {
    const struct node_config *flags;
    void *pool; /* holds until destroy */
    struct kv_memory *memory; /* the same, where pool lies on a device; else NULL */
    size_t block_bytes;
    uint32_t block_count;
    bool is_unused; /* the role would find nothing in them: as if the flags asked for none */
    uint8_t fingerprint_hash[32];
    void (*post)(void *user, const struct kv_tier_event *event);
    void *user;
};

/* Of the tiers that the flags ask for; 0 without any. pool, post and user are not looked at. */
uint64_t tier_service_memory_bytes(const struct tier_service_config *config);
uint32_t tier_service_entries_max(const struct tier_service_config *config);

/* Whether each tier that the flags ask for holds a block.
 * Errors  INVALID_ARGUMENT (node): names the flag. */
NODISCARD status_t tier_service_check(const struct tier_service_config *config, struct diag *diag);

/* *ret_service is NULL where the flags ask for no tier; every call below takes that.
 * Errors  as kv_tier_create. */
NODISCARD status_t tier_service_create(const struct tier_service_config *config, struct tier_service **ret_service, struct diag *diag);
void tier_service_destroy(struct tier_service *service);

/* What the disk had from an earlier life, oldest first; NULL: nothing, or all of it was taken. */
const struct kv_tier_event *tier_service_next_found(struct tier_service *service);

/* Each is answered by one event: posted, or, where the tiers would not take it, refused. */
void tier_service_store(struct tier_service *service, struct kv_hash hash, uint32_t block, uint64_t tag);
void tier_service_load(struct tier_service *service, struct kv_hash hash, uint32_t block, uint64_t tag);

uint32_t tier_service_refused_count(const struct tier_service *service);
/* Takes the oldest refusal as the event that it stands for. False: there is none. */
bool tier_service_next_refused(struct tier_service *service, struct kv_tier_event *ret_event);

/* False: there are no tiers. */
bool tier_service_stats(struct tier_service *service, struct kv_tier_stats *ret_stats);

#endif
