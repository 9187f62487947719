#include "model/tokenizer/bpe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/bpe_internal.h"
#include "model/tokenizer/utf8.h"
#include "model/tokenizer/word_cache.h"

/* Up to here the best pair is found by looking at all of them; beyond, by a heap. A scan of
 * 64 ranks is a handful of vector compares. */
#define SCAN_MAX 64

enum { KIND_TEXT, KIND_SYMBOLS };

struct bpe_scratch {
    struct word_cache cache;
    struct token_buf symbols;  /* first symbols of the word at hand */
    struct text_buf spelled;   /* a word in the byte alphabet, or a character with its affixes */
    /* The long way: one slot per first symbol, linked as a list. */
    uint32_t *next, *prev, *rank, *joined;
    uint64_t *heap;
    size_t capacity;
};

status_t bpe_scratch_create(const struct bpe *bpe, size_t text_len, struct bpe_scratch **ret_scratch)
{
    (void)bpe;
    struct bpe_scratch *scratch = calloc(1, sizeof *scratch);
    if (!scratch) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    size_t entries = text_len / 8; /* a word or so each; 8192 of them fit a second-level cache */
    status_t st = word_cache_init(&scratch->cache, entries < 8192 ? entries : 8192);
    if (failed(st)) { free(scratch); return st; }
    *ret_scratch = scratch;
    return STATUS_OK;
}

void bpe_scratch_destroy(struct bpe_scratch *scratch)
{
    if (!scratch) { return; }
    word_cache_fini(&scratch->cache);
    token_buf_fini(&scratch->symbols);
    text_buf_fini(&scratch->spelled);
    free(scratch->next);
    free(scratch->prev);
    free(scratch->rank);
    free(scratch->joined);
    free(scratch->heap);
    free(scratch);
}

/* An unknown token is held back until it is clear that no further one will fuse with it. */
struct unknown {
    bool held;
};

static status_t release_unknown(const struct bpe *bpe, struct unknown *unknown, struct token_buf *symbols)
{
    if (!unknown->held) { return STATUS_OK; }
    unknown->held = false;
    return token_buf_append(symbols, bpe->unk_id);
}

/* A character that has no token: its bytes' tokens, or the unknown token, or nothing at all. */
static status_t add_missing(const struct bpe *bpe, const char *text, size_t len, struct unknown *unknown,
                            struct token_buf *symbols, struct diag *diag)
{
    if (bpe->byte_fallback) {
        bool all = true;
        for (size_t i = 0; i < len; i++) { all = all && bpe->byte_token[(unsigned char)text[i]] != VOCAB_NONE; }
        if (all) { /* a held unknown stays held: the reference puts it after these */
            for (size_t i = 0; i < len; i++) {
                TRY(token_buf_append(symbols, bpe->byte_token[(unsigned char)text[i]]));
            }
            return STATUS_OK;
        }
    }
    if (!bpe->has_unk) { return STATUS_OK; }
    if (bpe->unk_id == VOCAB_NONE) {
        diag_set(diag, "\"%.*s\" has no token, and the model's unk_token is missing from its vocabulary", (int)len, text);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    }
    if (!bpe->fuse_unk) { TRY(release_unknown(bpe, unknown, symbols)); }
    unknown->held = true;
    return STATUS_OK;
}

static status_t first_symbols_of_bytes(const struct bpe *bpe, const char *word, size_t len, struct token_buf *symbols,
                                       struct diag *diag)
{
    struct unknown unknown = {0};
    TRY(token_buf_reserve(symbols, len));
    for (size_t i = 0; i < len; i++) {
        uint32_t id = bpe->alphabet[(unsigned char)word[i]];
        if (id != VOCAB_NONE) {
            TRY(release_unknown(bpe, &unknown, symbols));
            TRY(token_buf_append(symbols, id));
            continue;
        }
        char character[4];
        size_t bytes = utf8_encode(byte_alphabet_code((uint8_t)word[i]), character);
        TRY(add_missing(bpe, character, bytes, &unknown, symbols, diag));
    }
    return release_unknown(bpe, &unknown, symbols);
}

