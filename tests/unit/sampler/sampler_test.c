/* sampler: each rule by hand, the whole against a naive reference in double, the draws by
 * chi-square, and the same continuation from every position. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/counter_rng.h"
#include "base/rng.h"
#include "model/sampler.h"

enum { VOCAB_MAX = 16000, OUTPUT_MAX = 4096 };

static uint64_t scratch_memory[VOCAB_MAX * 3 + 64];
static uint64_t state_memory[2][16384];
static const struct eos_tokens no_eos = {0};

static struct sampler_scratch scratch_for(uint32_t vocab)
{
    struct sampler_scratch scratch;
    assert_true(sampler_scratch_bytes(vocab) <= sizeof scratch_memory);
    sampler_scratch_init(&scratch, vocab, scratch_memory);
    return scratch;
}

static struct sampler_state state_for(const struct sampling_params *params, struct eos_tokens eos, uint32_t vocab,
                                      uint32_t sequence, uint32_t prompt_tokens, int which)
{
    struct sampler_state state;
    size_t bytes = sampler_state_bytes(params, vocab, prompt_tokens);
    assert_true(bytes <= sizeof state_memory[which]);
    assert_true(bytes <= sampler_state_bytes_max(vocab, prompt_tokens + params->max_tokens));
    memset(state_memory[which], 0xa5, sizeof state_memory[which]); /* init must not count on zeros */
    sampler_state_init(&state, params, eos, vocab, sequence, prompt_tokens, state_memory[which]);
    return state;
}

static uint32_t choose(const struct sampler_state *state, const float *logits)
{
    struct sampler_scratch scratch = scratch_for(state->vocab_size);
    struct diag diag = {{0}};
    uint32_t token = UINT32_MAX;
    status_t st = sampler_choose(state, logits, &scratch, &diag, &token);
    if (failed(st)) { print_message("%s\n", diag.text); }
    assert_false(failed(st));
    assert_true(token < state->vocab_size);
    return token;
}

static struct sampling_params params_with(float temperature)
{
    struct sampling_params params = sampling_params_default();
    params.temperature = temperature;
    params.max_tokens = OUTPUT_MAX;
    params.seed = 42;
    return params;
}

/* Which of up to 64 tokens come up. */
static uint64_t support(const struct sampling_params *params, const float *logits, uint32_t vocab, uint32_t draws)
{
    struct sampler_state state = state_for(params, no_eos, vocab, 0, 1, 0);
    uint64_t seen = 0;
    for (uint32_t i = 0; i < draws; i++) {
        state.output_count = i;
        seen |= (uint64_t)1 << choose(&state, logits);
    }
    return seen;
}

/* A NaN, wherever it is and whatever is masked, is INTERNAL and names the position and token. */
static void nan_is_an_error_with_a_position(void **unused)
{
    (void)unused;
    float logits[5] = {1, 2, 3, NAN, 5};
    static const uint32_t stops[] = {3};
    for (int with_mask = 0; with_mask < 2; with_mask++) {
        struct sampling_params params = params_with(with_mask ? 1.0f : 0.0f);
        params.min_tokens = 100;
        params.stop_tokens = stops;
        params.stop_token_count = with_mask ? 1 : 0;
        struct sampler_state state = state_for(&params, no_eos, 5, 2, 1, 0);
        sampler_state_add_output(&state, 0);
        struct sampler_scratch scratch = scratch_for(5);
        struct diag diag = {{0}};
        uint32_t token = 99;
        status_t st = sampler_choose(&state, logits, &scratch, &diag, &token);
        assert_int_equal(st.code, ST_INTERNAL);
        assert_int_equal(st.scope, SCOPE_REQUEST);
        assert_int_equal(token, 99);
        assert_non_null(strstr(diag.text, "output position 1, sequence 2"));
        assert_non_null(strstr(diag.text, "token 3"));
    }
}

/* Nothing left to choose is an error, not a token. */
static void all_masked_is_an_error(void **unused)
{
    (void)unused;
    const float logits[2] = {1, 2};
    static const uint32_t stops[] = {0, 1};
    struct sampling_params params = params_with(1.0f);
    params.min_tokens = 1;
    params.stop_tokens = stops;
    params.stop_token_count = 2;
    struct sampler_state state = state_for(&params, no_eos, 2, 0, 1, 0);
    struct sampler_scratch scratch = scratch_for(2);
    struct diag diag = {{0}};
    uint32_t token;
    assert_int_equal(sampler_choose(&state, logits, &scratch, &diag, &token).code, ST_INTERNAL);
    assert_non_null(strstr(diag.text, "min_tokens"));
}

