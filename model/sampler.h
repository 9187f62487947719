/* sampler: from a row of logits to the next token.
 * Flow:    forward_logits -> [sampler] -> stop_rules, the step's result
 * Thread:  any; the scratch and the state are used by one thread at a time.
 * Memory:  the caller's: a scratch per thread, a state per sequence. No allocation.
 *
 * The order of steps, each only where its parameter asks for it:
 *   1 logit_bias          logit += bias
 *   2 min_tokens          end tokens get -inf while fewer than min_tokens were put out
 *   3 repetition_penalty  of every token in prompt or output: logit > 0 ? logit / p : logit * p
 *   4 frequency, presence of every token in the output:
 *                         logit -= frequency * count + presence
 *   5 temperature 0       the best token, and done
 *   6 temperature         mass = exp((logit - best) / temperature); model/token_mass.h
 *   7 top_k               the k best
 *   8 top_p               the shortest run of the best of those with top_p of their mass
 *   9 min_p               those with min_p of the best one's mass, or more
 *  10 draw                walk the kept tokens by id until their mass passes u * total
 * "Best" is always higher logit first, equal logits by lower token id, so each of 7 to 9 keeps
 * a run of best tokens, and their order matters only in that top_p's share is of what top_k
 * kept. u is 64 bits of counter_rng_draw(seed, sequence index, output position): the same draw
 * wherever and whenever the token is sampled.
 *
 * Source: 1 to 5 as vLLM v1 (vllm/v1/sample/sampler.py), 3 by CTRL, arXiv 1909.05858; 6 to 9 as
 * Hugging Face transformers' processors, in its order (vLLM applies min_p before top_k and top_p).
 * Where several tokens equal the last one kept, both keep all of them; we keep the lower ids.
 * With ignore_eos the model's eos tokens end nothing, and so are not masked by min_tokens. */
#ifndef BATON_MODEL_SAMPLER_H
#define BATON_MODEL_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/sampler_state.h"
#include "model/token_select.h"

struct sampler_scratch {
    uint32_t vocab_size;
    struct candidate *candidates; /* [vocab_size] */
    uint64_t *blocks;             /* [ceil(vocab_size / TOKEN_MASS_BLOCK)] */
    float *logits;                /* [vocab_size] */
};

/* About 20 bytes per vocabulary entry. vocab_size 1 .. TOKEN_MASS_VOCAB_MAX (CHECK). */
size_t sampler_scratch_bytes(uint32_t vocab_size);

/* memory  sampler_scratch_bytes(), 8-byte aligned; held until the scratch is dropped. */
void sampler_scratch_init(struct sampler_scratch *scratch, uint32_t vocab_size, void *memory);

/* What sampler_choose() says where it cannot choose, for whoever samples elsewhere. INTERNAL (request). */
NODISCARD status_t sampler_logit_is_nan(const struct sampler_state *state, uint32_t token, struct diag *diag);
NODISCARD status_t sampler_nothing_to_choose(const struct sampler_state *state, struct diag *diag);

/* Samples output token number state->output_count. Does not add it to the state: the caller does
 * (sampler_state_add_output), once it stands.
 * logits    f32 [vocab_size], as the model gave them; read only. +inf: its holders share the draw.
 * Errors    INTERNAL (request): a NaN, or no token left that may be chosen; diag names the output
 *           position and what to look at.
 * Cost      greedy and top_k up to 1024: two light passes. Temperature alone: one light pass and one
 *           of exp. top_p: those, one more compare pass and some passes over the tokens near the
 *           cut. Penalties, bias and min_tokens: one copy of the row. */
NODISCARD status_t sampler_choose(const struct sampler_state *state, const float *logits,
                                  const struct sampler_scratch *scratch, struct diag *diag, uint32_t *ret_token);

#endif
