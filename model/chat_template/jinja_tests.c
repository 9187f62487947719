/* jinja_tests: x is test(...).
 * Flow:    jinja_expression asks for its number, jinja_eval applies it -> [jinja_tests]
 * Thread:  the context's.
 * Memory:  the context's arena. */
#include "model/chat_template/jinja_ast.h"
#include "model/chat_template/jinja_builtins.h"
#include "model/chat_template/jinja_text.h"

enum test {
    TEST_BOOLEAN, TEST_CALLABLE, TEST_DEFINED, TEST_DIVISIBLEBY, TEST_EQ, TEST_ESCAPED, TEST_EVEN, TEST_FALSE, TEST_FILTER, TEST_FLOAT,
    TEST_GE, TEST_GT, TEST_IN, TEST_INTEGER, TEST_ITERABLE, TEST_LE, TEST_LOWER, TEST_LT, TEST_MAPPING, TEST_NE, TEST_NONE, TEST_NUMBER,
    TEST_ODD, TEST_SAMEAS, TEST_SEQUENCE, TEST_STRING, TEST_TEST, TEST_TRUE, TEST_UNDEFINED, TEST_UPPER,
};

static const struct {
    const char *name;
    enum test test;
    bool has_argument;
} tests[] = {
    {"!=", TEST_NE, true}, {"<", TEST_LT, true}, {"<=", TEST_LE, true}, {"==", TEST_EQ, true}, {">", TEST_GT, true}, {">=", TEST_GE, true},
    {"boolean", TEST_BOOLEAN, false}, {"callable", TEST_CALLABLE, false}, {"defined", TEST_DEFINED, false},
    {"divisibleby", TEST_DIVISIBLEBY, true}, {"eq", TEST_EQ, true}, {"equalto", TEST_EQ, true}, {"escaped", TEST_ESCAPED, false},
    {"even", TEST_EVEN, false}, {"false", TEST_FALSE, false}, {"filter", TEST_FILTER, false}, {"float", TEST_FLOAT, false},
    {"ge", TEST_GE, true}, {"greaterthan", TEST_GT, true}, {"gt", TEST_GT, true}, {"in", TEST_IN, true}, {"integer", TEST_INTEGER, false},
    {"iterable", TEST_ITERABLE, false}, {"le", TEST_LE, true}, {"lessthan", TEST_LT, true}, {"lower", TEST_LOWER, false},
    {"lt", TEST_LT, true}, {"mapping", TEST_MAPPING, false}, {"ne", TEST_NE, true}, {"none", TEST_NONE, false},
    {"number", TEST_NUMBER, false}, {"odd", TEST_ODD, false}, {"sameas", TEST_SAMEAS, true}, {"sequence", TEST_SEQUENCE, false},
    {"string", TEST_STRING, false}, {"test", TEST_TEST, false}, {"true", TEST_TRUE, false}, {"undefined", TEST_UNDEFINED, false},
    {"upper", TEST_UPPER, false},
};

uint32_t jinja_test_find(struct value name)
{
    for (uint32_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (value_is_str(name, tests[i].name)) { return i; }
    }
    return BUILTIN_NONE;
}

/* v % divisor == rest */
static bool leaves(struct jinja_ctx *ctx, struct value v, struct value divisor, int64_t rest)
{
    if (!value_require(ctx, v) || !value_require(ctx, divisor)) { return false; }
    if (!value_is_number(v) || !value_is_number(divisor)) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "a test of division wants numbers, not %s", value_type_name(value_is_number(v) ? divisor : v));
        return false;
    }
    return value_equal(ctx, jinja_arithmetic(ctx, OP_MOD, v, divisor), value_int(rest));
}

bool jinja_test_apply(struct jinja_ctx *ctx, uint32_t test, struct value v, const struct call *call)
{
    struct value p[CALL_PARAMS_MAX];
    if (!jinja_charge(ctx, 1)) { return false; }
    if (!call_bind(ctx, tests[test].name, call, tests[test].has_argument ? "other" : "", tests[test].has_argument, p)) { return false; }
    struct value other = p[0];
    switch (tests[test].test) {
    case TEST_BOOLEAN: return v.kind == V_BOOL;
    case TEST_CALLABLE: return v.kind == V_MACRO || v.kind == V_FUNCTION || v.kind == V_METHOD || v.kind == V_UNDEFINED || v.kind == V_LOOP;
    case TEST_DEFINED: return v.kind != V_UNDEFINED;
    case TEST_DIVISIBLEBY: return leaves(ctx, v, other, 0);
    case TEST_EQ: return value_equal(ctx, v, other);
    case TEST_NE: return !value_equal(ctx, v, other);
    case TEST_ESCAPED: return v.kind == V_STR && v.safe;
    case TEST_EVEN: return leaves(ctx, v, value_int(2), 0);
    case TEST_ODD: return leaves(ctx, v, value_int(2), 1);
    case TEST_FALSE: return v.kind == V_BOOL && !v.u.boolean;
    case TEST_TRUE: return v.kind == V_BOOL && v.u.boolean;
    case TEST_FILTER: return jinja_filter_find(v) != BUILTIN_NONE;
    case TEST_TEST: return jinja_test_find(v) != BUILTIN_NONE;
    case TEST_FLOAT: return v.kind == V_FLOAT;
    case TEST_INTEGER: return v.kind == V_INT;
    case TEST_NUMBER: return value_is_number(v);
    case TEST_LT: return value_less(ctx, v, other, "<");
    case TEST_GT: return value_less(ctx, other, v, ">");
    case TEST_LE: return value_less(ctx, v, other, "<=") || value_equal(ctx, v, other);
    case TEST_GE: return value_less(ctx, other, v, ">=") || value_equal(ctx, v, other);
    case TEST_IN: return value_contains(ctx, v, other);
    case TEST_ITERABLE: return value_is_iterable(v);
    case TEST_MAPPING: return v.kind == V_DICT;
    case TEST_NONE: return v.kind == V_NONE;
    case TEST_STRING: return v.kind == V_STR;
    case TEST_UNDEFINED: return v.kind == V_UNDEFINED;
    case TEST_SEQUENCE:
        return v.kind == V_STR || v.kind == V_LIST || v.kind == V_TUPLE || v.kind == V_DICT || v.kind == V_RANGE || v.kind == V_UNDEFINED;
    case TEST_SAMEAS:
        if (v.kind != other.kind) { return false; }
        if (v.kind == V_STR) { return v.u.text == other.u.text && v.len == other.len; }
        return v.kind <= V_INT ? value_equal(ctx, v, other) : v.u.list == other.u.list;
    case TEST_LOWER:
    case TEST_UPPER: {
        struct value text = value_to_str(ctx, v);
        if (jinja_failed(ctx)) { return false; }
        return tests[test].test == TEST_LOWER ? text_is_lower(text) : text_is_upper(text);
    }
    }
    return false;
}
