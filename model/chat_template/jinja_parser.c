/* jinja_parser: the parser's place in the tokens, its complaints, and the nodes it makes.
 * Flow:    jinja_lex -> [jinja_parser] -> jinja_expression, jinja_parse
 * Thread:  the caller's.
 * Memory:  the context's arena. */
#include "model/chat_template/jinja_parser_internal.h"

/* ---- tokens ---- */

void parser_next(struct parser *p)
{
    if (p->at->kind != T_EOF) { p->at++; }
    p->ctx->line = p->at->line;
}

bool parser_is_op(const struct parser *p, uint16_t op) { return p->at->kind == T_OP && p->at->op == op; }
bool parser_is_name(const struct parser *p, const char *name) { return p->at->kind == T_NAME && value_is_str(p->at->value, name); }

bool parser_skip_op(struct parser *p, uint16_t op)
{
    if (!parser_is_op(p, op)) { return false; }
    parser_next(p);
    return true;
}

bool parser_skip_name(struct parser *p, const char *name)
{
    if (!parser_is_name(p, name)) { return false; }
    parser_next(p);
    return true;
}

static const char *describe(const struct token *token, char text[80])
{
    switch (token->kind) {
    case T_EOF: return "end of template";
    case T_DATA: return "template data";
    case T_BEGIN_PRINT: return "begin of print statement";
    case T_END_PRINT: return "end of print statement";
    case T_BEGIN_BLOCK: return "begin of statement block";
    case T_END_BLOCK: return "end of statement block";
    case T_STRING: return "a string";
    case T_NUMBER: return "a number";
    case T_NAME: {
        uint32_t len = token->value.len < 60 ? token->value.len : 60;
        memcpy(text, token->value.u.text, len);
        text[len] = '\0';
        return text;
    }
    default:
        text[0] = (char)(token->op & 0xff);
        text[1] = (char)(token->op >> 8);
        text[2] = '\0';
        return text;
    }
}

void parser_unexpected(struct parser *p, const char *wanted)
{
    char text[80];
    if (wanted) {
        jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "expected %s, got '%s'", wanted, describe(p->at, text));
    } else {
        jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "unexpected '%s'", describe(p->at, text));
    }
}

void parser_expect_op(struct parser *p, char op)
{
    if (parser_is_op(p, (unsigned char)op)) {
        parser_next(p);
        return;
    }
    char wanted[4] = {'\'', op, '\'', 0};
    parser_unexpected(p, wanted);
}

void parser_expect_kind(struct parser *p, enum token_kind kind, const char *wanted)
{
    if (p->at->kind == kind) { parser_next(p); } else { parser_unexpected(p, wanted); }
}

struct value parser_expect_name(struct parser *p)
{
    struct value name = p->at->value;
    if (p->at->kind != T_NAME) {
        parser_unexpected(p, "a name");
        return value_cstr("?");
    }
    parser_next(p);
    return name;
}

void parser_refuse(struct parser *p, const char *what, struct value name, uint32_t line)
{
    p->ctx->line = line;
    jinja_fail(p->ctx, ST_UNIMPLEMENTED, "unsupported %s '%.*s' at line %u", what, (int)(name.len < 60 ? name.len : 60), name.u.text, line);
}

/* ---- nodes ---- */

struct node *node_new(struct parser *p, enum node_kind kind)
{
    static struct node nowhere; /* written by nobody: every writer checks failed() or gets its own */
    struct node *node = jinja_alloc(p->ctx, sizeof *node);
    if (!node) { return &nowhere; }
    node->kind = (uint8_t)kind;
    node->line = p->at->line;
    return node;
}

void node_add(struct parser *p, struct node_list *list, struct node *node)
{
    if (GIVE_UP(p)) { return; }
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity ? list->capacity * 2 : 4;
        struct node **items = jinja_alloc(p->ctx, capacity * sizeof *items);
        if (!items) { return; }
        if (list->count) { memcpy(items, list->items, list->count * sizeof *items); }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = node;
}

struct node *node_unary(struct parser *p, enum node_kind kind, struct node *a)
{
    struct node *node = node_new(p, kind);
    if (!GIVE_UP(p)) { node->a = a; }
    return node;
}

struct node *node_binary(struct parser *p, enum node_kind kind, enum node_op op, struct node *a, struct node *b)
{
    struct node *node = node_new(p, kind);
    if (GIVE_UP(p)) { return node; }
    node->op = (uint8_t)op;
    node->a = a;
    node->b = b;
    return node;
}

struct node *node_with_list(struct parser *p, enum node_kind kind, const struct node_list *list)
{
    struct node *node = node_new(p, kind);
    if (GIVE_UP(p)) { return node; }
    node->list = list->items;
    node->count = list->count;
    return node;
}

struct node *node_constant(struct parser *p, struct value value)
{
    struct node *node = node_new(p, N_CONST);
    if (!GIVE_UP(p)) { node->value = value; }
    return node;
}

struct node *node_named(struct parser *p, enum node_kind kind, struct value name)
{
    struct node *node = node_new(p, kind);
    if (!GIVE_UP(p)) { node->value = name; }
    return node;
}