/* Holders of +inf share the draw; -inf is never drawn, with every filter. */
static void infinities_are_drawn_or_not(void **unused)
{
    (void)unused;
    const float high[5] = {1, INFINITY, 3, INFINITY, -INFINITY};
    const float low[5] = {-INFINITY, 0, -INFINITY, 0, 0};
    struct sampling_params params = params_with(1.0f);
    for (int filter = 0; filter < 4; filter++) {
        params.top_k = filter == 1 ? 4 : 0;
        params.top_p = filter == 2 ? 0.999f : 1.0f;
        params.min_p = filter == 3 ? 1e-6f : 0.0f;
        assert_int_equal(support(&params, high, 5, 200), 0x0a);
        assert_int_equal(support(&params, low, 5, 200), 0x1a);
    }
    params.temperature = 0.0f;
    assert_int_equal(support(&params, high, 5, 3), 0x02);
}

/* temperature 0 takes the best, equal ones by the lower id, whatever the seed and sequence. */
static void greedy_takes_the_lowest_of_the_best(void **unused)
{
    (void)unused;
    const float logits[6] = {-1, 0, 7, 7, -3, 7};
    struct sampling_params params = params_with(0.0f);
    for (uint32_t sequence = 0; sequence < 3; sequence++) {
        struct sampler_state state = state_for(&params, no_eos, 6, sequence, 1, 0);
        assert_int_equal(choose(&state, logits), 2);
    }
    params.top_k = 3; /* filters do not matter */
    params.top_p = 0.1f;
    struct sampler_state state = state_for(&params, no_eos, 6, 0, 1, 0);
    assert_int_equal(choose(&state, logits), 2);
}

/* A bias is added first: it can lift a token over all, or under all. */
static void bias_moves_tokens(void **unused)
{
    (void)unused;
    const float logits[3] = {1.0f, 1.5f, 2.0f};
    struct logit_bias bias[2] = {{0, 0.75f}, {2, -100.0f}};
    struct sampling_params params = params_with(0.0f);
    params.logit_bias = bias;
    params.logit_bias_count = 2;
    struct sampler_state state = state_for(&params, no_eos, 3, 0, 1, 0);
    assert_int_equal(choose(&state, logits), 0); /* 1.75, 1.5, -98 */
    bias[0].bias = 0.25f;
    assert_int_equal(choose(&state, logits), 1);
}

/* With min_tokens = 2, end tokens cannot be outputs 0 and 1; output 2 may be one. */
static void min_tokens_masks_end_tokens(void **unused)
{
    (void)unused;
    const float logits[4] = {9, 8, 7, 6};
    static const uint32_t stops[] = {1};
    static const uint32_t eos[] = {0, 4000000}; /* one that this vocabulary lacks is no harm */
    struct sampling_params params = params_with(0.0f);
    params.min_tokens = 2;
    params.stop_tokens = stops;
    params.stop_token_count = 1;
    struct sampler_state state = state_for(&params, (struct eos_tokens){eos, 2}, 4, 0, 1, 0);
    assert_int_equal(choose(&state, logits), 2);
    sampler_state_add_output(&state, 2);
    assert_int_equal(choose(&state, logits), 2);
    sampler_state_add_output(&state, 2);
    assert_int_equal(choose(&state, logits), 0);
    params.ignore_eos = true; /* then eos ends nothing and is as any token */
    state = state_for(&params, (struct eos_tokens){eos, 2}, 4, 0, 1, 0);
    assert_int_equal(choose(&state, logits), 0);
}

/* Repetition: prompt and output, positive logits divided, negative ones multiplied. */
static void repetition_by_hand(void **unused)
{
    (void)unused;
    struct sampling_params params = params_with(0.0f);
    params.repetition_penalty = 2.0f;
    const float positive[3] = {4.0f, 2.5f, 1.0f};
    struct sampler_state state = state_for(&params, no_eos, 3, 0, 2, 0);
    assert_int_equal(choose(&state, positive), 0);
    sampler_state_add_prompt(&state, (const uint32_t[]){0, 0}, 2); /* twice counts once: 4 / 2 */
    assert_int_equal(choose(&state, positive), 1);
    sampler_state_add_output(&state, 1); /* 2, 1.25, 1 */
    assert_int_equal(choose(&state, positive), 0);
    const float negative[3] = {-1.0f, -1.1f, -1.5f}; /* -2, -2.2, -1.5 */
    assert_int_equal(choose(&state, negative), 2);
}

