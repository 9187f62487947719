/* jinja_parse: the grammar of statements: tags and their bodies, text between them.
 * Flow:    jinja_lex -> [jinja_parse] -> the tree of jinja_ast.h; expressions by jinja_expression
 * Thread:  the caller's.
 * Memory:  the context's arena. */
#include "model/chat_template/jinja_parser_internal.h"

static struct node *parse_body(struct parser *p, const char *const *ends);

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

/* ---- statements ---- */

/* A name, ns.attribute, or a tuple of them. */
static struct node *parse_target(struct parser *p, bool allow_namespace)
{
    struct node_list list = {0};
    bool is_tuple = false;
    if (!jinja_enter(p->ctx)) { return node_new(p, N_TUPLE); }
    while (!GIVE_UP(p)) {
        if (list.count) {
            if (!parser_skip_op(p, ',')) { break; }
            is_tuple = true;
            if (p->at->kind != T_NAME && !parser_is_op(p, '(')) { break; }
            if (parser_is_name(p, "in")) { break; }
        }
        if (parser_skip_op(p, '(')) {
            node_add(p, &list, parse_target(p, allow_namespace));
            parser_expect_op(p, ')');
            continue;
        }
        struct value name = parser_expect_name(p);
        if (value_is_str(name, "true") || value_is_str(name, "false") || value_is_str(name, "none") || value_is_str(name, "True") ||
            value_is_str(name, "False") || value_is_str(name, "None") || value_is_str(name, "loop")) {
            jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "can't assign to '%.*s'", (int)name.len, name.u.text);
        }
        if (allow_namespace && parser_skip_op(p, '.')) {
            struct node *ref = node_named(p, N_NSREF, name);
            struct node *attribute = node_constant(p, parser_expect_name(p));
            if (!GIVE_UP(p)) { ref->b = attribute; }
            node_add(p, &list, ref);
        } else {
            node_add(p, &list, node_named(p, N_NAME, name));
        }
    }
    jinja_leave(p->ctx);
    return list.count == 1 && !is_tuple ? list.items[0] : node_with_list(p, N_TUPLE, &list);
}

/* The end of a tag, the body up to one of the `ends`, which is left as the current token. */
static struct node *parse_until(struct parser *p, const char *const *ends)
{
    parser_skip_op(p, ':');
    parser_expect_kind(p, T_END_BLOCK, "'%}'");
    return parse_body(p, ends);
}

static void end_tag(struct parser *p, const char *name)
{
    if (!parser_skip_name(p, name)) {
        char wanted[40] = {'\''};
        strncat(wanted, name, sizeof wanted - 3);
        strcat(wanted, "'");
        parser_unexpected(p, wanted);
    }
}

static struct node *parse_for(struct parser *p)
{
    static const char *const ends[] = {"endfor", "else", NULL}, *const last[] = {"endfor", NULL};
    struct node *node = node_new(p, N_FOR);
    struct node *target = parse_target(p, false);
    if (!parser_skip_name(p, "in")) { parser_unexpected(p, "'in'"); }
    struct node *over = jinja_parse_tuple(p, true, "recursive", false);
    struct node *test = parser_skip_name(p, "if") ? jinja_parse_expression(p) : NULL;
    bool recursive = parser_skip_name(p, "recursive");
    p->loops++;
    struct node *body = parse_until(p, ends);
    p->loops--;
    struct node *orelse = parser_skip_name(p, "else") ? parse_until(p, last) : NULL;
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
        node->a = jinja_parse_tuple(p, true, NULL, false);
        node->body = parse_until(p, ends);
        if (parser_skip_name(p, "elif")) {
            struct node *branch = node_new(p, N_IF);
            if (GIVE_UP(p)) { return first; }
            node->orelse = branch;
            node = branch;
            continue;
        }
        if (parser_skip_name(p, "else")) {
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
    if (start_inline) { chain = jinja_parse_filter(p, NULL); }
    while (!GIVE_UP(p) && parser_skip_op(p, '|')) {
        chain = jinja_parse_filter(p, chain);
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
    if (parser_skip_op(p, '=')) {
        struct node *value = jinja_parse_tuple(p, false, NULL, false);
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
    parser_expect_op(p, '(');
    while (!GIVE_UP(p) && !parser_is_op(p, ')')) {
        if (names.count) { parser_expect_op(p, ','); }
        node_add(p, &names, node_named(p, N_NAME, parser_expect_name(p)));
        if (parser_skip_op(p, '=')) {
            node_add(p, &defaults, jinja_parse_expression(p));
        } else if (defaults.count) {
            jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "non-default argument follows default argument");
        }
    }
    parser_expect_op(p, ')');
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
    struct node *node = node_named(p, N_MACRO, parser_expect_name(p));
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
    struct node *node = node_named(p, N_CALL_BLOCK, value_cstr("caller"));
    if (GIVE_UP(p)) { return node; }
    if (parser_is_op(p, '(')) {
        parse_parameters(p, node);
    } else {
        node->args = jinja_alloc(p->ctx, sizeof *node->args);
    }
    struct node *call = jinja_parse_expression(p);
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
        if (list.count) { parser_expect_op(p, ','); }
        node_add(p, &list, parse_target(p, false));
        parser_expect_op(p, '=');
        node_add(p, &list, jinja_parse_expression(p));
    }
    struct node *node = node_with_list(p, N_WITH, &list);
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
        if (list.count) { parser_expect_op(p, ','); }
        node_add(p, &list, node_unary(p, N_OUTPUT, jinja_parse_expression(p)));
    }
    return node_with_list(p, N_BLOCK, &list);
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
    parser_next(p);
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
    parser_refuse(p, "tag", tag, line);
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
            node_add(p, &list, node_named(p, N_DATA, p->at->value));
            parser_next(p);
        } else if (p->at->kind == T_BEGIN_PRINT) {
            parser_next(p);
            struct node *output = node_new(p, N_OUTPUT);
            struct node *value = jinja_parse_tuple(p, false, NULL, false);
            parser_expect_kind(p, T_END_PRINT, "'}}'");
            if (!GIVE_UP(p)) { output->a = value; }
            node_add(p, &list, output);
        } else if (p->at->kind == T_BEGIN_BLOCK) {
            parser_next(p);
            bool ended = false;
            for (const char *const *end = ends; end && *end; end++) { ended |= parser_is_name(p, *end); }
            if (ended) { break; }
            node_add(p, &list, parse_statement(p));
            parser_expect_kind(p, T_END_BLOCK, "'%}'");
        } else if (p->at->kind == T_EOF) {
            if (ends) { jinja_fail(p->ctx, ST_INVALID_ARGUMENT, "unexpected end of template, '%s' is missing", ends[0]); }
            break;
        } else {
            parser_unexpected(p, NULL);
        }
    }
    jinja_leave(p->ctx);
    return node_with_list(p, N_BLOCK, &list);
}
