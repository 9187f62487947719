/* emu_test_kernels: kernels that keep the rules of a device or break one, for emu_test. */
#ifndef BATON_TESTS_UNIT_KERNELS_CUDA_EMU_TEST_KERNELS_H
#define BATON_TESTS_UNIT_KERNELS_CUDA_EMU_TEST_KERNELS_H

#include <stdint.h>

#include "tests/cuda/emu.h"

#ifdef __cplusplus
extern "C" {
#endif

struct probe_args {
    uint32_t mode;
    uint32_t count;
    const void *in, *in2;
    uint32_t *out;
    uint64_t *sum;
};

/* Each of these is one kernel; `mode` 0 keeps the rules where the name does not say otherwise. */
extern const struct emu_kernel probe_visit;     /* out[thread of grid] += 1 */
extern const struct emu_kernel probe_order;     /* out[n] = the thread that was the n-th to get there */
extern const struct emu_kernel probe_turn;      /* turns 256 words around through shared memory; 1: without a barrier */
extern const struct emu_kernel probe_lanes;     /* the same inside warps; 1: without warp_sync */
extern const struct emu_kernel probe_meet;      /* meetings that fail: see the test */
extern const struct emu_kernel probe_shuffle;   /* out[7][32]: every shuffle and vote of one warp */
extern const struct emu_kernel probe_mma;       /* d[lane][4] of fragments in[lane][4], in2[lane][2]; 1: f16 */
extern const struct emu_kernel probe_product;   /* out[16][8] = in[16][16] * in2[16][8], bf16, by ldmatrix; 1: f16 */
extern const struct emu_kernel probe_ldmatrix;  /* out[lane][4] of 4 matrices at in; 1: trans */
extern const struct emu_kernel probe_copy;      /* asynchronous copies: see the test */
extern const struct emu_kernel probe_address;   /* accesses that fail: see the test */
extern const struct emu_kernel probe_poison;    /* out[thread] = shared memory as found, then overwritten */
extern const struct emu_kernel probe_named;     /* two halves of a block, each with a barrier of its own */
extern const struct emu_kernel probe_wait;      /* one thread waits in a loop for another's word; 1: that never comes */
extern const struct emu_kernel probe_atomics;   /* sums and extremes of all threads */
extern const struct emu_kernel probe_early;     /* may start early: see the test */

/* Conversions, one by one. */
uint16_t probe_bf16_of(float v);
uint16_t probe_f16_of(float v);
float probe_f32_of_f16(uint16_t bits);
uint16_t probe_fp8x2_of(float low, float high);
float probe_f32_of_fp8(uint8_t code);
uint32_t probe_f16x2_of_fp8x2(uint32_t codes);
uint32_t probe_bf16x2_of_fp8x2(uint32_t codes);
uint32_t probe_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c);

#ifdef __cplusplus
}
#endif

#endif
