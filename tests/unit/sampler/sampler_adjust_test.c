/* Claims on sampler_adjust: applied by the words of kernels.h, its list and row say what sampler_choose() does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "base/counter_rng.h"
#include "base/rng.h"
#include "model/sampler.h"
#include "model/sampler_adjust.h"

enum { VOCAB = 97, ROOM = 400 };

/* As the comments of struct kernels_sample_adjust say. */
static void apply(float *logits, const struct kernels_sample_row *row, const struct kernels_sample_adjust *adjusts, uint32_t count)
{
    bool named[VOCAB] = {false};
    for (uint32_t i = 0; i < count; i++) {
        const struct kernels_sample_adjust *a = &adjusts[i];
        assert_true(a->token < VOCAB);
        assert_false(named[a->token]); /* once */
        named[a->token] = true;
        float *logit = &logits[a->token];
        if (a->has_bias) { *logit += a->bias; }
        if (a->is_masked && !isnan(*logit)) { *logit = -INFINITY; }
        if (a->is_seen) { *logit = *logit > 0.0f ? *logit / row->repetition : *logit * row->repetition; }
        if (a->output_count > 0) {
            *logit -= row->frequency * (float)a->output_count;
            *logit -= row->presence;
        }
    }
}

static float unit(struct rng *rng) { return (float)(rng_next(rng) >> 40) / (float)(1u << 24); }

/* Any parameters and history: the adjusted row, sampled with nothing left to adjust, gives the token of the row as it
 * was; and of temperature 0, its best token is the same. */
static void list_and_row_say_what_the_sampler_does(void **state)
{
    (void)state;
    const uint64_t seed = 20220531;
    printf("seed %llu\n", (unsigned long long)seed);
    struct rng rng = rng_init(seed);
    void *scratch_memory = malloc(sampler_scratch_bytes(VOCAB));
    struct sampler_scratch scratch;
    sampler_scratch_init(&scratch, VOCAB, scratch_memory);
    uint32_t faults = 0;
    for (int turn = 0; turn < 4000; turn++) {
        struct logit_bias bias[20];
        uint32_t stops[5] = {0}, prompt[30];
        struct sampling_params params = {.temperature = turn % 3 == 0 ? 0.0f : 0.2f + unit(&rng), .top_k = (uint32_t)(rng_next(&rng) % 40),
                                         .top_p = turn % 2 ? 1.0f : 0.3f + 0.7f * unit(&rng), .min_p = turn % 5 ? 0.0f : 0.1f,
                                         .repetition_penalty = turn % 4 ? 1.0f : 1.3f, .presence_penalty = turn % 7 ? 0.0f : 0.5f,
                                         .frequency_penalty = turn % 6 ? 0.0f : -0.25f, .seed = rng_next(&rng), .max_tokens = 60,
                                         .min_tokens = (uint32_t)(rng_next(&rng) % 20), .ignore_eos = rng_next(&rng) % 4 == 0, .n = 1,
                                         .logprobs = -1, .prompt_logprobs = -1, .stop_tokens = stops, .logit_bias = bias};
        params.stop_token_count = (uint32_t)(rng_next(&rng) % 6);
        for (uint32_t i = 0; i < params.stop_token_count; i++) { stops[i] = (uint32_t)(rng_next(&rng) % VOCAB); } /* perhaps one twice */
        params.logit_bias_count = (uint32_t)(rng_next(&rng) % 21);
        for (uint32_t i = 0; i < params.logit_bias_count; i++) {
            bias[i] = (struct logit_bias){.token = (uint32_t)(i * 4 + rng_next(&rng) % 4), .bias = 8 * unit(&rng) - 4};
        }
        const uint32_t eos[] = {stops[0], 7, VOCAB + 3};
        struct sampler_state sampler;
        void *memory = malloc(sampler_state_bytes(&params, VOCAB, 30) + 1);
        sampler_state_init(&sampler, &params, (struct eos_tokens){.token = eos, .count = params.stop_token_count ? 3 : 0}, VOCAB, 5, 30, memory);
        for (int i = 0; i < 30; i++) { prompt[i] = (uint32_t)(rng_next(&rng) % VOCAB); }
        sampler_state_add_prompt(&sampler, prompt, 30);
        for (uint32_t i = (uint32_t)(rng_next(&rng) % 25); i > 0; i--) { sampler_state_add_output(&sampler, (uint32_t)(rng_next(&rng) % VOCAB)); }

        float logits[VOCAB];
        for (int i = 0; i < VOCAB; i++) { logits[i] = 6 * unit(&rng) - 3; }
        if (turn % 50 == 1) { logits[rng_next(&rng) % VOCAB] = NAN; }
        if (turn % 50 == 2) { for (int i = 0; i < VOCAB; i++) { logits[i] = -INFINITY; } }
        struct diag want_diag = {{0}}, got_diag = {{0}};
        uint32_t want = 0, got = 0, count = 0;
        const status_t want_status = sampler_choose(&sampler, logits, &scratch, &want_diag, &want);

        struct kernels_sample_adjust adjusts[ROOM];
        assert_true(sampler_adjust_list(&sampler, ROOM, adjusts, &count));
        assert_true(count == 0 || !sampler_adjust_list(&sampler, count - 1, adjusts, &(uint32_t){0}));
        assert_true(sampler_adjust_list(&sampler, count, adjusts, &count));
        struct kernels_sample_row row = sampler_adjust_row(&sampler);
        assert_true(row.bits == counter_rng_draw(params.seed, 5, sampler.output_count));
        apply(logits, &row, adjusts, count);
        struct sampling_params bare = {.temperature = row.temperature, .top_k = row.top_k, .top_p = row.top_p, .min_p = row.min_p,
                                       .repetition_penalty = 1, .max_tokens = 60, .n = 1, .logprobs = -1, .prompt_logprobs = -1, .seed = params.seed};
        struct sampler_state plain;
        sampler_state_init(&plain, &bare, (struct eos_tokens){0}, VOCAB, 5, 0, NULL);
        for (uint32_t i = 0; i < sampler.output_count; i++) { sampler_state_add_output(&plain, 0); }
        const status_t got_status = sampler_choose(&plain, logits, &scratch, &got_diag, &got);
        assert_int_equal(got_status.code, want_status.code);
        assert_string_equal(got_diag.text, want_diag.text);
        assert_int_equal(got, want);
        faults += failed(want_status);
        free(memory);
    }
    assert_true(faults > 50);
    free(scratch_memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(list_and_row_say_what_the_sampler_does)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
