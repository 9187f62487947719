/* sampler_bench: microseconds to choose one token, by what the request asks for.
 * Estimate first: a row of 151936 f32 logits is 594 KiB and stays in L2 or L3, so a light pass is
 * about 20 us at 30 GB/s and at 8 lanes; exp is about 20 operations a token, 4 lanes at two a
 * cycle: 380k cycles, 130 us at 3 GHz. So greedy about 40 us, temperature about 170, top_p 200.
 * Prints one JSON line per case. Usage: sampler_bench [tokens per case] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/rng.h"
#include "model/logprobs.h"
#include "model/sampler.h"

#define VOCAB 151936u
#define PROMPT 2048u
#define ROWS 8u /* different rows in turn: 4.6 MiB, so that L1 and L2 do not hold the answer */

struct bench_case {
    const char *name;
    struct sampling_params params;
    bool logprobs;
};

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* A row like a language model's: most logits in a bell of width 2.5 around 0, some words far out. */
static void fill_row(struct rng *rng, float *row)
{
    for (uint32_t i = 0; i < VOCAB; i++) {
        double radius = sqrt(-2.0 * log(1.0 - rng_unit(rng)));
        row[i] = (float)(2.5 * radius * cos(6.283185307179586 * rng_unit(rng)));
    }
    for (uint32_t i = 0; i < 40; i++) { row[rng_below(rng, VOCAB)] = 18.0f - 0.25f * (float)i; }
}

static void run_case(const struct bench_case *bench, const float *rows, uint32_t repeats)
{
    struct sampling_params params = bench->params;
    params.max_tokens = repeats + 16;
    params.seed = 1;
    size_t state_bytes = sampler_state_bytes(&params, VOCAB, PROMPT);
    void *state_memory = malloc(state_bytes + 1);
    void *scratch_memory = malloc(sampler_scratch_bytes(VOCAB));
    uint64_t *spent = calloc(repeats, sizeof *spent);
    if (!state_memory || !scratch_memory || !spent) { abort(); }
    struct sampler_state state;
    sampler_state_init(&state, &params, (struct eos_tokens){0}, VOCAB, 0, PROMPT, state_memory);
    for (uint32_t i = 0; i < PROMPT; i++) {
        uint32_t token = (i * 97u) % VOCAB;
        sampler_state_add_prompt(&state, &token, 1);
    }
    struct sampler_scratch scratch;
    sampler_scratch_init(&scratch, VOCAB, scratch_memory);
    uint64_t token_sum = 0;
    for (uint32_t i = 0; i < repeats + 8; i++) {
        const float *row = rows + (size_t)(i % ROWS) * VOCAB;
        uint32_t token = 0;
        struct logprob_row logprob;
        uint64_t start = clock_now_ns();
        status_t st = sampler_choose(&state, row, &scratch, NULL, &token);
        if (!failed(st) && bench->logprobs) { st = logprobs_of_row(row, VOCAB, token, 5, i, NULL, &logprob); }
        uint64_t end = clock_now_ns();
        if (failed(st)) { abort(); }
        sampler_state_add_output(&state, token);
        token_sum += token;
        if (i >= 8) { spent[i - 8] = end - start; } /* the first 8 warm up */
    }
    qsort(spent, repeats, sizeof *spent, by_value);
    printf("{\"bench\":\"sampler\",\"case\":\"%s\",\"vocab\":%u,\"tokens\":%u,\"us_p50\":%.1f,\"us_p99\":%.1f,"
           "\"token_sum\":%llu}\n", bench->name, VOCAB, repeats, (double)spent[repeats / 2] / 1e3,
           (double)spent[repeats * 99 / 100] / 1e3, (unsigned long long)token_sum);
    free(spent);
    free(scratch_memory);
    free(state_memory);
}

int main(int argc, char **argv)
{
    uint32_t repeats = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 400;
    if (repeats < 1) {
        fprintf(stderr, "usage: %s [tokens per case, at least 1]\n", argv[0]);
        return 2;
    }
    float *rows = malloc((size_t)ROWS * VOCAB * sizeof *rows);
    if (!rows) { return 1; }
    struct rng rng = rng_init(7);
    for (uint32_t i = 0; i < ROWS; i++) { fill_row(&rng, rows + (size_t)i * VOCAB); }
    struct sampling_params base = sampling_params_default();
    struct bench_case cases[] = {
        {.name = "greedy"}, {.name = "greedy_logprobs_5", .logprobs = true}, {.name = "greedy_penalties"},
        {.name = "temperature_1"}, {.name = "top_k_50"}, {.name = "top_k_1000"}, {.name = "top_p_0.9"},
        {.name = "top_p_0.9_hot"}, {.name = "min_p_0.05"}, {.name = "top_k_50_top_p_0.9_penalties"},
    };
    uint32_t case_count = sizeof cases / sizeof cases[0];
    for (uint32_t i = 0; i < case_count; i++) {
        cases[i].params = base;
        if (i >= 3) { cases[i].params.temperature = 1.0f; }
    }
    cases[2].params.repetition_penalty = 1.1f;
    cases[2].params.frequency_penalty = 0.5f;
    cases[4].params.top_k = 50;
    cases[5].params.top_k = 1000;
    cases[6].params.top_p = 0.9f;
    cases[7].params.top_p = 0.9f;
    cases[7].params.temperature = 5.0f; /* nearly flat: the cut lies deep in the row */
    cases[8].params.min_p = 0.05f;
    cases[9].params.top_k = 50;
    cases[9].params.top_p = 0.9f;
    cases[9].params.repetition_penalty = 1.1f;
    cases[9].params.presence_penalty = 0.5f;
    for (uint32_t i = 0; i < case_count; i++) { run_case(&cases[i], rows, repeats); }
    free(rows);
    return 0;
}
