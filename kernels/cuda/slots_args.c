#include "kernels/cuda/slots_args.h"

#include "base/check.h"
#include "kernels/kernels.h"
#include "kv/kv_layout.h"

#define WARP 32u
#define WARPS (CUDA_SLOTS_THREADS / WARP)
#define LANE_VALUES 8u

_Static_assert(KERNELS_HEAD_DIM_MAX == WARP * LANE_VALUES, "a warp has the longest row");
_Static_assert(2 * KV_TILE_TOKENS % WARP == 0, "the rows of a piece fill whole warps");
_Static_assert(KV_TILE_TOKENS == 16, "slots.cu finds values and scales by tiles of 16");

static void launch_of(uint64_t blocks, uint32_t blocks_max, struct cuda_launch *ret_launch)
{
    *ret_launch = (struct cuda_launch){.grid = {blocks < blocks_max ? (uint32_t)blocks : blocks_max, 1, 1}, .block = {CUDA_SLOTS_THREADS, 1, 1}};
}

void cuda_slots_copy_shape(const struct cuda_slots_copy_args *args, struct cuda_launch *ret_launch)
{
    CHECK(args->count <= CUDA_SLOTS_PIECES_MAX);
    CHECK(args->vectors <= 1u << 26);
    CHECK(((uintptr_t)args->pool | (uintptr_t)args->slot) % 16 == 0);
    for (uint32_t i = 0; i < args->count; i++) { CHECK(args->offsets[i] % 16 == 0); }
    const uint32_t chunks = (args->vectors + CUDA_SLOTS_CHUNK - 1) / CUDA_SLOTS_CHUNK;
    launch_of((uint64_t)args->count * chunks, CUDA_SLOTS_COPY_BLOCKS, ret_launch);
}

static struct cuda_slots_side side_of(const struct kv_layout *layout)
{
    CHECK((unsigned)layout->dtype < DTYPE_KV_COUNT);
    CHECK((unsigned)layout->order < KV_ORDER_COUNT);
    CHECK(kv_layout_slice_bytes(layout) <= 1u << 30);
    return (struct cuda_slots_side){
        .dtype = layout->dtype,
        .is_tiles = layout->order == KV_ORDER_TILES,
        .pair = kv_layout_pair(layout),
        .head_bytes = (uint32_t)kv_layout_head_bytes(layout),
        .tile_bytes = (uint32_t)kv_layout_tile_bytes(layout),
        .scales_at = kv_layout_has_scales(layout) ? (uint32_t)kv_layout_scale_offset(layout, 0, 0) : 0,
    };
}

void cuda_slots_convert_prepare(const struct kv_layout *pool, const struct kv_layout *slot, struct cuda_slots_convert_args *ret_args)
{
    CHECK(pool->block_tokens == slot->block_tokens);
    CHECK(pool->block_tokens % KV_TILE_TOKENS == 0);
    CHECK(pool->kv_heads == slot->kv_heads);
    CHECK(pool->head_dim == slot->head_dim);
    CHECK(pool->head_dim <= KERNELS_HEAD_DIM_MAX);
    CHECK(pool->head_dim % 2 == 0);
    *ret_args = (struct cuda_slots_convert_args){
        .pool_side = side_of(pool),
        .slot_side = side_of(slot),
        .piece_bytes = (uint32_t)kv_layout_slice_bytes(slot),
        .kv_heads = pool->kv_heads,
        .head_dim = pool->head_dim,
        .block_tokens = pool->block_tokens,
        .row_lanes = 1,
    };
    while (ret_args->row_lanes * LANE_VALUES < pool->head_dim) { ret_args->row_lanes *= 2; }
}

void cuda_slots_convert_shape(const struct cuda_slots_convert_args *args, struct cuda_launch *ret_launch)
{
    CHECK(args->count <= CUDA_SLOTS_PIECES_MAX);
    CHECK(((uintptr_t)args->pool | (uintptr_t)args->slot) % 16 == 0);
    for (uint32_t i = 0; i < args->count; i++) { CHECK(args->offsets[i] % 16 == 0); }
    const uint64_t rows = (uint64_t)args->count * 2 * args->kv_heads * args->block_tokens;
    const uint64_t warps = rows / (WARP / args->row_lanes);
    CHECK(warps <= INT32_MAX); /* they are counted in 32 bits */
    launch_of((warps + WARPS - 1) / WARPS, CUDA_SLOTS_CONVERT_BLOCKS, ret_launch);
}
