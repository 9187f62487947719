#include "model/chat_template/jinja_eval.h"

#include <time.h>

#include "model/chat_template/jinja_builtins.h"

struct scope {
    struct scope *parent;
    struct dict names;
};

struct macro {
    const struct node *node; /* N_MACRO or N_CALL_BLOCK */
    struct scope *scope;     /* around its definition */
    struct value *defaults;  /* [node->args->count], evaluated where the macro was defined */
};

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

struct vm {
    struct jinja_ctx *ctx;
    struct scope *scope;
    const struct dict *variables;
    struct text *out;
    enum flow flow;
    int64_t now_s;
    size_t output_max;
    bool raised;
};

static const char *const functions[] = {"range", "dict", "namespace", "raise_exception", "strftime_now"};
enum { FN_RANGE, FN_DICT, FN_NAMESPACE, FN_RAISE, FN_STRFTIME, FN_COUNT };

static struct value eval(struct vm *vm, const struct node *node);
static void run(struct vm *vm, const struct node *node);
static void run_loop(struct vm *vm, const struct node *node, struct value over, uint32_t depth);

/* ---- names ---- */

static void set_name(struct vm *vm, struct value name, struct value value) { dict_set(vm->ctx, &vm->scope->names, name, value); }

static struct value get_name(struct vm *vm, struct value name)
{
    for (struct scope *scope = vm->scope; scope; scope = scope->parent) {
        const struct value *have = dict_get(vm->ctx, &scope->names, name);
        if (have) { return *have; }
    }
    const struct value *have = dict_get(vm->ctx, vm->variables, name);
    if (have) { return *have; }
    for (uint32_t i = 0; i < FN_COUNT; i++) {
        if (value_is_str(name, functions[i])) { return (struct value){.kind = V_FUNCTION, .u.function = i}; }
    }
    static const char *const refused[] = {"lipsum", "cycler", "joiner"};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (value_is_str(name, refused[i])) { jinja_fail(vm->ctx, ST_UNIMPLEMENTED, "unsupported function '%s' at line %u", refused[i], vm->ctx->line); }
    }
    return value_undefined(vm->ctx, "'%.*s' is undefined", (int)(name.len < 100 ? name.len : 100), name.u.text);
}

static struct scope *scope_new(struct vm *vm, struct scope *parent)
{
    struct scope *scope = jinja_alloc(vm->ctx, sizeof *scope);
    if (scope) { scope->parent = parent; }
    return scope;
}

static void assign(struct vm *vm, const struct node *target, struct value value)
{
    if (jinja_failed(vm->ctx)) { return; }
    if (target->kind == N_NAME) {
        set_name(vm, target->value, value);
    } else if (target->kind == N_NSREF) {
        struct value space = get_name(vm, target->value);
        if (jinja_failed(vm->ctx)) { return; }
        if (space.kind != V_NAMESPACE) {
            jinja_fail(vm->ctx, ST_INVALID_ARGUMENT, "cannot assign attribute on non-namespace object");
            return;
        }
        if (target->b->value.len && target->b->value.u.text[0] == '_') {
            jinja_fail(vm->ctx, ST_INVALID_ARGUMENT, "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '%.*s'. Please rename the attribute.",
                       (int)(target->b->value.len < 60 ? target->b->value.len : 60), target->b->value.u.text);
            return;
        }
        dict_set(vm->ctx, space.u.dict, target->b->value, value);
    } else {
        const struct list *parts = value_items(vm->ctx, value);
        if (jinja_failed(vm->ctx)) { return; }
        if (parts->count != target->count) {
            jinja_fail(vm->ctx, ST_INVALID_ARGUMENT, parts->count > target->count ? "too many values to unpack (expected %u)" : "not enough values to unpack (expected %u)",
                       target->count);
            return;
        }
        for (uint32_t i = 0; i < target->count; i++) { assign(vm, target->list[i], parts->items[i]); }
    }
}

/* ---- calls ---- */

static void push_argument(struct vm *vm, struct list *names, struct list *values, struct value name, struct value value)
{
    list_push(vm->ctx, names, name);
    list_push(vm->ctx, values, value);
}

