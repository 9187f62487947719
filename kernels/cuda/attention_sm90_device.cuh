/* attention_sm90_device: what Hopper alone has, beside device.cuh: products of a warpgroup, out of shared memory.
 * Flow:    attention_sm90.cu -> [attention_sm90_device] -> the chip, or its emulation below
 * Thread:  "warpgroup": all 128 threads of four neighbouring warps, the first a multiple of four, come together.
 * Memory:  none.
 *
 * A product runs beside the threads that start it. Until group_wait() its sums and its registers of A are nobody's, and
 * shared memory that it reads must stay. What threads wrote there, by copies too, it sees only after share_fence() of
 * the writer and a barrier. Registers that ordinary code wrote (sums, A) need product_fence() before the product.
 *
 * Operands in shared memory lie in panels of 64 values (128 bytes) a row, at a multiple of 1024 bytes, 16-byte chunk c of
 * row r in the place of chunk c ^ (r % 8): "128-byte swizzle". Two kinds:
 *   along k   rows are rows of A or columns of B, values along k: Q, and K as B. A product of 16 in k starts 32 bytes on.
 *   across k  rows are k, values are columns of B: V. A product of 16 in k starts 16 rows on; columns past 64 are in the
 *             next panel, `panel_bytes` further.
 * Source: PTX ISA 9.0, "Asynchronous Warpgroup Level Matrix Instructions": "Matrix Descriptor Format", "Strides",
 * "Register Fragments", "Async proxy". */
#ifndef BATON_KERNELS_CUDA_ATTENTION_SM90_DEVICE_CUH
#define BATON_KERNELS_CUDA_ATTENTION_SM90_DEVICE_CUH

#include "kernels/cuda/device.cuh"

#define PANEL_ROW_BYTES 128u

/* From a panel's start to a 16-byte chunk, 0 .. 7, of a row. */
DEVICE_FN uint32_t panel_offset(uint32_t row, uint32_t chunk) { return row * PANEL_ROW_BYTES + (chunk ^ (row & 7u)) * 16; }

/* Addresses count 16 bytes; groups of 8 rows lie 1024 bytes apart. */
DEVICE_FN uint64_t panel_descriptor(uint32_t address, uint32_t panel_bytes)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(panel_bytes >> 4) << 16 | (address & 0x3ffffu) >> 4;
}

#ifdef __CUDACC__

/* The code of other chips is empty: the plan names these kernels on sm_90 alone. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WARPGROUP_PRODUCTS 1
#else
#define HAS_WARPGROUP_PRODUCTS 0
#endif

DEVICE_FN uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

#if HAS_WARPGROUP_PRODUCTS
/* What this thread wrote to shared memory is seen by products that start after the next barrier. */
DEVICE_FN void share_fence(void) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/* Warpgroup. */
DEVICE_FN void product_fence(void) { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/* Warpgroup: closes a group of products. */
DEVICE_FN void group_commit(void) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Warpgroup: waits for all groups. */
DEVICE_FN void group_wait(void) { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
/* After group_wait(): registers of sums or of A that products held. The compiler may not use them for something else
 * before, nor read them early: it does not know that a product goes on. */
template <int COUNT> DEVICE_FN void settle(float (*d)[4])
{
#pragma unroll
    for (int i = 0; i < 4 * COUNT; i++) { asm volatile("" : "+f"(d[i / 4][i % 4])::"memory"); }
}
template <int COUNT> DEVICE_FN void settle(uint32_t (*a)[4])
{
#pragma unroll
    for (int i = 0; i < 4 * COUNT; i++) { asm volatile("" : "+r"(a[i / 4][i % 4])::"memory"); }
}

/* The sums of a product, as its text and as its operands: 4 registers for 8 columns. */
#define SUMS_8(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define SUMS_32(i) SUMS_8(i), SUMS_8(i + 1), SUMS_8(i + 2), SUMS_8(i + 3)
#define SUMS_64 SUMS_32(0), SUMS_32(4)
#define SUMS_128 SUMS_64, SUMS_32(8), SUMS_32(12)
#define SUM_NAMES_64                                                          \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUM_NAMES_128                                                                  \
    SUM_NAMES_64                                                                       \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* One instruction. `rest` names what follows the sums: A, B, and whether the sums count. */
#define PRODUCT(type, n, predicate, rest, ...)                                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " predicate ", 0;\n"                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" SUM_NAMES_##n "}, " rest ";\n}" \
                 : SUMS_##n                                                                                 \
                 : __VA_ARGS__)

/* Warpgroup: d (+)= a . b, 64 rows and N columns, 16 in k, of bf16 or f16 by T; d as of mma_bf16_m16n8k16 for each warp's 16
 * rows, 8 columns after 8. */
template <class T, int N> struct products;
/* shared: both operands along k. held: d += a . b with a in registers (as of mma_bf16_m16n8k16) and b across k. */
#define PRODUCTS(kind, type, n, shared_predicate, shared_rest, held_predicate, held_rest)                   \
    template <> struct products<struct kind, n> {                                                           \
        DEVICE_FN void shared(float (*d)[4], uint64_t a, uint64_t b, bool accumulate)                       \
        {                                                                                                   \
            PRODUCT(type, n, shared_predicate, shared_rest, "l"(a), "l"(b), "r"((int)accumulate));          \
        }                                                                                                   \
        DEVICE_FN void held(float (*d)[4], const uint32_t a[4], uint64_t b)                                 \
        {                                                                                                   \
            PRODUCT(type, n, held_predicate, held_rest, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1)); \
        }                                                                                                   \
    };
