/* device: the only things that a kernel may use beyond plain C arithmetic.
 * Flow:    every .cu of kernels/cuda -> [device] -> the chip (nvcc), or threads played by fibers (a C++ compiler)
 * Thread:  of the device.
 * Memory:  none.
 *
 * One text, two machines. nvcc compiles a .cu for the chip, where these functions are one instruction or a few. Any
 * C++17 compiler compiles the same .cu against tests/cuda/emu_device.h, which keeps the promises below as narrowly as
 * the PTX manual states them and reports who breaks one. So a kernel may use nothing else: no __shared__ variables, no
 * CUDA library, no intrinsics of its own.
 *
 * A kernel is   extern "C" __global__ void cuda_x(const __grid_constant__ struct cuda_x_args a)
 * with one plain struct by value; __grid_constant__ lets it be indexed where it lies. Blocks have one dimension, block[0],
 * a multiple of 32 threads: a warp is 32 neighbours.
 *
 * Rounding. nvcc is called with --fmad=false and the emulator's compiler with -ffp-contract=off: a product and a sum
 * are fused where the text says fmaf() and nowhere else, so the same text gives the same bits on both, but for exp2_fast,
 * rsqrt_fast, expf, erff and their like. `/` and sqrtf are rounded to nearest on both.
 *
 * Sync. A function marked "warp" must be reached by all 32 lanes together, one marked "block" by all threads of the
 * block: none may have left the kernel. Between them nothing may be said about who runs first.
 *
 * Source: PTX ISA 9.0; the section is named where a layout follows from it. */
#ifndef BATON_KERNELS_CUDA_DEVICE_CUH
#define BATON_KERNELS_CUDA_DEVICE_CUH

#include <math.h>
#include <stdint.h>
#include <string.h>

#define CUDA_WARP 32u

/* 16 bytes, aligned to 16: what one access of a thread moves at best. */
struct alignas(16) words4 {
    uint32_t w[4];
};

#ifdef __CUDACC__

#define DEVICE_FN [[maybe_unused]] static __device__ __forceinline__

extern __shared__ __align__(128) unsigned char device_shared_bytes[];

/* The block's shared memory, 128-byte aligned, as long as the launch said. Its contents are anything at first. */
DEVICE_FN unsigned char *device_shared(void) { return device_shared_bytes; }

DEVICE_FN uint32_t lane_id(void) { return threadIdx.x % CUDA_WARP; }
DEVICE_FN uint32_t warp_id(void) { return threadIdx.x / CUDA_WARP; }

/* ---- meeting points ------------------------------------------------------------------------ */

