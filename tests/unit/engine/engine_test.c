/* Claims on the engine: plans made by hand over golden models give the tokens that Hugging Face
 * transformers gives, in any chunks and company, and a settled step allocates nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>

#include "engine/engine.h"
#include "model/json_field.h"
#include "model/safetensors.h"
#include "tests/unit/heap/counting_heap.h"

enum { BLOCKS = 64, SLOTS = 8, ROWS_MAX = 160, TABLE_MAX = 12, OUTPUT_MAX = 64, LAYERS_MAX = 16 };

/* An engine, and a mutex and condition to wait for its steps. */
struct bench {
    struct model *model;
    struct kernels *kernels;
    struct engine *engine;
    struct kv_layout layout;
    void *pool;
    size_t pool_bytes;
    uint32_t layer_count, vocab_size;

    pthread_mutex_t mutex;
    pthread_cond_t done;
    uint64_t steps_done;
    const struct step_result *result; /* of the last step; good until the next */
    uint32_t layers_seen[LAYERS_MAX]; /* of the last step, in the order they came */
    uint32_t layers_count;
    const struct step_plan *layers_plan;

    /* the golden tokens */
    char *golden_data;
    struct safetensors *golden_file;
    const uint32_t *prompt, *greedy;
    uint32_t prompt_count, greedy_count;
};

static void on_layer(void *user, const struct step_plan *plan, uint32_t layer, uint64_t mark)
{
    (void)mark;
    struct bench *bench = user;
    pthread_mutex_lock(&bench->mutex);
    bench->layers_seen[bench->layers_count++ % LAYERS_MAX] = layer;
    bench->layers_plan = plan;
    pthread_mutex_unlock(&bench->mutex);
}

static void on_step(void *user, const struct step_result *result)
{
    struct bench *bench = user;
    pthread_mutex_lock(&bench->mutex);
    bench->result = result;
    bench->steps_done++;
    pthread_cond_signal(&bench->done);
    pthread_mutex_unlock(&bench->mutex);
}

static const uint32_t *golden_tokens(struct bench *bench, const char *name, uint32_t *ret_count)
{
    const struct safetensors_tensor *tensor = safetensors_find(bench->golden_file, name);
    assert_non_null(tensor);
    *ret_count = (uint32_t)tensor->shape[0];
    return (const uint32_t *)(const void *)tensor->data;
}

