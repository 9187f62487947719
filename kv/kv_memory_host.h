/* kv_memory_host: a kv_memory over ordinary memory, by memcpy.
 * Flow:    kv_memory_submit -> [kv_memory_host] -> done
 * Thread:  one of its own does the ops, in the order in which they came.
 * Memory:  the pool is the caller's.
 *
 * The plainest form of the interface, for tests; tests/kv_memory has one that behaves badly. Nothing
 * that serves on CPUs goes through it: tiers and cables copy host memory themselves. It cannot be
 * exported, and it has no queue of operations to wait for: marks are 0. */
#ifndef BATON_KV_KV_MEMORY_HOST_H
#define BATON_KV_KV_MEMORY_HOST_H

#include "kv/kv_memory.h"

/* Holds pool until destroy. Errors: RESOURCE_EXHAUSTED (node). */
NODISCARD status_t kv_memory_host_create(void *pool, size_t bytes, struct kv_memory **ret_memory);
/* When no op is under way. Takes NULL. */
void kv_memory_host_destroy(struct kv_memory *memory);

#endif
