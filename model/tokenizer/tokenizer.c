#include "model/tokenizer/tokenizer.h"

#include <string.h>

#include "model/tokenizer/detokenizer.h"
#include "model/tokenizer/tokenizer_internal.h"
#include "model/tokenizer/utf8.h"

/* What one encode needs and gives back. */
struct encode {
    const struct tokenizer *tokenizer;
    struct normalizer_scratch *normalizer;
    struct pre_tokenizer_scratch *pre;
    struct bpe_scratch *bpe;
    struct token_buf *ids;
    bool skip_special;
};

static status_t encode_begin(struct encode *encode, size_t len)
{
    TRY(normalizer_scratch_create(encode->tokenizer->normalizer, &encode->normalizer));
    TRY(pre_tokenizer_scratch_create(encode->tokenizer->pre, &encode->pre));
    return bpe_scratch_create(encode->tokenizer->bpe, len, &encode->bpe);
}

static void encode_end(struct encode *encode)
{
    normalizer_scratch_destroy(encode->normalizer);
    pre_tokenizer_scratch_destroy(encode->pre);
    bpe_scratch_destroy(encode->bpe);
}

static status_t take_word(void *context, const char *word, size_t len, struct diag *diag)
{
    struct encode *encode = context;
    return bpe_encode(encode->tokenizer->bpe, encode->bpe, word, len, encode->ids, diag);
}

/* A stretch between tokens that were found in the raw text. */
static status_t encode_stretch(struct encode *encode, const char *text, size_t len, bool at_start, struct diag *diag)
{
    const struct tokenizer *tokenizer = encode->tokenizer;
    bool cut_left;
    TRY(normalizer_apply(tokenizer->normalizer, encode->normalizer, text, len, &text, &len, &cut_left, diag));
    struct added_scan scan = {.added = tokenizer->added, .text = text, .len = len, .set = ADDED_NORMALIZED,
                              .skip_special = encode->skip_special};
    for (;;) {
        struct added_piece piece = added_scan_next(&scan);
        if (piece.start < piece.end) {
            TRY(pre_tokenizer_run(tokenizer->pre, encode->pre, text + piece.start, piece.end - piece.start,
                                  at_start && !cut_left && piece.start == 0, take_word, encode, diag));
        }
        if (piece.id == VOCAB_NONE) { return STATUS_OK; }
        TRY(token_buf_append(encode->ids, piece.id));
    }
}

static status_t encode_text(struct encode *encode, const char *text, size_t len, struct diag *diag)
{
    struct added_scan scan = {.added = encode->tokenizer->added, .text = text, .len = len, .set = ADDED_RAW,
                              .skip_special = encode->skip_special};
    for (;;) {
        struct added_piece piece = added_scan_next(&scan);
        if (piece.start < piece.end) {
            TRY(encode_stretch(encode, text + piece.start, piece.end - piece.start, piece.start == 0, diag));
        }
        if (piece.id == VOCAB_NONE) { return STATUS_OK; }
        TRY(token_buf_append(encode->ids, piece.id));
    }
}

static status_t append_all(struct token_buf *ids, const struct token_buf *more)
{
    for (size_t i = 0; i < more->count; i++) { TRY(token_buf_append(ids, more->ids[i])); }
    return STATUS_OK;
}

status_t tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len,
                          struct encode_options options, struct token_buf *ids, struct diag *diag)
{
    size_t valid = utf8_valid_prefix(text, len);
    if (valid != len) {
        diag_set(diag, "the text is not UTF-8 at byte %zu (0x%02x)", valid, (unsigned)(unsigned char)text[valid]);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    struct encode encode = {.tokenizer = tokenizer, .ids = ids, .skip_special = !options.parse_special};
    size_t count = ids->count;
    status_t st = options.add_special ? append_all(ids, &tokenizer->post.before) : STATUS_OK;
    if (!failed(st) && len > 0) {
        st = encode_begin(&encode, len);
        if (!failed(st)) { st = encode_text(&encode, text, len, diag); }
        encode_end(&encode);
    }
    if (!failed(st) && options.add_special) { st = append_all(ids, &tokenizer->post.after); }
    if (failed(st)) { ids->count = count; }
    return st;
}

status_t tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, size_t count, bool skip_special,
                          struct text_buf *out)
{
    struct detokenizer *detokenizer = NULL;
    size_t len = out->len;
    TRY(detokenizer_create(tokenizer, skip_special, &detokenizer));
    status_t st = STATUS_OK;
    for (size_t i = 0; i < count && !failed(st); i++) { st = detokenizer_push(detokenizer, ids[i], out); }
    if (!failed(st)) { st = detokenizer_flush(detokenizer, out); }
    detokenizer_destroy(detokenizer);
    if (failed(st)) { out->len = len; }
    return st;
}

