/* tokenizer_internal: shared by tokenizer_load.c, tokenizer.c and detokenizer.c. */
#ifndef BATON_MODEL_TOKENIZER_TOKENIZER_INTERNAL_H
#define BATON_MODEL_TOKENIZER_TOKENIZER_INTERNAL_H

#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/decoder.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/post_processor.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/tokenizer_config.h"

struct tokenizer {
    struct normalizer *normalizer;
    struct pre_tokenizer *pre;
    struct bpe *bpe;
    struct added_tokens *added;
    struct decoder *decoder;
    struct post_processor post;
    struct tokenizer_config config;
    uint32_t role_ids[4]; /* enum tokenizer_role */
    uint32_t vocab_size;
    uint32_t id_end;
    uint8_t *special; /* [id_end] */
    bool byte_alphabet; /* tokens are spelled in the byte alphabet */
    bool byte_fallback; /* <0xXX> tokens are bytes */
    char metaspace[5];  /* the letter that stands for a space, "" when none does */
};

#endif
