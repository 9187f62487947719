/* model_bench: whole steps of the engine on a CUDA device, dummy weights, beside the ceilings of the same run.
 *   model_bench --model=DIR [--device=N] [--deterministic] [--rounds=N] [--batches=1,8,32,64] [--prompts=16x2048]
 *
 * Estimate, at the shape of Llama-3.1-8B in bf16 on an H200 (4.3 TB/s, 790 TFLOP/s): a decode step reads 15.0 GB of
 * matrices, 3.5 ms, and 128 KiB of KV a token of context, 4.0 ms at 64 sequences of 2,048; a prompt token does
 * 13.96 GFLOP in the layers' matrices and, at 2,048 tokens, 0.54 in causal attention, so 16 prompts of 2,048 take 0.6 s.
 * Steps go through the engine as a node's do: plan, upload, graph, sampling, one wait, tokens back. The ceilings are
 * a copy inside the device and a product of 8192 x 8192 x 8192, before the first round. Medians over rounds. */
#include <inttypes.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/flags.h"
#include "bench/median.h"
#include "engine/engine.h"
#include "model/model_weights.h"
#include "model/sampling_params.h"

enum { ROUNDS_MAX = 64, BATCH_MAX = 256, BLOCK_TOKENS = 16, STEPS = 32, STEP_TOKENS = 8192 };

struct bench_config {
    const char *model, *batches, *prompts;
    uint32_t device, rounds, context, threads;
    bool deterministic;
};

#define AT(field) offsetof(struct bench_config, field)
static const struct flag bench_flags[] = {
    {"model", FLAG_STRING, AT(model), NULL, "DIR", "Hugging Face model directory; its config.json is enough.", 0, 0},
    {"device", FLAG_U32, AT(device), "0", "N", "Which GPU.", 0, 255},
    {"deterministic", FLAG_BOOL, AT(deterministic), NULL, NULL, "As the nodes' flag.", 0, 0},
    {"rounds", FLAG_U32, AT(rounds), "5", "N", "Rounds; figures are medians.", 1, ROUNDS_MAX},
    {"context", FLAG_U32, AT(context), "2048", "tokens", "KV that each sequence has when a decode case begins.", 1, 131072},
    {"batches", FLAG_STRING, AT(batches), "1,8,32,64", "LIST", "Decode cases: sequences in a step.", 0, 0},
    {"prompts", FLAG_STRING, AT(prompts), "16x2048", "LIST", "Prefill cases: prompts x tokens.", 0, 0},
    {"threads", FLAG_U32, AT(threads), "8", "N", "Threads that make the weights.", 1, 256},
};

struct bench {
    struct bench_config config;
    struct model *model;
    struct kernels *kernels;
    struct engine *engine;
    struct engine_config shape;
    size_t pool_bytes;
    double copy_bytes_s, gemm_flop_s;
    uint64_t steps_started;

    pthread_mutex_t mutex; /* guards done, status */
    pthread_cond_t changed;
    bool done;
    status_t status;
};

static void stop(status_t st, const char *what, const struct diag *diag)
{
    if (!failed(st)) { return; }
    fprintf(stderr, "%s: %s\n", what, diag->text[0] ? diag->text : status_code_name(st.code));
    exit(1);
}

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
    stop(b->status, "a step", &(struct diag){{0}});
}

/* ---- the work of a step */

struct work {
    double bytes;         /* of the matrices that a step reads */
    double layer_weights; /* a token multiplies each once */
    double head_weights;
    double kv_token_bytes;
    double attention_flops; /* of one row and one token of its context, all layers */
};

static struct work work_of(const struct bench *b)
{
    const struct model_weights *w = model_get_weights(b->model);
    const struct model_config *config = model_get_config(b->model);
    struct work work = {.head_weights = (double)w->head.rows * w->head.cols,
                        .kv_token_bytes = (double)kv_layout_block_bytes(&b->shape.layout) / BLOCK_TOKENS,
                        .attention_flops = 4.0 * config->q_heads * config->head_dim * config->layer_count};
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const struct model_layer *l = &w->layers[i];
        const struct model_tensor *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof all / sizeof all[0]; j++) { work.layer_weights += (double)all[j]->rows * all[j]->cols; }
    }
    work.bytes = 2 * (work.layer_weights + work.head_weights);
    return work;
}

