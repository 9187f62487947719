/* The forward pass against an implementation that is not ours: Hugging Face transformers over twelve small
 * models (tests/golden/models), on every instruction set of this machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "model/json_field.h"
#include "model/safetensors.h"
#include "tests/unit/model/forward_harness.h"

static const char *const models[] = {
    "llama_llama3_gqa_f32", "llama_linear_bias_tied_bf16", "llama_gelu_sharded_f16",
    "mistral_window_bf16",  "mistral_no_window_tied_f32",  "qwen2_tied_bf16",
    "qwen2_window_sharded_f32", "qwen3_f16",               "qwen3_layers_bias_bf16",
    "gpt2_f32",             "gpt2_by_layer_no_prefix_bf16", "gpt2_unscaled_untied_f16",
};
#define MODEL_COUNT (sizeof models / sizeof models[0])
#define VOCAB_MAX 512u

/* What expected.safetensors holds; see make.py. */
struct golden {
    char *data;
    struct safetensors *file;
    uint32_t prompt_count, greedy_count;
    const uint32_t *prompt, *greedy;
    const float *logits, *magnitude, *margin, *greedy_magnitude;
};

/* The error a logit may have. Sum the terms of the longest chain of products that leads to it: N = layers *
 * (2 hidden + head_dim + positions + q_size + ffn) + hidden. Each term is rounded once, by at most the unit
 * roundoff u relative to the magnitude it is part of; rounding errors behave as independent and centred, so
 * their sum stays below LAMBDA * sqrt(N) * u * magnitude with probability 1 - 2 exp(-LAMBDA^2 / 2) (Higham
 * and Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019). Both sides round: twice that.
 * The magnitude of a logit is sum |h_j w_vj|, stored beside it; norms keep the relative error of h near the
 * relative error of what they norm. */
#define LAMBDA 6.0
static double tolerance(const struct model_config *config, uint32_t positions, double unit, double magnitude)
{
    double layer = 2.0 * config->hidden_size + config->head_dim + positions +
                   (double)config->q_heads * config->head_dim + config->ffn_size;
    return 2.0 * LAMBDA * sqrt(config->layer_count * layer + config->hidden_size) * unit * magnitude;
}

#define UNIT_F32 0x1p-24
/* Where a number is rounded to bf16 on its way into one of the 4 products of a layer (or into the cache, K
 * and V), the error does not grow with the terms of a sum but with the number of such roundings in a row. */
static double tolerance_bf16(const struct model_config *config, double magnitude)
{
    return LAMBDA * sqrt(4.0 * config->layer_count + 1.0) * 0x1p-9 * magnitude;
}

static const void *golden_tensor(const struct golden *golden, const char *name, uint32_t *ret_rows)
{
    const struct safetensors_tensor *tensor = safetensors_find(golden->file, name);
    assert_non_null(tensor);
    if (ret_rows) { *ret_rows = (uint32_t)tensor->shape[0]; }
    return tensor->data;
}

static void golden_open(const char *model, struct golden *ret_golden)
{
    char path[256];
    struct diag diag = {{0}};
    struct golden golden = {0};
    size_t bytes;
    snprintf(path, sizeof path, "tests/golden/models/%s/expected.safetensors", model);
    status_t st = json_read_file(path, 1 << 20, &diag, &golden.data, &bytes);
    if (!failed(st)) { st = safetensors_parse(path, (uint8_t *)golden.data, bytes, &diag, &golden.file); }
    if (failed(st)) { fail_msg("%s", diag.text); }
    golden.prompt = golden_tensor(&golden, "prompt", &golden.prompt_count);
    golden.greedy = golden_tensor(&golden, "greedy", &golden.greedy_count);
    golden.logits = golden_tensor(&golden, "logits", NULL);
    golden.magnitude = golden_tensor(&golden, "magnitude", NULL);
    golden.margin = golden_tensor(&golden, "margin", NULL);
    golden.greedy_magnitude = golden_tensor(&golden, "greedy_magnitude", NULL);
    assert_true(golden.greedy_count >= 32);
    *ret_golden = golden;
}

