#include "client/answer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The API takes n up to 64; a newer router may allow more. */
#define SEQUENCES_MAX 1024u

static const char *finish_name(Baton__V1__FinishReason reason)
{
    switch (reason) {
    case BATON__V1__FINISH_REASON__FINISH_REASON_STOP: return "stop";
    case BATON__V1__FINISH_REASON__FINISH_REASON_LENGTH: return "length";
    default: return NULL;
    }
}

static struct answer_sequence *sequence_of(struct answer *answer, uint32_t index)
{
    if (index >= answer->sequence_count) {
        struct answer_sequence *grown = realloc(answer->sequences, ((size_t)index + 1) * sizeof *grown);
        if (!grown) { return NULL; }
        memset(grown + answer->sequence_count, 0, (index + 1 - answer->sequence_count) * sizeof *grown);
        for (uint32_t i = answer->sequence_count; i <= index && answer->wants_json; i++) {
            grown[i].token_ids = json_array();
        }
        answer->sequences = grown;
        answer->sequence_count = index + 1;
    }
    return &answer->sequences[index];
}

static bool append_text(struct answer_sequence *sequence, const char *text)
{
    size_t len = strlen(text);
    if (sequence->text_len + len + 1 > sequence->text_capacity) {
        size_t capacity = (sequence->text_len + len + 1) * 2;
        char *grown = realloc(sequence->text, capacity);
        if (!grown) { return false; }
        sequence->text = grown;
        sequence->text_capacity = capacity;
    }
    memcpy(sequence->text + sequence->text_len, text, len + 1);
    sequence->text_len += len;
    return true;
}

