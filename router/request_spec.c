#include "router/request_spec.h"

#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/utf8.h"

#define REFUSE STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST)

static void fill_scalars(struct sampling_params *params, const Baton__V1__SamplingParams *sampling,
                         const struct generation_defaults *defaults, uint64_t drawn_seed)
{
    const Baton__V1__SamplingParams none = BATON__V1__SAMPLING_PARAMS__INIT;
    const Baton__V1__SamplingParams *from = sampling ? sampling : &none;
    *params = (struct sampling_params){
        .temperature = defaults->has_temperature ? defaults->temperature : 1.0f,
        .top_k = defaults->has_top_k ? defaults->top_k : 0,
        .top_p = defaults->has_top_p ? defaults->top_p : 1.0f,
        .min_p = defaults->has_min_p ? defaults->min_p : 0.0f,
        .repetition_penalty = defaults->has_repetition_penalty ? defaults->repetition_penalty : 1.0f,
        .seed = from->seed ? from->seed->value : drawn_seed,
        .min_tokens = from->min_tokens,
        .ignore_eos = from->ignore_eos,
        .n = from->n ? from->n->value : 1,
        .logprobs = -1,
        .prompt_logprobs = -1,
    };
    if (defaults->has_do_sample && !defaults->do_sample) { params->temperature = 0.0f; }
    if (from->temperature) { params->temperature = from->temperature->value; }
    if (from->top_k) { params->top_k = from->top_k->value; }
    if (from->top_p) { params->top_p = from->top_p->value; }
    if (from->min_p) { params->min_p = from->min_p->value; }
    if (from->repetition_penalty) { params->repetition_penalty = from->repetition_penalty->value; }
    if (from->presence_penalty) { params->presence_penalty = from->presence_penalty->value; }
    if (from->frequency_penalty) { params->frequency_penalty = from->frequency_penalty->value; }
    /* A value past int32 must stay out of range, not turn into "none". */
    if (from->logprobs) {
        params->logprobs = from->logprobs->value > INT32_MAX ? INT32_MAX : (int32_t)from->logprobs->value;
    }
    if (from->prompt_logprobs) {
        params->prompt_logprobs =
            from->prompt_logprobs->value > INT32_MAX ? INT32_MAX : (int32_t)from->prompt_logprobs->value;
    }
}

static status_t check_stops(const Baton__V1__SamplingParams *sampling, struct diag *diag)
{
    if (sampling->n_stop > STOP_STRINGS_MAX) {
        diag_set(diag, "stop has %zu texts; at most %u are taken", sampling->n_stop, STOP_STRINGS_MAX);
        return REFUSE;
    }
    for (size_t i = 0; i < sampling->n_stop; i++) {
        size_t len = strlen(sampling->stop[i]);
        if (len == 0 || len > STOP_STRING_BYTES_MAX) {
            diag_set(diag, "stop[%zu] has %zu bytes; it must have 1 .. %u", i, len, STOP_STRING_BYTES_MAX);
            return REFUSE;
        }
        if (utf8_valid_prefix(sampling->stop[i], len) != len) {
            diag_set(diag, "stop[%zu] is not UTF-8 at byte %zu", i, utf8_valid_prefix(sampling->stop[i], len));
            return REFUSE;
        }
    }
    return STATUS_OK;
}

static status_t check_counts(const Baton__V1__SamplingParams *sampling, struct diag *diag)
{
    if (sampling->n_stop_token_ids > SAMPLING_STOP_TOKENS_MAX) {
        diag_set(diag, "stop_token_ids has %zu entries; at most %u are taken", sampling->n_stop_token_ids,
                 SAMPLING_STOP_TOKENS_MAX);
        return REFUSE;
    }
    if (sampling->n_logit_bias > SAMPLING_LOGIT_BIAS_MAX) {
        diag_set(diag, "logit_bias has %zu entries; at most %u are taken", sampling->n_logit_bias,
                 SAMPLING_LOGIT_BIAS_MAX);
        return REFUSE;
    }
    return check_stops(sampling, diag);
}

/* A map's key that comes twice on the wire: protobuf lets the last one win. */
static uint32_t copy_biases(struct logit_bias *list, const Baton__V1__SamplingParams *sampling)
{
    uint32_t count = 0;
    for (size_t i = 0; i < sampling->n_logit_bias; i++) {
        const Baton__V1__SamplingParams__LogitBiasEntry *entry = sampling->logit_bias[i];
        uint32_t at = 0;
        while (at < count && list[at].token != entry->key) { at++; }
        list[at] = (struct logit_bias){.token = entry->key, .bias = entry->value};
        if (at == count) { count++; }
    }
    return count;
}

