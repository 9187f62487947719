#include "control/ctl_codec.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/check.h"
#include "proto/baton/control/v1/control.pb-c.h"

typedef Baton__Control__V1__LegId pb_leg;
typedef Baton__Control__V1__Sampling pb_sampling;
typedef Baton__Control__V1__LogitBias pb_bias;
typedef Baton__Control__V1__Work pb_work;
typedef Baton__Control__V1__TokenLogprob pb_logprob;
typedef Baton__Control__V1__Token pb_token;
typedef Baton__Control__V1__Failure pb_failure;
typedef Baton__Control__V1__RouterMessage pb_router_message;
typedef Baton__Control__V1__NodeMessage pb_node_message;

struct ctl_codec {
    size_t message_bytes_max;
    struct arena encode_arena;
    struct arena decode_arena;
};

const char *ctl_kind_name(enum ctl_kind kind)
{
    static const char *const names[CTL_KIND_COUNT] = {
        "NONE", "ROUTER_HELLO", "RESERVE", "PREFILL", "PREFILL_LOST", "CANCEL", "NODE_HELLO", "RESERVED", "REFUSED",
        "PROMPT_LOGPROBS", "TOKENS", "PREFILL_DONE", "PREFILL_FAILED", "LEG_FAILED", "LOAD",
    };
    return (unsigned)kind < CTL_KIND_COUNT ? names[kind] : "?";
}

/* Saturates: where size_t has 32 bits, the product may not fit. */
static size_t times(size_t bytes, size_t factor) { return bytes > SIZE_MAX / factor ? SIZE_MAX : bytes * factor; }

status_t ctl_codec_create(size_t message_bytes_max, struct ctl_codec **ret_codec)
{
    CHECK(message_bytes_max <= CTL_MESSAGE_BYTES_MAX); /* lengths of fields become uint32_t */
    struct ctl_codec *codec = calloc(1, sizeof *codec);
    if (!codec) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    codec->message_bytes_max = message_bytes_max;
    /* A token entry of about 20 wire bytes becomes 200 of structs; a bare submessage of two
     * wire bytes becomes one struct and one pointer, which is the worst ratio there is. */
    arena_init(&codec->encode_arena, times(message_bytes_max, 64));
    arena_init(&codec->decode_arena, times(message_bytes_max, 128));
    *ret_codec = codec;
    return STATUS_OK;
}

void ctl_codec_destroy(struct ctl_codec *codec)
{
    if (!codec) { return; }
    arena_fini(&codec->encode_arena);
    arena_fini(&codec->decode_arena);
    free(codec);
}

/* ---- encode ---- */

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

static bool build_router_message(struct arena *arena, const struct ctl_msg *msg, pb_router_message *ret)
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

static bool build_node_message(struct arena *arena, const struct ctl_msg *msg, pb_node_message *ret)
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

status_t ctl_codec_encode(struct ctl_codec *codec, const struct ctl_msg *msg, const uint8_t **ret_bytes,
                          size_t *ret_byte_count)
{
    struct arena *arena = &codec->encode_arena;
    arena_reset(arena);
    pb_router_message from_router = BATON__CONTROL__V1__ROUTER_MESSAGE__INIT;
    pb_node_message from_node = BATON__CONTROL__V1__NODE_MESSAGE__INIT;
    const ProtobufCMessage *base;
    bool built;
    if (msg->kind >= CTL_NODE_HELLO) {
        built = build_node_message(arena, msg, &from_node);
        base = &from_node.base;
    } else {
        built = build_router_message(arena, msg, &from_router);
        base = &from_router.base;
    }
    if (!built) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    size_t byte_count = protobuf_c_message_get_packed_size(base);
    uint8_t *bytes = byte_count <= codec->message_bytes_max ? arena_take(arena, byte_count) : NULL;
    if (!bytes) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    protobuf_c_message_pack(base, bytes);
    *ret_bytes = bytes;
    *ret_byte_count = byte_count;
    return STATUS_OK;
}

/* ---- decode ---- */

static void *unpack_alloc(void *arena, size_t bytes) { return arena_take(arena, bytes); }

static void unpack_free(void *arena, void *memory)
{
    (void)arena; /* the reset takes it all back */
    (void)memory;
}

static status_t malformed(struct diag *diag, const char *what)
{
    diag_set(diag, "Attach message: %s", what);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER);
}

static struct leg_id leg_from_pb(const pb_leg *leg) { return (struct leg_id){.hi = leg->hi, .lo = leg->lo}; }