static struct call eval_arguments(struct vm *vm, const struct arguments *args)
{
    if (!args) { return (struct call){0}; }
    struct list *names = list_new(vm->ctx, args->count), *values = list_new(vm->ctx, args->count);
    uint32_t positional = 0;
    for (uint32_t i = 0; i < args->count && args->names[i].kind == V_NONE; i++, positional++) {
        push_argument(vm, names, values, value_none(), eval(vm, args->values[i]));
    }
    if (args->star) {
        const struct list *more = value_items(vm->ctx, eval(vm, args->star));
        for (uint32_t i = 0; more && i < more->count; i++) { push_argument(vm, names, values, value_none(), more->items[i]); }
    }
    uint32_t before_names = values ? values->count : 0;
    for (uint32_t i = positional; i < args->count; i++) { push_argument(vm, names, values, args->names[i], eval(vm, args->values[i])); }
    if (args->star_star) {
        struct value more = eval(vm, args->star_star);
        if (more.kind != V_DICT) { jinja_fail(vm->ctx, ST_INVALID_ARGUMENT, "argument after ** must be a mapping, not %s", value_type_name(more)); }
        for (uint32_t i = 0; !jinja_failed(vm->ctx) && i < more.u.dict->count; i++) {
            if (more.u.dict->pairs[i].key.kind != V_STR) { jinja_fail(vm->ctx, ST_INVALID_ARGUMENT, "keywords must be strings"); }
            push_argument(vm, names, values, more.u.dict->pairs[i].key, more.u.dict->pairs[i].value);
        }
    }
    if (jinja_failed(vm->ctx)) { return (struct call){0}; }
    return (struct call){.values = values->items, .names = names->items, .count = values->count, .positional = before_names};
}

/* Runs a body with its output caught. */
static struct value capture(struct vm *vm, const struct node *body)
{
    struct text text = {0}, *outer = vm->out;
    vm->out = &text;
    run(vm, body);
    vm->out = outer;
    return text_value(vm->ctx, &text);
}

/* Binds a macro's parameters in a fresh scope. */
static void bind_macro(struct vm *vm, const struct macro *macro, const struct call *call)
{
    const struct node *node = macro->node;
    struct jinja_ctx *ctx = vm->ctx;
    uint32_t first_default = node->count - node->args->count;
    if (call->positional > node->count) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "macro '%.*s' takes not more than %u argument(s)", (int)node->value.len, node->value.u.text, node->count);
        return;
    }
    for (uint32_t i = 0; i < node->count; i++) {
        struct value name = node->list[i]->value;
        if (i < call->positional) {
            set_name(vm, name, call->values[i]);
        } else if (i >= first_default) {
            set_name(vm, name, macro->defaults[i - first_default]);
        } else {
            set_name(vm, name, value_undefined(ctx, "parameter '%.*s' was not provided", (int)(name.len < 60 ? name.len : 60), name.u.text));
        }
    }
    for (uint32_t k = call->positional; k < call->count; k++) {
        struct value name = call->names[k];
        uint32_t i = 0;
        while (i < node->count && !value_equal(ctx, node->list[i]->value, name)) { i++; }
        if (i == node->count && !value_is_str(name, "caller")) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "macro '%.*s' takes no keyword argument '%.*s'", (int)node->value.len, node->value.u.text,
                       (int)(name.len < 60 ? name.len : 60), name.u.text);
        } else if (i < call->positional) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "macro '%.*s' got multiple values for argument '%.*s'", (int)node->value.len, node->value.u.text, (int)name.len,
                       name.u.text);
        }
        if (jinja_failed(ctx)) { return; }
        set_name(vm, name, call->values[k]);
    }
}

static struct value call_macro(struct vm *vm, const struct macro *macro, const struct call *call)
{
    struct scope *outer = vm->scope;
    enum flow flow = vm->flow;
    struct value result = value_none();
    struct scope *inner = scope_new(vm, macro->scope);
    if (inner && jinja_enter(vm->ctx)) {
        vm->scope = inner;
        vm->flow = FLOW_ON;
        bind_macro(vm, macro, call);
        result = capture(vm, macro->node->body);
        jinja_leave(vm->ctx);
    }
    vm->scope = outer;
    vm->flow = flow;
    return result;
}

