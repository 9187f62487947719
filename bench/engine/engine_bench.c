/* engine_bench: whole steps of the engine (forward pass, head, greedy sampling), as JSON lines.
 *   engine_bench --model=DIR [--load=dummy] [--threads=N] [--rounds=N] [--batches=1,8,32] [--prompts=512,2048]
 *
 * Estimate. A decode step at batch 1 reads every weight once and the KV of one sequence, so its
 * limit is the read probe: 0.99 GB at the shape of Qwen2.5-0.5B, 2.47 GB at Llama-3.2-1B. A larger
 * batch reads the same weights once for all of its rows. A prompt of n tokens does 2 * n flops a
 * weight of the layers (the head runs for its last row alone) and 2 * n * n * q_heads * head_dim a
 * layer for attention, so its limit is the FMA probe.
 *
 * Neighbours on the machine come and go within seconds: every case of every round has a probe right
 * before and right after it, and its fraction is of their mean; what is printed is the median over
 * rounds. With one thread both are timed in CPU seconds: see probe_now_ns(). */
#include <inttypes.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/flags.h"
#include "bench/kernels/probe.h"
#include "engine/engine.h"
#include "model/model_weights.h"
#include "model/sampling_params.h"

#define PROBE_BYTES ((size_t)256 << 20)
#define ROUNDS_MAX 64u
#define CASES_MAX 16u
#define BATCH_MAX 64u
#define STEPS_MAX 256u
#define BLOCK_TOKENS 16u
#define BLOCK_COUNT 2048u /* 32k tokens: a power of two */

struct bench_config {
    const char *model, *load, *isa, *compute, *weights, *pack_cache, *batches, *prompts;
    uint32_t threads, rounds, context, chunk_tokens;
};

#define AT(field) offsetof(struct bench_config, field)
static const struct flag bench_flags[] = {
    {"model", FLAG_STRING, AT(model), NULL, "DIR", "Hugging Face model directory.", 0, 0},
    {"load", FLAG_STRING, AT(load), "dummy", "auto|dummy", "dummy: random weights at the config's shape.", 0, 0},
    {"isa", FLAG_STRING, AT(isa), "auto", "NAME", "Instruction set of the kernels.", 0, 0},
    {"compute", FLAG_STRING, AT(compute), "f32", "f32|bf16", "What products round activations to.", 0, 0},
    {"weights", FLAG_STRING, AT(weights), "auto", "auto|bf16|int8|int4", "Format of the weight matrices.", 0, 0},
    {"pack-cache", FLAG_STRING, AT(pack_cache), "off", "auto|off|DIR", "Where packed weights are kept.", 0, 0},
    {"threads", FLAG_U32, AT(threads), "1", "N", "Compute threads.", 1, 64},
    {"rounds", FLAG_U32, AT(rounds), "7", "N", "Rounds; figures are medians.", 1, ROUNDS_MAX},
    {"context", FLAG_U32, AT(context), "128", "tokens", "KV that each sequence has when a decode case begins.", 1, 65536},
    {"chunk-tokens", FLAG_U32, AT(chunk_tokens), "256", "tokens", "Rows of one prefill step, as the nodes' flag.", 1, 65536},
    {"batches", FLAG_STRING, AT(batches), "1,8,32", "LIST", "Decode cases: sequences in a step.", 0, 0},
    {"prompts", FLAG_STRING, AT(prompts), "512,2048", "LIST", "Prefill cases: prompt tokens.", 0, 0},
};

struct bench_case {
    bool is_prefill;
    uint32_t size;         /* sequences, or prompt tokens */
    double bytes, flops;   /* of a step, or of a prompt */
    uint32_t steps;        /* a piece has so many */
    double seconds[ROUNDS_MAX], of_read[ROUNDS_MAX], of_fma[ROUNDS_MAX], of_dot[ROUNDS_MAX];
};

struct bench {
    struct bench_config config;
    struct model *model;
    struct kernels *kernels;
    struct engine *engine;
    struct engine_config shape;
    void *pool;
    size_t pool_bytes;
    void *probe;
    uint64_t steps_started;

