/* jinja_text: what Python's str does to letters: white space, case, printable, lines.
 * Flow:    jinja_value, filters, methods -> [jinja_text]
 * Thread:  any; pure functions, results in the caller's context.
 * Memory:  the context's arena.
 * All text is valid UTF-8; the gates are chat_template_compile() and the JSON reader. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_TEXT_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_TEXT_H

#include "model/chat_template/jinja_value.h"

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

/* str.strip and its halves; chars NULL means white space, else a set of characters. */
struct value text_strip(struct jinja_ctx *ctx, struct value s, const struct value *chars, bool left, bool right);

struct value text_upper(struct jinja_ctx *ctx, struct value s);
struct value text_lower(struct jinja_ctx *ctx, struct value s);
struct value text_capitalize(struct jinja_ctx *ctx, struct value s);
struct value text_title(struct jinja_ctx *ctx, struct value s);       /* str.title */
struct value text_title_words(struct jinja_ctx *ctx, struct value s); /* Jinja's title filter */
bool text_is_upper(struct value s);
bool text_is_lower(struct value s);
/* str.isalpha, isdigit, isalnum, isspace: which is 'a', 'd', 'n' or 's'. */
bool text_is_all(struct value s, char which);

struct list *text_splitlines(struct jinja_ctx *ctx, struct value s, bool keep_ends);
/* str.replace; count -1 is all. */
struct value text_replace(struct jinja_ctx *ctx, struct value s, struct value from, struct value to, int64_t count);
/* HTML escape as markupsafe does it; the result is `safe`. */
struct value text_escape(struct jinja_ctx *ctx, struct value s);

#endif