static struct value make_macro(struct vm *vm, const struct node *node)
{
    struct macro *macro = jinja_alloc(vm->ctx, sizeof *macro);
    struct value *defaults = jinja_alloc(vm->ctx, (node->args->count + 1) * sizeof *defaults);
    if (!macro || !defaults) { return value_none(); }
    for (uint32_t i = 0; i < node->args->count; i++) { defaults[i] = eval(vm, node->args->values[i]); }
    *macro = (struct macro){node, vm->scope, defaults};
    return (struct value){.kind = V_MACRO, .u.macro = macro};
}

/* The sandbox's range(). */
static struct value call_range(struct vm *vm, const struct call *call)
{
    struct jinja_ctx *ctx = vm->ctx;
    int64_t bounds[3] = {0, 0, 1};
    if (call->count != call->positional || call->count < 1 || call->count > 3) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "range expected 1 to 3 arguments, got %u", call->count);
        return value_none();
    }
    for (uint32_t i = 0; i < call->count; i++) {
        if (!value_require(ctx, call->values[i])) { return value_none(); }
        if (!value_is_integral(call->values[i])) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "'%s' object cannot be interpreted as an integer", value_type_name(call->values[i]));
            return value_none();
        }
        bounds[call->count == 1 ? 1 : i] = value_integer(call->values[i]);
    }
    struct range *range = jinja_alloc(ctx, sizeof *range);
    if (bounds[2] == 0) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "range() arg 3 must not be zero"); }
    if (!range || jinja_failed(ctx)) { return value_none(); }
    range->start = bounds[0];
    range->stop = bounds[1];
    range->step = bounds[2];
    for (int64_t i = bounds[0]; (bounds[2] > 0 ? i < bounds[1] : i > bounds[1]) && jinja_charge(ctx, 1);) {
        if (range->list.count == 100000) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
            return value_none();
        }
        list_push(ctx, &range->list, value_int(i));
        if (__builtin_add_overflow(i, bounds[2], &i)) { break; }
    }
    return (struct value){.kind = V_RANGE, .u.range = range};
}

/* dict(mapping or pairs, key=value) and namespace() of the same. */
static struct value call_dict_maker(struct vm *vm, const struct call *call, bool is_namespace)
{
    struct jinja_ctx *ctx = vm->ctx;
    struct dict *dict = dict_new(ctx);
    if (call->positional > 1) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "dict expected at most 1 argument, got %u", call->positional); }
    if (call->positional == 1 && call->values[0].kind == V_DICT) {
        const struct dict *from = call->values[0].u.dict;
        for (uint32_t i = 0; i < from->count && !jinja_failed(ctx); i++) { dict_set(ctx, dict, from->pairs[i].key, from->pairs[i].value); }
    } else if (call->positional == 1) {
        const struct list *pairs = value_items(ctx, call->values[0]);
        for (uint32_t i = 0; pairs && i < pairs->count && !jinja_failed(ctx); i++) {
            const struct list *pair = value_items(ctx, pairs->items[i]);
            if (pair && pair->count != 2) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "dictionary update sequence element #%u has length %u; 2 is required", i, pair->count); }
            if (pair && !jinja_failed(ctx)) { dict_set(ctx, dict, pair->items[0], pair->items[1]); }
        }
    }
    for (uint32_t i = call->positional; i < call->count; i++) { dict_set(ctx, dict, call->names[i], call->values[i]); }
    if (!dict || jinja_failed(ctx)) { return value_none(); }
    return (struct value){.kind = is_namespace ? V_NAMESPACE : V_DICT, .u.dict = dict};
}

static struct value call_raise(struct vm *vm, const struct call *call)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(vm->ctx, "raise_exception", call, "message", 1, p)) { return value_none(); }
    struct value text = value_to_str(vm->ctx, p[0]);
    if (jinja_failed(vm->ctx)) { return value_none(); }
    vm->raised = true;
    vm->ctx->status = STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    diag_set(vm->ctx->diag, "%.*s", (int)text.len, text.u.text);
    return value_none();
}