    pthread_mutex_t mutex; /* guards done, result */
    pthread_cond_t changed;
    bool done;
    status_t status;
};

static struct bench_case cases[CASES_MAX];
static uint32_t case_count;

static void on_step(void *user, const struct step_result *result)
{
    struct bench *b = user;
    pthread_mutex_lock(&b->mutex);
    b->done = true;
    b->status = result->status;
    pthread_cond_signal(&b->changed);
    pthread_mutex_unlock(&b->mutex);
}

static void run_plan(struct bench *b, struct step_plan *plan)
{
    plan->id = ++b->steps_started;
    b->done = false;
    engine_submit(b->engine, plan);
    pthread_mutex_lock(&b->mutex);
    while (!b->done) { pthread_cond_wait(&b->changed, &b->mutex); }
    pthread_mutex_unlock(&b->mutex);
    if (failed(b->status)) {
        fprintf(stderr, "a step failed: %s\n", status_code_name(b->status.code));
        exit(1);
    }
}

/* Bytes and weights of the matrices that every step reads; the embedding is read by row unless it is the head. */
struct matrix_sizes {
    double bytes, layer_weights, head_weights;
};

static struct matrix_sizes matrix_sizes(const struct model *model)
{
    const struct model_weights *w = model_get_weights(model);
    struct matrix_sizes sizes = {.bytes = (double)kernels_matrix_bytes(&w->head.matrix),
                                 .head_weights = (double)w->head.rows * w->head.cols};
    for (uint32_t i = 0; i < model_get_config(model)->layer_count; i++) {
        const struct model_layer *l = &w->layers[i];
        const struct model_tensor *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof all / sizeof all[0]; j++) {
            if (!all[j]->data) { continue; }
            sizes.bytes += (double)kernels_matrix_bytes(&all[j]->matrix);
            sizes.layer_weights += (double)all[j]->rows * all[j]->cols;
        }
    }
    return sizes;
}

static void case_add(struct bench *b, bool is_prefill, uint32_t size)
{
    const struct model_config *model = model_get_config(b->model);
    const struct matrix_sizes sizes = matrix_sizes(b->model);
    double token_kv = (double)kv_layout_block_bytes(&b->shape.layout) / BLOCK_TOKENS;
    double heads = (double)model->q_heads * model->head_dim * model->layer_count;
    CHECK(case_count < CASES_MAX);
    struct bench_case *c = &cases[case_count++];
    *c = (struct bench_case){.is_prefill = is_prefill, .size = size, .steps = 1};
    if (is_prefill) {
        c->bytes = sizes.bytes * ((size + b->config.chunk_tokens - 1) / b->config.chunk_tokens);
        c->flops = 2 * size * sizes.layer_weights + 2 * sizes.head_weights + 2.0 * size * size * heads;
        return;
    }
    c->bytes = sizes.bytes + size * token_kv * b->config.context;
    c->flops = 2 * size * (sizes.layer_weights + sizes.head_weights + 2.0 * b->config.context * heads);
}

/* Scattered, as a pool is after an hour: an odd factor permutes a power of two. */
static uint32_t block_of(uint32_t sequences, uint32_t sequence, uint32_t index)
{
    return (uint32_t)((uint64_t)(sequence * (BLOCK_COUNT / sequences) + index) * 2654435761u % BLOCK_COUNT);
}

