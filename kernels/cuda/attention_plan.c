#include "kernels/cuda/attention_plan.h"

#include <string.h>

#include "base/check.h"

#define LOG2_E 1.4426950408889634
#define PIECE_BYTES_MAX ((size_t)64 << 20)
#define BLOCKS_PER_SM 2u /* of the decode kernel: what its ring is sized for */

/* The device reads the host's struct as it lies. */
_Static_assert(sizeof(struct cuda_attention_sequence) == sizeof(struct kernels_attention_sequence), "sequence");
_Static_assert(offsetof(struct cuda_attention_sequence, row_first) == offsetof(struct kernels_attention_sequence, row_first), "sequence");
_Static_assert(offsetof(struct cuda_attention_sequence, row_count) == offsetof(struct kernels_attention_sequence, row_count), "sequence");
_Static_assert(offsetof(struct cuda_attention_sequence, position_first)
                   == offsetof(struct kernels_attention_sequence, position_first), "sequence");
_Static_assert(offsetof(struct cuda_attention_sequence, blocks) == offsetof(struct kernels_attention_sequence, blocks), "sequence");

/* [activations f16][KV: as they are, fp8, int8][head_dim up to 64, 128, 256] */
#define ROW(kind, name) {CUDA_KERNEL_attention_##kind##_##name##_64, CUDA_KERNEL_attention_##kind##_##name##_128, \
                         CUDA_KERNEL_attention_##kind##_##name##_256}
#define KERNELS(kind) {{ROW(kind, bf16), ROW(kind, bf16_fp8), ROW(kind, bf16_int8)}, {ROW(kind, f16), ROW(kind, f16_fp8), ROW(kind, f16_int8)}}
static const enum cuda_kernel prefill_kernels[2][3][3] = KERNELS(prefill);
static const enum cuda_kernel decode_kernels[2][3][3] = KERNELS(decode);
static const enum cuda_kernel sm90_kernels[2][2] = {{CUDA_KERNEL_attention_sm90_bf16_64, CUDA_KERNEL_attention_sm90_bf16_128},
                                                    {CUDA_KERNEL_attention_sm90_f16_64, CUDA_KERNEL_attention_sm90_f16_128}};
static const uint32_t template_dims[3] = {64, 128, 256};

/* Which of the templates a call takes. */
struct variant {
    bool plain;
    uint32_t act, kv, dim; /* indices as above */
};

static uint32_t stages_that_fit(const struct cuda_attention_device *device, uint32_t dim, uint32_t bytes);

static struct variant variant_of(const struct cuda_attention_device *device, const struct kernels_attention *call)
{
    const struct kv_layout *layout = &call->kv.layout;
    const bool codes = layout->dtype == DTYPE_FP8_E4M3 || layout->dtype == DTYPE_INT8;
    const uint32_t groups = layout->block_tokens / CUDA_ATTENTION_GROUP;
    struct variant v = {
        .act = call->dtype == DTYPE_F16,
        .kv = layout->dtype == DTYPE_FP8_E4M3 ? 1 : layout->dtype == DTYPE_INT8 ? 2 : 0,
        .dim = layout->head_dim <= 64 ? 0 : layout->head_dim <= 128 ? 1 : 2,
    };
    v.plain = (call->dtype != DTYPE_BF16 && call->dtype != DTYPE_F16) || (!codes && layout->dtype != call->dtype)
           || layout->head_dim % 16 != 0 || (groups & (groups - 1)) != 0;
    if (!v.plain) {
        const uint32_t bytes = codes ? 1 : 2, dim = template_dims[v.dim];
        v.plain = stages_that_fit(device, dim, bytes) == 0
               || CUDA_ATTENTION_DECODE_BYTES(dim, bytes) > device->shared_bytes_max;
    }
    return v;
}

static uint32_t fixed_bytes(const struct cuda_attention_device *device, uint32_t dim)
{
    return 4 * CUDA_ATTENTION_QUERY_BYTES(dim) + (device->deterministic ? CUDA_ATTENTION_TOTAL_BYTES(dim) : 0);
}

/* Of the prefill kernel's ring: two blocks on an SM hide more than a deep ring in one. 0: not even one fits. */
static uint32_t stages_that_fit(const struct cuda_attention_device *device, uint32_t dim, uint32_t bytes)
{
    const uint32_t stage = CUDA_ATTENTION_STAGE_BYTES(dim, bytes), fixed = fixed_bytes(device, dim);
    uint32_t room = device->shared_bytes_max / 2 - 1024; /* the system keeps 1 KiB of every block */
    uint32_t stages = room > fixed ? (room - fixed) / stage : 0;
    if (stages < 2) {
        room = device->shared_bytes_max;
        stages = room > fixed ? (room - fixed) / stage : 0;
    }
    return stages < CUDA_ATTENTION_STAGES_MAX ? stages : CUDA_ATTENTION_STAGES_MAX;
}

