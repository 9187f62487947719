/* Claim: every field that a client leaves out gets the value that the proto's comment states,
 * and every one that is out of range is refused by its name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/request_spec.h"

static const struct generation_defaults no_defaults;

struct request {
    Baton__V1__SamplingParams sampling;
    Baton__V1__Float temperature, top_p, min_p, repetition, presence, frequency;
    Baton__V1__UInt top_k, max_tokens, logprobs, prompt_logprobs, n;
    Baton__V1__Seed seed;
};

static void init(struct request *request)
{
    memset(request, 0, sizeof *request);
    baton__v1__sampling_params__init(&request->sampling);
    Baton__V1__Float *floats[] = {&request->temperature, &request->top_p, &request->min_p, &request->repetition,
                                  &request->presence, &request->frequency};
    for (unsigned i = 0; i < 6; i++) { baton__v1__float__init(floats[i]); }
    Baton__V1__UInt *uints[] = {&request->top_k, &request->max_tokens, &request->logprobs, &request->prompt_logprobs,
                                &request->n};
    for (unsigned i = 0; i < 5; i++) { baton__v1__uint__init(uints[i]); }
    baton__v1__seed__init(&request->seed);
}

static status_t make(const Baton__V1__SamplingParams *sampling, const struct generation_defaults *defaults, size_t prompt,
                     struct request_spec *spec, struct diag *diag)
{
    struct request_limits limits = {.vocab_size = 100, .context_tokens = 1000, .defaults = defaults};
    uint32_t *ids = calloc(prompt + 1, sizeof *ids);
    assert_non_null(ids);
    status_t st = request_spec_init(spec, sampling, &limits, ids, prompt, 42, diag);
    if (failed(st)) { free(ids); }
    return st;
}

/* An empty request is one sequence of 256 tokens at temperature 1 with a drawn seed. */
static void absent_fields_take_the_stated_defaults(void **state)
{
    (void)state;
    struct request_spec spec;
    assert_false(failed(make(NULL, &no_defaults, 10, &spec, NULL)));
    assert_true(spec.params.temperature == 1.0f && spec.params.top_p == 1.0f && spec.params.min_p == 0.0f);
    assert_true(spec.params.repetition_penalty == 1.0f);
    assert_int_equal(spec.params.top_k, 0);
    assert_int_equal(spec.params.n, 1);
    assert_int_equal(spec.params.logprobs, -1);
    assert_int_equal(spec.params.prompt_logprobs, -1);
    assert_int_equal(spec.params.max_tokens, 256);
    assert_int_equal(spec.params.seed, 42);
    request_spec_fini(&spec);
    assert_false(failed(make(NULL, &no_defaults, 900, &spec, NULL)));
    assert_int_equal(spec.params.max_tokens, 100); /* what the context has room for */
    request_spec_fini(&spec);
}

/* generation_config.json goes before the stated defaults, and the request before both. */
static void the_models_defaults_come_second(void **state)
{
    (void)state;
    struct generation_defaults defaults = {.has_temperature = true, .temperature = 0.6f, .has_top_k = true, .top_k = 20,
                                           .has_top_p = true, .top_p = 0.9f};
    struct request request;
    struct request_spec spec;
    init(&request);
    request.top_k.value = 5;
    request.sampling.top_k = &request.top_k;
    request.seed.value = 9;
    request.sampling.seed = &request.seed;
    assert_false(failed(make(&request.sampling, &defaults, 10, &spec, NULL)));
    assert_true(spec.params.temperature == 0.6f && spec.params.top_p == 0.9f);
    assert_int_equal(spec.params.top_k, 5);
    assert_int_equal(spec.params.seed, 9);
    request_spec_fini(&spec);
    defaults.has_do_sample = true; /* and false: greedy */
    assert_false(failed(make(&request.sampling, &defaults, 10, &spec, NULL)));
    assert_true(spec.params.temperature == 0.0f);
    request_spec_fini(&spec);
    request.temperature.value = 0.3f;
    request.sampling.temperature = &request.temperature;
    assert_false(failed(make(&request.sampling, &defaults, 10, &spec, NULL)));
    assert_true(spec.params.temperature == 0.3f);
    request_spec_fini(&spec);
}

