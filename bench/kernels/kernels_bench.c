/* kernels_bench: how near the kernels come to what this machine can do, as JSON lines.
 *   bazel run -c opt //bench/kernels:kernels_bench -- [--isa=NAME] [--threads=N] [--rounds=N] [--rows=1,8,..] [--only=probe|gemm|gemm-1b|attention]
 *
 * Estimate. A product at one row reads n_out * n_in * 2 bytes of bf16 and nothing else worth
 * counting, so its limit is the read probe; at 512 rows it does 2 * 512 flops per weight, so its
 * limit is the FMA probe (2 units x 16 lanes x 2 flops a cycle). Decode attention reads K and V
 * once: the read probe again. Weights and KV are cycled through a working set of some hundred MB,
 * far beyond the caches, as a model's layers are.
 *
 * The machine's neighbours come and go within seconds, so each round measures the probes and then
 * every case, and the fractions are of medians over rounds taken side by side. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "bench/kernels/probe.h"
#include "bench/median.h"
#include "kernels/kernels.h"

#define SET_BYTES ((size_t)384 << 20) /* of weights or KV in turn */
#define ROUNDS_MAX 64u
#define CASES_MAX 128u

struct bench {
    struct kernels *kernels;
    uint32_t threads, rounds;
    unsigned char *set; /* SET_BYTES, random bf16 */
    float *x, *out;     /* large enough for every case */
};

enum kind { READ_1, READ_6, FMA, DOT, AMX_BF16, AMX_INT8, GEMM, DECODE, PREFILL };

struct bench_case {
    enum kind kind;
    char name[64];
    uint32_t rows, n_out, n_in;
    uint32_t q_heads, kv_heads, head_dim, tokens; /* attention */
    double bytes, flops;                          /* of one call */
    double seconds[ROUNDS_MAX];                   /* of one call */
    size_t next;                                  /* where in the set the next call's weights lie */
};

static struct bench_case cases[CASES_MAX];
static uint32_t case_count;
static uint32_t gemm_rows[16] = {1, 8, 32, 512}, row_count = 4; /* of products */

static void gemm_add(const char *model, const char *layer, uint32_t n_out, uint32_t n_in)
{
    for (uint32_t i = 0; i < row_count; i++) {
        CHECK(case_count < CASES_MAX);
        struct bench_case *c = &cases[case_count++];
        *c = (struct bench_case){.kind = GEMM, .rows = gemm_rows[i], .n_out = n_out, .n_in = n_in};
        snprintf(c->name, sizeof(c->name), "%s %s", model, layer);
        c->bytes = (double)n_out * n_in * 2;
        c->flops = 2.0 * gemm_rows[i] * n_out * n_in;
    }
}

static void attention_add(enum kind kind, const char *model, uint32_t q_heads, uint32_t kv_heads, uint32_t head_dim,
                          uint32_t rows, uint32_t tokens)
{
    struct bench_case *c = &cases[case_count++];
    *c = (struct bench_case){.kind = kind, .rows = rows, .q_heads = q_heads, .kv_heads = kv_heads, .head_dim = head_dim,
                             .tokens = tokens};
    snprintf(c->name, sizeof(c->name), "%s %s", model, kind == DECODE ? "decode" : "prefill");
    double seen = kind == DECODE ? (double)rows * tokens : rows * (tokens - (rows - 1) / 2.0);
    c->bytes = 2.0 * kv_heads * head_dim * 2 * (kind == DECODE ? (double)rows * tokens : tokens);
    c->flops = 4.0 * q_heads * head_dim * seen;
}

static void run_gemm(struct bench *b, struct bench_case *c)
{
    size_t bytes = (size_t)c->n_out * c->n_in * 2;
    if (c->next + bytes > SET_BYTES) { c->next = 0; }
    struct kernels_matrix weight = {.format = KERNELS_WEIGHT_BF16, .n_out = c->n_out, .n_in = c->n_in, .data = b->set + c->next};
    struct kernels_gemm g = {.rows = c->rows, .weight = &weight, .x = b->x, .x_stride = c->n_in, .out = b->out,
                             .out_stride = c->n_out};
    c->next += bytes;
    kernels_gemm(b->kernels, &g, 1);
}

