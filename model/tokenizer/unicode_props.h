/* unicode_props: character classes and normal forms, as the reference sees them.
 * Flow:    normalizer, pre_tokenizer, added_tokens, regex -> [unicode_props]
 * Thread:  any; pure functions over constant tables.
 * Memory:  the caller's buffers. */
#ifndef BATON_MODEL_TOKENIZER_UNICODE_PROPS_H
#define BATON_MODEL_TOKENIZER_UNICODE_PROPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/tokenizer/growable.h"

enum unicode_form { FORM_NFC, FORM_NFD, FORM_NFKC, FORM_NFKD };

bool unicode_is_space(uint32_t code);       /* White_Space */
bool unicode_is_numeric(uint32_t code);     /* Nd, Nl, No */
bool unicode_is_punctuation(uint32_t code); /* P* of an old Unicode, and all of ASCII's */
bool unicode_is_word(uint32_t code);        /* \w */
bool unicode_is_mark(uint32_t code);        /* M* */

/* Writes the lowercase, 1 or 2 code points; returns how many. */
size_t unicode_lowercase(uint32_t code, uint32_t ret_codes[2]);

/* A code point that PCRE2's tables know and that matches every class `code` should match;
 * `code` itself for all but the newest. */
uint32_t unicode_stand_in(uint32_t code);

/* Appends the normal form of a valid text.
 * Cost     NFC of a text that is NFC already: one scan; else O(n log n) at most, where a run
 *          of marks is sorted.
 * Source   Unicode Standard Annex 15. */
NODISCARD status_t unicode_normalize(enum unicode_form form, const char *text, size_t len, struct text_buf *out);

#endif
