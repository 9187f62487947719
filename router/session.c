#include "router/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "model/tokenizer/detokenizer.h"
#include "router/session_wire.h"
#include "router/stop_text.h"

/* A message stays below the 4 MiB that gRPC clients take by default. Logprobs are what grows:
 * 20 alternatives with their texts are half a kilobyte per token, or several where a
 * vocabulary has long tokens, so their bytes are counted, and the rest goes into the next. */
#define TOKENS_PER_MESSAGE 65536u
#define LOGPROB_BYTES_PER_MESSAGE (1u << 20)

struct pending {
    uint32_t count, capacity;
    uint32_t *ids;                  /* [capacity] */
    struct token_logprob *logprobs; /* [capacity]; NULL: not asked for */
};

struct sequence {
    struct detokenizer *detokenizer; /* from the first token to the end */
    struct stop_text text;
    struct pending pending;
    uint32_t token_count;
    uint64_t last_token_ns;
    uint32_t finish; /* enum finish_reason; FINISH_NONE: goes on */
    bool is_end_token; /* the last token is an end token: its text is not shown */
    bool is_stop_string;
    bool has_stop_token;
    uint32_t stop_token;
    bool end_is_sent;
};

struct session {
    struct session_model model;
    struct request_spec spec;
    char id[SESSION_ID_CHARS];
    uint64_t arrival_ns, placed_ns, first_token_ns, end_ns, last_gap_ns;
    uint32_t completion_tokens;
    struct text_buf piece; /* scratch: one token's text */

    struct token_logprob *prompt_logprobs; /* [prompt_count - 1], from the first that came */
    uint32_t prompt_logprob_count, prompt_logprob_sent;

    bool head_is_sent, tail_is_sent, is_finished, is_ok;
    char prefill_node[128], decode_node[128], transport[16];
    struct session_route route;

    uint32_t next; /* sequence to look at first */
    struct {
        uint32_t sequence, tokens, prompt_logprobs;
        bool head, tail, end;
    } packed;
    struct sequence sequences[]; /* [spec.params.n] */
};

status_t session_create(const struct session_model *model, struct request_spec *spec, uint64_t arrival_ns,
                        struct session **ret_session)
{
    struct session *session = calloc(1, sizeof *session + spec->params.n * sizeof session->sequences[0]);
    if (!session) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    session->model = *model;
    session->spec = *spec;
    *spec = (struct request_spec){0};
    session->arrival_ns = arrival_ns;
    for (uint32_t i = 0; i < session->spec.params.n; i++) {
        stop_text_init(&session->sequences[i].text, session->spec.stops, session->spec.stop_count,
                       session->spec.include_stop);
    }
    *ret_session = session;
    return STATUS_OK;
}

void session_destroy(struct session *session)
{
    if (!session) { return; }
    for (uint32_t i = 0; i < session->spec.params.n; i++) {
        struct sequence *sequence = &session->sequences[i];
        detokenizer_destroy(sequence->detokenizer);
        stop_text_fini(&sequence->text);
        free(sequence->pending.ids);
        free(sequence->pending.logprobs);
    }
    free(session->prompt_logprobs);
    text_buf_fini(&session->piece);
    request_spec_fini(&session->spec);
    free(session);
}

const struct request_spec *session_spec(const struct session *session) { return &session->spec; }

void session_set_id(struct session *session, const char *id) { snprintf(session->id, sizeof session->id, "%s", id); }

const char *session_id(const struct session *session) { return session->id; }

void session_placed(struct session *session, uint64_t now_ns)
{
    if (session->placed_ns == 0) { session->placed_ns = now_ns; }
}

/* ---- tokens in ---- */

static status_t remember(struct session *session, struct sequence *sequence, const struct ctl_token *token)
{
    struct pending *pending = &sequence->pending;
    bool with_logprobs = session->spec.params.logprobs >= 0;
    if (pending->count == pending->capacity) {
        uint32_t capacity = pending->capacity ? pending->capacity * 2 : 8;
        uint32_t *ids = realloc(pending->ids, capacity * sizeof *ids);
        if (!ids) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
        pending->ids = ids;
        if (with_logprobs) {
            struct token_logprob *logprobs = realloc(pending->logprobs, capacity * sizeof *logprobs);
            if (!logprobs) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
            pending->logprobs = logprobs;
        }
        pending->capacity = capacity;
    }
    pending->ids[pending->count] = token->token;
    if (with_logprobs) {
        pending->logprobs[pending->count] = token->has_logprob ? token->logprob : (struct token_logprob){0};
    }
    pending->count++;
    return STATUS_OK;
}

