/* Claims on the weights of a device, filled here into the host memory of the oracle: every number is the one that the
 * CPU's model has, neighbours lie where one product can take them together, and the logits are the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "model/model_weights.h"
#include "model/weight_source.h"
#include "tests/unit/model/forward_harness.h"

static const char *const models[] = {"gpt2_f32", "gpt2_unscaled_untied_f16", "llama_gelu_sharded_f16", "llama_linear_bias_tied_bf16",
                                     "llama_llama3_gqa_f32", "qwen2_tied_bf16", "qwen3_layers_bias_bf16"};
#define MODEL_COUNT (sizeof models / sizeof models[0])

static const char *path_of(const char *name)
{
    static char path[300];
    snprintf(path, sizeof path, "tests/golden/models/%s", name);
    return path;
}

static struct kernels *oracle(void)
{
    struct kernels *kernels = NULL;
    assert_false(failed(kernels_create(&(struct kernels_config){.isa = "ref", .threads = 1}, &kernels, NULL)));
    return kernels;
}

static void assert_same_tensor(const struct model_tensor *want, const struct model_tensor *got, enum kernels_weight format)
{
    assert_int_equal(want->data != NULL, got->data != NULL);
    if (!want->data) { return; }
    assert_int_equal(want->rows, got->rows);
    assert_int_equal(want->cols, got->cols);
    if (want->matrix.data == NULL) {
        assert_int_equal(want->dtype, got->dtype);
        assert_memory_equal(want->data, got->data, (size_t)want->rows * want->cols * dtype_bytes(want->dtype));
        return;
    }
    assert_int_equal(got->matrix.order, KERNELS_ORDER_ROWS);
    assert_int_equal(got->matrix.format, format);
    assert_int_equal((uintptr_t)got->matrix.data % 16, 0);
    float *a = calloc(want->cols, sizeof *a), *b = calloc(want->cols, sizeof *b);
    for (uint32_t row = 0; row < want->rows; row++) {
        kernels_matrix_read(&want->matrix, row, 0, want->cols, a);
        kernels_matrix_read(&got->matrix, row, 0, want->cols, b);
        assert_memory_equal(a, b, want->cols * sizeof *a);
    }
    free(a);
    free(b);
}

static const void *end_of(const struct model_tensor *tensor)
{
    const size_t bytes = tensor->matrix.data ? kernels_matrix_bytes(&tensor->matrix) : (size_t)tensor->cols * dtype_bytes(tensor->dtype);
    return (const char *)tensor->data + bytes;
}

static void assert_neighbours(const struct model_tensor *first, const struct model_tensor *second)
{
    if (first->data && second->data) { assert_ptr_equal(end_of(first), second->data); }
}

static void compare_models(const struct model *want_model, const struct model *got_model, enum kernels_weight format)
{
    const struct model_weights *want = model_get_weights(want_model), *got = model_get_weights(got_model);
    assert_same_tensor(&want->embedding, &got->embedding, format);
    assert_same_tensor(&want->positions, &got->positions, format);
    assert_same_tensor(&want->final_norm, &got->final_norm, format);
    assert_same_tensor(&want->final_norm_bias, &got->final_norm_bias, format);
    assert_same_tensor(&want->head, &got->head, format);
    assert_int_equal(want->head.data == want->embedding.data, got->head.data == got->embedding.data);
    for (uint32_t i = 0; i < model_get_config(want_model)->layer_count; i++) {
        const struct model_layer *w = &want->layers[i], *g = &got->layers[i];
        for (size_t t = 0; t < sizeof *w / sizeof(struct model_tensor); t++) {
            assert_same_tensor((const struct model_tensor *)w + t, (const struct model_tensor *)g + t, format);
        }
        assert_neighbours(&g->q, &g->k);
        assert_neighbours(&g->k, &g->v);
        assert_neighbours(&g->gate, &g->up);
        assert_neighbours(&g->q_bias, &g->k_bias);
        assert_neighbours(&g->k_bias, &g->v_bias);
        assert_neighbours(&g->gate_bias, &g->up_bias);
    }
}

/* Of every architecture and dtype, as the files have them and as bf16, from one thread or many. */
static void numbers_are_those_of_the_cpu(void **state)
{
    (void)state;
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            struct diag diag = {{0}};
            struct model *want = NULL, *got = NULL;
            struct model_options options = {.weights = bf16 ? MODEL_WEIGHTS_BF16 : MODEL_WEIGHTS_AUTO};
            assert_false(failed(model_open(path_of(models[m]), &options, &diag, &want)));
            options.is_for_device = true;
            assert_false(failed(model_open(path_of(models[m]), &options, &diag, &got)));
            assert_memory_equal(model_fingerprint(want), model_fingerprint(got), MODEL_FINGERPRINT_BYTES);
            assert_int_equal(model_weight_dtype(want), model_weight_dtype(got)); /* known before there is data */
            assert_int_equal(model_suits_bf16(want), model_suits_bf16(got));
            const enum dtype dtype = bf16 ? DTYPE_BF16 : model_weight_dtype(want);
            assert_int_equal(model_activation_dtype(got), dtype);
            const uint64_t bytes = model_device_bytes(got);
            struct kernels *kernels = oracle();
            for (uint32_t threads = 1; threads <= 5; threads += 2) { /* and again, after a drop */
                if (threads > 1 && got) {
                    model_destroy(got);
                    assert_false(failed(model_open(path_of(models[m]), &options, &diag, &got)));
                }
                if (failed(model_to_device(got, kernels, threads, &diag))) { fail_msg("%s", diag.text); }
                assert_true(model_device_bytes(got) >= bytes);
                assert_true(model_device_bytes(got) < bytes + 256 * 500);
                compare_models(want, got, (enum kernels_weight)dtype);
                model_off_device(got);
                assert_null(model_get_weights(got)->head.data);
                model_off_device(got);
            }
            model_off_device(NULL);
            kernels_destroy(kernels);
            model_destroy(got);
            model_destroy(want);
        }
    }
}

