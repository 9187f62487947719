/* token_select: the best tokens of a row, without sorting the row.
 * Flow:    logits -> [token_select] -> sampler (top_k, top_p), logprobs (alternatives)
 * Thread:  any; pure.
 * Memory:  the caller's.
 *
 * One order for everything: higher logit first, equal logits (the two zeros are equal) by
 * lower token id. So a cut at k or at a mass is never ambiguous. No logit may be NaN. */
#ifndef BATON_MODEL_TOKEN_SELECT_H
#define BATON_MODEL_TOKEN_SELECT_H

#include <stdbool.h>
#include <stdint.h>

struct candidate {
    uint64_t mass; /* model/token_mass.h; not set by token_select_best */
    float logit;
    uint32_t token;
};

/* Up to here a heap is the way; beyond, gather all tokens and use token_select_keep_count. */
#define TOKEN_SELECT_BEST_MAX 1024u

/* The min(k, count) best tokens, best first; 1 <= k <= TOKEN_SELECT_BEST_MAX.
 * ret_best  [min(k, count)]
 * Returns   how many
 * Cost      one vectorized compare pass, and about k ln(count / k) heap steps. */
uint32_t token_select_best(const float *logits, uint32_t count, uint32_t k, struct candidate *ret_best);

/* Sorts by token id; for few candidates (at most TOKEN_SELECT_BEST_MAX). */
void token_select_sort_by_token(struct candidate *candidates, uint32_t count);

/* Keeps the best `needed` of candidates that lie in order of token id, 1 <= needed <= count; the
 * kept ones move to the front, still in order of token id. Returns needed.
 * Cost      four passes over the candidates, whatever their values. */
uint32_t token_select_keep_count(struct candidate *candidates, uint32_t count, uint32_t needed);

/* Keeps the shortest run of best candidates whose masses add up to `needed` or more; in and out
 * in order of token id. 1 <= needed <= sum of masses (CHECK). Returns how many. */
uint32_t token_select_keep_mass(struct candidate *candidates, uint32_t count, uint64_t needed);

#endif
