/* Sampling on the device chooses the tokens of model/sampler.c, bit for bit: random rows and parameters against
 * sampler_choose() and against a naive selection by sorting, with what was kept compared as integers. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/counter_rng.h"
#include "base/rng.h"
#include "kernels/cuda/sample_args.h"
#include "kernels/kernels.h"
#include "model/sampler.h"
#include "model/token_mass.h"
#include "tests/cuda/emu.h"

enum { VOCAB_MAX = 40000, ROWS = 3, SEEN_MAX = 96, ADJUSTS_MAX = 4 * SEEN_MAX, PAD = 5 };

/* One row: what the user asks for, and what the model gave. */
struct request {
    uint32_t vocab;
    struct sampling_params params;
    struct logit_bias biases[SEEN_MAX];
    uint32_t stops[SEEN_MAX];
    uint32_t eos[3];
    struct sampler_state state;
    float *logits; /* [vocab] */
};

/* How often each way through the steps was taken: a test that misses one proves nothing about it. */
struct coverage {
    uint64_t rows, greedy, nan, none, draw, histogram, again, few, big, overflow, one_kept, best_not_chosen, ties_cut;
};

static struct coverage coverage;
static float logits_memory[ROWS][VOCAB_MAX];
static float device_logits[ROWS * (VOCAB_MAX + 16)];
static uint64_t scratch_memory[VOCAB_MAX * 3 + 64];
static uint64_t state_memory[ROWS][16384];
static struct kernels_sample_adjust adjusts[ROWS * ADJUSTS_MAX];
static struct kernels_sample_row rows[ROWS];
static struct kernels_sample_result results[ROWS + 1];
static void *workspace;
static size_t workspace_bytes;
static uint32_t rows_max = ROWS; /* of the workspace */

static uint64_t seed_of_environment(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    uint64_t value = text != NULL ? strtoull(text, NULL, 10) : otherwise;
    printf("%s=%llu\n", name, (unsigned long long)value);
    return value;
}

/* ---- the device ---------------------------------------------------------------------------- */

static void run_on_device(const struct kernels_sample *sample)
{
    /* What an earlier call left must not matter, nor what lies there at first. */
    memset(workspace, 0xa5, workspace_bytes);
    assert_true(cuda_sample_workspace_bytes(rows_max, sample->vocab) <= workspace_bytes);
    struct cuda_sample_args args = cuda_sample_args_of(sample, workspace, rows_max);
    for (unsigned step = 0; step < CUDA_SAMPLE_STEPS; step++) {
        struct cuda_launch launch;
        struct emu_fault fault;
        cuda_sample_shape(&args, (enum cuda_sample_step)step, &launch);
        if (!emu_launch(cuda_sample_kernel((enum cuda_sample_step)step), &launch, &args, sizeof args, &fault)) {
            fail_msg("step %u: %s", step, fault.text);
        }
    }
}

/* ---- the oracle ---------------------------------------------------------------------------- */

struct ranked {
    float logit;
    uint32_t token;
    uint64_t mass;
};

static int by_rank(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    if (a->logit != b->logit) { return a->logit > b->logit ? -1 : 1; }
    return a->token < b->token ? -1 : 1;
}

static int by_token(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    return a->token < b->token ? -1 : 1;
}

