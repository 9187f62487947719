/* bpe: one word to token ids, by merging the best-ranked pair again and again.
 * Flow:    pre_tokenizer -> [bpe] -> tokenizer
 * Thread:  struct bpe is constant after create; a bpe_scratch belongs to one call.
 * Memory:  tables at create; a scratch grows to the longest word it has seen.
 *
 * Source: Sennrich et al., arXiv 1508.07909; order of merges and the treatment of unknown
 * characters as Hugging Face tokenizers has them, models/bpe. */
#ifndef BATON_MODEL_TOKENIZER_BPE_H
#define BATON_MODEL_TOKENIZER_BPE_H

#include <jansson.h>
#include <stdbool.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/growable.h"
#include "model/tokenizer/vocab.h"

struct bpe;
struct bpe_scratch;

/* Reads the "model" object of a tokenizer.json, as json_nul_load read it.
 * bytes    words come as bytes of text and the tokens are spelled in the byte alphabet
 *          (utf8.h); if false, words come spelled as the tokens are
 * Errors   INVALID_ARGUMENT (node): a field is wrong, a merge names a token that is none. */
NODISCARD status_t bpe_create(const json_t *model, const struct json_nul *nul, bool bytes, struct bpe **ret_bpe,
                              struct diag *diag);
void bpe_destroy(struct bpe *bpe);

/* True when `bytes` may be asked for: no affix is spelled onto single characters. */
bool bpe_takes_bytes(const json_t *model);

const struct vocab *bpe_vocab(const struct bpe *bpe);

/* text_len: of the text to come; sizes the cache of words. */
NODISCARD status_t bpe_scratch_create(const struct bpe *bpe, size_t text_len, struct bpe_scratch **ret_scratch);
void bpe_scratch_destroy(struct bpe_scratch *scratch);

/* Appends the ids of one word, a valid UTF-8 text unless create said bytes.
 * Errors   FAILED_PRECONDITION (request): a character has no token and the unknown token is
 *          missing from the vocabulary.
 * Cost     O(n log n) for n characters, O(1) for a word seen before. */
NODISCARD status_t bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t len,
                              struct token_buf *out, struct diag *diag);

#endif
