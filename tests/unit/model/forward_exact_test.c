/* The bits of a row: alone or in a batch, whole or in chunks, with one thread or two, they are the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/model/forward_harness.h"

/* One of each kind: scaling, biases, windows of either sort, head norms, learned positions. */
static const char *const models[] = {
    "tests/golden/models/llama_llama3_gqa_f32",   "tests/golden/models/llama_linear_bias_tied_bf16",
    "tests/golden/models/mistral_window_bf16",    "tests/golden/models/qwen2_window_sharded_f32",
    "tests/golden/models/qwen3_layers_bias_bf16", "tests/golden/models/gpt2_unscaled_untied_f16",
};
#define MODEL_COUNT (sizeof models / sizeof models[0])
#define VOCAB_MAX 256u
#define PROMPT_MAX 80u

static uint32_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

static void random_prompt(uint64_t seed, uint32_t vocab, uint32_t count, uint32_t *ret_tokens)
{
    for (uint32_t i = 0; i < count; i++) { ret_tokens[i] = next_random(&seed) % vocab; }
}

/* K and V of a sequence's tokens in their order, so that two runs with other blocks can be compared. */
static uint8_t *sequence_kv(const struct harness *harness, const struct sequence *sequence, size_t *ret_bytes)
{
    const struct kv_layout *layout = &harness->layout;
    const size_t element = dtype_bytes(layout->dtype), scale = kv_layout_has_scales(layout) ? 2 : 0;
    size_t bytes = (size_t)layout->layer_count * 2 * layout->kv_heads * sequence->computed * (layout->head_dim * element + scale);
    uint8_t *all = malloc(bytes), *at = all;
    assert_non_null(all);
    for (uint32_t layer = 0; layer < layout->layer_count; layer++) {
        for (uint32_t p = 0; p < sequence->computed; p++) {
            const uint8_t *slice =
                harness->pool + kv_layout_slice_offset(layout, sequence->blocks[p / layout->block_tokens], layer);
            uint32_t slot = p % layout->block_tokens;
            for (uint32_t head = 0; head < layout->kv_heads; head++) {
                for (uint32_t d = 0; d < layout->head_dim; d++, at += 2 * element) {
                    memcpy(at, slice + kv_layout_k_offset(layout, head, slot, d), element);
                    memcpy(at + element, slice + kv_layout_v_offset(layout, head, slot, d), element);
                }
                if (scale != 0) {
                    memcpy(at, slice + kv_layout_scale_offset(layout, head, slot), 2);
                    memcpy(at + 2, slice + kv_layout_scale_offset(layout, head, slot) + 2 * KV_TILE_TOKENS, 2);
                    at += 4;
                }
            }
        }
    }
    assert_true(at == all + bytes);
    *ret_bytes = bytes;
    return all;
}

/* Logits after the prompt, in chunks of `chunk`, and its KV. */
static uint8_t *run_alone(struct harness *harness, const uint32_t *prompt, uint32_t count, uint32_t chunk,
                          float *ret_logits, size_t *ret_kv_bytes)
{
    struct sequence sequence;
    harness_poison(harness);
    sequence_start(harness, prompt, count, &sequence);
    sequence_prefill(harness, &sequence, chunk, ret_logits);
    return sequence_kv(harness, &sequence, ret_kv_bytes);
}

static void open_model(size_t index, const char *isa, uint32_t threads, enum dtype kv_dtype, struct harness *harness)
{
    harness_open(models[index], &(struct harness_options){.isa = isa, .threads = threads, .kv_dtype = kv_dtype},
                 harness);
    assert_true(harness->config->vocab_size <= VOCAB_MAX);
}

static void chunks_on_isa(const char *isa)
{
    static const uint32_t chunks[] = {1, 3, 16, 17, 64};
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        for (uint32_t threads = 1; threads <= 2; threads++) {
            struct harness harness;
            uint32_t prompt[PROMPT_MAX];
            static float whole[VOCAB_MAX], cut[VOCAB_MAX];
            size_t whole_bytes, cut_bytes;
            open_model(i, isa, threads, (enum dtype)((i + threads) % DTYPE_KV_COUNT), &harness);
            random_prompt(i, harness.config->vocab_size, 75, prompt);
            uint8_t *whole_kv = run_alone(&harness, prompt, 75, 75, whole, &whole_bytes);
            for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
                uint8_t *cut_kv = run_alone(&harness, prompt, 75, chunks[c], cut, &cut_bytes);
                assert_int_equal(whole_bytes, cut_bytes);
                assert_memory_equal(whole_kv, cut_kv, whole_bytes);
                assert_memory_equal(whole, cut, harness.config->vocab_size * sizeof(float));
                free(cut_kv);
            }
            free(whole_kv);
            harness_close(&harness);
        }
    }
}

