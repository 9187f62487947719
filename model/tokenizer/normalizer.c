#include "model/tokenizer/normalizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/json_field.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/unicode_props.h"
#include "model/tokenizer/utf8.h"

#define STEPS_MAX 64

enum step_kind { STEP_FORM, STEP_LOWERCASE, STEP_STRIP, STEP_ACCENTS, STEP_REPLACE, STEP_PREPEND, STEP_NMT, STEP_BYTES };

struct step {
    enum step_kind kind;
    enum unicode_form form;
    bool left, right;     /* STEP_STRIP */
    struct regex *regex;  /* STEP_REPLACE */
    char single;          /* STEP_REPLACE: the ASCII character it looks for, or 0 */
    char *content;        /* STEP_REPLACE, STEP_PREPEND */
    size_t content_len;
};

struct normalizer {
    struct step steps[STEPS_MAX];
    size_t count;
};

struct normalizer_scratch {
    struct text_buf buffers[2];
    struct regex_scratch *regexes[STEPS_MAX];
    size_t count;
};

static status_t copy_content(struct step *step, const json_t *json, const char *field, struct diag *diag)
{
    struct json_text text;
    TRY(tok_json_need_text(json, field, &text, diag));
    step->content = malloc(text.len + 1);
    if (!step->content) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    memcpy(step->content, text.data, text.len + 1);
    step->content_len = text.len;
    return STATUS_OK;
}

static status_t read_replace(struct step *step, const json_t *json, struct diag *diag)
{
    struct pattern_json pattern;
    TRY(pattern_read(json_object_get(json, "pattern"), &pattern, diag));
    TRY(regex_create(pattern.text.data, pattern.text.len, pattern.literal, &step->regex, diag));
    if (pattern.literal && pattern.text.len == 1) { step->single = pattern.text.data[0]; }
    return copy_content(step, json, "content", diag);
}

static status_t read_sequence(struct normalizer *normalizer, const json_t *json, unsigned depth, struct diag *diag);