/* Frequency counts, presence does not; both leave the prompt alone. */
static void frequency_and_presence_by_hand(void **unused)
{
    (void)unused;
    const float logits[3] = {5.0f, 4.0f, 2.6f};
    struct sampling_params params = params_with(0.0f);
    params.frequency_penalty = 0.75f;
    struct sampler_state state = state_for(&params, no_eos, 3, 0, 2, 0);
    sampler_state_add_prompt(&state, (const uint32_t[]){0, 0}, 2);
    assert_int_equal(choose(&state, logits), 0);
    sampler_state_add_output(&state, 0); /* 4.25 */
    assert_int_equal(choose(&state, logits), 0);
    sampler_state_add_output(&state, 0); /* 3.5 */
    assert_int_equal(choose(&state, logits), 1);
    params.frequency_penalty = 0.0f;
    params.presence_penalty = 0.75f;
    state = state_for(&params, no_eos, 3, 0, 2, 0);
    for (int i = 0; i < 5; i++) { sampler_state_add_output(&state, 0); } /* 4.25 for good */
    assert_int_equal(choose(&state, logits), 0);
    params.presence_penalty = 1.5f;
    assert_int_equal(choose(&state, logits), 1); /* 3.5 */
}

/* top_k keeps exactly k; of equal logits the lower ids. */
static void top_k_keeps_k(void **unused)
{
    (void)unused;
    const float logits[6] = {0, 1, 1, 0.5f, 1, 1};
    struct sampling_params params = params_with(1.0f);
    params.top_k = 1;
    assert_int_equal(support(&params, logits, 6, 100), 0x02);
    params.top_k = 3;
    assert_int_equal(support(&params, logits, 6, 300), 0x16);
    params.top_k = 5;
    assert_int_equal(support(&params, logits, 6, 300), 0x3e);
    params.top_k = 4000000000u; /* more than there are is off */
    assert_int_equal(support(&params, logits, 6, 1000), 0x3f);
}

/* top_p keeps the shortest run with the mass, at least one token; its share is of what top_k left. */
static void top_p_keeps_the_shortest_run(void **unused)
{
    (void)unused;
    const float equal[4] = {0, 0, 0, 0};
    struct sampling_params params = params_with(1.0f);
    params.top_p = 0.5f;
    assert_int_equal(support(&params, equal, 4, 200), 0x03);
    params.top_p = 0.51f;
    assert_int_equal(support(&params, equal, 4, 200), 0x07);
    params.top_p = 1e-9f;
    assert_int_equal(support(&params, equal, 4, 200), 0x01);
    params.top_p = 0.75f;
    params.top_k = 2; /* 0.75 of two equal ones is both */
    assert_int_equal(support(&params, equal, 4, 200), 0x03);
    /* ln 4, ln 2, 0, 0: 1/2, 1/4, 1/8, 1/8 */
    const float halves[4] = {0.0f, 1.3862944f, 0.0f, 0.6931472f};
    params.top_k = 0;
    params.top_p = 0.49f;
    assert_int_equal(support(&params, halves, 4, 200), 0x02);
    params.top_p = 0.6f;
    assert_int_equal(support(&params, halves, 4, 200), 0x0a);
    params.top_p = 0.8f;
    assert_int_equal(support(&params, halves, 4, 400), 0x0b);
}

/* min_p keeps what has that share of the best one's probability, after the temperature. */
static void min_p_keeps_a_share_of_the_best(void **unused)
{
    (void)unused;
    const float halves[4] = {0.0f, 1.3862944f, -2.0f, 0.6931472f};
    struct sampling_params params = params_with(1.0f);
    params.min_p = 0.45f;
    assert_int_equal(support(&params, halves, 4, 200), 0x0a);
    params.min_p = 0.55f;
    assert_int_equal(support(&params, halves, 4, 200), 0x02);
    params.temperature = 2.0f; /* now 1/2 is 0.71 of the best, 1/4 is 0.5 */
    assert_int_equal(support(&params, halves, 4, 200), 0x0a);
    params.min_p = 0.45f;
    assert_int_equal(support(&params, halves, 4, 300), 0x0b);
    params.top_k = 2; /* both apply */
    assert_int_equal(support(&params, halves, 4, 200), 0x0a);
}

