#include "model/sampling_params.h"

#include <stddef.h>

static status_t check_float(const char *field, float value, float low, bool low_is_in, float high, bool high_is_in,
                            struct diag *diag);
static status_t check_logprobs(const char *field, int32_t value, struct diag *diag);
static status_t check_tokens(const struct sampling_params *params, uint32_t vocab_size, struct diag *diag);
static status_t check_length(const struct sampling_params *params, uint32_t context_tokens, uint32_t prompt_tokens,
                             struct diag *diag);

#define REFUSE STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST)

struct sampling_params sampling_params_default(void)
{
    return (struct sampling_params){
        .temperature = 0.0f,
        .top_p = 1.0f,
        .repetition_penalty = 1.0f,
        .max_tokens = 16,
        .n = 1,
        .logprobs = -1,
        .prompt_logprobs = -1,
    };
}

status_t sampling_params_validate(const struct sampling_params *params, uint32_t vocab_size,
                                  uint32_t context_tokens, uint32_t prompt_tokens, struct diag *diag)
{
    TRY(check_float("temperature", params->temperature, 0.0f, true, 100.0f, true, diag));
    TRY(check_float("top_p", params->top_p, 0.0f, false, 1.0f, true, diag));
    TRY(check_float("min_p", params->min_p, 0.0f, true, 1.0f, false, diag));
    /* The bounds keep logit * penalty finite for every logit a model gives; 1e-4 .. 1e4 is far
     * beyond any use. */
    TRY(check_float("repetition_penalty", params->repetition_penalty, 0.0001f, true, 10000.0f, true, diag));
    TRY(check_float("presence_penalty", params->presence_penalty, -2.0f, true, 2.0f, true, diag));
    TRY(check_float("frequency_penalty", params->frequency_penalty, -2.0f, true, 2.0f, true, diag));
    if (params->n < 1 || params->n > SAMPLING_N_MAX) {
        diag_set(diag, "n is %u; it must be 1 .. %u sequences", params->n, SAMPLING_N_MAX);
        return REFUSE;
    }
    TRY(check_logprobs("logprobs", params->logprobs, diag));
    TRY(check_logprobs("prompt_logprobs", params->prompt_logprobs, diag));
    TRY(check_tokens(params, vocab_size, diag));
    return check_length(params, context_tokens, prompt_tokens, diag);
}

static status_t check_float(const char *field, float value, float low, bool low_is_in, float high, bool high_is_in,
                            struct diag *diag)
{
    /* Written so that NaN, which compares false with everything, fails. */
    bool above = low_is_in ? value >= low : value > low;
    bool below = high_is_in ? value <= high : value < high;
    if (above && below) { return STATUS_OK; }
    diag_set(diag, "%s is %g; it must be in %c%g, %g%c", field, (double)value, low_is_in ? '[' : '(', (double)low,
             (double)high, high_is_in ? ']' : ')');
    return REFUSE;
}

static status_t check_logprobs(const char *field, int32_t value, struct diag *diag)
{
    if (value >= -1 && value <= (int32_t)SAMPLING_LOGPROBS_MAX) { return STATUS_OK; }
    diag_set(diag, "%s is %d; it must be 0 .. %u alternatives, or -1 for none at all", field, value,
             SAMPLING_LOGPROBS_MAX);
    return REFUSE;
}

static status_t check_tokens(const struct sampling_params *params, uint32_t vocab_size, struct diag *diag)
{
    if (params->stop_token_count > SAMPLING_STOP_TOKENS_MAX) {
        diag_set(diag, "stop_token_ids has %u entries; at most %u are taken", params->stop_token_count,
                 SAMPLING_STOP_TOKENS_MAX);
        return REFUSE;
    }
    for (uint32_t i = 0; i < params->stop_token_count; i++) {
        if (params->stop_tokens[i] < vocab_size) { continue; }
        diag_set(diag, "stop_token_ids[%u] is %u; the model's tokens are 0 .. %u", i, params->stop_tokens[i],
                 vocab_size - 1);
        return REFUSE;
    }
    if (params->logit_bias_count > SAMPLING_LOGIT_BIAS_MAX) {
        diag_set(diag, "logit_bias has %u entries; at most %u are taken", params->logit_bias_count,
                 SAMPLING_LOGIT_BIAS_MAX);
        return REFUSE;
    }
    for (uint32_t i = 0; i < params->logit_bias_count; i++) {
        const struct logit_bias *bias = &params->logit_bias[i];
        if (bias->token >= vocab_size) {
            diag_set(diag, "logit_bias[%u] names token %u; the model's tokens are 0 .. %u", i, bias->token,
                     vocab_size - 1);
            return REFUSE;
        }
        if (!(bias->bias >= -100.0f && bias->bias <= 100.0f)) {
            diag_set(diag, "logit_bias[%u] of token %u is %g; it must be in [-100, 100]", i, bias->token,
                     (double)bias->bias);
            return REFUSE;
        }
        /* At most 1024 entries, so the square is half a million compares at worst. */
        for (uint32_t j = 0; j < i; j++) {
            if (params->logit_bias[j].token != bias->token) { continue; }
            diag_set(diag, "logit_bias[%u] and logit_bias[%u] both name token %u; give each token one bias", j, i,
                     bias->token);
            return REFUSE;
        }
    }
    return STATUS_OK;
}

static status_t check_length(const struct sampling_params *params, uint32_t context_tokens, uint32_t prompt_tokens,
                             struct diag *diag)
{
    if (params->max_tokens < 1) {
        diag_set(diag, "max_tokens is 0; it must be at least 1");
        return REFUSE;
    }
    if (params->min_tokens > params->max_tokens) {
        diag_set(diag, "min_tokens is %u; it must be 0 .. max_tokens, which is %u", params->min_tokens,
                 params->max_tokens);
        return REFUSE;
    }
    if (prompt_tokens < 1) {
        diag_set(diag, "the prompt has 0 tokens; it must have at least 1");
        return REFUSE;
    }
    if (prompt_tokens >= context_tokens) {
        diag_set(diag, "the prompt has %u tokens and the model takes %u, the answer included; shorten the prompt to "
                 "at most %u tokens", prompt_tokens, context_tokens, context_tokens > 0 ? context_tokens - 1 : 0);
        return REFUSE;
    }
    uint32_t room = context_tokens - prompt_tokens;
    if (params->max_tokens > room) {
        diag_set(diag, "max_tokens is %u; after a prompt of %u tokens it must be 1 .. %u, since the model takes %u "
                 "in all; lower max_tokens or shorten the prompt",
                 params->max_tokens, prompt_tokens, room, context_tokens);
        return REFUSE;
    }
    return STATUS_OK;
}
