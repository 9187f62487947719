/* A context of 8,192 tokens, many segments of attention long: however it is cut and whoever computes it, the same bits.
 * (bench/figures takes the same to 128k tokens.) */
#include "tests/unit/model/forward_harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define TOKENS 8192u
#define DECODED 12u /* of them, one by one at the end */
#define CHUNK_MAX 1000u
#define VOCAB 256u
#define BLOCKS (TOKENS / 16)

/* 4 query heads over 2 kv heads of 16, 2 layers: enough to go through every part, small enough for a test. */
static const char *small_model(void)
{
    static char directory[512];
    const char *where = getenv("TEST_TMPDIR");
    snprintf(directory, sizeof directory, "%s/long", where ? where : "/tmp");
    (void)mkdir(directory, 0700);
    char path[600];
    snprintf(path, sizeof path, "%s/config.json", directory);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\","
            " \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
            " \"num_key_value_heads\": 2, \"head_dim\": 16, \"vocab_size\": %u, \"max_position_embeddings\": 131072,"
            " \"rms_norm_eps\": 1e-5, \"rope_theta\": 500000.0, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}\n",
            VOCAB);
    assert_int_equal(fclose(file), 0);
    return directory;
}

/* Logits of every row: the prompt in chunks of `chunk`, then DECODED rows one by one. Returns owned [TOKENS][VOCAB]. */
static float *run_long(enum dtype kv_dtype, uint32_t threads, uint32_t chunk)
{
    struct harness harness;
    struct diag diag = {{0}};
    harness_open(small_model(), &(struct harness_options){.isa = "auto", .threads = threads, .kv_dtype = kv_dtype,
                                                          .load = MODEL_LOAD_DUMMY, .rows_max = CHUNK_MAX, .block_count = BLOCKS}, &harness);
    static uint32_t tokens[TOKENS], table[BLOCKS];
    uint64_t random = 9;
    for (uint32_t i = 0; i < TOKENS; i++) {
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        tokens[i] = (uint32_t)(random >> 40) % VOCAB;
    }
    for (uint32_t i = 0; i < BLOCKS; i++) { table[i] = (i * 77u + threads) % BLOCKS; } /* 77 is odd: each block once */
    float *logits = malloc((size_t)TOKENS * VOCAB * sizeof *logits);
    float *chunk_logits = aligned_alloc(64, (size_t)CHUNK_MAX * VOCAB * sizeof *logits);
    assert_non_null(logits);
    assert_non_null(chunk_logits);
    for (uint32_t at = 0, rows; at < TOKENS; at += rows) {
        uint32_t left = at < TOKENS - DECODED ? TOKENS - DECODED - at : 1;
        rows = left < chunk ? left : chunk;
        struct forward_span span = {.tokens = tokens + at, .row_count = rows, .first_position = at, .block_table = table,
                                    .want = FORWARD_WANT_ALL};
        struct forward_step step = {.spans = &span, .span_count = 1, .kv_pool = harness.pool, .kv_block_count = harness.block_count};
        status_t st = forward_run(harness.forward, &step, &diag, NULL);
        if (!failed(st)) { st = forward_logits(harness.forward, 0, rows, &diag, chunk_logits); }
        if (failed(st)) { fail_msg("%s", diag.text); }
        memcpy(logits + (size_t)at * VOCAB, chunk_logits, (size_t)rows * VOCAB * sizeof *logits);
    }
    free(chunk_logits);
    harness_close(&harness);
    return logits;
}

/* All 8,192 rows: one thread in chunks of 1,000 that end anywhere, against two threads, which share out the
 * segments of the decoded rows, in chunks of 512; for a K and V of bf16 and of int8. */
static void cuts_and_threads_do_not_show(void **state)
{
    (void)state;
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_INT8};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        float *a = run_long(dtypes[i], 1, CHUNK_MAX), *b = run_long(dtypes[i], 2, 512);
        for (uint32_t row = 0; row < TOKENS; row++) {
            if (memcmp(a + (size_t)row * VOCAB, b + (size_t)row * VOCAB, VOCAB * sizeof *a) != 0) {
                fail_msg("kv %s: the logits of row %u differ", dtype_name(dtypes[i]), row);
            }
        }
        assert_memory_not_equal(a, a + VOCAB, VOCAB * sizeof *a);
        free(a);
        free(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(cuts_and_threads_do_not_show)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