/* ---- ceilings */

static double median_seconds(struct bench *b, void (*run)(struct bench *b, void *what), void *what, uint32_t count)
{
    double seconds[ROUNDS_MAX];
    struct diag diag = {{0}};
    run(b, what);
    stop(kernels_sync(b->kernels), "the device failed", &diag);
    for (uint32_t r = 0; r < b->config.rounds; r++) {
        uint64_t start_ns = clock_now_ns();
        for (uint32_t i = 0; i < count; i++) { run(b, what); }
        stop(kernels_sync(b->kernels), "the device failed", &diag);
        seconds[r] = (double)(clock_now_ns() - start_ns) / (double)NS_PER_S / count;
    }
    return bench_median(seconds, b->config.rounds);
}

/* A block of half the pool onto the other half. */
static void copy_run(struct bench *b, void *what)
{
    kernels_copy_block(b->kernels, what);
    (void)b;
}

static void gemm_run(struct bench *b, void *what) { kernels_gemm(b->kernels, what, 1); }

static void measure_ceilings(struct bench *b)
{
    /* One layer of one head, with so many tokens that half the pool is a block. */
    struct kernels_copy_block copy = {.pool = b->shape.kv_pool, .block_count = 2, .from = 0, .to = 1,
                                      .layout = {.layer_count = 1, .kv_heads = 1, .head_dim = 256, .dtype = DTYPE_BF16}};
    copy.layout.block_tokens = (uint32_t)(b->pool_bytes / 2 / 1024 / 16 * 16);
    double seconds = median_seconds(b, copy_run, &copy, 4);
    b->copy_bytes_s = 2.0 * (double)kv_layout_block_bytes(&copy.layout) / seconds;

    const size_t side = 8192, bytes = side * side * 2;
    struct kernels_matrix weight = {.format = KERNELS_WEIGHT_BF16, .n_out = side, .n_in = side, .order = KERNELS_ORDER_ROWS,
                                    .stride = side, .data = b->shape.kv_pool};
    struct kernels_gemm gemm = {.rows = side, .weight = &weight, .x = (char *)b->shape.kv_pool + bytes, .x_dtype = DTYPE_BF16,
                                .x_stride = side, .out = (char *)b->shape.kv_pool + 2 * bytes, .out_dtype = DTYPE_BF16,
                                .out_stride = side};
    b->gemm_flop_s = 2.0 * side * side * side / median_seconds(b, gemm_run, &gemm, 8);
    printf("{\"bench\":\"gpu_model_ceilings\",\"copy_tb_s\":%.3f,\"gemm_tflop_s\":%.1f}\n", b->copy_bytes_s / 1e12, b->gemm_flop_s / 1e12);
}

/* ---- cases */

/* Blocks of a sequence, scattered as a pool is after an hour. */
static uint32_t *table_of(const struct bench *b, uint32_t sequence, uint32_t blocks_each)
{
    static uint32_t tables[BATCH_MAX][131072 / BLOCK_TOKENS + 8];
    uint32_t *table = tables[sequence];
    uint32_t count = b->shape.block_count, step = 2654435761u % count;
    while (step < 3 || count % step == 0) { step++; }
    for (uint32_t i = 0; i < blocks_each; i++) {
        table[i] = (uint32_t)(((uint64_t)(sequence * blocks_each + i) * step) % count);
    }
    return table;
}

static const char *mode_of(const struct bench *b) { return b->config.deterministic ? "deterministic" : "fast"; }

static const char *model_name(const struct bench *b)
{
    const char *slash = strrchr(b->config.model, '/');
    return slash && slash[1] ? slash + 1 : b->config.model;
}

static void open_slots(struct bench *b, uint32_t count)
{
    static struct step_open opens[BATCH_MAX];
    static struct sampling_params params;
    params = sampling_params_default();
    params.max_tokens = UINT32_MAX;
    params.ignore_eos = true;
    for (uint32_t s = 0; s < count; s++) { opens[s] = (struct step_open){.slot = s, .params = &params}; }
    struct step_plan plan = {.open_count = count, .opens = opens};
    run_plan(b, &plan);
}

