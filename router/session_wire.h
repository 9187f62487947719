/* session_wire: the parts of a GenerateResponse, written field by field.
 * Flow:    session -> [session_wire] -> pb_writer
 * Thread:  the router's core thread; pure.
 * Memory:  the writer's.
 *
 * The numbers are those of proto/baton/v1/inference.proto; a test reads every field back
 * through the generated code. */
#ifndef BATON_ROUTER_SESSION_WIRE_H
#define BATON_ROUTER_SESSION_WIRE_H

#include <stdint.h>

#include "control/ctl_msg.h"
#include "model/tokenizer/tokenizer.h"
#include "router/pb_wire.h"

enum generate_field {
    GENERATE_INDEX = 1,
    GENERATE_TEXT = 2,
    GENERATE_TOKEN_IDS = 3,
    GENERATE_LOGPROBS = 4,
    GENERATE_FINISH_REASON = 5,
    GENERATE_STOP_TEXT = 6,
    GENERATE_STOP_TOKEN = 7,
    GENERATE_PROMPT_TOKEN_IDS = 8,
    GENERATE_PROMPT_LOGPROBS = 9,
    GENERATE_USAGE = 10,
    GENERATE_ROUTE = 11,
    GENERATE_REQUEST_ID = 12,
    GENERATE_SEED = 13,
};

struct session_wire_route {
    const char *prefill_node, *decode_node, *transport;
    uint64_t kv_bytes;
    uint32_t resumes;
    uint32_t prefill_cached_tokens;
    double queue_ms, prefill_queue_ms, prefill_ms, transfer_ms, ttft_ms, total_ms, tpot_ms, handover_ms;
};

/* TokenLogprob with its alternatives. scratch: overwritten. */
void session_wire_logprob(struct pb_writer *writer, uint32_t field, const struct tokenizer *tokenizer, uint32_t token,
                          const struct token_logprob *logprob, struct text_buf *scratch);
void session_wire_usage(struct pb_writer *writer, uint32_t prompt_tokens, uint32_t completion_tokens,
                        uint32_t cached_prompt_tokens);
void session_wire_route(struct pb_writer *writer, const struct session_wire_route *route);
/* A UInt, written also when 0: absent means something else. */
void session_wire_uint(struct pb_writer *writer, uint32_t field, uint32_t value);

#endif