static void expect(const struct request *request, size_t prompt, const char *field)
{
    struct request_spec spec;
    struct diag diag = {{0}};
    status_t st = make(&request->sampling, &no_defaults, prompt, &spec, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    if (!strstr(diag.text, field)) { fail_msg("\"%s\" does not name %s", diag.text, field); }
}

/* A value out of range is refused with the field's name in the proto. */
static void each_field_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *field;
        size_t at, pointer;
        float value;
    } floats[] = {
#define F(member, proto, bad) {#proto, offsetof(struct request, member), offsetof(Baton__V1__SamplingParams, proto), bad}
        F(temperature, temperature, -1), F(temperature, temperature, 101), F(temperature, temperature, NAN),
        F(top_p, top_p, 0), F(top_p, top_p, 1.5f), F(min_p, min_p, 1), F(min_p, min_p, -0.1f),
        F(repetition, repetition_penalty, 0), F(repetition, repetition_penalty, INFINITY),
        F(presence, presence_penalty, 3), F(frequency, frequency_penalty, -3),
    };
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++) {
        struct request request;
        init(&request);
        Baton__V1__Float *value = (Baton__V1__Float *)(void *)((char *)&request + floats[i].at);
        value->value = floats[i].value;
        memcpy((char *)&request.sampling + floats[i].pointer, &value, sizeof value);
        expect(&request, 10, floats[i].field);
    }
    static const struct {
        const char *field;
        size_t at, pointer;
        uint32_t value;
    } uints[] = {
        F(max_tokens, max_tokens, 0), F(max_tokens, max_tokens, 991), F(logprobs, logprobs, 21),
        F(logprobs, logprobs, UINT32_MAX), F(prompt_logprobs, prompt_logprobs, 21), F(n, n, 0), F(n, n, 65),
#undef F
    };
    for (size_t i = 0; i < sizeof uints / sizeof uints[0]; i++) {
        struct request request;
        init(&request);
        Baton__V1__UInt *value = (Baton__V1__UInt *)(void *)((char *)&request + uints[i].at);
        value->value = uints[i].value;
        memcpy((char *)&request.sampling + uints[i].pointer, &value, sizeof value);
        expect(&request, 10, uints[i].field);
    }
}

/* Lists: too many, too long, not a token, not UTF-8. */
static void lists_are_checked(void **state)
{
    (void)state;
    struct request request;
    init(&request);
    char *stops[17];
    char longest[258];
    for (unsigned i = 0; i < 17; i++) { stops[i] = (char *)"x"; }
    request.sampling.stop = stops;
    request.sampling.n_stop = 17;
    expect(&request, 10, "stop");
    request.sampling.n_stop = 1;
    stops[0] = (char *)"";
    expect(&request, 10, "stop[0]");
    memset(longest, 'x', 257);
    longest[257] = '\0';
    stops[0] = longest;
    expect(&request, 10, "stop[0]");
    stops[0] = (char *)"\xff";
    expect(&request, 10, "stop[0]");
    stops[0] = longest + 1; /* 256 bytes */
    struct request_spec spec;
    assert_false(failed(make(&request.sampling, &no_defaults, 10, &spec, NULL)));
    assert_int_equal(spec.stop_count, 1);
    assert_int_equal(spec.stops[0].len, 256);
    request_spec_fini(&spec);
    request.sampling.n_stop = 0;
    uint32_t ids[65] = {100};
    request.sampling.stop_token_ids = ids;
    request.sampling.n_stop_token_ids = 1;
    expect(&request, 10, "stop_token_ids[0]");
    ids[0] = 0;
    request.sampling.n_stop_token_ids = 65;
    expect(&request, 10, "stop_token_ids");
}

/* A prompt that is empty or fills the context is refused with its length and the limit. */
static void the_prompts_length_is_checked(void **state)
{
    (void)state;
    struct request request;
    init(&request);
    expect(&request, 0, "prompt is empty");
    expect(&request, 1000, "1000 tokens");
    expect(&request, 1000, "at most 999");
    struct diag diag = {{0}};
    uint32_t ids[] = {1, 99, 100};
    assert_true(failed(request_spec_check_ids("tokens.ids", ids, 3, 100, &diag)));
    assert_non_null(strstr(diag.text, "tokens.ids[2] is 100"));
    assert_false(failed(request_spec_check_ids("tokens.ids", ids, 2, 100, &diag)));
}

/* Of a map's key that comes twice the last value counts, as protobuf says. */
static void the_last_bias_of_a_token_counts(void **state)
{
    (void)state;
    struct request request;
    init(&request);
    Baton__V1__SamplingParams__LogitBiasEntry entries[3], *list[3];
    for (unsigned i = 0; i < 3; i++) {
        baton__v1__sampling_params__logit_bias_entry__init(&entries[i]);
        entries[i].key = i == 1 ? 8 : 7;
        entries[i].value = (float)i;
        list[i] = &entries[i];
    }
    request.sampling.logit_bias = list;
    request.sampling.n_logit_bias = 3;
    struct request_spec spec;
    assert_false(failed(make(&request.sampling, &no_defaults, 10, &spec, NULL)));
    assert_int_equal(spec.params.logit_bias_count, 2);
    assert_int_equal(spec.params.logit_bias[0].token, 7);
    assert_true(spec.params.logit_bias[0].bias == 2.0f);
    request_spec_fini(&spec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absent_fields_take_the_stated_defaults), cmocka_unit_test(the_models_defaults_come_second),
        cmocka_unit_test(each_field_is_refused_by_name), cmocka_unit_test(lists_are_checked),
        cmocka_unit_test(the_prompts_length_is_checked), cmocka_unit_test(the_last_bias_of_a_token_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
