/* regex: the patterns of a tokenizer.json, matched as the reference matches them.
 * Flow:    normalizer, pre_tokenizer, decoder -> [regex] -> pcre2
 * Thread:  struct regex is constant after create; a regex_scratch belongs to one caller.
 * Memory:  heap; a scratch keeps its buffers from one text to the next.
 *
 * The patterns are written for Oniguruma with Ruby's syntax. regex_translate says the same
 * thing to PCRE2 where the two differ; what it cannot say is refused, by name. */
#ifndef BATON_MODEL_TOKENIZER_REGEX_H
#define BATON_MODEL_TOKENIZER_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/growable.h"

struct regex;
struct regex_scratch;

/* Compiles a pattern; `literal` takes it letter by letter.
 * Errors   INVALID_ARGUMENT (node): PCRE2 refuses it, or it uses something PCRE2 lacks; diag
 *          names the pattern and the place. */
NODISCARD status_t regex_create(const char *pattern, size_t len, bool literal, struct regex **ret_regex,
                                struct diag *diag);
void regex_destroy(struct regex *regex);

NODISCARD status_t regex_scratch_create(const struct regex *regex, struct regex_scratch **ret_scratch);
void regex_scratch_destroy(struct regex_scratch *scratch);

/* Starts over on a valid text. Holds `text` and `regex` until the next start. */
NODISCARD status_t regex_start(struct regex_scratch *scratch, const struct regex *regex, const char *text, size_t len);

/* The next match, left to right, none overlapping; an empty match right after a match is
 * passed over.
 * ret_found false when there is none; the offsets are not written then
 * Errors   RESOURCE_EXHAUSTED (request): the pattern backtracks too far on this text. */
NODISCARD status_t regex_next(struct regex_scratch *scratch, bool *ret_found, size_t *ret_start, size_t *ret_end,
                              struct diag *diag);

/* Appends the pattern in PCRE2's words. Errors as regex_create. */
NODISCARD status_t regex_translate(const char *pattern, size_t len, struct text_buf *out, struct diag *diag);

#endif
