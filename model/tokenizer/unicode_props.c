#include "model/tokenizer/unicode_props.h"

#include <errno.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "model/tokenizer/unicode_tables.h"
#include "model/tokenizer/utf8.h"

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

static bool in_ranges(const struct code_range *ranges, size_t count, uint32_t code)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > ranges[middle].last) {
            low = middle + 1;
        } else if (code < ranges[middle].first) {
            high = middle;
        } else {
            return true;
        }
    }
    return false;
}

static uint32_t mapped(const struct code_map *map, size_t count, uint32_t code)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > map[middle].last) {
            low = middle + 1;
        } else if (code < map[middle].first) {
            high = middle;
        } else {
            return map[middle].to;
        }
    }
    return code;
}

bool unicode_is_space(uint32_t code)
{
    if (code < 0x80) { return code == ' ' || (code >= 9 && code <= 13); }
    return code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) ||
           code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

bool unicode_is_numeric(uint32_t code)
{
    if (code < 0x80) { return code >= '0' && code <= '9'; }
    return in_ranges(numeric_ranges, COUNT(numeric_ranges), code);
}

bool unicode_is_punctuation(uint32_t code)
{
    return in_ranges(punctuation_ranges, COUNT(punctuation_ranges), code);
}

bool unicode_is_word(uint32_t code) { return in_ranges(word_ranges, COUNT(word_ranges), code); }

bool unicode_is_mark(uint32_t code)
{
    return code >= 0x300 && in_ranges(mark_ranges, COUNT(mark_ranges), code);
}

size_t unicode_lowercase(uint32_t code, uint32_t ret_codes[2])
{
    if (code < 0x80) {
        ret_codes[0] = code >= 'A' && code <= 'Z' ? code + 32 : code;
        return 1;
    }
    if (code == 0x130) { /* the one letter whose lowercase is two: i and a dot above */
        ret_codes[0] = 'i';
        ret_codes[1] = 0x307;
        return 2;
    }
    uint32_t to = mapped(lowercase_map, COUNT(lowercase_map), code);
    ret_codes[0] = to != code ? to : (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
    return 1;
}

uint32_t unicode_stand_in(uint32_t code) { return mapped(pcre2_stand_ins, COUNT(pcre2_stand_ins), code); }

struct code_vec {
    int32_t *codes;
    size_t count, capacity;
};

static status_t code_vec_append(struct code_vec *vec, const int32_t *codes, size_t count)
{
    if (count > vec->capacity - vec->count) {
        size_t next = (vec->count + count) * 2 + 64;
        int32_t *grown = realloc(vec->codes, next * sizeof *grown);
        if (!grown) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
        vec->codes = grown;
        vec->capacity = next;
    }
    for (size_t i = 0; i < count; i++) { vec->codes[vec->count++] = codes[i]; }
    return STATUS_OK;
}

static int combining_class(int32_t code)
{
    if (code < 0x300) { return 0; }
    int value = utf8proc_get_property(code)->combining_class;
    return value && in_ranges(starter_ranges, COUNT(starter_ranges), (uint32_t)code) ? 0 : value;
}

/* Stable counting sort of a run of marks by combining class: a hostile run of a hundred
 * thousand marks costs as much per mark as a run of two. */
static status_t sort_marks(int32_t *codes, size_t count)
{
    if (count <= 16) {
        for (size_t i = 1; i < count; i++) {
            int32_t code = codes[i];
            int value = combining_class(code);
            size_t at = i;
            for (; at > 0 && combining_class(codes[at - 1]) > value; at--) { codes[at] = codes[at - 1]; }
            codes[at] = code;
        }
        return STATUS_OK;
    }
    int32_t *sorted = malloc(count * sizeof *sorted);
    if (!sorted) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    size_t starts[257] = {0};
    for (size_t i = 0; i < count; i++) { starts[combining_class(codes[i]) + 1]++; }
    for (size_t i = 1; i < 257; i++) { starts[i] += starts[i - 1]; }
    for (size_t i = 0; i < count; i++) { sorted[starts[combining_class(codes[i])]++] = codes[i]; }
    for (size_t i = 0; i < count; i++) { codes[i] = sorted[i]; }
    free(sorted);
    return STATUS_OK;
}

static status_t decompose(enum unicode_form form, const char *text, size_t len, struct code_vec *vec)
{
    bool compatible = form == FORM_NFKC || form == FORM_NFKD;
    utf8proc_option_t options = UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0);
    for (size_t at = 0, bytes; at < len; at += bytes) {
        int32_t code = (int32_t)utf8_decode(text + at, &bytes);
        int32_t parts[32]; /* the longest decomposition has 18 */
        utf8proc_ssize_t count = 1;
        parts[0] = code;
        if (code >= 0x80 && !in_ranges(undecomposed_ranges, COUNT(undecomposed_ranges), (uint32_t)code)) {
            count = utf8proc_decompose_char(code, parts, 32, options, NULL);
            if (count < 0 || count > 32) { return STATUS(ST_INTERNAL, SCOPE_REQUEST); }
        }
        TRY(code_vec_append(vec, parts, (size_t)count));
    }
    for (size_t at = 0; at < vec->count;) {
        if (combining_class(vec->codes[at]) == 0) { at++; continue; }
        size_t end = at;
        while (end < vec->count && combining_class(vec->codes[end]) != 0) { end++; }
        TRY(sort_marks(vec->codes + at, end - at));
        at = end;
    }
    return STATUS_OK;
}