static void bench_open(const char *name, uint32_t threads, struct bench *bench)
{
    char path[256];
    struct diag diag = {{0}};
    memset(bench, 0, sizeof *bench);
    pthread_mutex_init(&bench->mutex, NULL);
    pthread_cond_init(&bench->done, NULL);
    snprintf(path, sizeof path, "tests/golden/models/%s", name);
    status_t st = model_create(path, MODEL_LOAD_FILES, &diag, &bench->model);
    if (failed(st)) { fail_msg("%s", diag.text); }
    bench->layer_count = model_get_config(bench->model)->layer_count;
    bench->vocab_size = model_get_config(bench->model)->vocab_size;
    st = kernels_create(&(struct kernels_config){.isa = "auto", .threads = threads}, &bench->kernels, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    st = model_kv_layout(bench->model, 16, DTYPE_F32, &diag, &bench->layout);
    if (failed(st)) { fail_msg("%s", diag.text); }
    bench->pool_bytes = BLOCKS * kv_layout_block_bytes(&bench->layout);
    st = kernels_buffer_alloc(bench->kernels, bench->pool_bytes, &bench->pool, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    memset(bench->pool, 0xff, bench->pool_bytes); /* NaNs: a read of what was never written shows */
    struct engine_config config = {
        .model = bench->model, .kernels = bench->kernels, .layout = bench->layout, .kv_pool = bench->pool,
        .block_count = BLOCKS, .rows_max = ROWS_MAX, .spans_max = 16, .slot_count = SLOTS,
        .on_layer = on_layer, .on_step = on_step, .user = bench,
    };
    assert_true(engine_memory_bytes(&config) > (uint64_t)ROWS_MAX * sizeof(struct token_logprob));
    st = engine_create(&config, &bench->engine, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }

    size_t bytes;
    snprintf(path, sizeof path, "tests/golden/models/%s/expected.safetensors", name);
    st = json_read_file(path, 1 << 20, &diag, &bench->golden_data, &bytes);
    if (!failed(st)) { st = safetensors_parse(path, (uint8_t *)bench->golden_data, bytes, &diag, &bench->golden_file); }
    if (failed(st)) { fail_msg("%s", diag.text); }
    bench->prompt = golden_tokens(bench, "prompt", &bench->prompt_count);
    bench->greedy = golden_tokens(bench, "greedy", &bench->greedy_count);
}

static void bench_close(struct bench *bench)
{
    engine_destroy(bench->engine);
    engine_destroy(NULL);
    kernels_buffer_free(bench->kernels, bench->pool, bench->pool_bytes);
    kernels_destroy(bench->kernels);
    model_destroy(bench->model);
    safetensors_close(bench->golden_file);
    free(bench->golden_data);
    pthread_cond_destroy(&bench->done);
    pthread_mutex_destroy(&bench->mutex);
}

/* Submits and waits. The result is the bench's until the next step. */
static const struct step_result *run(struct bench *bench, struct step_plan plan)
{
    static uint64_t id;
    plan.id = ++id;
    pthread_mutex_lock(&bench->mutex);
    uint64_t before = bench->steps_done;
    bench->layers_count = 0;
    bench->layers_plan = NULL;
    pthread_mutex_unlock(&bench->mutex);
    engine_submit(bench->engine, &plan);
    pthread_mutex_lock(&bench->mutex);
    while (bench->steps_done == before) { pthread_cond_wait(&bench->done, &bench->mutex); }
    const struct step_result *result = bench->result;
    pthread_mutex_unlock(&bench->mutex);
    assert_false(failed(result->status));
    assert_true(result->id == plan.id);
    if (plan.span_count > 0) { /* each layer once, in order, with the plan that computes */
        assert_int_equal(bench->layers_count, bench->layer_count);
        for (uint32_t i = 0; i < bench->layers_count; i++) { assert_int_equal(bench->layers_seen[i], i); }
        assert_ptr_equal(bench->layers_plan, &plan);
    } else {
        assert_int_equal(bench->layers_count, 0);
    }
    return result;
}

/* One sequence: its tokens, its blocks, its slot. */
struct run {
    uint32_t tokens[256];
    uint32_t count, computed;
    uint32_t table[TABLE_MAX];
    uint32_t slot;
};

/* Blocks first_block, first_block + 3, ...: not neighbours. */
static void run_init(const struct bench *bench, uint32_t slot, uint32_t first_block, struct run *run_)
{
    memset(run_, 0, sizeof *run_);
    memcpy(run_->tokens, bench->prompt, bench->prompt_count * sizeof *bench->prompt);
    run_->count = bench->prompt_count;
    run_->slot = slot;
    for (uint32_t i = 0; i < TABLE_MAX; i++) { run_->table[i] = (first_block + 5 * i) % BLOCKS; }
}

static struct step_span next_span(struct run *run_, uint32_t rows)
{
    struct step_span span = {
        .first_position = run_->computed, .row_count = rows, .tokens = run_->tokens + run_->computed,
        .block_count = (run_->computed + rows + 15) / 16, .block_table = run_->table, .prompt_logprobs = -1,
    };
    run_->computed += rows;
    if (run_->computed == run_->count) {
        span.sample_count = 1;
        span.sample_slots = &run_->slot;
    }
    return span;
}

static struct sampling_params greedy_params(void)
{
    return (struct sampling_params){.temperature = 0, .top_p = 1, .repetition_penalty = 1, .max_tokens = OUTPUT_MAX,
                                    .ignore_eos = true, .n = 1, .logprobs = -1, .prompt_logprobs = -1};
}

static struct step_open open_of(const struct bench *bench, uint32_t slot, uint32_t sequence,
                                const struct sampling_params *params, const uint32_t *output, uint32_t output_count)
{
    return (struct step_open){.slot = slot, .sequence = sequence, .params = params, .prompt_count = bench->prompt_count,
                              .prompt = bench->prompt, .output_count = output_count, .output = output};
}

/* Opens the slot, computes the prompt in chunks, then `count` tokens one by one. */
static void generate(struct bench *bench, const struct sampling_params *params, uint32_t chunk, struct run *run_,
                     uint32_t count, uint32_t *ret_tokens)
{
    struct step_open open = open_of(bench, run_->slot, 0, params, NULL, 0);
    uint32_t opens = 1;
    for (uint32_t made = 0; made < count;) {
        uint32_t left = run_->count - run_->computed;
        struct step_span span = next_span(run_, left < chunk ? left : chunk);
        const struct step_result *result = run(bench, (struct step_plan){.open_count = opens, .opens = &open,
                                                                          .span_count = 1, .spans = &span});
        opens = 0;
        assert_int_equal(result->sample_count, span.sample_count);
        if (span.sample_count == 0) { continue; }
        ret_tokens[made++] = result->samples[0].token;
        run_->tokens[run_->count++] = result->samples[0].token;
    }
}

static const char *const models[] = {"llama_llama3_gqa_f32", "gpt2_f32", "qwen2_window_sharded_f32"};
#define MODEL_COUNT (sizeof models / sizeof models[0])

/* Greedy tokens are those stored, for every way to cut the prompt. */
static void greedy_tokens_are_the_stored_ones(void **state)
{
    (void)state;
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        struct bench bench;
        bench_open(models[m], 2, &bench);
        struct sampling_params params = greedy_params();
        static const uint32_t chunks[] = {1, 7, 16, 1000};
        for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
            struct run run_;
            uint32_t tokens[OUTPUT_MAX], count = bench.greedy_count < OUTPUT_MAX ? bench.greedy_count : OUTPUT_MAX;
            run_init(&bench, (uint32_t)c, (uint32_t)c, &run_);
            generate(&bench, &params, chunks[c], &run_, count, tokens);
            for (uint32_t i = 0; i < count; i++) {
                if (tokens[i] != bench.greedy[i]) {
                    fail_msg("%s, chunks of %u: token %u is %u, stored %u", models[m], chunks[c], i, tokens[i], bench.greedy[i]);
                }
            }
        }
        bench_close(&bench);
    }
}

