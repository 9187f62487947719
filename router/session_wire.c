#include "router/session_wire.h"

#include <string.h>

#include "model/tokenizer/utf8.h"

static void put_string(struct pb_writer *writer, uint32_t field, const char *text)
{
    pb_put_bytes(writer, field, text, strlen(text));
}

/* A token may be a piece of a character; a protobuf string must be UTF-8, and clients refuse
 * the whole message where it is not. */
static void put_token_text(struct pb_writer *writer, uint32_t field, const struct tokenizer *tokenizer, uint32_t token,
                           struct text_buf *scratch)
{
    static const char replacement[] = "\xef\xbf\xbd";
    scratch->len = 0;
    if (!tokenizer || failed(tokenizer_token_text(tokenizer, token, scratch)) || scratch->len == 0) { return; }
    size_t raw = scratch->len, valid = utf8_valid_prefix(scratch->data, raw);
    if (valid == raw) {
        pb_put_bytes(writer, field, scratch->data, raw);
        return;
    }
    /* The mended text goes behind the raw one. */
    for (size_t at = 0; at < raw;) {
        size_t bytes;
        enum utf8_kind kind = utf8_read(scratch->data + at, raw - at, &bytes);
        const char *piece = kind == UTF8_WHOLE ? NULL : replacement;
        char whole[4];
        if (!piece) { memcpy(whole, scratch->data + at, bytes); }
        if (failed(text_buf_append(scratch, piece ? piece : whole, piece ? sizeof replacement - 1 : bytes))) { return; }
        at += bytes;
    }
    pb_put_bytes(writer, field, scratch->data + raw, scratch->len - raw);
}

void session_wire_logprob(struct pb_writer *writer, uint32_t field, const struct tokenizer *tokenizer, uint32_t token,
                          const struct token_logprob *logprob, struct text_buf *scratch)
{
    size_t mark = pb_begin(writer, field);
    pb_put_uint(writer, 1, token);
    put_token_text(writer, 2, tokenizer, token, scratch);
    pb_put_float(writer, 3, logprob->logprob);
    pb_put_uint(writer, 4, logprob->rank);
    for (uint32_t i = 0; i < logprob->alternative_count && i < SAMPLING_LOGPROBS_MAX; i++) {
        const struct token_alternative *alternative = &logprob->alternatives[i];
        size_t inner = pb_begin(writer, 5);
        pb_put_uint(writer, 1, alternative->token);
        put_token_text(writer, 2, tokenizer, alternative->token, scratch);
        pb_put_float(writer, 3, alternative->logprob);
        pb_put_uint(writer, 4, i + 1);
        pb_end(writer, inner);
    }
    pb_end(writer, mark);
}

void session_wire_usage(struct pb_writer *writer, uint32_t prompt_tokens, uint32_t completion_tokens,
                        uint32_t cached_prompt_tokens)
{
    size_t mark = pb_begin(writer, GENERATE_USAGE);
    pb_put_uint(writer, 1, prompt_tokens);
    pb_put_uint(writer, 2, completion_tokens);
    pb_put_uint(writer, 3, cached_prompt_tokens);
    pb_end(writer, mark);
}

void session_wire_route(struct pb_writer *writer, const struct session_wire_route *route)
{
    size_t mark = pb_begin(writer, GENERATE_ROUTE);
    put_string(writer, 1, route->prefill_node);
    put_string(writer, 2, route->decode_node);
    put_string(writer, 3, route->transport);
    pb_put_uint(writer, 4, route->kv_bytes);
    pb_put_uint(writer, 5, route->resumes);
    pb_put_double(writer, 6, route->queue_ms);
    pb_put_double(writer, 7, route->prefill_queue_ms);
    pb_put_double(writer, 8, route->prefill_ms);
    pb_put_double(writer, 9, route->transfer_ms);
    pb_put_double(writer, 10, route->ttft_ms);
    pb_put_double(writer, 11, route->total_ms);
    pb_put_double(writer, 12, route->tpot_ms);
    pb_put_double(writer, 13, route->handover_ms);
    pb_put_uint(writer, 14, route->prefill_cached_tokens);
    pb_end(writer, mark);
}

void session_wire_uint(struct pb_writer *writer, uint32_t field, uint32_t value)
{
    size_t mark = pb_begin(writer, field);
    pb_put_uint(writer, 1, value);
    pb_end(writer, mark);
}