/* What is kept of adjusted logits without NaN, in order of token id, by sorting. Returns how many. */
static uint32_t kept_by_sorting(const float *logits, uint32_t vocab, const struct kernels_sample_row *row,
                                struct ranked *ret, uint64_t *ret_total, bool *ret_ties_cut)
{
    float max = -INFINITY;
    for (uint32_t i = 0; i < vocab; i++) { max = logits[i] > max ? logits[i] : max; }
    for (uint32_t i = 0; i < vocab; i++) {
        ret[i] = (struct ranked){logits[i], i, token_mass_of(logits[i], max, 1.0 / (double)row->temperature)};
    }
    qsort(ret, vocab, sizeof ret[0], by_rank);
    uint32_t count = row->top_k != 0 && row->top_k < vocab ? row->top_k : vocab;
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++) { total += ret[i].mass; }
    if (row->top_p < 1.0f) {
        double share = ceil((double)row->top_p * (double)total);
        uint64_t needed = share < 1.0 ? 1 : share < (double)total ? (uint64_t)share : total;
        uint64_t sum = 0;
        uint32_t kept = 0;
        while (sum < needed) { sum += ret[kept++].mass; }
        count = kept;
    }
    *ret_ties_cut = count < vocab && ret[count].logit == ret[count - 1].logit;
    uint64_t floor_mass = row->min_p > 0.0f ? (uint64_t)ceil((double)row->min_p * (double)TOKEN_MASS_ONE) : 0;
    uint32_t kept = 0;
    *ret_total = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (ret[i].mass == 0 || ret[i].mass < floor_mass) { continue; }
        *ret_total += ret[i].mass;
        ret[kept++] = ret[i];
    }
    qsort(ret, kept, sizeof ret[0], by_token);
    return kept;
}

__extension__ typedef unsigned __int128 uint128_t;

static uint32_t drawn(const struct ranked *kept, uint64_t total, uint64_t bits)
{
    uint64_t target = (uint64_t)(((uint128_t)bits * total) >> 64);
    uint32_t i = 0;
    while (target >= kept[i].mass) { target -= kept[i++].mass; }
    return kept[i].token;
}

/* ---- one row as the engine would hand it over ------------------------------------------------ */

static struct kernels_sample_adjust *adjust_of(struct kernels_sample_row *row, uint32_t token)
{
    struct kernels_sample_adjust *first = adjusts + row->adjust_first;
    for (uint32_t i = 0; i < row->adjust_count; i++) {
        if (first[i].token == token) { return &first[i]; }
    }
    assert_true(row->adjust_count < ADJUSTS_MAX);
    first[row->adjust_count] = (struct kernels_sample_adjust){.token = token};
    return &first[row->adjust_count++];
}

static void hand_over(const struct request *request, uint32_t index)
{
    const struct sampling_params *params = &request->params;
    struct kernels_sample_row *row = &rows[index];
    *row = (struct kernels_sample_row){
        .adjust_first = index * ADJUSTS_MAX,
        .temperature = params->temperature,
        .top_p = params->top_p,
        .min_p = params->min_p,
        .repetition = params->repetition_penalty,
        .frequency = params->frequency_penalty,
        .presence = params->presence_penalty,
        .top_k = params->top_k,
        .bits = counter_rng_draw(params->seed, request->state.sequence, request->state.output_count),
    };
    for (uint32_t i = 0; i < params->logit_bias_count; i++) {
        struct kernels_sample_adjust *adjust = adjust_of(row, params->logit_bias[i].token);
        adjust->has_bias = 1;
        adjust->bias = params->logit_bias[i].bias;
    }
    if (request->state.output_count < params->min_tokens) {
        for (uint32_t i = 0; i < params->stop_token_count; i++) { adjust_of(row, params->stop_tokens[i])->is_masked = 1; }
        for (uint32_t i = 0; i < request->state.eos.count && !params->ignore_eos; i++) {
            adjust_of(row, request->state.eos.token[i])->is_masked = 1; /* past the vocabulary too */
        }
    }
    for (uint32_t i = 0; i < request->state.count_len; i++) {
        struct kernels_sample_adjust *adjust = adjust_of(row, request->state.counts[i].token);
        adjust->is_seen = 1;
        adjust->output_count = request->state.counts[i].output_count;
    }
}

/* ---- checks -------------------------------------------------------------------------------- */

static void note_paths(const struct cuda_sample_args *args, uint32_t index, bool ties_cut)
{
    const struct cuda_sample_state *state = &args->states[index];
    coverage.draw++;
    coverage.ties_cut += ties_cut;
    if ((state->todo >> CUDA_SAMPLE_HISTOGRAM & 1) == 0) { return; }
    coverage.histogram++;
    coverage.again += state->todo >> CUDA_SAMPLE_SELECT_AGAIN & 1;
    coverage.few += state->top_k != 0 && state->top_k <= CUDA_SAMPLE_FEW_MAX;
    coverage.big += state->top_k > CUDA_SAMPLE_FEW_MAX;
    coverage.overflow += state->listed[0] > CUDA_SAMPLE_LIST_MAX;
}

