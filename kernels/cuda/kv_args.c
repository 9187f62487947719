#include "kernels/cuda/kv_args.h"

#include <stddef.h>

#include "base/check.h"
#include "kernels/kernels.h"

#define WARPS 4u /* of a block; each has a head to itself */
#define HEAD_STRIP_BYTES (KERNELS_HEAD_DIM_MAX * (uint32_t)sizeof(float)) /* of shared memory for a warp that rotates */

_Static_assert(CUDA_SLOT_NONE == KERNELS_SLOT_NONE, "the same mark of a row that is not stored");
_Static_assert(sizeof(struct cuda_kv_slot) == sizeof(struct kernels_kv_slot), "the same slots");
_Static_assert(offsetof(struct cuda_kv_slot, slot) == offsetof(struct kernels_kv_slot, slot), "the same slots");
_Static_assert(KV_TILE_TOKENS == 16, "kv_write.cu finds scales by tiles of 16");

void cuda_kv_place_of(const struct kernels_kv *kv, struct cuda_kv_place *ret_place)
{
    const struct kv_layout *layout = &kv->layout;
    CHECK(layout->order == KV_ORDER_ROWS);
    CHECK((uintptr_t)kv->pool % 16 == 0);
    CHECK(layout->block_tokens % KV_TILE_TOKENS == 0);
    CHECK(layout->head_dim <= KERNELS_HEAD_DIM_MAX);
    CHECK(layout->head_dim % 2 == 0);
    CHECK(kv_layout_slice_bytes(layout) <= UINT32_MAX);
    *ret_place = (struct cuda_kv_place){
        .layer_base = (unsigned char *)kv->pool + kv_layout_slice_offset(layout, 0, kv->layer),
        .block_bytes = kv_layout_block_bytes(layout),
        .head_bytes = (uint32_t)kv_layout_head_bytes(layout),
        .scales_at = kv_layout_has_scales(layout) ? (uint32_t)kv_layout_scale_offset(layout, 0, 0) : 0,
        .kv_heads = layout->kv_heads,
        .head_dim = layout->head_dim,
        .block_tokens = layout->block_tokens,
        .dtype = layout->dtype,
    };
}

static void launch_by_heads(uint32_t rows, uint32_t heads, uint32_t shared_bytes, struct cuda_launch *ret_launch)
{
    const uint64_t blocks = ((uint64_t)rows * heads + WARPS - 1) / WARPS;
    CHECK(blocks <= INT32_MAX / WARPS); /* heads are counted in 32 bits */
    *ret_launch = (struct cuda_launch){.grid = {(uint32_t)blocks, 1, 1}, .block = {WARPS * 32, 1, 1}, .shared_bytes = shared_bytes};
}

void cuda_kv_write_shape(const struct cuda_kv_write_args *args, struct cuda_launch *ret_launch)
{
    CHECK((unsigned)args->dtype < DTYPE_COUNT);
    launch_by_heads(args->rows, 2 * args->kv.kv_heads, 0, ret_launch);
}

void cuda_qkv_store_shape(const struct cuda_qkv_store_args *args, struct cuda_launch *ret_launch)
{
    CHECK((unsigned)args->dtype < DTYPE_COUNT);
    CHECK((unsigned)args->q_norm_dtype < DTYPE_COUNT);
    CHECK((unsigned)args->k_norm_dtype < DTYPE_COUNT);
    CHECK(args->rotary_dim % 2 == 0);
    CHECK(args->rotary_dim <= args->kv.head_dim);
    launch_by_heads(args->rows, args->q_heads + 2 * args->kv.kv_heads, WARPS * HEAD_STRIP_BYTES, ret_launch);
}