static status_t copy_arrays(struct request_spec *spec, const Baton__V1__SamplingParams *sampling)
{
    size_t biases = sampling->n_logit_bias * sizeof(struct logit_bias);
    size_t tokens = sampling->n_stop_token_ids * sizeof(uint32_t);
    size_t texts = 0;
    for (size_t i = 0; i < sampling->n_stop; i++) { texts += strlen(sampling->stop[i]); }
    if (biases + tokens + texts == 0) { return STATUS_OK; }
    spec->block = malloc(biases + tokens + texts);
    if (!spec->block) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    struct logit_bias *bias = spec->block;
    uint32_t *token = (uint32_t *)(void *)((char *)spec->block + biases);
    char *text = (char *)spec->block + biases + tokens;
    if (biases > 0) { spec->params.logit_bias_count = copy_biases(bias, sampling); }
    spec->params.logit_bias = bias;
    if (tokens > 0) { memcpy(token, sampling->stop_token_ids, tokens); }
    spec->params.stop_tokens = token;
    spec->params.stop_token_count = (uint32_t)sampling->n_stop_token_ids;
    for (size_t i = 0; i < sampling->n_stop; i++) {
        size_t len = strlen(sampling->stop[i]);
        memcpy(text, sampling->stop[i], len);
        spec->stops[i] = (struct stop_string){.bytes = text, .len = len};
        text += len;
    }
    spec->stop_count = (uint32_t)sampling->n_stop;
    return STATUS_OK;
}

static status_t fit_length(struct sampling_params *params, const Baton__V1__SamplingParams *sampling,
                           uint32_t context_tokens, size_t prompt_count, struct diag *diag)
{
    if (prompt_count == 0) {
        diag_set(diag, "prompt is empty: it must have at least one token; send text or tokens.ids");
        return REFUSE;
    }
    if (prompt_count >= context_tokens) {
        diag_set(diag, "prompt has %zu tokens and the model takes %u, the answer included; shorten it to at most %u tokens",
                 prompt_count, context_tokens, context_tokens > 0 ? context_tokens - 1 : 0);
        return REFUSE;
    }
    if (sampling && sampling->max_tokens) {
        params->max_tokens = sampling->max_tokens->value;
        return STATUS_OK;
    }
    uint32_t room = context_tokens - (uint32_t)prompt_count;
    uint32_t wanted = params->min_tokens > DEFAULT_MAX_TOKENS ? params->min_tokens : DEFAULT_MAX_TOKENS;
    params->max_tokens = wanted < room ? wanted : room;
    return STATUS_OK;
}

status_t request_spec_init(struct request_spec *spec, const Baton__V1__SamplingParams *sampling,
                           const struct request_limits *limits, uint32_t *prompt, size_t prompt_count,
                           uint64_t drawn_seed, struct diag *diag)
{
    *spec = (struct request_spec){0};
    fill_scalars(&spec->params, sampling, limits->defaults, drawn_seed);
    TRY(fit_length(&spec->params, sampling, limits->context_tokens, prompt_count, diag));
    if (sampling) {
        TRY(check_counts(sampling, diag));
        TRY(copy_arrays(spec, sampling));
        spec->include_stop = sampling->include_stop;
        spec->show_special_tokens = sampling->show_special_tokens;
    }
    status_t st = sampling_params_validate(&spec->params, limits->vocab_size, limits->context_tokens,
                                           (uint32_t)prompt_count, diag);
    if (failed(st)) {
        request_spec_fini(spec);
        return st;
    }
    spec->prompt = prompt;
    spec->prompt_count = (uint32_t)prompt_count;
    return STATUS_OK;
}

void request_spec_fini(struct request_spec *spec)
{
    free(spec->block);
    free(spec->prompt);
    *spec = (struct request_spec){0};
}

status_t request_spec_check_ids(const char *field, const uint32_t *ids, size_t count, uint32_t vocab_size,
                                struct diag *diag)
{
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < vocab_size) { continue; }
        diag_set(diag, "%s[%zu] is %u; the model's tokens are 0 .. %u", field, i, ids[i], vocab_size - 1);
        return REFUSE;
    }
    return STATUS_OK;
}
