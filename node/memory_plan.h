/* memory_plan: adds up what a node will take and refuses to start if it does not fit.
 * Flow:    node start-up -> [memory_plan] -> pool, engine
 * Thread:  start-up only. */
#ifndef BATON_NODE_MEMORY_PLAN_H
#define BATON_NODE_MEMORY_PLAN_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

struct memory_plan {
    uint64_t weights_mapped_bytes; /* page cache: shared, and evictable if need be */
    uint64_t weights_owned_bytes;  /* packed; taken already when the plan is checked */
    uint64_t kv_bytes;
    uint64_t engine_bytes;
    uint64_t tier_bytes; /* --kv-host-memory, and the disk tier's buffers and tables */
};

/* What may still be taken: the smaller of the machine's available memory and what the cgroup
 * (v2) has left, its page cache counted as free. 0: could not be read. */
uint64_t memory_plan_available(void);

/* Errors  RESOURCE_EXHAUSTED (node): diag names the parts, the sum and what there is. */
NODISCARD status_t memory_plan_check(const struct memory_plan *plan, struct diag *diag);

#endif
