#include "model/chat_template/jinja_ast.h"
#include "model/chat_template/jinja_builtins.h"
#include "model/chat_template/jinja_lex.h"

struct parser {
    struct jinja_ctx *ctx;
    const struct token *at;
    uint32_t loops; /* enclosing for loops of the same body, for break and continue */
};

static struct node *parse_expression(struct parser *p);
static struct node *parse_postfix(struct parser *p, struct node *node);
static struct node *parse_unary(struct parser *p, bool with_filter);
static struct node *parse_body(struct parser *p, const char *const *ends);

/* ---- tokens ---- */

#define OP2(a, b) ((uint16_t)((unsigned char)(a) | ((unsigned)(b) << 8)))

static void next(struct parser *p)
{
    if (p->at->kind != T_EOF) { p->at++; }
    p->ctx->line = p->at->line;
}

static bool is_op(const struct parser *p, uint16_t op) { return p->at->kind == T_OP && p->at->op == op; }
static bool is_name(const struct parser *p, const char *name) { return p->at->kind == T_NAME && value_is_str(p->at->value, name); }

static bool skip_op(struct parser *p, uint16_t op)
{
    if (!is_op(p, op)) { return false; }
    next(p);
    return true;
}

static bool skip_name(struct parser *p, const char *name)
{
    if (!is_name(p, name)) { return false; }
    next(p);
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

static void unexpected(struct parser *p, const char *wanted)
{
    char text[80];
    if (wanted) {
        jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "expected %s, got '%s'", wanted, describe(p->at, text));
    } else {
        jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "unexpected '%s'", describe(p->at, text));
    }
}

static void expect_op(struct parser *p, char op)
{
    if (is_op(p, (unsigned char)op)) {
        next(p);
        return;
    }
    char wanted[4] = {'\'', op, '\'', 0};
    unexpected(p, wanted);
}

static void expect_kind(struct parser *p, enum token_kind kind, const char *wanted)
{
    if (p->at->kind == kind) { next(p); } else { unexpected(p, wanted); }
}

static struct value expect_name(struct parser *p)
{
    struct value name = p->at->value;
    if (p->at->kind != T_NAME) {
        unexpected(p, "a name");
        return value_cstr("?");
    }
    next(p);
    return name;
}

/* ---- nodes ---- */

static struct node *node_new(struct parser *p, enum node_kind kind)
{
    static struct node nowhere; /* written by nobody: every writer checks failed() or gets its own */
    struct node *node = jinja_alloc(p->ctx, sizeof *node);
    if (!node) { return &nowhere; }
    node->kind = (uint8_t)kind;
    node->line = p->at->line;
    return node;
}

/* A NULL-safe way to end every production once something failed. */
#define GIVE_UP(p) (jinja_failed((p)->ctx))

struct node_list {
    struct node **items;
    uint32_t count, capacity;
};

static void add(struct parser *p, struct node_list *list, struct node *node)
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

static struct node *unary(struct parser *p, enum node_kind kind, struct node *a)
{
    struct node *node = node_new(p, kind);
    if (!GIVE_UP(p)) { node->a = a; }
    return node;
}

static struct node *binary(struct parser *p, enum node_kind kind, enum node_op op, struct node *a, struct node *b)
{
    struct node *node = node_new(p, kind);
    if (GIVE_UP(p)) { return node; }
    node->op = (uint8_t)op;
    node->a = a;
    node->b = b;
    return node;
}

static struct node *with_list(struct parser *p, enum node_kind kind, const struct node_list *list)
{
    struct node *node = node_new(p, kind);
    if (GIVE_UP(p)) { return node; }
    node->list = list->items;
    node->count = list->count;
    return node;
}

static struct node *constant(struct parser *p, struct value value)
{
    struct node *node = node_new(p, N_CONST);
    if (!GIVE_UP(p)) { node->value = value; }
    return node;
}

static struct node *named(struct parser *p, enum node_kind kind, struct value name)
{
    struct node *node = node_new(p, kind);
    if (!GIVE_UP(p)) { node->value = name; }
    return node;
}

