/* small_tokenizers: whole tokenizer.json files, small enough to stand in a fuzz target. */
#ifndef BATON_TESTS_FUZZ_TOKENIZER_SMALL_TOKENIZERS_H
#define BATON_TESTS_FUZZ_TOKENIZER_SMALL_TOKENIZERS_H

#include "model/tokenizer/tokenizer.h"

enum { SMALL_BYTES, SMALL_FALLBACK, SMALL_WORDS, SMALL_COUNT };

/* Every byte has a token in SMALL_BYTES, so any text comes back; the others lose some. Loaded
 * once and kept. */
const struct tokenizer *small_tokenizer(unsigned which);

#endif
