/* ctl_decode: protobuf-c's structs as ctl_msg values: every required submessage is there, counts fit. */
#include "control/ctl_wire.h"

#include <string.h>

status_t ctl_malformed(struct diag *diag, const char *what)
{
    diag_set(diag, "Attach message: %s", what);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER);
}

static struct leg_id leg_from_pb(const pb_leg *leg) { return (struct leg_id){.hi = leg->hi, .lo = leg->lo}; }

static status_t work_from_pb(struct arena *arena, const pb_work *in, struct ctl_work *out, struct diag *diag)
{
    if (!in) { return ctl_malformed(diag, "no work"); }
    if (!in->leg) { return ctl_malformed(diag, "work without a leg"); }
    if (!in->params) { return ctl_malformed(diag, "work without sampling parameters"); }
    if (in->n_prompt > UINT32_MAX || in->n_output > UINT32_MAX) { return ctl_malformed(diag, "work with too many tokens"); }
    const pb_sampling *params = in->params;
    struct logit_bias *bias = NULL;
    if (params->n_stop_tokens > SAMPLING_STOP_TOKENS_MAX) { return ctl_malformed(diag, "too many stop tokens"); }
    if (params->n_logit_bias > SAMPLING_LOGIT_BIAS_MAX) { return ctl_malformed(diag, "too many logit biases"); }
    if (params->n_logit_bias > 0) {
        bias = arena_take_array(arena, params->n_logit_bias, sizeof *bias);
        if (!bias) { return ctl_malformed(diag, "larger than the limit"); }
        for (size_t i = 0; i < params->n_logit_bias; i++) {
            bias[i] = (struct logit_bias){.token = params->logit_bias[i]->token, .bias = params->logit_bias[i]->bias};
        }
    }
    *out = (struct ctl_work){
        .leg = leg_from_pb(in->leg),
        .sequence_first = in->sequence_first,
        .sequence_count = in->sequence_count,
        .prompt_count = (uint32_t)in->n_prompt,
        .prompt = in->prompt,
        .output_count = (uint32_t)in->n_output,
        .output = in->output,
        .params =
            {
                .temperature = params->temperature,
                .top_k = params->top_k,
                .top_p = params->top_p,
                .min_p = params->min_p,
                .repetition_penalty = params->repetition_penalty,
                .presence_penalty = params->presence_penalty,
                .frequency_penalty = params->frequency_penalty,
                .seed = params->seed,
                .max_tokens = params->max_tokens,
                .min_tokens = params->min_tokens,
                .ignore_eos = params->ignore_eos,
                .n = params->n,
                .logprobs = params->logprobs,
                .prompt_logprobs = params->prompt_logprobs,
                .stop_token_count = (uint32_t)params->n_stop_tokens,
                .stop_tokens = params->stop_tokens,
                .logit_bias_count = (uint32_t)params->n_logit_bias,
                .logit_bias = bias,
            },
        .age_ns = in->age_ns,
        .resumed = in->resumed,
        .priority = in->priority,
        .cache_salt = in->cache_salt,
    };
    return STATUS_OK;
}

static status_t logprob_from_pb(const pb_logprob *in, struct token_logprob *out, struct diag *diag)
{
    if (in->n_alternative_tokens > SAMPLING_LOGPROBS_MAX) { return ctl_malformed(diag, "too many alternatives"); }
    if (in->n_alternative_tokens != in->n_alternative_logprobs) {
        return ctl_malformed(diag, "alternatives without their log-probabilities");
    }
    out->logprob = in->logprob;
    out->rank = in->rank;
    out->alternative_count = (uint32_t)in->n_alternative_tokens;
    for (size_t i = 0; i < in->n_alternative_tokens; i++) {
        out->alternatives[i].token = in->alternative_tokens[i];
        out->alternatives[i].logprob = in->alternative_logprobs[i];
    }
    return STATUS_OK;
}

