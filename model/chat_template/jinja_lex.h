/* jinja_lex: cuts a template into tokens, white space control included.
 * Flow:    template source -> [jinja_lex] -> jinja_parse
 * Thread:  the caller's. Memory: the context's arena. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_LEX_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_LEX_H

#include "model/chat_template/jinja_value.h"

enum token_kind {
    T_EOF,
    T_DATA,        /* value: text */
    T_BEGIN_PRINT, /* {{ */
    T_END_PRINT,
    T_BEGIN_BLOCK, /* {% */
    T_END_BLOCK,
    T_NAME,   /* value: text */
    T_STRING, /* value: decoded */
    T_NUMBER, /* value: V_INT or V_FLOAT */
    T_OP,     /* op: first character, and the second << 8 */
};

struct token {
    uint8_t kind;
    uint16_t op;
    uint32_t line;
    struct value value;
};

/* Tokens up to and with T_EOF, or NULL with the error in ctx. */
struct token *jinja_lex(struct jinja_ctx *ctx, const char *source, size_t len, uint32_t *ret_count);

#endif
