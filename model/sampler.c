#include "model/sampler.h"

#include <math.h>
#include <string.h>

#include "base/check.h"
#include "base/counter_rng.h"
#include "model/token_mass.h"

/* One row on its way to a token. */
struct row {
    const float *logits;
    uint32_t count;
    float max;
    double inverse_temperature;
    uint64_t bits; /* the draw */
};

static const float *adjust(const struct sampler_state *state, const float *logits,
                           const struct sampler_scratch *scratch);
static uint32_t draw_from_all(const struct row *row, const struct sampler_scratch *scratch);
static uint32_t gather(const struct row *row, const struct sampling_params *params,
                       const struct sampler_scratch *scratch);
static uint32_t keep_top_p(struct candidate *candidates, uint32_t count, float top_p, uint64_t total);
static uint32_t keep_min_p(struct candidate *candidates, uint32_t count, float min_p);
static uint64_t mass_sum(const struct candidate *candidates, uint32_t count);
static uint64_t mass_needed(float top_p, uint64_t total);
static uint64_t scale(uint64_t bits, uint64_t total);

size_t sampler_scratch_bytes(uint32_t vocab_size)
{
    CHECK(vocab_size >= 1);
    CHECK(vocab_size <= TOKEN_MASS_VOCAB_MAX);
    size_t blocks = (vocab_size + TOKEN_MASS_BLOCK - 1) / TOKEN_MASS_BLOCK;
    return vocab_size * sizeof(struct candidate) + blocks * sizeof(uint64_t) + vocab_size * sizeof(float);
}

void sampler_scratch_init(struct sampler_scratch *scratch, uint32_t vocab_size, void *memory)
{
    scratch->vocab_size = vocab_size;
    scratch->candidates = memory;
    scratch->blocks = (uint64_t *)(scratch->candidates + vocab_size);
    scratch->logits = (float *)(scratch->blocks + (vocab_size + TOKEN_MASS_BLOCK - 1) / TOKEN_MASS_BLOCK);
}

status_t sampler_logit_is_nan(const struct sampler_state *state, uint32_t token, struct diag *diag)
{
    diag_set(diag, "the logits of output position %u, sequence %u, are not numbers (token %u is NaN); the weights "
             "or a kernel are at fault", state->output_count, state->sequence, token);
    return STATUS(ST_INTERNAL, SCOPE_REQUEST);
}

status_t sampler_nothing_to_choose(const struct sampler_state *state, struct diag *diag)
{
    diag_set(diag, "no token may be chosen at output position %u, sequence %u: every logit is -inf; the weights "
             "or a kernel are at fault, or min_tokens and stop_token_ids rule out every token",
             state->output_count, state->sequence);
    return STATUS(ST_INTERNAL, SCOPE_REQUEST);
}

status_t sampler_choose(const struct sampler_state *state, const float *logits,
                        const struct sampler_scratch *scratch, struct diag *diag, uint32_t *ret_token)
{
    CHECK(scratch->vocab_size == state->vocab_size);
    const struct sampling_params *params = state->params;
    struct row row = {.logits = adjust(state, logits, scratch), .count = state->vocab_size};
    struct logit_scan scan = token_mass_scan(row.logits, row.count);
    if (scan.has_nan) { return sampler_logit_is_nan(state, scan.nan_at, diag); }
    if (scan.max == -INFINITY) { return sampler_nothing_to_choose(state, diag); }
    if (params->temperature == 0.0f) {
        *ret_token = scan.argmax;
        return STATUS_OK;
    }
    row.max = scan.max;
    row.inverse_temperature = 1.0 / (double)params->temperature;
    row.bits = counter_rng_draw(params->seed, state->sequence, state->output_count);
    bool has_top_k = params->top_k != 0 && params->top_k < row.count;
    if (!has_top_k && params->top_p >= 1.0f && params->min_p <= 0.0f) {
        *ret_token = draw_from_all(&row, scratch);
        return STATUS_OK;
    }
    struct candidate *kept = scratch->candidates;
    uint32_t count = gather(&row, params, scratch);
    if (params->min_p > 0.0f) { count = keep_min_p(kept, count, params->min_p); }
    uint64_t target = scale(row.bits, mass_sum(kept, count));
    uint32_t i = 0;
    while (target >= kept[i].mass) { target -= kept[i++].mass; }
    *ret_token = kept[i].token;
    return STATUS_OK;
}