static status_t first_symbols_of_text(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t len,
                                      struct token_buf *symbols, struct diag *diag)
{
    struct unknown unknown = {0};
    bool affixes = bpe->prefix || bpe->suffix;
    TRY(token_buf_reserve(symbols, len));
    for (size_t at = 0, bytes; at < len; at += bytes) {
        const char *text = word + at;
        uint32_t code = utf8_decode(text, &bytes);
        size_t text_len = bytes;
        uint32_t id;
        if (affixes) {
            struct text_buf *spelled = &scratch->spelled;
            spelled->len = 0;
            if (at > 0 && bpe->prefix) { TRY(text_buf_append(spelled, bpe->prefix, strlen(bpe->prefix))); }
            TRY(text_buf_append(spelled, text, bytes));
            if (at + bytes == len && bpe->suffix) { TRY(text_buf_append(spelled, bpe->suffix, strlen(bpe->suffix))); }
            text = spelled->data;
            text_len = spelled->len;
            id = vocab_find(bpe->vocab, text, text_len);
        } else {
            id = code < BPE_CHARACTERS ? bpe->characters[code] : vocab_find(bpe->vocab, text, bytes);
        }
        if (id != VOCAB_NONE) {
            TRY(release_unknown(bpe, &unknown, symbols));
            TRY(token_buf_append(symbols, id));
        } else {
            TRY(add_missing(bpe, text, text_len, &unknown, symbols, diag));
        }
    }
    return release_unknown(bpe, &unknown, symbols);
}

static uint32_t pair_rank(const struct bpe *bpe, uint32_t left, uint32_t right, uint32_t *ret_joined)
{
    const struct merge *merge = merge_table_find(&bpe->merges, left, right);
    if (!merge) { return MERGE_NONE; }
    *ret_joined = merge->id;
    return merge->rank;
}

/* Merges in place; returns how many symbols are left. */
static size_t merge_by_scan(const struct bpe *bpe, uint32_t *ids, size_t count)
{
    uint32_t rank[SCAN_MAX], joined[SCAN_MAX];
    for (size_t i = 0; i + 1 < count; i++) { rank[i] = pair_rank(bpe, ids[i], ids[i + 1], &joined[i]); }
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++) {
            if (rank[i] < rank[best]) { best = i; } /* of equals the leftmost */
        }
        if (rank[best] == MERGE_NONE) { break; }
        ids[best] = joined[best];
        memmove(ids + best + 1, ids + best + 2, (count - best - 2) * sizeof *ids);
        if (best + 2 < count) { /* pair best + 1 is gone */
            memmove(rank + best + 1, rank + best + 2, (count - best - 3) * sizeof *rank);
            memmove(joined + best + 1, joined + best + 2, (count - best - 3) * sizeof *joined);
        }
        count--;
        if (best + 1 < count) { rank[best] = pair_rank(bpe, ids[best], ids[best + 1], &joined[best]); }
        if (best > 0) { rank[best - 1] = pair_rank(bpe, ids[best - 1], ids[best], &joined[best - 1]); }
    }
    return count;
}

static status_t reserve_long(struct bpe_scratch *scratch, size_t count)
{
    if (count <= scratch->capacity) { return STATUS_OK; }
    if (count >= UINT32_MAX) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    uint32_t **arrays[] = {&scratch->next, &scratch->prev, &scratch->rank, &scratch->joined};
    for (size_t i = 0; i < 4; i++) {
        uint32_t *grown = realloc(*arrays[i], count * sizeof *grown);
        if (!grown) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
        *arrays[i] = grown;
    }
    /* Every first pair once, and two new ones for each of at most count - 1 merges. */
    uint64_t *heap = realloc(scratch->heap, 3 * count * sizeof *heap);
    if (!heap) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    scratch->heap = heap;
    scratch->capacity = count;
    return STATUS_OK;
}