static status_t tokens_from_pb(struct arena *arena, const Baton__Control__V1__Tokens *in, struct ctl_tokens *out,
                               struct diag *diag)
{
    struct ctl_token *tokens = arena_take_array(arena, in->n_tokens, sizeof *tokens);
    if (!tokens) { return ctl_malformed(diag, "larger than the limit"); }
    for (size_t i = 0; i < in->n_tokens; i++) {
        const pb_token *token = in->tokens[i];
        if (!token->leg) { return ctl_malformed(diag, "a token without a leg"); }
        if (token->finish > FINISH_LENGTH) { return ctl_malformed(diag, "a finish reason that is none"); }
        tokens[i].leg = leg_from_pb(token->leg);
        tokens[i].sequence = token->sequence;
        tokens[i].position = token->position;
        tokens[i].token = token->token;
        tokens[i].finish = (uint8_t)token->finish;
        if (token->logprob) {
            tokens[i].has_logprob = true;
            TRY(logprob_from_pb(token->logprob, &tokens[i].logprob, diag));
        }
    }
    out->count = (uint32_t)in->n_tokens;
    out->tokens = tokens;
    return STATUS_OK;
}

static status_t failure_from_pb(const pb_failure *in, struct ctl_failure *out, struct diag *diag)
{
    if (!in->leg) { return ctl_malformed(diag, "a failure without a leg"); }
    if (in->code == ST_OK || in->code > ST_UNAUTHENTICATED) { return ctl_malformed(diag, "a failure with a code that is none"); }
    *out = (struct ctl_failure){.leg = leg_from_pb(in->leg), .code = (uint8_t)in->code,
                                .retry_after_ms = in->retry_after_ms, .message = in->message};
    return STATUS_OK;
}

status_t ctl_read_router_message(struct arena *arena, const pb_router_message *in, struct ctl_msg *out,
                                       struct diag *diag)
{
    switch (in->kind_case) {
    case BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_HELLO:
        out->kind = CTL_ROUTER_HELLO;
        out->router_hello = (struct ctl_router_hello){.protocol_version = in->hello->protocol_version,
                                                      .router_boot_id = in->hello->router_boot_id};
        return STATUS_OK;
    case BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_RESERVE:
        out->kind = CTL_RESERVE;
        out->reserve.local_prefill = in->reserve->local_prefill;
        out->reserve.local_max_tokens = in->reserve->local_max_tokens;
        out->reserve.wait_ms = in->reserve->wait_ms;
        return work_from_pb(arena, in->reserve->work, &out->reserve.work, diag);
    case BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_PREFILL:
        out->kind = CTL_PREFILL;
        out->prefill.ticket = in->prefill->ticket.data;
        out->prefill.ticket_bytes = (uint32_t)in->prefill->ticket.len;
        out->prefill.grant_first = in->prefill->grant_first;
        return work_from_pb(arena, in->prefill->work, &out->prefill.work, diag);
    case BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_PREFILL_LOST:
        out->kind = CTL_PREFILL_LOST;
        out->prefill_lost = leg_from_pb(in->prefill_lost);
        return STATUS_OK;
    case BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_CANCEL:
        if (!in->cancel->leg) { return ctl_malformed(diag, "a cancel without a leg"); }
        out->kind = CTL_CANCEL;
        out->cancel = (struct ctl_cancel){.leg = leg_from_pb(in->cancel->leg),
                                          .one_sequence = in->cancel->one_sequence,
                                          .sequence = in->cancel->sequence};
        return STATUS_OK;
    default:
        return ctl_malformed(diag, "of no kind that this version knows");
    }
}

static status_t hello_from_pb(const Baton__Control__V1__NodeHello *in, struct ctl_node_hello *out, struct diag *diag)
{
    if (in->model_hash.len != sizeof out->model_hash) { return ctl_malformed(diag, "a hello whose model_hash is not 32 bytes"); }
    *out = (struct ctl_node_hello){
        .protocol_version = in->protocol_version,
        .node_id = in->node_id,
        .boot_epoch = in->boot_epoch,
        .role = in->role,
        .node_name = in->node_name,
        .model_name = in->model_name,
        .fingerprint_bytes = (uint32_t)in->fingerprint.len,
        .fingerprint = in->fingerprint.data,
        .vocab_size = in->vocab_size,
        .context_tokens = in->context_tokens,
        .block_tokens = in->block_tokens,
        .block_count = in->block_count,
        .sequences_max = in->sequences_max,
    };
    memcpy(out->model_hash, in->model_hash.data, sizeof out->model_hash);
    return STATUS_OK;
}

