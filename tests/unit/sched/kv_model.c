#include "tests/unit/sched/kv_model.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/rng.h"

#define SAMPLES_MAX 4096u

struct slot_state {
    uint64_t seed;
    uint32_t sequence, output_count;
    uint64_t penalty; /* depends on every output token and its order */
    bool is_open;
};

struct kv_model {
    uint32_t block_count, block_tokens, slot_count, vocab_size, window;
    uint64_t *marks;          /* [block_count * block_tokens] */
    struct slot_state *slots; /* [slot_count] */
    struct step_sample samples[SAMPLES_MAX];
    struct token_logprob logprobs[SAMPLES_MAX];
};

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t state = a ^ (b * UINT64_C(0xd6e8feb86659fd93));
    return rng_splitmix64(&state);
}

/* As real KV does, it depends on every token before it too. */
static uint64_t mark_of(uint64_t before, uint32_t token, uint32_t position)
{
    return mix(mix(before, token + 1), position + 1);
}

static uint64_t mark_of_text(const uint32_t *tokens, uint32_t position)
{
    uint64_t mark = 0;
    for (uint32_t p = 0; p <= position; p++) { mark = mark_of(mark, tokens[p], p); }
    return mark;
}

struct kv_model *kv_model_create(uint32_t block_count, uint32_t block_tokens, uint32_t slot_count,
                                 uint32_t vocab_size)
{
    struct kv_model *model = calloc(1, sizeof *model);
    CHECK(model != NULL);
    model->block_count = block_count;
    model->block_tokens = block_tokens;
    model->slot_count = slot_count;
    model->vocab_size = vocab_size;
    model->marks = calloc((size_t)block_count * block_tokens, sizeof *model->marks);
    model->slots = calloc(slot_count, sizeof *model->slots);
    CHECK(model->marks != NULL);
    CHECK(model->slots != NULL);
    return model;
}

void kv_model_destroy(struct kv_model *model)
{
    free(model->slots);
    free(model->marks);
    free(model);
}

static uint64_t *mark_at(struct kv_model *model, uint32_t block, uint32_t slot)
{
    CHECK(block < model->block_count);
    CHECK(slot < model->block_tokens);
    return &model->marks[(size_t)block * model->block_tokens + slot];
}

static uint32_t pick(uint32_t vocab_size, uint64_t text, uint64_t seed, uint32_t sequence, uint64_t penalty,
                     uint32_t output_count)
{
    return (uint32_t)(mix(mix(mix(text, seed), sequence), mix(penalty, output_count)) % vocab_size);
}

static float logprob_of(uint64_t text, uint32_t token) { return -(float)(mix(text, token) % 1000); }

static void open_slot(struct kv_model *model, const struct step_open *open)
{
    CHECK(open->slot < model->slot_count);
    struct slot_state *slot = &model->slots[open->slot];
    *slot = (struct slot_state){.seed = open->params->seed, .sequence = open->sequence, .is_open = true};
    for (uint32_t i = 0; i < open->output_count; i++) { slot->penalty = mix(slot->penalty, open->output[i]); }
    slot->output_count = open->output_count;
}

static uint32_t first_seen(uint32_t window, uint32_t count) { return window > 0 && count > window ? count - window : 0; }

static uint64_t read_text(struct kv_model *model, const struct step_span *span, uint32_t count)
{
    uint64_t text = 0;
    for (uint32_t p = first_seen(model->window, count); p < count; p++) {
        text = mix(text, *mark_at(model, span->block_table[p / model->block_tokens], p % model->block_tokens));
    }
    return text;
}

static uint64_t mark_before(struct kv_model *model, const struct step_span *span, uint32_t p)
{
    if (p == 0) { return 0; }
    return *mark_at(model, span->block_table[(p - 1) / model->block_tokens], (p - 1) % model->block_tokens);
}

void kv_model_set_window(struct kv_model *model, uint32_t window)
{
    CHECK(window != 1);
    model->window = window;
}