static struct value call_strftime(struct vm *vm, const struct call *call)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(vm->ctx, "strftime_now", call, "format", 1, p)) { return value_none(); }
    char format[200], text[512];
    if (p[0].kind != V_STR || p[0].len >= sizeof format || memchr(p[0].u.text, '\0', p[0].len)) {
        jinja_fail(vm->ctx, ST_INVALID_ARGUMENT, "strftime_now wants a format of less than %zu bytes", sizeof format);
        return value_none();
    }
    memcpy(format, p[0].u.text, p[0].len);
    format[p[0].len] = '\0';
    /* Python has no flags or widths of the C library's own; an odd letter is refused too. */
    for (const char *at = format; (at = strchr(at, '%')) != NULL; at += 2) {
        if (!strchr("aAwdbBmyYHIpMSjUWcxXGuV%eDFTRhnkls-Z", at[1]) || at[1] == '\0' || (at[1] == '-' && !strchr("dmyHIMSj", at[2]))) {
            jinja_fail(vm->ctx, ST_UNIMPLEMENTED, "unsupported date format '%.60s' at line %u", format, vm->ctx->line);
            return value_none();
        }
        at += at[1] == '-';
    }
    time_t now = (time_t)vm->now_s;
    struct tm fields;
    if (!localtime_r(&now, &fields)) {
        jinja_fail(vm->ctx, ST_INVALID_ARGUMENT, "the time %lld has no date", (long long)vm->now_s);
        return value_none();
    }
    if (format[0] == '\0') { return value_str("", 0); }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t len = strftime(text, sizeof text, format, &fields);
#pragma GCC diagnostic pop
    if (len == 0) { jinja_fail(vm->ctx, ST_INVALID_ARGUMENT, "strftime_now: the date is longer than %zu bytes", sizeof text); }
    return value_str_copy(vm->ctx, text, len);
}

static struct value call_value(struct vm *vm, struct value callee, const struct call *call)
{
    struct jinja_ctx *ctx = vm->ctx;
    if (!value_require(ctx, callee) || !jinja_charge(ctx, 1)) { return value_none(); }
    switch (callee.kind) {
    case V_MACRO: return call_macro(vm, callee.u.macro, call);
    case V_METHOD: return jinja_method_call(ctx, callee.u.method, call);
    case V_FUNCTION:
        switch (callee.u.function) {
        case FN_RANGE: return call_range(vm, call);
        case FN_DICT: return call_dict_maker(vm, call, false);
        case FN_NAMESPACE: return call_dict_maker(vm, call, true);
        case FN_RAISE: return call_raise(vm, call);
        default: return call_strftime(vm, call);
        }
    case V_LOOP: {
        const struct loop *loop = callee.u.loop;
        if (!loop->node || call->count != 1) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "The loop must have the 'recursive' marker to be called recursively.");
            return value_none();
        }
        struct text text = {0}, *outer_out = vm->out;
        struct scope *outer = vm->scope;
        enum flow flow = vm->flow;
        vm->out = &text;
        vm->scope = loop->scope;
        vm->flow = FLOW_ON;
        run_loop(vm, loop->node, call->values[0], loop->depth + 1);
        vm->out = outer_out;
        vm->scope = outer;
        vm->flow = flow;
        return text_value(ctx, &text);
    }
    default: jinja_fail(ctx, ST_INVALID_ARGUMENT, "'%s' object is not callable", value_type_name(callee)); return value_none();
    }
}

/* ---- expressions ---- */

static bool compare(struct vm *vm, int op, struct value a, struct value b)
{
    struct jinja_ctx *ctx = vm->ctx;
    switch (op) {
    case OP_EQ: return value_equal(ctx, a, b);
    case OP_NE: return !value_equal(ctx, a, b);
    case OP_LT: return value_less(ctx, a, b, "<");
    case OP_GT: return value_less(ctx, b, a, ">");
    /* Not "!(b < a)": with a NaN both are false. */
    case OP_LE: return value_less(ctx, a, b, "<=") || value_equal(ctx, a, b);
    case OP_GE: return value_less(ctx, b, a, ">=") || value_equal(ctx, a, b);
    case OP_IN: return value_contains(ctx, a, b);
    default: return !value_contains(ctx, a, b);
    }
}

static struct value eval_compare(struct vm *vm, const struct node *node)
{
    struct value left = eval(vm, node->a);
    for (uint32_t i = 0; i < node->count && !jinja_failed(vm->ctx); i++) { /* a < b < c */
        struct value right = eval(vm, node->list[i]->a);
        if (jinja_failed(vm->ctx) || !compare(vm, node->list[i]->op, left, right)) { return value_bool(false); }
        left = right;
    }
    return value_bool(!jinja_failed(vm->ctx));
}

