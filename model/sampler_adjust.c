#include "model/sampler_adjust.h"

#include "base/counter_rng.h"

struct list {
    const struct sampler_state *state;
    struct kernels_sample_adjust *at;
    uint32_t count, room;
};

/* The entry of a token: a counted one lies where its count lies; others follow.
 * is_new  it cannot be there yet
 * Returns  NULL where there is no room. */
static struct kernels_sample_adjust *entry_of(struct list *list, uint32_t token, bool is_new)
{
    uint32_t counted = sampler_state_find(list->state, token);
    if (counted != UINT32_MAX) { return &list->at[counted]; }
    for (uint32_t i = list->state->count_len; i < list->count && !is_new; i++) {
        if (list->at[i].token == token) { return &list->at[i]; }
    }
    if (list->count == list->room) { return NULL; }
    list->at[list->count] = (struct kernels_sample_adjust){.token = token};
    return &list->at[list->count++];
}

static bool mask(struct list *list, uint32_t token)
{
    struct kernels_sample_adjust *entry = entry_of(list, token, false);
    if (entry) { entry->is_masked = 1; }
    return entry != NULL;
}

bool sampler_adjust_list(const struct sampler_state *state, uint32_t room, struct kernels_sample_adjust *ret_adjusts,
                         uint32_t *ret_count)
{
    const struct sampling_params *params = state->params;
    if (state->count_len > room) { return false; }
    for (uint32_t i = 0; i < state->count_len; i++) {
        ret_adjusts[i] = (struct kernels_sample_adjust){.token = state->counts[i].token,
                                                        .output_count = state->counts[i].output_count,
                                                        .is_seen = params->repetition_penalty != 1.0f};
    }
    struct list list = {.state = state, .at = ret_adjusts, .count = state->count_len, .room = room};
    for (uint32_t i = 0; i < params->logit_bias_count; i++) {
        struct kernels_sample_adjust *entry = entry_of(&list, params->logit_bias[i].token, true);
        if (!entry) { return false; }
        entry->bias = params->logit_bias[i].bias;
        entry->has_bias = 1;
    }
    if (state->output_count < params->min_tokens) {
        for (uint32_t i = 0; i < params->stop_token_count; i++) {
            if (!mask(&list, params->stop_tokens[i])) { return false; }
        }
        for (uint32_t i = 0; i < state->eos.count && !params->ignore_eos; i++) {
            /* A config may name an eos token that its vocabulary lacks. */
            if (state->eos.token[i] < state->vocab_size && !mask(&list, state->eos.token[i])) { return false; }
        }
    }
    *ret_count = list.count;
    return true;
}

struct kernels_sample_row sampler_adjust_row(const struct sampler_state *state)
{
    const struct sampling_params *params = state->params;
    return (struct kernels_sample_row){
        .temperature = params->temperature,
        .top_p = params->top_p,
        .min_p = params->min_p,
        .repetition = params->repetition_penalty,
        .frequency = params->frequency_penalty,
        .presence = params->presence_penalty,
        .top_k = params->top_k,
        .bits = counter_rng_draw(params->seed, state->sequence, state->output_count),
    };
}
