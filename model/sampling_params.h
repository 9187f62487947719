/* sampling_params: what a request may say about how its tokens are chosen.
 * Flow:    client -> router (validates) -> [sampling_params] -> prefill and decode (sampler)
 * Thread:  any; a plain value.
 * Memory:  arrays belong to whoever made the value; it holds borrows.
 *
 * Stop strings are not here: they are text, and text lives in the router. */
#ifndef BATON_MODEL_SAMPLING_PARAMS_H
#define BATON_MODEL_SAMPLING_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define SAMPLING_LOGPROBS_MAX 20u
#define SAMPLING_N_MAX 64u
#define SAMPLING_STOP_TOKENS_MAX 64u
#define SAMPLING_LOGIT_BIAS_MAX 1024u

struct logit_bias {
    uint32_t token;
    float bias; /* added to the logit before anything else; -100 .. 100 */
};

struct sampling_params {
    float temperature;        /* 0 is greedy; 0 .. 100 */
    uint32_t top_k;           /* 0 is off */
    float top_p;              /* (0, 1]; 1 is off */
    float min_p;              /* [0, 1); 0 is off */
    float repetition_penalty; /* 0.0001 .. 10000; 1 is off; prompt and output tokens */
    float presence_penalty;   /* -2 .. 2; output tokens */
    float frequency_penalty;  /* -2 .. 2; output tokens */
    uint64_t seed;            /* the router draws one where the client gave none */
    uint32_t max_tokens;      /* >= 1; output tokens of one sequence */
    uint32_t min_tokens;      /* <= max_tokens; end tokens are masked until then */
    bool ignore_eos;          /* end tokens of the model do not end the sequence */
    uint32_t n;               /* sequences that share the prompt; 1 .. SAMPLING_N_MAX */
    int32_t logprobs;         /* -1: none; k: of the token chosen and of the k best, k <= 20 */
    int32_t prompt_logprobs;  /* the same for every prompt token but the first */
    uint32_t stop_token_count;
    const uint32_t *stop_tokens; /* [stop_token_count]; end the sequence, and are its last token */
    uint32_t logit_bias_count;
    const struct logit_bias *logit_bias; /* [logit_bias_count], each token at most once */
};

/* Greedy, 16 tokens, everything else off. */
struct sampling_params sampling_params_default(void);

/* Checks every field against its range and the model.
 * vocab_size      logits of the model
 * context_tokens  the longest sequence the model takes
 * prompt_tokens   tokens of the prompt
 * Errors   INVALID_ARGUMENT (request), diag names the field, its value and its range. */
NODISCARD status_t sampling_params_validate(const struct sampling_params *params, uint32_t vocab_size,
                                            uint32_t context_tokens, uint32_t prompt_tokens, struct diag *diag);

#endif
