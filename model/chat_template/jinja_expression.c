/* jinja_expression: the grammar of expressions, by recursive descent; filters and tests included.
 * Flow:    jinja_parse's statements -> [jinja_expression] -> nodes
 * Thread:  the caller's.
 * Memory:  the context's arena. */
#include "model/chat_template/jinja_builtins.h"
#include "model/chat_template/jinja_parser_internal.h"

static struct node *parse_postfix(struct parser *p, struct node *node);
static struct node *parse_unary(struct parser *p, bool with_filter);

/* ---- expressions, loosest first ---- */

/* Ends a tuple without brackets: `}}`, `%}`, `)` and, where `end` is given, that name. */
static bool at_tuple_end(const struct parser *p, const char *end)
{
    return p->at->kind == T_END_PRINT || p->at->kind == T_END_BLOCK || p->at->kind == T_EOF || parser_is_op(p, ')') || (end && parser_is_name(p, end));
}

static struct node *parse_or(struct parser *p);

/* Expressions with commas between them, or one alone. no_cond: no `a if b`, as after `in`. */
struct node *jinja_parse_tuple(struct parser *p, bool no_cond, const char *end, bool in_brackets)
{
    struct node_list list = {0};
    bool is_tuple = false;
    while (!GIVE_UP(p)) {
        if (list.count) { parser_expect_op(p, ','); }
        if (at_tuple_end(p, end)) { break; }
        node_add(p, &list, no_cond ? parse_or(p) : jinja_parse_expression(p));
        if (!parser_is_op(p, ',')) { break; }
        is_tuple = true;
    }
    if (!is_tuple && list.count) { return list.items[0]; }
    if (!is_tuple && !in_brackets) { parser_unexpected(p, "an expression"); }
    return node_with_list(p, N_TUPLE, &list);
}

static struct node *parse_list(struct parser *p)
{
    struct node_list list = {0};
    parser_expect_op(p, '[');
    while (!GIVE_UP(p) && !parser_is_op(p, ']')) {
        if (list.count) {
            parser_expect_op(p, ',');
            if (parser_is_op(p, ']')) { break; }
        }
        node_add(p, &list, jinja_parse_expression(p));
    }
    parser_expect_op(p, ']');
    return node_with_list(p, N_LIST, &list);
}

static struct node *parse_dict(struct parser *p)
{
    struct node_list list = {0};
    parser_expect_op(p, '{');
    while (!GIVE_UP(p) && !parser_is_op(p, '}')) {
        if (list.count) {
            parser_expect_op(p, ',');
            if (parser_is_op(p, '}')) { break; }
        }
        node_add(p, &list, jinja_parse_expression(p));
        parser_expect_op(p, ':');
        node_add(p, &list, jinja_parse_expression(p));
    }
    parser_expect_op(p, '}');
    return node_with_list(p, N_DICT, &list);
}

static struct node *parse_name(struct parser *p)
{
    struct value name = p->at->value;
    struct node *node;
    if (value_is_str(name, "true") || value_is_str(name, "True")) {
        node = node_constant(p, value_bool(true));
    } else if (value_is_str(name, "false") || value_is_str(name, "False")) {
        node = node_constant(p, value_bool(false));
    } else if (value_is_str(name, "none") || value_is_str(name, "None")) {
        node = node_constant(p, value_none());
    } else {
        node = node_named(p, N_NAME, name);
    }
    parser_next(p);
    return node;
}

static struct node *parse_primary(struct parser *p)
{
    if (p->at->kind == T_NAME) { return parse_name(p); }
    if (p->at->kind == T_NUMBER) {
        struct node *node = node_constant(p, p->at->value);
        parser_next(p);
        return node;
    }
    if (p->at->kind == T_STRING) {
        struct node *node = node_constant(p, p->at->value);
        parser_next(p);
        while (p->at->kind == T_STRING && !GIVE_UP(p)) { /* 'a' 'b' is 'ab' */
            node->value = text_append(p->ctx, node->value, p->at->value);
            node->value.tip = NULL; /* a constant is shared by all renders and must not grow in place */
            parser_next(p);
        }
        return node;
    }
    if (parser_is_op(p, '(')) {
        parser_next(p);
        struct node *node = jinja_parse_tuple(p, false, NULL, true);
        parser_expect_op(p, ')');
        return node;
    }
    if (parser_is_op(p, '[')) { return parse_list(p); }
    if (parser_is_op(p, '{')) { return parse_dict(p); }
    parser_unexpected(p, NULL);
    return node_new(p, N_CONST);
}