/* ---- expressions, loosest first ---- */

/* Ends a tuple without brackets: `}}`, `%}`, `)` and, where `end` is given, that name. */
static bool at_tuple_end(const struct parser *p, const char *end)
{
    return p->at->kind == T_END_PRINT || p->at->kind == T_END_BLOCK || p->at->kind == T_EOF || is_op(p, ')') || (end && is_name(p, end));
}

static struct node *parse_or(struct parser *p);

/* Expressions with commas between them, or one alone. no_cond: no `a if b`, as after `in`. */
static struct node *parse_tuple(struct parser *p, bool no_cond, const char *end, bool in_brackets)
{
    struct node_list list = {0};
    bool is_tuple = false;
    while (!GIVE_UP(p)) {
        if (list.count) { expect_op(p, ','); }
        if (at_tuple_end(p, end)) { break; }
        add(p, &list, no_cond ? parse_or(p) : parse_expression(p));
        if (!is_op(p, ',')) { break; }
        is_tuple = true;
    }
    if (!is_tuple && list.count) { return list.items[0]; }
    if (!is_tuple && !in_brackets) { unexpected(p, "an expression"); }
    return with_list(p, N_TUPLE, &list);
}

static struct node *parse_list(struct parser *p)
{
    struct node_list list = {0};
    expect_op(p, '[');
    while (!GIVE_UP(p) && !is_op(p, ']')) {
        if (list.count) {
            expect_op(p, ',');
            if (is_op(p, ']')) { break; }
        }
        add(p, &list, parse_expression(p));
    }
    expect_op(p, ']');
    return with_list(p, N_LIST, &list);
}

static struct node *parse_dict(struct parser *p)
{
    struct node_list list = {0};
    expect_op(p, '{');
    while (!GIVE_UP(p) && !is_op(p, '}')) {
        if (list.count) {
            expect_op(p, ',');
            if (is_op(p, '}')) { break; }
        }
        add(p, &list, parse_expression(p));
        expect_op(p, ':');
        add(p, &list, parse_expression(p));
    }
    expect_op(p, '}');
    return with_list(p, N_DICT, &list);
}

static struct node *parse_name(struct parser *p)
{
    struct value name = p->at->value;
    struct node *node;
    if (value_is_str(name, "true") || value_is_str(name, "True")) {
        node = constant(p, value_bool(true));
    } else if (value_is_str(name, "false") || value_is_str(name, "False")) {
        node = constant(p, value_bool(false));
    } else if (value_is_str(name, "none") || value_is_str(name, "None")) {
        node = constant(p, value_none());
    } else {
        node = named(p, N_NAME, name);
    }
    next(p);
    return node;
}

static struct node *parse_primary(struct parser *p)
{
    if (p->at->kind == T_NAME) { return parse_name(p); }
    if (p->at->kind == T_NUMBER) {
        struct node *node = constant(p, p->at->value);
        next(p);
        return node;
    }
    if (p->at->kind == T_STRING) {
        struct node *node = constant(p, p->at->value);
        next(p);
        while (p->at->kind == T_STRING && !GIVE_UP(p)) { /* 'a' 'b' is 'ab' */
            node->value = text_append(p->ctx, node->value, p->at->value);
            node->value.tip = NULL; /* a constant is shared by all renders and must not grow in place */
            next(p);
        }
        return node;
    }
    if (is_op(p, '(')) {
        next(p);
        struct node *node = parse_tuple(p, false, NULL, true);
        expect_op(p, ')');
        return node;
    }
    if (is_op(p, '[')) { return parse_list(p); }
    if (is_op(p, '{')) { return parse_dict(p); }
    unexpected(p, NULL);
    return node_new(p, N_CONST);
}