static void golden_close(struct golden *golden)
{
    safetensors_close(golden->file);
    free(golden->data);
}

struct outcome {
    double worst;      /* largest error relative to its tolerance */
    uint32_t compared; /* greedy tokens whose margin exceeds the tolerance */
};

static void compare_rows(const char *what, const float *ours, const float *theirs, uint32_t vocab, double limit,
                         struct outcome *outcome)
{
    for (uint32_t v = 0; v < vocab; v++) {
        double error = fabs((double)ours[v] - (double)theirs[v]);
        if (!(error <= limit)) {
            fail_msg("%s, id %u: logit %.9g, transformers has %.9g; %.3g apart, %.3g allowed", what, v,
                     (double)ours[v], (double)theirs[v], error, limit);
        }
        if (error / limit > outcome->worst) { outcome->worst = error / limit; }
    }
}

/* How much wider a value of K or V may be off than a rounding to bf16 leaves it, 2^-9 of it: fp8 up to 2^-4 of it; int8 up
 * to 2^-8 of a head's largest value, which is some four times its typical one. */
static double kv_roundings(enum dtype dtype) { return dtype == DTYPE_FP8_E4M3 ? 32.0 : dtype == DTYPE_INT8 ? 8.0 : 1.0; }

/* Logits of every prompt position, then greedy tokens one by one. */
static void run_golden(const char *model, const char *isa, uint32_t threads, enum dtype kv_dtype,
                       struct outcome *outcome)
{
    static float logits[64 * VOCAB_MAX];
    char directory[256], what[320];
    struct golden golden;
    struct harness harness;
    struct sequence sequence;
    bool is_exact_input = strcmp(isa, "avx512bf16") != 0 && kv_dtype == DTYPE_F32;
    golden_open(model, &golden);
    snprintf(directory, sizeof directory, "tests/golden/models/%s", model);
    harness_open(directory, &(struct harness_options){.isa = isa, .threads = threads, .kv_dtype = kv_dtype}, &harness);
    uint32_t vocab = harness.config->vocab_size;
    assert_true(vocab <= VOCAB_MAX);
    assert_true(golden.prompt_count <= 64);
    sequence_start(&harness, golden.prompt, golden.prompt_count, &sequence);
    sequence_advance(&harness, &sequence, golden.prompt_count, FORWARD_WANT_ALL, logits);
    for (uint32_t p = 0; p < golden.prompt_count; p++) {
        double limit = is_exact_input ? tolerance(harness.config, p + 1, UNIT_F32, golden.magnitude[p])
                                      : tolerance_bf16(harness.config, golden.magnitude[p]) * kv_roundings(kv_dtype);
        snprintf(what, sizeof what, "%s on %s, kv %s, position %u", model, isa, dtype_name(kv_dtype), p);
        compare_rows(what, logits + p * vocab, golden.logits + p * vocab, vocab, limit, outcome);
    }
    memcpy(logits, logits + (golden.prompt_count - 1) * vocab, vocab * sizeof *logits);
    for (uint32_t g = 0; g < golden.greedy_count; g++) {
        double limit = is_exact_input
                           ? tolerance(harness.config, sequence.count, UNIT_F32, golden.greedy_magnitude[g])
                           : tolerance_bf16(harness.config, golden.greedy_magnitude[g]) * kv_roundings(kv_dtype);
        uint32_t token = argmax(logits, vocab);
        /* Both logits may be off by the tolerance. */
        if (golden.margin[g] > 2.0 * limit) {
            if (token != golden.greedy[g]) {
                fail_msg("%s on %s: greedy token %u is %u, transformers has %u by a margin of %g", model, isa, g, token,
                         golden.greedy[g], (double)golden.margin[g]);
            }
            outcome->compared++;
        } else if (is_exact_input) {
            fail_msg("%s: margin %g of greedy token %u is within the tolerance: choose another seed", model,
                     (double)golden.margin[g], g);
        }
        sequence.tokens[sequence.count++] = golden.greedy[g];
        sequence_advance(&harness, &sequence, 1, FORWARD_WANT_LAST, logits);
    }
    harness_close(&harness);
    golden_close(&golden);
}

