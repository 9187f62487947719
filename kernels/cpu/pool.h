/* pool: a team of threads that works through the numbered pieces of one job at a time.
 * Flow:    cpu_backend -> [pool] -> a set's piece functions
 * Thread:  one caller at a time; it works too, as worker 0.
 * Memory:  taken in create.
 *
 * Pieces are taken one by one from a shared counter, never dealt out beforehand: a worker that
 * lost its core to a neighbour delays one piece, not its share of the job. Idle workers spin for
 * some microseconds, since the next job of a forward pass is near, then sleep on a futex. */
#ifndef BATON_KERNELS_CPU_POOL_H
#define BATON_KERNELS_CPU_POOL_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

struct pool;

/* worker  0 .. threads-1, for scratch of its own
 * piece   0 .. piece_count-1 */
typedef void (*pool_piece_fn)(const void *job, uint32_t worker, uint32_t piece);

/* Returns owned. Starts threads - 1 threads (threads >= 1), signals blocked in them.
 * Errors  RESOURCE_EXHAUSTED (node). */
NODISCARD status_t pool_create(uint32_t threads, struct pool **ret_pool, struct diag *diag);

/* Takes NULL. Joins the threads. */
void pool_destroy(struct pool *pool);

/* Calls fn for every piece, each exactly once, and returns when all have returned; what they wrote
 * is visible then. Borrows job. Cost with one thread or one piece: a loop. */
void pool_run(struct pool *pool, uint32_t piece_count, pool_piece_fn fn, const void *job);

uint32_t pool_threads(const struct pool *pool);

#endif
