#include "bench/kernels/probe.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "base/check.h"
#include "base/clock.h"
#if defined(__x86_64__)
#include "base/diag.h"
#include "base/status.h"
#include "kernels/cpu/amx_check.h"
#define AMX_TILE_EMULATED 0
#include "kernels/cpu/amx_tile.h"
#endif

#define PROBE_THREADS_MAX 64u
#define FMA_TURNS 2000000u
#define AMX_TURNS 400000u

struct part {
    const unsigned char *from;
    size_t bytes;
    uint32_t streams, threads;
    pthread_barrier_t *barrier;
    void (*body)(struct part *part);
    uint64_t start_ns, end_ns;
    double flops;
    volatile float sink;
};

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void read_wide(struct part *part)
{
    size_t run = part->bytes / part->streams / 256 * 256;
    __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (size_t at = 0; at < run; at += 256) {
        for (uint32_t s = 0; s < part->streams; s++) {
            const unsigned char *p = part->from + s * run + at;
            sums[0] = _mm512_xor_si512(sums[0], _mm512_loadu_si512(p));
            sums[1] = _mm512_xor_si512(sums[1], _mm512_loadu_si512(p + 64));
            sums[2] = _mm512_xor_si512(sums[2], _mm512_loadu_si512(p + 128));
            sums[3] = _mm512_xor_si512(sums[3], _mm512_loadu_si512(p + 192));
        }
    }
    __m512i all = _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
    part->sink = (float)_mm512_reduce_add_epi32(all);
}

/* 12 chains of 4 cycles keep two units busy. */
__attribute__((target("avx512f"))) static void fma_wide(struct part *part)
{
    __m512 s[12], a = _mm512_set1_ps(0.999f);
    for (int i = 0; i < 12; i++) { s[i] = _mm512_set1_ps((float)i); }
    for (uint32_t turn = 0; turn < FMA_TURNS; turn++) {
#define STEP(i) s[i] = _mm512_fmadd_ps(s[i], a, a)
        STEP(0); STEP(1); STEP(2); STEP(3); STEP(4); STEP(5); STEP(6); STEP(7); STEP(8); STEP(9); STEP(10); STEP(11);
#undef STEP
    }
    for (int i = 1; i < 12; i++) { s[0] = _mm512_add_ps(s[0], s[i]); }
    part->sink = _mm512_reduce_add_ps(s[0]);
    part->flops = (double)FMA_TURNS * 12 * 16 * 2;
}

/* 24 chains: the instruction takes 5 or 6 cycles, and two may start in one. */
__attribute__((target("avx512f,avx512bf16"))) static void dot_wide(struct part *part)
{
#define EACH(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7) do(8) do(9) do(10) do(11) do(12) do(13) do(14) do(15) \
        do(16) do(17) do(18) do(19) do(20) do(21) do(22) do(23)
    const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3c003c00);
#define MAKE(i) __m512 s##i = _mm512_set1_ps((float)i);
    EACH(MAKE)
    for (uint32_t turn = 0; turn < FMA_TURNS / 2; turn++) {
#define STEP(i) s##i = _mm512_dpbf16_ps(s##i, a, a);
        EACH(STEP)
    }
#define JOIN(i) sum += _mm512_reduce_add_ps(s##i);
    float sum = 0;
    EACH(JOIN)
    part->sink = sum;
    part->flops = (double)FMA_TURNS / 2 * 24 * 64;
#undef EACH
#undef MAKE
#undef STEP
#undef JOIN
}

/* 4 sums, as our products have them: a tile operation begins every 16 cycles and takes 52, so that 4 keep the
 * unit busy. Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, on AMX. */