/* Before output token min_tokens + 1 nothing ends a sequence: neither a token nor a text. */
static bool may_stop(const struct session *session, const struct sequence *sequence)
{
    return sequence->token_count > session->spec.params.min_tokens;
}

static bool is_stop_token(const struct request_spec *spec, uint32_t token)
{
    for (uint32_t i = 0; i < spec->params.stop_token_count; i++) {
        if (spec->params.stop_tokens[i] == token) { return true; }
    }
    return false;
}

static bool token_is_hidden(const struct session *session, struct sequence *sequence, uint32_t token)
{
    sequence->is_end_token =
        may_stop(session, sequence) && stop_rules_token_ends(&session->spec.params, session->model.eos, token);
    if (!sequence->is_end_token) { return false; }
    sequence->has_stop_token = is_stop_token(&session->spec, token);
    sequence->stop_token = token;
    return !(session->spec.include_stop && sequence->has_stop_token);
}

static void end_by_text(struct sequence *sequence)
{
    sequence->finish = FINISH_STOP;
    sequence->is_stop_string = true;
    sequence->has_stop_token = false;
    detokenizer_destroy(sequence->detokenizer);
    sequence->detokenizer = NULL;
}

status_t session_token(struct session *session, const struct ctl_token *token, uint64_t now_ns, bool *ret_stopped)
{
    *ret_stopped = false;
    if (token->sequence >= session->spec.params.n) { return STATUS_OK; }
    struct sequence *sequence = &session->sequences[token->sequence];
    if (sequence->finish != FINISH_NONE) { return STATUS_OK; }
    if (!sequence->detokenizer && session->model.tokenizer) {
        TRY(detokenizer_create(session->model.tokenizer, !session->spec.show_special_tokens, &sequence->detokenizer));
    }
    TRY(remember(session, sequence, token));
    if (session->first_token_ns == 0) { session->first_token_ns = now_ns; }
    session->last_gap_ns = sequence->token_count > 0 ? now_ns - sequence->last_token_ns : UINT64_MAX;
    sequence->last_token_ns = now_ns;
    sequence->token_count++;
    session->completion_tokens++;
    if (token_is_hidden(session, sequence, token->token) || !sequence->detokenizer) { return STATUS_OK; }
    session->piece.len = 0;
    TRY(detokenizer_push(sequence->detokenizer, token->token, &session->piece));
    TRY(stop_text_push(&sequence->text, session->piece.data, session->piece.len, may_stop(session, sequence)));
    if (sequence->text.stopped) {
        end_by_text(sequence);
        *ret_stopped = true;
    }
    return STATUS_OK;
}

status_t session_sequence_end(struct session *session, const struct ctl_token *token)
{
    if (token->sequence >= session->spec.params.n) { return STATUS_OK; }
    struct sequence *sequence = &session->sequences[token->sequence];
    if (sequence->finish != FINISH_NONE) { return STATUS_OK; }
    if (sequence->detokenizer) {
        session->piece.len = 0;
        TRY(detokenizer_flush(sequence->detokenizer, &session->piece));
        TRY(stop_text_push(&sequence->text, session->piece.data, session->piece.len, may_stop(session, sequence)));
        if (sequence->text.stopped) {
            end_by_text(sequence);
            return STATUS_OK;
        }
    }
    stop_text_finish(&sequence->text);
    sequence->finish = token->finish;
    if (token->finish != FINISH_STOP) { sequence->has_stop_token = false; }
    detokenizer_destroy(sequence->detokenizer);
    sequence->detokenizer = NULL;
    return STATUS_OK;
}

status_t session_prompt_logprobs(struct session *session, const struct ctl_prompt_logprobs *logprobs)
{
    uint32_t total = session->spec.prompt_count - 1;
    if (total == 0) { return STATUS_OK; }
    if (!session->prompt_logprobs) {
        session->prompt_logprobs = calloc(total, sizeof *session->prompt_logprobs);
        if (!session->prompt_logprobs) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    }
    /* The core hands them on in order; entry i is of prompt token i + 1. */
    if (logprobs->first != session->prompt_logprob_count + 1) { return STATUS_OK; }
    uint32_t count = logprobs->count;
    if (count > total - session->prompt_logprob_count) { count = total - session->prompt_logprob_count; }
    memcpy(session->prompt_logprobs + session->prompt_logprob_count, logprobs->entries,
           count * sizeof *session->prompt_logprobs);
    session->prompt_logprob_count += count;
    return STATUS_OK;
}

