/* The forward pass on a device, which is emulated: golden models of every architecture and dtype against Hugging Face
 * transformers, and what a row's bits may depend on where results are deterministic. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "kernels/cuda/cuda_backend.h"
#include "model/json_field.h"
#include "model/safetensors.h"
#include "tests/cuda/device_emulated.h"
#include "tests/unit/model/forward_harness.h"

static const char *const models[] = {
    "llama_llama3_gqa_f32", "llama_linear_bias_tied_bf16", "llama_gelu_sharded_f16",
    "mistral_window_bf16",  "qwen2_window_sharded_f32",    "qwen3_f16",
    "qwen3_layers_bias_bf16", "gpt2_f32",                  "gpt2_unscaled_untied_f16",
};
#define MODEL_COUNT (sizeof models / sizeof models[0])
#define VOCAB_MAX 160u
#define PROMPT_MAX 64u

/* The dtype that a model's name ends in. */
static enum dtype dtype_of(const char *model)
{
    enum dtype dtype = DTYPE_F32;
    assert_true(dtype_parse(strrchr(model, '_') + 1, &dtype));
    return dtype;
}

static void device_open(const char *model, bool deterministic, enum dtype kv_dtype, uint64_t seed, struct harness *ret_harness)
{
    char directory[256];
    struct diag diag = {{0}};
    struct kernels *kernels = NULL;
    const struct kernels_config config = {.backend = "cuda", .threads = 1, .deterministic = deterministic, .activations = dtype_of(model)};
    status_t st = cuda_backend_create_on(emulated_device_create(&(struct emulated_options){.seed = seed}), &config, &kernels, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    snprintf(directory, sizeof directory, "tests/golden/models/%s", model);
    harness_open(directory, &(struct harness_options){.kv_dtype = kv_dtype, .kernels = kernels, .rows_max = 96, .block_count = 60}, ret_harness);
    assert_true(ret_harness->config->vocab_size <= VOCAB_MAX);
}

/* As forward_golden_test.c derives it for f32: N terms, each rounded by both sides. With activations of 16 bits a row is
 * rounded at 10 places of a layer (both norms, q, k and v, their rotation, the weights of attention and its result, gate and
 * up, their product) and once before the head, each by the dtype's unit roundoff; independent and centred, so the square root
 * counts. */
#define LAMBDA 6.0
static double tolerance(const struct model_config *config, enum dtype dtype, uint32_t positions, double magnitude)
{
    const double layer = 2.0 * config->hidden_size + config->head_dim + positions + (double)config->q_heads * config->head_dim + config->ffn_size;
    const double sums = 2.0 * LAMBDA * sqrt(config->layer_count * layer + config->hidden_size) * 0x1p-24 * magnitude;
    if (dtype == DTYPE_F32) { return sums; }
    return sums + LAMBDA * sqrt(10.0 * config->layer_count + 1.0) * (dtype == DTYPE_BF16 ? 0x1p-9 : 0x1p-12) * magnitude;
}

/* Logits of every position of the stored prompt, in one step and in chunks. */
static void logits_are_those_of_transformers(void **state)
{
    (void)state;
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        static float logits[PROMPT_MAX * VOCAB_MAX];
        char path[256], *data = NULL;
        size_t bytes;
        struct diag diag = {{0}};
        struct safetensors *file = NULL;
        snprintf(path, sizeof path, "tests/golden/models/%s/expected.safetensors", models[m]);
        assert_false(failed(json_read_file(path, 1 << 20, &diag, &data, &bytes)));
        assert_false(failed(safetensors_parse(path, (uint8_t *)data, bytes, &diag, &file)));
        const struct safetensors_tensor *stored = safetensors_find(file, "prompt");
        const uint32_t count = (uint32_t)stored->shape[0];
        const uint32_t *prompt = (const uint32_t *)(const void *)stored->data;
        const float *want = (const float *)(const void *)safetensors_find(file, "logits")->data;
        const float *magnitude = (const float *)(const void *)safetensors_find(file, "magnitude")->data;
        assert_true(count <= PROMPT_MAX);
        struct harness harness;
        struct sequence sequence;
        const enum dtype dtype = dtype_of(models[m]);
        device_open(models[m], m != 5, dtype, 3 + m, &harness); /* one fast: it tries out every product's algorithms */
        const uint32_t vocab = harness.config->vocab_size;
        double worst = 0;
        for (uint32_t chunk = count; chunk >= 7; chunk = chunk == count ? 7 : 0) {
            harness_poison(&harness);
            sequence_start(&harness, prompt, count, &sequence);
            for (uint32_t p = 0; p < count; p += chunk) {
                const uint32_t rows = count - p < chunk ? count - p : chunk;
                sequence_advance(&harness, &sequence, rows, FORWARD_WANT_ALL, logits + p * vocab);
            }
            for (uint32_t i = 0; i < count * vocab; i++) {
                const double limit = tolerance(harness.config, dtype, i / vocab + 1, (double)magnitude[i / vocab]);
                const double error = fabs((double)logits[i] - (double)want[i]);
                if (!(error <= limit)) {
                    fail_msg("%s, position %u, token %u: %.9g, transformers has %.9g; %.3g apart, %.3g allowed", models[m],
                             i / vocab, i % vocab, (double)logits[i], (double)want[i], error, limit);
                }
                worst = error / limit > worst ? error / limit : worst;
            }
        }
        printf("%s: worst error %.3f of the tolerance\n", models[m], worst);
        assert_true(worst > 1e-5); /* something was computed, elsewhere than there */
        harness_close(&harness);
        safetensors_close(file);
        free(data);
    }
}

