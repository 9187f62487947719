/* cuda_bias: bias vectors as the products take them: of the output's dtype, to which wider ones are rounded, on 16 bytes.
 * Flow:    cuda_gemm_plan -> [cuda_bias] -> a copy on the device, made once
 * Thread:  the handle's caller.
 * Memory:  device memory in pieces, taken when a vector is first seen and kept.
 *
 * A model's biases do not change, so a copy is made at a vector's first product, which is warm-up. Memory that is
 * written again or freed is told by cuda_biases_forget(), and its vectors are copied anew. */
#ifndef BATON_KERNELS_CUDA_CUDA_BIAS_H
#define BATON_KERNELS_CUDA_CUDA_BIAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "kernels/cuda/cuda_queue.h"

struct cuda_bias {
    const void *from;
    uint32_t count;
    enum dtype from_dtype, dtype;
    void *copy;
    bool is_made;
};

struct cuda_biases {
    struct cuda_queue *queue;
    struct cuda_bias *entries;
    uint32_t entry_count, entry_capacity;
    void **pieces; /* of device memory */
    uint32_t piece_count, piece_capacity;
    size_t piece_left; /* bytes of the last one */
};

void cuda_biases_fini(struct cuda_biases *biases); /* takes a zeroed one; the stream is idle */

/* The vector itself where it serves as it is. NULL for NULL, and after a failure, which the queue keeps. */
const void *cuda_biases_get(struct cuda_biases *biases, const void *bias, uint32_t count, enum dtype from_dtype, enum dtype dtype);

/* True where a copy was made of something there. */
bool cuda_biases_forget(struct cuda_biases *biases, const void *first, size_t bytes);

#endif
