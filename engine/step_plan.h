/* step_plan: one step of the engine, said by a core and done by whoever computes.
 * Flow:    decode_core, prefill_core -> [step_plan] -> engine (or the simulator's model)
 *          -> [step_result] -> the core again
 * Thread:  made on the core thread, read on the engine thread; at most one is in flight, and
 *          the core does not touch it until its result has come back.
 * Memory:  arrays belong to the core that made the plan; the result's to the engine. */
#ifndef BATON_ENGINE_STEP_PLAN_H
#define BATON_ENGINE_STEP_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "control/ctl_msg.h"

/* A slot is the engine's sampler state of one sequence (penalty counts). The core numbers
 * them 0 .. slot_count-1 and opens one before its first sample and after every preemption. */
struct step_open {
    uint32_t slot;
    uint32_t sequence;              /* index within the request: part of the draw's key */
    const struct sampling_params *params;
    uint32_t prompt_count;
    const uint32_t *prompt;         /* [prompt_count] */
    uint32_t output_count;
    const uint32_t *output;         /* [output_count] sampled before this step */
};

/* Copies a whole block, all layers, before the step computes: the part-filled last block of
 * a prompt that several sequences share. */
struct step_copy {
    uint32_t source_block;
    uint32_t destination_block;
};

/* Consecutive tokens of one sequence: a chunk of a prompt, or one token that decodes. */
struct step_span {
    uint32_t first_position;
    uint32_t row_count;
    const uint32_t *tokens;       /* [row_count] */
    uint32_t block_count;
    const uint32_t *block_table;  /* [block_count], covers first_position + row_count tokens */

    /* Tokens sampled after the last row: none inside a prompt, one when decoding, one per
     * sequence at the end of a prompt that several sequences share. */
    uint32_t sample_count;
    const uint32_t *sample_slots; /* [sample_count] */

    /* Log-probabilities of the tokens after each row, -1: not wanted. Row r speaks of the
     * prompt token at first_position + r + 1; `next_token` is the one after the last row. */
    int32_t prompt_logprobs;
    bool has_next_token;
    uint32_t next_token;

    /* Prefill only: blocks of the prompt that are complete after this span, as indices into
     * the block table; in the grant each has its index less grant_first. Their slices leave layer
     * by layer. Blocks before grant_first are not pushed. */
    struct leg_id leg;
    uint32_t grant_first;
    uint32_t push_first;
    uint32_t push_count;
};

struct step_plan {
    uint64_t id; /* counts up; the result repeats it */
    uint32_t open_count;
    const struct step_open *opens;
    uint32_t copy_count;
    const struct step_copy *copies;
    uint32_t span_count;
    const struct step_span *spans;
};

struct step_sample {
    uint32_t token;
    bool has_logprob;
    struct token_logprob logprob;
};

struct step_result {
    uint64_t id;
    status_t status;        /* a failed step is SCOPE_NODE unless it says otherwise */
    uint32_t sample_count;  /* all samples, span by span, in the plan's order */
    const struct step_sample *samples;
    uint32_t prompt_logprob_count; /* all prompt log-probabilities, span by span, row by row */
    const struct token_logprob *prompt_logprobs;
    uint64_t compute_ns;    /* how long the step took; rates are learned from it */
};

#endif
