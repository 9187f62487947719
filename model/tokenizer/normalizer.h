/* normalizer: rewrites a text before it is cut into words.
 * Flow:    tokenizer -> [normalizer] -> pre_tokenizer
 * Thread:  constant after create; a normalizer_scratch belongs to one call.
 * Memory:  two buffers per scratch. */
#ifndef BATON_MODEL_TOKENIZER_NORMALIZER_H
#define BATON_MODEL_TOKENIZER_NORMALIZER_H

#include <jansson.h>
#include <stdbool.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/growable.h"

struct normalizer;
struct normalizer_scratch;

/* Reads the "normalizer" of a tokenizer.json: NFC, NFD, NFKC, NFKD, Lowercase, Strip,
 * StripAccents, Replace, Prepend, Nmt, ByteLevel and Sequence of these; null is none.
 * Errors   INVALID_ARGUMENT (node), UNIMPLEMENTED (node) for Precompiled and others, by name. */
NODISCARD status_t normalizer_create(const json_t *json, struct normalizer **ret_normalizer, struct diag *diag);
void normalizer_destroy(struct normalizer *normalizer);

NODISCARD status_t normalizer_scratch_create(const struct normalizer *normalizer,
                                             struct normalizer_scratch **ret_scratch);
void normalizer_scratch_destroy(struct normalizer_scratch *scratch);

/* Rewrites a valid text. The result is `text` itself where nothing changes, else a borrow of
 * the scratch until its next use.
 * ret_cut_left  true when characters at its start were taken away */
NODISCARD status_t normalizer_apply(const struct normalizer *normalizer, struct normalizer_scratch *scratch,
                                    const char *text, size_t len, const char **ret_text, size_t *ret_len,
                                    bool *ret_cut_left, struct diag *diag);

/* The same with a scratch of its own; appends a copy to out. */
NODISCARD status_t normalizer_apply_once(const struct normalizer *normalizer, const char *text, size_t len,
                                         struct text_buf *out, struct diag *diag);

#endif
