/* Claims on the engine over a device, which is emulated: the same plans give the same tokens as the oracle's engine, whether
 * the device samples or the host must; a step waits once; faults come as they always did. */
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
#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda/device_emulated.h"

enum { BLOCKS = 64, SLOTS = 6, ROWS_MAX = 64, TABLE_MAX = 8, SEQUENCES = 5, DECODED = 6, VOCAB_MAX = 160 };

static const char model_path[] = "tests/golden/models/llama_llama3_gqa_f32";

struct world {
    const struct cuda_driver *driver; /* NULL: the oracle */
    struct model *model;
    struct kernels *kernels;
    struct engine *engine;
    struct kv_layout layout;
    void *pool;
    size_t pool_bytes;
    uint32_t vocab;
    uint64_t next_id;

    pthread_mutex_t mutex;
    pthread_cond_t done;
    const struct step_result *result;
    uint64_t layers, last_mark;
};

static void on_layer(void *user, const struct step_plan *plan, uint32_t layer, uint64_t mark)
{
    struct world *world = user;
    (void)plan;
    assert_int_equal(layer, world->layers % model_get_config(world->model)->layer_count);
    world->layers++;
    assert_true(world->driver ? mark >= world->last_mark && mark > 0 : mark == 0);
    world->last_mark = mark;
}

static void on_step(void *user, const struct step_result *result)
{
    struct world *world = user;
    pthread_mutex_lock(&world->mutex);
    world->result = result;
    pthread_cond_signal(&world->done);
    pthread_mutex_unlock(&world->mutex);
}

