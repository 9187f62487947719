/* attention_bench: how near attention over paged KV comes to what this machine can do, as JSON lines.
 *   bazel run -c opt //bench/kernels:attention_bench -- [--isa=NAME] [--compute=f32|bf16] [--threads=N]
 *       [--rounds=N] [--kv=f32|bf16|f16|int8|fp8_e4m3] [--only=decode|prefill] [--tokens-max=N]
 *
 * Estimate. Decode reads K and V once, kv_heads * (head_dim * 2 values + scales) per token, and its
 * limit is the read probe: 2,048 tokens of Llama-3.2-1B's 8 heads of 64 in bf16 are 4 MiB a layer. Prefill of
 * 2,048 rows at once does 4 * q_heads * head_dim flops per row and token seen, and its limit is the FMA or the
 * bf16 dot-product probe: 17 GFLOP a layer of that model. Sequences lie scattered over a pool of some
 * hundred MB, and each call takes other blocks, as the layers of a model do.
 *
 * The machine's neighbours come and go within seconds, so each round measures the probes and then every
 * case, and fractions are medians over rounds of what was taken side by side. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "bench/kernels/probe.h"
#include "bench/median.h"
#include "kernels/kernels.h"

#define POOL_BYTES ((size_t)384 << 20)
#define ROUNDS_MAX 64u
#define CASES_MAX 64u
#define SEQUENCES_MAX 32u
#define TOKENS_MAX 131072u

struct bench_case {
    char name[64];
    uint32_t q_heads, kv_heads, head_dim;
    uint32_t sequences, rows; /* rows of each, at the end of its context */
    uint32_t tokens;          /* of each */
    double bytes, flops;      /* of one call */
    double seconds[ROUNDS_MAX];
    size_t next; /* where in the pool the next call's blocks begin */
};

struct bench {
    struct kernels *kernels;
    uint32_t threads, rounds;
    enum dtype dtype;
    unsigned char *pool;
    float *q, *out;
    double read_s[ROUNDS_MAX], fma_s[ROUNDS_MAX], dot_s[ROUNDS_MAX]; /* rates */
};

static struct bench_case cases[CASES_MAX];
static uint32_t case_count;
static uint32_t blocks[SEQUENCES_MAX * (TOKENS_MAX / 16)];

static struct kv_layout layout_of(const struct bench *b, const struct bench_case *c)
{
    return (struct kv_layout){.block_tokens = 16, .layer_count = 1, .kv_heads = c->kv_heads, .head_dim = c->head_dim, .dtype = b->dtype};
}

static void case_add(const struct bench *b, const char *name, uint32_t q_heads, uint32_t kv_heads, uint32_t head_dim,
                     uint32_t sequences, uint32_t rows, uint32_t tokens)
{
    struct bench_case *c = &cases[case_count++];
    *c = (struct bench_case){.q_heads = q_heads, .kv_heads = kv_heads, .head_dim = head_dim, .sequences = sequences, .rows = rows, .tokens = tokens};
    snprintf(c->name, sizeof(c->name), "%s", name);
    struct kv_layout layout = layout_of(b, c);
    double seen = rows * (tokens - (rows - 1) / 2.0);
    c->bytes = (double)sequences * tokens / 16 * (double)kv_layout_block_bytes(&layout);
    c->flops = 4.0 * q_heads * head_dim * seen * sequences;
}

static void run(struct bench *b, struct bench_case *c)
{
    static struct kernels_attention_sequence sequences[SEQUENCES_MAX];
    size_t stride = (size_t)c->q_heads * c->head_dim;
    struct kernels_attention a = {.q_heads = c->q_heads, .scale = 1 / sqrtf((float)c->head_dim), .q = b->q, .q_stride = stride,
                                  .out = b->out, .out_stride = stride, .sequences = sequences, .sequence_count = c->sequences};
    a.kv.pool = b->pool;
    a.kv.layout = layout_of(b, c);
    a.kv.block_count = (uint32_t)(POOL_BYTES / kv_layout_block_bytes(&a.kv.layout));
    uint32_t used = c->tokens / 16;
    for (uint32_t s = 0; s < c->sequences; s++) {
        for (uint32_t i = 0; i < used; i++) { /* scattered, as a pool is after an hour */
            blocks[s * used + i] = (uint32_t)(((c->next + (size_t)s * used + i) * 2654435761u) % a.kv.block_count);
        }
        sequences[s] = (struct kernels_attention_sequence){s * c->rows, c->rows, c->tokens - c->rows, blocks + s * used};
    }
    c->next += (size_t)c->sequences * used;
    kernels_attention(b->kernels, &a);
}

/* Seconds of one call, over enough calls to fill some 20 ms. */
static double run_case(struct bench *b, struct bench_case *c)
{
    run(b, c);
    uint32_t calls = 0;
    uint64_t start_ns = probe_now_ns(b->threads), now_ns;
    do {
        run(b, c);
        calls++;
        now_ns = probe_now_ns(b->threads);
    } while (now_ns - start_ns < 20 * NS_PER_MS);
    return (double)(now_ns - start_ns) / (double)NS_PER_S / calls;
}

/* Median over rounds of work per second as a fraction of the probe's rate in the same round. */
static double fraction(const struct bench *b, const struct bench_case *c, double work, const double *rates)
{
    double ratios[ROUNDS_MAX];
    for (uint32_t r = 0; r < b->rounds; r++) { ratios[r] = rates[r] > 0 ? work / c->seconds[r] / rates[r] : 0; }
    return bench_median(ratios, b->rounds);
}

