/* jinja_parser_internal: what the parser's files share.
 * Flow:    jinja_parser (tokens, nodes) -> jinja_expression -> jinja_parse (statements)
 * Thread:  the caller's.
 * Memory:  the context's arena.
 * Every production may run on after an error: nodes are then a shared dummy that nobody reads. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_PARSER_INTERNAL_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_PARSER_INTERNAL_H

#include "model/chat_template/jinja_ast.h"
#include "model/chat_template/jinja_lex.h"

struct parser {
    struct jinja_ctx *ctx;
    const struct token *at;
    uint32_t loops; /* enclosing for loops of the same body, for break and continue */
};

/* A NULL-safe way to end every production once something failed. */
#define GIVE_UP(p) (jinja_failed((p)->ctx))

/* ---- tokens */
/* An operator of two characters, as a token's `op` holds it. */
#define OP2(a, b) ((uint16_t)((unsigned char)(a) | ((unsigned)(b) << 8)))
void parser_next(struct parser *p);
bool parser_is_op(const struct parser *p, uint16_t op);
bool parser_is_name(const struct parser *p, const char *name);
/* True and past it when it is the current token. */
bool parser_skip_op(struct parser *p, uint16_t op);
bool parser_skip_name(struct parser *p, const char *name);
/* Fails the context; wanted NULL: nothing in particular. */
void parser_unexpected(struct parser *p, const char *wanted);
/* Past it, or an error. */
void parser_expect_op(struct parser *p, char op);
void parser_expect_kind(struct parser *p, enum token_kind kind, const char *wanted);
struct value parser_expect_name(struct parser *p);
/* Fails the context: a tag, filter or test that this interpreter does not know. */
void parser_refuse(struct parser *p, const char *what, struct value name, uint32_t line);

/* ---- nodes */
struct node_list {
    struct node **items;
    uint32_t count, capacity;
};

struct node *node_new(struct parser *p, enum node_kind kind);
void node_add(struct parser *p, struct node_list *list, struct node *node);
struct node *node_unary(struct parser *p, enum node_kind kind, struct node *a);
struct node *node_binary(struct parser *p, enum node_kind kind, enum node_op op, struct node *a, struct node *b);
struct node *node_with_list(struct parser *p, enum node_kind kind, const struct node_list *list);
struct node *node_constant(struct parser *p, struct value value);
struct node *node_named(struct parser *p, enum node_kind kind, struct value name);

/* ---- expressions */
struct node *jinja_parse_expression(struct parser *p);
/* Expressions with commas between them, or one alone. no_cond: no `a if b`, as after `in`. end: a
 * name that ends it, or NULL. */
struct node *jinja_parse_tuple(struct parser *p, bool no_cond, const char *end, bool in_brackets);
/* A filter's name and arguments, past the bar. input NULL: a block's text. */
struct node *jinja_parse_filter(struct parser *p, struct node *input);

#endif
