/* attention_args: what the attention kernels are told, in plain C that gcc, nvcc and g++ all read.
 * Flow:    cuda_backend -> attention_plan (fills it) -> driver.launch -> attention_*.cu
 * Thread:  any; plain values.
 *
 * Every kernel of the family takes this one struct. Addresses are the device's, but for the block tables,
 * which the sequences name by their host addresses in the exchange. */
#ifndef BATON_KERNELS_CUDA_ATTENTION_ARGS_H
#define BATON_KERNELS_CUDA_ATTENTION_ARGS_H

#include <stdint.h>

#define CUDA_ATTENTION_STEP 64u     /* tokens of one online softmax update, counted from position 0 */
#define CUDA_ATTENTION_SEGMENT 512u /* tokens of a softmax of its own where results are deterministic */
#define CUDA_ATTENTION_GROUP 16u    /* tokens that lie side by side in a block, and rows of an mma tile */
#define CUDA_ATTENTION_THREADS 128u /* of every kernel here */
#define CUDA_ATTENTION_TILE 64u     /* packed rows (token x q head of a group) of a block of the prefill kernel */
#define CUDA_ATTENTION_DIM_MAX 256u

/* struct kernels_attention_sequence, byte for byte (attention_plan.c asserts it). */
struct cuda_attention_sequence {
    uint32_t row_first;
    uint32_t row_count;
    uint32_t position_first;
    uint32_t unused;
    uint64_t blocks; /* an address of the host: u32 block indices */
};

struct cuda_attention_args {
    const void *q; /* [rows][q_heads][head_dim] of act_dtype */
    void *out;
    uint64_t q_stride, out_stride; /* elements */
    uint32_t act_dtype, kv_dtype;  /* enum dtype */

    const struct cuda_attention_sequence *sequences;
    uint32_t sequence_count;
    uint64_t to_device; /* added to a host address of the exchange; wraps */

    uint32_t rows; /* of q and out */
    uint32_t q_heads, kv_heads, group; /* group: q heads of one kv head */
    uint32_t head_dim;
    uint32_t window;        /* 0: none */
    uint32_t deterministic; /* 0 or 1 */
    float scale;            /* of q.k */
    float scale_log2;       /* scale * log2 e: weights are powers of two */

    const unsigned char *slices; /* this layer's slice of block 0 */
    uint64_t block_bytes;        /* from there to that of the next block */
    uint32_t block_tokens;       /* a multiple of 16 */
    uint32_t v_offset;           /* from a slice's start: V of head 0 */
    uint32_t scale_offset;       /* scales of head 0; as kv_layout.h says */

    uint32_t stages; /* of the ring of K and V in shared memory */

    /* Decode: a piece is what one warp summed of one (sequence, kv head, tile of 16 q heads). */
    float *pieces;       /* [piece_capacity][rows of a tile][head_dim + 2]; not kept from launch to launch */
    uint32_t *arrivals;  /* [sequences x kv heads x tiles]: zero between launches */
    uint32_t piece_capacity;
};

#endif