static void sift_down(uint64_t *heap, size_t count, size_t at)
{
    uint64_t item = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count) { break; }
        if (child + 1 < count && heap[child + 1] < heap[child]) { child++; }
        if (heap[child] >= item) { break; }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = item;
}

static void heap_push(uint64_t *heap, size_t *count, uint64_t item)
{
    size_t at = (*count)++;
    while (at > 0 && heap[(at - 1) / 2] > item) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = item;
}

/* Merges in place; returns how many symbols are left. An item of the heap is rank << 32 |
 * position, so the smallest is the best-ranked pair and of equals the leftmost. An item whose
 * rank is no longer that of its position is left over from a pair that has changed. */
static status_t merge_by_heap(const struct bpe *bpe, struct bpe_scratch *scratch, uint32_t *ids, size_t count,
                              size_t *ret_count)
{
    TRY(reserve_long(scratch, count));
    uint32_t *next = scratch->next, *prev = scratch->prev, *rank = scratch->rank, *joined = scratch->joined;
    uint64_t *heap = scratch->heap;
    size_t items = 0;
    for (size_t i = 0; i < count; i++) {
        next[i] = (uint32_t)i + 1;
        prev[i] = (uint32_t)i - 1; /* the first has UINT32_MAX */
        rank[i] = i + 1 < count ? pair_rank(bpe, ids[i], ids[i + 1], &joined[i]) : MERGE_NONE;
        if (rank[i] != MERGE_NONE) { heap[items++] = (uint64_t)rank[i] << 32 | i; }
    }
    for (size_t i = items / 2; i-- > 0;) { sift_down(heap, items, i); }
    while (items > 0) {
        uint64_t top = heap[0];
        heap[0] = heap[--items];
        if (items > 0) { sift_down(heap, items, 0); }
        uint32_t at = (uint32_t)top;
        if (rank[at] != (uint32_t)(top >> 32)) { continue; }
        uint32_t gone = next[at], after = next[gone], before = prev[at];
        ids[at] = joined[at];
        next[at] = after;
        rank[gone] = MERGE_NONE;
        rank[at] = MERGE_NONE;
        if (after < count) {
            prev[after] = at;
            rank[at] = pair_rank(bpe, ids[at], ids[after], &joined[at]);
            if (rank[at] != MERGE_NONE) { heap_push(heap, &items, (uint64_t)rank[at] << 32 | at); }
        }
        if (before != UINT32_MAX) {
            rank[before] = pair_rank(bpe, ids[before], ids[at], &joined[before]);
            if (rank[before] != MERGE_NONE) { heap_push(heap, &items, (uint64_t)rank[before] << 32 | before); }
        }
    }
    size_t left = 0;
    for (size_t at = 0; at < count; at = next[at]) { ids[left++] = ids[at]; }
    *ret_count = left;
    return STATUS_OK;
}

/* Merges ids[0 .. count) and appends what is left. Destroys ids. */
static status_t merge_symbols(const struct bpe *bpe, struct bpe_scratch *scratch, uint32_t *ids, size_t count,
                              struct token_buf *out)
{
    if (count > SCAN_MAX) {
        TRY(merge_by_heap(bpe, scratch, ids, count, &count));
    } else if (count > 1) {
        count = merge_by_scan(bpe, ids, count);
    }
    TRY(token_buf_reserve(out, count));
    for (size_t i = 0; i < count; i++) { out->ids[out->count++] = ids[i]; }
    return STATUS_OK;
}

