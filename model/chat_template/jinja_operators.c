/* jinja_operators: + - * / // % ** ~ and the binding of arguments, as Python does them. */
#include <math.h>

#include "model/chat_template/jinja_ast.h"
#include "model/chat_template/jinja_builtins.h"
#include "model/chat_template/jinja_text.h"

static void overflow(struct jinja_ctx *ctx)
{
    jinja_fail(ctx, ST_OUT_OF_RANGE, "a whole number leaves the range of 64 bits");
}

static struct value wrong_types(struct jinja_ctx *ctx, const char *op, struct value a, struct value b)
{
    jinja_fail(ctx, ST_INVALID_ARGUMENT, "unsupported operand type(s) for %s: '%s' and '%s'", op, value_type_name(a), value_type_name(b));
    return value_none();
}

static struct value joined(struct jinja_ctx *ctx, const struct list *a, const struct list *b, enum value_kind kind)
{
    struct list *list = list_new(ctx, a->count + b->count);
    if (!list || !jinja_charge(ctx, a->count + b->count) || !list->items) { return value_list(list, kind); }
    if (a->count) { memcpy(list->items, a->items, a->count * sizeof *a->items); }
    if (b->count) { memcpy(list->items + a->count, b->items, b->count * sizeof *b->items); }
    list->count = a->count + b->count;
    return value_list(list, kind);
}

struct value jinja_add(struct jinja_ctx *ctx, struct value a, struct value b)
{
    if (!value_require(ctx, a) || !value_require(ctx, b)) { return value_none(); }
    if (a.kind == V_STR && b.kind == V_STR) {
        bool safe = a.safe || b.safe; /* Markup + str escapes the str */
        if (safe) {
            a = text_escape(ctx, a);
            b = text_escape(ctx, b);
        }
        struct value sum = text_append(ctx, a, b);
        sum.safe = safe;
        return sum;
    }
    if (value_is_number(a) && value_is_number(b)) {
        if (a.kind == V_FLOAT || b.kind == V_FLOAT) { return value_float(value_real(a) + value_real(b)); }
        int64_t sum;
        if (__builtin_add_overflow(value_integer(a), value_integer(b), &sum)) { overflow(ctx); }
        return value_int(sum);
    }
    if (a.kind == b.kind && (a.kind == V_LIST || a.kind == V_TUPLE)) { return joined(ctx, a.u.list, b.u.list, a.kind); }
    if (a.kind == V_STR || a.kind == V_LIST || a.kind == V_TUPLE) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "can only concatenate %s (not \"%s\") to %s", value_type_name(a), value_type_name(b),
                   value_type_name(a));
        return value_none();
    }
    return wrong_types(ctx, "+", a, b);
}

static struct value repeated(struct jinja_ctx *ctx, struct value what, int64_t times)
{
    if (times < 0) { times = 0; }
    if (what.kind == V_STR) {
        struct text text = {0};
        for (int64_t i = 0; i < times && what.len && jinja_charge(ctx, 1); i++) { text_put(ctx, &text, what.u.text, what.len); }
        struct value result = text_value(ctx, &text);
        result.safe = what.safe;
        return result;
    }
    struct list *list = list_new(ctx, 0);
    for (int64_t i = 0; i < times && what.u.list->count; i++) {
        if (!jinja_charge(ctx, what.u.list->count)) { break; }
        for (uint32_t k = 0; k < what.u.list->count; k++) { list_push(ctx, list, what.u.list->items[k]); }
    }
    return value_list(list, what.kind);
}

static struct value multiply(struct jinja_ctx *ctx, struct value a, struct value b)
{
    if (value_is_number(a) && value_is_number(b)) {
        if (a.kind == V_FLOAT || b.kind == V_FLOAT) { return value_float(value_real(a) * value_real(b)); }
        int64_t product;
        if (__builtin_mul_overflow(value_integer(a), value_integer(b), &product)) { overflow(ctx); }
        return value_int(product);
    }
    bool a_repeats = a.kind == V_STR || a.kind == V_LIST || a.kind == V_TUPLE;
    bool b_repeats = b.kind == V_STR || b.kind == V_LIST || b.kind == V_TUPLE;
    if (a_repeats && value_is_integral(b)) { return repeated(ctx, a, value_integer(b)); }
    if (b_repeats && value_is_integral(a)) { return repeated(ctx, b, value_integer(a)); }
    return wrong_types(ctx, "*", a, b);
}

static double floor_mod(double x, double y)
{
    double r = fmod(x, y);
    if (r != 0.0 && (r < 0) != (y < 0)) { r += y; }
    return r == 0.0 ? copysign(0.0, y) : r;
}

static struct value divide(struct jinja_ctx *ctx, int op, struct value a, struct value b)
{
    static const char *const names[] = {[OP_DIV] = "/", [OP_FLOORDIV] = "//", [OP_MOD] = "%"};
    if (op == OP_MOD && a.kind == V_STR) {
        jinja_fail(ctx, ST_UNIMPLEMENTED, "unsupported operator %% on a string");
        return value_none();
    }
    if (!value_is_number(a) || !value_is_number(b)) { return wrong_types(ctx, names[op], a, b); }
    bool real = a.kind == V_FLOAT || b.kind == V_FLOAT;
    if (value_real(b) == 0.0) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, op == OP_DIV && !real ? "division by zero" : "division or modulo by zero");
        return value_none();
    }
    if (op == OP_DIV) { return value_float(value_real(a) / value_real(b)); }
    if (real) {
        double x = value_real(a), y = value_real(b), mod = floor_mod(x, y);
        return value_float(op == OP_MOD ? mod : round((x - mod) / y));
    }
    int64_t x = value_integer(a), y = value_integer(b);
    if (y == -1) { return op == OP_MOD ? value_int(0) : jinja_negate(ctx, value_int(x), true); }
    int64_t mod = x % y;
    if (mod != 0 && (mod < 0) != (y < 0)) { mod += y; }
    return value_int(op == OP_MOD ? mod : (x - mod) / y);
}