static struct list *eval_list(struct vm *vm, const struct node *node)
{
    struct list *list = list_new(vm->ctx, node->count);
    for (uint32_t i = 0; i < node->count && !jinja_failed(vm->ctx); i++) { list_push(vm->ctx, list, eval(vm, node->list[i])); }
    return list;
}

static struct value eval_dict(struct vm *vm, const struct node *node)
{
    struct dict *dict = dict_new(vm->ctx);
    for (uint32_t i = 0; i + 1 < node->count && !jinja_failed(vm->ctx); i += 2) {
        struct value key = eval(vm, node->list[i]);
        dict_set(vm->ctx, dict, key, eval(vm, node->list[i + 1]));
    }
    return dict ? value_dict(dict) : value_none();
}

static struct value eval_slice(struct vm *vm, const struct node *node)
{
    struct value object = eval(vm, node->a);
    const struct node *slice = node->b;
    struct value start = slice->a ? eval(vm, slice->a) : value_none();
    struct value stop = slice->b ? eval(vm, slice->b) : value_none();
    struct value step = slice->c ? eval(vm, slice->c) : value_none();
    return jinja_failed(vm->ctx) ? value_none() : jinja_slice(vm->ctx, object, start, stop, step);
}

static struct value eval_filter(struct vm *vm, const struct node *node, const struct value *block)
{
    /* Only the innermost filter of a block has no input of its own. */
    struct value input = !node->a ? *block : node->a->kind == N_FILTER && block ? eval_filter(vm, node->a, block) : eval(vm, node->a);
    struct call call = eval_arguments(vm, node->args);
    vm->ctx->line = node->line;
    return jinja_failed(vm->ctx) ? value_none() : jinja_filter_apply(vm->ctx, node->number, input, &call);
}

static struct value eval_inner(struct vm *vm, const struct node *node)
{
    struct jinja_ctx *ctx = vm->ctx;
    switch (node->kind) {
    case N_CONST: return node->value;
    case N_NAME: return get_name(vm, node->value);
    case N_TUPLE: return value_list(eval_list(vm, node), V_TUPLE);
    case N_LIST: return value_list(eval_list(vm, node), V_LIST);
    case N_DICT: return eval_dict(vm, node);
    case N_COND:
        if (value_truth(ctx, eval(vm, node->b))) { return eval(vm, node->a); }
        if (node->c) { return jinja_failed(ctx) ? value_none() : eval(vm, node->c); }
        return value_undefined(ctx, "the inline if-expression on line %u evaluated to false and no else section was defined.", node->line);
    case N_OR: {
        struct value a = eval(vm, node->a);
        return value_truth(ctx, a) ? a : eval(vm, node->b);
    }
    case N_AND: {
        struct value a = eval(vm, node->a);
        return value_truth(ctx, a) ? eval(vm, node->b) : a;
    }
    case N_NOT: return value_bool(!value_truth(ctx, eval(vm, node->a)));
    case N_COMPARE: return eval_compare(vm, node);
    case N_BINARY: {
        struct value a = eval(vm, node->a);
        struct value b = eval(vm, node->b);
        ctx->line = node->line;
        return jinja_failed(ctx) ? value_none() : jinja_arithmetic(ctx, node->op, a, b);
    }
    case N_CONCAT: {
        const struct list *parts = eval_list(vm, node);
        return jinja_failed(ctx) ? value_none() : jinja_concat(ctx, parts->items, parts->count);
    }
    case N_NEG:
    case N_POS: return jinja_negate(ctx, eval(vm, node->a), node->kind == N_NEG);
    case N_GETATTR: {
        struct value object = eval(vm, node->a);
        return jinja_failed(ctx) ? value_none() : jinja_getattr(ctx, object, node->value);
    }
    case N_GETITEM: {
        if (node->b->kind == N_SLICE) { return eval_slice(vm, node); }
        struct value object = eval(vm, node->a), key = eval(vm, node->b);
        return jinja_failed(ctx) ? value_none() : jinja_getitem(ctx, object, key);
    }
    case N_CALL: {
        struct value callee = eval(vm, node->a);
        struct call call = eval_arguments(vm, node->args);
        ctx->line = node->line;
        return jinja_failed(ctx) ? value_none() : call_value(vm, callee, &call);
    }
    case N_FILTER: return eval_filter(vm, node, NULL);
    case N_TEST: {
        struct value input = eval(vm, node->a);
        struct call call = eval_arguments(vm, node->args);
        return value_bool(!jinja_failed(ctx) && jinja_test_apply(ctx, node->number, input, &call));
    }
    case N_SLICE: jinja_fail(ctx, ST_UNIMPLEMENTED, "unsupported slice inside a tuple index at line %u", node->line); return value_none();
    default: jinja_fail(ctx, ST_INTERNAL, "node %u is no expression", node->kind); return value_none();
    }
}