static struct sampling_params drawn_params(void)
{
    struct sampling_params params = greedy_params();
    params.temperature = 1.3f;
    params.top_k = 50;
    params.repetition_penalty = 1.2f;
    params.presence_penalty = 0.5f;
    params.frequency_penalty = 0.25f;
    params.seed = 77;
    return params;
}

enum { SHARED = 4, DRAWN = 20 };

/* Sequences that share a prompt: its full blocks by table, its last by copy. Each one's tokens are
 * what it draws alone, and they differ from one another. */
static void sequences_share_a_prompt(void **state)
{
    (void)state;
    struct bench bench;
    bench_open("llama_llama3_gqa_f32", 2, &bench);
    struct sampling_params params = drawn_params();
    params.n = SHARED;
    uint32_t alone[SHARED][DRAWN], slots[SHARED];
    for (uint32_t s = 0; s < SHARED; s++) {
        struct run run_;
        run_init(&bench, s, s, &run_);
        struct step_open open = open_of(&bench, s, s, &params, NULL, 0);
        for (uint32_t made = 0; made < DRAWN; made++) {
            struct step_span span = next_span(&run_, run_.count - run_.computed);
            const struct step_result *result = run(&bench, (struct step_plan){.open_count = made == 0, .opens = &open,
                                                                               .span_count = 1, .spans = &span});
            alone[s][made] = run_.tokens[run_.count++] = result->samples[0].token;
        }
        slots[s] = s;
    }
    assert_memory_not_equal(alone[0], alone[1], sizeof alone[0]);

    /* Together: one span for the prompt, with a sample for each. */
    memset(bench.pool, 0xff, bench.pool_bytes);
    struct run runs[SHARED];
    struct step_open opens[SHARED];
    struct step_copy copies[SHARED];
    for (uint32_t s = 0; s < SHARED; s++) {
        run_init(&bench, s, 0, &runs[s]);
        opens[s] = open_of(&bench, s, s, &params, NULL, 0);
    }
    struct step_span prompt = next_span(&runs[0], runs[0].count);
    prompt.sample_count = SHARED;
    prompt.sample_slots = slots;
    const struct step_result *result = run(&bench, (struct step_plan){.open_count = SHARED, .opens = opens,
                                                                       .span_count = 1, .spans = &prompt});
    assert_int_equal(result->sample_count, SHARED);
    uint32_t full = bench.prompt_count / 16, copy_count = 0;
    for (uint32_t s = 0; s < SHARED; s++) {
        assert_int_equal(result->samples[s].token, alone[s][0]);
        runs[s].tokens[runs[s].count++] = result->samples[s].token;
        runs[s].computed = bench.prompt_count;
        if (s == 0) { continue; }
        for (uint32_t b = full; b < TABLE_MAX; b++) { runs[s].table[b] = (runs[s].table[b] + s) % BLOCKS; }
        if (bench.prompt_count % 16 != 0) {
            copies[copy_count++] = (struct step_copy){.source_block = runs[0].table[full],
                                                      .destination_block = runs[s].table[full]};
        }
    }
    assert_true(copy_count > 0); /* else this prompt tests no copy */
    for (uint32_t made = 1; made < DRAWN; made++) {
        struct step_span spans[SHARED];
        for (uint32_t s = 0; s < SHARED; s++) { spans[s] = next_span(&runs[s], 1); }
        result = run(&bench, (struct step_plan){.copy_count = made == 1 ? copy_count : 0, .copies = copies,
                                                .span_count = SHARED, .spans = spans});
        assert_int_equal(result->sample_count, SHARED);
        for (uint32_t s = 0; s < SHARED; s++) {
            assert_int_equal(result->samples[s].token, alone[s][made]);
            runs[s].tokens[runs[s].count++] = result->samples[s].token;
        }
    }
    bench_close(&bench);
}