/* Steps 1 to 4, on a copy; or the row itself where they change nothing. */
static const float *adjust(const struct sampler_state *state, const float *logits,
                           const struct sampler_scratch *scratch)
{
    const struct sampling_params *params = state->params;
    bool masks_end = state->output_count < params->min_tokens;
    if (params->logit_bias_count == 0 && !masks_end && state->count_len == 0) { return logits; }
    float *out = scratch->logits;
    memcpy(out, logits, state->vocab_size * sizeof out[0]);
    for (uint32_t i = 0; i < params->logit_bias_count; i++) {
        out[params->logit_bias[i].token] += params->logit_bias[i].bias;
    }
    if (masks_end) {
        /* A NaN stays, so that it is seen. */
        for (uint32_t i = 0; i < params->stop_token_count; i++) {
            uint32_t token = params->stop_tokens[i];
            if (!isnan(out[token])) { out[token] = -INFINITY; }
        }
        for (uint32_t i = 0; i < state->eos.count && !params->ignore_eos; i++) {
            uint32_t token = state->eos.token[i];
            /* A config may name an eos token that its vocabulary lacks. */
            if (token < state->vocab_size && !isnan(out[token])) { out[token] = -INFINITY; }
        }
    }
    float repetition = params->repetition_penalty;
    for (uint32_t i = 0; i < state->count_len; i++) {
        const struct sampler_count *seen = &state->counts[i];
        float logit = out[seen->token];
        if (repetition != 1.0f) { logit = logit > 0.0f ? logit / repetition : logit * repetition; }
        if (seen->output_count > 0) {
            logit -= params->frequency_penalty * (float)seen->output_count;
            logit -= params->presence_penalty;
        }
        out[seen->token] = logit;
    }
    return out;
}

/* No filter: the whole row is kept. The sums of blocks say where to look closer. */
static uint32_t draw_from_all(const struct row *row, const struct sampler_scratch *scratch)
{
    uint64_t total = token_mass_sum(row->logits, row->count, row->max, row->inverse_temperature, scratch->blocks);
    uint64_t target = scale(row->bits, total);
    uint32_t block = 0;
    while (target >= scratch->blocks[block]) { target -= scratch->blocks[block++]; }
    for (uint32_t i = block * TOKEN_MASS_BLOCK;; i++) {
        CHECK(i < row->count); /* the sums are of the same integers */
        uint64_t mass = token_mass_of(row->logits[i], row->max, row->inverse_temperature);
        if (target < mass) { return i; }
        target -= mass;
    }
}

/* All tokens with logit >= lowest, in order of id, with their masses. Where a block holds many (a hot
 * temperature), all of its masses are computed at once and kept without a branch, which would be a coin toss. */
static uint32_t gather_from(const struct row *row, float lowest, struct candidate *ret)
{
    enum { BLOCK = 64, MANY = 4 };
    uint64_t masses[BLOCK];
    uint32_t count = 0;
    for (uint32_t first = 0; first < row->count; first += BLOCK) {
        uint32_t end = row->count - first < BLOCK ? row->count : first + BLOCK;
        /* Most blocks hold none; this count vectorizes. */
        uint32_t hits = 0;
        for (uint32_t i = first; i < end; i++) { hits += row->logits[i] >= lowest; }
        if (hits == 0) { continue; }
        if (hits < MANY) {
            for (uint32_t i = first; i < end; i++) {
                if (row->logits[i] < lowest) { continue; }
                uint64_t mass = token_mass_of(row->logits[i], row->max, row->inverse_temperature);
                ret[count++] = (struct candidate){.mass = mass, .logit = row->logits[i], .token = i};
            }
            continue;
        }
        token_mass_many(row->logits + first, end - first, row->max, row->inverse_temperature, masses);
        for (uint32_t i = first; i < end; i++) {
            ret[count] = (struct candidate){.mass = masses[i - first], .logit = row->logits[i], .token = i};
            count += row->logits[i] >= lowest;
        }
    }
    return count;
}

/* A logit such that every token below it has mass <= `mass`. Errs on the low side: whoever is
 * gathered in vain is sorted out exactly later. */
static float logit_below_mass(const struct row *row, uint64_t mass)
{
    /* A mass of at most 0.25 units rounds to 0; less one unit covers the rounding of others. */
    double units = mass >= 2 ? (double)(mass - 1) : 0.25;
    double difference = token_mass_log(units / (double)TOKEN_MASS_ONE) - 1e-9;
    double bound = (double)row->max + difference / row->inverse_temperature;
    return nextafterf((float)bound, -INFINITY);
}

/* Up to here a heap finds the best soonest. */
#define HEAP_TOP_K_MAX 128u

/* A logit that at least k tokens reach, and few more in a common row: the k-th best of the maxima of blocks.
 * candidates  scratch */
