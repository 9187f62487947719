/* session: what one client still gets to see of one request.
 * Flow:    router_core's EMIT, SEQUENCE_END, FINISHED -> [session] -> GenerateResponse bytes
 * Thread:  made on an rpc thread, then the router's core thread only.
 * Memory:  per sequence a detokenizer and what is not sent yet, at most max_tokens of it; the
 *          buffers are kept, so that a token allocates nothing once they have grown.
 *
 * Tokens become text, text is watched for stop strings, and what is final waits here until the
 * client's stream takes it. A client that reads slowly makes its own messages fewer and
 * larger; nobody else waits for it. */
#ifndef BATON_ROUTER_SESSION_H
#define BATON_ROUTER_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "control/ctl_msg.h"
#include "model/stop_rules.h"
#include "model/tokenizer/tokenizer.h"
#include "router/pb_wire.h"
#include "router/request_spec.h"

struct session;

#define SESSION_ID_CHARS 40u

/* What the model decides; the same for every session. */
struct session_model {
    const struct tokenizer *tokenizer; /* held until the session is destroyed */
    struct eos_tokens eos;
    uint32_t context_tokens;
};

/* spec  Takes its contents on success (the caller's copy is zeroed).
 * Errors  RESOURCE_EXHAUSTED (request): no memory. */
NODISCARD status_t session_create(const struct session_model *model, struct request_spec *spec, uint64_t arrival_ns,
                                  struct session **ret_session);
void session_destroy(struct session *session); /* takes NULL */

const struct request_spec *session_spec(const struct session *session);

/* For the client's logs and ours; before the first message. */
void session_set_id(struct session *session, const char *id);
const char *session_id(const struct session *session);

/* When the request was handed to a node. */
void session_placed(struct session *session, uint64_t now_ns);

/* The next token of a sequence. A token after the sequence's end is ignored.
 * ret_stopped  a stop string was seen: the sequence is over here, and the core must be told
 * Errors  RESOURCE_EXHAUSTED (request). */
NODISCARD status_t session_token(struct session *session, const struct ctl_token *token, uint64_t now_ns,
                                 bool *ret_stopped);

/* The node ended the sequence. */
NODISCARD status_t session_sequence_end(struct session *session, const struct ctl_token *token);

/* Errors  RESOURCE_EXHAUSTED (request). */
NODISCARD status_t session_prompt_logprobs(struct session *session, const struct ctl_prompt_logprobs *logprobs);

/* Where it ran; names are copied. */
struct session_route {
    const char *prefill_node, *decode_node, *transport;
    uint64_t kv_bytes;
    uint32_t resumes;
    uint64_t prefill_queue_ns, prefill_compute_ns, transfer_ns, handover_ns;
    uint32_t cached_prompt_tokens, prefill_cached_tokens;
};

/* The request is over; what is pending is still sent, and then the last message. */
void session_finish(struct session *session, bool is_ok, const struct session_route *route, uint64_t now_ns);

/* Writes the next message into an empty writer. False: there is none now. Nothing is taken
 * off the session until session_sent(), so a message that found no room is written again,
 * larger, later. */
bool session_pack(struct session *session, struct pb_writer *writer);
void session_sent(struct session *session);

/* Is there nothing more to send, now (and, once finished, ever)? */
bool session_is_flushed(const struct session *session);

struct session_times {
    uint64_t arrival_ns, placed_ns, first_token_ns, end_ns; /* 0: not yet */
    uint64_t last_gap_ns; /* from the token before it in its sequence to the newest; UINT64_MAX: it is the first */
    uint64_t prefill_compute_ns, transfer_ns; /* of the last leg, once it is over; 0: computed where it is decoded */
    uint32_t completion_tokens, resumes;
    bool any_stop; /* a sequence ended by itself or by a stop; else by length */
};
struct session_times session_times(const struct session *session);

#endif