/* A slot that is opened again with the tokens so far, after any of them, goes on as if it had
 * never been closed: penalties and draws included. */
static void a_reopened_slot_goes_on(void **state)
{
    (void)state;
    struct bench bench;
    bench_open("gpt2_f32", 1, &bench);
    struct sampling_params params = drawn_params();
    struct run run_;
    uint32_t whole[DRAWN];
    run_init(&bench, 0, 0, &run_);
    generate(&bench, &params, 1000, &run_, DRAWN, whole);
    for (uint32_t cut = 1; cut < DRAWN; cut += 3) {
        memset(bench.pool, 0xff, bench.pool_bytes);
        run_init(&bench, 3, 7, &run_);
        memcpy(run_.tokens + run_.count, whole, cut * sizeof *whole);
        run_.count += cut;
        struct step_open open = open_of(&bench, 3, 0, &params, whole, cut);
        for (uint32_t made = cut; made < DRAWN; made++) {
            struct step_span span = next_span(&run_, run_.count - run_.computed);
            const struct step_result *result = run(&bench, (struct step_plan){.open_count = made == cut, .opens = &open,
                                                                               .span_count = 1, .spans = &span});
            assert_int_equal(result->samples[0].token, whole[made]);
            run_.tokens[run_.count++] = result->samples[0].token;
        }
    }
    bench_close(&bench);
}

