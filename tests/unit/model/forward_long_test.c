/* A long context, many segments of attention: however it is cut and whoever computes it, the same bits. 8,192 tokens
 * always; 131,072 with the argument "128k", which //tests/unit/model:forward_128k_test gives, by hand: it takes a
 * minute. */
#include "tests/unit/model/forward_harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TOKENS_MAX 131072u
#define DECODED 12u /* of them, one by one at the end */
#define CHUNK_MAX 1000u

struct long_context {
    struct harness_dummy shape;
    uint32_t tokens; /* 16 times a power of two */
};

/* Logits of every row: the prompt in chunks of `chunk`, then DECODED rows one by one. Returns owned [tokens][vocab]. */
static float *run_long(const struct long_context *context, enum dtype kv_dtype, uint32_t threads, uint32_t chunk)
{
    struct harness harness;
    struct diag diag = {{0}};
    const uint32_t count = context->tokens, vocab = context->shape.vocab, block_count = count / 16;
    harness_open(harness_dummy_model(&context->shape),
                 &(struct harness_options){.isa = "auto", .threads = threads, .kv_dtype = kv_dtype, .load = MODEL_LOAD_DUMMY,
                                           .rows_max = CHUNK_MAX, .block_count = block_count}, &harness);
    static uint32_t tokens[TOKENS_MAX], table[TOKENS_MAX / 16];
    uint64_t random = 9;
    for (uint32_t i = 0; i < count; i++) {
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        tokens[i] = (uint32_t)(random >> 40) % vocab;
    }
    for (uint32_t i = 0; i < block_count; i++) { table[i] = (i * 77u + threads) % block_count; } /* 77 is odd: each block once */
    float *logits = malloc((size_t)count * vocab * sizeof *logits);
    float *chunk_logits = aligned_alloc(64, (size_t)CHUNK_MAX * vocab * sizeof *logits);
    assert_non_null(logits);
    assert_non_null(chunk_logits);
    for (uint32_t at = 0, rows; at < count; at += rows) {
        uint32_t left = at < count - DECODED ? count - DECODED - at : 1;
        rows = left < chunk ? left : chunk;
        struct forward_span span = {.tokens = tokens + at, .row_count = rows, .first_position = at, .block_table = table,
                                    .want = FORWARD_WANT_ALL};
        struct forward_step step = {.spans = &span, .span_count = 1, .kv_pool = harness.pool, .kv_block_count = harness.block_count};
        status_t st = forward_run(harness.forward, &step, &diag, NULL);
        if (!failed(st)) { st = forward_logits(harness.forward, 0, rows, &diag, chunk_logits); }
        if (failed(st)) { fail_msg("%s", diag.text); }
        memcpy(logits + (size_t)at * vocab, chunk_logits, (size_t)rows * vocab * sizeof *logits);
    }
    free(chunk_logits);
    harness_close(&harness);
    return logits;
}

/* One thread in chunks of 1,000 that end anywhere, against two threads, which share out the segments of the
 * decoded rows, in chunks of 512: every row. */
static void check_cuts_and_threads(const struct long_context *context, enum dtype kv_dtype)
{
    const uint32_t vocab = context->shape.vocab;
    float *a = run_long(context, kv_dtype, 1, CHUNK_MAX), *b = run_long(context, kv_dtype, 2, 512);
    for (uint32_t row = 0; row < context->tokens; row++) {
        if (memcmp(a + (size_t)row * vocab, b + (size_t)row * vocab, vocab * sizeof *a) != 0) {
            fail_msg("kv %s: the logits of row %u differ", dtype_name(kv_dtype), row);
        }
    }
    assert_memory_not_equal(a, a + vocab, vocab * sizeof *a);
    free(a);
    free(b);
}

/* 4 query heads over 2 kv heads, 2 layers: through every part; for a K and V of bf16 and of int8. */
static void cuts_and_threads_do_not_show(void **state)
{
    (void)state;
    const struct long_context context = {.shape = {.layers = 2, .q_heads = 4, .kv_heads = 2, .vocab = 256}, .tokens = 8192};
    check_cuts_and_threads(&context, DTYPE_BF16);
    check_cuts_and_threads(&context, DTYPE_INT8);
}

/* The same to the end of a context of 128k tokens: 256 segments. */
static void nor_at_128k(void **state)
{
    (void)state;
    const struct long_context context = {.shape = {.layers = 1, .q_heads = 1, .kv_heads = 1, .vocab = 64}, .tokens = TOKENS_MAX};
    check_cuts_and_threads(&context, DTYPE_BF16);
    check_cuts_and_threads(&context, DTYPE_INT8);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(cuts_and_threads_do_not_show)};
    const struct CMUnitTest at_128k[] = {cmocka_unit_test(nor_at_128k)};
    if (argc > 1 && strcmp(argv[1], "128k") == 0) { return cmocka_run_group_tests(at_128k, NULL, NULL); }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