static struct arguments *parse_arguments(struct parser *p)
{
    struct arguments *args = jinja_alloc(p->ctx, sizeof *args);
    struct node_list values = {0};
    struct list *names = list_new(p->ctx, 0);
    bool by_name = false, need_comma = false;
    expect_op(p, '(');
    while (!GIVE_UP(p) && !is_op(p, ')')) {
        if (need_comma) {
            expect_op(p, ',');
            if (is_op(p, ')')) { break; }
        }
        need_comma = true;
        if (skip_op(p, '*')) {
            if (args->star || args->star_star) { unexpected(p, "one * argument"); }
            args->star = parse_expression(p);
        } else if (skip_op(p, OP2('*', '*'))) {
            if (args->star_star) { unexpected(p, "one ** argument"); }
            args->star_star = parse_expression(p);
        } else if (p->at->kind == T_NAME && p->at[1].kind == T_OP && p->at[1].op == '=') {
            if (args->star_star) { unexpected(p, "no argument after **"); }
            list_push(p->ctx, names, p->at->value);
            by_name = true;
            next(p);
            next(p);
            add(p, &values, parse_expression(p));
        } else {
            if (by_name || args->star || args->star_star) { unexpected(p, "a named argument"); }
            list_push(p->ctx, names, value_none());
            add(p, &values, parse_expression(p));
        }
    }
    expect_op(p, ')');
    if (GIVE_UP(p)) { return NULL; }
    args->values = values.items;
    args->names = names->items;
    args->count = values.count;
    return args;
}

