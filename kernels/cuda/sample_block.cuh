/* sample_block: what the threads of one block do together when they sample: sums, running sums, digits.
 * Flow:    sample.cu -> [sample_block]
 * Thread:  of the device. Every function is "block" (device.cuh): all CUDA_SAMPLE_THREADS threads come.
 * Memory:  struct sample_shared, the block's shared memory. */
#ifndef BATON_KERNELS_CUDA_SAMPLE_BLOCK_CUH
#define BATON_KERNELS_CUDA_SAMPLE_BLOCK_CUH

#include "kernels/cuda/sample_math.cuh"

#define SAMPLE_WARPS (CUDA_SAMPLE_THREADS / CUDA_WARP)

struct sample_shared {
    uint32_t low[CUDA_SAMPLE_BINS]; /* sums of 64 bits in two halves: shared memory adds 32 bits in one instruction, */
    uint32_t high[CUDA_SAMPLE_BINS]; /* 64 only by compare and swap */
    uint32_t count[CUDA_SAMPLE_BINS];
    uint64_t warp_values[SAMPLE_WARPS];
    uint64_t found_before;
    uint64_t found_all;
    uint32_t found;
    uint32_t flag;
};
static_assert(sizeof(struct sample_shared) <= CUDA_SAMPLE_SHARED_BYTES, "the launch asks for too little");

/* ---- reductions: the result in all threads ------------------------------------------------- */

#define SAMPLE_BLOCK_REDUCTION(name, type, combined)                                    \
    DEVICE_FN type name(struct sample_shared *shared, type v)                           \
    {                                                                                   \
        for (uint32_t mask = 1; mask < CUDA_WARP; mask *= 2) {                          \
            const type a = v, b = shuffle_xor(v, mask);                                 \
            v = combined;                                                               \
        }                                                                               \
        if (lane_id() == 0) { shared->warp_values[warp_id()] = v; }                     \
        block_sync();                                                                   \
        v = (type)shared->warp_values[0];                                               \
        for (uint32_t warp = 1; warp < SAMPLE_WARPS; warp++) {                          \
            const type a = v, b = (type)shared->warp_values[warp];                      \
            v = combined;                                                               \
        }                                                                               \
        block_sync();                                                                   \
        return v;                                                                       \
    }
SAMPLE_BLOCK_REDUCTION(block_sum, uint64_t, a + b)
SAMPLE_BLOCK_REDUCTION(block_max64, uint64_t, a > b ? a : b)
SAMPLE_BLOCK_REDUCTION(block_max, uint32_t, a > b ? a : b)
SAMPLE_BLOCK_REDUCTION(block_min, uint32_t, a < b ? a : b)

/* The sum over the threads before this one; *ret_all: over all. */
DEVICE_FN uint64_t block_sum_before(struct sample_shared *shared, uint64_t v, uint64_t *ret_all)
{
    uint64_t upto = v;
    for (uint32_t delta = 1; delta < CUDA_WARP; delta *= 2) {
        const uint64_t other = shuffle_up(upto, delta);
        if (lane_id() >= delta) { upto += other; }
    }
    if (lane_id() == CUDA_WARP - 1) { shared->warp_values[warp_id()] = upto; }
    block_sync();
    uint64_t before = 0, all = 0;
    for (uint32_t warp = 0; warp < SAMPLE_WARPS; warp++) {
        if (warp == warp_id()) { before = all; }
        all += shared->warp_values[warp];
    }
    block_sync();
    *ret_all = all;
    return before + upto - v;
}

/* Which thread's value the running sum passes `target` in: the first with sum before + its value > target.
 * `thread` is CUDA_SAMPLE_THREADS - 1 and `before` the sum before that thread where the sum of all does not pass it. */
struct crossing {
    uint32_t thread;
    uint64_t before;
};
DEVICE_FN struct crossing block_crossing(struct sample_shared *shared, uint64_t v, uint64_t target)
{
    uint64_t all;
    const uint64_t before = block_sum_before(shared, v, &all);
    const bool is_last = threadIdx.x == CUDA_SAMPLE_THREADS - 1;
    if ((before <= target && target < before + v) || (is_last && target >= all)) {
        shared->found = threadIdx.x;
        shared->found_before = before;
    }
    block_sync();
    const struct crossing crossing = {shared->found, shared->found_before};
    block_sync();
    return crossing;
}

/* ---- histograms ---------------------------------------------------------------------------- */

DEVICE_FN void histogram_clear(struct sample_shared *shared)
{
    shared->low[threadIdx.x] = 0;
    shared->high[threadIdx.x] = 0;
    shared->count[threadIdx.x] = 0;
    block_sync();
}

/* Any thread, on its own. The carry follows from what the low half was before, so the sum is exact. */
DEVICE_FN void histogram_add(struct sample_shared *shared, uint32_t bin, uint64_t v)
{
    const uint32_t low = (uint32_t)v;
    const uint32_t before = atomic_add_u32(&shared->low[bin], low);
    const uint32_t high = (uint32_t)(v >> 32) + (before + low < low ? 1 : 0);
    if (high != 0) { (void)atomic_add_u32(&shared->high[bin], high); }
}

/* After a block_sync(). */
DEVICE_FN uint64_t histogram_of(const struct sample_shared *shared, uint32_t bin)
{
    return (uint64_t)shared->high[bin] << 32 | shared->low[bin];
}

/* ---- blocks of one row --------------------------------------------------------------------- */

/* True in the block that comes last: it sees all that the others wrote before, through load*_l2(). */
DEVICE_FN bool is_last_block(struct sample_shared *shared, uint32_t *arrived, uint32_t blocks)
{
    thread_fence();
    block_sync();
    if (threadIdx.x == 0) { shared->flag = atomic_add_u32(arrived, 1) == blocks - 1 ? 1 : 0; }
    block_sync();
    thread_fence();
    return shared->flag != 0;
}

DEVICE_FN uint64_t load8_l2(const uint64_t *p)
{
    const uint32_t *halves = (const uint32_t *)p;
    return (uint64_t)load4_l2(halves + 1) << 32 | load4_l2(halves);
}

#endif