/* Seconds of one decode step or one prompt, by the probes' clock. */
static double run_case(struct bench *b, struct bench_case *c)
{
    static uint32_t tables[BATCH_MAX][65536 / BLOCK_TOKENS + 1], tokens[65536], slots[BATCH_MAX];
    static struct step_span spans[BATCH_MAX];
    static struct step_open opens[BATCH_MAX];
    struct sampling_params params = sampling_params_default();
    params.max_tokens = UINT32_MAX;
    params.ignore_eos = true;
    uint32_t vocab = model_get_config(b->model)->vocab_size;
    uint32_t sequences = c->is_prefill ? 1 : c->size;
    for (uint32_t s = 0; s < sequences; s++) {
        slots[s] = s;
        opens[s] = (struct step_open){.slot = s, .params = &params};
        for (uint32_t i = 0; i < sizeof tables[0] / sizeof tables[0][0]; i++) { tables[s][i] = block_of(sequences, s, i); }
    }
    for (uint32_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) { tokens[i] = (i * 7919u + 13) % vocab; }
    struct step_plan open = {.open_count = sequences, .opens = opens};
    run_plan(b, &open);
    uint64_t start_ns = probe_now_ns(b->config.threads);
    if (c->is_prefill) {
        for (uint32_t at = 0; at < c->size; at += b->config.chunk_tokens) {
            uint32_t rows = c->size - at < b->config.chunk_tokens ? c->size - at : b->config.chunk_tokens;
            spans[0] = (struct step_span){.first_position = at, .row_count = rows, .tokens = tokens + at,
                                          .block_count = (at + rows + BLOCK_TOKENS - 1) / BLOCK_TOKENS, .block_table = tables[0],
                                          .sample_count = at + rows == c->size, .sample_slots = slots, .prompt_logprobs = -1};
            struct step_plan plan = {.span_count = 1, .spans = spans};
            run_plan(b, &plan);
        }
        return (double)(probe_now_ns(b->config.threads) - start_ns) / (double)NS_PER_S;
    }
    for (uint32_t step = 0; step < c->steps; step++) {
        for (uint32_t s = 0; s < sequences; s++) {
            spans[s] = (struct step_span){.first_position = b->config.context + step, .row_count = 1, .tokens = tokens + step + s,
                                          .block_count = (b->config.context + step) / BLOCK_TOKENS + 1, .block_table = tables[s],
                                          .sample_count = 1, .sample_slots = slots + s, .prompt_logprobs = -1};
        }
        struct step_plan plan = {.span_count = sequences, .spans = spans};
        run_plan(b, &plan);
    }
    return (double)(probe_now_ns(b->config.threads) - start_ns) / (double)NS_PER_S / c->steps;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value that `share` of the sorted values lie below. */
static double quantile(const double *values, uint32_t count, double share)
{
    double sorted[ROUNDS_MAX];
    memcpy(sorted, values, count * sizeof(double));
    qsort(sorted, count, sizeof(double), compare);
    return sorted[(uint32_t)(share * (count - 1) + 0.5)];
}

/* Several streams a thread do better than one on most machines: the best way to read is the limit. */
static double probe_read(const struct bench *b)
{
    static const uint32_t streams[] = {4, 6, 8};
    double best = 0;
    for (uint32_t i = 0; i < 3; i++) {
        double rate = probe_read_bytes_per_s(b->probe, PROBE_BYTES, b->config.threads, streams[i]);
        best = rate > best ? rate : best;
    }
    return best;
}

/* What bounds products of bf16: the tiles where the set uses them, else vdpbf16ps; 0: the machine has neither. */
static double probe_dot(const struct bench *b)
{
    bool has_tiles = strcmp(kernels_isa_name(b->kernels), "amx") == 0;
    return has_tiles ? probe_amx_bf16_flops(b->config.threads) : probe_dot_flops(b->config.threads);
}

static void measure(struct bench *b, uint32_t round, double *read_rates, double *fma_rates)
{
    double read_before = probe_read(b), fma_before = probe_fma_flops(b->config.threads), dot_before = probe_dot(b);
    for (uint32_t i = 0; i < case_count; i++) {
        struct bench_case *c = &cases[i];
        c->seconds[round] = run_case(b, c);
        double read_after = probe_read(b), fma_after = probe_fma_flops(b->config.threads);
        double dot_after = probe_dot(b);
        c->of_read[round] = c->bytes / c->seconds[round] / ((read_before + read_after) / 2);
        c->of_fma[round] = c->flops / c->seconds[round] / ((fma_before + fma_after) / 2);
        c->of_dot[round] = dot_after == 0 ? 0 : c->flops / c->seconds[round] / ((dot_before + dot_after) / 2);
        read_before = read_after;
        fma_before = fma_after;
        dot_before = dot_after;
    }
    read_rates[round] = read_before;
    fma_rates[round] = fma_before;
}

/* null: the machine has no such instruction. */
static void report_rate(const struct bench *b, const char *name, double (*probe)(uint32_t threads))
{
    double rates[ROUNDS_MAX];
    for (uint32_t r = 0; r < b->config.rounds; r++) { rates[r] = probe(b->config.threads); }
    double rate = quantile(rates, b->config.rounds, 0.5);
    if (rate > 0) {
        printf("\"%s\":%.1f,", name, rate / 1e9);
    } else {
        printf("\"%s\":null,", name);
    }
}

static void report(const struct bench *b, const struct bench_case *c)
{
    uint32_t rounds = b->config.rounds;
    double seconds = quantile(c->seconds, rounds, 0.5);
    const char *name = strrchr(b->config.model, '/');
    printf("{\"bench\":\"%s\",\"model\":\"%s\",\"isa\":\"%s\",\"threads\":%u,", c->is_prefill ? "prefill" : "decode",
           name && name[1] ? name + 1 : b->config.model, kernels_isa_name(b->kernels), b->config.threads);
    if (c->is_prefill) {
        printf("\"prompt_tokens\":%u,\"chunk_tokens\":%u,\"seconds\":%.4f,\"tokens_s\":%.1f,\"gflop_s\":%.1f,", c->size,
               b->config.chunk_tokens, seconds, c->size / seconds, c->flops / seconds / 1e9);
    } else {
        printf("\"batch\":%u,\"context\":%u,\"step_ms\":%.3f,\"tokens_s\":%.2f,\"gb_s\":%.2f,", c->size, b->config.context,
               seconds * 1e3, c->size / seconds, c->bytes / seconds / 1e9);
        printf("\"of_read\":%.3f,\"of_read_p10\":%.3f,\"of_read_p90\":%.3f,", quantile(c->of_read, rounds, 0.5),
               quantile(c->of_read, rounds, 0.1), quantile(c->of_read, rounds, 0.9));
    }
    printf("\"of_dot\":%.3f,\"of_dot_p10\":%.3f,\"of_dot_p90\":%.3f,", quantile(c->of_dot, rounds, 0.5),
           quantile(c->of_dot, rounds, 0.1), quantile(c->of_dot, rounds, 0.9));
    printf("\"of_fma\":%.3f,\"of_fma_p10\":%.3f,\"of_fma_p90\":%.3f,\"rounds\":%u}\n",
           quantile(c->of_fma, rounds, 0.5), quantile(c->of_fma, rounds, 0.1), quantile(c->of_fma, rounds, 0.9),
           rounds);
}

static void cases_add(struct bench *b, bool is_prefill, const char *list)
{
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',') {
        uint32_t size = (uint32_t)strtoul(at, NULL, 10);
        if (size == 0 || size > (is_prefill ? 65536 : BATCH_MAX)) {
            fprintf(stderr, "%s: a size of %u is out of range\n", is_prefill ? "--prompts" : "--batches", size);
            exit(2);
        }
        case_add(b, is_prefill, size);
    }
}

