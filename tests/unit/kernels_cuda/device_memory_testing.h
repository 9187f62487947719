/* device_memory_testing: a pool on the emulated device, with the kv_memory that its tests are about. */
#ifndef BATON_TESTS_UNIT_KERNELS_CUDA_DEVICE_MEMORY_TESTING_H
#define BATON_TESTS_UNIT_KERNELS_CUDA_DEVICE_MEMORY_TESTING_H

#include "kernels/cuda/device_memory.h"
#include "kv/kv_memory_inbox.h"
#include "tests/cuda/device_emulated.h"
#include "tests/unit/kernels_cuda/backend_testing.h"

#define POOL_BYTES ((size_t)1 << 20)
#define RANGE 1024u

struct world {
    const struct cuda_driver *driver; /* the backend's */
    struct kernels *kernels;
    struct kv_memory *memory;
    struct kv_memory_inbox inbox;
    uint8_t *pool;  /* device */
    uint8_t *model; /* what the pool should hold */
    uint64_t random;
};

void world_init_on(struct world *w, uint64_t seed, uint32_t device);
void world_init(struct world *w, uint64_t seed);
void world_fini(struct world *w);

uint32_t draw(struct world *w, uint32_t below);

/* Ranges and what else the kind needs are still to be filled in. */
struct kv_memory_op op_of(struct world *w, enum kv_memory_op_kind kind, uint32_t count, size_t range_bytes);
/* Submits one op and waits for it. */
status_t run(struct world *w, struct kv_memory_op *op);
/* Of kv_memory_host_alloc(). */
uint8_t *host_of(struct world *w, size_t bytes);

#endif
