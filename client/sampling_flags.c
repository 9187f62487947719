#include "client/sampling_flags.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static status_t bad_number(struct diag *diag, const char *flag, const char *text, const char *kind)
{
    diag_set(diag, "--%s=%s: takes %s", flag, text, kind);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
}

static status_t parse_unsigned(const char *text, const char *flag, uint64_t max, uint64_t *ret_value, struct diag *diag)
{
    char *end;
    errno = 0;
    unsigned long long value = isdigit((unsigned char)text[0]) ? strtoull(text, &end, 10) : 0;
    if (!isdigit((unsigned char)text[0]) || errno != 0 || *end != '\0' || value > max) {
        char kind[64];
        snprintf(kind, sizeof kind, "a whole number from 0 to %llu", (unsigned long long)max);
        return bad_number(diag, flag, text, kind);
    }
    *ret_value = value;
    return STATUS_OK;
}

static status_t parse_float(const char *text, const char *flag, float *ret_value, struct diag *diag)
{
    char *end;
    errno = 0;
    float value = strtof(text, &end);
    if (end == text || isspace((unsigned char)text[0]) || *end != '\0' || !isfinite(value)) { return bad_number(diag, flag, text, "a number"); }
    *ret_value = value;
    return STATUS_OK;
}

status_t token_list_parse(const char *text, const char *what, uint32_t **ret_ids, size_t *ret_count, struct diag *diag)
{
    size_t count = 1;
    for (const char *c = text; *c; c++) { count += *c == ','; }
    uint32_t *ids = malloc(count * sizeof *ids);
    if (!ids) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    const char *at = text;
    for (size_t i = 0; i < count; i++) {
        while (*at == ' ') { at++; }
        char *end = NULL;
        errno = 0;
        unsigned long value = isdigit((unsigned char)*at) ? strtoul(at, &end, 10) : 0;
        if (!end || errno != 0 || value > UINT32_MAX || (*end != ',' && *end != '\0')) {
            diag_set(diag, "--%s=%.200s: entry %zu is not a token id; takes 1,2,3", what, text, i + 1);
            free(ids);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        ids[i] = (uint32_t)value;
        at = end + 1;
    }
    *ret_ids = ids;
    *ret_count = count;
    return STATUS_OK;
}

static status_t set_float(const char *text, const char *flag, Baton__V1__Float *value, Baton__V1__Float **ret_field,
                          struct diag *diag)
{
    if (!text) { return STATUS_OK; }
    *value = (Baton__V1__Float)BATON__V1__FLOAT__INIT;
    TRY(parse_float(text, flag, &value->value, diag));
    *ret_field = value;
    return STATUS_OK;
}

static status_t set_uint(const char *text, const char *flag, Baton__V1__UInt *value, Baton__V1__UInt **ret_field,
                         struct diag *diag)
{
    if (!text) { return STATUS_OK; }
    uint64_t number;
    *value = (Baton__V1__UInt)BATON__V1__UINT__INIT;
    TRY(parse_unsigned(text, flag, UINT32_MAX, &number, diag));
    value->value = (uint32_t)number;
    *ret_field = value;
    return STATUS_OK;
}

static status_t set_bias(struct sampling_flags *flags, struct diag *diag)
{
    for (uint32_t i = 0; i < flags->logit_bias.count; i++) {
        const char *text = flags->logit_bias.values[i];
        const char *colon = strchr(text, ':');
        char token[16] = "";
        Baton__V1__SamplingParams__LogitBiasEntry *entry = &flags->bias_entries[i];
        *entry = (Baton__V1__SamplingParams__LogitBiasEntry)BATON__V1__SAMPLING_PARAMS__LOGIT_BIAS_ENTRY__INIT;
        if (!colon || (size_t)(colon - text) >= sizeof token) {
            return bad_number(diag, "logit-bias", text, "TOKEN:X, for example 42:-100");
        }
        memcpy(token, text, (size_t)(colon - text));
        uint64_t number;
        TRY(parse_unsigned(token, "logit-bias", UINT32_MAX, &number, diag));
        entry->key = (uint32_t)number;
        TRY(parse_float(colon + 1, "logit-bias", &entry->value, diag));
        flags->bias_pointers[i] = entry;
    }
    flags->message.n_logit_bias = flags->logit_bias.count;
    flags->message.logit_bias = flags->bias_pointers;
    return STATUS_OK;
}

status_t sampling_flags_build(struct sampling_flags *flags, struct diag *diag)
{
    Baton__V1__SamplingParams *out = &flags->message;
    *out = (Baton__V1__SamplingParams)BATON__V1__SAMPLING_PARAMS__INIT;
    TRY(set_float(flags->temperature, "temperature", &flags->floats[0], &out->temperature, diag));
    TRY(set_float(flags->top_p, "top-p", &flags->floats[1], &out->top_p, diag));
    TRY(set_float(flags->min_p, "min-p", &flags->floats[2], &out->min_p, diag));
    TRY(set_float(flags->repetition_penalty, "repetition-penalty", &flags->floats[3], &out->repetition_penalty, diag));
    TRY(set_float(flags->presence_penalty, "presence-penalty", &flags->floats[4], &out->presence_penalty, diag));
    TRY(set_float(flags->frequency_penalty, "frequency-penalty", &flags->floats[5], &out->frequency_penalty, diag));
    TRY(set_uint(flags->top_k, "top-k", &flags->uints[0], &out->top_k, diag));
    TRY(set_uint(flags->max_tokens, "max-tokens", &flags->uints[1], &out->max_tokens, diag));
    TRY(set_uint(flags->logprobs, "logprobs", &flags->uints[2], &out->logprobs, diag));
    TRY(set_uint(flags->prompt_logprobs, "prompt-logprobs", &flags->uints[3], &out->prompt_logprobs, diag));
    TRY(set_uint(flags->n, "n", &flags->uints[4], &out->n, diag));
    uint64_t number;
    if (flags->min_tokens) {
        TRY(parse_unsigned(flags->min_tokens, "min-tokens", UINT32_MAX, &number, diag));
        out->min_tokens = (uint32_t)number;
    }
    if (flags->seed) {
        flags->seed_value = (Baton__V1__Seed)BATON__V1__SEED__INIT;
        TRY(parse_unsigned(flags->seed, "seed", UINT64_MAX, &flags->seed_value.value, diag));
        out->seed = &flags->seed_value;
    }
    out->ignore_eos = flags->ignore_eos;
    out->include_stop = flags->include_stop;
    out->show_special_tokens = flags->show_special_tokens;
    for (uint32_t i = 0; i < flags->stop.count; i++) {
        memcpy(&flags->stop_pointers[i], &flags->stop.values[i], sizeof flags->stop_pointers[i]);
    }
    out->n_stop = flags->stop.count;
    out->stop = flags->stop_pointers;
    if (flags->stop_token_ids) {
        uint32_t *ids;
        size_t count;
        TRY(token_list_parse(flags->stop_token_ids, "stop-token-ids", &ids, &count, diag));
        if (count > 64) {
            free(ids);
            return bad_number(diag, "stop-token-ids", flags->stop_token_ids, "at most 64 tokens");
        }
        memcpy(flags->stop_tokens, ids, count * sizeof *ids);
        free(ids);
        out->n_stop_token_ids = count;
        out->stop_token_ids = flags->stop_tokens;
    }
    return set_bias(flags, diag);
}
