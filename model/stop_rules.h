/* stop_rules: does a sequence end with the token just sampled?
 * Flow:    sampler -> [stop_rules] -> the step's tokens, or finished
 * Thread:  any; pure. Prefill (first token), decode and the simulator ask the same function.
 * Memory:  none.
 *
 * Stop strings are text and end a sequence in the router, through cancel.
 *
 * The token that ended the sequence, eos included, is part of the output token ids and of the
 * usage count; the router leaves it out of the text when it is special. vLLM does the same. */
#ifndef BATON_MODEL_STOP_RULES_H
#define BATON_MODEL_STOP_RULES_H

#include <stdbool.h>
#include <stdint.h>

#include "model/sampling_params.h"

enum stop_verdict {
    STOP_RULES_CONTINUE = 0, /* sample another */
    STOP_RULES_END_TOKEN,    /* an end token of the model or of the request; finish reason "stop" */
    STOP_RULES_LENGTH,       /* max_tokens or the context is used up; finish reason "length" */
};

/* The tokens that end a sequence of one model: eos_token_id of config.json or
 * generation_config.json, which may be a list. */
struct eos_tokens {
    const uint32_t *token; /* [count]; borrowed */
    uint32_t count;
};

/* Does `token` end a sequence under these parameters: a stop token of the request, or an eos
 * token of the model unless ignore_eos. */
bool stop_rules_token_ends(const struct sampling_params *params, struct eos_tokens eos, uint32_t token);

/* token           the one just sampled
 * output_tokens   of this sequence, `token` included, so >= 1
 * total_tokens    prompt and output, `token` included
 * context_tokens  the longest sequence the model takes
 * Before output token min_tokens + 1 no token ends the sequence (the sampler masks end tokens
 * until then). An end token that is also the last one allowed gives END_TOKEN: the model
 * finished by itself. */
enum stop_verdict stop_rules_decide(const struct sampling_params *params, struct eos_tokens eos, uint32_t token,
                                    uint32_t output_tokens, uint32_t total_tokens, uint32_t context_tokens);

/* "stop" or "length", the API's words; NULL for CONTINUE. */
const char *stop_rules_finish_reason(enum stop_verdict verdict);

#endif