static uint32_t q_tiles(uint32_t group) { return (group + CUDA_ATTENTION_GROUP - 1) / CUDA_ATTENTION_GROUP; }

static size_t piece_bytes_of(uint32_t group, uint32_t head_dim)
{
    const size_t floats = (size_t)(group < CUDA_ATTENTION_GROUP ? group : CUDA_ATTENTION_GROUP) * (head_dim + 2);
    return (floats + 3) / 4 * 16;
}

void cuda_attention_scratch_need(const struct cuda_attention_device *device, const struct kernels_attention *call,
                                 uint32_t sequences_max, uint32_t context_max, struct cuda_attention_scratch *ret_scratch)
{
    const uint32_t kv_heads = call->kv.layout.kv_heads, group = call->q_heads / kv_heads;
    const size_t pairs = (size_t)sequences_max * kv_heads * q_tiles(group);
    const size_t piece = piece_bytes_of(group, call->kv.layout.head_dim);
    size_t count = (size_t)device->sm_count * BLOCKS_PER_SM + pairs;
    if (device->deterministic) {
        const size_t segments = pairs * (context_max / CUDA_ATTENTION_SEGMENT + 1);
        const size_t wanted = segments < PIECE_BYTES_MAX / piece ? segments : PIECE_BYTES_MAX / piece;
        count = wanted > count ? wanted : count;
    }
    *ret_scratch = (struct cuda_attention_scratch){.piece_bytes = count * piece, .arrival_bytes = pairs * sizeof(uint32_t)};
}

static void fill_args(const struct cuda_attention_device *device, const struct kernels_attention *call, const void *exchange_host,
                      const void *exchange_device, const struct cuda_attention_scratch *scratch, struct cuda_attention_args *ret_args)
{
    const struct kv_layout *layout = &call->kv.layout;
    const uint64_t to_device = (uint64_t)(uintptr_t)exchange_device - (uint64_t)(uintptr_t)exchange_host;
    const uint32_t group = call->q_heads / layout->kv_heads;
    const size_t values = (size_t)layout->kv_heads * kv_layout_head_bytes(layout);
    uint32_t shift = 0;
    while (CUDA_ATTENTION_GROUP << (shift + 1) <= layout->block_tokens) { shift++; }
    CHECK(2 * values <= UINT32_MAX);
    memset(ret_args, 0, sizeof *ret_args); /* padding too: a recorded launch is compared by its bytes */
    ret_args->q = call->q;
    ret_args->out = call->out;
    ret_args->q_stride = call->q_stride;
    ret_args->out_stride = call->out_stride;
    ret_args->act_dtype = (uint32_t)call->dtype;
    ret_args->kv_dtype = (uint32_t)layout->dtype;
    ret_args->sequences = (const struct cuda_attention_sequence *)(uintptr_t)((uint64_t)(uintptr_t)call->sequences + to_device);
    ret_args->sequence_count = call->sequence_count;
    ret_args->to_device = to_device;
    ret_args->q_heads = call->q_heads;
    ret_args->kv_heads = layout->kv_heads;
    ret_args->group = group;
    ret_args->head_dim = layout->head_dim;
    ret_args->window = call->window;
    ret_args->deterministic = device->deterministic;
    ret_args->scale_log2 = (float)((double)call->scale * LOG2_E);
    ret_args->slices = (const unsigned char *)call->kv.pool + kv_layout_slice_offset(layout, 0, call->kv.layer);
    ret_args->block_bytes = kv_layout_block_bytes(layout);
    ret_args->block_tokens = layout->block_tokens;
    ret_args->group_shift = shift;
    ret_args->v_offset = (uint32_t)values;
    ret_args->scale_offset = (uint32_t)(2 * values);
    ret_args->pieces = scratch->pieces;
    ret_args->arrivals = scratch->arrivals;
    ret_args->piece_capacity = (uint32_t)(scratch->piece_bytes / piece_bytes_of(group, layout->head_dim));
    CHECK((size_t)call->sequence_count * layout->kv_heads * q_tiles(group) * sizeof(uint32_t) <= scratch->arrival_bytes);
}