status_t ctl_read_node_message(struct arena *arena, const pb_node_message *in, struct ctl_msg *out,
                                     struct diag *diag)
{
    switch (in->kind_case) {
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_HELLO:
        out->kind = CTL_NODE_HELLO;
        return hello_from_pb(in->hello, &out->node_hello, diag);
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_RESERVED:
        if (!in->reserved->leg) { return ctl_malformed(diag, "a reservation without a leg"); }
        out->kind = CTL_RESERVED;
        out->reserved = (struct ctl_reserved){.leg = leg_from_pb(in->reserved->leg),
                                              .is_local = in->reserved->is_local,
                                              .cached_tokens = in->reserved->cached_tokens,
                                              .grant_first = in->reserved->grant_first,
                                              .ticket_bytes = (uint32_t)in->reserved->ticket.len,
                                              .ticket = in->reserved->ticket.data};
        return STATUS_OK;
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_REFUSED:
        out->kind = CTL_REFUSED;
        return failure_from_pb(in->refused, &out->failure, diag);
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_PREFILL_FAILED:
        out->kind = CTL_PREFILL_FAILED;
        return failure_from_pb(in->prefill_failed, &out->failure, diag);
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_LEG_FAILED:
        out->kind = CTL_LEG_FAILED;
        return failure_from_pb(in->leg_failed, &out->failure, diag);
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_PROMPT_LOGPROBS: {
        const Baton__Control__V1__PromptLogprobs *from = in->prompt_logprobs;
        if (!from->leg) { return ctl_malformed(diag, "prompt log-probabilities without a leg"); }
        struct token_logprob *entries = arena_take_array(arena, from->n_entries, sizeof *entries);
        if (!entries) { return ctl_malformed(diag, "larger than the limit"); }
        for (size_t i = 0; i < from->n_entries; i++) { TRY(logprob_from_pb(from->entries[i], &entries[i], diag)); }
        out->kind = CTL_PROMPT_LOGPROBS;
        out->prompt_logprobs = (struct ctl_prompt_logprobs){.leg = leg_from_pb(from->leg), .first = from->first,
                                                            .count = (uint32_t)from->n_entries, .entries = entries};
        return STATUS_OK;
    }
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_TOKENS:
        out->kind = CTL_TOKENS;
        return tokens_from_pb(arena, in->tokens, &out->tokens, diag);
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_PREFILL_DONE: {
        const Baton__Control__V1__PrefillDone *from = in->prefill_done;
        if (!from->leg) { return ctl_malformed(diag, "a finished prefill without a leg"); }
        out->kind = CTL_PREFILL_DONE;
        out->prefill_done = (struct ctl_prefill_done){.leg = leg_from_pb(from->leg), .cable = from->cable,
                                                      .bytes = from->bytes, .queue_ns = from->queue_ns,
                                                      .compute_ns = from->compute_ns,
                                                      .transfer_ns = from->transfer_ns,
                                                      .cached_tokens = from->cached_tokens};
        return STATUS_OK;
    }
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_LOAD: {
        const Baton__Control__V1__Load *from = in->load;
        out->kind = CTL_LOAD;
        out->load = (struct ctl_load){
            .blocks_total = from->blocks_total,
            .blocks_free = from->blocks_free,
            .blocks_held = from->blocks_held,
            .blocks_cached = from->blocks_cached,
            .blocks_quarantined = from->blocks_quarantined,
            .sequences_running = from->sequences_running,
            .sequences_waiting = from->sequences_waiting,
            .tokens_queued = from->tokens_queued,
            .tokens_per_s = from->tokens_per_s,
            .draining = from->draining,
            .cache_tokens_asked = from->cache_tokens_asked,
            .cache_tokens_found = from->cache_tokens_found,
        };
        return STATUS_OK;
    }
    default:
        return ctl_malformed(diag, "of no kind that this version knows");
    }
}