static status_t normalize_all(enum unicode_form form, const char *text, size_t len, struct code_vec *vec,
                              struct text_buf *out)
{
    vec->count = 0;
    TRY(decompose(form, text, len, vec));
    size_t count = vec->count;
    if (form == FORM_NFC || form == FORM_NFKC) {
        utf8proc_ssize_t composed = utf8proc_normalize_utf32(vec->codes, (utf8proc_ssize_t)count,
                                                             UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (composed < 0) { return STATUS(ST_INTERNAL, SCOPE_REQUEST); }
        count = (size_t)composed;
    }
    TRY(text_buf_reserve(out, count * 4));
    for (size_t i = 0; i < count; i++) { out->len += utf8_encode((uint32_t)vec->codes[i], out->data + out->len); }
    return STATUS_OK;
}

/* NFC touches only the surroundings of the characters that may change: everything else is
 * copied. A safe character never joins the one before it, so a stretch starts with the
 * character before the first unsafe one and ends before the next safe one. */
static status_t normalize_nfc(const char *text, size_t len, struct code_vec *vec, struct text_buf *out)
{
    size_t copied = 0, previous = 0;
    for (size_t at = 0, bytes; at < len; previous = at, at += bytes) {
        if ((unsigned char)text[at] < 0xcc) { /* below U+0300 */
            bytes = utf8_char_bytes((unsigned char)text[at]);
            continue;
        }
        uint32_t code = utf8_decode(text + at, &bytes);
        if (!in_ranges(nfc_unsafe_ranges, COUNT(nfc_unsafe_ranges), code)) { continue; }
        size_t start = previous < copied ? copied : previous;
        size_t end = at + bytes;
        while (end < len) {
            size_t more;
            code = utf8_decode(text + end, &more);
            if (code < 0x300 || !in_ranges(nfc_unsafe_ranges, COUNT(nfc_unsafe_ranges), code)) { break; }
            end += more;
        }
        TRY(text_buf_append(out, text + copied, start - copied));
        TRY(normalize_all(FORM_NFC, text + start, end - start, vec, out));
        copied = end;
        bytes = end - at;
    }
    return text_buf_append(out, text + copied, len - copied);
}

status_t unicode_normalize(enum unicode_form form, const char *text, size_t len, struct text_buf *out)
{
    struct code_vec vec = {0};
    status_t st = form == FORM_NFC ? normalize_nfc(text, len, &vec, out) : normalize_all(form, text, len, &vec, out);
    free(vec.codes);
    return st;
}
