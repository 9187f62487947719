/* weights_bench: products with bf16, int8 and int4 weights side by side, as JSON lines.
 *   weights_bench [--isa=NAME] [--threads=N] [--rounds=N]
 *
 * Estimate. At one row a product reads its weights and nothing else worth counting: 1 byte (int8) or 0.5625 (int4,
 * groups of 32) each, so its limit is the read probe. At 512 rows int8 does 1,024 operations a weight: its limit is
 * the rate of vpdpbusd (64 products a zmm instruction, two a cycle on Zen 5). int4 takes 8 of those for a group of
 * 32 inputs and 4 to 6 more to take nibbles apart and to scale, so it can reach some 60 % of that rate.
 * Weights are cycled through a set of 256 MiB, far beyond the caches. Probes and cases alternate, and
 * what is printed is the median over rounds; with one thread in CPU seconds (see probe_now_ns()). */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/check.h"
#include "base/clock.h"
#include "bench/kernels/probe.h"
#include "bench/median.h"
#include "kernels/kernels.h"

#define SET_BYTES ((size_t)256 << 20)
#define ROUNDS_MAX 64u
#define ROWS_MAX 512u

/* ---- how fast sums of bytes can be ---------------------------------------------------------- */

#define PROBE_TURNS 400000u
static volatile int32_t sink;

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vnni"))) static void *vnni_main(void *arg)
{
    const __m512i a = _mm512_set1_epi32(0x01020304);
/* Named, not an array, so that they are registers at any level of optimization. */
#define EACH(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7) do(8) do(9) do(10) do(11) do(12) do(13) do(14) do(15)
#define MAKE(i) __m512i s##i = _mm512_set1_epi32(i);
    EACH(MAKE)
    for (uint32_t turn = 0; turn < PROBE_TURNS; turn++) {
#define STEP(i) s##i = _mm512_dpbusd_epi32(s##i, a, a);
        EACH(STEP)
        __asm__ volatile("" : "+v"(s0), "+v"(s7)); /* else turns are joined */
    }
#define JOIN(i) sum = _mm512_add_epi32(sum, s##i);
    __m512i sum = _mm512_setzero_si512();
    EACH(JOIN)
    sink = _mm512_reduce_add_epi32(sum);
#undef EACH
#undef MAKE
#undef STEP
#undef JOIN
    return arg;
}

