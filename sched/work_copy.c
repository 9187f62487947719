#include "sched/work_copy.h"

#include <string.h>

#define REFUSE STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST)

static status_t check_tokens(const char *field, const uint32_t *tokens, uint32_t count, uint32_t vocab_size,
                             struct diag *diag);

status_t work_validate(const struct ctl_work *work, const struct work_limits *limits, struct diag *diag)
{
    const struct sampling_params *params = &work->params;
    TRY(sampling_params_validate(params, limits->vocab_size, limits->context_tokens, work->prompt_count, diag));
    /* From here on prompt_count + max_tokens <= context_tokens, so no sum below overflows. */
    if (work->output_count >= params->max_tokens) {
        diag_set(diag, "output_count is %u; a leg that resumes must have fewer than max_tokens, which is %u",
                 work->output_count, params->max_tokens);
        return REFUSE;
    }
    if (work->sequence_count < 1 || work->sequence_count > params->n) {
        diag_set(diag, "sequence_count is %u; it must be 1 .. n, which is %u", work->sequence_count, params->n);
        return REFUSE;
    }
    if (work->sequence_first > params->n - work->sequence_count) {
        diag_set(diag, "sequence_first is %u; with %u sequences of %u it must be 0 .. %u", work->sequence_first,
                 work->sequence_count, params->n, params->n - work->sequence_count);
        return REFUSE;
    }
    if (work->output_count > 0 && work->sequence_count != 1) {
        diag_set(diag, "sequence_count is %u; a leg with output tokens (output_count %u) resumes one sequence",
                 work->sequence_count, work->output_count);
        return REFUSE;
    }
    if (work->output_count > 0 && params->prompt_logprobs >= 0) {
        diag_set(diag, "prompt_logprobs is %d; they came before the first output token, so a leg with output_count "
                 "%u must have -1", params->prompt_logprobs, work->output_count);
        return REFUSE;
    }
    TRY(check_tokens("prompt", work->prompt, work->prompt_count, limits->vocab_size, diag));
    return check_tokens("output", work->output, work->output_count, limits->vocab_size, diag);
}

size_t work_copy_bytes(const struct ctl_work *work)
{
    return ((size_t)work->prompt_count + work->output_count + work->params.stop_token_count) * sizeof(uint32_t) +
           work->params.logit_bias_count * sizeof(struct logit_bias);
}

static void *put(char **at, const void *from, size_t bytes)
{
    void *to = *at;
    if (bytes > 0) { memcpy(to, from, bytes); }
    *at += bytes;
    return to;
}

struct ctl_work work_copy(const struct ctl_work *work, void *memory)
{
    _Static_assert(_Alignof(struct logit_bias) <= _Alignof(uint32_t), "the arrays lie back to back");
    struct ctl_work copy = *work;
    char *at = memory;
    copy.prompt = put(&at, work->prompt, work->prompt_count * sizeof(uint32_t));
    copy.output = put(&at, work->output, work->output_count * sizeof(uint32_t));
    copy.params.stop_tokens = put(&at, work->params.stop_tokens, work->params.stop_token_count * sizeof(uint32_t));
    copy.params.logit_bias =
        put(&at, work->params.logit_bias, work->params.logit_bias_count * sizeof(struct logit_bias));
    return copy;
}

void work_tokens(const struct ctl_work *work, const uint32_t *output, uint32_t first, uint32_t count,
                 uint32_t *ret_tokens)
{
    uint32_t from_prompt = 0;
    if (first < work->prompt_count) {
        from_prompt = work->prompt_count - first < count ? work->prompt_count - first : count;
        memcpy(ret_tokens, work->prompt + first, from_prompt * sizeof *ret_tokens);
    }
    if (from_prompt == count) { return; }
    memcpy(ret_tokens + from_prompt, output + (first + from_prompt - work->prompt_count),
           (count - from_prompt) * sizeof *ret_tokens);
}

static status_t check_tokens(const char *field, const uint32_t *tokens, uint32_t count, uint32_t vocab_size,
                             struct diag *diag)
{
    for (uint32_t i = 0; i < count; i++) {
        if (tokens[i] < vocab_size) { continue; }
        diag_set(diag, "%s[%u] is %u; the model's tokens are 0 .. %u", field, i, tokens[i], vocab_size - 1);
        return REFUSE;
    }
    return STATUS_OK;
}