void session_finish(struct session *session, bool is_ok, const struct session_route *route, uint64_t now_ns)
{
    session->is_finished = true;
    session->is_ok = is_ok;
    session->end_ns = now_ns;
    session->route = *route;
    snprintf(session->prefill_node, sizeof session->prefill_node, "%s", route->prefill_node);
    snprintf(session->decode_node, sizeof session->decode_node, "%s", route->decode_node);
    snprintf(session->transport, sizeof session->transport, "%s", route->transport);
    for (uint32_t i = 0; i < session->spec.params.n; i++) {
        if (session->sequences[i].finish == FINISH_NONE) { stop_text_finish(&session->sequences[i].text); }
    }
}

/* ---- messages out ---- */

static bool has_news(const struct sequence *sequence)
{
    return sequence->pending.count > 0 || sequence->text.final_len > 0 ||
           (sequence->finish != FINISH_NONE && !sequence->end_is_sent);
}

static uint32_t news_after(const struct session *session, uint32_t skip)
{
    for (uint32_t i = 0; i < session->spec.params.n; i++) {
        uint32_t index = (session->next + i) % session->spec.params.n;
        if (index != skip && has_news(&session->sequences[index])) { return index; }
    }
    return UINT32_MAX;
}

/* Ids and their logprobs, as many as one message takes; returns how many. */
static uint32_t put_tokens(struct session *session, const struct sequence *sequence, struct pb_writer *writer)
{
    const struct pending *pending = &sequence->pending;
    uint32_t count = pending->count < TOKENS_PER_MESSAGE ? pending->count : TOKENS_PER_MESSAGE;
    for (uint32_t i = 0; pending->logprobs && i < count; i++) {
        session_wire_logprob(writer, GENERATE_LOGPROBS, session->model.tokenizer, pending->ids[i], &pending->logprobs[i],
                             &session->piece);
        if (writer->len >= LOGPROB_BYTES_PER_MESSAGE) { count = i + 1; }
    }
    pb_put_packed(writer, GENERATE_TOKEN_IDS, pending->ids, count);
    return count;
}

static void put_prompt_logprobs(struct session *session, struct pb_writer *writer)
{
    uint32_t left = session->prompt_logprob_count - session->prompt_logprob_sent;
    uint32_t count = 0;
    for (; count < left && writer->len < 2 * LOGPROB_BYTES_PER_MESSAGE; count++) {
        uint32_t at = session->prompt_logprob_sent + count;
        session_wire_logprob(writer, GENERATE_PROMPT_LOGPROBS, session->model.tokenizer, session->spec.prompt[at + 1],
                             &session->prompt_logprobs[at], &session->piece);
    }
    session->packed.prompt_logprobs = count;
}

static void put_tail(struct session *session, struct pb_writer *writer)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < session->spec.params.n; i++) {
        if (session->sequences[i].token_count > longest) { longest = session->sequences[i].token_count; }
    }
    const struct session_route *route = &session->route;
    double total_ms = (double)(session->end_ns - session->arrival_ns) / NS_PER_MS;
    double ttft_ms = session->first_token_ns > 0 ? (double)(session->first_token_ns - session->arrival_ns) / NS_PER_MS : 0;
    struct session_wire_route wire = {
        .prefill_node = session->prefill_node,
        .decode_node = session->decode_node,
        .transport = session->transport,
        .kv_bytes = route->kv_bytes,
        .resumes = route->resumes,
        .queue_ms = session->placed_ns > 0 ? (double)(session->placed_ns - session->arrival_ns) / NS_PER_MS : 0,
        .prefill_queue_ms = (double)route->prefill_queue_ns / NS_PER_MS,
        .prefill_ms = (double)route->prefill_compute_ns / NS_PER_MS,
        .transfer_ms = (double)route->transfer_ns / NS_PER_MS,
        .handover_ms = (double)route->handover_ns / NS_PER_MS,
        .ttft_ms = ttft_ms,
        .total_ms = total_ms,
        .prefill_cached_tokens = route->prefill_cached_tokens,
        .tpot_ms = longest > 1 ? (total_ms - ttft_ms) / (longest - 1) : 0,
    };
    session_wire_usage(writer, session->spec.prompt_count, session->completion_tokens, route->cached_prompt_tokens);
    session_wire_route(writer, &wire);
}

