/* answer: what a Generate or Chat stream said, put together, and shown.
 * Flow:    api_call -> [answer] -> text on a terminal, or one JSON object
 * Thread:  the command's.
 * Memory:  grows with the output; answer_fini gives it back. */
#ifndef BATON_CLIENT_ANSWER_H
#define BATON_CLIENT_ANSWER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "base/diag.h"
#include "base/status.h"
#include "client/api_call.h"
#include "proto/baton/v1/inference.pb-c.h"

struct answer_sequence {
    char *text;
    size_t text_len, text_capacity;
    uint32_t token_count;
    json_t *token_ids; /* arrays, if JSON is wanted */
    json_t *logprobs;
    Baton__V1__FinishReason finish_reason;
    char *stop_text;
    bool has_stop_token;
    uint32_t stop_token;
};

struct answer {
    bool wants_json;
    bool stream_text;       /* print sequence 0's text as it comes */
    uint32_t sequence_count;
    struct answer_sequence *sequences;
    json_t *prompt_token_ids, *prompt_logprobs;
    char *request_id;
    uint64_t seed;
    Baton__V1__GenerateResponse *last; /* with usage and route; owned */
    uint64_t start_ns, first_token_ns, last_token_ns;
};

/* Reads the call to its end.
 * Errors  the call's, DATA_LOSS (peer) for a part that makes no sense; what came before stays in
 *         the answer. */
NODISCARD status_t answer_read(struct answer *answer, struct api_call *call, struct diag *diag);

/* text, token_ids, prompt_token_ids, finish_reason, logprobs of sequence 0, all sequences,
 * usage, timing, route. Returns owned. */
json_t *answer_json(const struct answer *answer);

/* One line for people: where it ran, how fast, what moved. */
void answer_print_route(const struct answer *answer, FILE *out);

void answer_fini(struct answer *answer);

#endif