/* Block: what any thread wrote before is seen by all after. */
DEVICE_FN void block_sync(void) { __syncthreads(); }
/* Of `threads` threads, whole warps, that name the same id, 1 .. 15. */
DEVICE_FN void named_sync(uint32_t id, uint32_t threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
/* Warp: the same among its lanes. */
DEVICE_FN void warp_sync(void) { __syncwarp(); }

/* Warp: v of lane (own lane ^ lane_mask); of `lane`; of own lane - delta or + delta (own v where there is none). Of
 * 4 or 8 bytes. */
template <typename T> DEVICE_FN T shuffle_xor(T v, uint32_t lane_mask) { return __shfl_xor_sync(0xffffffffu, v, (int)lane_mask); }
template <typename T> DEVICE_FN T shuffle(T v, uint32_t lane) { return __shfl_sync(0xffffffffu, v, (int)lane); }
template <typename T> DEVICE_FN T shuffle_up(T v, uint32_t delta) { return __shfl_up_sync(0xffffffffu, v, delta); }
template <typename T> DEVICE_FN T shuffle_down(T v, uint32_t delta) { return __shfl_down_sync(0xffffffffu, v, delta); }
/* Warp. */
DEVICE_FN bool warp_any(bool p) { return __any_sync(0xffffffffu, p) != 0; }
DEVICE_FN bool warp_all(bool p) { return __all_sync(0xffffffffu, p) != 0; }
DEVICE_FN uint32_t warp_ballot(bool p) { return __ballot_sync(0xffffffffu, p); }

/* ---- launches ------------------------------------------------------------------------------ */

/* A kernel of CUDA_KERNELS_EARLY (kernel_list.h) may start while the launch before it on its stream still runs. Every thread
 * of it calls launch_wait(), and before that touches no memory but its arguments, shared memory, and by load16_stream() or
 * prefetch_l2() what no kernel ever writes: weights. When it returns, all launches before are done, and what they wrote is
 * seen: theirs and those before them, because they waited too. launch_next(): the launch after this one may start now.
 * Chips before sm_90 start no launch early. Source: PTX ISA, "griddepcontrol". */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
DEVICE_FN void launch_next(void) { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE_FN void launch_wait(void) { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
DEVICE_FN void launch_next(void) {}
DEVICE_FN void launch_wait(void) {}
#endif

/* ---- memory -------------------------------------------------------------------------------- */

/* 16 bytes at a 16-byte boundary, of global or shared memory. */
DEVICE_FN words4 load16(const void *p)
{
    uint4 v = *(const uint4 *)p;
    return words4{{v.x, v.y, v.z, v.w}};
}
DEVICE_FN void store16(void *p, const words4 &v) { *(uint4 *)p = make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]); }

/* The same of global memory that nobody writes while the kernel runs and that is read once: weights, KV. Past L1. */
DEVICE_FN words4 load16_stream(const void *p)
{
    words4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                 : "l"(__cvta_generic_to_global(p)));
    return v;
}

/* Has the line of global memory brought to L2, for whoever loads it soon. */
DEVICE_FN void prefetch_l2(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p))); }

/* Of global memory that another block wrote in this launch and said so by thread_fence() and an atomic: from L2,
 * because an SM's L1 may hold what was there before. */
DEVICE_FN words4 load16_l2(const void *p)
{
    uint4 v = __ldcg((const uint4 *)p);
    return words4{{v.x, v.y, v.z, v.w}};
}
DEVICE_FN uint32_t load4_l2(const void *p) { return __ldcg((const unsigned *)p); }

/* Starts a copy of 16 bytes from global to shared memory, both at 16-byte boundaries; zeros where !valid, and then
 * `global` is not read. The 16 bytes of shared memory are nobody's until this thread's copy_async_wait() of the group,
 * and other threads see them after a block_sync() or warp_sync() that follows it. */
DEVICE_FN void copy_async16(void *smem, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(smem)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}
/* Closes this thread's group of copies; a group may be empty. */
DEVICE_FN void copy_async_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits until all but the newest N of this thread's groups have landed. */
template <int N> DEVICE_FN void copy_async_wait(void) { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

/* All give the value before. */
DEVICE_FN uint32_t atomic_add_u32(uint32_t *p, uint32_t v) { return atomicAdd(p, v); }
DEVICE_FN uint64_t atomic_add_u64(uint64_t *p, uint64_t v) { return atomicAdd((unsigned long long *)p, (unsigned long long)v); }
DEVICE_FN uint32_t atomic_max_u32(uint32_t *p, uint32_t v) { return atomicMax(p, v); }
DEVICE_FN uint64_t atomic_max_u64(uint64_t *p, uint64_t v) { return atomicMax((unsigned long long *)p, (unsigned long long)v); }
DEVICE_FN uint32_t atomic_min_u32(uint32_t *p, uint32_t v) { return atomicMin(p, v); }
DEVICE_FN uint32_t atomic_or_u32(uint32_t *p, uint32_t v) { return atomicOr(p, v); }
DEVICE_FN uint32_t atomic_xor_u32(uint32_t *p, uint32_t v) { return atomicXor(p, v); }
DEVICE_FN uint32_t atomic_exchange_u32(uint32_t *p, uint32_t v) { return atomicExch(p, v); }
DEVICE_FN uint32_t atomic_cas_u32(uint32_t *p, uint32_t expect, uint32_t v) { return atomicCAS(p, expect, v); }
/* What this thread wrote before is seen by the whole device before what it writes after. */
DEVICE_FN void thread_fence(void) { __threadfence(); }

/* ---- matrix units -------------------------------------------------------------------------- */

/* Warp: d += a * b with a [16][16] of rows, b [16][8] of columns, d [16][8] f32. With g = lane / 4, t = lane % 4, each
 * word holding two neighbours in k, the lower first:
 *   a[0]  row g,   k 2t, 2t+1      a[1]  row g+8, k 2t, 2t+1      a[2]  row g, k 2t+8, 2t+9     a[3]  row g+8, k 2t+8, 2t+9
 *   b[0]  k 2t, 2t+1, column g     b[1]  k 2t+8, 2t+9, column g
 *   d[0], d[1]  row g, columns 2t, 2t+1                           d[2], d[3]  row g+8, columns 2t, 2t+1
 * Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type". */
DEVICE_FN void mma_bf16_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE_FN void mma_f16_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Warp: four 8x8 matrices of 16-bit values out of shared memory. Lanes 8i .. 8i+7 point at the rows of matrix i, each
 * of 16 bytes at a 16-byte boundary. r[i] of a lane holds row lane/4, columns 2(lane%4) and +1 of matrix i; of its
 * transpose with _trans: rows 2(lane%4) and +1, column lane/4. Source: PTX ISA, "ldmatrix". */
DEVICE_FN void ldmatrix_x4(uint32_t r[4], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(smem))
                 : "memory");
}
DEVICE_FN void ldmatrix_x4_trans(uint32_t r[4], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(smem))
                 : "memory");
}