static status_t work_from_pb(struct arena *arena, const pb_work *in, struct ctl_work *out, struct diag *diag)
{
    if (!in) { return malformed(diag, "no work"); }
    if (!in->leg) { return malformed(diag, "work without a leg"); }
    if (!in->params) { return malformed(diag, "work without sampling parameters"); }
    if (in->n_prompt > UINT32_MAX || in->n_output > UINT32_MAX) { return malformed(diag, "work with too many tokens"); }
    const pb_sampling *params = in->params;
    struct logit_bias *bias = NULL;
    if (params->n_stop_tokens > SAMPLING_STOP_TOKENS_MAX) { return malformed(diag, "too many stop tokens"); }
    if (params->n_logit_bias > SAMPLING_LOGIT_BIAS_MAX) { return malformed(diag, "too many logit biases"); }
    if (params->n_logit_bias > 0) {
        bias = arena_take_array(arena, params->n_logit_bias, sizeof *bias);
        if (!bias) { return malformed(diag, "larger than the limit"); }
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
    if (in->n_alternative_tokens > SAMPLING_LOGPROBS_MAX) { return malformed(diag, "too many alternatives"); }
    if (in->n_alternative_tokens != in->n_alternative_logprobs) {
        return malformed(diag, "alternatives without their log-probabilities");
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
    if (!tokens) { return malformed(diag, "larger than the limit"); }
    for (size_t i = 0; i < in->n_tokens; i++) {
        const pb_token *token = in->tokens[i];
        if (!token->leg) { return malformed(diag, "a token without a leg"); }
        if (token->finish > FINISH_LENGTH) { return malformed(diag, "a finish reason that is none"); }
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
    if (!in->leg) { return malformed(diag, "a failure without a leg"); }
    if (in->code == ST_OK || in->code > ST_UNAUTHENTICATED) { return malformed(diag, "a failure with a code that is none"); }
    *out = (struct ctl_failure){.leg = leg_from_pb(in->leg), .code = (uint8_t)in->code,
                                .retry_after_ms = in->retry_after_ms, .message = in->message};
    return STATUS_OK;
}

static status_t router_message_from_pb(struct arena *arena, const pb_router_message *in, struct ctl_msg *out,
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
        if (!in->cancel->leg) { return malformed(diag, "a cancel without a leg"); }
        out->kind = CTL_CANCEL;
        out->cancel = (struct ctl_cancel){.leg = leg_from_pb(in->cancel->leg),
                                          .one_sequence = in->cancel->one_sequence,
                                          .sequence = in->cancel->sequence};
        return STATUS_OK;
    default:
        return malformed(diag, "of no kind that this version knows");
    }
}

static status_t hello_from_pb(const Baton__Control__V1__NodeHello *in, struct ctl_node_hello *out, struct diag *diag)
{
    if (in->model_hash.len != sizeof out->model_hash) { return malformed(diag, "a hello whose model_hash is not 32 bytes"); }
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

static status_t node_message_from_pb(struct arena *arena, const pb_node_message *in, struct ctl_msg *out,
                                     struct diag *diag)
{
    switch (in->kind_case) {
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_HELLO:
        out->kind = CTL_NODE_HELLO;
        return hello_from_pb(in->hello, &out->node_hello, diag);
    case BATON__CONTROL__V1__NODE_MESSAGE__KIND_RESERVED:
        if (!in->reserved->leg) { return malformed(diag, "a reservation without a leg"); }
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
        if (!from->leg) { return malformed(diag, "prompt log-probabilities without a leg"); }
        struct token_logprob *entries = arena_take_array(arena, from->n_entries, sizeof *entries);
        if (!entries) { return malformed(diag, "larger than the limit"); }
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
        if (!from->leg) { return malformed(diag, "a finished prefill without a leg"); }
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
        return malformed(diag, "of no kind that this version knows");
    }
}

status_t ctl_codec_decode(struct ctl_codec *codec, enum ctl_direction direction, const uint8_t *bytes,
                          size_t byte_count, struct ctl_msg *ret_msg, struct diag *diag)
{
    struct arena *arena = &codec->decode_arena;
    arena_reset(arena);
    if (byte_count > codec->message_bytes_max) { return malformed(diag, "larger than the limit"); }
    ProtobufCAllocator allocator = {.alloc = unpack_alloc, .free = unpack_free, .allocator_data = arena};
    const ProtobufCMessageDescriptor *descriptor = direction == CTL_FROM_ROUTER
                                                       ? &baton__control__v1__router_message__descriptor
                                                       : &baton__control__v1__node_message__descriptor;
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, &allocator, byte_count, bytes);
    if (!message) { return malformed(diag, "not a protobuf message of its kind, or larger than the limit"); }
    struct ctl_msg msg;
    memset(&msg, 0, sizeof msg);
    if (direction == CTL_FROM_ROUTER) {
        TRY(router_message_from_pb(arena, (const pb_router_message *)message, &msg, diag));
    } else {
        TRY(node_message_from_pb(arena, (const pb_node_message *)message, &msg, diag));
    }
    *ret_msg = msg;
    return STATUS_OK;
}