enum { SEQUENCES = 5, STEPS = 4, LENGTH = 40 };

static void prompt_of(uint32_t which, uint32_t vocab, uint32_t *ret_tokens)
{
    for (uint32_t i = 0; i < LENGTH; i++) { ret_tokens[i] = (which * 7919 + i * 104729 + i * i * 31 + 11) % vocab; }
}

/* One decode step of the first `count` sequences together. */
static void decode_together(struct harness *harness, struct sequence *sequences, uint32_t count, float *ret_logits)
{
    struct forward_span spans[SEQUENCES];
    uint32_t wanted = 0;
    for (uint32_t s = 0; s < count; s++) {
        struct sequence *sequence = &sequences[s];
        spans[s] = (struct forward_span){.tokens = sequence->tokens + sequence->computed, .row_count = 1, .first_position = sequence->computed,
                                         .block_table = sequence->blocks, .want = FORWARD_WANT_LAST};
        sequence->computed++;
    }
    const struct forward_step step = {.spans = spans, .span_count = count, .kv_pool = harness->pool, .kv_block_count = harness->block_count};
    struct diag diag = {{0}};
    if (failed(forward_run(harness->forward, &step, &diag, &wanted))) { fail_msg("%s", diag.text); }
    assert_int_equal(wanted, count);
    assert_true(forward_is_recorded(harness->forward));
    harness_logits(harness, wanted, ret_logits);
}

/* Where results are deterministic a row has the same bits in a prompt of any chunks, alone or beside others, in a decode
 * step of any size, filled up or not. */
static void bits_do_not_depend_on_company(void **state)
{
    (void)state;
    static const char *const some[] = {"llama_llama3_gqa_f32", "qwen3_layers_bias_bf16", "gpt2_unscaled_untied_f16"};
    for (size_t m = 0; m < sizeof some / sizeof some[0]; m++) {
        struct harness harness;
        static float alone[SEQUENCES][STEPS][VOCAB_MAX], got[SEQUENCES * VOCAB_MAX];
        static struct sequence sequences[SEQUENCES];
        uint32_t tokens[LENGTH];
        device_open(some[m], true, dtype_of(some[m]), 11 + m, &harness);
        const uint32_t vocab = harness.config->vocab_size, prompt = LENGTH - STEPS;
        for (uint32_t s = 0; s < SEQUENCES; s++) { /* whole prompts, one sequence at a time; the last rows as chunks of one */
            harness_poison(&harness);
            prompt_of(s, vocab, tokens);
            sequence_start(&harness, tokens, LENGTH, &sequences[s]);
            sequence_advance(&harness, &sequences[s], prompt, FORWARD_WANT_NONE, NULL);
            sequence_advance(&harness, &sequences[s], STEPS, FORWARD_WANT_ALL, got);
            for (uint32_t i = 0; i < STEPS; i++) { memcpy(alone[s][i], got + i * vocab, vocab * sizeof *got); }
        }
        for (uint32_t together = 1; together <= SEQUENCES; together += 2) { /* 1, 3 of 4, 5 of 8 */
            harness_poison(&harness);
            for (uint32_t s = 0; s < together; s++) {
                prompt_of(s, vocab, tokens);
                sequence_start(&harness, tokens, LENGTH, &sequences[s]);
                const uint32_t chunk = 5 + 6 * s;
                while (sequences[s].computed < prompt) {
                    const uint32_t left = prompt - sequences[s].computed;
                    sequence_advance(&harness, &sequences[s], left < chunk ? left : chunk, FORWARD_WANT_NONE, NULL);
                }
                /* Blocks of the rows to come. */
                const uint32_t kept = sequences[s].computed;
                sequence_advance(&harness, &sequences[s], STEPS, FORWARD_WANT_NONE, NULL);
                sequences[s].computed = kept;
            }
            for (uint32_t i = 0; i < STEPS; i++) {
                decode_together(&harness, sequences, together, got);
                for (uint32_t s = 0; s < together; s++) {
                    if (memcmp(got + s * vocab, alone[s][i], vocab * sizeof *got) != 0) {
                        fail_msg("%s: sequence %u of %u, token %u: other bits than alone", some[m], s, together, i);
                    }
                }
            }
        }
        harness_close(&harness);
    }
}