static void run_attention(struct bench *b, struct bench_case *c)
{
    enum { SEQUENCES_MAX = 32, BLOCKS_MAX = 256 };
    static struct kernels_attention_sequence sequences[SEQUENCES_MAX];
    static uint32_t blocks[SEQUENCES_MAX][BLOCKS_MAX];
    struct kernels_attention a = {.q_heads = c->q_heads, .scale = 1 / sqrtf((float)c->head_dim), .q = b->x,
                                  .q_stride = (size_t)c->q_heads * c->head_dim, .out = b->out,
                                  .out_stride = (size_t)c->q_heads * c->head_dim, .sequences = sequences};
    a.kv.pool = b->set;
    a.kv.layout = (struct kv_layout){16, 1, c->kv_heads, c->head_dim, DTYPE_BF16, KV_ORDER_TILES};
    a.kv.block_count = (uint32_t)(SET_BYTES / kv_layout_block_bytes(&a.kv.layout));
    a.sequence_count = c->kind == DECODE ? c->rows : 1;
    uint32_t used = c->tokens / 16;
    CHECK(used <= BLOCKS_MAX);
    for (uint32_t s = 0; s < a.sequence_count; s++) {
        for (uint32_t i = 0; i < used; i++) { /* scattered, as a pool is after an hour */
            blocks[s][i] = (uint32_t)(((c->next + (size_t)s * used + i) * 2654435761u) % a.kv.block_count);
        }
        sequences[s] = c->kind == DECODE ? (struct kernels_attention_sequence){s, 1, c->tokens - 1, blocks[s]}
                                         : (struct kernels_attention_sequence){0, c->rows, c->tokens - c->rows, blocks[s]};
    }
    c->next += (size_t)a.sequence_count * used;
    kernels_attention(b->kernels, &a);
}

/* Seconds of one call, over enough calls to fill some 10 ms. */
static double run_case(struct bench *b, struct bench_case *c)
{
    if (c->kind == READ_1 || c->kind == READ_6) {
        return c->bytes / probe_read_bytes_per_s(b->set, SET_BYTES, b->threads, c->kind == READ_1 ? 1 : 6);
    }
    if (c->kind == FMA) { return c->flops / probe_fma_flops(b->threads); }
    if (c->kind == DOT) { return c->flops / (probe_dot_flops(b->threads) + 1); } /* + 1: machines without, see is_there() */
    if (c->kind == AMX_BF16) { return c->flops / (probe_amx_bf16_flops(b->threads) + 1); }
    if (c->kind == AMX_INT8) { return c->flops / (probe_amx_int8_ops(b->threads) + 1); }
    void (*run)(struct bench *, struct bench_case *) = c->kind == GEMM ? run_gemm : run_attention;
    run(b, c);
    uint32_t calls = 0;
    uint64_t start_ns = probe_now_ns(b->threads), now_ns;
    do {
        run(b, c);
        calls++;
        now_ns = probe_now_ns(b->threads);
    } while (now_ns - start_ns < 10 * NS_PER_MS);
    return (double)(now_ns - start_ns) / (double)NS_PER_S / calls;
}

/* Median over rounds of what the case reached of the probe's rate in the same round. */
static double fraction(const struct bench *b, const struct bench_case *c, const struct bench_case *probe, double work,
                       double probe_work)
{
    double ratios[ROUNDS_MAX];
    for (uint32_t r = 0; r < b->rounds; r++) { ratios[r] = work / c->seconds[r] / (probe_work / probe->seconds[r]); }
    return bench_median(ratios, b->rounds);
}

/* Whether the machine has the instruction that a probe runs. */
static bool is_there(const struct bench_case *probe) { return probe->seconds[0] < 1; }

static void report(const struct bench *b, const struct bench_case *c)
{
    if (c->kind < GEMM && !is_there(c)) {
        printf("{\"bench\":\"%s\",\"threads\":%u,\"gflop_s\":null}\n", c->name, b->threads);
        return;
    }
    const struct bench_case *dot = &cases[strcmp(kernels_isa_name(b->kernels), "amx") == 0 ? AMX_BF16 : DOT]; /* the set's limit */
    double seconds = bench_median(c->seconds, b->rounds);
    printf("{\"bench\":\"%s\",\"isa\":\"%s\",\"threads\":%u,\"rows\":%u", c->name, kernels_isa_name(b->kernels), b->threads, c->rows);
    if (c->kind == GEMM) { printf(",\"n_out\":%u,\"n_in\":%u", c->n_out, c->n_in); }
    if (c->kind == DECODE || c->kind == PREFILL) { printf(",\"tokens\":%u", c->tokens); }
    printf(",\"us\":%.1f", seconds * 1e6);
    if (c->bytes != 0) { printf(",\"gb_s\":%.2f", c->bytes / seconds / 1e9); }
    if (c->flops != 0) { printf(",\"gflop_s\":%.1f", c->flops / seconds / 1e9); }
    if (c->kind >= GEMM && c->bytes != 0) { printf(",\"of_read\":%.3f", fraction(b, c, &cases[1], c->bytes, cases[1].bytes)); }
    if (c->kind >= GEMM) { printf(",\"of_fma\":%.3f", fraction(b, c, &cases[2], c->flops, cases[2].flops)); }
    if (c->kind >= GEMM && is_there(dot)) { printf(",\"of_dot\":%.3f", fraction(b, c, dot, c->flops, dot->flops)); }
    printf("}\n");
}