/* Two spans of other sequences in one step sample as they do alone, in the plan's order. */
static void spans_keep_their_order(void **state)
{
    (void)state;
    struct bench bench;
    bench_open("llama_llama3_gqa_f32", 2, &bench);
    struct sampling_params params = greedy_params();
    struct run first, second;
    run_init(&bench, 5, 0, &first);
    run_init(&bench, 2, 1, &second);
    second.count = bench.prompt_count / 2;
    struct step_open opens[] = {open_of(&bench, 5, 0, &params, NULL, 0), open_of(&bench, 2, 0, &params, NULL, 0)};
    struct step_span spans[] = {next_span(&second, second.count), next_span(&first, first.count)};
    const struct step_result *result = run(&bench, (struct step_plan){.open_count = 2, .opens = opens,
                                                                       .span_count = 2, .spans = spans});
    assert_int_equal(result->sample_count, 2);
    assert_int_equal(result->samples[1].token, bench.greedy[0]);
    uint32_t half_token = result->samples[0].token;
    memset(bench.pool, 0xff, bench.pool_bytes);
    run_init(&bench, 2, 9, &second);
    second.count = bench.prompt_count / 2;
    spans[0] = next_span(&second, second.count);
    result = run(&bench, (struct step_plan){.open_count = 1, .opens = opens + 1, .span_count = 1, .spans = spans});
    assert_int_equal(result->samples[0].token, half_token);
    bench_close(&bench);
}

/* Log-probabilities: a row for each prompt token after the first, the same bits however the prompt
 * was cut, each the log of a probability, with alternatives in falling order; the sampled token's
 * is that of rank 1 under greedy sampling. */
static void log_probabilities_come_row_by_row(void **state)
{
    (void)state;
    enum { K = 3 };
    struct bench bench;
    bench_open("llama_llama3_gqa_f32", 2, &bench);
    struct sampling_params params = greedy_params();
    params.logprobs = K;
    static struct token_logprob rows[2][256];
    for (uint32_t pass = 0; pass < 2; pass++) {
        struct run run_;
        run_init(&bench, pass, pass, &run_);
        struct step_open open = open_of(&bench, pass, 0, &params, NULL, 0);
        uint32_t chunk = pass == 0 ? ROWS_MAX : 5, got = 0, opens = 1;
        while (run_.computed < bench.prompt_count) {
            uint32_t left = bench.prompt_count - run_.computed, now = left < chunk ? left : chunk;
            struct step_span span = next_span(&run_, now);
            span.prompt_logprobs = K;
            span.has_next_token = run_.computed < bench.prompt_count;
            span.next_token = span.has_next_token ? bench.prompt[run_.computed] : 0;
            const struct step_result *result = run(&bench, (struct step_plan){.open_count = opens, .opens = &open,
                                                                               .span_count = 1, .spans = &span});
            opens = 0;
            assert_int_equal(result->prompt_logprob_count, now - !span.has_next_token);
            memcpy(rows[pass] + got, result->prompt_logprobs, result->prompt_logprob_count * sizeof rows[0][0]);
            got += result->prompt_logprob_count;
            if (span.sample_count == 0) { continue; }
            const struct step_sample *sample = &result->samples[0];
            assert_int_equal(sample->token, bench.greedy[0]);
            assert_true(sample->has_logprob);
            assert_int_equal(sample->logprob.rank, 1);
            assert_int_equal(sample->logprob.alternatives[0].token, sample->token);
        }
        assert_int_equal(got, bench.prompt_count - 1);
        for (uint32_t i = 0; i < got; i++) {
            const struct token_logprob *row = &rows[pass][i];
            assert_true(row->logprob <= 0 && isfinite(row->logprob));
            assert_in_range(row->rank, 1, bench.vocab_size);
            assert_int_equal(row->alternative_count, K);
            for (uint32_t a = 1; a < K; a++) {
                assert_true(row->alternatives[a - 1].logprob >= row->alternatives[a].logprob);
            }
            if (row->rank == 1) {
                assert_int_equal(row->alternatives[0].token, bench.prompt[i + 1]);
                assert_true(row->logprob == row->alternatives[0].logprob);
            }
            assert_true(row->logprob == rows[0][i].logprob);
            assert_int_equal(row->rank, rows[0][i].rank);
        }
    }
    bench_close(&bench);
}