static void for_each_isa(void (*body)(const char *isa))
{
    char names[256];
    snprintf(names, sizeof names, "%s", kernels_isa_available());
    char *rest = names;
    for (char *isa; (isa = strtok_r(rest, " ", &rest)) != NULL;) { body(isa); }
}

/* A prompt computed in chunks of any size leaves the same KV and logits, bit for bit, as in one step. */
static void chunks_do_not_show(void **state)
{
    (void)state;
    for_each_isa(chunks_on_isa);
}

/* One thread and two give the same bits. */
static void threads_do_not_show(void **state)
{
    (void)state;
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        uint32_t prompt[PROMPT_MAX];
        static float logits[2][VOCAB_MAX];
        uint8_t *kv[2];
        size_t bytes[2];
        for (uint32_t t = 0; t < 2; t++) {
            struct harness harness;
            open_model(i, "auto", t + 1, DTYPE_F32, &harness);
            random_prompt(i, harness.config->vocab_size, 60, prompt);
            memset(logits[t], 0, sizeof logits[t]);
            kv[t] = run_alone(&harness, prompt, 60, 60, logits[t], &bytes[t]);
            harness_close(&harness);
        }
        assert_int_equal(bytes[0], bytes[1]);
        assert_memory_equal(kv[0], kv[1], bytes[0]);
        assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
        free(kv[0]);
        free(kv[1]);
    }
}

#define BATCH 8u

/* Eight sequences in mixed steps: some in prefill chunks, some in decode, joining and leaving. */
static void run_batched(struct harness *harness, uint32_t prompts[BATCH][PROMPT_MAX], const uint32_t *counts,
                        uint64_t seed, struct sequence *sequences, float logits[BATCH][VOCAB_MAX])
{
    static float step_logits[BATCH * VOCAB_MAX];
    uint32_t vocab = harness->config->vocab_size;
    harness_poison(harness);
    for (uint32_t s = 0; s < BATCH; s++) { sequence_start(harness, prompts[s], counts[s], &sequences[s]); }
    for (;;) {
        struct forward_span spans[BATCH];
        uint32_t owners[BATCH], span_count = 0;
        for (uint32_t s = 0; s < BATCH; s++) {
            uint32_t left = counts[s] - sequences[s].computed;
            uint32_t rows = next_random(&seed) % 20;
            if (left == 0 || rows == 0) { continue; }
            if (rows > left) { rows = left; }
            uint32_t have = kv_layout_blocks_for(&harness->layout, sequences[s].computed);
            for (; have < kv_layout_blocks_for(&harness->layout, sequences[s].computed + rows); have++) {
                sequences[s].blocks[have] = harness->block_count - 1 - harness->blocks_used++;
            }
            spans[span_count] = (struct forward_span){.tokens = sequences[s].tokens + sequences[s].computed,
                                                      .row_count = rows,
                                                      .first_position = sequences[s].computed,
                                                      .block_table = sequences[s].blocks,
                                                      .want = rows == left ? FORWARD_WANT_LAST : FORWARD_WANT_NONE};
            owners[span_count++] = s;
        }
        struct forward_step step = {.spans = spans,
                                    .span_count = span_count,
                                    .kv_pool = harness->pool,
                                    .kv_block_count = harness->block_count};
        uint32_t wanted;
        assert_false(failed(forward_run(harness->forward, &step, NULL, &wanted)));
        /* The last first and one by one: the cut of the head does not show either. */
        for (uint32_t w = wanted; w-- > 0;) {
            assert_false(failed(forward_logits(harness->forward, w, 1, NULL, step_logits + w * vocab)));
        }
        uint32_t row = 0, unfinished = 0;
        for (uint32_t i = 0; i < span_count; i++) {
            sequences[owners[i]].computed += spans[i].row_count;
            if (spans[i].want == FORWARD_WANT_NONE) { continue; }
            memcpy(logits[owners[i]], step_logits + row++ * vocab, vocab * sizeof(float));
        }
        assert_int_equal(row, wanted);
        for (uint32_t s = 0; s < BATCH; s++) { unfinished += sequences[s].computed < counts[s]; }
        if (unfinished == 0) { return; }
    }
}

