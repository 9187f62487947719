/* ctl_encode: ctl_msg values as protobuf-c's structs. */
#include "control/ctl_wire.h"

#include <string.h>

#include "base/check.h"

static pb_leg leg_to_pb(struct leg_id leg)
{
    pb_leg out = BATON__CONTROL__V1__LEG_ID__INIT;
    out.hi = leg.hi;
    out.lo = leg.lo;
    return out;
}

static pb_leg *leg_new(struct arena *arena, struct leg_id leg)
{
    pb_leg *out = arena_take(arena, sizeof *out);
    if (out) { *out = leg_to_pb(leg); }
    return out;
}

/* protobuf-c's arrays are not const; it only reads them when it packs. */
static uint32_t *unconst_u32(const uint32_t *values)
{
    uint32_t *out;
    memcpy(&out, &values, sizeof out);
    return out;
}

static uint8_t *unconst_u8(const uint8_t *values)
{
    uint8_t *out;
    memcpy(&out, &values, sizeof out);
    return out;
}

static char *unconst_text(const char *text)
{
    static char empty[1] = "";
    char *out;
    if (!text) { return empty; }
    memcpy(&out, &text, sizeof out);
    return out;
}

static pb_sampling *sampling_new(struct arena *arena, const struct sampling_params *params)
{
    pb_sampling *out = arena_take(arena, sizeof *out);
    if (!out) { return NULL; }
    *out = (pb_sampling)BATON__CONTROL__V1__SAMPLING__INIT;
    out->temperature = params->temperature;
    out->top_k = params->top_k;
    out->top_p = params->top_p;
    out->min_p = params->min_p;
    out->repetition_penalty = params->repetition_penalty;
    out->presence_penalty = params->presence_penalty;
    out->frequency_penalty = params->frequency_penalty;
    out->seed = params->seed;
    out->max_tokens = params->max_tokens;
    out->min_tokens = params->min_tokens;
    out->ignore_eos = params->ignore_eos;
    out->n = params->n;
    out->logprobs = params->logprobs;
    out->prompt_logprobs = params->prompt_logprobs;
    out->n_stop_tokens = params->stop_token_count;
    out->stop_tokens = unconst_u32(params->stop_tokens);
    if (params->logit_bias_count > 0) {
        pb_bias **pointers = arena_take_array(arena, params->logit_bias_count, sizeof *pointers);
        pb_bias *entries = arena_take_array(arena, params->logit_bias_count, sizeof *entries);
        if (!pointers || !entries) { return NULL; }
        for (uint32_t i = 0; i < params->logit_bias_count; i++) {
            entries[i] = (pb_bias)BATON__CONTROL__V1__LOGIT_BIAS__INIT;
            entries[i].token = params->logit_bias[i].token;
            entries[i].bias = params->logit_bias[i].bias;
            pointers[i] = &entries[i];
        }
        out->n_logit_bias = params->logit_bias_count;
        out->logit_bias = pointers;
    }
    return out;
}

static pb_work *work_new(struct arena *arena, const struct ctl_work *work)
{
    pb_work *out = arena_take(arena, sizeof *out);
    if (!out) { return NULL; }
    *out = (pb_work)BATON__CONTROL__V1__WORK__INIT;
    out->leg = leg_new(arena, work->leg);
    out->sequence_first = work->sequence_first;
    out->sequence_count = work->sequence_count;
    out->n_prompt = work->prompt_count;
    out->prompt = unconst_u32(work->prompt);
    out->n_output = work->output_count;
    out->output = unconst_u32(work->output);
    out->params = sampling_new(arena, &work->params);
    out->age_ns = work->age_ns;
    out->resumed = work->resumed;
    out->priority = work->priority;
    out->cache_salt = work->cache_salt;
    return out->leg && out->params ? out : NULL;
}