/* The device's row `index` against both oracles. `bits` as handed over. */
static void check_row(const struct kernels_sample *sample, const struct request *request, uint32_t index,
                      bool is_own_draw, const char *what)
{
    static struct ranked kept[VOCAB_MAX];
    const struct kernels_sample_result *result = &results[index];
    const struct kernels_sample_row *row = &rows[index];
    struct cuda_sample_args args = cuda_sample_args_of(sample, workspace, rows_max);
    const float *adjusted = sample->logits + index * sample->stride;
    coverage.rows++;
    struct sampler_scratch scratch;
    assert_true(sampler_scratch_bytes(request->vocab) <= sizeof scratch_memory);
    sampler_scratch_init(&scratch, request->vocab, scratch_memory);
    struct diag diag = {{0}};
    uint32_t token = UINT32_MAX;
    memcpy(scratch.logits, request->logits, request->vocab * sizeof request->logits[0]);
    status_t st = sampler_choose(&request->state, request->logits, &scratch, &diag, &token);
    /* What it adjusted is still in its scratch; a NaN may have any sign. */
    for (uint32_t i = 0; i < request->vocab; i++) {
        bool is_same = memcmp(&adjusted[i], &scratch.logits[i], sizeof adjusted[i]) == 0;
        if (!is_same && !(isnan(adjusted[i]) && isnan(scratch.logits[i]))) {
            fail_msg("%s: token %u is adjusted to %a, by the sampler to %a", what, i, (double)adjusted[i], (double)scratch.logits[i]);
        }
    }
    if (failed(st)) {
        struct logit_scan scan = token_mass_scan(adjusted, request->vocab);
        assert_int_equal(result->fault, scan.has_nan ? KERNELS_SAMPLE_NAN : KERNELS_SAMPLE_NONE);
        assert_int_equal(result->fault_at, scan.has_nan ? scan.nan_at : 0);
        coverage.nan += scan.has_nan;
        coverage.none += !scan.has_nan;
        return;
    }
    assert_int_equal(result->fault, KERNELS_SAMPLE_OK);
    assert_int_equal(result->fault_at, 0);
    uint32_t best = token_mass_scan(adjusted, request->vocab).argmax;
    if (is_own_draw && result->token != token) {
        fail_msg("%s: token %u, sampler_choose has %u (best %u)", what, result->token, token, best);
    }
    if (row->temperature == 0.0f) {
        coverage.greedy++;
        return;
    }
    uint64_t total;
    bool ties_cut;
    uint32_t count = kept_by_sorting(adjusted, request->vocab, row, kept, &total, &ties_cut);
    uint64_t device_total = 0;
    for (uint32_t i = 0; i < args.chunks; i++) { device_total += args.masses[index * args.chunks + i]; }
    if (device_total != total) {
        fail_msg("%s: mass %llu is kept, by sorting %u tokens of %llu", what, (unsigned long long)device_total, count,
                 (unsigned long long)total);
    }
    if (result->token != drawn(kept, total, row->bits)) {
        fail_msg("%s: token %u, by sorting %u", what, result->token, drawn(kept, total, row->bits));
    }
    coverage.one_kept += count == 1;
    coverage.best_not_chosen += result->token != best;
    note_paths(&args, index, ties_cut);
}

/* Runs requests of one vocabulary, with their own draws and with the two extreme ones. offset: elements by which the
 * device's logits start past 16 bytes. */
