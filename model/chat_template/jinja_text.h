/* jinja_text: what Python's str does to text: strip, case, lines, replace, escape.
 * Flow:    lexer, filters, methods -> [jinja_text] -> jinja_utf8
 * Thread:  any; pure functions, results in the caller's context.
 * Memory:  the context's arena. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_TEXT_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_TEXT_H

#include "model/chat_template/jinja_value.h"

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