/* Calls back with each instruction set this machine has. */
static void for_each_isa(void (*body)(const char *isa))
{
    char names[256];
    snprintf(names, sizeof names, "%s", kernels_isa_available());
    char *rest = names;
    for (char *isa; (isa = strtok_r(rest, " ", &rest)) != NULL;) { body(isa); }
}

static void golden_on_isa(const char *isa)
{
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        for (uint32_t threads = 1; threads <= 2; threads++) {
            struct outcome outcome = {0};
            run_golden(models[i], isa, threads, DTYPE_F32, &outcome);
            if (threads == 1) {
                printf("%-30s %-10s worst error %.3f of its tolerance, %u greedy tokens equal\n", models[i], isa,
                       outcome.worst, outcome.compared);
            }
        }
    }
}

/* Logits of every prompt position and 36 greedy tokens are those of transformers, for every architecture,
 * instruction set and thread count. */
static void logits_and_tokens_equal_transformers(void **state)
{
    (void)state;
    for_each_isa(golden_on_isa);
}

/* With the cache in bf16 or f16 the logits move by no more than those roundings explain. */
static void half_precision_cache_is_close(void **state)
{
    (void)state;
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        struct outcome outcome = {0};
        run_golden(models[i], "auto", 1, DTYPE_BF16, &outcome);
        assert_true(outcome.worst > 1e-6); /* the cache was in bf16 indeed */
        printf("%-30s kv bf16 worst error %.3f of its tolerance\n", models[i], outcome.worst);
        run_golden(models[i], "auto", 1, DTYPE_F16, &outcome);
    }
}

/* With the cache in int8 or fp8 the logits move by no more than the wider roundings explain. */
static void quantized_cache_is_close(void **state)
{
    (void)state;
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        struct outcome outcome = {0};
        run_golden(models[i], "auto", 1, DTYPE_INT8, &outcome);
        assert_true(outcome.worst > 1e-6);
        printf("%-30s kv int8 worst error %.3f of its tolerance\n", models[i], outcome.worst);
        outcome = (struct outcome){0};
        run_golden(models[i], "auto", 1, DTYPE_FP8_E4M3, &outcome);
        assert_true(outcome.worst > 1e-6);
        printf("%-30s kv fp8 worst error %.3f of its tolerance\n", models[i], outcome.worst);
    }
}

/* ---- the trained models of the shared data -------------------------------------------------- */

static uint32_t u32_list(const json_t *list, uint32_t *ret_values, uint32_t max)
{
    uint32_t count = (uint32_t)json_array_size(list);
    assert_true(count <= max);
    for (uint32_t i = 0; i < count; i++) { ret_values[i] = (uint32_t)json_integer_value(json_array_get(list, i)); }
    return count;
}

/* The five best logits after `position`; the case's list has one entry per position. */
static void compare_top5(const json_t *entry, uint32_t position, const float *logits, double limit,
                         struct outcome *outcome)
{
    assert_int_equal(json_integer_value(json_array_get(entry, 0)), position);
    for (size_t k = 1; k < json_array_size(entry); k++) {
        const json_t *pair = json_array_get(entry, k);
        uint32_t id = (uint32_t)json_integer_value(json_array_get(pair, 0));
        double wanted = json_real_value(json_array_get(pair, 1));
        double error = fabs((double)logits[id] - wanted);
        if (!(error <= limit)) {
            fail_msg("position %u, id %u: logit %.9g, run.c has %.9g", position, id, (double)logits[id], wanted);
        }
        if (error / limit > outcome->worst) { outcome->worst = error / limit; }
    }
}