static void check_requests(const struct request *requests, uint32_t count, uint32_t stride, uint32_t offset,
                           const char *what)
{
    static const uint64_t extremes[2] = {0, UINT64_MAX};
    uint32_t vocab = requests[0].vocab;
    struct kernels_sample sample = {.rows = count, .vocab = vocab, .logits = device_logits + offset, .stride = stride,
                                    .params = rows, .adjusts = adjusts, .results = results};
    for (int draw = 0; draw < 3; draw++) {
        for (uint32_t i = 0; i < count; i++) {
            hand_over(&requests[i], i);
            if (draw > 0) { rows[i].bits = extremes[draw - 1]; }
            float *to = sample.logits + (size_t)i * stride;
            memcpy(to, requests[i].logits, vocab * sizeof to[0]);
            /* Between rows lie values that would win, were they read. */
            for (uint32_t j = vocab; j < stride; j++) { to[j] = 3e38f; }
        }
        memset(results, 0x5a, sizeof results);
        run_on_device(&sample);
        for (uint32_t i = 0; i < count; i++) { check_row(&sample, &requests[i], i, draw == 0, what); }
        for (uint32_t i = count; i <= ROWS; i++) { assert_int_equal(results[i].token, 0x5a5a5a5a); }
        for (uint32_t i = 0; i < count; i++) {
            for (uint32_t j = vocab; j < stride; j++) { assert_true(sample.logits[(size_t)i * stride + j] == 3e38f); }
        }
    }
}

static struct request request_of(uint32_t index, uint32_t vocab)
{
    struct request request = {.vocab = vocab, .params = sampling_params_default(), .logits = logits_memory[index]};
    request.params.max_tokens = SEEN_MAX;
    return request;
}

static void open_state(struct request *request, uint32_t index, uint32_t prompt_tokens)
{
    struct eos_tokens eos = {request->eos, 3};
    request->params.stop_tokens = request->stops;
    request->params.logit_bias = request->biases;
    assert_true(sampler_state_bytes(&request->params, request->vocab, prompt_tokens) <= sizeof state_memory[index]);
    sampler_state_init(&request->state, &request->params, eos, request->vocab, index, prompt_tokens, state_memory[index]);
}

/* ---- random rows --------------------------------------------------------------------------- */

static float normal(struct rng *rng)
{
    double u = rng_unit(rng), v = rng_unit(rng);
    return (float)(sqrt(-2.0 * log(1.0 - u)) * cos(6.283185307179586 * v));
}

static float pick(struct rng *rng, const float *from, uint32_t count) { return from[rng_below(rng, count)]; }
#define PICK(rng, ...) pick(rng, (const float[]){__VA_ARGS__}, sizeof((const float[]){__VA_ARGS__}) / sizeof(float))

static void fill_logits(struct rng *rng, float *logits, uint32_t vocab)
{
    uint32_t kind = (uint32_t)rng_below(rng, 12);
    float spread = PICK(rng, 0.01f, 1.0f, 3.0f, 10.0f, 1e4f);
    for (uint32_t i = 0; i < vocab; i++) {
        float x = normal(rng) * spread;
        switch (kind) {
        case 0: x = 1.25f; break;                                          /* all equal */
        case 1: x = (float)rng_below(rng, 3) - 1.0f; break;                /* few values */
        case 2: x = rintf(x * 4.0f) / 4.0f; break;                         /* steps, as of bf16 */
        case 3: x = rng_below(rng, 2) ? 0.0f : -0.0f; break;
        case 4: x = rng_below(rng, 4) ? -INFINITY : x; break;
        case 5: x = rng_below(rng, 200) ? x : INFINITY; break;
        case 6: x = rng_below(rng, 4) ? -1e30f : x; break;
        case 7: x = i == vocab / 2 ? 30.0f : x; break;                     /* one stands out */
        case 8: x = ldexpf(x, -140); break;                                /* subnormal */
        case 9: x = rng_below(rng, 100) ? -3e38f : 3e38f * (float)rng_unit(rng); break; /* differences overflow */
        default: break;
        }
        logits[i] = x;
    }
    if (rng_below(rng, 25) == 0) { logits[rng_below(rng, vocab)] = NAN; }
    if (rng_below(rng, 25) == 0) { logits[rng_below(rng, vocab)] = -NAN; }
    if (rng_below(rng, 40) == 0) {
        for (uint32_t i = 0; i < vocab; i++) { logits[i] = -INFINITY; }
    }
}