static const struct amx_config whole_tiles = {.palette = 1,
                                              .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                              .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
/* What all tiles of x and of weights hold; filled before the threads start, since the compiler does not know
 * that a tile's load reads memory. */
static unsigned char amx_operand[1024];

#define AMX_BEGIN()               \
    amx_configure(&whole_tiles);  \
    amx_zero(0);                  \
    amx_zero(1);                  \
    amx_zero(2);                  \
    amx_zero(3);                  \
    amx_load(4, amx_operand, 64); \
    amx_load(5, amx_operand, 64); \
    amx_load(6, amx_operand, 64); \
    amx_load(7, amx_operand, 64)

__attribute__((target("amx-tile,amx-bf16"))) static void tiles_bf16(struct part *part)
{
    float sums[256] = {0};
    AMX_BEGIN();
    for (uint32_t turn = 0; turn < AMX_TURNS; turn++) {
        amx_dot_bf16(0, 4, 6);
        amx_dot_bf16(1, 4, 7);
        amx_dot_bf16(2, 5, 6);
        amx_dot_bf16(3, 5, 7);
    }
    amx_store(0, sums, 64);
    amx_release();
    part->sink = sums[0];
    part->flops = (double)AMX_TURNS * 4 * 16 * 16 * 32 * 2;
}

__attribute__((target("amx-tile,amx-int8"))) static void tiles_int8(struct part *part)
{
    int32_t sums[256] = {0};
    AMX_BEGIN();
    for (uint32_t turn = 0; turn < AMX_TURNS; turn++) {
        amx_dot_int8(0, 4, 6);
        amx_dot_int8(1, 4, 7);
        amx_dot_int8(2, 5, 6);
        amx_dot_int8(3, 5, 7);
    }
    amx_store(0, sums, 64);
    amx_release();
    part->sink = (float)sums[0];
    part->flops = (double)AMX_TURNS * 4 * 16 * 16 * 64 * 2;
}
#undef AMX_BEGIN

static bool have_dot(void)
{
    unsigned a = 0, b, c, d;
    return __builtin_cpu_supports("avx512f") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5)) != 0;
}

__attribute__((target("avx2,fma"))) static void fma_narrow(struct part *part)
{
    __m256 s[12], a = _mm256_set1_ps(0.999f);
    for (int i = 0; i < 12; i++) { s[i] = _mm256_set1_ps((float)i); }
    for (uint32_t turn = 0; turn < FMA_TURNS; turn++) {
#define STEP(i) s[i] = _mm256_fmadd_ps(s[i], a, a)
        STEP(0); STEP(1); STEP(2); STEP(3); STEP(4); STEP(5); STEP(6); STEP(7); STEP(8); STEP(9); STEP(10); STEP(11);
#undef STEP
    }
    for (int i = 1; i < 12; i++) { s[0] = _mm256_add_ps(s[0], s[i]); }
    part->sink = s[0][0] + s[0][7];
    part->flops = (double)FMA_TURNS * 12 * 8 * 2;
}
#endif

static void read_plain(struct part *part)
{
    size_t run = part->bytes / part->streams / 256 * 256;
    uint64_t sums[4] = {0};
    for (size_t at = 0; at < run; at += 256) {
        for (uint32_t s = 0; s < part->streams; s++) {
            const uint64_t *p = (const uint64_t *)(const void *)(part->from + s * run + at);
            for (int i = 0; i < 32; i += 4) {
                sums[0] ^= p[i];
                sums[1] ^= p[i + 1];
                sums[2] ^= p[i + 2];
                sums[3] ^= p[i + 3];
            }
        }
    }
    part->sink = (float)(sums[0] ^ sums[1] ^ sums[2] ^ sums[3]);
}

static void fma_plain(struct part *part)
{
    float s[32];
    for (int i = 0; i < 32; i++) { s[i] = (float)i; }
    for (uint32_t turn = 0; turn < FMA_TURNS; turn++) {
        for (int i = 0; i < 32; i++) { s[i] = s[i] * 0.999f + 0.5f; }
    }
    float all = 0;
    for (int i = 0; i < 32; i++) { all += s[i]; }
    part->sink = all;
    part->flops = (double)FMA_TURNS * 32 * 2;
}

