/* word_cache: the ids of words met before in the same text.
 * Flow:    bpe -> [word_cache]
 * Thread:  one call's.
 * Memory:  a direct-mapped table taken at create; a newcomer takes the place of the old. */
#ifndef BATON_MODEL_TOKENIZER_WORD_CACHE_H
#define BATON_MODEL_TOKENIZER_WORD_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Longer words and words of more ids are not kept: they are rare and rarely met again. */
#define WORD_CACHE_KEY_MAX 48
#define WORD_CACHE_IDS_MAX 9

struct word_cache_entry {
    uint64_t hash;
    uint8_t key_len; /* 0 is free */
    uint8_t kind;    /* keys of different kinds never match */
    uint8_t count;
    uint8_t unused;
    uint32_t ids[WORD_CACHE_IDS_MAX];
    uint8_t key[WORD_CACHE_KEY_MAX];
};

_Static_assert(sizeof(struct word_cache_entry) == 96, "an entry is a cache line and a half");

struct word_cache {
    struct word_cache_entry *entries;
    uint64_t mask;
};

/* {0} may be given to fini. */
NODISCARD status_t word_cache_init(struct word_cache *cache, size_t entries);
void word_cache_fini(struct word_cache *cache);

/* The entry of a key of 1 .. WORD_CACHE_KEY_MAX bytes, or NULL. */
const struct word_cache_entry *word_cache_find(const struct word_cache *cache, const void *key, size_t len,
                                               uint8_t kind, uint64_t *ret_hash);

/* Keeps count ids under the hash that find returned; more than WORD_CACHE_IDS_MAX are not kept. */
void word_cache_keep(struct word_cache *cache, const void *key, size_t len, uint8_t kind, uint64_t hash,
                     const uint32_t *ids, size_t count);

#endif
