/* kv_args: what the kernels of kv_write.cu take, and where a layer's KV lies as a kernel needs it.
 * Flow:    cuda_backend -> [kv_args] -> kv_write.cu; the place also -> attention
 * Thread:  any; plain values.
 * Memory:  pointers are device addresses, held until the kernel has run.
 * Conventions of dtypes, strides and shapes as rows_args.h. */
#ifndef BATON_KERNELS_CUDA_KV_ARGS_H
#define BATON_KERNELS_CUDA_KV_ARGS_H

#include <stdint.h>

#include "base/dtype.h"
#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As a block's index: there is none, the row is not stored (KERNELS_SLOT_NONE). */
#define CUDA_SLOT_NONE 0xffffffffu

/* One layer of a pool whose layout has KV_ORDER_ROWS. With b a block, h a kv head, s a slot:
 *   K      layer_base + b * block_bytes + h * head_bytes + s * head_dim * bytes of dtype
 *   V      the same with h + kv_heads for h
 *   scale  layer_base + b * block_bytes + scales_at + ((h * (block_tokens / 16) + s / 16) * 32 + s % 16) * 2, of V 32
 *          bytes further; bf16; int8 and fp8 alone have them */
struct cuda_kv_place {
    unsigned char *layer_base; /* the layer's slice of block 0; 16-byte aligned */
    uint64_t block_bytes;
    uint32_t head_bytes; /* values of K or of V of one head in one slice */
    uint32_t scales_at;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t block_tokens;
    enum dtype dtype; /* any of the five */
};

struct kernels_kv; /* kernels/kernels.h */
/* CHECKs that the layout's order is KV_ORDER_ROWS. kv->pool is a device address. */
void cuda_kv_place_of(const struct kernels_kv *kv, struct cuda_kv_place *ret_place);

struct cuda_kv_slot {
    uint32_t block; /* CUDA_SLOT_NONE: the row is not stored */
    uint32_t slot;
};

/* As kernels_kv_write. */
struct cuda_kv_write_args {
    struct cuda_kv_place kv;
    uint32_t rows;
    enum dtype dtype; /* of k and v */
    const void *k;    /* [rows][kv_heads][head_dim] */
    uint64_t k_stride;
    const void *v;
    uint64_t v_stride;
    const struct cuda_kv_slot *slots; /* [rows] */
};
void cuda_kv_write_shape(const struct cuda_kv_write_args *args, struct cuda_launch *ret_launch);

/* A whole layer's work between the product q|k|v and attention, in one launch: the norms of the heads of q and k where
 * the model has them, the rotation where there are tables, q in place, k and v to their slots. Every value is rounded
 * to `dtype` after the norm and after the rotation, so the bits are those of cuda_rope, with a norm or without, and
 * cuda_kv_write one after another. k and v are only read. */
struct cuda_qkv_store_args {
    struct cuda_kv_place kv;
    uint32_t rows;
    uint32_t q_heads; /* 0: only k and v */
    uint32_t rotary_dim; /* even; 0: no rotation */
    enum dtype dtype; /* of q, k and v */
    void *q;          /* [rows][q_heads][head_dim] */
    uint64_t q_stride;
    const void *k; /* [rows][kv_heads][head_dim] */
    uint64_t k_stride;
    const void *v;
    uint64_t v_stride;
    const void *q_norm; /* [head_dim]; NULL: none */
    const void *k_norm;
    enum dtype q_norm_dtype, k_norm_dtype;
    float norm_eps;
    const float *cos; /* [position][rotary_dim / 2] */
    const float *sin;
    const uint32_t *positions; /* [rows] */
    const struct cuda_kv_slot *slots; /* [rows] */
};
void cuda_qkv_store_shape(const struct cuda_qkv_store_args *args, struct cuda_launch *ret_launch);

#ifdef __cplusplus
}
#endif

#endif