static void run_trained_case(struct harness *harness, const json_t *test, double limit, struct outcome *outcome)
{
    static float logits[HARNESS_TOKENS_MAX * VOCAB_MAX];
    uint32_t prompt[HARNESS_TOKENS_MAX], output[HARNESS_TOKENS_MAX];
    uint32_t prompt_count = u32_list(json_object_get(test, "prompt_ids"), prompt, HARNESS_TOKENS_MAX);
    uint32_t output_count = u32_list(json_object_get(test, "output_ids"), output, HARNESS_TOKENS_MAX);
    const json_t *top5 = json_object_get(test, "top5");
    uint32_t vocab = harness->config->vocab_size;
    struct sequence sequence;
    harness_poison(harness);
    sequence_start(harness, prompt, prompt_count, &sequence);
    sequence_advance(harness, &sequence, prompt_count, FORWARD_WANT_ALL, logits);
    for (uint32_t p = 0; p < prompt_count; p++) {
        compare_top5(json_array_get(top5, p), p, logits + p * vocab, limit, outcome);
    }
    memcpy(logits, logits + (prompt_count - 1) * vocab, vocab * sizeof *logits);
    for (uint32_t i = 0; i < output_count; i++) {
        uint32_t token = argmax(logits, vocab);
        if (token != output[i]) { fail_msg("output %u is %u, run.c has %u", i, token, output[i]); }
        outcome->compared++;
        sequence.tokens[sequence.count++] = token;
        if (sequence.count > json_array_size(top5)) { return; } /* the last token was never fed back */
        sequence_advance(harness, &sequence, 1, FORWARD_WANT_LAST, logits);
        compare_top5(json_array_get(top5, sequence.count - 1), sequence.count - 1, logits, limit, outcome);
    }
    if (strcmp(json_string_value(json_object_get(test, "stop")), "bos") == 0) {
        assert_true(model_config_token_is_eos(harness->config, argmax(logits, vocab)));
    }
}

static const char *trained_shared;

static void trained_on_isa(const char *isa)
{
    static const char *const pairs[][2] = {{"stories260k", "stories260k"}, {"stories260k-bf16-sharded", "stories260k-bf16"}};
    if (strcmp(isa, "avx512bf16") == 0) { return; } /* rounds its inputs: other tokens at a margin of 0.0009 */
    for (size_t i = 0; i < 2; i++) {
        char directory[512], path[512];
        struct diag diag = {{0}};
        char *text;
        size_t bytes;
        json_t *expected;
        snprintf(directory, sizeof directory, "%s/models/%s", trained_shared, pairs[i][0]);
        snprintf(path, sizeof path, "%s/expected/greedy-%s.json", trained_shared, pairs[i][1]);
        assert_false(failed(json_read_file(path, 64 << 20, &diag, &text, &bytes)));
        assert_false(failed(json_parse_object(path, text, bytes, true, &diag, &expected)));
        struct harness harness;
        harness_open(directory, &(struct harness_options){.isa = isa, .threads = 1, .kv_dtype = DTYPE_F32}, &harness);
        struct outcome outcome = {0};
        /* The largest magnitude of a head product over these cases is 35.1 (transformers, same sums as in
         * make.py). The reference's own float32 and float64 runs differ by up to 3e-5. */
        double limit = tolerance(harness.config, harness.config->context_tokens, UNIT_F32, 35.1);
        size_t index;
        json_t *test;
        json_array_foreach(json_object_get(expected, "cases"), index, test) {
            /* The oracle in plain C is slow: the first cases have all there is to see. */
            if (strcmp(isa, "ref") == 0 && index >= 2) { break; }
            run_trained_case(&harness, test, limit, &outcome);
        }
        printf("%-30s %-10s worst error %.4f of its tolerance %.2g, %u tokens equal\n", pairs[i][0], isa,
               outcome.worst, limit, outcome.compared);
        assert_true(outcome.compared > 0);
        harness_close(&harness);
        json_decref(expected);
        free(text);
    }
}

/* The trained models give the tokens of the author's own program, and its logits. */
static void trained_models_equal_their_reference(void **state)
{
    (void)state;
    trained_shared = shared_data();
    if (!trained_shared) {
        print_message("skipped: no shared test data; set BATON_SHARED_DATA to its folder\n");
        skip();
    }
    for_each_isa(trained_on_isa);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_and_tokens_equal_transformers),
        cmocka_unit_test(half_precision_cache_is_close),
        cmocka_unit_test(quantized_cache_is_close),
        cmocka_unit_test(trained_models_equal_their_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
