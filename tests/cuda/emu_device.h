/* emu_device: the primitives of kernels/cuda/device.cuh for threads that are fibers. Their promises are written there.
 * Flow:    a .cu -> device.cuh -> [emu_device] -> emu.cc
 * Thread:  of an emulated device; one at a time runs on a thread of this machine.
 * Memory:  none of its own.
 *
 * Every primitive that can be misused takes the line it stands in, by a default argument, for the report. */
#ifndef BATON_TESTS_CUDA_EMU_DEVICE_H
#define BATON_TESTS_CUDA_EMU_DEVICE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define DEVICE_FN [[maybe_unused]] static inline

struct emu_dim3 {
    uint32_t x, y, z;
};

/* What the running thread may know of itself. */
struct emu_context {
    emu_dim3 thread_index, block_index, block_dim, grid_dim;
    unsigned char *shared;
    uint32_t shared_bytes;
};
extern __thread struct emu_context *emu_now;

#define threadIdx (emu_now->thread_index)
#define blockIdx (emu_now->block_index)
#define blockDim (emu_now->block_dim)
#define gridDim (emu_now->grid_dim)

enum emu_op { EMU_SYNC, EMU_SHUFFLE, EMU_VOTE, EMU_MMA_BF16, EMU_MMA_F16, EMU_LDMATRIX, EMU_LDMATRIX_TRANS, EMU_OP_COUNT };

/* What one lane brings to an operation of its warp, and where it wants the result. */
struct emu_lane {
    uint64_t value;  /* to be shuffled, or the vote */
    uint32_t source; /* the lane whose value is wanted */
    uint64_t result; /* the other's value, or the ballot */
    float *d;
    const uint32_t *a, *b;
    uint32_t *r;
    const void *row;
};

void emu_block_sync(int line);
void emu_named_sync(uint32_t id, uint32_t threads, int line);
void emu_warp_op(emu_op op, emu_lane *lane, int line);
/* Lets another thread go on: for loops that wait for a word of memory. */
void emu_yield(int line);
void emu_copy_async(void *smem, const void *global, bool valid, int line);
void emu_copy_commit(void);
void emu_copy_wait(uint32_t groups_left);
/* 16 bytes that are accessed at once: on their boundary, and if near shared memory, then inside it. */
void emu_check16(const void *p, const char *what, int line);
/* By other means than load16_stream(): not before launch_wait(), unless it is shared memory. */
void emu_touch(const void *p, int line);
void emu_launch_wait(void);
[[noreturn]] void emu_broken(const char *what, int line);

#define EMU_LINE int line = __builtin_LINE()

DEVICE_FN unsigned char *device_shared(void) { return emu_now->shared; }
DEVICE_FN uint32_t lane_id(void) { return threadIdx.x % CUDA_WARP; }
DEVICE_FN uint32_t warp_id(void) { return threadIdx.x / CUDA_WARP; }

DEVICE_FN void block_sync(EMU_LINE) { emu_block_sync(line); }
DEVICE_FN void named_sync(uint32_t id, uint32_t threads, EMU_LINE) { emu_named_sync(id, threads, line); }
DEVICE_FN void warp_sync(EMU_LINE)
{
    emu_lane lane = {};
    emu_warp_op(EMU_SYNC, &lane, line);
}

template <typename T> DEVICE_FN T emu_shuffle(T v, uint32_t source, int line)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "the chip shuffles words");
    emu_lane lane = {};
    memcpy(&lane.value, &v, sizeof(T));
    lane.source = source;
    emu_warp_op(EMU_SHUFFLE, &lane, line);
    memcpy(&v, &lane.result, sizeof(T));
    return v;
}
template <typename T> DEVICE_FN T shuffle_xor(T v, uint32_t lane_mask, EMU_LINE) { return emu_shuffle(v, lane_id() ^ (lane_mask % CUDA_WARP), line); }
template <typename T> DEVICE_FN T shuffle(T v, uint32_t lane, EMU_LINE) { return emu_shuffle(v, lane % CUDA_WARP, line); }
template <typename T> DEVICE_FN T shuffle_up(T v, uint32_t delta, EMU_LINE)
{
    return emu_shuffle(v, lane_id() < delta ? lane_id() : lane_id() - delta, line);
}
template <typename T> DEVICE_FN T shuffle_down(T v, uint32_t delta, EMU_LINE)
{
    return emu_shuffle(v, delta >= CUDA_WARP - lane_id() ? lane_id() : lane_id() + delta, line);
}
DEVICE_FN uint32_t warp_ballot(bool p, EMU_LINE)
{
    emu_lane lane = {};
    lane.value = p;
    emu_warp_op(EMU_VOTE, &lane, line);
    return (uint32_t)lane.result;
}
DEVICE_FN bool warp_any(bool p, EMU_LINE) { return warp_ballot(p, line) != 0; }
DEVICE_FN bool warp_all(bool p, EMU_LINE) { return warp_ballot(p, line) == 0xffffffffu; }

