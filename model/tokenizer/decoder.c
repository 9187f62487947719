#include "model/tokenizer/decoder.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/json_field.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/utf8.h"

#define STAGES_MAX 32
#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* The reference passes a list of strings from stage to stage. Here a stage sees the list as it
 * grows: pieces of a string, and where a string ends. Only a stage that joins strings (Fuse,
 * ByteLevel) hands on pieces before the string has ended. */
enum stage_kind {
    STAGE_BYTE_LEVEL,
    STAGE_BYTE_FALLBACK,
    STAGE_METASPACE,
    STAGE_FUSE,
    STAGE_STRIP,
    STAGE_REPLACE,
    STAGE_BPE,
    STAGE_WORD_PIECE,
    STAGE_JOIN,
};

struct stage {
    enum stage_kind kind;
    char letter[4]; /* STAGE_METASPACE, STAGE_STRIP */
    size_t letter_len;
    bool drop_first;         /* STAGE_METASPACE: a leading letter is no space */
    size_t left, right;      /* STAGE_STRIP: at most so many letters */
    bool clean;              /* STAGE_WORD_PIECE */
    struct regex *regex;     /* STAGE_REPLACE */
    bool literal;
    char *text, *content;    /* STAGE_REPLACE; text: STAGE_BPE's suffix, STAGE_WORD_PIECE's prefix */
    size_t text_len, content_len;
};

struct decoder {
    struct stage stages[STAGES_MAX];
    size_t count;
};

struct stage_state {
    struct text_buf held; /* of the string at hand, or the string before it */
    struct text_buf made;
    struct regex_scratch *regex;
    size_t number;        /* of the string at hand in its list */
    size_t letters;       /* STAGE_STRIP: seen at its start; SIZE_MAX once another character came */
    bool open;            /* pieces of a string came and its end did not */
    bool broken;          /* STAGE_BYTE_FALLBACK: the run can never be UTF-8 */
    bool has_held;
};

struct decoder_state {
    const struct decoder *decoder;
    struct text_buf *out;
    struct stage_state stages[STAGES_MAX];
};

/* ---- loading ---- */

static status_t copy_text(struct json_text text, char **ret_text, size_t *ret_len)
{
    *ret_text = malloc(text.len + 1);
    if (!*ret_text) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    memcpy(*ret_text, text.data, text.len);
    (*ret_text)[text.len] = '\0';
    *ret_len = text.len;
    return STATUS_OK;
}