static struct value eval(struct vm *vm, const struct node *node)
{
    if (!jinja_charge(vm->ctx, 1) || !jinja_enter(vm->ctx)) { return value_none(); }
    if (node->line) { vm->ctx->line = node->line; }
    struct value value = eval_inner(vm, node);
    jinja_leave(vm->ctx);
    return jinja_failed(vm->ctx) ? value_none() : value;
}

/* ---- statements ---- */

static void put_output(struct vm *vm, struct value text)
{
    if (jinja_failed(vm->ctx)) { return; }
    if (vm->out->len + text.len > vm->output_max) {
        jinja_fail(vm->ctx, ST_RESOURCE_EXHAUSTED, "the chat template writes more than %zu bytes", vm->output_max);
        return;
    }
    text_put(vm->ctx, vm->out, text.u.text, text.len);
}

static void run_loop(struct vm *vm, const struct node *node, struct value over, uint32_t depth)
{
    struct jinja_ctx *ctx = vm->ctx;
    struct scope *outer = vm->scope;
    const struct list *items = value_items(ctx, over);
    if (jinja_failed(ctx) || !jinja_enter(ctx)) { return; }
    if (node->c) {
        struct list *kept = list_new(ctx, 0);
        for (uint32_t i = 0; i < items->count && !jinja_failed(ctx); i++) {
            vm->scope = scope_new(vm, outer);
            if (!vm->scope) { break; }
            assign(vm, node->a, items->items[i]);
            if (value_truth(ctx, eval(vm, node->c))) { list_push(ctx, kept, items->items[i]); }
        }
        vm->scope = outer;
        items = kept;
    }
    struct loop *loop = jinja_alloc(ctx, sizeof *loop);
    if (loop && !jinja_failed(ctx)) {
        *loop = (struct loop){.items = items, .depth = depth, .node = node->op ? node : NULL, .scope = outer};
        for (uint32_t i = 0; i < items->count && jinja_charge(ctx, 1) && vm->flow != FLOW_BREAK; i++) {
            loop->index = i;
            vm->scope = scope_new(vm, outer);
            if (!vm->scope) { break; }
            set_name(vm, value_cstr("loop"), (struct value){.kind = V_LOOP, .u.loop = loop});
            assign(vm, node->a, items->items[i]);
            run(vm, node->body);
            if (vm->flow == FLOW_CONTINUE) { vm->flow = FLOW_ON; }
        }
        vm->flow = FLOW_ON;
        vm->scope = outer;
        if (items->count == 0 && node->orelse) {
            vm->scope = scope_new(vm, outer);
            if (vm->scope) { run(vm, node->orelse); }
        }
    }
    vm->scope = outer;
    jinja_leave(ctx);
}

static void run_if(struct vm *vm, const struct node *node)
{
    while (node && node->kind == N_IF) {
        bool truth = value_truth(vm->ctx, eval(vm, node->a));
        if (jinja_failed(vm->ctx)) { return; }
        if (truth) {
            run(vm, node->body);
            return;
        }
        node = node->orelse;
    }
    if (node) { run(vm, node); }
}

/* A body with a scope of its own. */
static struct value run_scoped(struct vm *vm, const struct node *body, bool captured)
{
    struct scope *outer = vm->scope;
    struct value result = value_none();
    vm->scope = scope_new(vm, outer);
    if (vm->scope) {
        if (captured) { result = capture(vm, body); } else { run(vm, body); }
    }
    vm->scope = outer;
    return result;
}