static struct value power(struct jinja_ctx *ctx, struct value a, struct value b)
{
    if (!value_is_number(a) || !value_is_number(b)) { return wrong_types(ctx, "** or pow()", a, b); }
    if (a.kind == V_FLOAT || b.kind == V_FLOAT || value_integer(b) < 0) {
        double x = value_real(a), y = value_real(b);
        if (x == 0.0 && y < 0) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "0.0 cannot be raised to a negative power");
        } else if (x < 0 && y != floor(y)) {
            jinja_fail(ctx, ST_UNIMPLEMENTED, "unsupported complex number");
        }
        return value_float(pow(x, y));
    }
    int64_t base = value_integer(a), exponent = value_integer(b), result = 1;
    while (exponent > 0) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) {
            overflow(ctx);
            break;
        }
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base)) {
            overflow(ctx);
            break;
        }
    }
    return value_int(result);
}

struct value jinja_arithmetic(struct jinja_ctx *ctx, int op, struct value a, struct value b)
{
    if (op == OP_ADD) { return jinja_add(ctx, a, b); }
    if (!value_require(ctx, a) || !value_require(ctx, b)) { return value_none(); }
    if (op == OP_MUL) { return multiply(ctx, a, b); }
    if (op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD) { return divide(ctx, op, a, b); }
    if (op == OP_POW) { return power(ctx, a, b); }
    if (!value_is_number(a) || !value_is_number(b)) { return wrong_types(ctx, "-", a, b); }
    if (a.kind == V_FLOAT || b.kind == V_FLOAT) { return value_float(value_real(a) - value_real(b)); }
    int64_t difference;
    if (__builtin_sub_overflow(value_integer(a), value_integer(b), &difference)) { overflow(ctx); }
    return value_int(difference);
}

struct value jinja_negate(struct jinja_ctx *ctx, struct value a, bool minus)
{
    if (!value_require(ctx, a)) { return value_none(); }
    if (!value_is_number(a)) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "bad operand type for unary %c: '%s'", minus ? '-' : '+', value_type_name(a));
        return value_none();
    }
    if (a.kind == V_FLOAT) { return value_float(minus ? -a.u.real : a.u.real); }
    int64_t number = value_integer(a);
    if (minus && __builtin_sub_overflow((int64_t)0, number, &number)) { overflow(ctx); }
    return value_int(number);
}

struct value jinja_concat(struct jinja_ctx *ctx, const struct value *parts, uint32_t count)
{
    /* Without autoescape ~ joins plain strings, marked safe or not. */
    struct value result = value_str("", 0);
    for (uint32_t i = 0; i < count && !jinja_failed(ctx); i++) {
        struct value part = value_to_str(ctx, parts[i]);
        if (jinja_failed(ctx)) { break; }
        result = i == 0 ? part : text_append(ctx, result, part);
    }
    result.safe = false;
    return result;
}

/* ---- arguments ---- */

bool call_bind(struct jinja_ctx *ctx, const char *function, const struct call *call, const char *signature, uint32_t required,
               struct value ret_params[CALL_PARAMS_MAX])
{
    static const struct call none;
    if (!call) { call = &none; }
    struct value names[CALL_PARAMS_MAX];
    uint32_t count = 0;
    for (const char *at = signature; *at && count < CALL_PARAMS_MAX; count++) {
        size_t len = strcspn(at, " ");
        names[count] = value_str(at, len);
        at += len;
        at += *at == ' ';
    }
    for (uint32_t i = 0; i < CALL_PARAMS_MAX; i++) { ret_params[i] = (struct value){.kind = V_UNDEFINED}; }
    if (call->positional > count) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "%s() takes at most %u arguments, %u were given", function, count, call->positional);
        return false;
    }
    for (uint32_t i = 0; i < call->count; i++) {
        uint32_t place = i;
        if (call->names[i].kind == V_STR) {
            place = 0;
            while (place < count && !(names[place].len == call->names[i].len && memcmp(names[place].u.text, call->names[i].u.text, names[place].len) == 0)) { place++; }
            if (place == count) {
                jinja_fail(ctx, ST_INVALID_ARGUMENT, "%s() got an unexpected keyword argument '%.*s'", function,
                           (int)(call->names[i].len < 60 ? call->names[i].len : 60), call->names[i].u.text);
                return false;
            }
            if (param_given(ret_params[place])) {
                jinja_fail(ctx, ST_INVALID_ARGUMENT, "%s() got multiple values for argument '%.*s'", function, (int)names[place].len, names[place].u.text);
                return false;
            }
        }
        ret_params[place] = call->values[i];
    }
    for (uint32_t i = 0; i < required; i++) {
        if (!param_given(ret_params[i])) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "%s() missing 1 required positional argument: '%.*s'", function, (int)names[i].len, names[i].u.text);
            return false;
        }
    }
    return !jinja_failed(ctx);
}