static struct request random_request(struct rng *rng, struct request *at, uint32_t index, uint32_t vocab)
{
    *at = request_of(index, vocab);
    struct sampling_params *params = &at->params;
    fill_logits(rng, at->logits, vocab);
    params->seed = rng_next(rng);
    params->temperature = PICK(rng, 0.0f, 1e-45f, 1e-3f, 0.3f, 0.7f, 1.0f, 1.0f, 2.0f, 100.0f);
    params->top_p = rng_below(rng, 2) ? 1.0f : PICK(rng, 1e-38f, 1e-6f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f, 0.99999994f);
    params->min_p = rng_below(rng, 3) ? 0.0f : PICK(rng, 1e-45f, 1e-13f, 1e-6f, 0.02f, 0.1f, 0.5f, 0.99999994f);
    if (rng_below(rng, 2)) {
        uint32_t choices[] = {1, 2, 5, 50, 500, 1023, 1024, 1025, 3000, vocab - 1, vocab, vocab + 10, UINT32_MAX};
        params->top_k = choices[rng_below(rng, sizeof choices / sizeof choices[0])];
    }
    if (rng_below(rng, 4) == 0) {
        params->logit_bias_count = (uint32_t)rng_below(rng, 20);
        if (params->logit_bias_count > vocab) { params->logit_bias_count = vocab; }
        uint32_t first = (uint32_t)rng_below(rng, vocab);
        for (uint32_t i = 0; i < params->logit_bias_count; i++) {
            at->biases[i] = (struct logit_bias){(first + i) % vocab, PICK(rng, -100.0f, 100.0f, 0.1f, -0.0f)};
        }
    }
    if (rng_below(rng, 3) == 0) { params->repetition_penalty = PICK(rng, 0.0001f, 0.8f, 1.1f, 1.3f, 10000.0f); }
    if (rng_below(rng, 3) == 0) { params->frequency_penalty = PICK(rng, -2.0f, 0.1f, 0.7f, 2.0f); }
    if (rng_below(rng, 3) == 0) { params->presence_penalty = PICK(rng, -2.0f, 0.3f, 2.0f); }
    params->ignore_eos = rng_below(rng, 2) == 0;
    params->min_tokens = (uint32_t)rng_below(rng, 2) * 20;
    params->stop_token_count = (uint32_t)rng_below(rng, 4);
    for (uint32_t i = 0; i < params->stop_token_count; i++) { at->stops[i] = (uint32_t)rng_below(rng, vocab); }
    for (uint32_t i = 0; i < 3; i++) { at->eos[i] = (uint32_t)rng_below(rng, (uint64_t)vocab + vocab / 2 + 1); }
    uint32_t prompt_tokens = (uint32_t)rng_below(rng, SEEN_MAX / 2) + 1;
    open_state(at, index, prompt_tokens);
    for (uint32_t i = 0; i < prompt_tokens; i++) {
        uint32_t token = (uint32_t)rng_below(rng, vocab);
        sampler_state_add_prompt(&at->state, &token, 1);
    }
    for (uint32_t i = (uint32_t)rng_below(rng, SEEN_MAX / 2); i > 0; i--) {
        sampler_state_add_output(&at->state, (uint32_t)rng_below(rng, vocab < 8 ? vocab : 8));
    }
    return *at;
}

/* Any row with any parameters: the token of sampler_choose(), and exactly the mass that a sort would keep; and random
 * rows go through every branch of the steps. */
