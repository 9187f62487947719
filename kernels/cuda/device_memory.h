/* device_memory: kv_memory of a pool on a CUDA device.
 * Flow:    kv_tier, the cables -> kv_memory_submit() -> [device_memory] -> driver, on streams of its own
 * Thread:  as kv_memory.h. One thread of its own queues ops and ends them; it never waits for the device but where
 *          the device has failed half way through an op.
 * Memory:  taken in create: DEVICE_MEMORY_SLOTS streams with a little pinned and device memory each, and
 *          KV_MEMORY_EVENTS events. Slots and queues as they are asked for; slots and pinned memory that are given back
 *          while a PASSED is awaited are kept, slots for the next who asks for as many bytes, until somebody asks or gives
 *          back when none is.
 *
 * Each op under way has a slot with a stream, so ops overlap and one that waits for a late mark holds up no other
 * until all slots wait. Streams are urgent: a checksum of a layer that is on its way comes before the next layer.
 * Host memory of kv_memory_host_alloc() is pinned, and copies go straight from and to it. */
#ifndef BATON_KERNELS_CUDA_DEVICE_MEMORY_H
#define BATON_KERNELS_CUDA_DEVICE_MEMORY_H

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "kv/kv_memory.h"

#define DEVICE_MEMORY_SLOTS 16u /* ops on the device at a time; the rest wait in order */

struct cuda_driver;
struct cuda_marks;

/* The kv_memory of `pool`, a buffer of kernels_buffer_alloc() of a cuda backend (CHECK: not of the CPU, whose pools
 * have none). Returns owned. Borrows both until device_memory_destroy().
 * Errors   RESOURCE_EXHAUSTED (node): no memory, thread or stream; INTERNAL (node): the device. */
NODISCARD status_t device_memory_create(struct kernels *kernels, void *pool, size_t pool_bytes, struct kv_memory **ret_memory,
                                        struct diag *diag);

/* The same over a driver and its marks. pool  what mem_alloc returned. */
NODISCARD status_t device_memory_create_on(const struct cuda_driver *driver, struct cuda_marks *marks, void *pool, size_t pool_bytes,
                                           struct kv_memory **ret_memory, struct diag *diag);

/* Takes NULL. Ends what is under way first, though there should be nothing (kv_memory.h). */
void device_memory_destroy(struct kv_memory *memory);

#endif