static uint64_t read_clock(clockid_t id)
{
    struct timespec t;
    CHECK(clock_gettime(id, &t) == 0);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

uint64_t probe_now_ns(uint32_t threads) { return threads == 1 ? read_clock(CLOCK_PROCESS_CPUTIME_ID) : clock_now_ns(); }

static void *part_main(void *arg)
{
    struct part *part = arg;
    pthread_barrier_wait(part->barrier);
    part->start_ns = probe_now_ns(part->threads);
    part->body(part);
    part->end_ns = probe_now_ns(part->threads);
    return NULL;
}

/* Runs all parts at once; returns seconds from the first start to the last end. */
static double run_parts(struct part *parts, uint32_t threads)
{
    pthread_t ids[PROBE_THREADS_MAX];
    pthread_barrier_t barrier;
    CHECK(pthread_barrier_init(&barrier, NULL, threads) == 0);
    for (uint32_t i = 0; i < threads; i++) {
        parts[i].barrier = &barrier;
        parts[i].threads = threads;
        CHECK(pthread_create(&ids[i], NULL, part_main, &parts[i]) == 0);
    }
    uint64_t start_ns = UINT64_MAX, end_ns = 0;
    for (uint32_t i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        start_ns = parts[i].start_ns < start_ns ? parts[i].start_ns : start_ns;
        end_ns = parts[i].end_ns > end_ns ? parts[i].end_ns : end_ns;
    }
    pthread_barrier_destroy(&barrier);
    return (double)(end_ns - start_ns) / (double)NS_PER_S;
}

double probe_read_bytes_per_s(const void *buffer, size_t bytes, uint32_t threads, uint32_t streams)
{
    CHECK(threads <= PROBE_THREADS_MAX);
    struct part parts[PROBE_THREADS_MAX] = {{0}};
    for (uint32_t i = 0; i < threads; i++) {
        size_t share = bytes / threads / 4096 * 4096;
        parts[i] = (struct part){.from = (const unsigned char *)buffer + i * share, .bytes = share, .streams = streams, .body = read_plain};
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx512f")) { parts[i].body = read_wide; }
#endif
    }
    double seconds = run_parts(parts, threads);
    return (double)(bytes / threads / 4096 * 4096 * threads) / seconds;
}

double probe_fma_flops(uint32_t threads)
{
    CHECK(threads <= PROBE_THREADS_MAX);
    struct part parts[PROBE_THREADS_MAX] = {{0}};
    for (uint32_t i = 0; i < threads; i++) {
        parts[i].body = fma_plain;
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) { parts[i].body = fma_narrow; }
        if (__builtin_cpu_supports("avx512f")) { parts[i].body = fma_wide; }
#endif
    }
    double seconds = run_parts(parts, threads), flops = 0;
    for (uint32_t i = 0; i < threads; i++) { flops += parts[i].flops; }
    return flops / seconds;
}

#if defined(__x86_64__)
static double rate_of(void (*body)(struct part *part), uint32_t threads)
{
    CHECK(threads <= PROBE_THREADS_MAX);
    struct part parts[PROBE_THREADS_MAX] = {{0}};
    for (uint32_t i = 0; i < threads; i++) { parts[i].body = body; }
    double seconds = run_parts(parts, threads), flops = 0;
    for (uint32_t i = 0; i < threads; i++) { flops += parts[i].flops; }
    return flops / seconds;
}

/* Threads that start later have the permission too. */
static double amx_rate_of(void (*body)(struct part *part), uint32_t threads)
{
    struct diag diag;
    if (failed(amx_ask_permission(&diag))) { return 0; }
    memset(amx_operand, 0x3c, sizeof(amx_operand)); /* 0.011 in bf16, 60 in int8: neither zero nor subnormal */
    return rate_of(body, threads);
}

double probe_dot_flops(uint32_t threads) { return have_dot() ? rate_of(dot_wide, threads) : 0; }
double probe_amx_bf16_flops(uint32_t threads) { return amx_has_bf16() ? amx_rate_of(tiles_bf16, threads) : 0; }
double probe_amx_int8_ops(uint32_t threads) { return amx_has_int8() ? amx_rate_of(tiles_int8, threads) : 0; }
#else
double probe_dot_flops(uint32_t threads)
{
    (void)threads;
    return 0;
}
double probe_amx_bf16_flops(uint32_t threads)
{
    (void)threads;
    return 0;
}
double probe_amx_int8_ops(uint32_t threads)
{
    (void)threads;
    return 0;
}
#endif
