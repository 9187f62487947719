/* sampling_params: each field has a range, and its refusal names field, value and range. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "model/sampling_params.h"

enum { VOCAB = 100, CONTEXT = 64, PROMPT = 10 };

static void assert_taken(const struct sampling_params *params)
{
    struct diag diag = {{0}};
    status_t st = sampling_params_validate(params, VOCAB, CONTEXT, PROMPT, &diag);
    if (failed(st)) { print_message("refused: %s\n", diag.text); }
    assert_false(failed(st));
}

/* Refused, with a text that holds all the words. */
static void assert_refused(const struct sampling_params *params, const char *word, const char *word2, const char *word3)
{
    struct diag diag = {{0}};
    status_t st = sampling_params_validate(params, VOCAB, CONTEXT, PROMPT, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_int_equal(st.scope, SCOPE_REQUEST);
    const char *words[3] = {word, word2, word3};
    for (int i = 0; i < 3; i++) {
        if (!strstr(diag.text, words[i])) { print_message("no '%s' in: %s\n", words[i], diag.text); }
        assert_non_null(strstr(diag.text, words[i]));
    }
    assert_true(failed(sampling_params_validate(params, VOCAB, CONTEXT, PROMPT, NULL)));
}

/* Every float field refuses NaN, infinity and the first value beyond each end, and takes the ends. */
static void floats_have_ranges(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t offset;
        float refused[4];
        float taken[3];
        const char *range;
    } fields[] = {
        {"temperature", offsetof(struct sampling_params, temperature), {-0.001f, 100.01f, INFINITY, -INFINITY},
         {0, 100, 1e-30f}, "[0, 100]"},
        {"top_p", offsetof(struct sampling_params, top_p), {0, 1.0001f, -1, INFINITY}, {1, 1e-30f, 0.5f}, "(0, 1]"},
        {"min_p", offsetof(struct sampling_params, min_p), {1, -0.01f, 2, INFINITY}, {0, 0.999f, 1e-30f}, "[0, 1)"},
        {"repetition_penalty", offsetof(struct sampling_params, repetition_penalty), {0, -1, 10001, INFINITY},
         {0.0001f, 10000, 1}, "[0.0001, 10000]"},
        {"presence_penalty", offsetof(struct sampling_params, presence_penalty), {-2.01f, 2.01f, INFINITY, -INFINITY},
         {-2, 2, 0}, "[-2, 2]"},
        {"frequency_penalty", offsetof(struct sampling_params, frequency_penalty),
         {-2.01f, 2.01f, INFINITY, -INFINITY}, {-2, 2, 0}, "[-2, 2]"},
    };
    for (size_t f = 0; f < sizeof fields / sizeof fields[0]; f++) {
        struct sampling_params params = sampling_params_default();
        float *field = (float *)(void *)((char *)&params + fields[f].offset);
        *field = NAN;
        assert_refused(&params, fields[f].name, "nan", fields[f].range);
        for (int i = 0; i < 4; i++) {
            *field = fields[f].refused[i];
            assert_refused(&params, fields[f].name, " is ", fields[f].range);
        }
        for (int i = 0; i < 3; i++) {
            *field = fields[f].taken[i];
            assert_taken(&params);
        }
    }
}

/* n and both logprobs fields. */
static void counts_have_ranges(void **state)
{
    (void)state;
    struct sampling_params params = sampling_params_default();
    params.n = 0;
    assert_refused(&params, "n is 0", "1 .. 64", "sequences");
    params.n = 65;
    assert_refused(&params, "n is 65", "1 .. 64", "sequences");
    params.n = 64;
    assert_taken(&params);
    params.logprobs = 21;
    assert_refused(&params, "logprobs is 21", "0 .. 20", "-1");
    params.logprobs = -2;
    assert_refused(&params, "logprobs is -2", "0 .. 20", "-1");
    params.logprobs = 20;
    params.prompt_logprobs = INT32_MAX;
    assert_refused(&params, "prompt_logprobs is 2147483647", "0 .. 20", "-1");
    params.prompt_logprobs = 0;
    assert_taken(&params);
    params.top_k = UINT32_MAX; /* more than there are: everything */
    assert_taken(&params);
}

/* Tokens the model lacks, lists that are too long, a bias that is no number or given twice. */
static void token_lists_are_checked(void **state)
{
    (void)state;
    struct sampling_params params = sampling_params_default();
    static uint32_t stops[65];
    params.stop_tokens = stops;
    params.stop_token_count = 65;
    assert_refused(&params, "stop_token_ids", "65", "64");
    params.stop_token_count = 64;
    assert_taken(&params);
    stops[63] = 100;
    assert_refused(&params, "stop_token_ids[63]", "100", "0 .. 99");
    stops[63] = 99;
    assert_taken(&params);

    struct logit_bias bias[3] = {{5, 100}, {6, -100}, {7, 0}};
    params.logit_bias = bias;
    params.logit_bias_count = 3;
    assert_taken(&params);
    bias[2].token = 5;
    assert_refused(&params, "logit_bias[0]", "logit_bias[2]", "token 5");
    bias[2] = (struct logit_bias){100, 0};
    assert_refused(&params, "logit_bias[2]", "100", "0 .. 99");
    static const float wrong[] = {100.1f, -100.1f, INFINITY, NAN};
    for (int i = 0; i < 4; i++) {
        bias[2] = (struct logit_bias){9, wrong[i]};
        assert_refused(&params, "logit_bias[2]", "token 9", "[-100, 100]");
    }
    params.logit_bias_count = SAMPLING_LOGIT_BIAS_MAX + 1;
    assert_refused(&params, "logit_bias", "1025", "1024"); /* before the list is read */
}

/* Lengths: the message says how many fit and what to change. */
static void lengths_are_checked(void **state)
{
    (void)state;
    struct sampling_params params = sampling_params_default();
    params.max_tokens = 0;
    assert_refused(&params, "max_tokens is 0", "at least", "1");
    params.max_tokens = 5;
    params.min_tokens = 6;
    assert_refused(&params, "min_tokens is 6", "max_tokens", "5");
    params.min_tokens = 5;
    assert_taken(&params);
    params.max_tokens = 54; /* 10 + 54 is all there is */
    assert_taken(&params);
    params.max_tokens = 55;
    assert_refused(&params, "max_tokens is 55", "1 .. 54", "shorten the prompt");
    params.max_tokens = UINT32_MAX; /* no wrap-around */
    assert_refused(&params, "max_tokens", "1 .. 54", "lower max_tokens");
    params.max_tokens = 5;
    struct diag diag = {{0}};
    assert_int_equal(sampling_params_validate(&params, VOCAB, CONTEXT, 64, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "shorten the prompt to at most 63"));
    assert_int_equal(sampling_params_validate(&params, VOCAB, CONTEXT, UINT32_MAX, &diag).code, ST_INVALID_ARGUMENT);
    assert_int_equal(sampling_params_validate(&params, VOCAB, CONTEXT, 0, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "at least 1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(floats_have_ranges), cmocka_unit_test(counts_have_ranges),
        cmocka_unit_test(token_lists_are_checked), cmocka_unit_test(lengths_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
