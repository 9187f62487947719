/* request_parse: a client's bytes to a request that can be run, or to a sentence that says why not.
 * Flow:    rpc thread: bytes -> [request_parse: unpack, render, tokenize, check] -> request_spec
 * Thread:  any; the model is only read.
 * Memory:  unpacked messages live in an arena bounded by the bytes that came; freed on return. */
#ifndef BATON_ROUTER_REQUEST_PARSE_H
#define BATON_ROUTER_REQUEST_PARSE_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/growable.h"
#include "router/request_spec.h"
#include "router/served_model.h"

/* GenerateRequest.
 * drawn_seed  used where the client gave none
 * Errors  INVALID_ARGUMENT (request): malformed, or diag names the field, its value and range.
 *         RESOURCE_EXHAUSTED (request): no memory, or a limit of the tokenizer. */
NODISCARD status_t request_parse_generate(const struct served_model *model, const uint8_t *bytes, size_t len,
                                          uint64_t drawn_seed, struct request_spec *ret_spec, struct diag *diag);

/* ChatRequest. Further errors: FAILED_PRECONDITION (request): no usable chat template. */
NODISCARD status_t request_parse_chat(const struct served_model *model, const uint8_t *bytes, size_t len,
                                      uint64_t drawn_seed, struct request_spec *ret_spec, struct diag *diag);

/* TokenizeRequest, appended to ids; a chat's rendered text to rendered. Errors as both above. */
NODISCARD status_t request_parse_tokenize(const struct served_model *model, const uint8_t *bytes, size_t len,
                                          struct token_buf *ids, struct text_buf *rendered, struct diag *diag);

/* DetokenizeRequest; the text is appended. */
NODISCARD status_t request_parse_detokenize(const struct served_model *model, const uint8_t *bytes, size_t len,
                                            struct text_buf *text, struct diag *diag);

#endif