/* Draws follow the softmax: chi-square of 40,000 draws, with and without filters. */
static void draws_follow_the_distribution(void **unused)
{
    (void)unused;
    enum { N = 12, DRAWS = 40000 };
    float logits[N];
    for (int i = 0; i < N; i++) { logits[i] = 0.3f * (float)((i * 5) % N); }
    for (int filter = 0; filter < 3; filter++) {
        struct sampling_params params = params_with(1.3f);
        params.seed = 1000 + (uint64_t)filter;
        if (filter == 1) { params.top_k = 7; }
        if (filter == 2) { params.top_p = 0.83f; } /* 6 have 0.800, 7 have 0.855 */
        params.max_tokens = DRAWS;
        struct sampler_state state = state_for(&params, no_eos, N, 0, 1, 0);
        uint32_t seen[N] = {0};
        for (uint32_t i = 0; i < DRAWS; i++) {
            state.output_count = i;
            seen[choose(&state, logits)]++;
        }
        double sum = 0, weight[N];
        int kept = 0;
        for (int i = 0; i < N; i++) {
            weight[i] = seen[i] ? exp((double)logits[i] / (double)params.temperature) : 0;
            sum += weight[i];
            kept += seen[i] > 0;
        }
        assert_int_equal(kept, filter == 0 ? 12 : 7);
        double chi = 0;
        for (int i = 0; i < N; i++) {
            double want = DRAWS * weight[i] / sum;
            if (want > 0) { chi += (seen[i] - want) * (seen[i] - want) / want; }
        }
        assert_true(chi < 31.26); /* 11 degrees of freedom, 0.999; fewer with filters */
    }
}

/* Streams of two sequences, and of two seeds, are independent: chi-square of the pairs. */
static void sequences_are_independent(void **unused)
{
    (void)unused;
    enum { N = 4, DRAWS = 16000 };
    const float logits[N] = {0, 0, 0, 0};
    for (int by_seed = 0; by_seed < 2; by_seed++) {
        struct sampling_params a = params_with(1.0f), b = a;
        b.seed += by_seed ? 1 : 0;
        struct sampler_state left = state_for(&a, no_eos, N, 0, 1, 0);
        struct sampler_state right = state_for(&b, no_eos, N, by_seed ? 0 : 1, 1, 1);
        uint32_t pairs[N * N] = {0};
        for (uint32_t i = 0; i < DRAWS; i++) {
            left.output_count = right.output_count = i;
            pairs[choose(&left, logits) * N + choose(&right, logits)]++;
        }
        double chi = 0;
        for (int i = 0; i < N * N; i++) { chi += (pairs[i] - 1000.0) * (pairs[i] - 1000.0) / 1000.0; }
        assert_true(chi < 37.70); /* 15 degrees of freedom, 0.999 */
    }
}

/* ---- the naive reference --------------------------------------------------------------- */

struct ref_token {
    double logit, weight;
    uint32_t token;
    int kept;
};

static int ref_by_order(const void *a, const void *b)
{
    const struct ref_token *x = a, *y = b;
    if (x->logit != y->logit) { return x->logit > y->logit ? -1 : 1; }
    return x->token < y->token ? -1 : 1;
}

static int ref_by_token(const void *a, const void *b)
{
    const struct ref_token *x = a, *y = b;
    return x->token < y->token ? -1 : 1;
}

static struct ref_token ref[VOCAB_MAX];

/* Chooses by the header's text, in double, by a full sort and counting tokens one by one.
 * Returns UINT32_MAX where double rounding could tip the balance. */
