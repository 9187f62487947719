#include "model/tokenizer/added_tokens.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/json_field.h"
#include "model/tokenizer/unicode_props.h"
#include "model/tokenizer/utf8.h"

struct added_token {
    char *text;
    size_t len;
    uint32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
};

/* Children are a linked list of siblings; the roots' are found by their first byte. */
struct trie_node {
    uint32_t child, sibling; /* 0 is none: node 0 is the root */
    uint32_t token;          /* index + 1; 0 when no token ends here */
    uint8_t byte;
};

struct trie {
    struct trie_node *nodes;
    size_t count, capacity;
    uint32_t roots[256];
};

struct added_tokens {
    struct added_token *tokens;
    size_t count;
    uint32_t id_end;
    uint32_t *by_id; /* [id_end], index + 1 */
    struct trie by_text;
    struct trie sets[2]; /* enum added_set */
};

static status_t trie_node_new(struct trie *trie, uint8_t byte, uint32_t *ret_node)
{
    if (trie->count == trie->capacity) {
        size_t next = trie->capacity ? trie->capacity * 2 : 64;
        struct trie_node *nodes = next < UINT32_MAX ? realloc(trie->nodes, next * sizeof *nodes) : NULL;
        if (!nodes) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
        trie->nodes = nodes;
        trie->capacity = next;
        if (trie->count == 0) { trie->count = 1; } /* number 0 stays unused */
    }
    trie->nodes[trie->count] = (struct trie_node){.byte = byte};
    *ret_node = (uint32_t)trie->count++;
    return STATUS_OK;
}

static uint32_t trie_child(const struct trie *trie, uint32_t node, uint8_t byte)
{
    uint32_t child = trie->nodes[node].child;
    while (child && trie->nodes[child].byte != byte) { child = trie->nodes[child].sibling; }
    return child;
}

/* The first to add a text keeps it. */
static status_t trie_add(struct trie *trie, const char *text, size_t len, uint32_t token)
{
    if (len == 0) { return STATUS_OK; }
    uint32_t node = trie->roots[(unsigned char)text[0]];
    if (!node) {
        TRY(trie_node_new(trie, (uint8_t)text[0], &node));
        trie->roots[(unsigned char)text[0]] = node;
    }
    for (size_t i = 1; i < len; i++) {
        uint32_t child = trie_child(trie, node, (uint8_t)text[i]);
        if (!child) {
            TRY(trie_node_new(trie, (uint8_t)text[i], &child));
            trie->nodes[child].sibling = trie->nodes[node].child;
            trie->nodes[node].child = child;
        }
        node = child;
    }
    if (!trie->nodes[node].token) { trie->nodes[node].token = token; }
    return STATUS_OK;
}

/* The longest text of the trie that starts here; 0 when there is none. */
static uint32_t trie_longest(const struct trie *trie, const char *text, size_t len, size_t *ret_len)
{
    uint32_t node = trie->roots[(unsigned char)text[0]];
    uint32_t found = 0;
    for (size_t i = 1; node; i++) {
        if (trie->nodes[node].token) { found = trie->nodes[node].token; *ret_len = i; }
        if (i == len) { break; }
        node = trie_child(trie, node, (uint8_t)text[i]);
    }
    return found;
}

static const struct added_token *find_token(const struct added_tokens *added, const char *text, size_t len)
{
    size_t found_len = 0;
    uint32_t found = len ? trie_longest(&added->by_text, text, len, &found_len) : 0;
    return found && found_len == len ? &added->tokens[found - 1] : NULL;
}

