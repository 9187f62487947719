#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "sched/work_copy.h"

static const struct work_limits limits = {.vocab_size = 50, .context_tokens = 20};

static struct ctl_work good_work(uint32_t *prompt)
{
    struct ctl_work work = {.sequence_count = 1, .prompt_count = 4, .prompt = prompt, .params = sampling_params_default()};
    return work;
}

static void expect_refused(const struct ctl_work *work, const char *field)
{
    struct diag diag = {{0}};
    status_t st = work_validate(work, &limits, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_int_equal(st.scope, SCOPE_REQUEST);
    assert_non_null(strstr(diag.text, field));
}

static void bad_work_is_refused_by_field(void **state)
{
    (void)state;
    uint32_t prompt[4] = {1, 2, 3, 4};
    struct ctl_work work = good_work(prompt);
    struct diag diag;
    assert_false(failed(work_validate(&work, &limits, &diag)));

    work.params.max_tokens = 17; /* 4 + 17 is more than the context */
    expect_refused(&work, "max_tokens");
    work = good_work(prompt);
    work.params.n = 2;
    work.sequence_first = 2;
    expect_refused(&work, "sequence_first");
    work = good_work(prompt);
    work.params.n = SAMPLING_N_MAX + 1;
    expect_refused(&work, "n is");
    work = good_work(prompt);
    prompt[2] = 50;
    expect_refused(&work, "prompt[2]");
    prompt[2] = 3;
    uint32_t output[2] = {0, 99};
    work.output = output;
    work.output_count = 2;
    expect_refused(&work, "output[1]");
    work.output_count = 16; /* nothing left to do */
    expect_refused(&work, "output_count");
}

/* The copy shares nothing with what the message borrowed. */
static void a_copy_outlives_its_message(void **state)
{
    (void)state;
    uint32_t prompt[3] = {1, 2, 3};
    uint32_t output[2] = {4, 5};
    uint32_t stops[1] = {6};
    struct logit_bias bias[1] = {{.token = 7, .bias = 1.5f}};
    struct ctl_work work = {.prompt_count = 3, .prompt = prompt, .output_count = 2, .output = output};
    work.params.stop_token_count = 1;
    work.params.stop_tokens = stops;
    work.params.logit_bias_count = 1;
    work.params.logit_bias = bias;
    uint32_t memory[16];
    assert_true(work_copy_bytes(&work) <= sizeof memory);
    struct ctl_work copy = work_copy(&work, memory);
    memset(prompt, 0xff, sizeof prompt);
    memset(output, 0xff, sizeof output);
    memset(stops, 0xff, sizeof stops);
    memset(bias, 0xff, sizeof bias);
    uint32_t text[5];
    work_tokens(&copy, copy.output, 0, 5, text);
    for (uint32_t i = 0; i < 5; i++) { assert_int_equal(text[i], i + 1); }
    work_tokens(&copy, copy.output, 2, 2, text); /* across the border */
    assert_int_equal(text[0], 3);
    assert_int_equal(text[1], 4);
    work_tokens(&copy, copy.output, 4, 1, text);
    assert_int_equal(text[0], 5);
    assert_int_equal(copy.params.stop_tokens[0], 6);
    assert_int_equal(copy.params.logit_bias[0].token, 7);
    assert_true(copy.params.logit_bias[0].bias == 1.5f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_work_is_refused_by_field),
        cmocka_unit_test(a_copy_outlives_its_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
