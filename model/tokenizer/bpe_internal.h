/* bpe_internal: shared by bpe_load.c, which builds a bpe, and bpe.c, which runs it. */
#ifndef BATON_MODEL_TOKENIZER_BPE_INTERNAL_H
#define BATON_MODEL_TOKENIZER_BPE_INTERNAL_H

#include "model/tokenizer/bpe.h"
#include "model/tokenizer/merge_table.h"

struct bpe {
    struct vocab *vocab;
    struct merge_table merges;
    /* Pairs of first symbols that some merge can join across; where two neighbours are no such
     * pair, no merge ever crosses, and the word falls apart there into words of their own. */
    struct merge_table bridges;
    bool has_bridges;
    bool bytes;
    bool fuse_unk;
    bool byte_fallback;
    bool ignore_merges;
    bool has_unk;              /* an unk_token is named */
    uint32_t unk_id;           /* VOCAB_NONE when it is not in the vocabulary */
    char *prefix, *suffix;     /* continuing_subword_prefix, end_of_word_suffix; NULL when empty */
    uint32_t byte_token[256];  /* <0xXX>, VOCAB_NONE where missing */
    uint32_t alphabet[256];    /* the token of a byte's alphabet character; bytes only */
    uint32_t *characters;      /* [CHARACTERS], tokens of single code points */
};

#define BPE_CHARACTERS 0x10000u

#endif