static void random_rows_are_the_samplers(void **unused)
{
    (void)unused;
    static const uint32_t vocabs[] = {1, 2, 31, 32, 1000, 1000, 4097, 4097, 8192, 8193, 32000};
    static struct request requests[ROWS];
    uint64_t seed = seed_of_environment("SAMPLE_TEST_SEED", 1122);
    uint64_t batches = seed_of_environment("SAMPLE_TEST_BATCHES", 220);
    memset(&coverage, 0, sizeof coverage);
    for (uint64_t batch = 0; batch < batches; batch++) {
        struct rng rng = rng_init(seed * 1000003 + batch);
        uint32_t vocab = vocabs[batch % (sizeof vocabs / sizeof vocabs[0])];
        uint32_t count = (uint32_t)rng_below(&rng, ROWS) + 1;
        for (uint32_t i = 0; i < count; i++) { (void)random_request(&rng, &requests[i], i, vocab); }
        /* State borrows the params at their final place. */
        char what[200];
        const struct sampling_params *p = &requests[0].params;
        snprintf(what, sizeof what, "batch %llu, vocab %u, first row t %g k %u p %.9g m %g", (unsigned long long)batch, vocab,
                 (double)p->temperature, p->top_k, (double)p->top_p, (double)p->min_p);
        uint32_t stride = vocab + (uint32_t)rng_below(&rng, PAD);
        if (rng_below(&rng, 2)) { stride = (stride + 3) / 4 * 4; }
        check_requests(requests, count, stride, (uint32_t)rng_below(&rng, 2), what);
    }
    printf("rows %llu: greedy %llu, nan %llu, none %llu, drawn %llu, with a cut %llu (few %llu, big %llu, again %llu, long list "
           "%llu, among equals %llu), one kept %llu, not the best %llu\n",
           (unsigned long long)coverage.rows, (unsigned long long)coverage.greedy, (unsigned long long)coverage.nan,
           (unsigned long long)coverage.none, (unsigned long long)coverage.draw, (unsigned long long)coverage.histogram,
           (unsigned long long)coverage.few, (unsigned long long)coverage.big, (unsigned long long)coverage.again,
           (unsigned long long)coverage.overflow, (unsigned long long)coverage.ties_cut, (unsigned long long)coverage.one_kept,
           (unsigned long long)coverage.best_not_chosen);
    assert_true(coverage.greedy > 0);
    assert_true(coverage.nan > 0);
    assert_true(coverage.none > 0);
    assert_true(coverage.few > 0);
    assert_true(coverage.big > 0);
    assert_true(coverage.again > 0);
    assert_true(coverage.overflow > 0);
    assert_true(coverage.ties_cut > 0);
    assert_true(coverage.one_kept > 0);
    assert_true(coverage.best_not_chosen > coverage.draw / 4);
}

/* ---- by hand ------------------------------------------------------------------------------- */

/* The first NaN is named, whichever chunk it is in and whatever the mask is; it outranks having nothing to choose. */
static void the_first_nan_is_named(void **unused)
{
    (void)unused;
    static struct request requests[ROWS];
    for (uint32_t masked = 0; masked < 2; masked++) {
        for (uint32_t i = 0; i < ROWS; i++) {
            requests[i] = request_of(i, 20000);
            for (uint32_t token = 0; token < 20000; token++) { requests[i].logits[token] = masked ? -INFINITY : (float)token; }
        }
        requests[0].logits[19999] = NAN;
        requests[0].logits[8192] = -NAN;
        requests[1].logits[0] = NAN;
        requests[1].stops[0] = 0;
        requests[1].params.stop_token_count = 1;
        requests[1].params.min_tokens = 1;
        requests[2].logits[19998] = NAN;
        requests[2].params.temperature = 1.0f;
        requests[2].params.top_p = 0.5f;
        for (uint32_t i = 0; i < ROWS; i++) { open_state(&requests[i], i, 1); }
        check_requests(requests, ROWS, 20000, 0, "nan");
        assert_int_equal(results[0].fault, KERNELS_SAMPLE_NAN);
        assert_int_equal(results[0].fault_at, 8192);
        assert_int_equal(results[1].fault_at, 0);
        assert_int_equal(results[2].fault_at, 19998);
    }
}

/* A mask of min_tokens over everything leaves nothing to choose, and says so instead of a token. */
static void all_masked_is_a_fault(void **unused)
{
    (void)unused;
    static struct request request;
    for (int greedy = 0; greedy < 2; greedy++) {
        request = request_of(0, 3);
        for (uint32_t i = 0; i < 3; i++) {
            request.logits[i] = 1.0f;
            request.stops[i] = i;
        }
        request.params.stop_token_count = 3;
        request.params.min_tokens = 1;
        request.params.temperature = greedy ? 0.0f : 1.0f;
        open_state(&request, 0, 1);
        check_requests(&request, 1, 3, 0, "masked");
        assert_int_equal(results[0].fault, KERNELS_SAMPLE_NONE);
    }
}

