/* The token loop does not call malloc. The linker sends every allocation of this program through here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/unit/heap/counting_heap.h"
#include "tests/unit/model/forward_harness.h"

static void steps_allocate_nothing(const char *what, const char *directory, const struct harness_options *options,
                                   uint32_t prompt, uint32_t chunk, uint32_t decoded, uint32_t rounds)
{
    static float logits[256];
    static struct sequence sequence;
    static uint32_t tokens[HARNESS_TOKENS_MAX] = {3};
    struct harness harness;
    harness_open(directory, options, &harness);
    const uint64_t opened = heap_allocations();
    assert_true(opened > 0); /* the counter counts */
    for (uint32_t round = 0; round < rounds; round++) {
        harness.blocks_used = 0;
        sequence_start(&harness, tokens, prompt, &sequence);
        sequence_prefill(&harness, &sequence, chunk, logits);
        for (uint32_t i = 0; i < decoded; i++) {
            sequence.tokens[sequence.count++] = argmax(logits, harness.config->vocab_size);
            sequence_advance(&harness, &sequence, 1, FORWARD_WANT_LAST, logits);
        }
    }
    const uint64_t now = heap_allocations();
    if (now != opened) { fail_msg("%s: %llu allocations", what, (unsigned long long)(now - opened)); }
    harness_close(&harness);
}

/* A prompt in chunks and a thousand decode steps, of models with every part, allocate nothing. */
static void a_thousand_steps_allocate_nothing(void **state)
{
    (void)state;
    static const char *const models[] = {"tests/golden/models/qwen3_layers_bias_bf16", "tests/golden/models/gpt2_f32"};
    for (size_t m = 0; m < 2; m++) {
        const struct harness_options options = {.isa = "auto", .threads = 2, .kv_dtype = DTYPE_F32};
        steps_allocate_nothing(models[m], models[m], &options, 40, 16, 40, 25);
    }
}

/* Nor with any format of weights and of KV, rounded activations or a window. The two kv heads leave the second thread idle, so
 * that from token 513 on, the second segment of attention, a decoded row's context is shared out and joined. */
static void no_option_makes_them_allocate(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        enum model_weight_format weights;
        enum kernels_compute compute;
        enum dtype kv;
        uint32_t window;
    } rows[] = {
        {"int8 weights", MODEL_WEIGHTS_INT8, KERNELS_COMPUTE_F32, DTYPE_F32, 0},
        {"int4 weights", MODEL_WEIGHTS_INT4, KERNELS_COMPUTE_F32, DTYPE_F32, 0},
        {"bf16 compute", MODEL_WEIGHTS_AUTO, KERNELS_COMPUTE_BF16, DTYPE_BF16, 0},
        {"int8 KV", MODEL_WEIGHTS_AUTO, KERNELS_COMPUTE_F32, DTYPE_INT8, 0},
        {"fp8 KV", MODEL_WEIGHTS_AUTO, KERNELS_COMPUTE_F32, DTYPE_FP8_E4M3, 0},
        {"a window", MODEL_WEIGHTS_AUTO, KERNELS_COMPUTE_F32, DTYPE_F32, 100},
        {"all of them", MODEL_WEIGHTS_INT4, KERNELS_COMPUTE_BF16, DTYPE_INT8, 100},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct harness_options options = {.isa = "auto", .threads = 2, .kv_dtype = rows[i].kv, .load = MODEL_LOAD_DUMMY,
                                                .weights = rows[i].weights, .compute = rows[i].compute};
        const struct harness_dummy shape = {.layers = 2, .q_heads = 4, .kv_heads = 2, .vocab = 256, .window = rows[i].window};
        steps_allocate_nothing(rows[i].what, harness_dummy_model(&shape), &options, 490, 100, 30, 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thousand_steps_allocate_nothing),
        cmocka_unit_test(no_option_makes_them_allocate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
