/* logprobs: how likely the model held a token, and which it held likelier.
 * Flow:    raw logits, the token chosen (or the prompt's next) -> [logprobs] -> step result
 * Thread:  any; pure.
 * Memory:  the caller's.
 *
 * Log-softmax of the model's own logits: before logit_bias, min_tokens, penalties, temperature
 * and filters. vLLM's default (logprobs_mode raw_logprobs) is the same.
 * Ranks and alternatives follow token_select's order: higher logit first, then lower token id.
 * (vLLM counts all tokens equal to the chosen one as before it.) */
#ifndef BATON_MODEL_LOGPROBS_H
#define BATON_MODEL_LOGPROBS_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/sampling_params.h"

struct logprob_entry {
    uint32_t token;
    float logprob; /* natural logarithm, <= 0; -inf where the logit is */
};

struct logprob_row {
    float logprob; /* of the chosen token */
    uint32_t rank; /* of the chosen token; 1 is the likeliest */
    uint32_t top_count;
    struct logprob_entry top[SAMPLING_LOGPROBS_MAX]; /* [top_count], best first */
};

/* logits      f32 [vocab_size], as the model gave them
 * chosen      < vocab_size (CHECK)
 * top         alternatives wanted, 0 .. SAMPLING_LOGPROBS_MAX (CHECK); fewer if the vocabulary is
 * position    only for the error's text: index in the sequence, prompt included
 * Errors      INTERNAL (request): a NaN, or not one logit above -inf; diag names the position.
 * Accuracy    the normalizer within 5e-9, then one rounding to f32; the same bits on any machine
 * Cost        four passes over the row. */
NODISCARD status_t logprobs_of_row(const float *logits, uint32_t vocab_size, uint32_t chosen, uint32_t top,
                                   uint32_t position, struct diag *diag, struct logprob_row *ret_row);

#endif