static bool logprob_to_pb(struct arena *arena, const struct token_logprob *logprob, pb_logprob *out)
{
    *out = (pb_logprob)BATON__CONTROL__V1__TOKEN_LOGPROB__INIT;
    out->logprob = logprob->logprob;
    out->rank = logprob->rank;
    uint32_t count = logprob->alternative_count;
    CHECK(count <= SAMPLING_LOGPROBS_MAX);
    if (count > 0) {
        out->alternative_tokens = arena_take(arena, count * sizeof(uint32_t));
        out->alternative_logprobs = arena_take(arena, count * sizeof(float));
        if (!out->alternative_tokens || !out->alternative_logprobs) { return false; }
        for (uint32_t i = 0; i < count; i++) {
            out->alternative_tokens[i] = logprob->alternatives[i].token;
            out->alternative_logprobs[i] = logprob->alternatives[i].logprob;
        }
        out->n_alternative_tokens = count;
        out->n_alternative_logprobs = count;
    }
    return true;
}

static Baton__Control__V1__Tokens *tokens_new(struct arena *arena, const struct ctl_tokens *tokens)
{
    Baton__Control__V1__Tokens *out = arena_take(arena, sizeof *out);
    pb_token **pointers = arena_take_array(arena, tokens->count, sizeof *pointers);
    pb_token *entries = arena_take_array(arena, tokens->count, sizeof *entries);
    pb_leg *legs = arena_take_array(arena, tokens->count, sizeof *legs);
    if (!out || !pointers || !entries || !legs) { return NULL; }
    *out = (Baton__Control__V1__Tokens)BATON__CONTROL__V1__TOKENS__INIT;
    for (uint32_t i = 0; i < tokens->count; i++) {
        const struct ctl_token *token = &tokens->tokens[i];
        legs[i] = leg_to_pb(token->leg);
        entries[i] = (pb_token)BATON__CONTROL__V1__TOKEN__INIT;
        entries[i].leg = &legs[i];
        entries[i].sequence = token->sequence;
        entries[i].position = token->position;
        entries[i].token = token->token;
        entries[i].finish = token->finish;
        if (token->has_logprob) {
            pb_logprob *logprob = arena_take(arena, sizeof *logprob);
            if (!logprob || !logprob_to_pb(arena, &token->logprob, logprob)) { return NULL; }
            entries[i].logprob = logprob;
        }
        pointers[i] = &entries[i];
    }
    out->n_tokens = tokens->count;
    out->tokens = pointers;
    return out;
}

static Baton__Control__V1__PromptLogprobs *prompt_logprobs_new(struct arena *arena,
                                                              const struct ctl_prompt_logprobs *logprobs)
{
    Baton__Control__V1__PromptLogprobs *out = arena_take(arena, sizeof *out);
    pb_logprob **pointers = arena_take_array(arena, logprobs->count, sizeof *pointers);
    pb_logprob *entries = arena_take_array(arena, logprobs->count, sizeof *entries);
    if (!out || !pointers || !entries) { return NULL; }
    *out = (Baton__Control__V1__PromptLogprobs)BATON__CONTROL__V1__PROMPT_LOGPROBS__INIT;
    out->leg = leg_new(arena, logprobs->leg);
    out->first = logprobs->first;
    for (uint32_t i = 0; i < logprobs->count; i++) {
        if (!logprob_to_pb(arena, &logprobs->entries[i], &entries[i])) { return NULL; }
        pointers[i] = &entries[i];
    }
    out->n_entries = logprobs->count;
    out->entries = pointers;
    return out->leg ? out : NULL;
}

static pb_failure *failure_new(struct arena *arena, const struct ctl_failure *failure)
{
    pb_failure *out = arena_take(arena, sizeof *out);
    if (!out) { return NULL; }
    *out = (pb_failure)BATON__CONTROL__V1__FAILURE__INIT;
    out->leg = leg_new(arena, failure->leg);
    out->code = failure->code;
    out->retry_after_ms = failure->retry_after_ms;
    out->message = unconst_text(failure->message);
    return out->leg ? out : NULL;
}

