#include "tests/unit/kernels_cuda/emu_test_kernels.h"

#include "kernels/cuda/device.cuh"

namespace {

void visit(const probe_args a) { a.out[blockIdx.x * blockDim.x + threadIdx.x + (blockIdx.y + blockIdx.z * gridDim.y) * gridDim.x * blockDim.x]++; }

void order(const probe_args a) { a.out[atomic_add_u64(a.sum, 1)] = blockIdx.x * blockDim.x + threadIdx.x; }

void turn(const probe_args a)
{
    uint32_t *words = (uint32_t *)(void *)device_shared();
    words[threadIdx.x] = ((const uint32_t *)a.in)[threadIdx.x];
    if (a.mode == 0) { block_sync(); }
    a.out[threadIdx.x] = words[blockDim.x - 1 - threadIdx.x];
}

void lanes(const probe_args a)
{
    uint32_t *words = (uint32_t *)(void *)device_shared() + warp_id() * CUDA_WARP;
    words[lane_id()] = ((const uint32_t *)a.in)[threadIdx.x];
    if (a.mode == 0) { warp_sync(); }
    a.out[threadIdx.x] = words[CUDA_WARP - 1 - lane_id()];
}

void meet(const probe_args a)
{
    switch (a.mode) {
    case 1: /* thread 70 does not come */
        if (threadIdx.x != 70) { block_sync(); }
        break;
    case 2: /* two barriers in two branches */
        if (threadIdx.x < 32) {
            block_sync();
        } else {
            block_sync();
        }
        break;
    case 3: /* half a warp */
        if (lane_id() < 16) { (void)shuffle_xor(1u, 1); }
        break;
    case 4: /* half shuffles, half votes */
        if (lane_id() < 16) {
            (void)shuffle_xor(1u, 1);
        } else {
            (void)warp_any(true);
        }
        break;
    case 5: /* some lanes shuffle, others are in the block's barrier */
        if (lane_id() < 16) { (void)shuffle_xor(1u, 1); }
        block_sync();
        break;
    case 6: { /* one product in two branches */
        float d[4] = {};
        const uint32_t f[4] = {};
        if (lane_id() < 16) {
            mma_bf16_m16n8k16(d, f, f);
        } else {
            mma_bf16_m16n8k16(d, f, f);
        }
        break;
    }
    case 7: /* half of a warp at a named barrier */
        if (lane_id() < 16) { named_sync(1, 64); }
        break;
    default: /* a warp that has left is missed by a barrier later */
        if (warp_id() == 1) { return; }
        (void)shuffle_xor(1u, 1);
        block_sync();
        break;
    }
}

void shuffles(const probe_args a)
{
    const uint32_t lane = lane_id();
    a.out[lane] = shuffle_xor(lane, 5);
    a.out[32 + lane] = shuffle(lane, 7);
    a.out[64 + lane] = shuffle_up(lane, 3);
    a.out[96 + lane] = shuffle_down(lane, 3);
    a.out[128 + lane] = warp_ballot(lane % 3 == 0);
    a.out[160 + lane] = (warp_any(lane == 9) ? 1u : 0u) | (warp_any(lane == 99) ? 2u : 0u) | (warp_all(lane < 32) ? 4u : 0u) |
                        (warp_all(lane < 31) ? 8u : 0u);
    a.out[192 + lane] = (uint32_t)(f64_bits(shuffle_xor((double)lane, 16)) == f64_bits((double)(lane ^ 16)));
}

void mma_fragments(const probe_args a)
{
    float d[4];
    for (int i = 0; i < 4; i++) { d[i] = 1.0f; }
    const uint32_t *fa = (const uint32_t *)a.in + lane_id() * 4, *fb = (const uint32_t *)a.in2 + lane_id() * 2;
    if (a.mode == 0) {
        mma_bf16_m16n8k16(d, fa, fb);
    } else {
        mma_f16_m16n8k16(d, fa, fb);
    }
    for (int i = 0; i < 4; i++) { a.out[lane_id() * 4 + i] = f32_bits(d[i]); }
}

/* As a real kernel does it: a and b lie in rows in shared memory; b has k along its rows. */
void product(const probe_args a)
{
    unsigned char *sa = device_shared(), *sb = sa + 512;
    store16(sa + lane_id() * 16, load16((const unsigned char *)a.in + lane_id() * 16));
    if (lane_id() < 16) { store16(sb + lane_id() * 16, load16((const unsigned char *)a.in2 + lane_id() * 16)); }
    warp_sync();
    uint32_t fa[4], fb[4];
    float d[4] = {};
    ldmatrix_x4(fa, sa + lane_id() % 16 * 32 + lane_id() / 16 * 16);
    ldmatrix_x4_trans(fb, sb + lane_id() % 16 * 16); /* lanes 16 .. 31 name the same rows again */
    if (a.mode == 0) {
        mma_bf16_m16n8k16(d, fa, fb);
    } else {
        mma_f16_m16n8k16(d, fa, fb);
    }
    for (uint32_t i = 0; i < 4; i++) { a.out[(lane_id() / 4 + i / 2 * 8) * 8 + lane_id() % 4 * 2 + i % 2] = f32_bits(d[i]); }
}

void ldmatrix_probe(const probe_args a)
{
    store16(device_shared() + lane_id() * 16, load16((const unsigned char *)a.in + lane_id() * 16));
    warp_sync();
    uint32_t r[4];
    if (a.mode == 0) {
        ldmatrix_x4(r, device_shared() + lane_id() * 16);
    } else {
        ldmatrix_x4_trans(r, device_shared() + lane_id() * 16);
    }
    for (uint32_t i = 0; i < 4; i++) { a.out[lane_id() * 4 + i] = r[i]; }
}

/* Each thread copies 16 bytes and looks at the first word of its own, or of its neighbour's. */
void copy(const probe_args a)
{
    unsigned char *own = device_shared() + threadIdx.x * 16;
    const unsigned char *from = (const unsigned char *)a.in + threadIdx.x * 16;
    uint32_t see = threadIdx.x;
    switch (a.mode) {
    case 0: /* right */
        copy_async16(own, from, threadIdx.x % 2 == 0);
        copy_async_commit();
        copy_async_wait<0>();
        block_sync();
        see = (threadIdx.x + 32) % blockDim.x;
        break;
    case 1: /* nobody waits */
        copy_async16(own, from, true);
        copy_async_commit();
        block_sync();
        break;
    case 2: /* waits for all groups, but the copy belongs to none */
        copy_async16(own, from, true);
        copy_async_wait<0>();
        block_sync();
        break;
    case 3: /* the newest group may be under way: the first has landed, the second has not */
        copy_async16(own, from, true);
        copy_async_commit();
        copy_async16(own + blockDim.x * 16, from, true);
        copy_async_commit();
        copy_async_wait<1>();
        block_sync();
        a.out[blockDim.x + threadIdx.x] = *(const uint32_t *)(const void *)(own + blockDim.x * 16);
        break;
    case 4: /* no barrier between the wait and the neighbour's look */
        copy_async16(own, from, true);
        copy_async_commit();
        copy_async_wait<0>();
        see = (threadIdx.x + 32) % blockDim.x;
        break;
    default: /* what was there is gone when the copy starts, not when it lands */
        *(uint32_t *)(void *)own = 7;
        copy_async16(own, from, true);
        break;
    }
    a.out[threadIdx.x] = *(const uint32_t *)(const void *)(device_shared() + see * 16);
}

void address(const probe_args a)
{
    unsigned char *smem = device_shared();
    const unsigned char *in = (const unsigned char *)a.in;
    uint32_t r[4];
    switch (a.mode) {
    case 0: a.out[0] = load16(in + 16).w[0]; break;
    case 1: a.out[0] = load16(in + 4).w[0]; break;
    case 2: store16((unsigned char *)a.out + 8, words4{}); break;
    case 3: copy_async16(smem + 8, in, true); break;
    case 4: copy_async16(smem, in + 8, true); break;
    case 5: copy_async16(a.out, in, true); break;                   /* to global memory */
    case 6: a.out[0] = load16(smem + 512).w[0]; break;              /* past the end of 512 bytes */
    case 7: store16(smem - 16, words4{}); break;
    case 8: ldmatrix_x4(r, in); break;                              /* from global memory */
    case 9: ldmatrix_x4(r, smem + 2 * lane_id()); break;
    case 10: smem[512 + a.count] = 1; break;                        /* plain stores, found at the block's end */
    default: smem[-1 - (int)a.count] = 1; break;
    }
}

void poison(const probe_args a)
{
    uint32_t *words = (uint32_t *)(void *)device_shared();
    a.out[blockIdx.x * blockDim.x + threadIdx.x] = words[threadIdx.x];
    words[threadIdx.x] = 1;
}

void named(const probe_args a)
{
    uint32_t *words = (uint32_t *)(void *)device_shared();
    const uint32_t half = blockDim.x / 2, of = threadIdx.x / half;
    words[threadIdx.x] = threadIdx.x;
    if (a.mode == 0) { named_sync(1 + of, half); }
    a.out[threadIdx.x] = words[of * half + half - 1 - threadIdx.x % half];
    if (of == 1) { return; } /* one half may leave before the other has met again */
    named_sync(3, half);
}

void wait(const probe_args a)
{
    if (threadIdx.x == 0) {
        while (__atomic_load_n(a.out, __ATOMIC_SEQ_CST) == 0) { emu_yield(__LINE__); }
    } else if (threadIdx.x == 95 && a.mode == 0) {
        atomic_add_u32(a.out, 3);
    }
}

void atomics(const probe_args a)
{
    const uint32_t v = blockIdx.x * blockDim.x + threadIdx.x;
    atomic_add_u64(a.sum, v);
    atomic_max_u64(a.sum + 1, (uint64_t)v << 20);
    atomic_add_u32(a.out, 1);
    atomic_max_u32(a.out + 1, v);
    atomic_min_u32(a.out + 2, v);
    atomic_or_u32(a.out + 3, 1u << v % 32);
    atomic_xor_u32(a.out + 4, v);
    uint32_t seen = a.out[5];
    for (;;) { /* a sum by compare and swap */
        const uint32_t before = atomic_cas_u32(a.out + 5, seen, seen + 2);
        if (before == seen) { break; }
        seen = before;
    }
    if (v == 17) { a.out[6] = atomic_exchange_u32(a.out + 7, 5); }
}

/* An early kernel. 0: as it should be; 1: memory before the wait; 2: one thread leaves without */
void early(const probe_args a)
{
    unsigned char *own = device_shared() + threadIdx.x * 16;
    launch_next();
    store16(own, load16_stream(a.in)); /* what no kernel writes, and shared memory */
    prefetch_l2(a.in);
    if (a.mode == 1) { store16(a.out, load16(own)); }
    if (a.mode == 2 && threadIdx.x == 40) { return; }
    launch_wait();
    if (threadIdx.x == 0) { store16(a.out, load16(own)); }
}

template <void (*kernel)(const probe_args)> void enter(const void *args) { kernel(*static_cast<const probe_args *>(args)); }

} // namespace