static bool have_vnni(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni"); }
#else
static void *vnni_main(void *arg) { return arg; }
static bool have_vnni(void) { return false; }
#endif

/* Operations (a product and a sum are two) a second of vpdpbusd on registers; 0 where there is none. */
static double probe_vnni_ops(uint32_t threads)
{
    if (!have_vnni()) { return 0; }
    pthread_t ids[KERNELS_THREADS_MAX];
    uint64_t start_ns = probe_now_ns(threads);
    for (uint32_t i = 1; i < threads; i++) { CHECK(pthread_create(&ids[i], NULL, vnni_main, NULL) == 0); }
    vnni_main(NULL);
    for (uint32_t i = 1; i < threads; i++) { pthread_join(ids[i], NULL); }
    return (double)threads * PROBE_TURNS * 16 * 128 / ((double)(probe_now_ns(threads) - start_ns) / (double)NS_PER_S);
}

/* ---- cases ---------------------------------------------------------------------------------- */

struct bench_case {
    struct kernels_matrix matrix;
    const char *name;
    uint32_t rows;
    double seconds[ROUNDS_MAX], of_read[ROUNDS_MAX], of_vnni[ROUNDS_MAX], of_amx[ROUNDS_MAX];
};

struct bench {
    struct kernels *kernels;
    uint32_t threads, rounds;
    unsigned char *set;
    float *x, *out;
    size_t next;
};

static double run_case(struct bench *b, const struct bench_case *c)
{
    const size_t bytes = kernels_matrix_bytes(&c->matrix);
    uint32_t calls = 0;
    uint64_t start_ns = 0, now_ns;
    do {
        struct kernels_matrix matrix = c->matrix;
        if (b->next + bytes > SET_BYTES) { b->next = 0; }
        matrix.data = b->set + b->next;
        b->next += bytes;
        const struct kernels_gemm g = {.rows = c->rows, .weight = &matrix, .x = b->x, .x_stride = matrix.n_in, .out = b->out,
                                       .out_stride = matrix.n_out};
        kernels_gemm(b->kernels, &g, 1);
        if (start_ns == 0) { start_ns = probe_now_ns(b->threads); } else { calls++; } /* the first warms up */
        now_ns = probe_now_ns(b->threads);
    } while (calls == 0 || now_ns - start_ns < 10 * NS_PER_MS);
    return (double)(now_ns - start_ns) / (double)NS_PER_S / calls;
}

/* Of the tiles that many rows of a format are multiplied on; 0: it uses none (int4 does not), or there are none. */
static double probe_amx_ops(const struct bench *b, enum kernels_weight format)
{
    if (format == KERNELS_WEIGHT_BF16) { return probe_amx_bf16_flops(b->threads); }
    return format == KERNELS_WEIGHT_INT8 ? probe_amx_int8_ops(b->threads) : 0;
}

static void measure(struct bench *b, struct bench_case *c)
{
    const double bytes = (double)kernels_matrix_bytes(&c->matrix), ops = 2.0 * c->rows * c->matrix.n_out * c->matrix.n_in;
    for (uint32_t r = 0; r < b->rounds; r++) {
        double read = probe_read_bytes_per_s(b->set, SET_BYTES / 2, b->threads, 6), vnni = probe_vnni_ops(b->threads);
        double amx = probe_amx_ops(b, c->matrix.format);
        c->seconds[r] = run_case(b, c);
        c->of_read[r] = bytes / c->seconds[r] / read;
        c->of_vnni[r] = vnni > 0 ? ops / c->seconds[r] / vnni : 0;
        c->of_amx[r] = amx > 0 ? ops / c->seconds[r] / amx : 0;
    }
    double seconds = bench_median(c->seconds, b->rounds);
    printf("{\"bench\":\"%s\",\"weights\":\"%s\",\"isa\":\"%s\",\"threads\":%u,\"rows\":%u,\"n_out\":%u,\"n_in\":%u,\"us\":%.1f,"
           "\"gb_s\":%.2f,\"gop_s\":%.1f,\"of_read\":%.3f,\"of_vnni\":%.3f,",
           c->name, kernels_weight_name(c->matrix.format), kernels_isa_name(b->kernels), b->threads, c->rows, c->matrix.n_out,
           c->matrix.n_in, seconds * 1e6, bytes / seconds / 1e9, ops / seconds / 1e9, bench_median(c->of_read, b->rounds),
           bench_median(c->of_vnni, b->rounds));
    double of_amx = bench_median(c->of_amx, b->rounds);
    if (of_amx > 0) {
        printf("\"of_amx\":%.3f}\n", of_amx);
    } else {
        printf("\"of_amx\":null}\n");
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct bench b = {.threads = 1, .rounds = 5};
    const char *isa = "auto";
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--isa=", 6) == 0) {
            isa = argv[i] + 6;
        } else if (strncmp(argv[i], "--threads=", 10) == 0) {
            b.threads = (uint32_t)strtoul(argv[i] + 10, NULL, 10);
        } else if (strncmp(argv[i], "--rounds=", 9) == 0) {
            b.rounds = (uint32_t)strtoul(argv[i] + 9, NULL, 10);
        } else {
            fprintf(stderr, "usage: %s [--isa=NAME] [--threads=N] [--rounds=N]\n", argv[0]);
            return 2;
        }
    }
    if (b.rounds == 0 || b.rounds > ROUNDS_MAX) {
        fprintf(stderr, "--rounds is out of range: 1 .. %u\n", ROUNDS_MAX);
        return 2;
    }
    static const struct { const char *name; uint32_t n_out, n_in; } shapes[] = {
        {"Llama-3.2-1B o", 2048, 2048}, {"Llama-3.2-1B gate_up", 16384, 2048}, {"Llama-3.2-1B down", 2048, 8192}, {"Qwen2.5-0.5B gate_up", 9728, 896}};
    static const enum kernels_weight formats[] = {KERNELS_WEIGHT_BF16, KERNELS_WEIGHT_INT8, KERNELS_WEIGHT_INT4};
    static const uint32_t rows[] = {1, 8, 32, ROWS_MAX};
    const size_t x_bytes = (size_t)ROWS_MAX * 8192 * sizeof(float), out_bytes = (size_t)ROWS_MAX * 16384 * sizeof(float);
    struct diag diag;
    void *memory = NULL;
    const struct kernels_config config = {.isa = isa, .threads = b.threads, .compute = KERNELS_COMPUTE_BF16};
    if (failed(kernels_create(&config, &b.kernels, &diag))
        || failed(kernels_buffer_alloc(b.kernels, SET_BYTES + x_bytes + out_bytes, &memory, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    }
    b.set = memory;
    b.x = (float *)(void *)(b.set + SET_BYTES);
    b.out = b.x + x_bytes / sizeof(float);
    uint32_t random = 1;
    for (size_t i = 0; i < SET_BYTES / 2; i++) { /* small as bf16 and as f16, whatever lies where */
        random = random * 1664525u + 1013904223u;
        ((uint16_t *)memory)[i] = (uint16_t)(0x2c00u + (random >> 23) + (random >> 16 & 0x8000u));
    }
    for (size_t i = 0; i < x_bytes / sizeof(float); i++) { b.x[i] = (float)(i % 17) * 0.1f - 0.8f; }
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
            for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
                struct bench_case c = {.name = shapes[s].name, .rows = rows[r], .matrix = {.format = formats[f], .n_out = shapes[s].n_out,
                                       .n_in = shapes[s].n_in, .group = formats[f] == KERNELS_WEIGHT_INT4 ? 32 : 0}};
                measure(&b, &c);
            }
        }
    }
    kernels_buffer_free(b.kernels, memory, SET_BYTES + x_bytes + out_bytes);
    kernels_destroy(b.kernels);
    return 0;
}