static void run_decode(struct bench *b, uint32_t batch)
{
    static struct step_span spans[BATCH_MAX];
    static uint32_t slots[BATCH_MAX], tokens[BATCH_MAX];
    const struct work work = work_of(b);
    uint32_t context = b->config.context, vocab = model_get_config(b->model)->vocab_size;
    uint32_t blocks_each = (context + STEPS) / BLOCK_TOKENS + 1;
    double seconds[ROUNDS_MAX];
    open_slots(b, batch);
    for (uint32_t round = 0; round <= b->config.rounds; round++) { /* the first is warm-up: graphs, algorithms */
        uint64_t start_ns = clock_now_ns();
        for (uint32_t step = 0; step < STEPS; step++) {
            for (uint32_t s = 0; s < batch; s++) {
                slots[s] = s;
                tokens[s] = (s * 7919 + step * 31 + 13) % vocab;
                spans[s] = (struct step_span){.first_position = context + step, .row_count = 1, .tokens = &tokens[s],
                                              .block_count = (context + step) / BLOCK_TOKENS + 1,
                                              .block_table = table_of(b, s, blocks_each), .sample_count = 1,
                                              .sample_slots = &slots[s], .prompt_logprobs = -1};
            }
            struct step_plan plan = {.span_count = batch, .spans = spans};
            run_plan(b, &plan);
        }
        if (round > 0) { seconds[round - 1] = (double)(clock_now_ns() - start_ns) / (double)NS_PER_S / STEPS; }
    }
    double step = bench_median(seconds, b->config.rounds);
    double bytes = work.bytes + batch * work.kv_token_bytes * (context + STEPS / 2.0);
    printf("{\"bench\":\"gpu_decode\",\"model\":\"%s\",\"mode\":\"%s\",\"batch\":%u,\"context\":%u,\"step_ms\":%.3f,\"tokens_s\":%.1f,"
           "\"tb_s\":%.3f,\"of_copy\":%.3f}\n", model_name(b), mode_of(b), batch, context, step * 1e3, batch / step,
           bytes / step / 1e12, bytes / step / b->copy_bytes_s);
}

