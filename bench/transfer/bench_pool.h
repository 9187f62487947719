/* bench_pool: a KV pool of a bench, in host memory, on a GPU, or on the fake device of the tests.
 * Thread:  one.
 * Memory:  the pool, and for a GPU a piece of pinned memory to fill and to look at it. */
#ifndef BATON_BENCH_TRANSFER_BENCH_POOL_H
#define BATON_BENCH_TRANSFER_BENCH_POOL_H

#include "kernels/kernels.h"
#include "transfer/transfer.h"

enum bench_pool_kind {
    BENCH_POOL_HOST,
    BENCH_POOL_GPU,  /* as a node with --backend=cuda has it */
    BENCH_POOL_FAKE, /* tests/kv_memory/fake_memory.h: shows that a form works, never how fast it is */
};

struct bench_pool {
    enum bench_pool_kind kind;
    struct kv_endpoint_pool pool;
    struct kernels *kernels; /* GPU */
    uint8_t *view;           /* the pool's bytes where the host can touch them; pinned, one piece at a time, for a GPU */
};

#define BENCH_POOL_PIECE_BYTES (4u << 20) /* of one get or put at most */

/* device: which GPU, or the fake one's number. Lives until the process ends.
 * Errors  as kv_endpoint_pool_alloc() and kernels_create(): no GPU here is FAILED_PRECONDITION, and diag says so. */
NODISCARD status_t bench_pool_open(enum bench_pool_kind kind, size_t bytes, uint32_t device, struct diag *diag,
                                   struct bench_pool *ret_pool);

/* `bytes`, a piece at most, at `offset`: where to write what the pool is to hold, or to read what it holds. Until the
 * next call. put is called when they are written. */
uint8_t *bench_pool_get(struct bench_pool *pool, size_t offset, size_t bytes);
uint8_t *bench_pool_begin(struct bench_pool *pool, size_t offset);
void bench_pool_put(struct bench_pool *pool, size_t offset, size_t bytes);

#endif