static void world_open_warm(bool on_device, bool warms_up, struct world *world)
{
    struct diag diag = {{0}};
    *world = (struct world){.mutex = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};
    status_t st = model_open(model_path, &(struct model_options){.is_for_device = on_device}, &diag, &world->model);
    if (failed(st)) { fail_msg("%s", diag.text); }
    struct kernels_config config = {.isa = "ref", .threads = 1};
    if (on_device) {
        config = (struct kernels_config){.backend = "cuda", .threads = 1, .deterministic = true, .activations = model_activation_dtype(world->model)};
        world->driver = emulated_device_create(&(struct emulated_options){.seed = 17});
        st = cuda_backend_create_on(world->driver, &config, &world->kernels, &diag);
        if (!failed(st)) { st = model_to_device(world->model, world->kernels, 1, &diag); }
    } else {
        st = kernels_create(&config, &world->kernels, &diag);
    }
    if (failed(st)) { fail_msg("%s", diag.text); }
    assert_false(failed(model_kv_layout(world->model, 16, DTYPE_F32, &diag, &world->layout)));
    world->layout.order = kernels_kv_order(world->kernels);
    world->pool_bytes = BLOCKS * kv_layout_block_bytes(&world->layout);
    assert_false(failed(kernels_buffer_alloc(world->kernels, world->pool_bytes, &world->pool, &diag)));
    world->vocab = model_get_config(world->model)->vocab_size;
    assert_true(world->vocab <= VOCAB_MAX);
    const struct engine_config engine = {
        .model = world->model, .kernels = world->kernels, .layout = world->layout, .kv_pool = world->pool, .block_count = BLOCKS,
        .rows_max = ROWS_MAX, .spans_max = 16, .slot_count = SLOTS, .on_layer = on_layer, .on_step = on_step, .user = world,
        .warms_up = warms_up,
    };
    assert_true(engine_memory_bytes(&engine) > 0);
    st = engine_create(&engine, &world->engine, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
}

static void world_open(bool on_device, struct world *world) { world_open_warm(on_device, false, world); }

static void world_close(struct world *world)
{
    engine_destroy(world->engine);
    kernels_buffer_free(world->kernels, world->pool, world->pool_bytes);
    model_off_device(world->model);
    kernels_destroy(world->kernels); /* the emulated device shows what is left */
    model_destroy(world->model);
}

static const struct step_result *run(struct world *world, struct step_plan plan)
{
    plan.id = ++world->next_id;
    world->result = NULL;
    world->last_mark = 0;
    engine_submit(world->engine, &plan);
    pthread_mutex_lock(&world->mutex);
    while (!world->result) { pthread_cond_wait(&world->done, &world->mutex); }
    const struct step_result *result = world->result;
    pthread_mutex_unlock(&world->mutex);
    return result;
}

/* ---- one script for both ------------------------------------------------------------------- */

struct sequence {
    uint32_t tokens[128], count, computed, table[TABLE_MAX], slot;
    struct sampling_params params;
};

static struct sampling_params base_params(void)
{
    return (struct sampling_params){.top_p = 1, .repetition_penalty = 1, .max_tokens = 40, .ignore_eos = true, .n = 1, .logprobs = -1,
                                    .prompt_logprobs = -1, .seed = 4711};
}

static void sequence_init(const struct world *world, uint32_t index, uint32_t prompt, struct sequence *sequence)
{
    static const struct logit_bias biases[] = {{.token = 3, .bias = 4}, {.token = 60, .bias = -7}, {.token = 5, .bias = 2.5f}};
    static const uint32_t stops[] = {5, 9, 11};
    *sequence = (struct sequence){.count = prompt, .slot = index, .params = base_params()};
    for (uint32_t i = 0; i < prompt; i++) { sequence->tokens[i] = (index * 31 + i * i * 7 + i * 13 + 1) % world->vocab; }
    for (uint32_t b = 0; b < TABLE_MAX; b++) { sequence->table[b] = (index * 11 + b * 5 + 2) % BLOCKS; }
    struct sampling_params *params = &sequence->params;
    if (index == 0) { return; } /* greedy */
    params->temperature = 0.7f + 0.3f * (float)index;
    if (index == 1) {
        params->repetition_penalty = 1.3f;
        params->presence_penalty = 0.4f;
        params->frequency_penalty = 0.2f;
        params->min_tokens = 5;
        params->stop_tokens = stops;
        params->stop_token_count = 3;
        params->logit_bias = biases;
        params->logit_bias_count = 3;
    } else if (index == 2) {
        params->top_p = 0.9f;
        params->logprobs = 3;
    } else {
        params->top_k = 20;
        params->min_p = 0.02f;
    }
}

static struct step_span span_of(struct sequence *sequence, uint32_t rows)
{
    struct step_span span = {.first_position = sequence->computed, .row_count = rows, .tokens = sequence->tokens + sequence->computed,
                             .block_count = (sequence->computed + rows + 15) / 16, .block_table = sequence->table, .prompt_logprobs = -1};
    sequence->computed += rows;
    if (sequence->computed == sequence->count) {
        span.sample_count = 1;
        span.sample_slots = &sequence->slot;
    }
    return span;
}

struct record {
    uint32_t tokens[256], token_count;
    struct token_logprob logprobs[64];
    uint32_t logprob_count;
};

static void keep_logprob(struct record *record, const struct token_logprob *logprob)
{
    assert_true(record->logprob_count < 64);
    record->logprobs[record->logprob_count++] = *logprob;
}

static const struct step_result *run_recorded(struct world *world, struct step_plan plan, struct record *record)
{
    const struct step_result *result = run(world, plan);
    assert_false(failed(result->status));
    for (uint32_t s = 0; s < result->sample_count; s++) {
        assert_true(record->token_count < 256);
        record->tokens[record->token_count++] = result->samples[s].token;
        if (result->samples[s].has_logprob) { keep_logprob(record, &result->samples[s].logprob); }
    }
    for (uint32_t i = 0; i < result->prompt_logprob_count; i++) { keep_logprob(record, &result->prompt_logprobs[i]); }
    return result;
}

/* Prompts whole, in chunks, with log-probabilities, and shared by two; then all of them token by token. */
static void play(struct world *world, struct record *record)
{
    struct sequence sequences[SEQUENCES];
    struct step_open opens[SEQUENCES];
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        sequence_init(world, s, s == 4 ? 21 : 13 + 4 * s, &sequences[s]);
        if (s == 4) { memcpy(sequences[4].tokens, sequences[3].tokens, sizeof sequences[3].tokens); }
        opens[s] = (struct step_open){.slot = s, .sequence = s, .params = &sequences[s].params, .prompt_count = sequences[s].count, .prompt = sequences[s].tokens};
    }
    struct step_span spans[SEQUENCES];
    spans[0] = span_of(&sequences[0], 13);
    spans[0].prompt_logprobs = 2; /* every row for the host, and a sample of the last */
    spans[1] = span_of(&sequences[1], 9);
    const struct step_result *result = run_recorded(world, (struct step_plan){.open_count = 2, .opens = opens, .span_count = 2, .spans = spans}, record);
    assert_int_equal(result->sample_count, 1);
    sequences[0].tokens[sequences[0].count++] = result->samples[0].token;

    const uint32_t both[] = {3, 4};
    sequences[3].count = sequences[4].count = 21;
    opens[3].prompt_count = opens[4].prompt_count = 21;
    spans[0] = span_of(&sequences[1], 8);
    spans[1] = span_of(&sequences[3], 21);
    spans[1].sample_count = 2;
    spans[1].sample_slots = both;
    spans[2] = span_of(&sequences[2], 21);
    result = run_recorded(world, (struct step_plan){.open_count = 3, .opens = opens + 2, .span_count = 3, .spans = spans}, record);
    assert_int_equal(result->sample_count, 4);
    sequences[1].tokens[sequences[1].count++] = result->samples[0].token;
    sequences[3].tokens[sequences[3].count++] = result->samples[1].token;
    sequences[4].tokens[sequences[4].count++] = result->samples[2].token;
    sequences[2].tokens[sequences[2].count++] = result->samples[3].token;
    sequences[4].computed = 21;
    sequences[4].table[0] = sequences[3].table[0];
    const struct step_copy copy = {.source_block = sequences[3].table[1], .destination_block = sequences[4].table[1]};

    for (uint32_t step = 0; step < DECODED; step++) {
        for (uint32_t s = 0; s < SEQUENCES; s++) { spans[s] = span_of(&sequences[s], 1); }
        result = run_recorded(world, (struct step_plan){.copy_count = step == 0, .copies = &copy, .span_count = SEQUENCES, .spans = spans}, record);
        assert_int_equal(result->sample_count, SEQUENCES);
        for (uint32_t s = 0; s < SEQUENCES; s++) { sequences[s].tokens[sequences[s].count++] = result->samples[s].token; }
    }
    for (uint32_t step = 0; step < 3; step++) { /* alone, all by the device */
        spans[0] = span_of(&sequences[1], 1);
        result = run_recorded(world, (struct step_plan){.span_count = 1, .spans = spans}, record);
        sequences[1].tokens[sequences[1].count++] = result->samples[0].token;
    }
}