static status_t read_token(struct added_tokens *added, const json_t *entry, const struct vocab *vocab,
                           uint32_t *next_id, struct diag *diag)
{
    if (!json_is_object(entry)) {
        diag_set(diag, "must be an object");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct json_text text;
    struct added_token token = {0};
    TRY(tok_json_need_text(entry, "content", &text, diag));
    if (text.len == 0) { return STATUS_OK; }
    TRY(tok_json_bool(entry, "single_word", false, &token.single_word, diag));
    TRY(tok_json_bool(entry, "lstrip", false, &token.lstrip, diag));
    TRY(tok_json_bool(entry, "rstrip", false, &token.rstrip, diag));
    TRY(tok_json_bool(entry, "special", false, &token.special, diag));
    TRY(tok_json_bool(entry, "normalized", !token.special, &token.normalized, diag));

    struct added_token *slot = (struct added_token *)find_token(added, text.data, text.len);
    if (slot) { /* said twice: the later one's properties hold */
        token.text = slot->text;
        token.len = slot->len;
        token.id = slot->id;
        token.special = token.special || slot->special;
        *slot = token;
        return STATUS_OK;
    }
    token.id = vocab_find(vocab, text.data, text.len);
    if (token.id == VOCAB_NONE) { token.id = (*next_id)++; }
    if (token.id > VOCAB_ID_MAX) {
        diag_set(diag, "no id is left for it below %u", VOCAB_ID_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    token.len = text.len;
    token.text = malloc(text.len + 1);
    if (!token.text) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    memcpy(token.text, text.data, text.len);
    token.text[text.len] = '\0';
    added->tokens[added->count++] = token;
    if (token.id >= added->id_end) { added->id_end = token.id + 1; }
    return trie_add(&added->by_text, token.text, token.len, (uint32_t)added->count);
}

static status_t index_tokens(struct added_tokens *added, const struct normalizer *normalizer, struct diag *diag)
{
    added->by_id = calloc((size_t)added->id_end + 1, sizeof *added->by_id);
    if (!added->by_id) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    struct text_buf normal = {0};
    status_t st = STATUS_OK;
    for (size_t i = 0; i < added->count && !failed(st); i++) {
        const struct added_token *token = &added->tokens[i];
        added->by_id[token->id] = (uint32_t)i + 1;
        if (!token->normalized) {
            st = trie_add(&added->sets[ADDED_RAW], token->text, token->len, (uint32_t)i + 1);
            continue;
        }
        normal.len = 0;
        st = normalizer_apply_once(normalizer, token->text, token->len, &normal, diag);
        if (!failed(st)) { st = trie_add(&added->sets[ADDED_NORMALIZED], normal.data, normal.len, (uint32_t)i + 1); }
    }
    text_buf_fini(&normal);
    return st;
}

status_t added_tokens_create(const json_t *array, const struct vocab *vocab, const struct normalizer *normalizer,
                             struct added_tokens **ret_added, struct diag *diag)
{
    if (array && !json_is_null(array) && !json_is_array(array)) {
        diag_set(diag, "field \"added_tokens\" must be an array");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    size_t count = json_array_size(array);
    struct added_tokens *added = calloc(1, sizeof *added);
    if (!added) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    added->tokens = calloc(count + 1, sizeof *added->tokens);
    status_t st = added->tokens ? STATUS_OK : STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
    uint32_t next_id = vocab_count(vocab);
    for (size_t i = 0; i < count && !failed(st); i++) {
        st = read_token(added, json_array_get(array, i), vocab, &next_id, diag);
        if (failed(st)) { diag_prefix(diag, "added_tokens[%zu]", i); }
    }
    if (!failed(st)) { st = index_tokens(added, normalizer, diag); }
    if (failed(st)) { added_tokens_destroy(added); return st; }
    *ret_added = added;
    return STATUS_OK;
}

void added_tokens_destroy(struct added_tokens *added)
{
    if (!added) { return; }
    for (size_t i = 0; i < added->count; i++) { free(added->tokens[i].text); }
    free(added->tokens);
    free(added->by_id);
    free(added->by_text.nodes);
    free(added->sets[0].nodes);
    free(added->sets[1].nodes);
    free(added);
}

uint32_t added_tokens_find(const struct added_tokens *added, const char *text, size_t len)
{
    const struct added_token *token = find_token(added, text, len);
    return token ? token->id : VOCAB_NONE;
}

const char *added_tokens_text(const struct added_tokens *added, uint32_t id, size_t *ret_len)
{
    if (id >= added->id_end || added->by_id[id] == 0) { return NULL; }
    const struct added_token *token = &added->tokens[added->by_id[id] - 1];
    *ret_len = token->len;
    return token->text;
}

bool added_tokens_text_is_special(const struct added_tokens *added, const char *text, size_t len)
{
    const struct added_token *token = find_token(added, text, len);
    return token && token->special;
}

uint32_t added_tokens_id_end(const struct added_tokens *added) { return added->id_end; }

static bool word_ends_before(const char *text, size_t at)
{
    size_t bytes;
    return at > 0 && unicode_is_word(utf8_decode(text + utf8_last_start(text, at), &bytes));
}

static bool word_starts_at(const char *text, size_t at, size_t len)
{
    size_t bytes;
    return at < len && unicode_is_word(utf8_decode(text + at, &bytes));
}

static size_t spaces_before(const char *text, size_t at)
{
    size_t bytes;
    while (at > 0) {
        size_t start = utf8_last_start(text, at);
        if (!unicode_is_space(utf8_decode(text + start, &bytes))) { break; }
        at = start;
    }
    return at;
}

static size_t spaces_after(const char *text, size_t at, size_t len)
{
    size_t bytes;
    while (at < len && unicode_is_space(utf8_decode(text + at, &bytes))) { at += bytes; }
    return at;
}

struct added_piece added_scan_next(struct added_scan *scan)
{
    const struct trie *trie = &scan->added->sets[scan->set];
    const char *text = scan->text;
    while (trie->count > 0 && scan->search_at < scan->len) {
        size_t at = scan->search_at;
        while (at < scan->len && !trie->roots[(unsigned char)text[at]]) { at++; }
        size_t token_len = 0;
        uint32_t found = at < scan->len ? trie_longest(trie, text + at, scan->len - at, &token_len) : 0;
        if (!found) { scan->search_at = at + 1; continue; }
        const struct added_token *token = &scan->added->tokens[found - 1];
        size_t start = at, end = at + token_len;
        scan->search_at = end; /* also past a token that does not count */
        if (scan->skip_special && token->special) { continue; }
        if (token->single_word && (word_ends_before(text, start) || word_starts_at(text, end, scan->len))) { continue; }
        if (token->lstrip) {
            size_t left = spaces_before(text, start);
            start = left > scan->text_at ? left : scan->text_at; /* spaces the token before took stay with it */
        }
        if (token->rstrip) { end = spaces_after(text, end, scan->len); }
        /* The reference goes on searching inside spaces that rstrip took, and so do we. */
        struct added_piece piece = {scan->text_at, start > scan->text_at ? start : scan->text_at, token->id};
        scan->text_at = end;
        return piece;
    }
    struct added_piece last = {scan->text_at, scan->len, VOCAB_NONE};
    scan->text_at = scan->len;
    return last;
}
