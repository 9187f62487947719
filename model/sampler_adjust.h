/* sampler_adjust: what a device must be told to sample as sampler.c does.
 * Flow:    engine -> [sampler_adjust] -> kernels_sample
 * Thread:  as the state's.
 * Memory:  the caller's; nothing is taken. */
#ifndef BATON_MODEL_SAMPLER_ADJUST_H
#define BATON_MODEL_SAMPLER_ADJUST_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "model/sampler_state.h"

/* Lists steps 1 to 4 of sampler.h, token by token, each token once: of tokens with a bias, end tokens that are
 * masked now, and tokens that a penalty concerns.
 * ret_adjusts  [room]
 * Returns  false: there are more than `room`; what was written means nothing.
 * Cost     O(entries), but (masked tokens) * (biases) while min_tokens holds. */
bool sampler_adjust_list(const struct sampler_state *state, uint32_t room, struct kernels_sample_adjust *ret_adjusts,
                         uint32_t *ret_count);

/* Steps 5 to 10 for output number state->output_count; adjust_first and adjust_count are the caller's to fill. */
struct kernels_sample_row sampler_adjust_row(const struct sampler_state *state);

#endif
