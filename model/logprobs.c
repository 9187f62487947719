#include "model/logprobs.h"

#include <math.h>
#include <stddef.h>

#include "base/check.h"
#include "model/token_mass.h"
#include "model/token_select.h"

static float logprob_of(float logit, float max, double log_normalizer)
{
    /* +inf as the row's best: its holders share all, and inf - inf is no number. */
    double difference = logit == max ? 0.0 : (double)logit - (double)max;
    return (float)(difference - log_normalizer);
}

static uint32_t rank_of(const float *logits, uint32_t count, uint32_t chosen)
{
    float own = logits[chosen];
    uint32_t before = 0;
    for (uint32_t i = 0; i < chosen; i++) { before += logits[i] >= own; }
    for (uint32_t i = chosen + 1; i < count; i++) { before += logits[i] > own; }
    return before + 1;
}

status_t logprobs_of_row(const float *logits, uint32_t vocab_size, uint32_t chosen, uint32_t top, uint32_t position,
                         struct diag *diag, struct logprob_row *ret_row)
{
    CHECK(chosen < vocab_size);
    CHECK(top <= SAMPLING_LOGPROBS_MAX);
    struct logit_scan scan = token_mass_scan(logits, vocab_size);
    if (scan.has_nan) {
        diag_set(diag, "the logits at position %u of the sequence are not numbers (token %u is NaN); the weights or "
                 "a kernel are at fault", position, scan.nan_at);
        return STATUS(ST_INTERNAL, SCOPE_REQUEST);
    }
    if (scan.max == -INFINITY) {
        diag_set(diag, "the logits at position %u of the sequence are all -inf; the weights or a kernel are at fault",
                 position);
        return STATUS(ST_INTERNAL, SCOPE_REQUEST);
    }
    /* The sum is below 2^63 and its double is within 2^-53 of it. */
    double sum = (double)token_mass_sum(logits, vocab_size, scan.max, 1.0, NULL);
    double log_normalizer = token_mass_log(sum / (double)TOKEN_MASS_ONE);
    ret_row->logprob = logprob_of(logits[chosen], scan.max, log_normalizer);
    ret_row->rank = rank_of(logits, vocab_size, chosen);
    ret_row->top_count = 0;
    if (top == 0) { return STATUS_OK; }
    struct candidate best[SAMPLING_LOGPROBS_MAX];
    ret_row->top_count = token_select_best(logits, vocab_size, top, best);
    for (uint32_t i = 0; i < ret_row->top_count; i++) {
        ret_row->top[i].token = best[i].token;
        ret_row->top[i].logprob = logprob_of(best[i].logit, scan.max, log_normalizer);
    }
    return STATUS_OK;
}