static void report(const struct bench *b, const struct bench_case *c)
{
    double seconds = bench_median(c->seconds, b->rounds);
    printf("{\"bench\":\"attention\",\"case\":\"%s\",\"isa\":\"%s\",\"kv\":\"%s\",\"threads\":%u,\"sequences\":%u,\"rows\":%u,\"tokens\":%u,"
           "\"us\":%.1f,\"gb_s\":%.2f,\"gflop_s\":%.1f,\"of_read\":%.3f,\"of_fma\":%.3f,\"of_dot\":%.3f,\"read_gb_s\":%.2f}\n",
           c->name, kernels_isa_name(b->kernels), dtype_name(b->dtype), b->threads, c->sequences, c->rows, c->tokens, seconds * 1e6,
           c->bytes / seconds / 1e9, c->flops / seconds / 1e9, fraction(b, c, c->bytes, b->read_s), fraction(b, c, c->flops, b->fma_s),
           fraction(b, c, c->flops, b->dot_s), bench_median(b->read_s, b->rounds) / 1e9);
}

static void fill(struct bench *b, size_t q_count)
{
    uint32_t random = 1;
    for (size_t i = 0; i < POOL_BYTES / 2; i++) { /* +-0.008 .. 0.12 as bf16; finite in every format */
        random = random * 1664525u + 1013904223u;
        uint16_t bits = (uint16_t)(0x3c00u + (random >> 23) + (random >> 16 & 0x8000u));
        ((uint16_t *)(void *)b->pool)[i] = bits;
    }
    for (size_t i = 0; i < q_count; i++) { b->q[i] = (float)(i % 17) * 0.1f - 0.8f; }
}

int main(int argc, char **argv)
{
    struct bench b = {.threads = 1, .rounds = 5, .dtype = DTYPE_BF16};
    struct kernels_config config = {.isa = "auto"};
    const char *only = "";
    uint32_t tokens_max = 32768;
    for (int i = 1; i < argc; i++) {
        const char *value = strchr(argv[i], '=') != NULL ? strchr(argv[i], '=') + 1 : "";
        if (strncmp(argv[i], "--isa=", 6) == 0) {
            config.isa = value;
        } else if (strncmp(argv[i], "--compute=", 10) == 0) {
            config.compute = strcmp(value, "bf16") == 0 ? KERNELS_COMPUTE_BF16 : KERNELS_COMPUTE_F32;
        } else if (strncmp(argv[i], "--threads=", 10) == 0) {
            b.threads = (uint32_t)strtoul(value, NULL, 10);
        } else if (strncmp(argv[i], "--rounds=", 9) == 0) {
            b.rounds = (uint32_t)strtoul(value, NULL, 10);
        } else if (strncmp(argv[i], "--tokens-max=", 13) == 0) {
            tokens_max = (uint32_t)strtoul(value, NULL, 10);
        } else if (strncmp(argv[i], "--only=", 7) == 0) {
            only = value;
        } else if (strncmp(argv[i], "--kv=", 5) != 0 || !dtype_parse(value, &b.dtype)) {
            fprintf(stderr, "%s: see the top of attention_bench.c for what may be said\n", argv[i]);
            return 2;
        }
    }
    if (b.rounds == 0 || b.rounds > ROUNDS_MAX || tokens_max > TOKENS_MAX) {
        fprintf(stderr, "--rounds is 1 .. %u, --tokens-max at most %u\n", ROUNDS_MAX, TOKENS_MAX);
        return 2;
    }
    struct diag diag;
    config.threads = b.threads;
    const size_t values = (size_t)2048 * 32 * 64;
    void *memory = NULL;
    if (failed(kernels_create(&config, &b.kernels, &diag))
        || failed(kernels_buffer_alloc(b.kernels, POOL_BYTES + 2 * values * sizeof(float), &memory, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    }
    b.pool = memory;
    b.q = (float *)(void *)(b.pool + POOL_BYTES);
    b.out = b.q + values;
    fill(&b, values);
    static const uint32_t contexts[] = {2048, 8192, 32768, 131072};
    for (size_t i = 0; i < 4 && strcmp(only, "prefill") != 0; i++) {
        if (contexts[i] > tokens_max) { continue; }
        case_add(&b, "Llama-3.2-1B decode", 32, 8, 64, 1, 1, contexts[i]);
        if (contexts[i] <= 32768) { case_add(&b, "Llama-3.2-1B decode", 32, 8, 64, 8, 1, contexts[i]); }
        case_add(&b, "Qwen2.5-0.5B decode", 14, 2, 64, 1, 1, contexts[i]);
    }
    for (uint32_t rows = 512; rows <= 2048 && strcmp(only, "decode") != 0; rows *= 4) {
        case_add(&b, "Llama-3.2-1B prefill", 32, 8, 64, 1, rows, rows);
        case_add(&b, "Qwen2.5-0.5B prefill", 14, 2, 64, 1, rows, rows);
        case_add(&b, "12 heads of 64 prefill", 12, 12, 64, 1, rows, rows);
    }
    for (uint32_t r = 0; r < b.rounds; r++) {
        b.read_s[r] = probe_read_bytes_per_s(b.pool, POOL_BYTES, b.threads, 6);
        b.fma_s[r] = probe_fma_flops(b.threads);
        b.dot_s[r] = probe_dot_flops(b.threads);
        for (uint32_t i = 0; i < case_count; i++) { cases[i].seconds[r] = run_case(&b, &cases[i]); }
    }
    for (uint32_t i = 0; i < case_count; i++) { report(&b, &cases[i]); }
    kernels_buffer_free(b.kernels, memory, POOL_BYTES + 2 * values * sizeof(float));
    kernels_destroy(b.kernels);
    return 0;
}
