/* Claims on step_rows: what a step says row by row, which rows go on to the end, and what fills a decode step up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/step_rows.h"

static struct kernels *kernels;

static int open_kernels(void **state)
{
    (void)state;
    return failed(kernels_create(&(struct kernels_config){.threads = 1}, &kernels, NULL));
}

static int close_kernels(void **state)
{
    (void)state;
    kernels_destroy(kernels);
    return 0;
}

static const struct step_rows_limits limits = {.rows_max = 12, .spans_max = 9, .context_tokens = 100, .vocab_size = 50, .block_tokens = 16};
static const uint32_t table_a[] = {7, 3, 5}, table_b[] = {1, 2};
static const uint32_t tokens[] = {10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22};

static struct step_rows rows_open(void)
{
    struct step_rows rows;
    assert_false(failed(step_rows_init(&rows, kernels, &limits, NULL)));
    return rows;
}

/* A step over the limits or with foreign numbers is refused, and says which. */
static void bad_steps_are_refused(void **state)
{
    (void)state;
    struct step_rows rows = rows_open();
    const struct {
        struct forward_span span;
        enum status_code code;
        const char *words;
    } cases[] = {
        {{.tokens = tokens, .row_count = 0, .block_table = table_a}, ST_INVALID_ARGUMENT, "span 0"},
        {{.tokens = tokens, .row_count = 1, .first_position = 100, .block_table = table_a}, ST_INVALID_ARGUMENT, "1 to 100 tokens"},
        {{.tokens = (const uint32_t[]){50}, .row_count = 1, .block_table = table_a}, ST_INVALID_ARGUMENT, "token 50"},
        {{.tokens = tokens, .row_count = 1, .block_table = (const uint32_t[]){8}}, ST_INVALID_ARGUMENT, "block 8"},
        {{.tokens = tokens, .row_count = 13, .block_table = table_a}, ST_RESOURCE_EXHAUSTED, "13 rows"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct diag diag = {{0}};
        struct forward_step step = {.spans = &cases[i].span, .span_count = 1, .kv_block_count = 8};
        status_t st = step_rows_set(&rows, &step, &diag);
        assert_int_equal(st.code, cases[i].code);
        assert_int_equal(st.scope, SCOPE_REQUEST);
        if (!strstr(diag.text, cases[i].words)) { fail_msg("\"%s\" does not say \"%s\"", diag.text, cases[i].words); }
        assert_int_equal(rows.rows, 0);
    }
    step_rows_fini(&rows);
}

/* Every row has its token, position and slot; kept rows know where they come from. */
static void rows_of_a_mixed_step(void **state)
{
    (void)state;
    struct step_rows rows = rows_open();
    const struct forward_span spans[] = {
        {.tokens = tokens, .row_count = 4, .first_position = 30, .block_table = table_a, .want = FORWARD_WANT_LAST},
        {.tokens = tokens + 4, .row_count = 2, .first_position = 0, .block_table = table_b, .want = FORWARD_WANT_NONE},
        {.tokens = tokens + 6, .row_count = 3, .first_position = 15, .block_table = table_b, .want = FORWARD_WANT_ALL},
    };
    struct forward_step step = {.spans = spans, .span_count = 3, .kv_block_count = 8};
    assert_false(failed(step_rows_set(&rows, &step, NULL)));
    assert_int_equal(rows.rows, 9);
    assert_int_equal(rows.kept_rows, 4);
    assert_int_equal(rows.sequence_count, 3);
    assert_int_equal(rows.row_count_max, 4);
    assert_int_equal(rows.context_max, 34);
    assert_false(rows.is_decode);
    static const uint32_t positions[] = {30, 31, 32, 33, 0, 1, 15, 16, 17};
    static const struct kernels_kv_slot slots[] = {{3, 14}, {3, 15}, {5, 0}, {5, 1}, {1, 0}, {1, 1}, {1, 15}, {2, 0}, {2, 1}};
    for (uint32_t r = 0; r < 9; r++) {
        assert_int_equal(rows.ids[r], 10 + r);
        assert_int_equal(rows.positions[r], positions[r]);
        assert_int_equal(rows.numbers[r], r);
        assert_memory_equal(&rows.slots[r], &slots[r], sizeof slots[r]);
    }
    static const uint32_t kept[] = {3, 6, 7, 8};
    for (uint32_t r = 0; r < 4; r++) {
        assert_int_equal(rows.kept_from[r], kept[r]);
        assert_int_equal(rows.kept_positions[r], positions[kept[r]]);
    }
    static const struct { uint32_t first, count, position; } all[] = {{0, 4, 30}, {4, 2, 0}, {6, 3, 15}},
                                                              ends[] = {{0, 1, 33}, {1, 0, 2}, {1, 3, 15}};
    for (uint32_t s = 0; s < 3; s++) {
        assert_int_equal(rows.sequences[s].row_first, all[s].first);
        assert_int_equal(rows.sequences[s].row_count, all[s].count);
        assert_int_equal(rows.sequences[s].position_first, all[s].position);
        assert_ptr_equal(rows.sequences[s].blocks, spans[s].block_table); /* host memory is read where it lies */
        assert_int_equal(rows.kept_sequences[s].row_first, ends[s].first);
        assert_int_equal(rows.kept_sequences[s].row_count, ends[s].count);
        assert_int_equal(rows.kept_sequences[s].position_first, ends[s].position);
    }
    step_rows_fini(&rows);
}

/* Single rows that want logits are a decode step, whatever was there before; what fills it up is no sequence's. */
static void a_decode_step_is_filled_up(void **state)
{
    (void)state;
    struct step_rows rows = rows_open();
    const struct forward_span long_span = {.tokens = tokens, .row_count = 12, .first_position = 3, .block_table = table_a, .want = FORWARD_WANT_ALL};
    struct forward_step step = {.spans = &long_span, .span_count = 1, .kv_block_count = 8};
    assert_false(failed(step_rows_set(&rows, &step, NULL)));
    assert_false(rows.is_decode);
    struct forward_span spans[3];
    for (uint32_t s = 0; s < 3; s++) {
        spans[s] = (struct forward_span){.tokens = tokens + s, .row_count = 1, .first_position = 20 + s, .block_table = table_a, .want = FORWARD_WANT_LAST};
    }
    step = (struct forward_step){.spans = spans, .span_count = 3, .kv_block_count = 8};
    assert_false(failed(step_rows_set(&rows, &step, NULL)));
    assert_true(rows.is_decode);
    step_rows_fill_up(&rows, 8);
    assert_int_equal(rows.rows, 8);
    assert_int_equal(rows.kept_rows, 8);
    assert_int_equal(rows.sequence_count, 8);
    for (uint32_t r = 0; r < 8; r++) {
        assert_int_equal(rows.sequences[r].row_first, r);
        assert_int_equal(rows.sequences[r].row_count, r < 3);
        assert_int_equal(rows.ids[r], r < 3 ? 10 + r : 0);
        assert_int_equal(rows.positions[r], r < 3 ? 20 + r : 0);
        assert_true(r < 3 ? rows.slots[r].block == 3 : rows.slots[r].block == KERNELS_SLOT_NONE);
    }
    spans[1].want = FORWARD_WANT_NONE;
    assert_false(failed(step_rows_set(&rows, &step, NULL)));
    assert_false(rows.is_decode);
    step.span_count = 0;
    assert_false(failed(step_rows_set(&rows, &step, NULL)));
    assert_false(rows.is_decode);
    assert_int_equal(rows.rows, 0);
    step_rows_fini(&rows);
    step_rows_fini(&rows); /* copes with an empty one */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_steps_are_refused),
        cmocka_unit_test(rows_of_a_mixed_step),
        cmocka_unit_test(a_decode_step_is_filled_up),
    };
    return cmocka_run_group_tests(tests, open_kernels, close_kernels);
}
