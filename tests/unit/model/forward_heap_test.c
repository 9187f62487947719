/* The token loop does not call malloc. The linker sends every allocation of this program through here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/unit/heap/counting_heap.h"
#include "tests/unit/model/forward_harness.h"

/* A prompt in chunks and a thousand decode steps allocate nothing. */
static void a_thousand_steps_allocate_nothing(void **state)
{
    (void)state;
    static const char *const models[] = {"tests/golden/models/qwen3_layers_bias_bf16", "tests/golden/models/gpt2_f32"};
    for (size_t m = 0; m < 2; m++) {
        static float logits[256];
        struct harness harness;
        uint32_t tokens[40] = {3};
        harness_open(models[m], &(struct harness_options){.isa = "auto", .threads = 2, .kv_dtype = DTYPE_F32}, &harness);
        uint64_t opened = heap_allocations();
        assert_true(opened > 0); /* the counter counts */
        assert_true(opened > 0); /* the counter counts */
        for (int round = 0; round < 25; round++) {
            struct sequence sequence;
            harness.blocks_used = 0;
            sequence_start(&harness, tokens, 40, &sequence);
            sequence_prefill(&harness, &sequence, 16, logits);
            for (int i = 0; i < 40; i++) {
                sequence.tokens[sequence.count++] = argmax(logits, harness.config->vocab_size);
                sequence_advance(&harness, &sequence, 1, FORWARD_WANT_LAST, logits);
            }
        }
        assert_int_equal(heap_allocations(), opened);
        harness_close(&harness);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_thousand_steps_allocate_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