static status_t read_step(struct normalizer *normalizer, const json_t *json, unsigned depth, struct diag *diag)
{
    static const struct { const char *name; enum step_kind kind; enum unicode_form form; } plain[] = {
        {"NFC", STEP_FORM, FORM_NFC}, {"NFD", STEP_FORM, FORM_NFD}, {"NFKC", STEP_FORM, FORM_NFKC},
        {"NFKD", STEP_FORM, FORM_NFKD}, {"Lowercase", STEP_LOWERCASE, 0}, {"StripAccents", STEP_ACCENTS, 0},
        {"Nmt", STEP_NMT, 0}, {"ByteLevel", STEP_BYTES, 0}, {"Strip", STEP_STRIP, 0},
        {"Replace", STEP_REPLACE, 0}, {"Prepend", STEP_PREPEND, 0},
    };
    const char *type = tok_json_type_name(json);
    if (!type) {
        diag_set(diag, "the normalizer must be an object with a field \"type\"");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (strcmp(type, "Sequence") == 0) { return read_sequence(normalizer, json, depth, diag); }
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        if (strcmp(type, plain[i].name) != 0) { continue; }
        if (normalizer->count == STEPS_MAX) {
            diag_set(diag, "more than %d normalizers", STEPS_MAX);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
        struct step *step = &normalizer->steps[normalizer->count++];
        step->kind = plain[i].kind;
        step->form = plain[i].form;
        if (step->kind == STEP_STRIP) {
            TRY(tok_json_bool(json, "strip_left", true, &step->left, diag));
            TRY(tok_json_bool(json, "strip_right", true, &step->right, diag));
        }
        if (step->kind == STEP_REPLACE) { TRY(read_replace(step, json, diag)); }
        if (step->kind == STEP_PREPEND) { TRY(copy_content(step, json, "prepend", diag)); }
        return STATUS_OK;
    }
    diag_set(diag, "the normalizer \"%.60s\" is not supported; known are NFC, NFD, NFKC, NFKD, Lowercase, Strip, "
                   "StripAccents, Replace, Prepend, Nmt, ByteLevel and Sequence", type);
    return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
}

static status_t read_sequence(struct normalizer *normalizer, const json_t *json, unsigned depth, struct diag *diag)
{
    const json_t *list = json_object_get(json, "normalizers");
    if (!json_is_array(list) || depth > 8) {
        diag_set(diag, "a normalizer Sequence needs an array \"normalizers\", nested at most 8 deep");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        TRY(read_step(normalizer, json_array_get(list, i), depth + 1, diag));
    }
    return STATUS_OK;
}

status_t normalizer_create(const json_t *json, struct normalizer **ret_normalizer, struct diag *diag)
{
    struct normalizer *normalizer = calloc(1, sizeof *normalizer);
    if (!normalizer) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    status_t st = json && !json_is_null(json) ? read_step(normalizer, json, 0, diag) : STATUS_OK;
    if (failed(st)) { normalizer_destroy(normalizer); return st; }
    *ret_normalizer = normalizer;
    return STATUS_OK;
}

void normalizer_destroy(struct normalizer *normalizer)
{
    if (!normalizer) { return; }
    for (size_t i = 0; i < normalizer->count; i++) {
        regex_destroy(normalizer->steps[i].regex);
        free(normalizer->steps[i].content);
    }
    free(normalizer);
}

status_t normalizer_scratch_create(const struct normalizer *normalizer, struct normalizer_scratch **ret_scratch)
{
    struct normalizer_scratch *scratch = calloc(1, sizeof *scratch);
    if (!scratch) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    scratch->count = normalizer->count;
    for (size_t i = 0; i < normalizer->count; i++) {
        if (!normalizer->steps[i].regex) { continue; }
        status_t st = regex_scratch_create(normalizer->steps[i].regex, &scratch->regexes[i]);
        if (failed(st)) { normalizer_scratch_destroy(scratch); return st; }
    }
    *ret_scratch = scratch;
    return STATUS_OK;
}

void normalizer_scratch_destroy(struct normalizer_scratch *scratch)
{
    if (!scratch) { return; }
    for (size_t i = 0; i < scratch->count; i++) { regex_scratch_destroy(scratch->regexes[i]); }
    text_buf_fini(&scratch->buffers[0]);
    text_buf_fini(&scratch->buffers[1]);
    free(scratch);
}

static bool is_ascii(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)text[i] >= 0x80) { return false; }
    }
    return true;
}

static status_t lowercase(const char *text, size_t len, struct text_buf *out)
{
    TRY(text_buf_reserve(out, len + len / 2 + 8)); /* two bytes can become three */
    for (size_t at = 0, bytes; at < len; at += bytes) {
        uint32_t codes[2];
        size_t count = unicode_lowercase(utf8_decode(text + at, &bytes), codes);
        char spelled[8];
        size_t spelled_len = 0;
        for (size_t i = 0; i < count; i++) { spelled_len += utf8_encode(codes[i], spelled + spelled_len); }
        TRY(text_buf_append(out, spelled, spelled_len));
    }
    return STATUS_OK;
}

static status_t strip_accents(const char *text, size_t len, struct text_buf *out)
{
    for (size_t at = 0, bytes; at < len; at += bytes) {
        if (!unicode_is_mark(utf8_decode(text + at, &bytes))) { TRY(text_buf_append(out, text + at, bytes)); }
    }
    return STATUS_OK;
}

/* SentencePiece's clean-up for translation: control characters go, odd spaces become spaces. */
static status_t nmt(const char *text, size_t len, struct text_buf *out)
{
    for (size_t at = 0, bytes; at < len; at += bytes) {
        uint32_t code = utf8_decode(text + at, &bytes);
        bool gone = (code >= 1 && code <= 8) || code == 0x0b || (code >= 0x0e && code <= 0x1f) || code == 0x7f ||
                    code == 0x8f || code == 0x9f;
        bool space = code == 9 || code == 0x0a || code == 0x0c || code == 0x0d || code == 0x1680 ||
                     (code >= 0x200b && code <= 0x200f) || code == 0x2028 || code == 0x2029 || code == 0x2581 ||
                     code == 0xfeff || code == 0xfffd;
        if (gone) { continue; }
        TRY(text_buf_append(out, space ? " " : text + at, space ? 1 : bytes));
    }
    return STATUS_OK;
}