/* JSON has no infinity: a token that a bias rules out has a log-probability of null. */
static json_t *number_json(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static json_t *logprob_json(const Baton__V1__TokenLogprob *logprob, bool with_alternatives)
{
    /* A token may be part of a character: its text is then not UTF-8 by itself. */
    json_t *text = json_string(logprob->text);
    json_t *object = json_object();
    json_object_set_new(object, "token", json_integer(logprob->token));
    json_object_set_new(object, "text", text ? text : json_null());
    json_object_set_new(object, "logprob", number_json((double)logprob->logprob));
    if (with_alternatives) {
        json_object_set_new(object, "rank", json_integer(logprob->rank));
        json_t *list = json_array();
        for (size_t i = 0; i < logprob->n_alternatives; i++) {
            json_array_append_new(list, logprob_json(logprob->alternatives[i], false));
        }
        json_object_set_new(object, "alternatives", list);
    }
    return object;
}

static void append_logprobs(json_t **array, Baton__V1__TokenLogprob *const *list, size_t count)
{
    if (count == 0) { return; }
    if (!*array) { *array = json_array(); }
    for (size_t i = 0; i < count; i++) { json_array_append_new(*array, logprob_json(list[i], true)); }
}

static bool take(struct answer *answer, const Baton__V1__GenerateResponse *part, uint64_t at_ns)
{
    struct answer_sequence *sequence = sequence_of(answer, part->index);
    if (!sequence) { return false; }
    if (part->text[0] != '\0') {
        if (!append_text(sequence, part->text)) { return false; }
        if (answer->stream_text && part->index == 0) {
            fputs(part->text, stdout);
            fflush(stdout);
        }
    }
    if (part->n_token_ids > 0) {
        if (answer->first_token_ns == 0) { answer->first_token_ns = at_ns; }
        answer->last_token_ns = at_ns;
        sequence->token_count += (uint32_t)part->n_token_ids;
    }
    if (part->request_id[0] != '\0' && !answer->request_id) { answer->request_id = strdup(part->request_id); }
    if (part->seed != 0) { answer->seed = part->seed; }
    if (part->finish_reason != BATON__V1__FINISH_REASON__FINISH_REASON_UNSPECIFIED) {
        sequence->finish_reason = part->finish_reason;
        if (part->stop_text[0] != '\0' && !sequence->stop_text) { sequence->stop_text = strdup(part->stop_text); }
        if (part->stop_token) {
            sequence->has_stop_token = true;
            sequence->stop_token = part->stop_token->value;
        }
    }
    if (answer->wants_json) {
        for (size_t i = 0; i < part->n_token_ids; i++) {
            json_array_append_new(sequence->token_ids, json_integer(part->token_ids[i]));
        }
        append_logprobs(&sequence->logprobs, part->logprobs, part->n_logprobs);
        append_logprobs(&answer->prompt_logprobs, part->prompt_logprobs, part->n_prompt_logprobs);
        for (size_t i = 0; i < part->n_prompt_token_ids; i++) {
            if (!answer->prompt_token_ids) { answer->prompt_token_ids = json_array(); }
            json_array_append_new(answer->prompt_token_ids, json_integer(part->prompt_token_ids[i]));
        }
    }
    return true;
}

status_t answer_read(struct answer *answer, struct api_call *call, struct diag *diag)
{
    for (;;) {
        ProtobufCMessage *message;
        uint64_t at_ns = 0;
        TRY(api_call_next(call, &baton__v1__generate_response__descriptor, &message, &at_ns, diag));
        if (!message) { return STATUS_OK; }
        Baton__V1__GenerateResponse *part = (Baton__V1__GenerateResponse *)message;
        if (part->index >= SEQUENCES_MAX) { /* from the network: it sizes our tables */
            diag_set(diag, "the router sent sequence %u; a request has at most %u", part->index, SEQUENCES_MAX);
            protobuf_c_message_free_unpacked(message, NULL);
            return STATUS(ST_DATA_LOSS, SCOPE_PEER);
        }
        bool ok = take(answer, part, at_ns);
        if (ok && part->usage) {
            if (answer->last) { protobuf_c_message_free_unpacked(&answer->last->base, NULL); }
            answer->last = part;
        } else {
            protobuf_c_message_free_unpacked(message, NULL);
        }
        if (!ok) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    }
}

static json_t *sequence_json(const struct answer_sequence *sequence, uint32_t index)
{
    const char *finish = finish_name(sequence->finish_reason);
    json_t *object = json_object();
    json_object_set_new(object, "index", json_integer(index));
    json_object_set_new(object, "text", json_stringn(sequence->text ? sequence->text : "", sequence->text_len));
    json_object_set(object, "token_ids", sequence->token_ids);
    json_object_set_new(object, "finish_reason", finish ? json_string(finish) : json_null());
    if (sequence->stop_text) { json_object_set_new(object, "stop_text", json_string(sequence->stop_text)); }
    if (sequence->has_stop_token) { json_object_set_new(object, "stop_token", json_integer(sequence->stop_token)); }
    if (sequence->logprobs) { json_object_set(object, "logprobs", sequence->logprobs); }
    return object;
}

json_t *answer_json(const struct answer *answer)
{
    json_t *object = answer->sequence_count > 0 ? sequence_json(&answer->sequences[0], 0) : json_object();
    json_object_del(object, "index");
    json_t *list = json_array();
    for (uint32_t i = 0; i < answer->sequence_count; i++) {
        json_array_append_new(list, sequence_json(&answer->sequences[i], i));
    }
    json_object_set_new(object, "sequences", list);
    json_object_set_new(object, "prompt_token_ids",
                        answer->prompt_token_ids ? json_incref(answer->prompt_token_ids) : json_array());
    if (answer->prompt_logprobs) { json_object_set(object, "prompt_logprobs", answer->prompt_logprobs); }
    json_object_set_new(object, "request_id", json_string(answer->request_id ? answer->request_id : ""));
    /* JSON numbers of other readers lose bits past 2^53: a seed goes as text. */
    char seed[24];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)answer->seed);
    json_object_set_new(object, "seed", json_string(seed));
    double ms = 1e-6;
    json_t *timing = json_object();
    if (answer->first_token_ns != 0) {
        json_object_set_new(timing, "client_ttft_ms", json_real((double)(answer->first_token_ns - answer->start_ns) * ms));
        json_object_set_new(timing, "client_total_ms", json_real((double)(answer->last_token_ns - answer->start_ns) * ms));
    }
    if (answer->last && answer->last->usage) {
        const Baton__V1__Usage *usage = answer->last->usage;
        json_object_set_new(object, "usage", json_pack("{s:I, s:I, s:I, s:I}", "prompt_tokens", (json_int_t)usage->prompt_tokens,
                                                       "completion_tokens", (json_int_t)usage->completion_tokens, "total_tokens",
                                                       (json_int_t)usage->prompt_tokens + usage->completion_tokens,
                                                       "cached_prompt_tokens", (json_int_t)usage->cached_prompt_tokens));
    }
    if (answer->last && answer->last->route) {
        const Baton__V1__Route *route = answer->last->route;
        json_object_set_new(timing, "ttft_ms", number_json(route->ttft_ms));
        json_object_set_new(timing, "tpot_ms", number_json(route->tpot_ms));
        json_object_set_new(timing, "total_ms", number_json(route->total_ms));
        json_object_set_new(timing, "queue_ms", number_json(route->queue_ms));
        json_object_set_new(timing, "prefill_queue_ms", number_json(route->prefill_queue_ms));
        json_object_set_new(timing, "prefill_ms", number_json(route->prefill_ms));
        json_object_set_new(timing, "transfer_ms", number_json(route->transfer_ms));
        json_object_set_new(timing, "handover_ms", number_json(route->handover_ms));
        json_object_set_new(object, "route",
                            json_pack("{s:s, s:s, s:s, s:I, s:i, s:I}", "prefill_node", route->prefill_node, "decode_node",
                                      route->decode_node, "transport", route->transport, "kv_bytes",
                                      (json_int_t)route->kv_bytes, "resumes", (int)route->resumes, "prefill_cached_tokens",
                                      (json_int_t)route->prefill_cached_tokens));
    }
    json_object_set_new(object, "timing", timing);
    return object;
}