static uint32_t ref_choose(const struct sampling_params *p, const float *logits, uint32_t vocab,
                           const uint32_t *prompt, uint32_t prompt_count, const uint32_t *output,
                           uint32_t output_count, uint32_t sequence)
{
    const double slack = 1e-7;
    for (uint32_t t = 0; t < vocab; t++) {
        float x = logits[t]; /* adjusted in f32, as the row is f32 */
        for (uint32_t i = 0; i < p->logit_bias_count; i++) {
            if (p->logit_bias[i].token == t) { x += p->logit_bias[i].bias; }
        }
        for (uint32_t i = 0; i < p->stop_token_count && output_count < p->min_tokens; i++) {
            if (p->stop_tokens[i] == t) { x = -INFINITY; }
        }
        uint32_t in_prompt = 0, in_output = 0;
        for (uint32_t i = 0; i < prompt_count; i++) { in_prompt += prompt[i] == t; }
        for (uint32_t i = 0; i < output_count; i++) { in_output += output[i] == t; }
        if (in_prompt + in_output > 0) { x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty; }
        x -= p->frequency_penalty * (float)in_output;
        x -= in_output > 0 ? p->presence_penalty : 0.0f;
        ref[t] = (struct ref_token){.logit = (double)x, .token = t};
    }
    qsort(ref, vocab, sizeof ref[0], ref_by_order);
    if (p->temperature == 0.0f) { return ref[0].token; }
    double total = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        ref[i].weight = exp((ref[i].logit - ref[0].logit) / (double)p->temperature);
        ref[i].kept = p->top_k == 0 || i < p->top_k;
        if (ref[i].kept) { total += ref[i].weight; }
    }
    double sum = 0;
    for (uint32_t i = 0; i < vocab && ref[i].kept && p->top_p < 1.0f; i++) {
        double gap = sum / total - (double)p->top_p;
        if (i > 0 && fabs(gap) < slack) { return UINT32_MAX; }
        sum += ref[i].weight;
        if (gap >= 0) { ref[i].kept = 0; sum = 2 * total; }
    }
    for (uint32_t i = 1, over = 0; i < vocab; i++) { /* once one is out, all after it are */
        over |= !ref[i].kept;
        if (over) { ref[i].kept = 0; }
        if (p->min_p > 0 && fabs(ref[i].weight - (double)p->min_p) < slack) { return UINT32_MAX; }
        if (ref[i].weight < (double)p->min_p) { ref[i].kept = 0; }
    }
    qsort(ref, vocab, sizeof ref[0], ref_by_token);
    total = sum = 0;
    for (uint32_t i = 0; i < vocab; i++) { total += ref[i].kept ? ref[i].weight : 0; }
    double u = (double)counter_rng_draw(p->seed, sequence, output_count) * 0x1p-64 * total;
    for (uint32_t i = 0; i < vocab; i++) {
        if (!ref[i].kept) { continue; }
        sum += ref[i].weight;
        if (fabs(sum - u) < slack * total) { return UINT32_MAX; }
        if (u < sum) { return ref[i].token; }
    }
    return UINT32_MAX;
}

/* A large top_k over a long row, which is found by the maxima of blocks, keeps what sorting keeps, ties and -inf
 * included: many draws choose the reference's token. */
static void large_top_k_equals_the_naive_reference(void **unused)
{
    (void)unused;
    static float logits[VOCAB_MAX];
    struct rng rng = rng_init(78);
    uint32_t compared = 0;
    for (uint32_t round = 0; round < 60; round++) {
        uint32_t vocab = VOCAB_MAX - (uint32_t)rng_below(&rng, 200);
        double width = 0.5 + rng_unit(&rng) * 6;
        for (uint32_t i = 0; i < vocab; i++) {
            logits[i] = (float)((rng_unit(&rng) - 0.6) * width);
            if (round % 3 == 0) { logits[i] = roundf(logits[i] * 4) / 4; }
            if (round % 5 == 0 && i % 64 != 3) { logits[i] = -INFINITY; } /* as many blocks as tokens that may be had */
        }
        struct sampling_params params = params_with(1.5f);
        params.seed = rng_next(&rng);
        params.top_k = 100 + (uint32_t)rng_below(&rng, vocab / 64 + 40 - 100); /* either side of both limits */
        struct sampler_state state = state_for(&params, no_eos, vocab, 0, 0, 0);
        uint32_t output[4];
        for (uint32_t step = 0; step < 4; step++) {
            uint32_t want = ref_choose(&params, logits, vocab, NULL, 0, output, step, 0);
            output[step] = choose(&state, logits);
            if (want != UINT32_MAX) { assert_int_equal(output[step], want); }
            compared += want != UINT32_MAX;
            sampler_state_add_output(&state, output[step]);
        }
    }
    assert_true(compared > 200);
}