#define PROBE(name, kernel) const struct emu_kernel name = {#name, enter<kernel>, sizeof(probe_args), false}
PROBE(probe_visit, visit);
PROBE(probe_order, order);
PROBE(probe_turn, turn);
PROBE(probe_lanes, lanes);
PROBE(probe_meet, meet);
PROBE(probe_shuffle, shuffles);
PROBE(probe_mma, mma_fragments);
PROBE(probe_product, product);
PROBE(probe_ldmatrix, ldmatrix_probe);
PROBE(probe_copy, copy);
PROBE(probe_address, address);
PROBE(probe_poison, poison);
PROBE(probe_named, named);
PROBE(probe_wait, wait);
PROBE(probe_atomics, atomics);
const struct emu_kernel probe_early = {"probe_early", enter<early>, sizeof(probe_args), true};

uint16_t probe_bf16_of(float v) { return bf16_of(v); }
uint16_t probe_f16_of(float v) { return f16_of(v); }
float probe_f32_of_f16(uint16_t bits) { return f32_of_f16(bits); }
uint16_t probe_fp8x2_of(float low, float high) { return fp8x2_of(low, high); }
float probe_f32_of_fp8(uint8_t code) { return f32_of_fp8_e4m3(code); }
uint32_t probe_f16x2_of_fp8x2(uint32_t codes) { return f16x2_of_fp8x2(codes); }
uint32_t probe_bf16x2_of_fp8x2(uint32_t codes) { return bf16x2_of_fp8x2(codes); }
uint32_t probe_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) { return fma_bf16x2(a, b, c); }
