/* pre_tokenizer: cuts a text into the words that the model encodes one by one.
 * Flow:    tokenizer -> [pre_tokenizer] -> bpe
 * Thread:  constant after create; a pre_tokenizer_scratch belongs to one call.
 * Memory:  a scratch keeps one buffer for each step that rewrites its word.
 *
 * No list of words is built: a word that falls off one step goes through the steps after it
 * at once, and from the last to the caller. */
#ifndef BATON_MODEL_TOKENIZER_PRE_TOKENIZER_H
#define BATON_MODEL_TOKENIZER_PRE_TOKENIZER_H

#include <jansson.h>
#include <stdbool.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/growable.h"

struct pre_tokenizer;
struct pre_tokenizer_scratch;

/* Reads the "pre_tokenizer" of a tokenizer.json: Split, ByteLevel, Metaspace, Digits,
 * Whitespace, WhitespaceSplit, Punctuation, BertPreTokenizer, CharDelimiterSplit and Sequence
 * of these; null is none.
 * may_give_bytes  the model can take words as bytes (bpe_takes_bytes)
 * Errors   INVALID_ARGUMENT (node), UNIMPLEMENTED (node) for others, by name. */
NODISCARD status_t pre_tokenizer_create(const json_t *json, bool may_give_bytes, struct pre_tokenizer **ret_pre,
                                        struct diag *diag);
void pre_tokenizer_destroy(struct pre_tokenizer *pre);

/* True when the words come as the bytes of the text, and the last step would have spelled
 * them in the byte alphabet: doing that is left to tables of the model. */
bool pre_tokenizer_gives_bytes(const struct pre_tokenizer *pre);

NODISCARD status_t pre_tokenizer_scratch_create(const struct pre_tokenizer *pre,
                                                struct pre_tokenizer_scratch **ret_scratch);
void pre_tokenizer_scratch_destroy(struct pre_tokenizer_scratch *scratch);

/* Takes one word; `word` is a borrow for the call. An error ends the cutting. */
typedef status_t (*word_sink)(void *context, const char *word, size_t len, struct diag *diag);

/* Cuts a valid text. at_start: the text starts where the whole input does.
 * Errors   those of the sink and of regex_next. */
NODISCARD status_t pre_tokenizer_run(const struct pre_tokenizer *pre, struct pre_tokenizer_scratch *scratch,
                                     const char *text, size_t len, bool at_start, word_sink sink, void *context,
                                     struct diag *diag);

#endif
