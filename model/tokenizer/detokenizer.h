/* detokenizer: the text of one sequence as its tokens arrive.
 * Flow:    tokens of a step -> router -> [detokenizer] -> stop strings -> client stream
 * Thread:  one sequence's.
 * Memory:  a few hundred bytes; buffers stop growing after the first tokens.
 *
 * What push appends is final: never half a character, never text that a later token changes.
 * All pieces and the flush together are tokenizer_decode of all ids. For byte-fallback models
 * this means that a run of byte tokens is shown when the run ends: one bad byte at its end
 * would turn all of it into U+FFFD. */
#ifndef BATON_MODEL_TOKENIZER_DETOKENIZER_H
#define BATON_MODEL_TOKENIZER_DETOKENIZER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "model/tokenizer/growable.h"
#include "model/tokenizer/tokenizer.h"

struct detokenizer;

/* Holds `tokenizer` until destroyed. skip_special: special tokens give nothing.
 * Errors   RESOURCE_EXHAUSTED (request). */
NODISCARD status_t detokenizer_create(const struct tokenizer *tokenizer, bool skip_special,
                                      struct detokenizer **ret_detokenizer);
void detokenizer_destroy(struct detokenizer *detokenizer);

/* Takes the next id and appends what is final now, often nothing or one token's text.
 * Cost     O(the token's length). Errors RESOURCE_EXHAUSTED (request). */
NODISCARD status_t detokenizer_push(struct detokenizer *detokenizer, uint32_t id, struct text_buf *out);

/* The sequence has ended: appends the rest, an unfinished character as U+FFFD. The detokenizer
 * is as new then. */
NODISCARD status_t detokenizer_flush(struct detokenizer *detokenizer, struct text_buf *out);

#endif
