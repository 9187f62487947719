#include "model/sampler_state.h"

#include <stdbool.h>
#include <string.h>

#include "base/check.h"

static bool wants_prompt(const struct sampling_params *params) { return params->repetition_penalty != 1.0f; }

static bool wants_output(const struct sampling_params *params)
{
    return wants_prompt(params) || params->presence_penalty != 0.0f || params->frequency_penalty != 0.0f;
}

/* Distinct tokens that can occur. */
static uint32_t distinct_max(uint64_t tokens, uint32_t vocab_size)
{
    return tokens < vocab_size ? (uint32_t)tokens : vocab_size;
}

static uint32_t count_max_for(const struct sampling_params *params, uint32_t vocab_size, uint32_t prompt_tokens)
{
    if (!wants_output(params)) { return 0; }
    uint64_t tokens = (uint64_t)params->max_tokens + (wants_prompt(params) ? prompt_tokens : 0);
    return distinct_max(tokens, vocab_size);
}

/* A power of two, at least twice the entries: a probe ends after two steps on average. */
static uint32_t slots_for(uint32_t count_max)
{
    uint32_t slots = 2;
    while (slots < 2 * (uint64_t)count_max) { slots *= 2; }
    return slots;
}

static size_t bytes_for(uint32_t count_max)
{
    if (count_max == 0) { return 0; }
    return count_max * sizeof(struct sampler_count) + slots_for(count_max) * sizeof(uint32_t);
}

size_t sampler_state_bytes(const struct sampling_params *params, uint32_t vocab_size, uint32_t prompt_tokens)
{
    return bytes_for(count_max_for(params, vocab_size, prompt_tokens));
}

size_t sampler_state_bytes_max(uint32_t vocab_size, uint32_t context_tokens)
{
    return bytes_for(distinct_max(context_tokens, vocab_size));
}

void sampler_state_init(struct sampler_state *state, const struct sampling_params *params, struct eos_tokens eos,
                        uint32_t vocab_size, uint32_t sequence, uint32_t prompt_tokens, void *memory)
{
    *state = (struct sampler_state){
        .params = params, .eos = eos, .vocab_size = vocab_size, .sequence = sequence,
        .count_max = count_max_for(params, vocab_size, prompt_tokens),
    };
    if (state->count_max == 0) { return; }
    CHECK(memory);
    uint32_t slots = slots_for(state->count_max);
    state->counts = memory;
    state->slots = (uint32_t *)(state->counts + state->count_max);
    state->slot_mask = slots - 1;
    memset(state->slots, 0, slots * sizeof state->slots[0]);
}

/* The slot that holds a token, or the free one where it would be put. */
static uint32_t slot_of(const struct sampler_state *state, uint32_t token)
{
    /* Fibonacci hashing: ids that occur together are often close together. */
    uint32_t slot = (uint32_t)((token * (uint64_t)0x9e3779b97f4a7c15u) >> 32) & state->slot_mask;
    while (state->slots[slot] != 0 && state->counts[state->slots[slot] - 1].token != token) {
        slot = (slot + 1) & state->slot_mask;
    }
    return slot;
}

uint32_t sampler_state_find(const struct sampler_state *state, uint32_t token)
{
    return state->count_len == 0 ? UINT32_MAX : state->slots[slot_of(state, token)] - 1;
}

static struct sampler_count *entry_of(struct sampler_state *state, uint32_t token)
{
    uint32_t slot = slot_of(state, token);
    if (state->slots[slot] != 0) { return &state->counts[state->slots[slot] - 1]; }
    CHECK(state->count_len < state->count_max);
    struct sampler_count *entry = &state->counts[state->count_len++];
    state->slots[slot] = state->count_len;
    *entry = (struct sampler_count){.token = token};
    return entry;
}

void sampler_state_add_prompt(struct sampler_state *state, const uint32_t *tokens, uint32_t count)
{
    if (!wants_prompt(state->params)) { return; }
    for (uint32_t i = 0; i < count; i++) {
        CHECK(tokens[i] < state->vocab_size);
        (void)entry_of(state, tokens[i]);
    }
}

void sampler_state_add_output(struct sampler_state *state, uint32_t token)
{
    CHECK(token < state->vocab_size);
    CHECK(state->output_count < state->params->max_tokens);
    state->output_count++;
    if (wants_output(state->params)) { entry_of(state, token)->output_count++; }
}