/* Its loads of q are 16 bytes wide; its sums are formed in another order than those of decode. */
static bool takes_sm90(const struct cuda_attention_device *device, const struct kernels_attention *call, const struct variant *v)
{
    return device->use_sm90 && device->arch == 90 && !device->deterministic && v->kv == 0 && v->dim < 2
        && ((uintptr_t)call->q & 15u) == 0 && (call->q_stride & 7u) == 0
        && CUDA_ATTENTION_SM90_BYTES(template_dims[v->dim]) <= device->shared_bytes_max;
}

uint32_t cuda_attention_plan(const struct cuda_attention_device *device, const struct kernels_attention *call,
                             const void *exchange_host, const void *exchange_device, const struct cuda_attention_scratch *scratch,
                             struct cuda_attention_launch ret_launches[CUDA_ATTENTION_LAUNCHES_MAX])
{
    const struct kv_layout *layout = &call->kv.layout;
    CHECK(layout->order == KV_ORDER_ROWS);
    CHECK(call->scale > 0); /* the largest q.k is the largest score */
    if (call->rows == 0 || call->sequence_count == 0) { return 0; }
    struct variant v = variant_of(device, call);
    /* Words of two values are read and written. */
    v.plain = v.plain || (((uintptr_t)call->q | (uintptr_t)call->out) & 3u) != 0 || ((call->q_stride | call->out_stride) & 1u) != 0;
    struct cuda_attention_args args;
    fill_args(device, call, exchange_host, exchange_device, scratch, &args);
    if (v.plain) {
        const uint64_t warps = (uint64_t)call->rows * call->q_heads;
        ret_launches[0] = (struct cuda_attention_launch){
            .kernel = CUDA_KERNEL_attention_plain,
            .shape = {.grid = {(uint32_t)((warps + 3) / 4), 1, 1}, .block = {CUDA_ATTENTION_THREADS, 1, 1},
                      .shared_bytes = 4 * CUDA_ATTENTION_STEP * sizeof(float)},
            .args = args,
        };
        return 1;
    }

    uint32_t count = 0;
    const uint32_t dim = template_dims[v.dim], bytes = v.kv == 0 ? 2 : 1;
    if (call->row_count_max > 1) {
        struct cuda_attention_launch *prefill = &ret_launches[count++];
        uint32_t tile_rows = CUDA_ATTENTION_TILE;
        args.stages = stages_that_fit(device, dim, bytes);
        *prefill = (struct cuda_attention_launch){
            .kernel = prefill_kernels[v.act][v.kv][v.dim],
            .shape = {.block = {CUDA_ATTENTION_THREADS, 1, 1},
                      .shared_bytes = args.stages * CUDA_ATTENTION_STAGE_BYTES(dim, bytes) + fixed_bytes(device, dim)},
            .args = args,
        };
        args.stages = 0;
        if (takes_sm90(device, call, &v)) {
            tile_rows = CUDA_ATTENTION_SM90_ROWS;
            *prefill = (struct cuda_attention_launch){
                .kernel = sm90_kernels[v.act][v.dim],
                .shape = {.block = {CUDA_ATTENTION_SM90_THREADS, 1, 1}, .shared_bytes = CUDA_ATTENTION_SM90_BYTES(dim)},
                .args = args,
            };
        }
        /* Every sequence may end with a tile that is not full; none of fewer than two rows has any. */
        const uint64_t packed = (uint64_t)call->rows * args.group;
        const uint32_t prompts = call->sequence_count < call->rows / 2 ? call->sequence_count : call->rows / 2;
        const uint64_t tiles = packed / tile_rows + prompts;
        prefill->shape.grid[0] = (uint32_t)(tiles * layout->kv_heads);
        prefill->shape.grid[1] = prefill->shape.grid[2] = 1;
    }
    /* Always: row_count_max is a bound, and the last chunk of a prompt may be one row. */
    CHECK((size_t)device->sm_count * BLOCKS_PER_SM + (size_t)call->sequence_count * layout->kv_heads * q_tiles(args.group)
          <= args.piece_capacity);
    ret_launches[count++] = (struct cuda_attention_launch){
        .kernel = decode_kernels[v.act][v.kv][v.dim],
        .shape = {.grid = {device->sm_count * BLOCKS_PER_SM, 1, 1}, .block = {CUDA_ATTENTION_THREADS, 1, 1},
                  .shared_bytes = CUDA_ATTENTION_DECODE_BYTES(dim, bytes)},
        .args = args,
    };
    return count;
}