/* ---- numbers ------------------------------------------------------------------------------- */

DEVICE_FN uint32_t f32_bits(float v) { return __float_as_uint(v); }
DEVICE_FN float f32_of_bits(uint32_t bits) { return __uint_as_float(bits); }
DEVICE_FN uint64_t f64_bits(double v) { return (uint64_t)__double_as_longlong(v); }
DEVICE_FN double f64_of_bits(uint64_t bits) { return __longlong_as_double((long long)bits); }

/* To nearest, ties to even; past the range of f16 infinity; a NaN becomes 0x7fff. Of two the first lies low. */
DEVICE_FN uint16_t bf16_of(float v)
{
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}
DEVICE_FN uint16_t f16_of(float v)
{
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}
DEVICE_FN uint32_t bf16x2_of(float low, float high)
{
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
DEVICE_FN uint32_t f16x2_of(float low, float high)
{
    uint32_t bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
DEVICE_FN float f32_of_f16(uint16_t bits)
{
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}

/* 2^x and 1/sqrt(x) to about 2 units in the last place; what is below 2^-126 is taken and given as zero. */
DEVICE_FN float exp2_fast(float x)
{
    float v;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}
DEVICE_FN float rsqrt_fast(float x)
{
    float v;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

/* Rounded once each, never fused, whatever the compiler was told. */
DEVICE_FN float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE_FN float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEVICE_FN float div_rn(float a, float b) { return __fdiv_rn(a, b); }
DEVICE_FN float sqrt_rn(float a) { return __fsqrt_rn(a); }
DEVICE_FN double mul_rn64(double a, double b) { return __dmul_rn(a, b); }
DEVICE_FN double add_rn64(double a, double b) { return __dadd_rn(a, b); }
DEVICE_FN double div_rn64(double a, double b) { return __ddiv_rn(a, b); }

/* Two of fp8 e4m3 (OCP, no infinity), the first low: to nearest, ties to even; what would round past 448 becomes 448,
 * a NaN the code 0x7f. */
DEVICE_FN uint32_t fp8_e4m3_of_slowly(float v);
DEVICE_FN uint16_t fp8x2_of(float low, float high)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t bits;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return (uint16_t)(fp8_e4m3_of_slowly(low) | fp8_e4m3_of_slowly(high) << 8);
#endif
}

/* a * b + c of each half, rounded once, subnormals kept. */
DEVICE_FN uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE_FN uint32_t mul_f16x2(uint32_t a, uint32_t b)
{
    uint32_t d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

DEVICE_FN uint32_t count_leading_zeros(uint32_t v) { return (uint32_t)__clz((int)v); }
DEVICE_FN uint32_t count_leading_zeros64(uint64_t v) { return (uint32_t)__clzll((long long)v); }
DEVICE_FN uint32_t count_ones(uint32_t v) { return (uint32_t)__popc(v); }

#else

#include "tests/cuda/emu_device.h"

#endif

/* ---- made of the above ---------------------------------------------------------------------- */

/* The first thing in a kernel of CUDA_KERNELS_EARLY that has nothing to do before. */
DEVICE_FN void launch_begin(void)
{
    launch_next();
    launch_wait();
}

DEVICE_FN float f32_of_bf16(uint16_t bits) { return f32_of_bits((uint32_t)bits << 16); }
DEVICE_FN float f32_of_bf16_low(uint32_t pair) { return f32_of_bits(pair << 16); }
DEVICE_FN float f32_of_bf16_high(uint32_t pair) { return f32_of_bits(pair & 0xffff0000u); }
DEVICE_FN float f32_of_f16_low(uint32_t pair) { return f32_of_f16((uint16_t)pair); }
DEVICE_FN float f32_of_f16_high(uint32_t pair) { return f32_of_f16((uint16_t)(pair >> 16)); }

/* The same codes as the instruction of sm_89 gives, for chips before it. */
DEVICE_FN uint32_t fp8_e4m3_of_slowly(float v)
{
    const uint32_t bits = f32_bits(v), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { return 0x7fu; }
    if (magnitude >= 0x43e00000u) { return sign | 0x7eu; } /* 448 and above */
    if (magnitude < 0x3a800000u) { return sign; }          /* below 2^-10: zero */
    const uint32_t exponent = magnitude >> 23, mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t shift = exponent < 121 ? 141 - exponent : 20;
    const uint32_t base = exponent < 121 ? 0 : (exponent - 121) << 3;
    return sign | (base + ((mantissa + (1u << (shift - 1)) - 1 + (mantissa >> shift & 1u)) >> shift));
}
DEVICE_FN uint8_t fp8_e4m3_of(float v) { return (uint8_t)fp8x2_of(v, 0.0f); }

/* Codes widened exactly. The four bits of exponent and three of mantissa are put where f16 and bf16 have theirs; the
 * difference of the exponents' biases is a power of two, multiplied in, subnormals and all. The NaN code reads as 480:
 * kv_write stores none, a row with a NaN has a NaN for scale. `codes`: two, the first low; of four the lower two or
 * the upper two by `>> 16`. */
DEVICE_FN uint32_t f16x2_of_fp8x2(uint32_t codes)
{
    const uint32_t apart = (codes & 0xffu) | (codes & 0xff00u) << 8;
    return mul_f16x2((apart & 0x007f007fu) << 7 | (apart & 0x00800080u) << 8, 0x5c005c00u); /* 2^8 */
}
DEVICE_FN uint32_t bf16x2_of_fp8x2(uint32_t codes)
{
    const uint32_t apart = (codes & 0xffu) | (codes & 0xff00u) << 8;
    return fma_bf16x2((apart & 0x007f007fu) << 4 | (apart & 0x00800080u) << 8, 0x7b807b80u, 0x80008000u); /* 2^120, - 0 */
}
DEVICE_FN float f32_of_fp8_e4m3(uint8_t code)
{
    return mul_rn(f32_of_bits((uint32_t)(code & 0x7fu) << 20 | (uint32_t)(code & 0x80u) << 24), 0x1p120f);
}

/* Warp: over the lanes, the result in all. A fixed order: neighbours first. */
DEVICE_FN float warp_sum(float v)
{
    for (uint32_t mask = 1; mask < CUDA_WARP; mask *= 2) { v = add_rn(v, shuffle_xor(v, mask)); }
    return v;
}
DEVICE_FN float warp_max(float v)
{
    for (uint32_t mask = 1; mask < CUDA_WARP; mask *= 2) { v = fmaxf(v, shuffle_xor(v, mask)); }
    return v;
}

#endif