/* Random rows and random parameters: the sampler and the reference choose the same token. */
static void equals_the_naive_reference(void **unused)
{
    (void)unused;
    static float logits[VOCAB_MAX];
    uint64_t seed = 77;
    struct rng rng = rng_init(seed);
    uint32_t compared = 0, skipped = 0;
    for (uint32_t round = 0; round < 1500; round++) {
        uint32_t vocab = 20 + (uint32_t)rng_below(&rng, round % 10 ? 150 : 2980);
        double width = 0.5 + rng_unit(&rng) * 12;
        for (uint32_t i = 0; i < vocab; i++) {
            logits[i] = (float)((rng_unit(&rng) - 0.6) * width);
            if (round % 4 == 0) { logits[i] = roundf(logits[i]); } /* ties */
        }
        struct sampling_params params = params_with(round % 9 == 0 ? 0.0f : (float)(0.05 + rng_unit(&rng) * 2));
        params.seed = rng_next(&rng);
        if (rng_below(&rng, 2)) { params.top_k = 1 + (uint32_t)rng_below(&rng, vocab + 5); }
        if (rng_below(&rng, 2)) { params.top_p = (float)(1.0 - rng_unit(&rng)); }
        if (rng_below(&rng, 3) == 0) { params.min_p = (float)(rng_unit(&rng) * 0.5); }
        if (rng_below(&rng, 2)) { params.repetition_penalty = (float)(0.5 + rng_unit(&rng) * 1.5); }
        if (rng_below(&rng, 2)) { params.frequency_penalty = (float)(rng_unit(&rng) * 4 - 2); }
        if (rng_below(&rng, 2)) { params.presence_penalty = (float)(rng_unit(&rng) * 4 - 2); }
        struct logit_bias bias[2] = {{1, 3.5f}, {9, -2.25f}};
        params.logit_bias = bias;
        params.logit_bias_count = (uint32_t)rng_below(&rng, 3);
        uint32_t stops[3] = {0, 5, 6};
        params.stop_tokens = stops;
        params.stop_token_count = (uint32_t)rng_below(&rng, 4);
        params.min_tokens = (uint32_t)rng_below(&rng, 8);
        uint32_t prompt[12], output[8];
        for (int i = 0; i < 12; i++) { prompt[i] = (uint32_t)rng_below(&rng, vocab); }
        uint32_t sequence = (uint32_t)rng_below(&rng, 3);
        struct sampler_state state = state_for(&params, no_eos, vocab, sequence, 12, 0);
        sampler_state_add_prompt(&state, prompt, 12);
        for (uint32_t step = 0; step < 8; step++) {
            uint32_t want = ref_choose(&params, logits, vocab, prompt, 12, output, step, sequence);
            uint32_t got = choose(&state, logits);
            if (want == UINT32_MAX) {
                skipped++;
            } else {
                if (got != want) { print_message("seed %llu round %u step %u\n", (unsigned long long)seed, round, step); }
                assert_int_equal(got, want);
                compared++;
            }
            output[step] = got;
            sampler_state_add_output(&state, got);
        }
    }
    assert_true(skipped < compared / 100);
}

/* ---- resume ---------------------------------------------------------------------------- */

/* Logits that depend on the last token and the position, as a model's do. */
static void model_row(uint32_t last, uint32_t position, uint32_t vocab, float *row)
{
    struct rng rng = rng_init(last * 1000003u + position);
    for (uint32_t i = 0; i < vocab; i++) { row[i] = (float)(rng_unit(&rng) * 8 - 4); }
}

