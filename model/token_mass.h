/* token_mass: what each token weighs in the softmax, as an integer.
 * Flow:    a row of logits -> [token_mass] -> sampler (draw), logprobs (normalizer)
 * Thread:  any; pure.
 * Memory:  the caller's.
 *
 * The mass of a token is exp((logit - max) / temperature) in units of 2^-44, rounded to the
 * nearest integer, so the best token weighs exactly TOKEN_MASS_ONE. Why integers: their sum is
 * the same in any order, so it does not depend on vector width, threads or which tokens were
 * left out first; a draw by inverse CDF is then exact, and no float sum decides a border case.
 * 2^19 tokens of mass 2^44 still fit 63 bits. What rounding loses: at most 2^-45 per token,
 * 5e-9 of the whole for 152k tokens, below the 6e-8 steps of the f32 logits themselves.
 *
 * exp and log are our own, of plain IEEE operations without fused multiply-add: libm picks
 * other code on other machines, and the last bit differs. */
#ifndef BATON_MODEL_TOKEN_MASS_H
#define BATON_MODEL_TOKEN_MASS_H

#include <stdbool.h>
#include <stdint.h>

#define TOKEN_MASS_BITS 44u
#define TOKEN_MASS_ONE ((uint64_t)1 << TOKEN_MASS_BITS)
#define TOKEN_MASS_VOCAB_MAX ((uint32_t)1 << 19)

/* Tokens per partial sum of token_mass_sum. */
#define TOKEN_MASS_BLOCK 1024u

struct logit_scan {
    float max;       /* not set when has_nan */
    uint32_t argmax; /* the lowest token among equals */
    bool has_nan;
    uint32_t nan_at; /* the first one */
};

/* The best logit of a row; count >= 1. Two vectorized passes, the second stops at the find. */
struct logit_scan token_mass_scan(const float *logits, uint32_t count);

/* The mass of one token. max is the row's; +inf is allowed and then every +inf logit weighs ONE
 * and all others 0. -inf weighs 0. Neither may be NaN; logit <= max. inverse_temperature > 0. */
uint64_t token_mass_of(float logit, float max, double inverse_temperature);

/* token_mass_of() of `count` tokens, vectorized.
 * ret_masses  [count] */
void token_mass_many(const float *logits, uint32_t count, float max, double inverse_temperature, uint64_t *ret_masses);

/* The mass of a whole row, 1 <= count <= TOKEN_MASS_VOCAB_MAX.
 * ret_blocks  NULL, or [ceil(count / TOKEN_MASS_BLOCK)], the sums of consecutive tokens
 * Cost        one pass, about 20 vectorized operations a token. */
uint64_t token_mass_sum(const float *logits, uint32_t count, float max, double inverse_temperature,
                        uint64_t *ret_blocks);

/* For tests: the row's sum, and an integer that orders as its best logit, by the code of one
 * instruction set; 0 is the base set. max is finite. False: no such code here. */
bool token_mass_sum_by(unsigned twin, const float *logits, uint32_t count, float max, double inverse_temperature,
                       uint64_t *ret_sum, int32_t *ret_order);

/* Natural logarithm of a positive normal number; relative error below 1e-15. */
double token_mass_log(double value);

#endif