int main(int argc, char **argv)
{
    struct bench b = {.threads = 1, .rounds = 7};
    const char *isa = "auto", *only = "";
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--isa=", 6) == 0) {
            isa = argv[i] + 6;
        } else if (strncmp(argv[i], "--threads=", 10) == 0) {
            b.threads = (uint32_t)strtoul(argv[i] + 10, NULL, 10);
        } else if (strncmp(argv[i], "--rounds=", 9) == 0) {
            b.rounds = (uint32_t)strtoul(argv[i] + 9, NULL, 10);
        } else if (strncmp(argv[i], "--rows=", 7) == 0) {
            row_count = 0;
            for (char *at = argv[i] + 7; *at != '\0' && row_count < 16; at += *at == ',') { gemm_rows[row_count++] = (uint32_t)strtoul(at, &at, 10); }
        } else if (strncmp(argv[i], "--only=", 7) == 0) {
            only = argv[i] + 7;
        } else {
            fprintf(stderr, "usage: %s [--isa=NAME] [--threads=N] [--rounds=N] [--rows=1,8,..] [--only=probe|gemm|gemm-1b|attention]\n", argv[0]);
            return 2;
        }
    }
    if (b.rounds == 0 || b.rounds > ROUNDS_MAX) {
        fprintf(stderr, "--rounds is out of range: 1 .. %u\n", ROUNDS_MAX);
        return 2;
    }
    struct diag diag;
    struct kernels_config config = {.isa = isa, .threads = b.threads};
    if (failed(kernels_create(&config, &b.kernels, &diag)) ) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    }
    void *memory = NULL;
    size_t x_bytes = (size_t)512 * 8192 * sizeof(float), out_bytes = (size_t)512 * 16384 * sizeof(float);
    if (failed(kernels_buffer_alloc(b.kernels, SET_BYTES + x_bytes + out_bytes, &memory, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    }
    b.set = memory;
    b.x = (float *)(void *)(b.set + SET_BYTES);
    b.out = b.x + x_bytes / sizeof(float);
    uint32_t random = 1;
    for (size_t i = 0; i < SET_BYTES / 2; i++) {
        random = random * 1664525u + 1013904223u;
        ((uint16_t *)memory)[i] = (uint16_t)(0x3c00u + (random >> 23) + (random >> 16 & 0x8000u)); /* +-0.008 .. 0.12 */
    }
    for (size_t i = 0; i < x_bytes / sizeof(float); i++) { b.x[i] = (float)(i % 17) * 0.1f - 0.8f; }

    cases[case_count++] = (struct bench_case){.kind = READ_1, .name = "read probe, 1 stream a thread", .bytes = SET_BYTES};
    cases[case_count++] = (struct bench_case){.kind = READ_6, .name = "read probe, 6 streams a thread", .bytes = SET_BYTES};
    cases[case_count++] = (struct bench_case){.kind = FMA, .name = "fma probe", .flops = 1e9};
    cases[case_count++] = (struct bench_case){.kind = DOT, .name = "bf16 dot product probe", .flops = 1e9};
    cases[case_count++] = (struct bench_case){.kind = AMX_BF16, .name = "AMX bf16 probe", .flops = 1e9};
    cases[case_count++] = (struct bench_case){.kind = AMX_INT8, .name = "AMX int8 probe", .flops = 1e9};
    if (strcmp(only, "gemm-1b") == 0) {
        gemm_add("Llama-3.2-1B", "gate_up", 16384, 2048);
        gemm_add("Llama-3.2-1B", "down", 2048, 8192);
    }
    if (only[0] == '\0' || strcmp(only, "gemm") == 0) {
        gemm_add("Llama-3.2-1B", "qkv", 3072, 2048);
        gemm_add("Llama-3.2-1B", "o", 2048, 2048);
        gemm_add("Llama-3.2-1B", "gate_up", 16384, 2048);
        gemm_add("Llama-3.2-1B", "down", 2048, 8192);
        gemm_add("Qwen2.5-0.5B", "qkv", 1152, 896);
        gemm_add("Qwen2.5-0.5B", "gate_up", 9728, 896);
        gemm_add("Qwen2.5-0.5B", "down", 896, 4864);
    }
    if (only[0] == '\0' || strcmp(only, "attention") == 0) {
        attention_add(DECODE, "Llama-3.2-1B", 32, 8, 64, 1, 2048);
        attention_add(DECODE, "Llama-3.2-1B", 32, 8, 64, 8, 1024);
        attention_add(PREFILL, "Llama-3.2-1B", 32, 8, 64, 512, 512);
        attention_add(PREFILL, "Llama-3.2-1B", 32, 8, 64, 512, 2048);
        attention_add(DECODE, "Qwen2.5-0.5B", 14, 2, 64, 1, 2048);
        attention_add(PREFILL, "Qwen2.5-0.5B", 14, 2, 64, 512, 512);
    }
    for (uint32_t r = 0; r < b.rounds; r++) {
        for (uint32_t i = 0; i < case_count; i++) { cases[i].seconds[r] = run_case(&b, &cases[i]); }
    }
    for (uint32_t i = 0; i < case_count; i++) { report(&b, &cases[i]); }
    kernels_buffer_free(b.kernels, memory, SET_BYTES + x_bytes + out_bytes);
    kernels_destroy(b.kernels);
    return 0;
}