DEVICE_FN void launch_next(void) {}
DEVICE_FN void launch_wait(void) { emu_launch_wait(); }

DEVICE_FN words4 load16_stream(const void *p, EMU_LINE)
{
    emu_check16(p, "load16", line);
    words4 v;
    memcpy(&v, p, 16);
    return v;
}
DEVICE_FN void prefetch_l2(const void *) {}
DEVICE_FN words4 load16(const void *p, EMU_LINE)
{
    emu_touch(p, line);
    emu_check16(p, "load16", line);
    words4 v;
    memcpy(&v, p, 16);
    return v;
}
DEVICE_FN void store16(void *p, const words4 &v, EMU_LINE)
{
    emu_touch(p, line);
    emu_check16(p, "store16", line);
    memcpy(p, &v, 16);
}
DEVICE_FN words4 load16_l2(const void *p, EMU_LINE) { return load16(p, line); }
DEVICE_FN uint32_t load4_l2(const void *p, EMU_LINE)
{
    emu_touch(p, line);
    if ((uintptr_t)p % 4 != 0) { emu_broken("load4_l2 of an address that is not a multiple of 4", line); }
    return __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED);
}

DEVICE_FN void copy_async16(void *smem, const void *global, bool valid, EMU_LINE) { emu_copy_async(smem, global, valid, line); }
DEVICE_FN void copy_async_commit(void) { emu_copy_commit(); }
template <int N> DEVICE_FN void copy_async_wait(void) { emu_copy_wait(N); }

