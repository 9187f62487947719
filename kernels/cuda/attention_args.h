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

/* Shared memory, of a template for heads of up to `dim` values and KV of `bytes` a value: what the kernels carve and
 * what the plan asks for. */
#define CUDA_ATTENTION_UNIT_BYTES(dim, bytes) (CUDA_ATTENTION_GROUP * (dim) * (bytes)) /* K or V of 16 tokens */
#define CUDA_ATTENTION_QUERY_BYTES(dim) ((dim) > 128u ? 32u * (dim) : 0u) /* of a warp, where registers do not hold them */
/* Prefill: a stage is K, V and the scales of a step; totals are kept where results are deterministic. */
#define CUDA_ATTENTION_STAGE_BYTES(dim, bytes) (8u * CUDA_ATTENTION_UNIT_BYTES(dim, bytes) + ((bytes) == 1u ? 256u : 0u))
#define CUDA_ATTENTION_TOTAL_BYTES(dim) (((dim) / 2u + 4u) * 4u * CUDA_ATTENTION_THREADS)
#define CUDA_ATTENTION_STAGES_MAX 3u
/* Decode: a warp's ring has so many units, each with its scales, that a block's four fill half an H100's SM. A piece
 * of up to 16 rows is put where the ring was. */
#define CUDA_ATTENTION_SLOT_BYTES(dim, bytes) (CUDA_ATTENTION_UNIT_BYTES(dim, bytes) + ((bytes) == 1u ? 32u : 0u))
#define CUDA_ATTENTION_SLOTS(dim, bytes)                                         \
    ((dim) > 128u ? 16384u / CUDA_ATTENTION_UNIT_BYTES(dim, bytes)                \
                  : 24576u / CUDA_ATTENTION_UNIT_BYTES(dim, bytes) < 12u          \
                        ? 24576u / CUDA_ATTENTION_UNIT_BYTES(dim, bytes)          \
                        : 12u)
#define CUDA_ATTENTION_PIECE_BYTES(dim) (CUDA_ATTENTION_GROUP * ((dim) + 2u) * 4u)
#define CUDA_ATTENTION_RING_BYTES(dim, bytes)                                                             \
    (CUDA_ATTENTION_SLOTS(dim, bytes) * CUDA_ATTENTION_SLOT_BYTES(dim, bytes) > CUDA_ATTENTION_PIECE_BYTES(dim) \
         ? CUDA_ATTENTION_SLOTS(dim, bytes) * CUDA_ATTENTION_SLOT_BYTES(dim, bytes)                       \
         : CUDA_ATTENTION_PIECE_BYTES(dim))
#define CUDA_ATTENTION_DECODE_BYTES(dim, bytes) \
    (4u * (CUDA_ATTENTION_RING_BYTES(dim, bytes) + CUDA_ATTENTION_QUERY_BYTES(dim)) + 16u)

/* The Hopper kernel: queries and three steps of K and V, and up to 1008 bytes to begin at a multiple of 1024. */
#define CUDA_ATTENTION_SM90_THREADS 256u
#define CUDA_ATTENTION_SM90_ROWS 128u
#define CUDA_ATTENTION_SM90_STEP 128u
#define CUDA_ATTENTION_SM90_BYTES(dim) (7u * CUDA_ATTENTION_SM90_ROWS * (dim) * 2u + 1024u)

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

    uint32_t q_heads, kv_heads, group; /* group: q heads of one kv head */
    uint32_t head_dim;
    uint32_t window;        /* 0: none */
    uint32_t deterministic; /* 0 or 1 */
    float scale_log2;       /* of q.k, times log2 e: weights are powers of two */

    const unsigned char *slices; /* this layer's slice of block 0 */
    uint64_t block_bytes;        /* from there to that of the next block */
    uint32_t block_tokens;       /* a multiple of 16 */
    uint32_t group_shift;        /* block_tokens is 16 << group_shift; not for the plain kernel */
    uint32_t v_offset;           /* from a slice's start: V of head 0 */
    uint32_t scale_offset;       /* scales of head 0; as kv_layout.h says */

    uint32_t stages; /* of the ring of K and V in shared memory */

    /* Decode: a piece is what one warp summed of one (sequence, kv head, tile of 16 q heads). */
    float *pieces;       /* [piece_capacity][rows of a tile][head_dim + 2], each up to 16 bytes; not kept from launch to launch */
    uint32_t *arrivals;  /* [sequences x kv heads x tiles]: zero between launches */
    uint32_t piece_capacity;
};

#endif