static void batches_on_isa(const char *isa)
{
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        struct harness harness;
        static uint32_t prompts[BATCH][PROMPT_MAX];
        static float batched[BATCH][VOCAB_MAX], alone[VOCAB_MAX];
        static struct sequence sequences[BATCH];
        uint32_t counts[BATCH];
        uint8_t *kv[BATCH];
        size_t bytes[BATCH];
        open_model(i, isa, 1 + i % 2, i % 3 ? DTYPE_F32 : DTYPE_F16, &harness);
        for (uint32_t s = 0; s < BATCH; s++) {
            counts[s] = 1 + s * 9;
            random_prompt(100 * i + s, harness.config->vocab_size, counts[s], prompts[s]);
        }
        run_batched(&harness, prompts, counts, i + 1, sequences, batched);
        for (uint32_t s = 0; s < BATCH; s++) { kv[s] = sequence_kv(&harness, &sequences[s], &bytes[s]); }
        for (uint32_t s = 0; s < BATCH; s++) {
            size_t alone_bytes;
            uint8_t *alone_kv = run_alone(&harness, prompts[s], counts[s], counts[s], alone, &alone_bytes);
            assert_int_equal(alone_bytes, bytes[s]);
            assert_memory_equal(alone_kv, kv[s], alone_bytes);
            assert_memory_equal(alone, batched[s], harness.config->vocab_size * sizeof(float));
            free(alone_kv);
            free(kv[s]);
        }
        harness_close(&harness);
    }
}

/* A sequence among seven others, in prefill and decode at once, has the bits it has alone. */
static void batches_do_not_show(void **state)
{
    (void)state;
    for_each_isa(batches_on_isa);
}

/* The logits of a row do not depend on which other rows of its step want theirs. */
static void wanting_all_rows_changes_none(void **state)
{
    (void)state;
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        struct harness harness;
        struct sequence sequence;
        uint32_t prompt[PROMPT_MAX];
        static float all[PROMPT_MAX * VOCAB_MAX], one[VOCAB_MAX];
        open_model(i, "auto", 2, DTYPE_F32, &harness);
        uint32_t vocab = harness.config->vocab_size;
        random_prompt(i, vocab, 40, prompt);
        sequence_start(&harness, prompt, 40, &sequence);
        sequence_advance(&harness, &sequence, 40, FORWARD_WANT_ALL, all);
        for (uint32_t p = 0; p < 40; p += 13) {
            free(run_alone(&harness, prompt, p + 1, p + 1, one, &(size_t){0}));
            assert_memory_equal(one, all + p * vocab, vocab * sizeof(float));
        }
        harness_close(&harness);
    }
}

struct layer_log {
    const struct harness *harness;
    const struct sequence *sequence;
    uint32_t calls;
    uint8_t *slices; /* [layer] of the first block */
};

static void log_layer(uint32_t layer, uint64_t mark, void *user)
{
    assert_int_equal(mark, 0); /* done already */
    struct layer_log *log = user;
    const struct kv_layout *layout = &log->harness->layout;
    assert_int_equal(layer, log->calls++);
    size_t slice = kv_layout_slice_bytes(layout);
    memcpy(log->slices + layer * slice,
           log->harness->pool + kv_layout_slice_offset(layout, log->sequence->blocks[0], layer), slice);
}

/* layer_done comes once a layer, in order, when that layer's KV is complete: what a push would read then is
 * what is there at the end. */
static void layer_done_sees_finished_slices(void **state)
{
    (void)state;
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        for (int want = FORWARD_WANT_NONE; want <= FORWARD_WANT_ALL; want++) {
            struct harness harness;
            struct sequence sequence;
            uint32_t prompt[16];
            open_model(i, "auto", 1, DTYPE_BF16, &harness);
            random_prompt(i, harness.config->vocab_size, 16, prompt);
            sequence_start(&harness, prompt, 16, &sequence);
            sequence.blocks[0] = 5;
            struct layer_log log = {.harness = &harness, .sequence = &sequence};
            log.slices = malloc(kv_layout_block_bytes(&harness.layout));
            assert_non_null(log.slices);
            struct forward_span span = {.tokens = prompt, .row_count = 16, .block_table = sequence.blocks,
                                        .want = (enum forward_want)want};
            struct forward_step step = {.spans = &span, .span_count = 1, .kv_pool = harness.pool,
                                        .kv_block_count = harness.block_count, .layer_done = log_layer,
                                        .layer_done_user = &log};
            assert_false(failed(forward_run(harness.forward, &step, NULL, NULL)));
            assert_int_equal(log.calls, harness.config->layer_count);
            assert_memory_equal(log.slices, harness.pool + kv_layout_slice_offset(&harness.layout, 5, 0),
                                kv_layout_block_bytes(&harness.layout));
            free(log.slices);
            harness_close(&harness);
        }
    }
}

/* With a window in every layer, blocks that lie wholly before it are not read: their entries may be stale. */
static void blocks_before_the_window_are_not_read(void **state)
{
    (void)state;
    struct harness harness;
    struct sequence sequence;
    uint32_t prompt[PROMPT_MAX];
    static float kept[VOCAB_MAX], dropped[VOCAB_MAX];
    open_model(2, "auto", 1, DTYPE_F32, &harness); /* mistral, window 7 */
    assert_int_equal(harness.config->sliding_window, 7);
    random_prompt(3, harness.config->vocab_size, 60, prompt);
    free(run_alone(&harness, prompt, 60, 10, kept, &(size_t){0}));
    harness_poison(&harness);
    sequence_start(&harness, prompt, 60, &sequence);
    sequence_advance(&harness, &sequence, 48, FORWARD_WANT_NONE, NULL);
    sequence.blocks[0] = sequence.blocks[1] = UINT32_MAX;
    sequence_advance(&harness, &sequence, 12, FORWARD_WANT_LAST, dropped);
    assert_memory_equal(kept, dropped, harness.config->vocab_size * sizeof(float));
    harness_close(&harness);
}

