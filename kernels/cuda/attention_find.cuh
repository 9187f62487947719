/* attention_find: which sequence a block works for, and where its K and V lie.
 * Flow:    attention_*.cu -> [attention_find] -> device.cuh
 * Thread:  a warp of the device.
 * Memory:  registers.
 *
 * The host does not know the sequences when it records a launch, so blocks look for their work themselves: every
 * sequence has a number of units of it, and a block knows which unit of all it is. */
#ifndef BATON_KERNELS_CUDA_ATTENTION_FIND_CUH
#define BATON_KERNELS_CUDA_ATTENTION_FIND_CUH

#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/device.cuh"

/* UNITS::of(args, sequence) -> u32. */
template <class UNITS> DEVICE_FN uint32_t units_at(const cuda_attention_args &a, uint32_t index)
{
    return index < a.sequence_count ? UNITS::of(a, a.sequences[index]) : 0;
}

/* Warp: of all sequences. Four loads at a time are under way. */
template <class UNITS> DEVICE_FN uint32_t units_of_all(const cuda_attention_args &a)
{
    uint32_t sum = 0;
    for (uint32_t first = 0; first < a.sequence_count; first += 128) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) { sum += units_at<UNITS>(a, first + i * 32 + lane_id()); }
    }
    for (uint32_t mask = 1; mask < 32; mask *= 2) { sum += shuffle_xor(sum, mask); }
    return sum;
}

struct found_unit {
    uint32_t sequence; /* sequence_count: there is no such unit */
    uint32_t before;   /* units of the sequences before it */
};

/* Warp: the sequence that unit number `target` belongs to; the same in all lanes. */
template <class UNITS> DEVICE_FN found_unit find_unit(const cuda_attention_args &a, uint32_t target)
{
    uint32_t before = 0;
    for (uint32_t first = 0; first < a.sequence_count; first += 32) {
        const uint32_t own = units_at<UNITS>(a, first + lane_id());
        uint32_t upto = own;
#pragma unroll
        for (uint32_t delta = 1; delta < 32; delta *= 2) {
            const uint32_t left = shuffle_up(upto, delta);
            if (lane_id() >= delta) { upto += left; }
        }
        const uint32_t past = warp_ballot(before + upto > target); /* rising: the first one set is it */
        if (past != 0) {
            const uint32_t lane = count_ones((past & (0u - past)) - 1);
            return found_unit{first + lane, before + shuffle(upto - own, lane)};
        }
        before += shuffle(upto, 31);
    }
    return found_unit{a.sequence_count, before};
}

/* ---- KV ------------------------------------------------------------------------------------ */

/* The first position that the row at `position` sees. */
DEVICE_FN uint32_t view_start(const cuda_attention_args &a, uint32_t position)
{
    return a.window == 0 || position < a.window ? 0 : position - a.window + 1;
}

DEVICE_FN const uint32_t *table_of(const cuda_attention_args &a, const cuda_attention_sequence &sequence)
{
    return (const uint32_t *)(sequence.blocks + a.to_device);
}

/* Block of a group of 16 tokens; entries of groups that nobody sees may be stale and are not read. */
DEVICE_FN uint32_t block_of_group(const cuda_attention_args &a, const uint32_t *table, uint32_t group, uint32_t first,
                                  uint32_t last)
{
    const bool seen = group * CUDA_ATTENTION_GROUP <= last && group * CUDA_ATTENTION_GROUP + CUDA_ATTENTION_GROUP > first;
    return seen ? table[group >> a.group_shift] : 0;
}

/* K of the group's first token, of one kv head; V lies a.v_offset further. `bytes`: of a value. */
DEVICE_FN const unsigned char *group_at(const cuda_attention_args &a, uint32_t block, uint32_t group, uint32_t kv_head,
                                        uint32_t bytes)
{
    const uint32_t in_block = group & ((1u << a.group_shift) - 1);
    return a.slices + (uint64_t)block * a.block_bytes
         + (uint64_t)(kv_head * a.block_tokens + in_block * CUDA_ATTENTION_GROUP) * a.head_dim * bytes;
}

/* The group's scales: 16 of K, 16 of V, bf16. */
DEVICE_FN const unsigned char *group_scales(const cuda_attention_args &a, uint32_t block, uint32_t group, uint32_t kv_head)
{
    const uint32_t in_block = group & ((1u << a.group_shift) - 1);
    return a.slices + (uint64_t)block * a.block_bytes + a.scale_offset + ((kv_head << a.group_shift) + in_block) * 64u;
}

#endif
