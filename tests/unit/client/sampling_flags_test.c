/* Claims on the sampling flags: what is absent stays absent, what is given reaches its field,
 * what is no number is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/sampling_flags.h"

static const struct flag table[] = {SAMPLING_FLAGS(0)};
static struct sampling_flags flags;
static struct diag diag;

static status_t build(const char *const *words)
{
    static char copies[80][128];
    char *argv[81] = {copies[0]};
    int argc = 1;
    bool wants_help;
    for (; words[argc - 1]; argc++) {
        strcpy(copies[argc], words[argc - 1]);
        argv[argc] = copies[argc];
    }
    memset(&diag, 0, sizeof diag);
    TRY(flags_parse(table, sizeof table / sizeof table[0], &flags, argc, argv, NULL, NULL, &wants_help, &diag));
    return sampling_flags_build(&flags, &diag);
}

#define BUILD(...) build((const char *const[]){__VA_ARGS__, NULL})

/* Nothing given: every field that has a default of the model's is absent. */
static void absent_stays_absent(void **state)
{
    (void)state;
    assert_false(failed(build((const char *const[]){NULL})));
    const Baton__V1__SamplingParams *message = &flags.message;
    assert_null(message->temperature);
    assert_null(message->top_k);
    assert_null(message->top_p);
    assert_null(message->min_p);
    assert_null(message->seed);
    assert_null(message->max_tokens);
    assert_null(message->logprobs);
    assert_null(message->n);
    assert_int_equal(message->n_stop, 0);
    assert_int_equal(message->n_logit_bias, 0);
    assert_int_equal(protobuf_c_message_get_packed_size(&message->base), 0);
}

/* Each flag reaches the field of its name, zero as well as any other number. */
static void each_reaches_its_field(void **state)
{
    (void)state;
    assert_false(failed(BUILD("--temperature=0", "--top-k=0", "--top-p=0.5", "--min-p=0.25", "--repetition-penalty=1.5",
                              "--presence-penalty", "-2", "--frequency-penalty=-0.5", "--seed=18446744073709551615",
                              "--max-tokens=4294967295", "--min-tokens=3", "--logprobs=0", "--prompt-logprobs=5", "--n=4",
                              "--stop=a", "--stop=\n\n", "--stop-token-ids=1, 2,4294967295", "--logit-bias=42:-100",
                              "--logit-bias=7:1.5", "--ignore-eos", "--include-stop", "--show-special-tokens")));
    const Baton__V1__SamplingParams *message = &flags.message;
    assert_true(message->temperature->value == 0);
    assert_int_equal(message->top_k->value, 0);
    assert_true(message->top_p->value == 0.5f);
    assert_true(message->min_p->value == 0.25f);
    assert_true(message->repetition_penalty->value == 1.5f);
    assert_true(message->presence_penalty->value == -2);
    assert_true(message->frequency_penalty->value == -0.5f);
    assert_true(message->seed->value == UINT64_MAX);
    assert_true(message->max_tokens->value == UINT32_MAX);
    assert_int_equal(message->min_tokens, 3);
    assert_int_equal(message->logprobs->value, 0);
    assert_int_equal(message->prompt_logprobs->value, 5);
    assert_int_equal(message->n->value, 4);
    assert_int_equal(message->n_stop, 2);
    assert_string_equal(message->stop[1], "\n\n");
    assert_int_equal(message->n_stop_token_ids, 3);
    assert_true(message->stop_token_ids[2] == UINT32_MAX);
    assert_int_equal(message->n_logit_bias, 2);
    assert_int_equal(message->logit_bias[0]->key, 42);
    assert_true(message->logit_bias[0]->value == -100);
    assert_true(message->ignore_eos && message->include_stop && message->show_special_tokens);
}

/* What is no number of its kind is refused by the flag's name. */
static void wrong_numbers_are_named(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "--temperature=hot", "--temperature=", "--temperature=nan", "--temperature=1e99", "--top-k=-1", "--top-k=1.5",
        "--max-tokens=4294967296", "--max-tokens=", "--seed=18446744073709551616", "--seed=-1", "--n=x", "--logprobs=-1",
        "--min-tokens=+1", "--logit-bias=5", "--logit-bias=:1", "--logit-bias=x:1", "--logit-bias=1:", "--logit-bias=1:x",
        "--logit-bias=4294967296:1", "--logit-bias=00000000000000001:1", "--stop-token-ids=", "--stop-token-ids=1,",
        "--stop-token-ids=1,,2", "--stop-token-ids=1;2", "--stop-token-ids=-1", "--stop-token-ids=4294967296",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        status_t st = BUILD(wrong[i]);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(wrong[i], "="), wrong[i]);
        if (st.code != ST_INVALID_ARGUMENT || !strstr(diag.text, name)) { fail_msg("%s: \"%s\"", wrong[i], diag.text); }
    }
    uint32_t *ids;
    size_t count;
    assert_false(failed(token_list_parse("0", "tokens", &ids, &count, &diag)));
    assert_int_equal(count, 1);
    free(ids);
    static struct sampling_flags full;
    char longer[256] = "1";
    for (int i = 1; i < 65; i++) { strcat(longer, ",1"); } /* 65 ids: one too many to stop at */
    full.stop_token_ids = longer;
    status_t st = sampling_flags_build(&full, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "at most 64"));
    longer[strlen(longer) - 2] = '\0';
    assert_false(failed(sampling_flags_build(&full, &diag)));
    assert_int_equal(full.message.n_stop_token_ids, 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absent_stays_absent),
        cmocka_unit_test(each_reaches_its_field),
        cmocka_unit_test(wrong_numbers_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
