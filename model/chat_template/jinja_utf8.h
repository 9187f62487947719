/* jinja_utf8: the characters of UTF-8 text, and the classes of one character as Python has them.
 * Flow:    jinja_value, jinja_text, lexer, methods -> [jinja_utf8]
 * Thread:  any; pure functions.
 * Memory:  none.
 * All text is valid UTF-8; the gates are chat_template_compile() and the JSON reader. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_UTF8_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the first character and its code point; needs len >= 1. A byte that starts no
 * character counts as one of its own (U+FFFD), so that walking always ends. */
uint32_t utf8_next(const char *text, size_t len, uint32_t *ret_code);
uint32_t utf8_put(uint32_t code, char ret_bytes[4]); /* bytes written */
int64_t utf8_count(const char *text, size_t len);
/* Byte offset of character `index`, or len when there are fewer. */
size_t utf8_offset(const char *text, size_t len, int64_t index);
bool utf8_is_valid(const char *text, size_t len);

bool text_is_space(uint32_t code);     /* str.isspace of one character */
bool text_is_printable(uint32_t code); /* str.isprintable of one character */

#endif