static void run_with(struct vm *vm, const struct node *node)
{
    struct scope *outer = vm->scope, *inner = scope_new(vm, outer);
    if (!inner) { return; }
    struct list *values = list_new(vm->ctx, node->count / 2);
    for (uint32_t i = 0; i + 1 < node->count; i += 2) { list_push(vm->ctx, values, eval(vm, node->list[i + 1])); } /* all seen from outside */
    vm->scope = inner;
    for (uint32_t i = 0; i + 1 < node->count && !jinja_failed(vm->ctx); i += 2) { assign(vm, node->list[i], values->items[i / 2]); }
    run(vm, node->body);
    vm->scope = outer;
}

static void run_call_block(struct vm *vm, const struct node *node)
{
    const struct node *call_node = node->a;
    struct value callee = eval(vm, call_node->a);
    struct call call = eval_arguments(vm, call_node->args);
    struct list *names = list_new(vm->ctx, call.count + 1), *values = list_new(vm->ctx, call.count + 1);
    for (uint32_t i = 0; i < call.count; i++) { push_argument(vm, names, values, call.names[i], call.values[i]); }
    push_argument(vm, names, values, value_cstr("caller"), make_macro(vm, node));
    if (jinja_failed(vm->ctx)) { return; }
    struct call with_caller = {values->items, names->items, values->count, call.positional};
    struct value result = call_value(vm, callee, &with_caller);
    put_output(vm, value_to_str(vm->ctx, result));
}

static void run_inner(struct vm *vm, const struct node *node)
{
    struct jinja_ctx *ctx = vm->ctx;
    switch (node->kind) {
    case N_BLOCK:
        for (uint32_t i = 0; i < node->count && vm->flow == FLOW_ON && !jinja_failed(ctx); i++) { run(vm, node->list[i]); }
        break;
    case N_DATA: put_output(vm, node->value); break;
    case N_OUTPUT: {
        struct value text = value_to_str(ctx, eval(vm, node->a));
        put_output(vm, text);
        break;
    }
    case N_FOR: run_loop(vm, node, eval(vm, node->b), 0); break;
    case N_IF: run_if(vm, node); break;
    case N_SET: assign(vm, node->a, eval(vm, node->b)); break;
    case N_SET_BLOCK: {
        struct value text = run_scoped(vm, node->body, true);
        if (node->b && !jinja_failed(ctx)) { text = eval_filter(vm, node->b, &text); }
        assign(vm, node->a, text);
        break;
    }
    case N_MACRO: set_name(vm, node->value, make_macro(vm, node)); break;
    case N_CALL_BLOCK: run_call_block(vm, node); break;
    case N_FILTER_BLOCK: {
        struct value text = run_scoped(vm, node->body, true);
        if (!jinja_failed(ctx)) { put_output(vm, value_to_str(ctx, eval_filter(vm, node->b, &text))); }
        break;
    }
    case N_WITH: run_with(vm, node); break;
    case N_SCOPE: run_scoped(vm, node->body, false); break;
    case N_BREAK: vm->flow = FLOW_BREAK; break;
    case N_CONTINUE: vm->flow = FLOW_CONTINUE; break;
    default: jinja_fail(ctx, ST_INTERNAL, "node %u is no statement", node->kind);
    }
}

static void run(struct vm *vm, const struct node *node)
{
    if (!jinja_charge(vm->ctx, 1) || !jinja_enter(vm->ctx)) { return; }
    if (node->line) { vm->ctx->line = node->line; }
    run_inner(vm, node);
    jinja_leave(vm->ctx);
}

struct value jinja_run(struct jinja_ctx *ctx, const struct node *root, const struct dict *variables, int64_t now_s, size_t output_max,
                       bool *ret_raised)
{
    struct text out = {0};
    struct vm vm = {.ctx = ctx, .variables = variables, .out = &out, .now_s = now_s, .output_max = output_max};
    vm.scope = scope_new(&vm, NULL);
    if (vm.scope) { run(&vm, root); }
    *ret_raised = vm.raised;
    return jinja_failed(ctx) ? value_str("", 0) : text_value(ctx, &out);
}