/* A state rebuilt from the tokens at any position goes on exactly as the undisturbed one. */
static void resume_anywhere_goes_on_the_same(void **unused)
{
    (void)unused;
    enum { VOCAB = 200, LEN = 40 };
    float row[VOCAB];
    const uint32_t prompt[5] = {3, 1, 4, 1, 5};
    for (int kind = 0; kind < 4; kind++) {
        struct sampling_params params = params_with(kind == 0 ? 0.0f : 0.9f);
        params.max_tokens = LEN;
        params.repetition_penalty = 1.2f;
        params.frequency_penalty = 0.3f;
        params.presence_penalty = -0.1f;
        params.top_k = kind == 2 ? 20 : 0;
        params.top_p = kind >= 2 ? 0.85f : 1.0f;
        uint32_t tokens[LEN];
        struct sampler_state state = state_for(&params, no_eos, VOCAB, 1, 5, 0);
        sampler_state_add_prompt(&state, prompt, 5);
        for (uint32_t i = 0; i < LEN; i++) {
            model_row(i ? tokens[i - 1] : prompt[4], i, VOCAB, row);
            tokens[i] = choose(&state, row);
            sampler_state_add_output(&state, tokens[i]);
        }
        for (uint32_t cut = 0; cut <= LEN; cut++) {
            struct sampler_state other = state_for(&params, no_eos, VOCAB, 1, 5, 1);
            sampler_state_add_prompt(&other, prompt, 2); /* in parts, as chunks come */
            sampler_state_add_prompt(&other, prompt + 2, 3);
            for (uint32_t i = 0; i < cut; i++) { sampler_state_add_output(&other, tokens[i]); }
            for (uint32_t i = cut; i < LEN; i++) {
                model_row(i ? tokens[i - 1] : prompt[4], i, VOCAB, row);
                assert_int_equal(choose(&other, row), tokens[i]);
                sampler_state_add_output(&other, tokens[i]);
            }
        }
    }
}

/* Choosing changes neither the state nor the row: a step that is done again gives its token again. */
static void choosing_twice_is_choosing_once(void **unused)
{
    (void)unused;
    float row[50], before[50];
    model_row(1, 1, 50, row);
    memcpy(before, row, sizeof row);
    struct sampling_params params = params_with(1.0f);
    params.repetition_penalty = 1.5f;
    params.top_p = 0.9f;
    struct sampler_state state = state_for(&params, no_eos, 50, 0, 3, 0);
    sampler_state_add_prompt(&state, (const uint32_t[]){7, 8, 9}, 3);
    uint32_t token = choose(&state, row);
    assert_int_equal(choose(&state, row), token);
    assert_memory_equal(row, before, sizeof row);
}

/* The table takes max_tokens outputs of a vocabulary that is smaller, and of one that is larger; and
 * a request without penalties needs no memory. */
static void state_is_bounded(void **unused)
{
    (void)unused;
    struct sampling_params params = params_with(1.0f);
    assert_int_equal(sampler_state_bytes(&params, 1000, 500), 0);
    struct sampler_state plain;
    sampler_state_init(&plain, &params, no_eos, 1000, 0, 500, NULL);
    sampler_state_add_prompt(&plain, (const uint32_t[]){1}, 1);
    sampler_state_add_output(&plain, 1);
    params.frequency_penalty = 1.0f;
    assert_int_equal(sampler_state_bytes(&params, 100, 500), sampler_state_bytes(&params, 100, 5));
    params.repetition_penalty = 2.0f;
    params.max_tokens = 1000;
    for (int small = 0; small < 2; small++) {
        uint32_t vocab = small ? 30 : 3000;
        struct sampler_state state = state_for(&params, no_eos, vocab, 0, 200, 0);
        for (uint32_t i = 0; i < 200; i++) { sampler_state_add_prompt(&state, &(uint32_t){i % vocab}, 1); }
        for (uint32_t i = 0; i < 1000; i++) { sampler_state_add_output(&state, (200 + i) % vocab); }
        assert_int_equal(state.count_len, small ? 30 : 1200);
        assert_int_equal(state.count_len, state.count_max);
        uint32_t outputs = 0;
        for (uint32_t i = 0; i < state.count_len; i++) { outputs += state.counts[i].output_count; }
        assert_int_equal(outputs, 1000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nan_is_an_error_with_a_position), cmocka_unit_test(all_masked_is_an_error),
        cmocka_unit_test(infinities_are_drawn_or_not), cmocka_unit_test(greedy_takes_the_lowest_of_the_best),
        cmocka_unit_test(bias_moves_tokens), cmocka_unit_test(min_tokens_masks_end_tokens),
        cmocka_unit_test(repetition_by_hand), cmocka_unit_test(frequency_and_presence_by_hand),
        cmocka_unit_test(top_k_keeps_k), cmocka_unit_test(top_p_keeps_the_shortest_run),
        cmocka_unit_test(min_p_keeps_a_share_of_the_best), cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(sequences_are_independent), cmocka_unit_test(large_top_k_equals_the_naive_reference), cmocka_unit_test(equals_the_naive_reference),
        cmocka_unit_test(resume_anywhere_goes_on_the_same), cmocka_unit_test(choosing_twice_is_choosing_once),
        cmocka_unit_test(state_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