/* Every mass is token_mass.h's to its last unit: sums over chunks of logits that lie close together, where a sum or
 * a product that is rounded otherwise shows in every few hundred of them. */
static void masses_are_exact(void **unused)
{
    (void)unused;
    static struct request request;
    struct rng rng = rng_init(5);
    const float depths[] = {0.001f, 0.3f, 0.7f, 2.0f, 33.0f, 50.0f};
    for (uint32_t round = 0; round < 24; round++) {
        request = request_of(0, 8192 * 3);
        request.params.temperature = round % 2 ? 1.0f : 0.83f;
        for (uint32_t i = 0; i < request.vocab; i++) {
            request.logits[i] = -depths[round / 2 % 6] * (float)rng_unit(&rng);
        }
        open_state(&request, 0, 1);
        check_requests(&request, 1, request.vocab, 0, "masses");
    }
}

/* top_p's share may end exactly with the last bin above the one in which top_k ends. */
static void a_share_may_end_between_bins(void **unused)
{
    (void)unused;
    static struct request request;
    request = request_of(0, 4000);
    /* All weigh ONE at this temperature: 1000 tokens in the upper half of the bins, 2000 equal ones, and a last. */
    for (uint32_t i = 0; i < 4000; i++) { request.logits[i] = i < 1000 ? -1e-16f * (float)i : i < 3999 ? -4e-13f : -8e-13f; }
    request.params.temperature = 100.0f;
    request.params.top_k = 2000;
    const float shares[] = {0.5f, 0.49999997f, 0.50000006f, 0.0004f, 0.9999f};
    for (uint32_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        request.params.top_p = shares[i];
        open_state(&request, 0, 1);
        check_requests(&request, 1, 4000, 0, "share");
    }
}

/* As many adjusted tokens as a long context has, more than the threads that share them out; one past the vocabulary
 * touches nothing. */
static void a_whole_context_is_adjusted(void **unused)
{
    (void)unused;
    enum { VOCAB = 30000, COUNT = 9000 };
    static struct kernels_sample_adjust many[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        many[i] = (struct kernels_sample_adjust){.token = i * 3, .output_count = i % 5, .is_seen = 1};
    }
    many[77].token = VOCAB;
    struct kernels_sample sample = {.rows = 1, .vocab = VOCAB, .logits = device_logits, .stride = VOCAB + 4,
                                    .params = rows, .adjusts = many, .results = results};
    rows[0] = (struct kernels_sample_row){.adjust_count = COUNT, .top_p = 1.0f, .repetition = 1.7f, .frequency = 0.3f, .presence = 0.1f};
    for (uint32_t i = 0; i < VOCAB + 4; i++) { device_logits[i] = i % 2 ? 3.0f : -3.0f; }
    run_on_device(&sample);
    assert_int_equal(results[0].fault, KERNELS_SAMPLE_OK);
    assert_int_equal(results[0].token, 1);
    for (uint32_t i = 0; i < VOCAB + 4; i++) {
        float expect = i % 2 ? 3.0f : -3.0f;
        if (i % 3 == 0 && i / 3 < COUNT && i / 3 != 77 && i < VOCAB) {
            expect = expect > 0.0f ? expect / 1.7f : expect * 1.7f;
            if (i / 3 % 5 > 0) {
                expect -= 0.3f * (float)(i / 3 % 5);
                expect -= 0.1f;
            }
        }
        assert_true(device_logits[i] == expect);
    }
}