#define PRODUCTS_OF(kind, type)                                                                             \
    PRODUCTS(kind, type, 64, "%34", "%32, %33, p, 1, 1, 0, 0", "%37", "{%32, %33, %34, %35}, %36, p, 1, 1, 1") \
    PRODUCTS(kind, type, 128, "%66", "%64, %65, p, 1, 1, 0, 0", "%69", "{%64, %65, %66, %67}, %68, p, 1, 1, 1")
PRODUCTS_OF(as_bf16, "bf16")
PRODUCTS_OF(as_f16, "f16")
#endif

#else

/* ---- emulation ----------------------------------------------------------------------------- */
/* Every thread notes what it starts. The products are computed when the warpgroup waits, as late as they may be, from
 * what shared memory and registers hold then; until then the sums are NaN. */

#define HAS_WARPGROUP_PRODUCTS 1
#define SM90_PENDING_MAX 64
#define SM90_THREADS_MAX 256

struct sm90_product {
    float (*d)[4];
    const uint32_t *a; /* NULL: in shared memory */
    uint64_t a_desc, b_desc;
    uint32_t columns;
    bool accumulate, f16, committed;
};
struct sm90_thread {
    uint32_t count;
    bool fenced;
    struct sm90_product pending[SM90_PENDING_MAX];
    float d[2][16][4]; /* what the sums were before; of up to two sums at a time */
    float (*d_of[2])[4];
};
static thread_local struct sm90_thread sm90_threads[SM90_THREADS_MAX];

/* As if shared memory began at address 0 of its window. */
DEVICE_FN uint32_t shared_address(const void *p) { return (uint32_t)((const unsigned char *)p - emu_now->shared); }
DEVICE_FN void share_fence(void) {}
DEVICE_FN void product_fence(EMU_LINE)
{
    emu_named_sync(8 + threadIdx.x / 128, 128, line);
    sm90_threads[threadIdx.x].fenced = true;
}

DEVICE_FN void sm90_note(const struct sm90_product &product, int line)
{
    struct sm90_thread &own = sm90_threads[threadIdx.x];
    if (!own.fenced) { emu_broken("a product without a product_fence() since the last wait", line); }
    if (own.count == SM90_PENDING_MAX) { emu_broken("too many products before a group_wait()", line); }
    uint32_t i = 0;
    while (i < 2 && own.d_of[i] != nullptr && own.d_of[i] != product.d) { i++; }
    if (i == 2) { emu_broken("products for three sums at a time", line); }
    if (own.d_of[i] == nullptr) {
        own.d_of[i] = product.d;
        for (uint32_t j = 0; j < product.columns / 2; j++) {
            own.d[i][j / 4][j % 4] = product.d[j / 4][j % 4];
            product.d[j / 4][j % 4] = NAN;
        }
    }
    own.pending[own.count++] = product;
}

DEVICE_FN void group_commit(EMU_LINE)
{
    (void)line;
    struct sm90_thread &own = sm90_threads[threadIdx.x];
    for (uint32_t i = 0; i < own.count; i++) { own.pending[i].committed = true; }
}

DEVICE_FN float sm90_value(const unsigned char *at, bool f16)
{
    uint16_t bits;
    memcpy(&bits, at, 2);
    return f16 ? f32_of_f16(bits) : f32_of_bits((uint32_t)bits << 16);
}