/* Tokens are those of the oracle's engine and host sampler; log-probabilities as near as f32 logits are: 12 roundings of
 * 2^-24 for the square root of the terms that lead to a logit (2 layers of 48 to 80 wide: under 1,000), of magnitude under 100,
 * on both sides. */
static void tokens_are_those_of_the_oracle(void **state)
{
    (void)state;
    static struct record want, got;
    struct world oracle, device;
    world_open(false, &oracle);
    play(&oracle, &want);
    world_close(&oracle);
    world_open(true, &device);
    play(&device, &got);
    uint64_t launched, captured;
    cuda_backend_graph_counts(device.kernels, &launched, &captured);
    assert_true(captured >= 4); /* layers, and logits with sampling, of steps of 5 and of 1 */
    world_close(&device);
    assert_int_equal(want.token_count, 5 + SEQUENCES * DECODED + 3);
    assert_int_equal(got.token_count, want.token_count);
    for (uint32_t i = 0; i < want.token_count; i++) {
        if (got.tokens[i] != want.tokens[i]) { fail_msg("token %u is %u, the oracle's %u", i, got.tokens[i], want.tokens[i]); }
    }
    assert_int_equal(got.logprob_count, want.logprob_count);
    assert_true(want.logprob_count >= 12 + 1 + DECODED);
    const double limit = 2 * 12 * sqrt(1000.0) * 0x1p-24 * 100;
    for (uint32_t i = 0; i < want.logprob_count; i++) {
        assert_true(fabs((double)got.logprobs[i].logprob - (double)want.logprobs[i].logprob) <= limit);
        assert_int_equal(got.logprobs[i].rank, want.logprobs[i].rank);
    }
}

/* A decode step that the device samples waits for it once, and a settled one is two launches of graphs. */
static void a_decode_step_waits_once(void **state)
{
    (void)state;
    struct world world;
    world_open(true, &world);
    struct sequence sequence;
    sequence_init(&world, 1, 10, &sequence);
    const struct step_open open = {.slot = 1, .params = &sequence.params, .prompt_count = 10, .prompt = sequence.tokens};
    struct step_span span = span_of(&sequence, 10);
    for (uint32_t step = 0; step < 6; step++) {
        uint64_t launched_before, launched, captured;
        cuda_backend_graph_counts(world.kernels, &launched_before, &captured);
        const uint64_t waits = emulated_device_calls(world.driver, EMULATED_WAIT);
        const struct step_result *result = run(&world, (struct step_plan){.open_count = step == 0, .opens = &open, .span_count = 1, .spans = &span});
        assert_false(failed(result->status));
        cuda_backend_graph_counts(world.kernels, &launched, &captured);
        if (step > 2) {
            assert_int_equal(emulated_device_calls(world.driver, EMULATED_WAIT) - waits, 1);
            assert_int_equal(launched - launched_before, 2);
        }
        sequence.tokens[sequence.count++] = result->samples[0].token;
        span = span_of(&sequence, 1);
    }
    world_close(&world);
}