static float logit_below_top_k(const struct row *row, uint32_t k, struct candidate *candidates)
{
    enum { BLOCK = 64 };
    uint32_t blocks = row->count / BLOCK;
    if (blocks < k) { return -INFINITY; }
    for (uint32_t block = 0; block < blocks; block++) {
        float lanes[16], top;
        memcpy(lanes, row->logits + block * BLOCK, sizeof lanes);
        for (uint32_t i = 16; i < BLOCK; i += 16) {
            for (uint32_t lane = 0; lane < 16; lane++) {
                float logit = row->logits[block * BLOCK + i + lane];
                lanes[lane] = logit > lanes[lane] ? logit : lanes[lane];
            }
        }
        top = lanes[0];
        for (uint32_t lane = 1; lane < 16; lane++) { top = lanes[lane] > top ? lanes[lane] : top; }
        candidates[block] = (struct candidate){.logit = top, .token = block};
    }
    uint32_t kept = token_select_keep_count(candidates, blocks, k);
    float least = candidates[0].logit;
    for (uint32_t i = 1; i < kept; i++) { least = candidates[i].logit < least ? candidates[i].logit : least; }
    return least;
}

/* Steps 7 and 8. The candidates are left in order of token id. */
static uint32_t gather(const struct row *row, const struct sampling_params *params,
                       const struct sampler_scratch *scratch)
{
    struct candidate *candidates = scratch->candidates;
    float top_p = params->top_p;
    uint32_t count;
    if (params->top_k != 0 && params->top_k < row->count) {
        if (params->top_k <= HEAP_TOP_K_MAX) {
            count = token_select_best(row->logits, row->count, params->top_k, candidates);
            for (uint32_t i = 0; i < count; i++) {
                candidates[i].mass = token_mass_of(candidates[i].logit, row->max, row->inverse_temperature);
            }
            token_select_sort_by_token(candidates, count);
        } else {
            count = gather_from(row, logit_below_top_k(row, params->top_k, candidates), candidates);
            count = token_select_keep_count(candidates, count, params->top_k);
        }
        return keep_top_p(candidates, count, top_p, mass_sum(candidates, count));
    }
    if (top_p >= 1.0f) {
        /* Only min_p: no total is needed. */
        uint64_t floor_mass = (uint64_t)((double)params->min_p * (double)TOKEN_MASS_ONE);
        return gather_from(row, logit_below_mass(row, floor_mass > 0 ? floor_mass - 1 : 0), candidates);
    }
    uint64_t total = token_mass_sum(row->logits, row->count, row->max, row->inverse_temperature, NULL);
    /* All tokens of at most this mass together have no more than the share that top_p drops, so
     * the run it keeps is among the others. */
    uint64_t negligible = (total - mass_needed(top_p, total)) / row->count;
    count = gather_from(row, logit_below_mass(row, negligible), candidates);
    return keep_top_p(candidates, count, top_p, total);
}

static uint32_t keep_top_p(struct candidate *candidates, uint32_t count, float top_p, uint64_t total)
{
    if (top_p >= 1.0f) { return count; }
    return token_select_keep_mass(candidates, count, mass_needed(top_p, total));
}

static uint32_t keep_min_p(struct candidate *candidates, uint32_t count, float min_p)
{
    uint64_t floor_mass = (uint64_t)ceil((double)min_p * (double)TOKEN_MASS_ONE);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (candidates[i].mass >= floor_mass) { candidates[kept++] = candidates[i]; }
    }
    return kept;
}

static uint64_t mass_sum(const struct candidate *candidates, uint32_t count)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; i++) { sum += candidates[i].mass; }
    return sum;
}

/* top_p of total, rounded up, 1 .. total. */
static uint64_t mass_needed(float top_p, uint64_t total)
{
    double needed = ceil((double)top_p * (double)total);
    if (needed < 1.0) { return 1; }
    return needed < (double)total ? (uint64_t)needed : total;
}

/* Uniform in 0 .. total-1: the high half of bits * total, by halves since C11 has no 128 bits.
 * Each value has the same chance to 1 part in 2^64 of the whole. */
static uint64_t scale(uint64_t bits, uint64_t total)
{
    uint64_t bits_high = bits >> 32, bits_low = bits & 0xffffffffu;
    uint64_t total_high = total >> 32, total_low = total & 0xffffffffu;
    uint64_t low = bits_low * total_low;
    uint64_t middle = bits_high * total_low + (low >> 32);
    uint64_t middle2 = bits_low * total_high + (middle & 0xffffffffu);
    return bits_high * total_high + (middle >> 32) + (middle2 >> 32);
}
