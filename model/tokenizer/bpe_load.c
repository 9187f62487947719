#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/bpe_internal.h"
#include "model/tokenizer/json_field.h"
#include "model/tokenizer/utf8.h"

static status_t copy_affix(const json_t *model, const char *name, char **ret_affix, struct diag *diag)
{
    struct json_text text;
    TRY(tok_json_text(model, name, &text, diag));
    if (!text.data || text.len == 0) { return STATUS_OK; }
    *ret_affix = strndup(text.data, text.len);
    return *ret_affix ? STATUS_OK : STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
}

bool bpe_takes_bytes(const json_t *model)
{
    return json_string_length(json_object_get(model, "continuing_subword_prefix")) == 0 &&
           json_string_length(json_object_get(model, "end_of_word_suffix")) == 0;
}

static status_t read_options(struct bpe *bpe, const json_t *model, struct diag *diag)
{
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) && !(json_is_number(dropout) && json_number_value(dropout) == 0.0)) {
        diag_set(diag, "field \"dropout\" must be null: with dropout the same text gets other ids every time");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    TRY(tok_json_bool(model, "fuse_unk", false, &bpe->fuse_unk, diag));
    TRY(tok_json_bool(model, "byte_fallback", false, &bpe->byte_fallback, diag));
    TRY(tok_json_bool(model, "ignore_merges", false, &bpe->ignore_merges, diag));
    TRY(copy_affix(model, "continuing_subword_prefix", &bpe->prefix, diag));
    TRY(copy_affix(model, "end_of_word_suffix", &bpe->suffix, diag));
    struct json_text unk;
    TRY(tok_json_text(model, "unk_token", &unk, diag));
    bpe->has_unk = unk.data != NULL;
    bpe->unk_id = unk.data ? vocab_find(bpe->vocab, unk.data, unk.len) : VOCAB_NONE;
    return STATUS_OK;
}

static status_t fill_first_symbols(struct bpe *bpe)
{
    bpe->characters = malloc(BPE_CHARACTERS * sizeof *bpe->characters);
    if (!bpe->characters) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    memset(bpe->characters, 0xff, BPE_CHARACTERS * sizeof *bpe->characters); /* VOCAB_NONE */
    for (uint32_t id = 0; id < vocab_id_end(bpe->vocab); id++) {
        size_t len, bytes;
        const char *text = vocab_text(bpe->vocab, id, &len);
        if (!text || len == 0 || len > 3 || utf8_char_bytes((unsigned char)text[0]) != len) { continue; }
        uint32_t code = utf8_decode(text, &bytes);
        /* Two tokens cannot be spelled the same, but two spellings may share an id. */
        if (code < BPE_CHARACTERS) { bpe->characters[code] = vocab_find(bpe->vocab, text, len); }
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        int len = snprintf(name, sizeof name, "<0x%02X>", byte);
        bpe->byte_token[byte] = vocab_find(bpe->vocab, name, (size_t)len);
        bpe->alphabet[byte] = bpe->characters[byte_alphabet_code((uint8_t)byte)];
    }
    return STATUS_OK;
}

/* Where the two halves of one merge entry are: ["a", "b"] or "a b". */
static bool split_merge(const json_t *entry, struct json_text *ret_left, struct json_text *ret_right)
{
    if (json_is_array(entry)) {
        const json_t *left = json_array_get(entry, 0), *right = json_array_get(entry, 1);
        if (json_array_size(entry) != 2 || !json_is_string(left) || !json_is_string(right)) { return false; }
        *ret_left = (struct json_text){json_string_value(left), json_string_length(left)};
        *ret_right = (struct json_text){json_string_value(right), json_string_length(right)};
        return true;
    }
    if (!json_is_string(entry)) { return false; }
    const char *text = json_string_value(entry);
    size_t len = json_string_length(entry);
    const char *space = memchr(text, ' ', len);
    if (!space || memchr(space + 1, ' ', len - (size_t)(space + 1 - text))) { return false; }
    *ret_left = (struct json_text){text, (size_t)(space - text)};
    *ret_right = (struct json_text){space + 1, len - ret_left->len - 1};
    return true;
}