/* An engine that warmed up records nothing in its steps any more, and the pool is as it was. */
static void warm_steps_are_recorded(void **state)
{
    (void)state;
    struct world world;
    world_open_warm(true, true, &world);
    unsigned char *pool = malloc(world.pool_bytes);
    assert_true(emulated_device_peek(world.driver, world.pool, pool, world.pool_bytes));
    for (size_t i = 0; i < world.pool_bytes; i++) { assert_int_equal(pool[i], 0); } /* as the kernels handed it out */
    free(pool);
    uint64_t launched, warmed, captured;
    cuda_backend_graph_counts(world.kernels, &launched, &warmed);
    assert_int_equal(warmed, 2 * 4); /* layers and logits of 1, 2, 4 and 8 rows: 6 slots */
    struct sequence sequence;
    sequence_init(&world, 1, 10, &sequence);
    const struct step_open open = {.slot = 1, .params = &sequence.params, .prompt_count = 10, .prompt = sequence.tokens};
    struct step_span span = span_of(&sequence, 10);
    for (uint32_t step = 0; step < 3; step++) {
        const struct step_result *result = run(&world, (struct step_plan){.open_count = step == 0, .opens = &open, .span_count = 1, .spans = &span});
        assert_false(failed(result->status));
        sequence.tokens[sequence.count++] = result->samples[0].token;
        span = span_of(&sequence, 1);
    }
    cuda_backend_graph_counts(world.kernels, &launched, &captured);
    assert_int_equal(captured, warmed);
    world_close(&world);
}

/* A logit that is no number ends the request, not the node, and the next step runs. */
static void a_fault_is_the_request_s(void **state)
{
    (void)state;
    struct world world;
    world_open(true, &world);
    struct sequence sequence;
    sequence_init(&world, 0, 10, &sequence);
    const struct logit_bias bias = {.token = 4, .bias = NAN};
    struct sampling_params params = base_params();
    params.logit_bias = &bias;
    params.logit_bias_count = 1;
    struct step_open open = {.slot = 0, .params = &params, .prompt_count = 10, .prompt = sequence.tokens};
    struct step_span span = span_of(&sequence, 10);
    const struct step_result *result = run(&world, (struct step_plan){.open_count = 1, .opens = &open, .span_count = 1, .spans = &span});
    assert_int_equal(result->status.code, ST_INTERNAL);
    assert_int_equal(result->status.scope, SCOPE_REQUEST);
    params.logit_bias_count = 0;
    result = run(&world, (struct step_plan){.open_count = 1, .opens = &open, .span_count = 1, .spans = &span});
    assert_false(failed(result->status));
    assert_int_equal(result->sample_count, 1);
    world_close(&world);
}

/* A device that breaks in the middle of a step is the node's end, and says so. */
static void a_broken_device_is_the_node_s(void **state)
{
    (void)state;
    struct world world;
    world_open(true, &world);
    struct sequence sequence;
    sequence_init(&world, 0, 10, &sequence);
    const struct step_open open = {.slot = 0, .params = &sequence.params, .prompt_count = 10, .prompt = sequence.tokens};
    const struct step_span span = span_of(&sequence, 10);
    emulated_device_break(world.driver, 7);
    const struct step_result *result = run(&world, (struct step_plan){.open_count = 1, .opens = &open, .span_count = 1, .spans = &span});
    assert_int_equal(result->status.code, ST_INTERNAL);
    assert_int_equal(result->status.scope, SCOPE_NODE);
    world_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fault_is_the_request_s),
        cmocka_unit_test(a_broken_device_is_the_node_s),
        cmocka_unit_test(a_decode_step_waits_once),
        cmocka_unit_test(warm_steps_are_recorded),
        cmocka_unit_test(tokens_are_those_of_the_oracle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
