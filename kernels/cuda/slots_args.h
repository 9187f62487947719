/* slots_args: what the kernels of slots.cu take: scattered slices of a pool, and pieces side by side in a slot.
 * Flow:    device_memory (GATHER, SCATTER) -> [slots_args] -> slots.cu
 * Thread:  any; plain values.
 * Memory:  pointers are device addresses, held until the kernel has run. */
#ifndef BATON_KERNELS_CUDA_SLOTS_ARGS_H
#define BATON_KERNELS_CUDA_SLOTS_ARGS_H

#include <stdint.h>

#include "base/dtype.h"
#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_SLOTS_PIECES_MAX 64u
#define CUDA_SLOTS_THREADS 256u
#define CUDA_SLOTS_CHUNK 1024u         /* vectors of 16 bytes that a block copies in one go: 4 of each thread */
#define CUDA_SLOTS_COPY_BLOCKS 32u     /* at most: these run beside the model's own work */
#define CUDA_SLOTS_CONVERT_BLOCKS 64u

/* Piece i of the slot, at i * vectors * 16, becomes the bytes at pool + offsets[i], or those become it. No overlap. */
struct cuda_slots_copy_args {
    unsigned char *pool; /* 16-byte aligned, as the slot and all offsets are */
    unsigned char *slot;
    uint32_t count;   /* <= CUDA_SLOTS_PIECES_MAX */
    uint32_t vectors; /* of 16 bytes, in a piece */
    uint32_t to_slot; /* 0: from it */
    uint32_t unused;
    uint64_t offsets[CUDA_SLOTS_PIECES_MAX];
};
void cuda_slots_copy_shape(const struct cuda_slots_copy_args *args, struct cuda_launch *ret_launch);

/* Where a kernel finds a value in a slice: kv_layout.h in numbers. */
struct cuda_slots_side {
    enum dtype dtype;    /* any of the five */
    uint32_t is_tiles;   /* KV_ORDER_TILES */
    uint32_t pair;       /* of tiles */
    uint32_t head_bytes; /* values of K or of V of one head */
    uint32_t tile_bytes;
    uint32_t scales_at;
};

/* The same with a slice of `pool_side` there and a piece of `slot_side` here: see struct kv_memory_form. */
struct cuda_slots_convert_args {
    unsigned char *pool;
    unsigned char *slot;
    struct cuda_slots_side pool_side, slot_side;
    uint32_t count;
    uint32_t piece_bytes; /* of slot_side */
    uint32_t to_slot;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t block_tokens;
    uint32_t row_lanes; /* of a warp, for one row: 8 values each; a power of two */
    uint32_t unused;
    uint64_t offsets[CUDA_SLOTS_PIECES_MAX];
};

struct kv_layout; /* kv/kv_layout.h */
/* Fills in all but pool, slot, count, to_slot and offsets. CHECKs that the layouts differ in dtype and order alone, and that
 * the kernel can do them: head_dim even, at most 256. */
void cuda_slots_convert_prepare(const struct kv_layout *pool, const struct kv_layout *slot, struct cuda_slots_convert_args *ret_args);
void cuda_slots_convert_shape(const struct cuda_slots_convert_args *args, struct cuda_launch *ret_launch);

#ifdef __cplusplus
}
#endif

#endif
