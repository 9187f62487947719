/* stop_rules: when a sequence ends, and under which name. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "model/stop_rules.h"

static const uint32_t eos_list[] = {2, 7};
static const struct eos_tokens eos = {eos_list, 2};

/* Each of several eos tokens ends the sequence, unless ignore_eos; other tokens do not. */
static void eos_ends_unless_ignored(void **state)
{
    (void)state;
    struct sampling_params params = sampling_params_default();
    assert_int_equal(stop_rules_decide(&params, eos, 2, 1, 11, 64), STOP_RULES_END_TOKEN);
    assert_int_equal(stop_rules_decide(&params, eos, 7, 3, 13, 64), STOP_RULES_END_TOKEN);
    assert_int_equal(stop_rules_decide(&params, eos, 3, 1, 11, 64), STOP_RULES_CONTINUE);
    assert_int_equal(stop_rules_decide(&params, (struct eos_tokens){0}, 2, 1, 11, 64), STOP_RULES_CONTINUE);
    params.ignore_eos = true;
    assert_int_equal(stop_rules_decide(&params, eos, 2, 1, 11, 64), STOP_RULES_CONTINUE);
}

/* A stop token of the request ends it, with ignore_eos too. */
static void stop_token_ends_even_when_eos_is_ignored(void **state)
{
    (void)state;
    static const uint32_t stops[] = {40, 41};
    struct sampling_params params = sampling_params_default();
    params.stop_tokens = stops;
    params.stop_token_count = 2;
    params.ignore_eos = true;
    assert_int_equal(stop_rules_decide(&params, eos, 41, 1, 11, 64), STOP_RULES_END_TOKEN);
    assert_int_equal(stop_rules_decide(&params, eos, 42, 1, 11, 64), STOP_RULES_CONTINUE);
}

/* With min_tokens = 3, tokens 1 to 3 end nothing; token 4 may. */
static void min_tokens_come_first(void **state)
{
    (void)state;
    struct sampling_params params = sampling_params_default();
    params.min_tokens = 3;
    assert_int_equal(stop_rules_decide(&params, eos, 2, 1, 11, 64), STOP_RULES_CONTINUE);
    assert_int_equal(stop_rules_decide(&params, eos, 2, 3, 13, 64), STOP_RULES_CONTINUE);
    assert_int_equal(stop_rules_decide(&params, eos, 2, 4, 14, 64), STOP_RULES_END_TOKEN);
}

/* max_tokens and the context each end with "length"; an eos as the last token allowed is "stop". */
static void length_ends_and_eos_wins(void **state)
{
    (void)state;
    struct sampling_params params = sampling_params_default();
    params.max_tokens = 5;
    assert_int_equal(stop_rules_decide(&params, eos, 9, 4, 14, 64), STOP_RULES_CONTINUE);
    assert_int_equal(stop_rules_decide(&params, eos, 9, 5, 15, 64), STOP_RULES_LENGTH);
    assert_int_equal(stop_rules_decide(&params, eos, 9, 2, 63, 64), STOP_RULES_CONTINUE);
    assert_int_equal(stop_rules_decide(&params, eos, 9, 2, 64, 64), STOP_RULES_LENGTH);
    assert_int_equal(stop_rules_decide(&params, eos, 2, 5, 64, 64), STOP_RULES_END_TOKEN);
    params.min_tokens = 5; /* all of them are wanted: even an end token is just the fifth */
    assert_int_equal(stop_rules_decide(&params, eos, 2, 5, 15, 64), STOP_RULES_LENGTH);
}

/* The API's words. */
static void reasons_have_names(void **state)
{
    (void)state;
    assert_null(stop_rules_finish_reason(STOP_RULES_CONTINUE));
    assert_string_equal(stop_rules_finish_reason(STOP_RULES_END_TOKEN), "stop");
    assert_string_equal(stop_rules_finish_reason(STOP_RULES_LENGTH), "length");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eos_ends_unless_ignored), cmocka_unit_test(stop_token_ends_even_when_eos_is_ignored),
        cmocka_unit_test(min_tokens_come_first), cmocka_unit_test(length_ends_and_eos_wins),
        cmocka_unit_test(reasons_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