void answer_print_route(const struct answer *answer, FILE *out)
{
    if (!answer->last || !answer->last->route || !answer->last->usage) { return; }
    const Baton__V1__Route *route = answer->last->route;
    const Baton__V1__Usage *usage = answer->last->usage;
    bool split = route->prefill_node[0] != '\0';
    fprintf(out, "prefill    %s\n", split ? route->prefill_node : "(on the decode node)");
    fprintf(out, "decode     %s\n", route->decode_node);
    fprintf(out, "transport  %s, %llu bytes of KV moved\n", route->transport, (unsigned long long)route->kv_bytes);
    fprintf(out, "tokens     %u prompt, %u output%s%s\n", usage->prompt_tokens, usage->completion_tokens,
            answer->sequence_count > 0 && finish_name(answer->sequences[0].finish_reason) ? ", finish " : "",
            answer->sequence_count > 0 && finish_name(answer->sequences[0].finish_reason)
                ? finish_name(answer->sequences[0].finish_reason) : "");
    if (usage->cached_prompt_tokens > 0 || route->prefill_cached_tokens > 0) {
        fprintf(out, "cached     %u of the prompt on the decode node, %u on the prefill node\n", usage->cached_prompt_tokens,
                route->prefill_cached_tokens);
    }
    fprintf(out, "TTFT       %.1f ms\n", route->ttft_ms);
    fprintf(out, "TPOT       %.2f ms\n", route->tpot_ms);
    if (route->resumes > 0) { fprintf(out, "resumed    %u times after a death\n", route->resumes); }
}

void answer_fini(struct answer *answer)
{
    for (uint32_t i = 0; i < answer->sequence_count; i++) {
        free(answer->sequences[i].text);
        free(answer->sequences[i].stop_text);
        json_decref(answer->sequences[i].token_ids);
        json_decref(answer->sequences[i].logprobs);
    }
    free(answer->sequences);
    free(answer->request_id);
    json_decref(answer->prompt_token_ids);
    json_decref(answer->prompt_logprobs);
    if (answer->last) { protobuf_c_message_free_unpacked(&answer->last->base, NULL); }
    memset(answer, 0, sizeof *answer);
}