static struct arguments *parse_arguments(struct parser *p)
{
    struct arguments *args = jinja_alloc(p->ctx, sizeof *args);
    struct node_list values = {0};
    struct list *names = list_new(p->ctx, 0);
    bool by_name = false, need_comma = false;
    parser_expect_op(p, '(');
    while (!GIVE_UP(p) && !parser_is_op(p, ')')) {
        if (need_comma) {
            parser_expect_op(p, ',');
            if (parser_is_op(p, ')')) { break; }
        }
        need_comma = true;
        if (parser_skip_op(p, '*')) {
            if (args->star || args->star_star) { parser_unexpected(p, "one * argument"); }
            args->star = jinja_parse_expression(p);
        } else if (parser_skip_op(p, OP2('*', '*'))) {
            if (args->star_star) { parser_unexpected(p, "one ** argument"); }
            args->star_star = jinja_parse_expression(p);
        } else if (p->at->kind == T_NAME && p->at[1].kind == T_OP && p->at[1].op == '=') {
            if (args->star_star) { parser_unexpected(p, "no argument after **"); }
            list_push(p->ctx, names, p->at->value);
            by_name = true;
            parser_next(p);
            parser_next(p);
            node_add(p, &values, jinja_parse_expression(p));
        } else {
            if (by_name || args->star || args->star_star) { parser_unexpected(p, "a named argument"); }
            list_push(p->ctx, names, value_none());
            node_add(p, &values, jinja_parse_expression(p));
        }
    }
    parser_expect_op(p, ')');
    if (GIVE_UP(p)) { return NULL; }
    args->values = values.items;
    args->names = names->items;
    args->count = values.count;
    return args;
}

static struct node *parse_subscribed(struct parser *p)
{
    struct node *bounds[3] = {0};
    if (!parser_is_op(p, ':')) {
        bounds[0] = jinja_parse_expression(p);
        if (!parser_is_op(p, ':')) { return bounds[0]; }
    }
    for (int i = 1; i < 3 && parser_skip_op(p, ':'); i++) {
        if (!parser_is_op(p, ':') && !parser_is_op(p, ']') && !parser_is_op(p, ',')) { bounds[i] = jinja_parse_expression(p); }
    }
    struct node *slice = node_new(p, N_SLICE);
    if (GIVE_UP(p)) { return slice; }
    slice->a = bounds[0];
    slice->b = bounds[1];
    slice->c = bounds[2];
    return slice;
}

static struct node *parse_subscript(struct parser *p, struct node *node)
{
    if (parser_skip_op(p, '.')) {
        if (p->at->kind == T_NUMBER && p->at->value.kind == V_INT) {
            struct node *index = node_constant(p, p->at->value);
            parser_next(p);
            return node_binary(p, N_GETITEM, 0, node, index);
        }
        struct node *get = node_named(p, N_GETATTR, parser_expect_name(p));
        if (!GIVE_UP(p)) { get->a = node; }
        return get;
    }
    parser_expect_op(p, '[');
    struct node_list list = {0};
    while (!GIVE_UP(p) && !parser_is_op(p, ']')) {
        if (list.count) { parser_expect_op(p, ','); }
        node_add(p, &list, parse_subscribed(p));
    }
    parser_expect_op(p, ']');
    return node_binary(p, N_GETITEM, 0, node, list.count == 1 ? list.items[0] : node_with_list(p, N_TUPLE, &list));
}

static struct node *parse_call(struct parser *p, struct node *node)
{
    struct node *call = node_unary(p, N_CALL, node);
    struct arguments *args = parse_arguments(p);
    if (!GIVE_UP(p)) { call->args = args; }
    return call;
}

/* Chains such as a.b.c nest to the left, so each link counts as one level of depth when it
 * is evaluated; counting them here refuses a chain that could not be. */
static struct node *parse_postfix(struct parser *p, struct node *node)
{
    uint32_t entered = 0;
    while (!GIVE_UP(p)) {
        if (parser_is_op(p, '.') || parser_is_op(p, '[')) {
            node = parse_subscript(p, node);
        } else if (parser_is_op(p, '(')) {
            node = parse_call(p, node);
        } else {
            break;
        }
        entered += jinja_enter(p->ctx);
    }
    p->ctx->depth -= entered;
    return node;
}