/* A stretch that merges do not leave: looked up by its symbols, else merged. */
static status_t encode_stretch(const struct bpe *bpe, struct bpe_scratch *scratch, uint32_t *ids, size_t count,
                               struct token_buf *out)
{
    if (count == 1) { return token_buf_append(out, ids[0]); }
    size_t key_len = count * sizeof *ids;
    if (key_len > WORD_CACHE_KEY_MAX) { return merge_symbols(bpe, scratch, ids, count, out); }
    uint64_t hash;
    const struct word_cache_entry *hit = word_cache_find(&scratch->cache, ids, key_len, KIND_SYMBOLS, &hash);
    if (hit) {
        TRY(token_buf_reserve(out, hit->count));
        for (size_t i = 0; i < hit->count; i++) { out->ids[out->count++] = hit->ids[i]; }
        return STATUS_OK;
    }
    uint32_t key[WORD_CACHE_KEY_MAX / sizeof(uint32_t)];
    memcpy(key, ids, key_len);
    size_t from = out->count;
    TRY(merge_symbols(bpe, scratch, ids, count, out));
    word_cache_keep(&scratch->cache, key, key_len, KIND_SYMBOLS, hash, out->ids + from, out->count - from);
    return STATUS_OK;
}

static status_t encode_long(const struct bpe *bpe, struct bpe_scratch *scratch, uint32_t *ids, size_t count,
                            struct token_buf *out)
{
    if (!bpe->has_bridges) { return merge_symbols(bpe, scratch, ids, count, out); }
    size_t start = 0;
    for (size_t i = 1; i <= count; i++) {
        if (i < count && merge_table_find(&bpe->bridges, ids[i - 1], ids[i])) { continue; }
        TRY(encode_stretch(bpe, scratch, ids + start, i - start, out));
        start = i;
    }
    return STATUS_OK;
}

/* The token that is spelled like the whole word; VOCAB_NONE when there is none. */
static status_t find_whole(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t len,
                           uint32_t *ret_id)
{
    if (!bpe->bytes) { *ret_id = vocab_find(bpe->vocab, word, len); return STATUS_OK; }
    struct text_buf *spelled = &scratch->spelled;
    spelled->len = 0;
    TRY(text_buf_reserve(spelled, 2 * len));
    for (size_t i = 0; i < len; i++) {
        spelled->len += utf8_encode(byte_alphabet_code((uint8_t)word[i]), spelled->data + spelled->len);
    }
    *ret_id = vocab_find(bpe->vocab, spelled->data, spelled->len);
    return STATUS_OK;
}

status_t bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t len,
                    struct token_buf *out, struct diag *diag)
{
    if (len == 0) { return STATUS_OK; }
    uint64_t hash = 0;
    bool keep = len <= WORD_CACHE_KEY_MAX;
    if (keep) {
        const struct word_cache_entry *hit = word_cache_find(&scratch->cache, word, len, KIND_TEXT, &hash);
        if (hit) {
            TRY(token_buf_reserve(out, hit->count));
            for (size_t i = 0; i < hit->count; i++) { out->ids[out->count++] = hit->ids[i]; }
            return STATUS_OK;
        }
    }
    size_t from = out->count;
    uint32_t whole = VOCAB_NONE;
    if (bpe->ignore_merges) { TRY(find_whole(bpe, scratch, word, len, &whole)); }
    if (whole != VOCAB_NONE) {
        TRY(token_buf_append(out, whole));
    } else {
        struct token_buf *symbols = &scratch->symbols;
        symbols->count = 0;
        if (bpe->bytes) {
            TRY(first_symbols_of_bytes(bpe, word, len, symbols, diag));
        } else {
            TRY(first_symbols_of_text(bpe, scratch, word, len, symbols, diag));
        }
        if (symbols->count > SCAN_MAX / 2) {
            TRY(encode_long(bpe, scratch, symbols->ids, symbols->count, out));
        } else {
            TRY(merge_symbols(bpe, scratch, symbols->ids, symbols->count, out));
        }
    }
    if (keep) {
        const uint32_t *made = out->ids ? out->ids + from : NULL; /* a word may give nothing at all */
        word_cache_keep(&scratch->cache, word, len, KIND_TEXT, hash, made, out->count - from);
    }
    return STATUS_OK;
}