static struct node *parse_subscribed(struct parser *p)
{
    struct node *bounds[3] = {0};
    if (!is_op(p, ':')) {
        bounds[0] = parse_expression(p);
        if (!is_op(p, ':')) { return bounds[0]; }
    }
    for (int i = 1; i < 3 && skip_op(p, ':'); i++) {
        if (!is_op(p, ':') && !is_op(p, ']') && !is_op(p, ',')) { bounds[i] = parse_expression(p); }
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
    if (skip_op(p, '.')) {
        if (p->at->kind == T_NUMBER && p->at->value.kind == V_INT) {
            struct node *index = constant(p, p->at->value);
            next(p);
            return binary(p, N_GETITEM, 0, node, index);
        }
        struct node *get = named(p, N_GETATTR, expect_name(p));
        if (!GIVE_UP(p)) { get->a = node; }
        return get;
    }
    expect_op(p, '[');
    struct node_list list = {0};
    while (!GIVE_UP(p) && !is_op(p, ']')) {
        if (list.count) { expect_op(p, ','); }
        add(p, &list, parse_subscribed(p));
    }
    expect_op(p, ']');
    return binary(p, N_GETITEM, 0, node, list.count == 1 ? list.items[0] : with_list(p, N_TUPLE, &list));
}

static struct node *parse_call(struct parser *p, struct node *node)
{
    struct node *call = unary(p, N_CALL, node);
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
        if (is_op(p, '.') || is_op(p, '[')) {
            node = parse_subscript(p, node);
        } else if (is_op(p, '(')) {
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
    struct node *node = named(p, kind, expect_name(p));
    if (GIVE_UP(p)) { return node; }
    node->a = input;
    return node;
}

static void refuse(struct parser *p, const char *what, struct value name, uint32_t line)
{
    p->ctx->line = line;
    jinja_fail(p->ctx, ST_UNIMPLEMENTED, "unsupported %s '%.*s' at line %u", what, (int)(name.len < 60 ? name.len : 60), name.u.text, line);
}

static struct node *parse_filter(struct parser *p, struct node *input)
{
    struct node *node = name_and_arguments(p, N_FILTER, input);
    if (GIVE_UP(p)) { return node; }
    node->number = jinja_filter_find(node->value);
    if (node->number == BUILTIN_NONE) { refuse(p, "filter", node->value, node->line); }
    if (is_op(p, '(')) { node->args = parse_arguments(p); }
    return node;
}

static struct node *parse_test(struct parser *p, struct node *input)
{
    bool negated = skip_name(p, "not");
    struct node *node = name_and_arguments(p, N_TEST, input);
    if (GIVE_UP(p)) { return node; }
    node->number = jinja_test_find(node->value);
    if (node->number == BUILTIN_NONE) { refuse(p, "test", node->value, node->line); }
    bool starts = p->at->kind == T_NAME || p->at->kind == T_STRING || p->at->kind == T_NUMBER || is_op(p, '[') || is_op(p, '{');
    if (is_op(p, '(')) {
        node->args = parse_arguments(p);
    } else if (starts && !is_name(p, "else") && !is_name(p, "or") && !is_name(p, "and")) {
        if (is_name(p, "is")) { jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "You cannot chain multiple tests with is"); }
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
    return negated ? unary(p, N_NOT, node) : node;
}

static struct node *parse_filters(struct parser *p, struct node *node)
{
    uint32_t entered = 0;
    while (!GIVE_UP(p)) {
        if (skip_op(p, '|')) {
            node = parse_filter(p, node);
        } else if (skip_name(p, "is")) {
            node = parse_test(p, node);
        } else if (is_op(p, '(')) {
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
    if (is_op(p, '-') || is_op(p, '+')) {
        enum node_kind kind = is_op(p, '-') ? N_NEG : N_POS;
        next(p);
        node = unary(p, kind, parse_unary(p, false));
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
        while (i < op_count && !is_op(p, tokens[i])) { i++; }
        if (i == op_count) { break; }
        next(p);
        left = binary(p, N_BINARY, ops[i], left, inner(p));
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
    add(p, &list, parse_products(p));
    while (!GIVE_UP(p) && skip_op(p, '~')) { add(p, &list, parse_products(p)); }
    return list.count == 1 ? list.items[0] : with_list(p, N_CONCAT, &list);
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
            if (is_op(p, table[i].token)) { op = table[i].op; }
        }
        if (is_name(p, "in")) { op = OP_IN; }
        if (is_name(p, "not") && p->at[1].kind == T_NAME && value_is_str(p->at[1].value, "in")) {
            op = OP_NOT_IN;
            next(p);
        }
        if (op < 0) { break; }
        next(p);
        add(p, &list, binary(p, N_OPERAND, (enum node_op)op, parse_sums(p), NULL));
    }
    if (list.count == 0) { return left; }
    struct node *node = with_list(p, N_COMPARE, &list);
    if (!GIVE_UP(p)) { node->a = left; }
    return node;
}

static struct node *parse_not(struct parser *p)
{
    if (!jinja_enter(p->ctx)) { return node_new(p, N_CONST); }
    struct node *node = skip_name(p, "not") ? unary(p, N_NOT, parse_not(p)) : parse_compare(p);
    jinja_leave(p->ctx);
    return node;
}

static struct node *parse_and(struct parser *p)
{
    struct node *left = parse_not(p);
    uint32_t entered = 0;
    while (!GIVE_UP(p) && skip_name(p, "and")) {
        left = binary(p, N_AND, 0, left, parse_not(p));
        entered += jinja_enter(p->ctx);
    }
    p->ctx->depth -= entered;
    return left;
}

static struct node *parse_or(struct parser *p)
{
    struct node *left = parse_and(p);
    uint32_t entered = 0;
    while (!GIVE_UP(p) && skip_name(p, "or")) {
        left = binary(p, N_OR, 0, left, parse_and(p));
        entered += jinja_enter(p->ctx);
    }
    p->ctx->depth -= entered;
    return left;
}

static struct node *parse_expression(struct parser *p)
{
    if (!jinja_enter(p->ctx)) { return node_new(p, N_CONST); }
    struct node *value = parse_or(p);
    uint32_t entered = 0;
    while (!GIVE_UP(p) && skip_name(p, "if")) {
        struct node *cond = binary(p, N_COND, 0, value, NULL);
        struct node *test = parse_or(p);
        struct node *otherwise = skip_name(p, "else") ? parse_expression(p) : NULL;
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

/* ---- statements ---- */

/* A name, ns.attribute, or a tuple of them. */
static struct node *parse_target(struct parser *p, bool allow_namespace)
{
    struct node_list list = {0};
    bool is_tuple = false;
    if (!jinja_enter(p->ctx)) { return node_new(p, N_TUPLE); }
    while (!GIVE_UP(p)) {
        if (list.count) {
            if (!skip_op(p, ',')) { break; }
            is_tuple = true;
            if (p->at->kind != T_NAME && !is_op(p, '(')) { break; }
            if (is_name(p, "in")) { break; }
        }
        if (skip_op(p, '(')) {
            add(p, &list, parse_target(p, allow_namespace));
            expect_op(p, ')');
            continue;
        }
        struct value name = expect_name(p);
        if (value_is_str(name, "true") || value_is_str(name, "false") || value_is_str(name, "none") || value_is_str(name, "True") ||
            value_is_str(name, "False") || value_is_str(name, "None") || value_is_str(name, "loop")) {
            jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "can't assign to '%.*s'", (int)name.len, name.u.text);
        }
        if (allow_namespace && skip_op(p, '.')) {
            struct node *ref = named(p, N_NSREF, name);
            struct node *attribute = constant(p, expect_name(p));
            if (!GIVE_UP(p)) { ref->b = attribute; }
            add(p, &list, ref);
        } else {
            add(p, &list, named(p, N_NAME, name));
        }
    }
    jinja_leave(p->ctx);
    return list.count == 1 && !is_tuple ? list.items[0] : with_list(p, N_TUPLE, &list);
}

/* The end of a tag, the body up to one of the `ends`, which is left as the current token. */
static struct node *parse_until(struct parser *p, const char *const *ends)
{
    skip_op(p, ':');
    expect_kind(p, T_END_BLOCK, "'%}'");
    return parse_body(p, ends);
}

static void end_tag(struct parser *p, const char *name)
{
    if (!skip_name(p, name)) {
        char wanted[40] = {'\''};
        strncat(wanted, name, sizeof wanted - 3);
        strcat(wanted, "'");
        unexpected(p, wanted);
    }
}

static struct node *parse_for(struct parser *p)
{
    static const char *const ends[] = {"endfor", "else", NULL}, *const last[] = {"endfor", NULL};
    struct node *node = node_new(p, N_FOR);
    struct node *target = parse_target(p, false);
    if (!skip_name(p, "in")) { unexpected(p, "'in'"); }
    struct node *over = parse_tuple(p, true, "recursive", false);
    struct node *test = skip_name(p, "if") ? parse_expression(p) : NULL;
    bool recursive = skip_name(p, "recursive");
    p->loops++;
    struct node *body = parse_until(p, ends);
    p->loops--;
    struct node *orelse = skip_name(p, "else") ? parse_until(p, last) : NULL;
    end_tag(p, "endfor");
    if (GIVE_UP(p)) { return node; }
    node->a = target;
    node->b = over;
    node->c = test;
    node->op = recursive;
    node->body = body;
    node->orelse = orelse;
    return node;
}

static struct node *parse_if(struct parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    struct node *first = node_new(p, N_IF), *node = first;
    while (!GIVE_UP(p)) {
        node->a = parse_tuple(p, true, NULL, false);
        node->body = parse_until(p, ends);
        if (skip_name(p, "elif")) {
            struct node *branch = node_new(p, N_IF);
            if (GIVE_UP(p)) { return first; }
            node->orelse = branch;
            node = branch;
            continue;
        }
        if (skip_name(p, "else")) {
            struct node *otherwise = parse_until(p, last);
            if (!GIVE_UP(p)) { node->orelse = otherwise; }
        }
        end_tag(p, "endif");
        break;
    }
    return first;
}

/* A chain of filters on a block's text: the innermost filter's input is NULL. */
static struct node *parse_block_filters(struct parser *p, bool start_inline)
{
    struct node *chain = NULL;
    uint32_t entered = 0;
    if (start_inline) { chain = parse_filter(p, NULL); }
    while (!GIVE_UP(p) && skip_op(p, '|')) {
        chain = parse_filter(p, chain);
        entered += jinja_enter(p->ctx);
    }
    p->ctx->depth -= entered;
    return chain;
}

static struct node *parse_set(struct parser *p)
{
    static const char *const ends[] = {"endset", NULL};
    struct node *node = node_new(p, N_SET);
    struct node *target = parse_target(p, true);
    if (skip_op(p, '=')) {
        struct node *value = parse_tuple(p, false, NULL, false);
        if (GIVE_UP(p)) { return node; }
        node->a = target;
        node->b = value;
        return node;
    }
    struct node *filters = parse_block_filters(p, false);
    struct node *body = parse_until(p, ends);
    end_tag(p, "endset");
    if (GIVE_UP(p)) { return node; }
    node->kind = N_SET_BLOCK;
    node->a = target;
    node->b = filters;
    node->body = body;
    return node;
}

/* (a, b=1): names into node->list, defaults of the last ones into node->args. */
static void parse_parameters(struct parser *p, struct node *node)
{
    struct node_list names = {0}, defaults = {0};
    expect_op(p, '(');
    while (!GIVE_UP(p) && !is_op(p, ')')) {
        if (names.count) { expect_op(p, ','); }
        add(p, &names, named(p, N_NAME, expect_name(p)));
        if (skip_op(p, '=')) {
            add(p, &defaults, parse_expression(p));
        } else if (defaults.count) {
            jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "non-default argument follows default argument");
        }
    }
    expect_op(p, ')');
    struct arguments *args = jinja_alloc(p->ctx, sizeof *args);
    if (GIVE_UP(p)) { return; }
    node->list = names.items;
    node->count = names.count;
    args->values = defaults.items;
    args->count = defaults.count;
    node->args = args;
}

static struct node *parse_separate_body(struct parser *p, const char *const *ends)
{
    uint32_t loops = p->loops;
    p->loops = 0;
    struct node *body = parse_until(p, ends);
    p->loops = loops;
    return body;
}

static struct node *parse_macro(struct parser *p)
{
    static const char *const ends[] = {"endmacro", NULL};
    struct node *node = named(p, N_MACRO, expect_name(p));
    if (GIVE_UP(p)) { return node; }
    parse_parameters(p, node);
    struct node *body = parse_separate_body(p, ends);
    end_tag(p, "endmacro");
    if (!GIVE_UP(p)) { node->body = body; }
    return node;
}

static struct node *parse_call_block(struct parser *p)
{
    static const char *const ends[] = {"endcall", NULL};
    struct node *node = named(p, N_CALL_BLOCK, value_cstr("caller"));
    if (GIVE_UP(p)) { return node; }
    if (is_op(p, '(')) {
        parse_parameters(p, node);
    } else {
        node->args = jinja_alloc(p->ctx, sizeof *node->args);
    }
    struct node *call = parse_expression(p);
    if (!GIVE_UP(p) && call->kind != N_CALL) { jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "expected call"); }
    struct node *body = parse_separate_body(p, ends);
    end_tag(p, "endcall");
    if (GIVE_UP(p)) { return node; }
    node->a = call;
    node->body = body;
    return node;
}

static struct node *parse_with(struct parser *p)
{
    static const char *const ends[] = {"endwith", NULL};
    struct node_list list = {0};
    while (!GIVE_UP(p) && p->at->kind != T_END_BLOCK) {
        if (list.count) { expect_op(p, ','); }
        add(p, &list, parse_target(p, false));
        expect_op(p, '=');
        add(p, &list, parse_expression(p));
    }
    struct node *node = with_list(p, N_WITH, &list);
    struct node *body = parse_until(p, ends);
    end_tag(p, "endwith");
    if (!GIVE_UP(p)) { node->body = body; }
    return node;
}

/* {% print a, b %} prints one after the other. */
static struct node *parse_print(struct parser *p)
{
    struct node_list list = {0};
    while (!GIVE_UP(p) && p->at->kind != T_END_BLOCK) {
        if (list.count) { expect_op(p, ','); }
        add(p, &list, unary(p, N_OUTPUT, parse_expression(p)));
    }
    return with_list(p, N_BLOCK, &list);
}

static struct node *parse_statement(struct parser *p)
{
    static const char *const generation_ends[] = {"endgeneration", NULL}, *const filter_ends[] = {"endfilter", NULL};
    struct value tag = p->at->value;
    uint32_t line = p->at->line;
    if (p->at->kind != T_NAME) {
        jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "tag name expected");
        return node_new(p, N_BLOCK);
    }
    next(p);
    if (value_is_str(tag, "for")) { return parse_for(p); }
    if (value_is_str(tag, "if")) { return parse_if(p); }
    if (value_is_str(tag, "set")) { return parse_set(p); }
    if (value_is_str(tag, "macro")) { return parse_macro(p); }
    if (value_is_str(tag, "call")) { return parse_call_block(p); }
    if (value_is_str(tag, "with")) { return parse_with(p); }
    if (value_is_str(tag, "break") || value_is_str(tag, "continue")) {
        if (p->loops == 0) { jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "'%.*s' outside loop", (int)tag.len, tag.u.text); }
        return node_new(p, tag.u.text[0] == 'b' ? N_BREAK : N_CONTINUE);
    }
    if (value_is_str(tag, "print")) { return parse_print(p); }
    if (value_is_str(tag, "generation")) {
        struct node *node = node_new(p, N_SCOPE);
        struct node *body = parse_separate_body(p, generation_ends);
        end_tag(p, "endgeneration");
        if (!GIVE_UP(p)) { node->body = body; }
        return node;
    }
    if (value_is_str(tag, "filter")) {
        struct node *node = node_new(p, N_FILTER_BLOCK);
        struct node *filters = parse_block_filters(p, true);
        struct node *body = parse_separate_body(p, filter_ends);
        end_tag(p, "endfilter");
        if (GIVE_UP(p)) { return node; }
        node->b = filters;
        node->body = body;
        return node;
    }
    static const char *const stray[] = {"endfor", "endif", "else", "elif", "endset", "endmacro", "endcall", "endwith", "endfilter", "endgeneration"};
    for (size_t i = 0; i < sizeof stray / sizeof stray[0]; i++) {
        if (value_is_str(tag, stray[i])) {
            jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "unexpected tag '%s', which closes nothing that is open here", stray[i]);
            return node_new(p, N_BLOCK);
        }
    }
    refuse(p, "tag", tag, line);
    return node_new(p, N_BLOCK);
}