DEVICE_FN uint32_t atomic_add_u32(uint32_t *p, uint32_t v, EMU_LINE)
{
    emu_touch(p, line);
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
DEVICE_FN uint64_t atomic_add_u64(uint64_t *p, uint64_t v, EMU_LINE)
{
    emu_touch(p, line);
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
DEVICE_FN uint32_t atomic_or_u32(uint32_t *p, uint32_t v, EMU_LINE)
{
    emu_touch(p, line);
    return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST);
}
DEVICE_FN uint32_t atomic_xor_u32(uint32_t *p, uint32_t v, EMU_LINE)
{
    emu_touch(p, line);
    return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST);
}
DEVICE_FN uint32_t atomic_exchange_u32(uint32_t *p, uint32_t v, EMU_LINE)
{
    emu_touch(p, line);
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
}
DEVICE_FN uint32_t atomic_cas_u32(uint32_t *p, uint32_t expect, uint32_t v, EMU_LINE)
{
    emu_touch(p, line);
    (void)__atomic_compare_exchange_n(p, &expect, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expect;
}
template <typename T> DEVICE_FN T emu_atomic_best(T *p, T v, bool greatest)
{
    T before = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    while ((greatest ? v > before : v < before) &&
           !__atomic_compare_exchange_n(p, &before, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
    return before;
}
DEVICE_FN uint32_t atomic_max_u32(uint32_t *p, uint32_t v, EMU_LINE)
{
    emu_touch(p, line);
    return emu_atomic_best(p, v, true);
}
DEVICE_FN uint64_t atomic_max_u64(uint64_t *p, uint64_t v, EMU_LINE)
{
    emu_touch(p, line);
    return emu_atomic_best(p, v, true);
}
DEVICE_FN uint32_t atomic_min_u32(uint32_t *p, uint32_t v, EMU_LINE)
{
    emu_touch(p, line);
    return emu_atomic_best(p, v, false);
}
/* The atomics order everything already, and the thread sanitizer knows no fence. */
DEVICE_FN void thread_fence(void) {}

DEVICE_FN void mma_bf16_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_LINE)
{
    emu_lane lane = {};
    lane.d = d;
    lane.a = a;
    lane.b = b;
    emu_warp_op(EMU_MMA_BF16, &lane, line);
}
DEVICE_FN void mma_f16_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_LINE)
{
    emu_lane lane = {};
    lane.d = d;
    lane.a = a;
    lane.b = b;
    emu_warp_op(EMU_MMA_F16, &lane, line);
}
DEVICE_FN void ldmatrix_x4(uint32_t r[4], const void *smem, EMU_LINE)
{
    emu_lane lane = {};
    lane.r = r;
    lane.row = smem;
    emu_warp_op(EMU_LDMATRIX, &lane, line);
}
DEVICE_FN void ldmatrix_x4_trans(uint32_t r[4], const void *smem, EMU_LINE)
{
    emu_lane lane = {};
    lane.r = r;
    lane.row = smem;
    emu_warp_op(EMU_LDMATRIX_TRANS, &lane, line);
}

/* ---- numbers ------------------------------------------------------------------------------- */

DEVICE_FN uint32_t f32_bits(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}
DEVICE_FN float f32_of_bits(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
DEVICE_FN uint64_t f64_bits(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, 8);
    return bits;
}
DEVICE_FN double f64_of_bits(uint64_t bits)
{
    double v;
    memcpy(&v, &bits, 8);
    return v;
}

DEVICE_FN uint16_t bf16_of(float v)
{
    const uint32_t bits = f32_bits(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0x7fff; }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
DEVICE_FN uint16_t f16_of(float v)
{
    const uint32_t bits = f32_bits(v), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) { return 0x7fff; }
    if (magnitude >= 0x477ff000u) { return (uint16_t)(sign | 0x7c00u); } /* 65520 and above */
    if (magnitude < 0x38800000u) { /* below 2^-14: a sum with 0.5 leaves units of 2^-24, rounded by the sum */
        return (uint16_t)(sign | (f32_bits(f32_of_bits(magnitude) + 0.5f) - 0x3f000000u));
    }
    return (uint16_t)(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}
DEVICE_FN uint32_t bf16x2_of(float low, float high) { return bf16_of(low) | (uint32_t)bf16_of(high) << 16; }
DEVICE_FN uint32_t f16x2_of(float low, float high) { return f16_of(low) | (uint32_t)f16_of(high) << 16; }
DEVICE_FN float f32_of_f16(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) { return f32_of_bits(sign | 0x7f800000u | magnitude << 13); }
    return f32_of_bits(sign | f32_bits(f32_of_bits(magnitude << 13) * 0x1p112f)); /* exact, subnormals too */
}

DEVICE_FN float emu_flushed(float v) { return fabsf(v) < 0x1p-126f ? copysignf(0.0f, v) : v; }
DEVICE_FN float exp2_fast(float x) { return emu_flushed(exp2f(emu_flushed(x))); }
DEVICE_FN float rsqrt_fast(float x) { return 1.0f / sqrtf(emu_flushed(x)); }

DEVICE_FN float mul_rn(float a, float b) { return a * b; }
DEVICE_FN float add_rn(float a, float b) { return a + b; }
DEVICE_FN float div_rn(float a, float b) { return a / b; }
DEVICE_FN float sqrt_rn(float a) { return sqrtf(a); }
DEVICE_FN double mul_rn64(double a, double b) { return a * b; }
DEVICE_FN double add_rn64(double a, double b) { return a + b; }
DEVICE_FN double div_rn64(double a, double b) { return a / b; }

DEVICE_FN uint32_t fp8_e4m3_of_slowly(float v);
DEVICE_FN uint16_t fp8x2_of(float low, float high) { return (uint16_t)(fp8_e4m3_of_slowly(low) | fp8_e4m3_of_slowly(high) << 8); }

/* The double holds the product exactly. Where the sum does not fit, its last bit is made odd on the way to f32, so that
 * the second rounding errs as one would. */
DEVICE_FN uint16_t emu_fma_bf16(uint16_t a, uint16_t b, uint16_t c)
{
    const double sum = fma((double)f32_of_bits((uint32_t)a << 16), (double)f32_of_bits((uint32_t)b << 16), (double)f32_of_bits((uint32_t)c << 16));
    float near = (float)sum;
    if ((double)near != sum && isfinite(near)) {
        if (fabs((double)near) > fabs(sum)) { near = f32_of_bits(f32_bits(near) - 1); }
        near = f32_of_bits(f32_bits(near) | 1u);
    }
    return bf16_of(near);
}
DEVICE_FN uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    return emu_fma_bf16((uint16_t)a, (uint16_t)b, (uint16_t)c) |
           (uint32_t)emu_fma_bf16((uint16_t)(a >> 16), (uint16_t)(b >> 16), (uint16_t)(c >> 16)) << 16;
}
/* The product of two f16 is exact in f32. */
DEVICE_FN uint32_t mul_f16x2(uint32_t a, uint32_t b)
{
    return f16x2_of(f32_of_f16((uint16_t)a) * f32_of_f16((uint16_t)b), f32_of_f16((uint16_t)(a >> 16)) * f32_of_f16((uint16_t)(b >> 16)));
}

DEVICE_FN uint32_t count_leading_zeros(uint32_t v) { return v == 0 ? 32 : (uint32_t)__builtin_clz(v); }
DEVICE_FN uint32_t count_leading_zeros64(uint64_t v) { return v == 0 ? 64 : (uint32_t)__builtin_clzll(v); }
DEVICE_FN uint32_t count_ones(uint32_t v) { return (uint32_t)__builtin_popcount(v); }

#endif