/* A plan without spans opens and copies, computes nothing, and still has a result. */
static void a_step_may_only_copy(void **state)
{
    (void)state;
    struct bench bench;
    bench_open("gpt2_f32", 1, &bench);
    size_t bytes = kv_layout_block_bytes(&bench.layout);
    unsigned char *pool = bench.pool;
    for (size_t i = 0; i < bytes; i++) { pool[7 * bytes + i] = (unsigned char)i; }
    struct step_copy copies[] = {{.source_block = 7, .destination_block = 0},
                                 {.source_block = 0, .destination_block = BLOCKS - 1}};
    const struct step_result *result = run(&bench, (struct step_plan){.copy_count = 2, .copies = copies});
    assert_int_equal(result->sample_count, 0);
    assert_memory_equal(pool, pool + 7 * bytes, bytes);
    assert_memory_equal(pool + (BLOCKS - 1) * bytes, pool + 7 * bytes, bytes);
    bench_close(&bench);
}

/* A thousand decode steps allocate nothing, and neither does a slot that is opened for a request
 * no larger than one before. */
static void settled_steps_allocate_nothing(void **state)
{
    (void)state;
    struct bench bench;
    bench_open("llama_llama3_gqa_f32", 2, &bench);
    struct sampling_params params = drawn_params();
    struct logit_bias biases[3] = {{.token = 1, .bias = -2}, {.token = 2, .bias = 1}, {.token = 3, .bias = 0.5f}};
    uint32_t stops[2] = {5, 6};
    params.logit_bias = biases;
    params.logit_bias_count = 3;
    params.stop_tokens = stops;
    params.stop_token_count = 2;
    params.logprobs = 5;
    uint32_t tokens[OUTPUT_MAX];
    uint64_t settled = 0;
    assert_true(heap_allocations() > 0); /* the counter counts */
    for (uint32_t round = 0; round < 26; round++) {
        if (round == 1) { settled = heap_allocations(); }
        struct run run_;
        run_init(&bench, 4, round, &run_);
        generate(&bench, &params, 16, &run_, 40, tokens);
    }
    assert_int_equal(heap_allocations(), settled);
    bench_close(&bench);
}

/* An engine that is destroyed with a step under way finishes it first. */
static void destroy_waits_for_the_step(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct bench bench;
        bench_open("gpt2_f32", 1, &bench);
        struct sampling_params params = greedy_params();
        struct run run_;
        run_init(&bench, 0, 0, &run_);
        struct step_open open = open_of(&bench, 0, 0, &params, NULL, 0);
        struct step_span span = next_span(&run_, run_.count);
        struct step_plan plan = {.id = 1, .open_count = 1, .opens = &open, .span_count = 1, .spans = &span};
        engine_submit(bench.engine, &plan);
        engine_destroy(bench.engine);
        bench.engine = NULL;
        assert_int_equal(bench.steps_done, 1);
        bench_close(&bench);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_tokens_are_the_stored_ones), cmocka_unit_test(sequences_share_a_prompt),
        cmocka_unit_test(a_reopened_slot_goes_on),           cmocka_unit_test(spans_keep_their_order),
        cmocka_unit_test(log_probabilities_come_row_by_row), cmocka_unit_test(a_step_may_only_copy),
        cmocka_unit_test(settled_steps_allocate_nothing),    cmocka_unit_test(destroy_waits_for_the_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