static struct node *name_and_arguments(struct parser *p, enum node_kind kind, struct node *input)
{
    struct node *node = node_named(p, kind, parser_expect_name(p));
    if (GIVE_UP(p)) { return node; }
    node->a = input;
    return node;
}

struct node *jinja_parse_filter(struct parser *p, struct node *input)
{
    struct node *node = name_and_arguments(p, N_FILTER, input);
    if (GIVE_UP(p)) { return node; }
    node->number = jinja_filter_find(node->value);
    if (node->number == BUILTIN_NONE) { parser_refuse(p, "filter", node->value, node->line); }
    if (parser_is_op(p, '(')) { node->args = parse_arguments(p); }
    return node;
}

static struct node *parse_test(struct parser *p, struct node *input)
{
    bool negated = parser_skip_name(p, "not");
    struct node *node = name_and_arguments(p, N_TEST, input);
    if (GIVE_UP(p)) { return node; }
    node->number = jinja_test_find(node->value);
    if (node->number == BUILTIN_NONE) { parser_refuse(p, "test", node->value, node->line); }
    bool starts = p->at->kind == T_NAME || p->at->kind == T_STRING || p->at->kind == T_NUMBER || parser_is_op(p, '[') || parser_is_op(p, '{');
    if (parser_is_op(p, '(')) {
        node->args = parse_arguments(p);
    } else if (starts && !parser_is_name(p, "else") && !parser_is_name(p, "or") && !parser_is_name(p, "and")) {
        if (parser_is_name(p, "is")) { jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "You cannot chain multiple tests with is"); }
        struct node *argument = parse_postfix(p, parse_primary(p));
        struct arguments *args = jinja_alloc(p->ctx, sizeof *args);
        struct node **values = jinja_alloc(p->ctx, sizeof *values);
        struct value *names = jinja_alloc(p->ctx, sizeof *names);
        if (GIVE_UP(p)) { return node; }
        values[0] = argument;
        names[0] = value_none();
        *args = (struct arguments){.values = values, .names = names, .count = 1};
        node->args = args;
    }
    return negated ? node_unary(p, N_NOT, node) : node;
}

static struct node *parse_filters(struct parser *p, struct node *node)
{
    uint32_t entered = 0;
    while (!GIVE_UP(p)) {
        if (parser_skip_op(p, '|')) {
            node = jinja_parse_filter(p, node);
        } else if (parser_skip_name(p, "is")) {
            node = parse_test(p, node);
        } else if (parser_is_op(p, '(')) {
            node = parse_call(p, node);
        } else {
            break;
        }
        entered += jinja_enter(p->ctx);
    }
    p->ctx->depth -= entered;
    return node;
}

static struct node *parse_unary(struct parser *p, bool with_filter)
{
    struct node *node;
    if (!jinja_enter(p->ctx)) { return node_new(p, N_CONST); }
    if (parser_is_op(p, '-') || parser_is_op(p, '+')) {
        enum node_kind kind = parser_is_op(p, '-') ? N_NEG : N_POS;
        parser_next(p);
        node = node_unary(p, kind, parse_unary(p, false));
    } else {
        node = parse_primary(p);
    }
    node = parse_postfix(p, node);
    if (with_filter) { node = parse_filters(p, node); }
    jinja_leave(p->ctx);
    return node;
}

/* One level of left-associative operators. */
typedef struct node *(*level_fn)(struct parser *p);

static struct node *left_chain(struct parser *p, level_fn inner, const uint16_t *tokens, const uint8_t *ops, uint32_t op_count)
{
    struct node *left = inner(p);
    uint32_t entered = 0;
    while (!GIVE_UP(p)) {
        uint32_t i = 0;
        while (i < op_count && !parser_is_op(p, tokens[i])) { i++; }
        if (i == op_count) { break; }
        parser_next(p);
        left = node_binary(p, N_BINARY, ops[i], left, inner(p));
        entered += jinja_enter(p->ctx);
    }
    p->ctx->depth -= entered;
    return left;
}

static struct node *parse_unary_filtered(struct parser *p) { return parse_unary(p, true); }