static status_t bench_open(struct bench *b, struct diag *diag)
{
    enum model_load load;
    if (!b->config.model || !model_load_parse(b->config.load, &load)) {
        diag_set(diag, "needs --model=DIR, and --load=auto or dummy");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct model_options options = {.load = load, .threads = b->config.threads, .pack_cache = b->config.pack_cache};
    if (!model_weight_format_parse(b->config.weights, &options.weights)) {
        diag_set(diag, "--weights=%s: takes auto, bf16, int8 or int4", b->config.weights);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    uint64_t begin_ns = clock_now_ns();
    TRY(model_open(b->config.model, &options, diag, &b->model));
    uint64_t mapped, owned;
    model_memory(b->model, &mapped, &owned);
    printf("{\"bench\":\"load\",\"seconds\":%.3f,\"bytes\":%" PRIu64 ",\"note\":\"%s\"}\n",
           (double)(clock_now_ns() - begin_ns) / (double)NS_PER_S, owned, model_weights_note(b->model));
    model_settle(b->model);
    struct kernels_config kernels = {.isa = b->config.isa, .threads = b->config.threads,
                                     .compute = strcmp(b->config.compute, "bf16") == 0 ? KERNELS_COMPUTE_BF16 : KERNELS_COMPUTE_F32};
    TRY(kernels_create(&kernels, &b->kernels, diag));
    b->shape = (struct engine_config){.model = b->model, .kernels = b->kernels, .block_count = BLOCK_COUNT,
                                      .rows_max = b->config.chunk_tokens > BATCH_MAX ? b->config.chunk_tokens : BATCH_MAX,
                                      .spans_max = BATCH_MAX, .slot_count = BATCH_MAX, .on_step = on_step, .user = b};
    TRY(model_kv_layout(b->model, BLOCK_TOKENS, model_weight_dtype(b->model), diag, &b->shape.layout));
    b->pool_bytes = b->shape.block_count * kv_layout_block_bytes(&b->shape.layout);
    TRY(kernels_buffer_alloc(b->kernels, b->pool_bytes, &b->pool, diag));
    memset(b->pool, 0x3c, b->pool_bytes); /* small positive numbers in bf16 and f16 */
    TRY(kernels_buffer_alloc(b->kernels, PROBE_BYTES, &b->probe, diag));
    memset(b->probe, 1, PROBE_BYTES);
    b->shape.kv_pool = b->pool;
    return engine_create(&b->shape, &b->engine, diag);
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct diag diag = {{0}};
    bool wants_help = false;
    const size_t flag_count = sizeof bench_flags / sizeof bench_flags[0];
    if (failed(flags_parse(bench_flags, flag_count, &b.config, argc, argv, NULL, NULL, &wants_help, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 2;
    }
    if (wants_help) {
        flags_print_help(bench_flags, flag_count, "engine_bench --model=DIR [flags]", stdout);
        return 0;
    }
    pthread_mutex_init(&b.mutex, NULL);
    pthread_cond_init(&b.changed, NULL);
    if (failed(bench_open(&b, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    }
    cases_add(&b, false, b.config.batches);
    cases_add(&b, true, b.config.prompts);
    double read_rates[ROUNDS_MAX], fma_rates[ROUNDS_MAX];
    for (uint32_t i = 0; i < case_count; i++) { /* warm-up; steps for a piece of some 100 ms */
        double seconds = run_case(&b, &cases[i]);
        if (!cases[i].is_prefill) { cases[i].steps = seconds < 0.05 ? (uint32_t)(0.1 / seconds) : 2; }
        if (cases[i].steps > STEPS_MAX) { cases[i].steps = STEPS_MAX; }
    }
    for (uint32_t r = 0; r < b.config.rounds; r++) { measure(&b, r, read_rates, fma_rates); }
    printf("{\"bench\":\"probe\",\"threads\":%u,\"read_gb_s\":%.2f,\"read_p10\":%.2f,\"read_p90\":%.2f,\"fma_gflop_s\":%.1f,",
           b.config.threads, quantile(read_rates, b.config.rounds, 0.5) / 1e9, quantile(read_rates, b.config.rounds, 0.1) / 1e9,
           quantile(read_rates, b.config.rounds, 0.9) / 1e9, quantile(fma_rates, b.config.rounds, 0.5) / 1e9);
    report_rate(&b, "dot_gflop_s", probe_dot_flops);
    report_rate(&b, "amx_bf16_gflop_s", probe_amx_bf16_flops);
    report_rate(&b, "amx_int8_gop_s", probe_amx_int8_ops);
    printf("\"rounds\":%u}\n", b.config.rounds);
    for (uint32_t i = 0; i < case_count; i++) { report(&b, &cases[i]); }
    engine_destroy(b.engine);
    kernels_buffer_free(b.kernels, b.pool, b.pool_bytes);
    kernels_buffer_free(b.kernels, b.probe, PROBE_BYTES);
    kernels_destroy(b.kernels);
    model_destroy(b.model);
    return 0;
}
