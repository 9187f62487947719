/* tokenizer: text to token ids and back, from a Hugging Face directory.
 * Flow:    client text -> router -> [tokenizer] -> token ids -> nodes -> detokenizer -> client
 * Thread:  a tokenizer is constant after create: any number of threads encode and decode at
 *          once. A detokenizer (detokenizer.h) belongs to one sequence.
 * Memory:  tables at create, some 60 bytes per token and 24 per merge; each encode takes and
 *          gives back its scratch.
 *
 * What it reads: byte-level BPE (GPT-2, Llama 3, Qwen, GPT-NeoX) and SentencePiece-style BPE
 * with byte fallback (Llama 2, Mistral, TinyLlama, Phi-3). `truncation` and `padding` of the
 * file are ignored: a server must not cut a prompt. clean_up_tokenization_spaces is ignored
 * for the reason that the reference gives: for BPE it would corrupt the text.
 * Source: Hugging Face tokenizers, whose ids and texts are reproduced. */
#ifndef BATON_MODEL_TOKENIZER_TOKENIZER_H
#define BATON_MODEL_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/growable.h"

#define TOKENIZER_NO_ID UINT32_MAX

struct tokenizer;

/* Loads dir/tokenizer.json, and beside it what decides something: tokenizer_config.json,
 * special_tokens_map.json, chat_template.jinja, additional_chat_templates/.
 * ret_tokenizer  owned by the caller
 * Errors   NOT_FOUND (node): no tokenizer.json; INVALID_ARGUMENT (node): not what it should be;
 *          UNIMPLEMENTED (node): a model or component that is not supported, by name. */
NODISCARD status_t tokenizer_create(const char *dir, struct tokenizer **ret_tokenizer, struct diag *diag);

/* The same from memory: the bytes of a tokenizer.json, and of a tokenizer_config.json or NULL. */
NODISCARD status_t tokenizer_create_from_json(const char *json, size_t len, const char *config, size_t config_len,
                                              struct tokenizer **ret_tokenizer, struct diag *diag);
void tokenizer_destroy(struct tokenizer *tokenizer);

struct encode_options {
    bool add_special;   /* what the post-processor puts around a text, as <s> */
    bool parse_special; /* special tokens written in the text are recognised; if false they are
                         * text like any other. Tokens that were added but are not special are
                         * always recognised. */
};

/* Appends the ids of a text.
 * text     [len], borrowed; need not end with a zero byte, may contain some
 * Errors   INVALID_ARGUMENT (request): not UTF-8, diag names the byte; RESOURCE_EXHAUSTED
 *          (request): no memory, or a pattern backtracks too far. `ids` is as before then.
 * Cost     O(len), and O(n log n) in a word of n characters. */
NODISCARD status_t tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len,
                                    struct encode_options options, struct token_buf *ids, struct diag *diag);

/* Appends the text of ids; ids that are no token give nothing, bytes that are not UTF-8 give
 * U+FFFD. skip_special: special tokens give nothing.
 * Errors   RESOURCE_EXHAUSTED (request). `out` is as before then. */
NODISCARD status_t tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, size_t count,
                                    bool skip_special, struct text_buf *out);

/* Tokens, added ones included. Every id is below tokenizer_id_end, which is no smaller. */
uint32_t tokenizer_vocab_size(const struct tokenizer *tokenizer);
uint32_t tokenizer_id_end(const struct tokenizer *tokenizer);

/* A token as the vocabulary spells it ("\u0120the"), zero-terminated, borrowed; NULL when the
 * id is no token. */
const char *tokenizer_token_spelling(const struct tokenizer *tokenizer, uint32_t id, size_t *ret_len);

/* Appends the bytes that a token stands for, to be shown beside its logprob: " the", and for
 * <0xE4> the byte itself. They need not be UTF-8 alone. Nothing for an id that is no token. */
NODISCARD status_t tokenizer_token_text(const struct tokenizer *tokenizer, uint32_t id, struct text_buf *out);

/* The id of a token as the vocabulary spells it; TOKENIZER_NO_ID when there is none. */
uint32_t tokenizer_token_id(const struct tokenizer *tokenizer, const char *spelling, size_t len);

bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id);

enum tokenizer_role { TOKENIZER_BOS, TOKENIZER_EOS, TOKENIZER_PAD, TOKENIZER_UNK };

/* The token that the configuration names for a role: as a string, for chat templates, and its
 * id. NULL and TOKENIZER_NO_ID where none is named; a name that is no token has no id. */
const char *tokenizer_role_text(const struct tokenizer *tokenizer, enum tokenizer_role role);
uint32_t tokenizer_role_id(const struct tokenizer *tokenizer, enum tokenizer_role role);

/* The chat templates, raw. name NULL: the one called "default", or the only one. NULL when there
 * is none. Borrowed. */
size_t tokenizer_chat_template_count(const struct tokenizer *tokenizer);
const char *tokenizer_chat_template_name(const struct tokenizer *tokenizer, size_t index);
const char *tokenizer_chat_template(const struct tokenizer *tokenizer, const char *name);

#endif