/* All prompts side by side, STEP_TOKENS rows a step, as a prefill node batches them. */
static void run_prefill(struct bench *b, uint32_t prompts, uint32_t length)
{
    static struct step_span spans[BATCH_MAX];
    static uint32_t slots[BATCH_MAX], tokens[131072];
    const struct work work = work_of(b);
    uint32_t vocab = model_get_config(b->model)->vocab_size, blocks_each = (length + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    for (uint32_t i = 0; i < length; i++) { tokens[i] = (i * 7919u + 13) % vocab; }
    open_slots(b, prompts);
    double seconds[ROUNDS_MAX];
    for (uint32_t round = 0; round <= b->config.rounds; round++) {
        uint64_t start_ns = clock_now_ns();
        uint32_t prompt = 0, at = 0;
        while (prompt < prompts) {
            uint32_t room = STEP_TOKENS, count = 0;
            while (prompt < prompts && room > 0) {
                uint32_t rows = length - at < room ? length - at : room;
                bool is_last = at + rows == length;
                slots[count] = prompt;
                spans[count] = (struct step_span){.first_position = at, .row_count = rows, .tokens = tokens + at,
                                                  .block_count = (at + rows + BLOCK_TOKENS - 1) / BLOCK_TOKENS,
                                                  .block_table = table_of(b, prompt, blocks_each), .sample_count = is_last,
                                                  .sample_slots = &slots[count], .prompt_logprobs = -1};
                count++;
                room -= rows;
                at = is_last ? 0 : at + rows;
                prompt += is_last;
            }
            struct step_plan plan = {.span_count = count, .spans = spans};
            run_plan(b, &plan);
        }
        if (round > 0) { seconds[round - 1] = (double)(clock_now_ns() - start_ns) / (double)NS_PER_S; }
    }
    double all = bench_median(seconds, b->config.rounds), n = (double)prompts * length;
    double flops = n * 2 * work.layer_weights + prompts * 2 * work.head_weights + prompts * work.attention_flops * 0.5 * length * length;
    printf("{\"bench\":\"gpu_prefill\",\"model\":\"%s\",\"mode\":\"%s\",\"prompts\":%u,\"tokens\":%u,\"ms\":%.2f,\"tokens_s\":%.0f,"
           "\"tflop_s\":%.1f,\"of_gemm\":%.3f}\n", model_name(b), mode_of(b), prompts, length, all * 1e3, n / all,
           flops / all / 1e12, flops / all / b->gemm_flop_s);
}

/* "1,8" or "16x2048,1x8192". */
static void run_list(struct bench *b, const char *list, bool is_prefill)
{
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',') {
        unsigned first = 0, length = 1;
        int got = sscanf(at, is_prefill ? "%ux%u" : "%u", &first, &length);
        uint32_t tokens = is_prefill ? length : b->config.context + STEPS;
        uint64_t blocks = (uint64_t)first * ((tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS + 1);
        if (got != (is_prefill ? 2 : 1) || first == 0 || first > BATCH_MAX || length == 0 || length > 131072 || blocks > b->shape.block_count) {
            fprintf(stderr, "%s: \"%.20s\" is out of range: up to %u sequences, 131072 tokens and %u blocks of %u tokens in all\n",
                    is_prefill ? "--prompts" : "--batches", at, BATCH_MAX, b->shape.block_count, BLOCK_TOKENS);
            exit(2);
        }
        if (is_prefill) { run_prefill(b, first, length); } else { run_decode(b, first); }
        fflush(stdout);
    }
}

static status_t bench_open(struct bench *b, struct diag *diag)
{
    const struct bench_config *config = &b->config;
    if (!config->model) {
        diag_set(diag, "needs --model=DIR");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    uint64_t start_ns = clock_now_ns();
    const struct model_options options = {.load = MODEL_LOAD_DUMMY, .threads = config->threads, .is_for_device = true};
    TRY(model_open(config->model, &options, diag, &b->model));
    const struct kernels_config kernels = {.backend = "cuda", .threads = 1, .device = config->device,
                                           .deterministic = config->deterministic, .activations = model_activation_dtype(b->model)};
    TRY(kernels_create(&kernels, &b->kernels, diag));
    TRY(model_to_device(b->model, b->kernels, config->threads, diag));
    printf("{\"bench\":\"gpu_load\",\"seconds\":%.2f,\"gb\":%.2f}\n", (double)(clock_now_ns() - start_ns) / (double)NS_PER_S,
           (double)model_device_bytes(b->model) / 1e9);
    b->shape = (struct engine_config){.model = b->model, .kernels = b->kernels, .block_count = 1u << 14, .rows_max = STEP_TOKENS,
                                      .spans_max = BATCH_MAX, .slot_count = BATCH_MAX, .on_step = on_step, .user = b};
    TRY(model_kv_layout(b->model, BLOCK_TOKENS, model_weight_dtype(b->model), diag, &b->shape.layout));
    b->shape.layout.order = kernels_kv_order(b->kernels);
    b->pool_bytes = b->shape.block_count * kv_layout_block_bytes(&b->shape.layout);
    TRY(kernels_buffer_alloc(b->kernels, b->pool_bytes, &b->shape.kv_pool, diag));
    static uint16_t noise[4u << 20];
    uint32_t state = 2463534242u;
    for (size_t i = 0; i < sizeof noise / sizeof noise[0]; i++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        noise[i] = f32_to_bf16((float)(int32_t)state * 0x1p-31f);
    }
    for (size_t at = 0; at < b->pool_bytes; at += sizeof noise) { /* zeros would run faster than numbers do */
        size_t bytes = b->pool_bytes - at < sizeof noise ? b->pool_bytes - at : sizeof noise;
        kernels_upload(b->kernels, (char *)b->shape.kv_pool + at, noise, bytes);
        TRY(kernels_sync(b->kernels));
    }
    measure_ceilings(b);
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
        flags_print_help(bench_flags, flag_count, "model_bench --model=DIR [flags]", stdout);
        return 0;
    }
    pthread_mutex_init(&b.mutex, NULL);
    pthread_cond_init(&b.changed, NULL);
    stop(bench_open(&b, &diag), "model_bench", &diag);
    run_list(&b, b.config.prompts, true);
    run_list(&b, b.config.batches, false);
    engine_destroy(b.engine);
    kernels_buffer_free(b.kernels, b.shape.kv_pool, b.pool_bytes);
    model_off_device(b.model);
    kernels_destroy(b.kernels);
    model_destroy(b.model);
    return 0;
}