static struct node *parse_pow(struct parser *p)
{
    static const uint16_t tokens[] = {OP2('*', '*')};
    static const uint8_t ops[] = {OP_POW};
    return left_chain(p, parse_unary_filtered, tokens, ops, 1);
}

static struct node *parse_products(struct parser *p)
{
    static const uint16_t tokens[] = {'*', '/', OP2('/', '/'), '%'};
    static const uint8_t ops[] = {OP_MUL, OP_DIV, OP_FLOORDIV, OP_MOD};
    return left_chain(p, parse_pow, tokens, ops, 4);
}

static struct node *parse_concat(struct parser *p)
{
    struct node_list list = {0};
    node_add(p, &list, parse_products(p));
    while (!GIVE_UP(p) && parser_skip_op(p, '~')) { node_add(p, &list, parse_products(p)); }
    return list.count == 1 ? list.items[0] : node_with_list(p, N_CONCAT, &list);
}

static struct node *parse_sums(struct parser *p)
{
    static const uint16_t tokens[] = {'+', '-'};
    static const uint8_t ops[] = {OP_ADD, OP_SUB};
    return left_chain(p, parse_concat, tokens, ops, 2);
}

static struct node *parse_compare(struct parser *p)
{
    static const struct {
        uint16_t token;
        uint8_t op;
    } table[] = {{OP2('=', '='), OP_EQ}, {OP2('!', '='), OP_NE}, {'<', OP_LT}, {OP2('<', '='), OP_LE}, {'>', OP_GT}, {OP2('>', '='), OP_GE}};
    struct node *left = parse_sums(p);
    struct node_list list = {0};
    while (!GIVE_UP(p)) {
        int op = -1;
        for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
            if (parser_is_op(p, table[i].token)) { op = table[i].op; }
        }
        if (parser_is_name(p, "in")) { op = OP_IN; }
        if (parser_is_name(p, "not") && p->at[1].kind == T_NAME && value_is_str(p->at[1].value, "in")) {
            op = OP_NOT_IN;
            parser_next(p);
        }
        if (op < 0) { break; }
        parser_next(p);
        node_add(p, &list, node_binary(p, N_OPERAND, (enum node_op)op, parse_sums(p), NULL));
    }
    if (list.count == 0) { return left; }
    struct node *node = node_with_list(p, N_COMPARE, &list);
    if (!GIVE_UP(p)) { node->a = left; }
    return node;
}

static struct node *parse_not(struct parser *p)
{
    if (!jinja_enter(p->ctx)) { return node_new(p, N_CONST); }
    struct node *node = parser_skip_name(p, "not") ? node_unary(p, N_NOT, parse_not(p)) : parse_compare(p);
    jinja_leave(p->ctx);
    return node;
}

static struct node *parse_and(struct parser *p)
{
    struct node *left = parse_not(p);
    uint32_t entered = 0;
    while (!GIVE_UP(p) && parser_skip_name(p, "and")) {
        left = node_binary(p, N_AND, 0, left, parse_not(p));
        entered += jinja_enter(p->ctx);
    }
    p->ctx->depth -= entered;
    return left;
}

static struct node *parse_or(struct parser *p)
{
    struct node *left = parse_and(p);
    uint32_t entered = 0;
    while (!GIVE_UP(p) && parser_skip_name(p, "or")) {
        left = node_binary(p, N_OR, 0, left, parse_and(p));
        entered += jinja_enter(p->ctx);
    }
    p->ctx->depth -= entered;
    return left;
}

struct node *jinja_parse_expression(struct parser *p)
{
    if (!jinja_enter(p->ctx)) { return node_new(p, N_CONST); }
    struct node *value = parse_or(p);
    uint32_t entered = 0;
    while (!GIVE_UP(p) && parser_skip_name(p, "if")) {
        struct node *cond = node_binary(p, N_COND, 0, value, NULL);
        struct node *test = parse_or(p);
        struct node *otherwise = parser_skip_name(p, "else") ? jinja_parse_expression(p) : NULL;
        if (GIVE_UP(p)) { break; }
        cond->b = test;
        cond->c = otherwise;
        value = cond;
        entered += jinja_enter(p->ctx);
    }
    p->ctx->depth -= entered;
    jinja_leave(p->ctx);
    return value;
}