bool session_pack(struct session *session, struct pb_writer *writer)
{
    uint32_t index = news_after(session, UINT32_MAX);
    bool prompt_news = session->prompt_logprob_sent < session->prompt_logprob_count;
    bool tail_is_due = session->is_finished && session->is_ok && !session->tail_is_sent;
    if (index == UINT32_MAX && !prompt_news && !tail_is_due) { return false; }
    if (index == UINT32_MAX) { index = session->next; }
    struct sequence *sequence = &session->sequences[index];
    memset(&session->packed, 0, sizeof session->packed);
    session->packed.sequence = index;
    session->packed.head = !session->head_is_sent;
    session->packed.tokens = put_tokens(session, sequence, writer);
    bool is_rest = session->packed.tokens == sequence->pending.count;
    session->packed.end = sequence->finish != FINISH_NONE && !sequence->end_is_sent && is_rest;

    pb_put_uint(writer, GENERATE_INDEX, index);
    pb_put_bytes(writer, GENERATE_TEXT, sequence->text.buffer, sequence->text.final_len);
    if (session->packed.end) {
        pb_put_uint(writer, GENERATE_FINISH_REASON, sequence->finish);
        if (sequence->is_stop_string) {
            const struct stop_string *stop = &session->spec.stops[sequence->text.stop_index];
            pb_put_bytes(writer, GENERATE_STOP_TEXT, stop->bytes, stop->len);
        } else if (sequence->has_stop_token) {
            session_wire_uint(writer, GENERATE_STOP_TOKEN, sequence->stop_token);
        }
    }
    if (session->packed.head) {
        pb_put_packed(writer, GENERATE_PROMPT_TOKEN_IDS, session->spec.prompt, session->spec.prompt_count);
        pb_put_bytes(writer, GENERATE_REQUEST_ID, session->id, strlen(session->id));
        pb_put_uint(writer, GENERATE_SEED, session->spec.params.seed);
    }
    if (prompt_news) { put_prompt_logprobs(session, writer); }
    bool is_last = is_rest && news_after(session, index) == UINT32_MAX &&
                   session->prompt_logprob_sent + session->packed.prompt_logprobs == session->prompt_logprob_count;
    session->packed.tail = tail_is_due && is_last;
    if (session->packed.tail) { put_tail(session, writer); }
    return true;
}

void session_sent(struct session *session)
{
    struct sequence *sequence = &session->sequences[session->packed.sequence];
    struct pending *pending = &sequence->pending;
    uint32_t taken = session->packed.tokens, left = pending->count - taken;
    if (left > 0) {
        memmove(pending->ids, pending->ids + taken, left * sizeof *pending->ids);
        if (pending->logprobs) { memmove(pending->logprobs, pending->logprobs + taken, left * sizeof *pending->logprobs); }
    }
    pending->count = left;
    stop_text_take(&sequence->text);
    sequence->end_is_sent = sequence->end_is_sent || session->packed.end;
    session->prompt_logprob_sent += session->packed.prompt_logprobs;
    session->head_is_sent = true;
    session->tail_is_sent = session->tail_is_sent || session->packed.tail;
    session->next = (session->packed.sequence + 1) % session->spec.params.n;
    if (session->prompt_logprob_sent == session->spec.prompt_count - 1 && session->prompt_logprobs) {
        free(session->prompt_logprobs);
        session->prompt_logprobs = NULL;
    }
}

bool session_is_flushed(const struct session *session)
{
    return news_after(session, UINT32_MAX) == UINT32_MAX &&
           session->prompt_logprob_sent == session->prompt_logprob_count &&
           (!session->is_finished || !session->is_ok || session->tail_is_sent);
}

struct session_times session_times(const struct session *session)
{
    struct session_times times = {
        .arrival_ns = session->arrival_ns,
        .placed_ns = session->placed_ns,
        .first_token_ns = session->first_token_ns,
        .end_ns = session->end_ns,
        .last_gap_ns = session->last_gap_ns,
        .prefill_compute_ns = session->route.prefill_compute_ns,
        .transfer_ns = session->route.transfer_ns,
        .completion_tokens = session->completion_tokens,
        .resumes = session->route.resumes,
    };
    for (uint32_t i = 0; i < session->spec.params.n; i++) {
        times.any_stop = times.any_stop || session->sequences[i].finish == FINISH_STOP;
    }
    return times;
}