/* A submessage from the arena, set to its INIT value. */
#define NEW(type, init_value)                              \
    type *out = arena_take(arena, sizeof *out);            \
    if (!out) { return false; }                            \
    *out = (type)init_value

bool ctl_build_router_message(struct arena *arena, const struct ctl_msg *msg, pb_router_message *ret)
{
    switch (msg->kind) {
    case CTL_ROUTER_HELLO: {
        NEW(Baton__Control__V1__RouterHello, BATON__CONTROL__V1__ROUTER_HELLO__INIT);
        out->protocol_version = msg->router_hello.protocol_version;
        out->router_boot_id = msg->router_hello.router_boot_id;
        ret->hello = out;
        ret->kind_case = BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_HELLO;
        return true;
    }
    case CTL_RESERVE: {
        NEW(Baton__Control__V1__Reserve, BATON__CONTROL__V1__RESERVE__INIT);
        out->work = work_new(arena, &msg->reserve.work);
        out->local_prefill = msg->reserve.local_prefill;
        out->local_max_tokens = msg->reserve.local_max_tokens;
        out->wait_ms = msg->reserve.wait_ms;
        ret->reserve = out;
        ret->kind_case = BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_RESERVE;
        return out->work != NULL;
    }
    case CTL_PREFILL: {
        NEW(Baton__Control__V1__Prefill, BATON__CONTROL__V1__PREFILL__INIT);
        out->work = work_new(arena, &msg->prefill.work);
        out->ticket.len = msg->prefill.ticket_bytes;
        out->ticket.data = unconst_u8(msg->prefill.ticket);
        out->grant_first = msg->prefill.grant_first;
        ret->prefill = out;
        ret->kind_case = BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_PREFILL;
        return out->work != NULL;
    }
    case CTL_PREFILL_LOST:
        ret->prefill_lost = leg_new(arena, msg->prefill_lost);
        ret->kind_case = BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_PREFILL_LOST;
        return ret->prefill_lost != NULL;
    case CTL_CANCEL: {
        NEW(Baton__Control__V1__Cancel, BATON__CONTROL__V1__CANCEL__INIT);
        out->leg = leg_new(arena, msg->cancel.leg);
        out->one_sequence = msg->cancel.one_sequence;
        out->sequence = msg->cancel.sequence;
        ret->cancel = out;
        ret->kind_case = BATON__CONTROL__V1__ROUTER_MESSAGE__KIND_CANCEL;
        return out->leg != NULL;
    }
    default:
        return false;
    }
}