/* A step with a token, position or block that does not exist, or over the limits, changes nothing and says
 * what is wrong. */
static void a_bad_step_changes_nothing(void **state)
{
    (void)state;
    struct harness harness;
    struct diag diag;
    harness_open(models[0], &(struct harness_options){.isa = "auto", .threads = 1, .rows_max = 20}, &harness);
    uint32_t tokens[32] = {0}, blocks[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    uint32_t foreign[1] = {harness.block_count};
    uint32_t unknown[2] = {3, harness.config->vocab_size};
    struct layer_log log = {.harness = &harness};
    const struct {
        struct forward_span span;
        uint8_t code;
        const char *words;
    } cases[] = {
        {{.tokens = unknown, .row_count = 2, .block_table = blocks}, ST_INVALID_ARGUMENT, "token 97"},
        {{.tokens = tokens, .row_count = 0, .block_table = blocks}, ST_INVALID_ARGUMENT, "positions"},
        {{.tokens = tokens, .row_count = 2, .first_position = 127, .block_table = blocks}, ST_INVALID_ARGUMENT, "128 tokens"},
        {{.tokens = tokens, .row_count = 2, .first_position = UINT32_MAX, .block_table = blocks}, ST_INVALID_ARGUMENT, "128 tokens"},
        {{.tokens = tokens, .row_count = 1, .block_table = foreign}, ST_INVALID_ARGUMENT, "not in the pool"},
        {{.tokens = tokens, .row_count = 21, .block_table = blocks}, ST_RESOURCE_EXHAUSTED, "21 rows"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct forward_step step = {.spans = &cases[i].span, .span_count = 1, .kv_pool = harness.pool,
                                    .kv_block_count = harness.block_count, .layer_done = log_layer,
                                    .layer_done_user = &log};
        diag.text[0] = '\0';
        status_t st = forward_run(harness.forward, &step, &diag, NULL);
        assert_int_equal(st.code, cases[i].code);
        assert_int_equal(st.scope, SCOPE_REQUEST);
        if (!strstr(diag.text, cases[i].words)) { fail_msg("\"%s\" does not say \"%s\"", diag.text, cases[i].words); }
    }
    struct forward_span many[17];
    for (size_t i = 0; i < 17; i++) { many[i] = (struct forward_span){.tokens = tokens, .row_count = 1, .block_table = blocks}; }
    struct forward_step step = {.spans = many, .span_count = 17, .kv_pool = harness.pool,
                                .kv_block_count = harness.block_count};
    assert_int_equal(forward_run(harness.forward, &step, &diag, NULL).code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(log.calls, 0);
    for (size_t i = 0; i < harness.pool_bytes; i++) { assert_int_equal(harness.pool[i], 0xff); }
    static float logits[VOCAB_MAX];
    assert_int_equal(forward_logits(harness.forward, 0, 1, &diag, logits).code, ST_INVALID_ARGUMENT);
    harness_close(&harness);
}

/* A forward pass is refused where the pool is not this model's or a limit is zero. */
static void create_refuses_a_foreign_pool(void **state)
{
    (void)state;
    struct harness harness;
    struct diag diag;
    struct forward *forward = NULL;
    open_model(0, "auto", 1, DTYPE_F32, &harness);
    struct kv_layout layout = harness.layout;
    layout.head_dim /= 2;
    struct forward_limits limits = {.rows_max = 4, .spans_max = 4};
    assert_int_equal(forward_create(harness.model, harness.kernels, &layout, &limits, &diag, &forward).code,
                     ST_INVALID_ARGUMENT);
    limits.spans_max = 0;
    assert_int_equal(forward_create(harness.model, harness.kernels, &harness.layout, &limits, &diag, &forward).code,
                     ST_INVALID_ARGUMENT);
    assert_null(forward);
    forward_destroy(NULL);
    harness_close(&harness);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bad_step_changes_nothing),
        cmocka_unit_test(create_refuses_a_foreign_pool),
        cmocka_unit_test(chunks_do_not_show),
        cmocka_unit_test(threads_do_not_show),
        cmocka_unit_test(batches_do_not_show),
        cmocka_unit_test(wanting_all_rows_changes_none),
        cmocka_unit_test(layer_done_sees_finished_slices),
        cmocka_unit_test(blocks_before_the_window_are_not_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
