/* utf8: reading and writing code points.
 * Thread:  any; pure functions.
 * Memory:  none. */
#ifndef BATON_MODEL_TOKENIZER_UTF8_H
#define BATON_MODEL_TOKENIZER_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* How the bytes at the start of a text read. */
enum utf8_kind {
    UTF8_WHOLE,     /* a whole character */
    UTF8_BROKEN,    /* can never become one */
    UTF8_UNFINISHED /* a prefix of one, cut by the end of the text */
};

/* Reads one character; Unicode 3.9, table 3-7: no surrogates, no overlong forms.
 * len       >= 1
 * ret_bytes of the character; of the maximal subpart that one U+FFFD stands for when
 *           broken; len when unfinished. */
static inline enum utf8_kind utf8_read(const char *text, size_t len, size_t *ret_bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned char first = s[0];
    if (first < 0x80) { *ret_bytes = 1; return UTF8_WHOLE; }
    size_t need;
    unsigned char low = 0x80, high = 0xbf; /* bounds of the second byte */
    if (first >= 0xc2 && first <= 0xdf) {
        need = 2;
    } else if ((first & 0xf0) == 0xe0) {
        need = 3;
        if (first == 0xe0) { low = 0xa0; }
        if (first == 0xed) { high = 0x9f; }
    } else if (first >= 0xf0 && first <= 0xf4) {
        need = 4;
        if (first == 0xf0) { low = 0x90; }
        if (first == 0xf4) { high = 0x8f; }
    } else {
        *ret_bytes = 1;
        return UTF8_BROKEN;
    }
    for (size_t i = 1; i < need; i++) {
        if (i == len) { *ret_bytes = len; return UTF8_UNFINISHED; }
        if (s[i] < low || s[i] > high) { *ret_bytes = i; return UTF8_BROKEN; }
        low = 0x80;
        high = 0xbf;
    }
    *ret_bytes = need;
    return UTF8_WHOLE;
}

/* The offset of the first byte that is not part of a whole character; len if there is none. */
size_t utf8_valid_prefix(const char *text, size_t len);

/* Bytes of the character that starts with `first`; the text must be valid. */
static inline size_t utf8_char_bytes(unsigned char first)
{
    return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/* Reads one code point of a valid text. */
static inline uint32_t utf8_decode(const char *text, size_t *ret_bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) { *ret_bytes = 1; return s[0]; }
    if (s[0] < 0xe0) { *ret_bytes = 2; return (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu); }
    if (s[0] < 0xf0) {
        *ret_bytes = 3;
        return (s[0] & 0x0fu) << 12 | (s[1] & 0x3fu) << 6 | (s[2] & 0x3fu);
    }
    *ret_bytes = 4;
    return (s[0] & 0x07u) << 18 | (s[1] & 0x3fu) << 12 | (s[2] & 0x3fu) << 6 | (s[3] & 0x3fu);
}

/* The start of the last character of a valid, non-empty text. */
static inline size_t utf8_last_start(const char *text, size_t len)
{
    size_t at = len - 1;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80) { at--; }
    return at;
}

/* Writes 1 .. 4 bytes; returns how many. */
static inline size_t utf8_encode(uint32_t code, char *out)
{
    if (code < 0x80) { out[0] = (char)code; return 1; }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}

/* The byte-level alphabet of GPT-2: every byte as a printable character. Printable bytes
 * of Latin-1 stand for themselves, the other 68 for U+0100 .. U+0143 in their order.
 * Source: encoder.py of openai/gpt-2, bytes_to_unicode. */
uint32_t byte_alphabet_code(uint8_t byte);

/* The byte of an alphabet character; -1 for any other code point. */
int byte_alphabet_byte(uint32_t code);

#endif