/* "Matrix Descriptor Format": start, leading and stride offset in units of 16 bytes, the swizzle of an address' bits. */
DEVICE_FN float sm90_operand(uint64_t desc, uint32_t mn, uint32_t k, bool across, bool f16, int line)
{
    const uint32_t start = (uint32_t)(desc & 0x3fff) << 4, leading = (uint32_t)(desc >> 16 & 0x3fff) << 4;
    const uint32_t stride = (uint32_t)(desc >> 32 & 0x3fff) << 4;
    if (desc >> 62 != 1 || (desc >> 49 & 7) != 0) { emu_broken("a descriptor that is not of 128-byte swizzle, base 0", line); }
    uint32_t at = across ? start + mn / 64 * leading + mn % 64 * 2 + k / 8 * stride + k % 8 * 128
                         : start + mn / 8 * stride + mn % 8 * 128 + k * 2;
    at ^= (at >> 7 & 7u) << 4;
    if (at + 2 > emu_now->shared_bytes) { emu_broken("a product reads past shared memory", line); }
    return sm90_value(emu_now->shared + at, f16);
}

/* Sums of one product for all 128 threads; rows by the fragments of PTX's wgmma.m64nNk16. */
DEVICE_FN void sm90_multiply(struct sm90_thread *group, uint32_t index, int line)
{
    const struct sm90_product &op = group[0].pending[index];
    const uint32_t columns = op.columns;
    static thread_local float b[16][128], a[64][16];
    for (uint32_t k = 0; k < 16; k++) {
        for (uint32_t n = 0; n < columns; n++) { b[k][n] = sm90_operand(op.b_desc, n, k, op.a != nullptr, op.f16, line); }
    }
    for (uint32_t thread = 0; thread < 128; thread++) {
        const struct sm90_product &own = group[thread].pending[index];
        if (own.b_desc != op.b_desc || own.a_desc != op.a_desc || own.columns != columns) { emu_broken("threads of a warpgroup differ in a product", line); }
        const uint32_t row = thread / 32 * 16 + thread % 32 / 4, k = thread % 4 * 2;
        for (uint32_t i = 0; own.a != nullptr && i < 8; i++) {
            const unsigned char *word = (const unsigned char *)&own.a[i / 2];
            a[row + i / 2 % 2 * 8][k + i / 4 * 8 + i % 2] = sm90_value(word + i % 2 * 2, op.f16);
        }
    }
    for (uint32_t row = 0; op.a == nullptr && row < 64; row++) {
        for (uint32_t k = 0; k < 16; k++) { a[row][k] = sm90_operand(op.a_desc, row, k, false, op.f16, line); }
    }
    for (uint32_t thread = 0; thread < 128; thread++) {
        struct sm90_thread &own = group[thread];
        const uint32_t which = own.d_of[0] == own.pending[index].d ? 0 : 1;
        for (uint32_t i = 0; i < columns / 2; i++) {
            const uint32_t row = thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            double sum = op.accumulate ? (double)own.d[which][i / 4][i % 4] : 0.0;
            for (uint32_t k = 0; k < 16; k++) { sum += (double)a[row][k] * (double)b[k][column]; }
            own.d[which][i / 4][i % 4] = (float)sum;
        }
    }
}

DEVICE_FN void group_wait(EMU_LINE)
{
    const uint32_t first = threadIdx.x / 128 * 128;
    struct sm90_thread &own = sm90_threads[threadIdx.x];
    emu_named_sync(8 + first / 128, 128, line);
    if (threadIdx.x == first) {
        for (uint32_t i = 0; i < own.count; i++) {
            if (!own.pending[i].committed) { emu_broken("a product was not committed before the wait", line); }
            sm90_multiply(&sm90_threads[first], i, line);
        }
    }
    emu_named_sync(8 + first / 128, 128, line);
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t columns = own.d_of[i] == nullptr ? 0 : 1;
        for (uint32_t p = 0; columns != 0 && p < own.count; p++) {
            if (own.pending[p].d != own.d_of[i]) { continue; }
            for (uint32_t j = 0; j < own.pending[p].columns / 2; j++) { own.d_of[i][j / 4][j % 4] = own.d[i][j / 4][j % 4]; }
        }
        own.d_of[i] = nullptr;
    }
    own.count = 0;
    own.fenced = false;
}

template <int COUNT> DEVICE_FN void settle(float (*)[4]) {}
template <int COUNT> DEVICE_FN void settle(uint32_t (*)[4]) {}

template <class T> struct sm90_is_f16 {
    static constexpr bool value = false;
};
template <> struct sm90_is_f16<struct as_f16> {
    static constexpr bool value = true;
};
template <class T, int N> struct products {
    DEVICE_FN void shared(float (*d)[4], uint64_t a, uint64_t b, bool accumulate, EMU_LINE)
    {
        sm90_note({d, nullptr, a, b, N, accumulate, sm90_is_f16<T>::value, false}, line);
    }
    DEVICE_FN void held(float (*d)[4], const uint32_t a[4], uint64_t b, EMU_LINE)
    {
        sm90_note({d, a, 0, b, N, true, sm90_is_f16<T>::value, false}, line);
    }
};

#endif

#endif