/* Statements up to a tag named in `ends` (its name is then the current token), or to the end
 * of the template when ends is NULL. */
static struct node *parse_body(struct parser *p, const char *const *ends)
{
    struct node_list list = {0};
    if (!jinja_enter(p->ctx)) { return node_new(p, N_BLOCK); }
    while (!GIVE_UP(p)) {
        if (p->at->kind == T_DATA) {
            add(p, &list, named(p, N_DATA, p->at->value));
            next(p);
        } else if (p->at->kind == T_BEGIN_PRINT) {
            next(p);
            struct node *output = node_new(p, N_OUTPUT);
            struct node *value = parse_tuple(p, false, NULL, false);
            expect_kind(p, T_END_PRINT, "'}}'");
            if (!GIVE_UP(p)) { output->a = value; }
            add(p, &list, output);
        } else if (p->at->kind == T_BEGIN_BLOCK) {
            next(p);
            bool ended = false;
            for (const char *const *end = ends; end && *end; end++) { ended |= is_name(p, *end); }
            if (ended) { break; }
            add(p, &list, parse_statement(p));
            expect_kind(p, T_END_BLOCK, "'%}'");
        } else if (p->at->kind == T_EOF) {
            if (ends) { jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "unexpected end of template, '%s' is missing", ends[0]); }
            break;
        } else {
            unexpected(p, NULL);
        }
    }
    jinja_leave(p->ctx);
    return with_list(p, N_BLOCK, &list);
}

struct node *jinja_parse(struct jinja_ctx *ctx, const char *source, size_t len)
{
    uint32_t count = 0;
    const struct token *tokens = jinja_lex(ctx, source, len, &count);
    if (!tokens) { return NULL; }
    struct parser parser = {.ctx = ctx, .at = tokens};
    ctx->line = 1;
    struct node *root = parse_body(&parser, NULL);
    return jinja_failed(ctx) ? NULL : root;
}