bool ctl_build_node_message(struct arena *arena, const struct ctl_msg *msg, pb_node_message *ret)
{
    switch (msg->kind) {
    case CTL_NODE_HELLO: {
        const struct ctl_node_hello *hello = &msg->node_hello;
        NEW(Baton__Control__V1__NodeHello, BATON__CONTROL__V1__NODE_HELLO__INIT);
        out->protocol_version = hello->protocol_version;
        out->node_id = hello->node_id;
        out->boot_epoch = hello->boot_epoch;
        out->role = hello->role;
        out->node_name = unconst_text(hello->node_name);
        out->model_name = unconst_text(hello->model_name);
        out->model_hash.len = sizeof hello->model_hash;
        out->model_hash.data = unconst_u8(hello->model_hash);
        out->fingerprint.len = hello->fingerprint_bytes;
        out->fingerprint.data = unconst_u8(hello->fingerprint);
        out->vocab_size = hello->vocab_size;
        out->context_tokens = hello->context_tokens;
        out->block_tokens = hello->block_tokens;
        out->block_count = hello->block_count;
        out->sequences_max = hello->sequences_max;
        ret->hello = out;
        ret->kind_case = BATON__CONTROL__V1__NODE_MESSAGE__KIND_HELLO;
        return true;
    }
    case CTL_RESERVED: {
        NEW(Baton__Control__V1__Reserved, BATON__CONTROL__V1__RESERVED__INIT);
        out->leg = leg_new(arena, msg->reserved.leg);
        out->ticket.len = msg->reserved.ticket_bytes;
        out->ticket.data = unconst_u8(msg->reserved.ticket);
        out->is_local = msg->reserved.is_local;
        out->cached_tokens = msg->reserved.cached_tokens;
        out->grant_first = msg->reserved.grant_first;
        ret->reserved = out;
        ret->kind_case = BATON__CONTROL__V1__NODE_MESSAGE__KIND_RESERVED;
        return out->leg != NULL;
    }
    case CTL_REFUSED:
        ret->refused = failure_new(arena, &msg->failure);
        ret->kind_case = BATON__CONTROL__V1__NODE_MESSAGE__KIND_REFUSED;
        return ret->refused != NULL;
    case CTL_PREFILL_FAILED:
        ret->prefill_failed = failure_new(arena, &msg->failure);
        ret->kind_case = BATON__CONTROL__V1__NODE_MESSAGE__KIND_PREFILL_FAILED;
        return ret->prefill_failed != NULL;
    case CTL_LEG_FAILED:
        ret->leg_failed = failure_new(arena, &msg->failure);
        ret->kind_case = BATON__CONTROL__V1__NODE_MESSAGE__KIND_LEG_FAILED;
        return ret->leg_failed != NULL;
    case CTL_PROMPT_LOGPROBS:
        ret->prompt_logprobs = prompt_logprobs_new(arena, &msg->prompt_logprobs);
        ret->kind_case = BATON__CONTROL__V1__NODE_MESSAGE__KIND_PROMPT_LOGPROBS;
        return ret->prompt_logprobs != NULL;
    case CTL_TOKENS:
        ret->tokens = tokens_new(arena, &msg->tokens);
        ret->kind_case = BATON__CONTROL__V1__NODE_MESSAGE__KIND_TOKENS;
        return ret->tokens != NULL;
    case CTL_PREFILL_DONE: {
        NEW(Baton__Control__V1__PrefillDone, BATON__CONTROL__V1__PREFILL_DONE__INIT);
        out->leg = leg_new(arena, msg->prefill_done.leg);
        out->cable = unconst_text(msg->prefill_done.cable);
        out->bytes = msg->prefill_done.bytes;
        out->queue_ns = msg->prefill_done.queue_ns;
        out->compute_ns = msg->prefill_done.compute_ns;
        out->transfer_ns = msg->prefill_done.transfer_ns;
        out->cached_tokens = msg->prefill_done.cached_tokens;
        ret->prefill_done = out;
        ret->kind_case = BATON__CONTROL__V1__NODE_MESSAGE__KIND_PREFILL_DONE;
        return out->leg != NULL;
    }
    case CTL_LOAD: {
        const struct ctl_load *load = &msg->load;
        NEW(Baton__Control__V1__Load, BATON__CONTROL__V1__LOAD__INIT);
        out->blocks_total = load->blocks_total;
        out->blocks_free = load->blocks_free;
        out->blocks_held = load->blocks_held;
        out->blocks_cached = load->blocks_cached;
        out->blocks_quarantined = load->blocks_quarantined;
        out->sequences_running = load->sequences_running;
        out->sequences_waiting = load->sequences_waiting;
        out->tokens_queued = load->tokens_queued;
        out->tokens_per_s = load->tokens_per_s;
        out->draining = load->draining;
        out->cache_tokens_asked = load->cache_tokens_asked;
        out->cache_tokens_found = load->cache_tokens_found;
        ret->load = out;
        ret->kind_case = BATON__CONTROL__V1__NODE_MESSAGE__KIND_LOAD;
        return true;
    }
    default:
        return false;
    }
}
