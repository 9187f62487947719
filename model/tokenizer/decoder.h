/* decoder: token strings to text, one token at a time, nothing that could still change.
 * Flow:    detokenizer, tokenizer_decode -> [decoder]
 * Thread:  struct decoder is constant after create; a decoder_state belongs to one sequence.
 * Memory:  a state keeps what is not final yet: an unfinished character, a run of byte
 *          tokens, spaces that may be stripped. No allocation once its buffers have grown. */
#ifndef BATON_MODEL_TOKENIZER_DECODER_H
#define BATON_MODEL_TOKENIZER_DECODER_H

#include <jansson.h>
#include <stdbool.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/growable.h"

struct decoder;
struct decoder_state;

/* Reads the "decoder" of a tokenizer.json: ByteLevel, ByteFallback, Metaspace, Fuse, Strip,
 * Replace, BPEDecoder, WordPiece and Sequence of these; null joins tokens with spaces.
 * Errors   INVALID_ARGUMENT (node), UNIMPLEMENTED (node) for others, by name. */
NODISCARD status_t decoder_create(const json_t *json, struct decoder **ret_decoder, struct diag *diag);
void decoder_destroy(struct decoder *decoder);

/* Holds `decoder` until destroyed. */
NODISCARD status_t decoder_state_create(const struct decoder *decoder, struct decoder_state **ret_state);
void decoder_state_destroy(struct decoder_state *state);

/* Feeds one token's string; appends the text that is final now, whole characters only.
 * Errors   RESOURCE_EXHAUSTED (request). */
NODISCARD status_t decoder_push(struct decoder_state *state, const char *token, size_t len, struct text_buf *out);

/* Appends the rest, and is ready for another sequence. */
NODISCARD status_t decoder_flush(struct decoder_state *state, struct text_buf *out);

#endif
