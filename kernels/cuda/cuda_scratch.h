/* cuda_scratch: device memory that an operation needs while it runs, as large as the largest that came.
 * Flow:    cuda_ops -> [cuda_scratch] -> driver
 * Thread:  the handle's caller.
 * Memory:  taken when a larger piece is asked for than ever before, at least twice the last one: warm-up. Older
 *          pieces stay until the end, for graphs hold their addresses; together they are smaller than the last. */
#ifndef BATON_KERNELS_CUDA_CUDA_SCRATCH_H
#define BATON_KERNELS_CUDA_CUDA_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/cuda_queue.h"

#define CUDA_SCRATCH_PIECES 48u /* doubling: more than any address space holds */

struct cuda_scratch {
    void *pieces[CUDA_SCRATCH_PIECES];
    uint32_t count; /* the last one is in use */
    size_t bytes;   /* of the last one */
};

void cuda_scratch_fini(struct cuda_scratch *scratch, const struct cuda_driver *driver); /* takes a zeroed one */

/* At least `bytes`, 256-byte aligned. is_zeroed: a new piece is filled with zeros, in order with the operations.
 * NULL after a failure, which the queue keeps, and for 0 bytes. */
void *cuda_scratch_get(struct cuda_scratch *scratch, struct cuda_queue *queue, size_t bytes, bool is_zeroed);

#endif