uint32_t tokenizer_vocab_size(const struct tokenizer *tokenizer) { return tokenizer->vocab_size; }

uint32_t tokenizer_id_end(const struct tokenizer *tokenizer) { return tokenizer->id_end; }

const char *tokenizer_token_spelling(const struct tokenizer *tokenizer, uint32_t id, size_t *ret_len)
{
    const char *added = added_tokens_text(tokenizer->added, id, ret_len);
    return added ? added : vocab_text(bpe_vocab(tokenizer->bpe), id, ret_len);
}

static status_t text_of_byte_alphabet(const char *spelling, size_t len, struct text_buf *out)
{
    size_t from = out->len;
    for (size_t at = 0, bytes; at < len; at += bytes) {
        int byte = byte_alphabet_byte(utf8_decode(spelling + at, &bytes));
        if (byte < 0) { /* one foreign letter and the whole token is text */
            out->len = from;
            return text_buf_append(out, spelling, len);
        }
        char c = (char)byte;
        TRY(text_buf_append(out, &c, 1));
    }
    return STATUS_OK;
}

status_t tokenizer_token_text(const struct tokenizer *tokenizer, uint32_t id, struct text_buf *out)
{
    size_t len;
    const char *spelling = added_tokens_text(tokenizer->added, id, &len);
    if (spelling) { return text_buf_append(out, spelling, len); }
    spelling = vocab_text(bpe_vocab(tokenizer->bpe), id, &len);
    if (!spelling) { return STATUS_OK; }
    if (tokenizer->byte_alphabet) { return text_of_byte_alphabet(spelling, len, out); }
    if (tokenizer->byte_fallback && len == 6 && memcmp(spelling, "<0x", 3) == 0 && spelling[5] == '>') {
        unsigned value = 0;
        for (size_t i = 3; i < 5; i++) {
            const char *digits = "0123456789ABCDEF", *digit = strchr(digits, spelling[i]);
            if (!digit || !*digit) { return text_buf_append(out, spelling, len); }
            value = value * 16 + (unsigned)(digit - digits);
        }
        char byte = (char)value;
        return text_buf_append(out, &byte, 1);
    }
    size_t letter = strlen(tokenizer->metaspace);
    for (size_t at = 0, bytes; at < len; at += bytes) {
        bytes = utf8_char_bytes((unsigned char)spelling[at]);
        bool space = letter > 0 && bytes == letter && memcmp(spelling + at, tokenizer->metaspace, letter) == 0;
        TRY(text_buf_append(out, space ? " " : spelling + at, space ? 1 : bytes));
    }
    return STATUS_OK;
}

uint32_t tokenizer_token_id(const struct tokenizer *tokenizer, const char *spelling, size_t len)
{
    uint32_t id = added_tokens_find(tokenizer->added, spelling, len);
    if (id == VOCAB_NONE) { id = vocab_find(bpe_vocab(tokenizer->bpe), spelling, len); }
    return id; /* VOCAB_NONE is TOKENIZER_NO_ID */
}

_Static_assert(VOCAB_NONE == TOKENIZER_NO_ID, "tokenizer_token_id hands one on as the other");

bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id)
{
    return id < tokenizer->id_end && tokenizer->special[id];
}

const char *tokenizer_role_text(const struct tokenizer *tokenizer, enum tokenizer_role role)
{
    switch (role) {
    case TOKENIZER_BOS: return tokenizer->config.bos_token;
    case TOKENIZER_EOS: return tokenizer->config.eos_token;
    case TOKENIZER_PAD: return tokenizer->config.pad_token;
    case TOKENIZER_UNK: return tokenizer->config.unk_token;
    }
    return NULL;
}

uint32_t tokenizer_role_id(const struct tokenizer *tokenizer, enum tokenizer_role role)
{
    return (unsigned)role < 4 ? tokenizer->role_ids[role] : TOKENIZER_NO_ID;
}

size_t tokenizer_chat_template_count(const struct tokenizer *tokenizer) { return tokenizer->config.template_count; }

const char *tokenizer_chat_template_name(const struct tokenizer *tokenizer, size_t index)
{
    return index < tokenizer->config.template_count ? tokenizer->config.templates[index].name : NULL;
}

const char *tokenizer_chat_template(const struct tokenizer *tokenizer, const char *name)
{
    const struct tokenizer_config *config = &tokenizer->config;
    for (size_t i = 0; i < config->template_count; i++) {
        if (strcmp(config->templates[i].name, name ? name : "default") == 0) { return config->templates[i].text; }
    }
    return !name && config->template_count == 1 ? config->templates[0].text : NULL;
}