static status_t read_letter(const json_t *json, const char *field, struct stage *stage, struct diag *diag)
{
    struct json_text text;
    TRY(tok_json_need_text(json, field, &text, diag));
    if (text.len == 0 || text.len > 4 || utf8_char_bytes((unsigned char)text.data[0]) != text.len) {
        diag_set(diag, "field \"%s\" must be one character", field);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    memcpy(stage->letter, text.data, text.len);
    stage->letter_len = text.len;
    return STATUS_OK;
}

static status_t read_metaspace(const json_t *json, struct stage *stage, struct diag *diag)
{
    struct json_text scheme;
    bool prefix;
    TRY(read_letter(json, "replacement", stage, diag));
    TRY(tok_json_text(json, "prepend_scheme", &scheme, diag));
    TRY(tok_json_bool(json, "add_prefix_space", true, &prefix, diag));
    stage->drop_first = prefix && !(scheme.data && strcmp(scheme.data, "never") == 0);
    return STATUS_OK;
}

static status_t read_strip(const json_t *json, struct stage *stage, struct diag *diag)
{
    TRY(read_letter(json, "content", stage, diag));
    TRY(tok_json_size(json, "start", 0, &stage->left, diag));
    return tok_json_size(json, "stop", 0, &stage->right, diag);
}

static status_t read_replace(const json_t *json, struct stage *stage, struct diag *diag)
{
    struct pattern_json pattern;
    struct json_text content;
    TRY(pattern_read(json_object_get(json, "pattern"), &pattern, diag));
    TRY(tok_json_need_text(json, "content", &content, diag));
    TRY(regex_create(pattern.text.data, pattern.text.len, pattern.literal, &stage->regex, diag));
    stage->literal = pattern.literal && pattern.text.len > 0;
    TRY(copy_text(pattern.text, &stage->text, &stage->text_len));
    return copy_text(content, &stage->content, &stage->content_len);
}

static status_t read_affix(const json_t *json, const char *field, const char *otherwise, struct stage *stage,
                           struct diag *diag)
{
    struct json_text text;
    TRY(tok_json_text(json, field, &text, diag));
    if (!text.data) { text = (struct json_text){otherwise, strlen(otherwise)}; }
    return copy_text(text, &stage->text, &stage->text_len);
}

static status_t read_stage(struct decoder *decoder, const json_t *json, unsigned depth, struct diag *diag)
{
    static const struct { const char *name; enum stage_kind kind; } kinds[] = {
        {"ByteLevel", STAGE_BYTE_LEVEL}, {"ByteFallback", STAGE_BYTE_FALLBACK}, {"Metaspace", STAGE_METASPACE},
        {"Fuse", STAGE_FUSE}, {"Strip", STAGE_STRIP}, {"Replace", STAGE_REPLACE}, {"BPEDecoder", STAGE_BPE},
        {"WordPiece", STAGE_WORD_PIECE},
    };
    const char *type = tok_json_type_name(json);
    if (!type) {
        diag_set(diag, "the decoder must be an object with a field \"type\"");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(json, "decoders");
        if (!json_is_array(list) || depth > 8) {
            diag_set(diag, "a decoder Sequence needs an array \"decoders\", nested at most 8 deep");
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
        for (size_t i = 0; i < json_array_size(list); i++) {
            TRY(read_stage(decoder, json_array_get(list, i), depth + 1, diag));
        }
        return STATUS_OK;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(type, kinds[i].name) != 0) { continue; }
        if (decoder->count == STAGES_MAX) {
            diag_set(diag, "more than %d decoders", STAGES_MAX);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
        struct stage *stage = &decoder->stages[decoder->count++];
        stage->kind = kinds[i].kind;
        switch (stage->kind) {
        case STAGE_METASPACE: return read_metaspace(json, stage, diag);
        case STAGE_STRIP: return read_strip(json, stage, diag);
        case STAGE_REPLACE: return read_replace(json, stage, diag);
        case STAGE_BPE: return read_affix(json, "suffix", "</w>", stage, diag);
        case STAGE_WORD_PIECE:
            TRY(tok_json_bool(json, "cleanup", true, &stage->clean, diag));
            return read_affix(json, "prefix", "##", stage, diag);
        default: return STATUS_OK;
        }
    }
    diag_set(diag, "the decoder \"%.60s\" is not supported; known are ByteLevel, ByteFallback, Metaspace, Fuse, Strip, "
                   "Replace, BPEDecoder, WordPiece and Sequence", type);
    return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
}

status_t decoder_create(const json_t *json, struct decoder **ret_decoder, struct diag *diag)
{
    struct decoder *decoder = calloc(1, sizeof *decoder);
    if (!decoder) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    if (!json || json_is_null(json)) {
        decoder->stages[decoder->count++].kind = STAGE_JOIN;
    } else {
        status_t st = read_stage(decoder, json, 0, diag);
        if (failed(st)) { decoder_destroy(decoder); return st; }
    }
    *ret_decoder = decoder;
    return STATUS_OK;
}

void decoder_destroy(struct decoder *decoder)
{
    if (!decoder) { return; }
    for (size_t i = 0; i < STAGES_MAX; i++) {
        regex_destroy(decoder->stages[i].regex);
        free(decoder->stages[i].text);
        free(decoder->stages[i].content);
    }
    free(decoder);
}

status_t decoder_state_create(const struct decoder *decoder, struct decoder_state **ret_state)
{
    struct decoder_state *state = calloc(1, sizeof *state);
    if (!state) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    state->decoder = decoder;
    for (size_t i = 0; i < decoder->count; i++) {
        if (!decoder->stages[i].regex) { continue; }
        status_t st = regex_scratch_create(decoder->stages[i].regex, &state->stages[i].regex);
        if (failed(st)) { decoder_state_destroy(state); return st; }
    }
    *ret_state = state;
    return STATUS_OK;
}

void decoder_state_destroy(struct decoder_state *state)
{
    if (!state) { return; }
    for (size_t i = 0; i < STAGES_MAX; i++) {
        text_buf_fini(&state->stages[i].held);
        text_buf_fini(&state->stages[i].made);
        regex_scratch_destroy(state->stages[i].regex);
    }
    free(state);
}

/* ---- stages ---- */

/* Gives a piece of a string to stage `at`; `ends`: the string ends with it. */
static status_t feed(struct decoder_state *state, size_t at, const char *piece, size_t len, bool ends);

static status_t feed_string(struct decoder_state *state, size_t at, const char *piece, size_t len)
{
    return feed(state, at, piece, len, true);
}

/* Bytes to text as they come: broken ones become U+FFFD, one for each maximal subpart, and the
 * start of a character waits for its rest. */
static status_t bytes_to_text(struct decoder_state *state, size_t at, const char *bytes, size_t len, bool last)
{
    struct stage_state *stage = &state->stages[at];
    struct text_buf *held = &stage->held, *made = &stage->made;
    if (held->len > 0) { /* at most three bytes wait: join them and the new ones */
        TRY(text_buf_append(held, bytes, len));
        bytes = held->data;
        len = held->len;
    }
    made->len = 0;
    size_t from = 0, rest = 0;
    while (from < len) {
        size_t good = utf8_valid_prefix(bytes + from, len - from), bad;
        TRY(text_buf_append(made, bytes + from, good));
        from += good;
        if (from == len) { break; }
        if (utf8_read(bytes + from, len - from, &bad) == UTF8_UNFINISHED && !last) { rest = bad; break; }
        TRY(text_buf_append(made, REPLACEMENT, 3));
        from += bad;
    }
    char waiting[4];
    memcpy(waiting, rest ? bytes + from : "", rest);
    held->len = 0;
    TRY(text_buf_append(held, waiting, rest));
    return feed(state, at + 1, made->data ? made->data : "", made->len, last);
}

/* A token in the byte alphabet gives its bytes; any other, such as an added one, is text. */
static status_t byte_level(struct decoder_state *state, size_t at, const char *token, size_t len)
{
    char stack[256];
    struct text_buf heap = {0};
    char *bytes = stack;
    status_t st = STATUS_OK;
    if (len > sizeof stack) {
        st = text_buf_reserve(&heap, len);
        bytes = heap.data;
    }
    size_t count = 0;
    for (size_t i = 0, step; i < len && !failed(st); i += step) {
        int byte = byte_alphabet_byte(utf8_decode(token + i, &step));
        if (byte < 0) { break; }
        bytes[count++] = (char)byte;
        if (i + step == len) { st = bytes_to_text(state, at, bytes, count, false); goto out; }
    }
    if (!failed(st) && len > 0) { st = bytes_to_text(state, at, token, len, false); }
out:
    text_buf_fini(&heap);
    return st;
}

/* -1 when the token is no <0xXX>. Rust's from_str_radix, which reads it there, takes a plus. */
static int fallback_byte(const char *token, size_t len)
{
    if (len != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>') { return -1; }
    int value = 0;
    for (size_t i = 3; i < 5; i++) {
        char c = token[i];
        if (i == 3 && c == '+') { continue; }
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) { return -1; }
        value = value * 16 + digit;
    }
    return value;
}

static status_t feed_broken(struct decoder_state *state, size_t at, size_t count)
{
    for (size_t i = 0; i < count; i++) { TRY(feed_string(state, at + 1, REPLACEMENT, 3)); }
    return STATUS_OK;
}

/* The end of a run of byte tokens: its text when all of it is UTF-8, else a U+FFFD per byte. */
static status_t end_byte_run(struct decoder_state *state, size_t at)
{
    struct stage_state *stage = &state->stages[at];
    struct text_buf *run = &stage->held;
    size_t len = run->len;
    stage->broken = false;
    run->len = 0;
    if (len == 0) { return STATUS_OK; }
    if (utf8_valid_prefix(run->data, len) == len) { return feed_string(state, at + 1, run->data, len); }
    return feed_broken(state, at, len);
}

/* Nothing of a run is final before its end, since one bad byte spoils all of it; once it is
 * spoilt every byte is. */
static status_t byte_fallback(struct decoder_state *state, size_t at, const char *token, size_t len)
{
    struct stage_state *stage = &state->stages[at];
    struct text_buf *run = &stage->held;
    int byte = fallback_byte(token, len);
    if (byte < 0) {
        TRY(end_byte_run(state, at));
        return feed_string(state, at + 1, token, len);
    }
    if (stage->broken) { return feed_broken(state, at, 1); }
    char c = (char)byte;
    TRY(text_buf_append(run, &c, 1));
    /* The start was checked before; only the last character can have broken it. */
    size_t start = run->len > 4 ? run->len - 4 : 0, bytes;
    while (start > 0 && ((unsigned char)run->data[start] & 0xc0) == 0x80) { start--; }
    for (; start < run->len; start += bytes) {
        if (utf8_read(run->data + start, run->len - start, &bytes) != UTF8_BROKEN) { continue; }
        size_t count = run->len;
        run->len = 0;
        stage->broken = true;
        return feed_broken(state, at, count);
    }
    return STATUS_OK;
}

static status_t metaspace(struct decoder_state *state, size_t at, const char *piece, size_t len, bool ends)
{
    const struct stage *stage = &state->decoder->stages[at];
    struct stage_state *mine = &state->stages[at];
    struct text_buf *made = &mine->made;
    made->len = 0;
    bool drop = stage->drop_first && mine->number == 0; /* every letter of the first string */
    for (size_t i = 0, bytes; i < len; i += bytes) {
        bytes = utf8_char_bytes((unsigned char)piece[i]);
        if (bytes != stage->letter_len || memcmp(piece + i, stage->letter, bytes) != 0) {
            TRY(text_buf_append(made, piece + i, bytes));
        } else if (!drop) {
            TRY(text_buf_append(made, " ", 1));
        }
    }
    if (ends) { mine->number++; }
    return feed(state, at + 1, made->data ? made->data : "", made->len, ends);
}

/* Letters at the start are counted off; letters that may turn out to be at the end are held. */
static status_t strip(struct decoder_state *state, size_t at, const char *piece, size_t len, bool ends)
{
    const struct stage *stage = &state->decoder->stages[at];
    struct stage_state *mine = &state->stages[at];
    while (len > 0 && mine->letters != SIZE_MAX) {
        bool letter = len >= stage->letter_len && memcmp(piece, stage->letter, stage->letter_len) == 0;
        if (!letter || mine->letters == stage->left) { mine->letters = SIZE_MAX; break; }
        mine->letters++;
        piece += stage->letter_len;
        len -= stage->letter_len;
    }
    struct text_buf *held = &mine->held, *made = &mine->made;
    size_t keep = len, trailing = 0;
    while (trailing < stage->right && keep >= stage->letter_len &&
           memcmp(piece + keep - stage->letter_len, stage->letter, stage->letter_len) == 0) {
        keep -= stage->letter_len;
        trailing++;
    }
    made->len = 0;
    if (keep > 0) { /* what was held is followed by something, so it stays */
        TRY(text_buf_append(made, held->data, held->len));
        held->len = 0;
    }
    TRY(text_buf_append(made, piece, keep));
    TRY(text_buf_append(held, piece + keep, len - keep));
    size_t most = stage->right * stage->letter_len;
    if (held->len > most) { /* only the last ones go */
        size_t sure = held->len - most;
        TRY(text_buf_append(made, held->data, sure));
        memmove(held->data, held->data + sure, most);
        held->len = most;
    }
    if (ends) {
        held->len = 0;
        mine->letters = 0;
    }
    return feed(state, at + 1, made->data ? made->data : "", made->len, ends);
}

static status_t replace_string(struct decoder_state *state, size_t at, const char *text, size_t len)
{
    const struct stage *stage = &state->decoder->stages[at];
    struct stage_state *mine = &state->stages[at];
    mine->made.len = 0;
    size_t from = 0;
    TRY(regex_start(mine->regex, stage->regex, text, len));
    for (;;) {
        bool found;
        size_t start = 0, end = 0;
        TRY(regex_next(mine->regex, &found, &start, &end, NULL));
        if (!found) { break; }
        TRY(text_buf_append(&mine->made, text + from, start - from));
        TRY(text_buf_append(&mine->made, stage->content, stage->content_len));
        from = end;
    }
    TRY(text_buf_append(&mine->made, text + from, len - from));
    return feed_string(state, at + 1, mine->made.data ? mine->made.data : "", mine->made.len);
}

/* A literal in a string that is still growing: what may be the start of one waits. */
static status_t replace_growing(struct decoder_state *state, size_t at, const char *piece, size_t len, bool ends)
{
    const struct stage *stage = &state->decoder->stages[at];
    struct stage_state *mine = &state->stages[at];
    struct text_buf *held = &mine->held, *made = &mine->made;
    TRY(text_buf_append(held, piece, len));
    made->len = 0;
    size_t from = 0;
    while (from < held->len) {
        const char *hit = memmem(held->data + from, held->len - from, stage->text, stage->text_len);
        if (!hit) { break; }
        size_t start = (size_t)(hit - held->data);
        TRY(text_buf_append(made, held->data + from, start - from));
        TRY(text_buf_append(made, stage->content, stage->content_len));
        from = start + stage->text_len;
    }
    size_t wait = ends ? 0 : stage->text_len - 1;
    if (wait > held->len - from) { wait = held->len - from; }
    while (wait > 0 && memcmp(held->data + held->len - wait, stage->text, wait) != 0) { wait--; }
    TRY(text_buf_append(made, held->data ? held->data + from : "", held->len - wait - from));
    if (wait > 0) { memmove(held->data, held->data + held->len - wait, wait); }
    held->len = wait;
    return feed(state, at + 1, made->data ? made->data : "", made->len, ends);
}

static status_t append_replaced(struct text_buf *out, const char *text, size_t len, const char *what, size_t what_len,
                                const char *with)
{
    while (len > 0) {
        const char *hit = what_len ? memmem(text, len, what, what_len) : NULL;
        size_t before = hit ? (size_t)(hit - text) : len;
        TRY(text_buf_append(out, text, before));
        if (!hit) { break; }
        TRY(text_buf_append(out, with, strlen(with)));
        text += before + what_len;
        len -= before + what_len;
    }
    return STATUS_OK;
}

/* The suffix is a space inside a text and nothing at its end: a string waits for the next. */
static status_t bpe_release(struct decoder_state *state, size_t at, bool is_last)
{
    const struct stage *stage = &state->decoder->stages[at];
    struct stage_state *mine = &state->stages[at];
    mine->made.len = 0;
    TRY(append_replaced(&mine->made, mine->held.data ? mine->held.data : "", mine->held.len, stage->text,
                        stage->text_len, is_last ? "" : " "));
    mine->held.len = 0;
    return feed_string(state, at + 1, mine->made.data ? mine->made.data : "", mine->made.len);
}

static status_t clean_up(struct text_buf *text, struct text_buf *spare)
{
    static const char *const pairs[][2] = {
        {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"},
        {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        spare->len = 0;
        TRY(append_replaced(spare, text->data ? text->data : "", text->len, pairs[i][0], strlen(pairs[i][0]), pairs[i][1]));
        struct text_buf swap = *text;
        *text = *spare;
        *spare = swap;
    }
    return STATUS_OK;
}

static status_t word_piece(struct decoder_state *state, size_t at, const char *text, size_t len)
{
    const struct stage *stage = &state->decoder->stages[at];
    struct stage_state *mine = &state->stages[at];
    bool continues = len >= stage->text_len && memcmp(text, stage->text, stage->text_len) == 0;
    struct text_buf spare = {0};
    mine->made.len = 0;
    if (mine->number > 0 && continues) {
        text += stage->text_len;
        len -= stage->text_len;
    } else if (mine->number > 0) {
        TRY(text_buf_append(&mine->made, " ", 1));
    }
    mine->number++;
    TRY(text_buf_append(&mine->made, text, len));
    status_t st = stage->clean ? clean_up(&mine->made, &spare) : STATUS_OK;
    text_buf_fini(&spare);
    if (failed(st)) { return st; }
    return feed_string(state, at + 1, mine->made.data ? mine->made.data : "", mine->made.len);
}

static status_t whole_string(struct decoder_state *state, size_t at, const char *text, size_t len)
{
    struct stage_state *mine = &state->stages[at];
    switch (state->decoder->stages[at].kind) {
    case STAGE_BYTE_LEVEL: return byte_level(state, at, text, len);
    case STAGE_BYTE_FALLBACK: return byte_fallback(state, at, text, len);
    case STAGE_REPLACE: return replace_string(state, at, text, len);
    case STAGE_WORD_PIECE: return word_piece(state, at, text, len);
    case STAGE_BPE:
        if (mine->has_held) { TRY(bpe_release(state, at, false)); }
        mine->has_held = true;
        return text_buf_append(&mine->held, text, len);
    case STAGE_JOIN:
        if (mine->number++ > 0) { TRY(feed(state, at + 1, " ", 1, false)); }
        return feed(state, at + 1, text, len, false);
    default: return STATUS(ST_INTERNAL, SCOPE_REQUEST);
    }
}

static status_t feed(struct decoder_state *state, size_t at, const char *piece, size_t len, bool ends)
{
    if (at == state->decoder->count) { return text_buf_append(state->out, piece, len); }
    const struct stage *stage = &state->decoder->stages[at];
    struct stage_state *mine = &state->stages[at];
    bool growing = mine->open || !ends;
    mine->open = !ends;
    switch (stage->kind) {
    case STAGE_FUSE:
        mine->open = false;
        return feed(state, at + 1, piece, len, false);
    case STAGE_METASPACE: return metaspace(state, at, piece, len, ends);
    case STAGE_STRIP: return strip(state, at, piece, len, ends);
    case STAGE_REPLACE:
        if (growing && stage->literal) { return replace_growing(state, at, piece, len, ends); }
        break;
    default: break;
    }
    if (!growing) { return whole_string(state, at, piece, len); }
    /* This stage needs the whole string, and an earlier one joined all strings to one. */
    TRY(text_buf_append(&mine->held, piece, len));
    if (!ends) { return STATUS_OK; }
    struct text_buf whole = mine->held;
    mine->held = (struct text_buf){0};
    status_t st = whole_string(state, at, whole.data ? whole.data : "", whole.len);
    text_buf_fini(&whole);
    return st;
}

status_t decoder_push(struct decoder_state *state, const char *token, size_t len, struct text_buf *out)
{
    state->out = out;
    return feed(state, 0, token, len, true);
}

status_t decoder_flush(struct decoder_state *state, struct text_buf *out)
{
    state->out = out;
    status_t st = STATUS_OK;
    for (size_t at = 0; at < state->decoder->count && !failed(st); at++) {
        switch (state->decoder->stages[at].kind) {
        case STAGE_BYTE_LEVEL: st = bytes_to_text(state, at, "", 0, true); break;
        case STAGE_BYTE_FALLBACK: st = end_byte_run(state, at); break;
        case STAGE_FUSE: st = feed(state, at + 1, "", 0, true); break;
        case STAGE_BPE:
            if (state->stages[at].has_held) { st = bpe_release(state, at, true); }
            break;
        default: break;
        }
    }
    for (size_t at = 0; at < state->decoder->count; at++) {
        struct stage_state *mine = &state->stages[at];
        mine->held.len = 0;
        mine->number = 0;
        mine->letters = 0;
        mine->open = mine->broken = mine->has_held = false;
    }
    return st;
}
