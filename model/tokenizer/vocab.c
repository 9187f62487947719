#include "model/tokenizer/vocab.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

struct vocab_entry {
    uint32_t offset; /* in arena */
    uint32_t len;
    uint32_t id;
    uint32_t hash; /* high half, compared before the string is */
};

struct vocab {
    char *arena;
    struct vocab_entry *entries; /* [count] */
    uint32_t *slots;             /* [slot_mask + 1], entry + 1, 0 is free */
    uint32_t *by_id;             /* [id_end], entry + 1, 0 is none */
    uint32_t count;
    uint32_t id_end;
    uint64_t slot_mask;
};

static status_t measure(const json_t *object, size_t *ret_bytes, uint32_t *ret_id_end, struct diag *diag)
{
    const char *key;
    json_t *value;
    size_t bytes = 0;
    uint32_t id_end = 0;
    json_object_foreach((json_t *)object, key, value) {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > VOCAB_ID_MAX) {
            diag_set(diag, "the id of token \"%.80s\" must be a whole number from 0 to %u", key, VOCAB_ID_MAX);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
        if ((uint32_t)id >= id_end) { id_end = (uint32_t)id + 1; }
        bytes += strlen(key) + 1;
    }
    if (bytes > UINT32_MAX) {
        diag_set(diag, "the tokens are %zu bytes long together; at most 4 GiB are supported", bytes);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    *ret_bytes = bytes;
    *ret_id_end = id_end;
    return STATUS_OK;
}

status_t vocab_create(const json_t *object, const struct json_nul *nul, struct vocab **ret_vocab, struct diag *diag)
{
    if (!json_is_object(object)) {
        diag_set(diag, "field \"vocab\" must be an object of token: id");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    size_t bytes;
    uint32_t id_end;
    TRY(measure(object, &bytes, &id_end, diag));

    struct vocab *vocab = calloc(1, sizeof *vocab);
    if (!vocab) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    size_t count = json_object_size(object);
    uint64_t slots = 16;
    while (slots < 2 * (uint64_t)count) { slots *= 2; }
    vocab->slot_mask = slots - 1;
    vocab->id_end = id_end;
    vocab->arena = malloc(bytes ? bytes : 1);
    vocab->entries = calloc(count ? count : 1, sizeof *vocab->entries);
    vocab->slots = calloc(slots, sizeof *vocab->slots);
    vocab->by_id = calloc(id_end ? id_end : 1, sizeof *vocab->by_id);
    if (!vocab->arena || !vocab->entries || !vocab->slots || !vocab->by_id) {
        vocab_destroy(vocab);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
    }
    const char *key;
    json_t *value;
    uint32_t offset = 0;
    json_object_foreach((json_t *)object, key, value) {
        size_t len = json_nul_copy_key(nul, key, vocab->arena + offset);
        vocab->arena[offset + len] = '\0';
        uint64_t hash = XXH3_64bits(vocab->arena + offset, len);
        vocab->entries[vocab->count] = (struct vocab_entry){offset, (uint32_t)len, (uint32_t)json_integer_value(value),
                                                            (uint32_t)(hash >> 32)};
        vocab->count++;
        offset += (uint32_t)len + 1;
        uint64_t slot = hash & vocab->slot_mask;
        while (vocab->slots[slot]) { slot = (slot + 1) & vocab->slot_mask; }
        vocab->slots[slot] = vocab->count;
        vocab->by_id[vocab->entries[vocab->count - 1].id] = vocab->count;
    }
    *ret_vocab = vocab;
    return STATUS_OK;
}

void vocab_destroy(struct vocab *vocab)
{
    if (!vocab) { return; }
    free(vocab->arena);
    free(vocab->entries);
    free(vocab->slots);
    free(vocab->by_id);
    free(vocab);
}

uint32_t vocab_find(const struct vocab *vocab, const char *text, size_t len)
{
    uint64_t hash = XXH3_64bits(text, len);
    for (uint64_t slot = hash & vocab->slot_mask; vocab->slots[slot]; slot = (slot + 1) & vocab->slot_mask) {
        const struct vocab_entry *entry = &vocab->entries[vocab->slots[slot] - 1];
        if (entry->hash == (uint32_t)(hash >> 32) && entry->len == len &&
            memcmp(vocab->arena + entry->offset, text, len) == 0) {
            return entry->id;
        }
    }
    return VOCAB_NONE;
}

const char *vocab_text(const struct vocab *vocab, uint32_t id, size_t *ret_len)
{
    if (id >= vocab->id_end || vocab->by_id[id] == 0) { return NULL; }
    const struct vocab_entry *entry = &vocab->entries[vocab->by_id[id] - 1];
    *ret_len = entry->len;
    return vocab->arena + entry->offset;
}

uint32_t vocab_count(const struct vocab *vocab) { return vocab->count; }

uint32_t vocab_id_end(const struct vocab *vocab) { return vocab->id_end; }