struct step_result kv_model_run(struct kv_model *model, const struct step_plan *plan)
{
    for (uint32_t i = 0; i < plan->open_count; i++) { open_slot(model, &plan->opens[i]); }
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        for (uint32_t s = 0; s < model->block_tokens; s++) {
            *mark_at(model, plan->copies[i].destination_block, s) = *mark_at(model, plan->copies[i].source_block, s);
        }
    }
    for (uint32_t i = plan->span_count; i-- > 0;) {
        const struct step_span *span = &plan->spans[i];
        CHECK(span->row_count > 0);
        CHECK(span->block_count * model->block_tokens >= span->first_position + span->row_count);
        for (uint32_t r = 0; r < span->row_count; r++) {
            uint32_t p = span->first_position + r;
            *mark_at(model, span->block_table[p / model->block_tokens], p % model->block_tokens) =
                mark_of(mark_before(model, span, p), span->tokens[r], p);
        }
    }
    uint32_t samples = 0;
    uint32_t logprobs = 0;
    uint32_t rows = 0;
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        rows += span->row_count;
        uint64_t text = read_text(model, span, span->first_position + span->row_count);
        for (uint32_t s = 0; s < span->sample_count; s++) {
            CHECK(span->sample_slots[s] < model->slot_count);
            struct slot_state *slot = &model->slots[span->sample_slots[s]];
            CHECK(slot->is_open);
            CHECK(samples < SAMPLES_MAX);
            uint32_t token = pick(model->vocab_size, text, slot->seed, slot->sequence, slot->penalty, slot->output_count);
            model->samples[samples++] = (struct step_sample){.token = token};
            slot->penalty = mix(slot->penalty, token);
            slot->output_count++;
        }
        if (span->prompt_logprobs < 0) { continue; }
        for (uint32_t r = 0; r < span->row_count; r++) {
            bool is_last = r + 1 == span->row_count;
            if (is_last && !span->has_next_token) { break; }
            uint32_t token = is_last ? span->next_token : span->tokens[r + 1];
            CHECK(logprobs < SAMPLES_MAX);
            model->logprobs[logprobs++] = (struct token_logprob){
                .logprob = logprob_of(read_text(model, span, span->first_position + r + 1), token)};
        }
    }
    return (struct step_result){
        .id = plan->id,
        .sample_count = samples,
        .samples = model->samples,
        .prompt_logprob_count = logprobs,
        .prompt_logprobs = model->logprobs,
        .compute_ns = 1000 * (uint64_t)rows,
    };
}

void kv_model_write(struct kv_model *model, uint32_t block, uint32_t slot, const uint32_t *tokens, uint32_t position)
{
    *mark_at(model, block, slot) = mark_of_text(tokens, position);
}

void kv_model_scribble(struct kv_model *model, uint32_t block, uint64_t garbage)
{
    for (uint32_t s = 0; s < model->block_tokens; s++) { *mark_at(model, block, s) = garbage ^ s; }
}

void kv_model_save(const struct kv_model *model, uint32_t block, uint64_t *ret_marks)
{
    CHECK(block < model->block_count);
    const uint64_t *marks = model->marks + (size_t)block * model->block_tokens;
    for (uint32_t s = 0; s < model->block_tokens; s++) { ret_marks[s] = marks[s]; }
}

void kv_model_restore(struct kv_model *model, uint32_t block, const uint64_t *marks)
{
    for (uint32_t s = 0; s < model->block_tokens; s++) { *mark_at(model, block, s) = marks[s]; }
}

bool kv_model_holds(const struct kv_model *model, uint32_t block, const uint32_t *tokens, uint32_t first,
                    uint32_t count)
{
    uint64_t mark = first == 0 ? 0 : mark_of_text(tokens, first - 1);
    for (uint32_t s = 0; s < model->block_tokens && first + s < count; s++) {
        mark = mark_of(mark, tokens[first + s], first + s);
        if (model->marks[(size_t)block * model->block_tokens + s] != mark) { return false; }
    }
    return true;
}

uint32_t kv_model_next_in_window(uint32_t window, uint32_t vocab_size, const struct sampling_params *params, uint32_t sequence,
                                 const uint32_t *prompt, uint32_t prompt_count, const uint32_t *output, uint32_t output_count)
{
    uint64_t text = 0;
    uint64_t mark = 0;
    uint64_t penalty = 0;
    uint32_t first = first_seen(window, prompt_count + output_count);
    for (uint32_t i = 0; i < prompt_count + output_count; i++) {
        uint32_t token = i < prompt_count ? prompt[i] : output[i - prompt_count];
        mark = mark_of(mark, token, i);
        if (i >= first) { text = mix(text, mark); }
    }
    for (uint32_t i = 0; i < output_count; i++) { penalty = mix(penalty, output[i]); }
    return pick(vocab_size, text, params->seed, sequence, penalty, output_count);
}

float kv_model_prompt_logprob_in_window(uint32_t window, const uint32_t *prompt, uint32_t index)
{
    uint64_t text = 0;
    uint64_t mark = 0;
    uint32_t first = first_seen(window, index);
    for (uint32_t i = 0; i < index; i++) {
        mark = mark_of(mark, prompt[i], i);
        if (i >= first) { text = mix(text, mark); }
    }
    return logprob_of(text, prompt[index]);
}