/* A size of decode steps runs plainly first, is captured when it comes again, and launched from then on; steps that look
 * otherwise are not. */
static void a_size_is_captured_once(void **state)
{
    (void)state;
    struct harness harness;
    static struct sequence sequences[SEQUENCES];
    static float got[SEQUENCES * VOCAB_MAX];
    uint32_t tokens[LENGTH];
    device_open("llama_llama3_gqa_f32", true, DTYPE_F32, 5, &harness);
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        prompt_of(s, harness.config->vocab_size, tokens);
        sequence_start(&harness, tokens, LENGTH, &sequences[s]);
        sequence_advance(&harness, &sequences[s], LENGTH, FORWARD_WANT_LAST, got);
        assert_false(forward_is_recorded(harness.forward));
        sequences[s].computed = LENGTH - 1;
    }
    uint64_t launched, captured;
    cuda_backend_graph_counts(harness.kernels, &launched, &captured);
    assert_int_equal(captured, 0);
    static const struct { uint32_t count; uint64_t captured, launched; } steps[] = {
        {3, 0, 0}, {4, 1, 1}, {3, 1, 2}, {1, 1, 2}, {1, 2, 3}, {5, 2, 3}, {5, 3, 4}, {4, 3, 5}, {1, 3, 6}};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        decode_together(&harness, sequences, steps[i].count, got);
        cuda_backend_graph_counts(harness.kernels, &launched, &captured);
        assert_int_equal(captured, steps[i].captured);
        assert_int_equal(launched, steps[i].launched);
        for (uint32_t s = 0; s < steps[i].count; s++) { sequences[s].computed = LENGTH - 1; }
    }
    harness_close(&harness);
}

struct mark_log {
    struct harness *harness;
    const struct sequence *sequence;
    uint32_t calls;
    uint64_t last;
    uint8_t *slices; /* [layer] of the first block */
};

static void log_layer(uint32_t layer, uint64_t mark, void *user)
{
    struct mark_log *log = user;
    const struct kv_layout *layout = &log->harness->layout;
    const size_t slice = kv_layout_slice_bytes(layout);
    assert_int_equal(layer, log->calls++);
    assert_true(mark > 0 && mark >= log->last);
    log->last = mark;
    assert_false(failed(kernels_wait(log->harness->kernels, mark)));
    kernels_download(log->harness->kernels, log->slices + layer * slice,
                     log->harness->pool + kv_layout_slice_offset(layout, log->sequence->blocks[0], layer), slice);
    assert_false(failed(kernels_sync(log->harness->kernels)));
}

/* Behind a layer's mark its slices are what they are at the end, in a prompt and in a recorded step. */
static void a_mark_says_that_a_layer_is_written(void **state)
{
    (void)state;
    for (uint32_t rows = 1; rows <= 16; rows += 15) {
        struct harness harness;
        static struct sequence sequence;
        uint32_t tokens[LENGTH];
        device_open("llama_linear_bias_tied_bf16", true, DTYPE_BF16, 9, &harness);
        prompt_of(1, harness.config->vocab_size, tokens);
        sequence_start(&harness, tokens, LENGTH, &sequence);
        sequence.blocks[0] = 7;
        const size_t bytes = kv_layout_block_bytes(&harness.layout);
        struct mark_log log = {.harness = &harness, .sequence = &sequence, .slices = malloc(bytes)};
        uint8_t *end = malloc(bytes);
        const struct forward_span span = {.tokens = tokens, .row_count = rows, .block_table = sequence.blocks, .want = FORWARD_WANT_LAST};
        const struct forward_step step = {.spans = &span, .span_count = 1, .kv_pool = harness.pool, .kv_block_count = harness.block_count,
                                          .layer_done = log_layer, .layer_done_user = &log};
        assert_false(failed(forward_run(harness.forward, &step, NULL, NULL)));
        assert_int_equal(forward_is_recorded(harness.forward), rows == 1);
        assert_int_equal(log.calls, harness.config->layer_count);
        kernels_download(harness.kernels, end, harness.pool + 7 * bytes, bytes);
        assert_false(failed(kernels_sync(harness.kernels)));
        assert_memory_equal(log.slices, end, bytes);
        free(log.slices);
        free(end);
        harness_close(&harness);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_size_is_captured_once),
        cmocka_unit_test(a_mark_says_that_a_layer_is_written),
        cmocka_unit_test(bits_do_not_depend_on_company),
        cmocka_unit_test(logits_are_those_of_transformers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