static status_t unknown_token(size_t rank, struct json_text text, struct diag *diag)
{
    diag_set(diag, "merge %zu needs the token \"%.*s\", which is not in the vocabulary", rank,
             (int)(text.len > 80 ? 80 : text.len), text.data);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

struct rule {
    uint32_t left, right, id;
};

static status_t read_rule(const struct bpe *bpe, const json_t *entry, size_t rank, struct text_buf *joined,
                          struct rule *ret_rule, struct diag *diag)
{
    struct json_text left, right;
    if (!split_merge(entry, &left, &right)) {
        diag_set(diag, "merge %zu must be two tokens, as \"a b\" or [\"a\", \"b\"]", rank);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    ret_rule->left = vocab_find(bpe->vocab, left.data, left.len);
    ret_rule->right = vocab_find(bpe->vocab, right.data, right.len);
    if (ret_rule->left == VOCAB_NONE) { return unknown_token(rank, left, diag); }
    if (ret_rule->right == VOCAB_NONE) { return unknown_token(rank, right, diag); }
    size_t skip = bpe->prefix ? strlen(bpe->prefix) : 0; /* the right half's prefix is not spelled inside a token */
    if (skip > right.len) { return unknown_token(rank, right, diag); }
    joined->len = 0;
    TRY(text_buf_append(joined, left.data, left.len));
    TRY(text_buf_append(joined, right.data + skip, right.len - skip));
    ret_rule->id = vocab_find(bpe->vocab, joined->data ? joined->data : "", joined->len);
    if (ret_rule->id == VOCAB_NONE) { return unknown_token(rank, (struct json_text){joined->data, joined->len}, diag); }
    return STATUS_OK;
}

/* Notes which first symbols every token starts and ends with, and from that the bridges.
 * Gives up, which costs speed alone, when a token has two spellings in first symbols. */
static status_t find_bridges(struct bpe *bpe, const struct rule *rules, size_t count)
{
    uint32_t ids = vocab_id_end(bpe->vocab);
    if (bpe->prefix || bpe->suffix || count == 0) { return STATUS_OK; }
    uint32_t *first = malloc(((size_t)ids + 1) * sizeof *first);
    uint32_t *last = malloc(((size_t)ids + 1) * sizeof *last);
    status_t st = STATUS_OK;
    if (!first || !last) { st = STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); goto out; }
    for (uint32_t id = 0; id < ids; id++) { first[id] = last[id] = id; }
    for (size_t i = 0; i < count; i++) { first[rules[i].id] = last[rules[i].id] = VOCAB_NONE; }
    /* A rule comes after the rules of its halves in every trained file, so that one pass is
     * enough; a second and third are for files that were sorted. */
    bool settled = false;
    for (unsigned pass = 0; pass < 3 && !settled; pass++) {
        settled = true;
        for (size_t i = 0; i < count; i++) {
            const struct rule *rule = &rules[i];
            uint32_t from = first[rule->left], to = last[rule->right];
            if (from == VOCAB_NONE || to == VOCAB_NONE) { settled = false; continue; }
            if (first[rule->id] == VOCAB_NONE) { settled = settled && pass == 0; }
            if ((first[rule->id] != VOCAB_NONE && first[rule->id] != from) ||
                (last[rule->id] != VOCAB_NONE && last[rule->id] != to)) {
                goto out;
            }
            first[rule->id] = from;
            last[rule->id] = to;
        }
    }
    /* What a word may start out as must not be a token that merges also make. */
    bool mixed = false;
    for (uint32_t code = 0; code < BPE_CHARACTERS; code++) {
        uint32_t id = bpe->characters[code];
        mixed = mixed || (id != VOCAB_NONE && first[id] != id);
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t id = bpe->byte_token[byte];
        mixed = mixed || (id != VOCAB_NONE && first[id] != id);
    }
    mixed = mixed || (bpe->unk_id != VOCAB_NONE && first[bpe->unk_id] != bpe->unk_id);
    for (uint32_t id = 0; id < ids && !mixed; id++) { /* characters beyond the table */
        size_t len;
        const char *text = vocab_text(bpe->vocab, id, &len);
        mixed = text && len == 4 && ((unsigned char)text[0] & 0xf8) == 0xf0 && first[id] != id;
    }
    if (!settled || mixed) { goto out; }
    st = merge_table_init(&bpe->bridges, count);
    if (failed(st)) { goto out; }
    for (size_t i = 0; i < count; i++) {
        merge_table_add(&bpe->bridges, last[rules[i].left], first[rules[i].right], 0, 0);
    }
    bpe->has_bridges = true;
out:
    free(first);
    free(last);
    return st;
}

static status_t read_merges(struct bpe *bpe, const json_t *merges, struct diag *diag)
{
    if (!json_is_array(merges)) {
        diag_set(diag, "field \"merges\" must be an array");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    size_t count = json_array_size(merges), rank = 0;
    TRY(merge_table_init(&bpe->merges, count));
    struct rule *rules = malloc((count + 1) * sizeof *rules);
    struct text_buf joined = {0};
    status_t st = rules ? STATUS_OK : STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
    for (size_t i = 0; i < count && !failed(st); i++) {
        const json_t *entry = json_array_get(merges, i);
        /* The first line of a merges.txt, which some files carry along. */
        if (json_is_string(entry) && strncmp(json_string_value(entry), "#version", 8) == 0) { continue; }
        st = read_rule(bpe, entry, rank, &joined, &rules[rank], diag);
        if (!failed(st)) {
            merge_table_add(&bpe->merges, rules[rank].left, rules[rank].right, (uint32_t)rank, rules[rank].id);
            rank++;
        }
    }
    if (!failed(st)) { st = find_bridges(bpe, rules, rank); }
    text_buf_fini(&joined);
    free(rules);
    return st;
}

status_t bpe_create(const json_t *model, const struct json_nul *nul, bool bytes, struct bpe **ret_bpe,
                    struct diag *diag)
{
    struct bpe *bpe = calloc(1, sizeof *bpe);
    if (!bpe) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    bpe->bytes = bytes;
    status_t st = vocab_create(json_object_get(model, "vocab"), nul, &bpe->vocab, diag);
    if (!failed(st)) { st = read_options(bpe, model, diag); }
    if (!failed(st)) { st = fill_first_symbols(bpe); }
    if (!failed(st)) { st = read_merges(bpe, json_object_get(model, "merges"), diag); }
    if (failed(st)) { bpe_destroy(bpe); return st; }
    *ret_bpe = bpe;
    return STATUS_OK;
}

void bpe_destroy(struct bpe *bpe)
{
    if (!bpe) { return; }
    vocab_destroy(bpe->vocab);
    merge_table_fini(&bpe->merges);
    merge_table_fini(&bpe->bridges);
    free(bpe->prefix);
    free(bpe->suffix);
    free(bpe->characters);
    free(bpe);
}

const struct vocab *bpe_vocab(const struct bpe *bpe) { return bpe->vocab; }
