/* sampler_state: what sampling must remember of one sequence.
 * Flow:    step_open (parameters, prompt, tokens so far) -> [sampler_state] -> sampler
 * Thread:  one at a time; the engine's.
 * Memory:  the caller's, sampler_state_bytes() of it, taken before the first token.
 *
 * It is a function of the token list alone: a sequence that was preempted, or resumed on
 * another node, gets the same state by adding the same tokens again. Counts are kept only
 * where a penalty asks for them. */
#ifndef BATON_MODEL_SAMPLER_STATE_H
#define BATON_MODEL_SAMPLER_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "model/sampling_params.h"
#include "model/stop_rules.h"

/* A token that occurred. */
struct sampler_count {
    uint32_t token;
    uint32_t output_count; /* 0: in the prompt only */
};

struct sampler_state {
    const struct sampling_params *params; /* held until the state is dropped, arrays too */
    struct eos_tokens eos;                /* held, likewise */
    uint32_t vocab_size;
    uint32_t sequence;     /* index within the request: part of the draw's key */
    uint32_t output_count; /* tokens added as output: the position of the next */

    uint32_t count_len;
    uint32_t count_max;
    uint32_t slot_mask;           /* slots - 1; open addressing, at most half full */
    uint32_t *slots;              /* [slot_mask + 1], index into counts + 1; 0 is empty */
    struct sampler_count *counts; /* [count_max], in order of first occurrence */
};

/* Bytes for a sequence of these validated parameters; 0 when no penalty is used. At most 20 a
 * token of the prompt (with repetition_penalty) and of max_tokens, and 20 per vocabulary entry. */
size_t sampler_state_bytes(const struct sampling_params *params, uint32_t vocab_size, uint32_t prompt_tokens);

/* The most that any request can need: for slots that are set aside at start. */
size_t sampler_state_bytes_max(uint32_t vocab_size, uint32_t context_tokens);

/* memory         sampler_state_bytes(), 8-byte aligned; held until the state is dropped; NULL for 0
 * params, eos    held until the state is dropped
 * prompt_tokens  as given to sampler_state_bytes
 * Cost           clears the table. */
void sampler_state_init(struct sampler_state *state, const struct sampling_params *params, struct eos_tokens eos,
                        uint32_t vocab_size, uint32_t sequence, uint32_t prompt_tokens, void *memory);

/* The prompt's tokens, in one call or several, prompt_tokens in all. token < vocab_size (CHECK). */
void sampler_state_add_prompt(struct sampler_state *state, const uint32_t *tokens, uint32_t count);

/* Where a token lies in counts; UINT32_MAX: it is not counted. O(1). */
uint32_t sampler_state_find(const struct sampler_state *state, uint32_t token);

/* The next output token, sampled here or elsewhere; at most max_tokens (CHECK).
 * token < vocab_size (CHECK). O(1). */
void sampler_state_add_output(struct sampler_state *state, uint32_t token);

#endif