/* The oracle's logits from rows are those from panels, and a forward pass is refused while the weights are still to come. */
static void logits_are_the_same_bits(void **state)
{
    (void)state;
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        struct harness harness;
        struct diag diag = {{0}};
        harness_open(path_of(models[m]), &(struct harness_options){.isa = "ref", .threads = 1, .kv_dtype = DTYPE_F32}, &harness);
        const uint32_t vocab = harness.config->vocab_size;
        uint32_t tokens[12];
        for (uint32_t i = 0; i < 12; i++) { tokens[i] = (i * 7919 + 5) % vocab; }
        float *want = calloc(vocab, sizeof *want), *got = calloc(vocab, sizeof *got);
        static struct sequence sequence;
        sequence_start(&harness, tokens, 12, &sequence);
        sequence_prefill(&harness, &sequence, 5, want);

        struct model *rows = NULL;
        assert_false(failed(model_open(path_of(models[m]), &(struct model_options){.is_for_device = true}, &diag, &rows)));
        forward_destroy(harness.forward);
        const struct forward_limits limits = {.rows_max = 16, .spans_max = 2};
        assert_int_equal(forward_create(rows, harness.kernels, &harness.layout, &limits, &diag, &harness.forward).code, ST_FAILED_PRECONDITION);
        assert_false(failed(model_to_device(rows, harness.kernels, 2, &diag)));
        assert_false(failed(forward_create(rows, harness.kernels, &harness.layout, &limits, &diag, &harness.forward)));
        harness_poison(&harness);
        sequence_start(&harness, tokens, 12, &sequence);
        sequence_prefill(&harness, &sequence, 5, got);
        assert_memory_equal(want, got, vocab * sizeof *want);
        model_off_device(rows);
        model_destroy(rows);
        harness_close(&harness);
        free(want);
        free(got);
    }
}

/* Weights of integers are refused, by the flag that asks for them. */
static void integers_are_refused(void **state)
{
    (void)state;
    static const struct { enum model_weight_format format; const char *words; } cases[] = {
        {MODEL_WEIGHTS_INT8, "--weights=int8"}, {MODEL_WEIGHTS_INT4, "--weights=int4"}};
    for (size_t i = 0; i < 2; i++) {
        struct diag diag = {{0}};
        struct model *model = NULL;
        const struct model_options options = {.weights = cases[i].format, .is_for_device = true};
        assert_int_equal(model_open(path_of("qwen2_tied_bf16"), &options, &diag, &model).code, ST_INVALID_ARGUMENT);
        assert_null(model);
        assert_non_null(strstr(diag.text, cases[i].words));
        assert_non_null(strstr(diag.text, "--weights=auto"));
    }
}

/* Any rows of any source are those of the whole: of a file, of one that is turned, and made up. */
static void rows_are_those_of_the_whole(void **state)
{
    (void)state;
    const uint64_t seed = 77;
    printf("seed %llu\n", (unsigned long long)seed);
    struct rng rng = rng_init(seed);
    for (int turn = 0; turn < 300; turn++) {
        const bool is_turned = turn % 2, is_made_up = turn % 3 == 0;
        const uint32_t n_out = 1 + (uint32_t)rng_below(&rng, 90), n_in = 1 + (uint32_t)rng_below(&rng, turn % 5 ? 90 : 2000);
        struct tensor_plan_entry entry = {.role = is_turned ? TENSOR_CONV1D : TENSOR_MATRIX, .rank = 2,
                                          .shape = {is_turned ? n_in : n_out, is_turned ? n_out : n_in}, .dest_count = 1};
        const enum dtype dtype = is_made_up ? DTYPE_BF16 : (enum dtype)rng_below(&rng, DTYPE_COUNT);
        const size_t element = dtype_bytes(dtype), bytes = (size_t)n_out * n_in * element;
        uint8_t *data = malloc(bytes);
        for (size_t i = 0; i < bytes; i++) { data[i] = (uint8_t)rng_next(&rng); }
        const struct safetensors_tensor tensor = {.data = data, .bytes = bytes};
        struct weight_source source = {.tensor = &tensor, .file_dtype = dtype, .dtype = dtype};
        if (is_made_up) { source = weight_source_made_up(&entry, 5, (uint32_t)turn); }
        const void *rows;
        void *owned;
        assert_false(failed(weight_source_rows(&entry, &source, NULL, &rows, &owned)));
        for (int i = 0; i < 5; i++) {
            const uint32_t first = (uint32_t)rng_below(&rng, n_out), count = 1 + (uint32_t)rng_below(&rng, n_out - first);
            uint8_t *part = malloc(count * n_in * element);
            weight_source_read(&entry, &source, first, count, part);
            assert_memory_equal(part, (const uint8_t *)rows + first * n_in * element, count * n_in * element);
            free(part);
        }
        free(owned);
        free(data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_are_refused),
        cmocka_unit_test(rows_are_those_of_the_whole),
        cmocka_unit_test(numbers_are_those_of_the_cpu),
        cmocka_unit_test(logits_are_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
