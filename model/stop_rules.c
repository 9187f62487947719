#include "model/stop_rules.h"

#include <stddef.h>

bool stop_rules_token_ends(const struct sampling_params *params, struct eos_tokens eos, uint32_t token)
{
    for (uint32_t i = 0; i < params->stop_token_count; i++) {
        if (params->stop_tokens[i] == token) { return true; }
    }
    if (params->ignore_eos) { return false; }
    for (uint32_t i = 0; i < eos.count; i++) {
        if (eos.token[i] == token) { return true; }
    }
    return false;
}

enum stop_verdict stop_rules_decide(const struct sampling_params *params, struct eos_tokens eos, uint32_t token,
                                    uint32_t output_tokens, uint32_t total_tokens, uint32_t context_tokens)
{
    if (output_tokens > params->min_tokens && stop_rules_token_ends(params, eos, token)) {
        return STOP_RULES_END_TOKEN;
    }
    if (output_tokens >= params->max_tokens) { return STOP_RULES_LENGTH; }
    if (total_tokens >= context_tokens) { return STOP_RULES_LENGTH; }
    return STOP_RULES_CONTINUE;
}

const char *stop_rules_finish_reason(enum stop_verdict verdict)
{
    switch (verdict) {
    case STOP_RULES_CONTINUE: return NULL;
    case STOP_RULES_END_TOKEN: return "stop";
    case STOP_RULES_LENGTH: return "length";
    }
    return NULL;
}
