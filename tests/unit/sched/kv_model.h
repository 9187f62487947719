/* kv_model: an engine whose every token shows what was in the blocks it read.
 * Thread:  the test's.
 * Memory:  its own; a result is good until the next run.
 *
 * A slot of a block holds a mark of its token, its position and all tokens before it, as the engine
 * read them. A sampled token is a hash of all marks
 * from the first to the last position of its sequence, read through the block table, and of
 * the sampler's state. So a wrong block, a copy that was not made, a block reused too early
 * or a sampler that was not opened again gives another token than
 * kv_model_next_in_window(). */
#ifndef BATON_TESTS_UNIT_SCHED_KV_MODEL_H
#define BATON_TESTS_UNIT_SCHED_KV_MODEL_H

#include <stdint.h>

#include "engine/step_plan.h"

struct kv_model;

struct kv_model *kv_model_create(uint32_t block_count, uint32_t block_tokens, uint32_t slot_count,
                                 uint32_t vocab_size);
void kv_model_destroy(struct kv_model *model);

/* A row reads its own position and the window - 1 before it; 0, as at create: all. A window is at least
 * 2 here: what a row writes depends on the position before it. */
void kv_model_set_window(struct kv_model *model, uint32_t window);

/* Does the copies, then the spans, last one first: their order must not matter. */
struct step_result kv_model_run(struct kv_model *model, const struct step_plan *plan);

/* What another node writes into a granted block: right, or anything.
 * tokens  [position + 1] the text up to there */
void kv_model_write(struct kv_model *model, uint32_t block, uint32_t slot, const uint32_t *tokens, uint32_t position);
void kv_model_scribble(struct kv_model *model, uint32_t block, uint64_t garbage);

/* A block's content, out and in: what a tier keeps. marks  [block_tokens] */
void kv_model_save(const struct kv_model *model, uint32_t block, uint64_t *ret_marks);
void kv_model_restore(struct kv_model *model, uint32_t block, const uint64_t *marks);

/* Does the block hold tokens[first..] of one text, as far as it goes? */
bool kv_model_holds(const struct kv_model *model, uint32_t block, const uint32_t *tokens, uint32_t first,
                    uint32_t count);

/* The token that a sequence must continue with, where only a window is seen; 0: all. */
uint32_t kv_model_next_in_window(uint32_t window, uint32_t vocab_size, const struct sampling_params *params, uint32_t sequence,
                                 const uint32_t *prompt, uint32_t prompt_count, const uint32_t *output, uint32_t output_count);

/* The log-probability that prompt[index] must be reported with. */
float kv_model_prompt_logprob_in_window(uint32_t window, const uint32_t *prompt, uint32_t index);

#endif
