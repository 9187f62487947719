#include "model/tokenizer/word_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

status_t word_cache_init(struct word_cache *cache, size_t entries)
{
    size_t count = 64;
    while (count < entries) { count *= 2; }
    cache->entries = calloc(count, sizeof *cache->entries);
    if (!cache->entries) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    cache->mask = count - 1;
    return STATUS_OK;
}

void word_cache_fini(struct word_cache *cache)
{
    free(cache->entries);
    *cache = (struct word_cache){0};
}

const struct word_cache_entry *word_cache_find(const struct word_cache *cache, const void *key, size_t len,
                                               uint8_t kind, uint64_t *ret_hash)
{
    uint64_t hash = XXH3_64bits(key, len);
    const struct word_cache_entry *entry = &cache->entries[hash & cache->mask];
    *ret_hash = hash;
    if (entry->hash != hash || entry->key_len != len || entry->kind != kind) { return NULL; }
    return memcmp(entry->key, key, len) == 0 ? entry : NULL;
}

void word_cache_keep(struct word_cache *cache, const void *key, size_t len, uint8_t kind, uint64_t hash,
                     const uint32_t *ids, size_t count)
{
    if (count > WORD_CACHE_IDS_MAX) { return; }
    struct word_cache_entry *entry = &cache->entries[hash & cache->mask];
    entry->hash = hash;
    entry->key_len = (uint8_t)len;
    entry->kind = kind;
    entry->count = (uint8_t)count;
    memcpy(entry->key, key, len);
    if (count > 0) { memcpy(entry->ids, ids, count * sizeof *ids); }
}
