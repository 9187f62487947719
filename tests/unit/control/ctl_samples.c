#include "tests/unit/control/ctl_samples.h"

#include <string.h>

#define TOKENS_MAX 300u

static uint32_t prompt[TOKENS_MAX], output[TOKENS_MAX], stop_tokens[SAMPLING_STOP_TOKENS_MAX];
static struct logit_bias biases[SAMPLING_LOGIT_BIAS_MAX];
static struct token_logprob logprobs[TOKENS_MAX];
static struct ctl_token tokens[TOKENS_MAX];
static uint8_t raw[512];

/* Small, around a power of two, or anything. */
static uint64_t any(struct rng *rng)
{
    switch (rng_below(rng, 4)) {
    case 0: return rng_below(rng, 3);
    case 1: return (UINT64_C(1) << rng_below(rng, 64)) - rng_below(rng, 2);
    default: return rng_next(rng) >> rng_below(rng, 64);
    }
}

static uint32_t any32(struct rng *rng) { return (uint32_t)any(rng); }

static float any_float(struct rng *rng)
{
    uint32_t bits = rng_below(rng, 8) ? (uint32_t)rng_next(rng) : 0;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static struct leg_id any_leg(struct rng *rng) { return (struct leg_id){.hi = any(rng), .lo = any(rng)}; }

static uint32_t fill(struct rng *rng, uint32_t *values, uint32_t max)
{
    uint32_t count = rng_below(rng, 4) ? (uint32_t)rng_below(rng, max + 1) : 0;
    for (uint32_t i = 0; i < count; i++) { values[i] = any32(rng); }
    return count;
}

static void fill_logprob(struct rng *rng, struct token_logprob *out)
{
    memset(out, 0, sizeof *out);
    out->logprob = any_float(rng);
    out->rank = any32(rng);
    out->alternative_count = (uint32_t)rng_below(rng, SAMPLING_LOGPROBS_MAX + 1);
    for (uint32_t i = 0; i < out->alternative_count; i++) {
        out->alternatives[i] = (struct token_alternative){.token = any32(rng), .logprob = any_float(rng)};
    }
}

static void fill_work(struct rng *rng, struct ctl_work *work)
{
    *work = (struct ctl_work){
        .leg = any_leg(rng), .sequence_first = any32(rng), .sequence_count = any32(rng), .prompt = prompt,
        .output = output, .age_ns = any(rng), .resumed = rng_below(rng, 2),
        .priority = (int32_t)any32(rng), .cache_salt = any(rng),
    };
    work->prompt_count = fill(rng, prompt, TOKENS_MAX);
    work->output_count = fill(rng, output, TOKENS_MAX);
    struct sampling_params *params = &work->params;
    params->temperature = any_float(rng);
    params->top_k = any32(rng);
    params->top_p = any_float(rng);
    params->min_p = any_float(rng);
    params->repetition_penalty = any_float(rng);
    params->presence_penalty = any_float(rng);
    params->frequency_penalty = any_float(rng);
    params->seed = any(rng);
    params->max_tokens = any32(rng);
    params->min_tokens = any32(rng);
    params->ignore_eos = rng_below(rng, 2);
    params->n = any32(rng);
    params->logprobs = (int32_t)any32(rng);
    params->prompt_logprobs = (int32_t)any32(rng);
    params->stop_token_count = fill(rng, stop_tokens, SAMPLING_STOP_TOKENS_MAX);
    params->stop_tokens = stop_tokens;
    params->logit_bias_count = rng_below(rng, 2) ? (uint32_t)rng_below(rng, SAMPLING_LOGIT_BIAS_MAX + 1) : 0;
    params->logit_bias = biases;
    for (uint32_t i = 0; i < params->logit_bias_count; i++) {
        biases[i] = (struct logit_bias){.token = any32(rng), .bias = any_float(rng)};
    }
}

static uint32_t fill_raw(struct rng *rng)
{
    uint32_t count = (uint32_t)rng_below(rng, sizeof raw + 1);
    for (uint32_t i = 0; i < count; i++) { raw[i] = (uint8_t)rng_next(rng); }
    return count;
}

void ctl_sample(enum ctl_kind kind, struct rng *rng, struct ctl_msg *msg)
{
    memset(msg, 0, sizeof *msg);
    msg->kind = kind;
    switch (kind) {
    case CTL_ROUTER_HELLO:
        msg->router_hello = (struct ctl_router_hello){.protocol_version = any32(rng), .router_boot_id = any(rng)};
        break;
    case CTL_RESERVE:
        fill_work(rng, &msg->reserve.work);
        msg->reserve.local_prefill = rng_below(rng, 2);
        msg->reserve.wait_ms = any32(rng);
        msg->reserve.local_max_tokens = any32(rng);
        break;
    case CTL_PREFILL:
        fill_work(rng, &msg->prefill.work);
        msg->prefill.ticket_bytes = fill_raw(rng);
        msg->prefill.ticket = raw;
        msg->prefill.grant_first = any32(rng);
        break;
    case CTL_PREFILL_LOST: msg->prefill_lost = any_leg(rng); break;
    case CTL_CANCEL:
        msg->cancel = (struct ctl_cancel){.leg = any_leg(rng), .one_sequence = rng_below(rng, 2), .sequence = any32(rng)};
        break;
    case CTL_NODE_HELLO: {
        struct ctl_node_hello *hello = &msg->node_hello;
        hello->protocol_version = any32(rng);
        hello->node_id = any(rng);
        hello->boot_epoch = any(rng);
        hello->role = any32(rng);
        hello->node_name = rng_below(rng, 2) ? "decode-0" : "";
        hello->model_name = rng_below(rng, 2) ? "Staffel-4M \xc3\xa9" : "";
        for (size_t i = 0; i < sizeof hello->model_hash; i++) { hello->model_hash[i] = (uint8_t)rng_next(rng); }
        hello->fingerprint_bytes = fill_raw(rng);
        hello->fingerprint = raw;
        hello->vocab_size = any32(rng);
        hello->context_tokens = any32(rng);
        hello->block_tokens = any32(rng);
        hello->block_count = any32(rng);
        hello->sequences_max = any32(rng);
        break;
    }
    case CTL_RESERVED:
        msg->reserved.leg = any_leg(rng);
        msg->reserved.ticket_bytes = fill_raw(rng);
        msg->reserved.ticket = raw;
        msg->reserved.is_local = rng_below(rng, 2);
        msg->reserved.cached_tokens = any32(rng);
        msg->reserved.grant_first = any32(rng);
        break;
    case CTL_REFUSED:
    case CTL_PREFILL_FAILED:
    case CTL_LEG_FAILED:
        msg->failure = (struct ctl_failure){.leg = any_leg(rng), .code = (uint8_t)(1 + rng_below(rng, ST_UNAUTHENTICATED)),
                                            .retry_after_ms = any32(rng),
                                            .message = rng_below(rng, 2) ? "no blocks; try again later" : ""};
        break;
    case CTL_PROMPT_LOGPROBS:
        msg->prompt_logprobs = (struct ctl_prompt_logprobs){.leg = any_leg(rng), .first = any32(rng),
                                                            .count = (uint32_t)rng_below(rng, TOKENS_MAX), .entries = logprobs};
        for (uint32_t i = 0; i < msg->prompt_logprobs.count; i++) { fill_logprob(rng, &logprobs[i]); }
        break;
    case CTL_TOKENS:
        msg->tokens = (struct ctl_tokens){.count = (uint32_t)rng_below(rng, TOKENS_MAX), .tokens = tokens};
        for (uint32_t i = 0; i < msg->tokens.count; i++) {
            tokens[i] = (struct ctl_token){.leg = any_leg(rng), .sequence = any32(rng), .position = any32(rng),
                                           .token = any32(rng), .finish = (uint8_t)rng_below(rng, FINISH_LENGTH + 1),
                                           .has_logprob = rng_below(rng, 2)};
            if (tokens[i].has_logprob) { fill_logprob(rng, &tokens[i].logprob); }
        }
        break;
    case CTL_PREFILL_DONE:
        msg->prefill_done = (struct ctl_prefill_done){.leg = any_leg(rng), .cable = rng_below(rng, 2) ? "shm" : "",
                                                      .bytes = any(rng), .queue_ns = any(rng), .compute_ns = any(rng),
                                                      .transfer_ns = any(rng), .cached_tokens = any32(rng)};
        break;
    case CTL_LOAD:
        msg->load = (struct ctl_load){
            .blocks_total = any32(rng), .blocks_free = any32(rng), .blocks_held = any32(rng),
            .blocks_cached = any32(rng), .blocks_quarantined = any32(rng), .sequences_running = any32(rng),
            .sequences_waiting = any32(rng), .tokens_queued = any(rng), .tokens_per_s = any32(rng),
            .draining = rng_below(rng, 2), .cache_tokens_asked = any(rng), .cache_tokens_found = any(rng),
        };
        break;
    default: break;
    }
}

#define SAME(field) do { if (a->field != b->field) { return #field; } } while (0)
#define SAME_BITS(field) do { if (memcmp(&a->field, &b->field, sizeof a->field) != 0) { return #field; } } while (0)
#define SAME_TEXT(field) do { if (strcmp(a->field, b->field) != 0) { return #field; } } while (0)
#define SAME_ARRAY(field, count)                                                                       \
    do {                                                                                               \
        SAME(count);                                                                                   \
        if (a->count > 0 && memcmp(a->field, b->field, a->count * sizeof *a->field) != 0) { return #field; } \
    } while (0)

static const char *logprob_difference(const struct token_logprob *a, const struct token_logprob *b)
{
    SAME_BITS(logprob);
    SAME(rank);
    SAME(alternative_count);
    for (uint32_t i = 0; i < a->alternative_count; i++) {
        SAME(alternatives[i].token);
        SAME_BITS(alternatives[i].logprob);
    }
    return NULL;
}

static const char *work_difference(const struct ctl_work *a, const struct ctl_work *b)
{
    SAME_BITS(leg);
    SAME(sequence_first);
    SAME(sequence_count);
    SAME_ARRAY(prompt, prompt_count);
    SAME_ARRAY(output, output_count);
    SAME(age_ns);
    SAME(resumed);
    SAME(priority);
    SAME(cache_salt);
    SAME_BITS(params.temperature);
    SAME(params.top_k);
    SAME_BITS(params.top_p);
    SAME_BITS(params.min_p);
    SAME_BITS(params.repetition_penalty);
    SAME_BITS(params.presence_penalty);
    SAME_BITS(params.frequency_penalty);
    SAME(params.seed);
    SAME(params.max_tokens);
    SAME(params.min_tokens);
    SAME(params.ignore_eos);
    SAME(params.n);
    SAME(params.logprobs);
    SAME(params.prompt_logprobs);
    SAME_ARRAY(params.stop_tokens, params.stop_token_count);
    SAME_ARRAY(params.logit_bias, params.logit_bias_count);
    return NULL;
}

static const char *hello_difference(const struct ctl_node_hello *a, const struct ctl_node_hello *b)
{
    SAME(protocol_version);
    SAME(node_id);
    SAME(boot_epoch);
    SAME(role);
    SAME_TEXT(node_name);
    SAME_TEXT(model_name);
    SAME_BITS(model_hash);
    SAME_ARRAY(fingerprint, fingerprint_bytes);
    SAME(vocab_size);
    SAME(context_tokens);
    SAME(block_tokens);
    SAME(block_count);
    SAME(sequences_max);
    return NULL;
}

static const char *token_difference(const struct ctl_token *a, const struct ctl_token *b)
{
    SAME_BITS(leg);
    SAME(sequence);
    SAME(position);
    SAME(token);
    SAME(finish);
    SAME(has_logprob);
    return a->has_logprob ? logprob_difference(&a->logprob, &b->logprob) : NULL;
}

const char *ctl_difference(const struct ctl_msg *a, const struct ctl_msg *b)
{
    const char *differs = NULL;
    SAME(kind);
    switch (a->kind) {
    case CTL_ROUTER_HELLO:
        SAME(router_hello.protocol_version);
        SAME(router_hello.router_boot_id);
        break;
    case CTL_RESERVE:
        SAME(reserve.local_prefill);
        SAME(reserve.wait_ms);
        SAME(reserve.local_max_tokens);
        return work_difference(&a->reserve.work, &b->reserve.work);
    case CTL_PREFILL:
        SAME_ARRAY(prefill.ticket, prefill.ticket_bytes);
        SAME(prefill.grant_first);
        return work_difference(&a->prefill.work, &b->prefill.work);
    case CTL_PREFILL_LOST: SAME_BITS(prefill_lost); break;
    case CTL_CANCEL:
        SAME_BITS(cancel.leg);
        SAME(cancel.one_sequence);
        SAME(cancel.sequence);
        break;
    case CTL_NODE_HELLO: return hello_difference(&a->node_hello, &b->node_hello);
    case CTL_RESERVED:
        SAME_BITS(reserved.leg);
        SAME_ARRAY(reserved.ticket, reserved.ticket_bytes);
        SAME(reserved.is_local);
        SAME(reserved.cached_tokens);
        SAME(reserved.grant_first);
        break;
    case CTL_REFUSED:
    case CTL_PREFILL_FAILED:
    case CTL_LEG_FAILED:
        SAME_BITS(failure.leg);
        SAME(failure.code);
        SAME(failure.retry_after_ms);
        SAME_TEXT(failure.message);
        break;
    case CTL_PROMPT_LOGPROBS:
        SAME_BITS(prompt_logprobs.leg);
        SAME(prompt_logprobs.first);
        SAME(prompt_logprobs.count);
        for (uint32_t i = 0; i < a->prompt_logprobs.count && !differs; i++) {
            differs = logprob_difference(&a->prompt_logprobs.entries[i], &b->prompt_logprobs.entries[i]);
        }
        return differs;
    case CTL_TOKENS:
        SAME(tokens.count);
        for (uint32_t i = 0; i < a->tokens.count && !differs; i++) {
            differs = token_difference(&a->tokens.tokens[i], &b->tokens.tokens[i]);
        }
        return differs;
    case CTL_PREFILL_DONE:
        SAME_BITS(prefill_done.leg);
        SAME_TEXT(prefill_done.cable);
        SAME(prefill_done.bytes);
        SAME(prefill_done.queue_ns);
        SAME(prefill_done.compute_ns);
        SAME(prefill_done.transfer_ns);
        SAME(prefill_done.cached_tokens);
        break;
    case CTL_LOAD:
        SAME(load.blocks_total);
        SAME(load.blocks_free);
        SAME(load.blocks_held);
        SAME(load.blocks_cached);
        SAME(load.blocks_quarantined);
        SAME(load.sequences_running);
        SAME(load.sequences_waiting);
        SAME(load.tokens_queued);
        SAME(load.tokens_per_s);
        SAME(load.draining);
        SAME(load.cache_tokens_asked);
        SAME(load.cache_tokens_found);
        break;
    default: return "kind";
    }
    return NULL;
}