static status_t to_byte_alphabet(const char *text, size_t len, struct text_buf *out)
{
    TRY(text_buf_reserve(out, 2 * len));
    for (size_t i = 0; i < len; i++) {
        out->len += utf8_encode(byte_alphabet_code((uint8_t)text[i]), out->data + out->len);
    }
    return STATUS_OK;
}

static status_t replace_single(const struct step *step, const char *text, size_t len, struct text_buf *out)
{
    size_t from = 0;
    while (from < len) {
        const char *hit = memchr(text + from, step->single, len - from);
        size_t at = hit ? (size_t)(hit - text) : len;
        TRY(text_buf_append(out, text + from, at - from));
        if (hit) { TRY(text_buf_append(out, step->content, step->content_len)); }
        from = at + 1;
    }
    return STATUS_OK;
}

static status_t replace(const struct step *step, struct regex_scratch *regex, const char *text, size_t len,
                        struct text_buf *out, struct diag *diag)
{
    if (step->single) { return replace_single(step, text, len, out); }
    size_t from = 0;
    TRY(regex_start(regex, step->regex, text, len));
    for (;;) {
        bool found;
        size_t start = 0, end = 0;
        TRY(regex_next(regex, &found, &start, &end, diag));
        if (!found) { return text_buf_append(out, text + from, len - from); }
        TRY(text_buf_append(out, text + from, start - from));
        TRY(text_buf_append(out, step->content, step->content_len));
        from = end;
    }
}

static void strip(const struct step *step, const char **text, size_t *len, bool *cut_left)
{
    size_t start = 0, end = *len, bytes;
    while (step->left && start < end && unicode_is_space(utf8_decode(*text + start, &bytes))) { start += bytes; }
    while (step->right && end > start) {
        size_t last = start + utf8_last_start(*text + start, end - start);
        if (!unicode_is_space(utf8_decode(*text + last, &bytes))) { break; }
        end = last;
    }
    *cut_left = *cut_left || start > 0;
    *text += start;
    *len = end - start;
}

status_t normalizer_apply(const struct normalizer *normalizer, struct normalizer_scratch *scratch, const char *text,
                          size_t len, const char **ret_text, size_t *ret_len, bool *ret_cut_left, struct diag *diag)
{
    unsigned side = 0;
    *ret_cut_left = false;
    for (size_t i = 0; i < normalizer->count && len > 0; i++) {
        const struct step *step = &normalizer->steps[i];
        struct text_buf *out = &scratch->buffers[side];
        if (step->kind == STEP_STRIP) { strip(step, &text, &len, ret_cut_left); continue; }
        if (step->kind == STEP_FORM && is_ascii(text, len)) { continue; }
        out->len = 0;
        TRY(text_buf_reserve(out, len + 16));
        switch (step->kind) {
        case STEP_FORM: TRY(unicode_normalize(step->form, text, len, out)); break;
        case STEP_LOWERCASE: TRY(lowercase(text, len, out)); break;
        case STEP_ACCENTS: TRY(strip_accents(text, len, out)); break;
        case STEP_REPLACE: TRY(replace(step, scratch->regexes[i], text, len, out, diag)); break;
        case STEP_PREPEND:
            TRY(text_buf_append(out, step->content, step->content_len));
            TRY(text_buf_append(out, text, len));
            break;
        case STEP_NMT: TRY(nmt(text, len, out)); break;
        case STEP_BYTES: TRY(to_byte_alphabet(text, len, out)); break;
        case STEP_STRIP: break;
        }
        text = out->data;
        len = out->len;
        side = 1 - side;
    }
    *ret_text = text;
    *ret_len = len;
    return STATUS_OK;
}

status_t normalizer_apply_once(const struct normalizer *normalizer, const char *text, size_t len, struct text_buf *out,
                               struct diag *diag)
{
    struct normalizer_scratch *scratch = NULL;
    const char *result;
    size_t result_len;
    bool cut_left;
    TRY(normalizer_scratch_create(normalizer, &scratch));
    status_t st = normalizer_apply(normalizer, scratch, text, len, &result, &result_len, &cut_left, diag);
    if (!failed(st)) { st = text_buf_append(out, result, result_len); }
    normalizer_scratch_destroy(scratch);
    return st;
}