/* The widest vocabulary there may be, flat and steep, by every filter; and rows of other vocabularies as they come. */
static void wide_rows_are_the_samplers(void **unused)
{
    (void)unused;
    static const uint32_t vocabs[] = {50257, 128256, 151936, 262144, TOKEN_MASS_VOCAB_MAX};
    for (uint32_t v = 0; v < sizeof vocabs / sizeof vocabs[0]; v++) {
        uint32_t vocab = vocabs[v];
        size_t bytes = cuda_sample_workspace_bytes(1, vocab);
        void *wide_workspace = aligned_alloc(256, bytes);
        float *logits = malloc(vocab * sizeof *logits);
        void *scratch_bytes = malloc(sampler_scratch_bytes(vocab));
        struct sampler_scratch scratch;
        sampler_scratch_init(&scratch, vocab, scratch_bytes);
        struct rng rng = rng_init(vocab);
        for (uint32_t way = 0; way < 5; way++) {
            struct sampling_params params = sampling_params_default();
            params.seed = rng_next(&rng);
            params.temperature = way == 4 ? 0.0f : 1.0f;
            params.top_p = way == 1 || way == 3 ? 0.95f : 1.0f;
            params.top_k = way == 2 ? 50 : way == 3 ? 40000 : 0;
            for (uint32_t i = 0; i < vocab; i++) { logits[i] = normal(&rng) * (v % 2 ? 1.0f : 4.0f); }
            struct sampler_state state;
            sampler_state_init(&state, &params, (struct eos_tokens){0}, vocab, 0, 1, NULL);
            struct diag diag;
            uint32_t token;
            assert_false(failed(sampler_choose(&state, logits, &scratch, &diag, &token)));
            rows[0] = (struct kernels_sample_row){.temperature = params.temperature, .top_p = params.top_p, .repetition = 1.0f,
                                                  .top_k = params.top_k, .bits = counter_rng_draw(params.seed, 0, 0)};
            struct kernels_sample sample = {.rows = 1, .vocab = vocab, .logits = logits, .stride = vocab, .params = rows,
                                            .adjusts = adjusts, .results = results};
            void *usual = workspace;
            size_t usual_bytes = workspace_bytes;
            workspace = wide_workspace;
            workspace_bytes = bytes;
            rows_max = 1;
            run_on_device(&sample);
            rows_max = ROWS;
            workspace = usual;
            workspace_bytes = usual_bytes;
            assert_int_equal(results[0].fault, KERNELS_SAMPLE_OK);
            assert_int_equal(results[0].token, token);
        }
        free(scratch_bytes);
        free(logits);
        free(wide_workspace);
    }
}

/* A graph can hold the launches: their shapes follow from rows and vocabulary, and no rows launch nothing. */
static void shapes_follow_from_rows_and_vocabulary(void **unused)
{
    (void)unused;
    for (unsigned step = 0; step < CUDA_SAMPLE_STEPS; step++) {
        struct kernels_sample sample = {.rows = 7, .vocab = 8193, .logits = device_logits, .stride = 8193, .params = rows,
                                        .adjusts = adjusts, .results = results};
        struct cuda_launch first, second;
        memset(rows, 0, sizeof rows);
        struct cuda_sample_args args = cuda_sample_args_of(&sample, workspace, 7);
        cuda_sample_shape(&args, (enum cuda_sample_step)step, &first);
        memset(rows, 0x77, sizeof rows);
        sample.stride = 9000;
        args = cuda_sample_args_of(&sample, workspace, 9);
        cuda_sample_shape(&args, (enum cuda_sample_step)step, &second);
        assert_memory_equal(&first, &second, sizeof first);
        assert_int_equal(first.grid[1], 7);
        assert_int_equal(first.block[0], CUDA_SAMPLE_THREADS);
        if (step != CUDA_SAMPLE_ADJUST) { assert_int_equal(first.grid[0], 2); }
        sample.rows = 0;
        args = cuda_sample_args_of(&sample, workspace, 9);
        cuda_sample_shape(&args, (enum cuda_sample_step)step, &first);
        assert_int_equal(first.grid[1], 0);
    }
}

int main(void)
{
    workspace_bytes = cuda_sample_workspace_bytes(ROWS, VOCAB_MAX);
    workspace = aligned_alloc(256, (workspace_bytes + 255) / 256 * 256);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_nan_is_named),
        cmocka_unit_test(all_masked_is_a_fault),
        cmocka_unit_test(masses_are_exact),
        cmocka_unit_test(a_share_may_end_between_bins),
        cmocka_unit_test(a_whole_context_is_adjusted),
        cmocka_unit_test(wide_rows_are_the_samplers),
        cmocka_unit_test(shapes_follow_from_rows_and_vocabulary),
        cmocka_unit_test(random_rows_are_the_samplers),
    };
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    free(workspace);
    return failures;
}
