/* jinja_filters_number: filters that give numbers, with Python's rules for reading and rounding them.
 * Flow:    jinja_filters -> [jinja_filters_number] -> jinja_operators
 * Thread:  the context's.
 * Memory:  the context's arena. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/chat_template/jinja_filters_internal.h"
#include "model/chat_template/jinja_text.h"

/* Python's int(text, base) and float(text): white space around, underscores between digits. */
static bool number_text(struct value v, char text[128])
{
    uint32_t len = 0;
    for (uint32_t i = 0; i < v.len; i++) {
        char c = v.u.text[i];
        if (c == '_') {
            if (i == 0 || i + 1 == v.len || v.u.text[i - 1] == '_' || !strchr("0123456789abcdefABCDEFxXoO", v.u.text[i - 1])) { return false; }
            continue;
        }
        if (len == 127 || c == '\0') { return false; }
        text[len++] = c;
    }
    text[len] = '\0';
    return len > 0;
}

static bool parse_int(struct jinja_ctx *ctx, struct value v, int64_t base, int64_t *ret_value)
{
    char text[128], *end;
    if (!number_text(text_strip(ctx, v, NULL, true, true), text)) { return false; }
    const char *digits = text + (text[0] == '-' || text[0] == '+');
    if (digits[0] == '0' && digits[1]) {
        char c = (char)(digits[1] | 0x20);
        int64_t named = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
        if (named && (base == named || base == 0)) {
            digits += 2;
            base = named;
        }
    }
    if (base == 0) { base = 10; }
    if (base < 2 || base > 36 || !((digits[0] >= '0' && digits[0] <= '9') || (base > 10 && digits[0] != '\0' && digits[0] != '-' && digits[0] != '+' && digits[0] != ' '))) {
        return false;
    }
    unsigned long long magnitude = strtoull(digits, &end, (int)base);
    if (*end || end == digits) { return false; }
    bool minus = text[0] == '-';
    if (magnitude > (unsigned long long)INT64_MAX + minus) {
        jinja_fail(ctx, ST_OUT_OF_RANGE, "a whole number leaves the range of 64 bits");
        return false;
    }
    *ret_value = minus ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    return true;
}

static bool parse_float(struct jinja_ctx *ctx, struct value v, double *ret_value)
{
    char text[128], *end;
    if (!number_text(text_strip(ctx, v, NULL, true, true), text)) { return false; }
    if (strpbrk(text, "xX(") || text[0] == ' ') { return false; } /* C reads hex and nan(...), Python does not */
    *ret_value = strtod(text, &end);
    return *end == '\0';
}

static struct value real_to_int(struct jinja_ctx *ctx, double real, struct value otherwise)
{
    if (isnan(real) || isinf(real)) { return otherwise; }
    if (real >= 9223372036854775808.0 || real < -9223372036854775808.0) {
        jinja_fail(ctx, ST_OUT_OF_RANGE, "a whole number leaves the range of 64 bits");
        return otherwise;
    }
    return value_int((int64_t)real);
}

static struct value f_int(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    struct value otherwise = param_given(p[0]) ? p[0] : value_int(0);
    int64_t number, base = jinja_filter_int(ctx, p[1], 10);
    double real;
    if (!value_require(ctx, v)) { return value_none(); }
    if (v.kind == V_STR) {
        if (parse_int(ctx, v, base, &number)) { return value_int(number); }
        return parse_float(ctx, v, &real) ? real_to_int(ctx, real, otherwise) : otherwise;
    }
    if (value_is_integral(v)) { return value_int(value_integer(v)); }
    if (v.kind == V_FLOAT) {
        if (isinf(v.u.real)) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "cannot convert float infinity to integer"); }
        return real_to_int(ctx, v.u.real, otherwise);
    }
    return otherwise;
}

static struct value f_float(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    double real;
    if (!value_require(ctx, v)) { return value_none(); }
    if (v.kind == V_STR && parse_float(ctx, v, &real)) { return value_float(real); }
    if (value_is_number(v)) { return value_float(value_real(v)); }
    return param_given(p[0]) ? p[0] : value_float(0.0);
}

static struct value f_abs(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    if (!value_is_number(v)) { return jinja_filter_fail_type(ctx, "abs", v); }
    if (v.kind == V_FLOAT) { return value_float(fabs(v.u.real)); }
    return jinja_negate(ctx, v, value_integer(v) < 0);
}

static struct value f_round(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    int64_t precision = jinja_filter_int(ctx, p[0], 0);
    if (!value_is_number(v)) { return jinja_filter_fail_type(ctx, "round", v); }
    bool common = !param_given(p[1]) || value_is_str(p[1], "common");
    bool up = value_is_str(p[1], "ceil");
    if (!common && !up && !value_is_str(p[1], "floor")) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "method must be common, ceil or floor");
        return value_none();
    }
    if (precision < -300 || precision > 300) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "filter 'round' takes a precision of -300 to 300");
        return value_none();
    }
    if (!common) {
        double scale = pow(10.0, (double)precision), scaled = value_real(v) * scale;
        return value_float((up ? ceil(scaled) : floor(scaled)) / scale);
    }
    if (v.kind != V_FLOAT) {
        if (precision >= 0) { return value_int(value_integer(v)); }
        int64_t step = 1;
        for (int64_t i = precision; i < 0; i++) {
            if (__builtin_mul_overflow(step, (int64_t)10, &step)) { return value_int(0); }
        }
        /* Half goes to the even multiple, as in Python. */
        int64_t number = value_integer(v), rest = number % step, low = number - rest;
        if (rest < 0) {
            rest += step;
            if (__builtin_sub_overflow(low, step, &low)) { jinja_fail(ctx, ST_OUT_OF_RANGE, "a whole number leaves the range of 64 bits"); }
        }
        bool raise = rest > step - rest || (rest == step - rest && (low / step) % 2 != 0);
        if (raise && __builtin_add_overflow(low, step, &low)) { jinja_fail(ctx, ST_OUT_OF_RANGE, "a whole number leaves the range of 64 bits"); }
        return value_int(low);
    }
    double real = v.u.real;
    if (isnan(real) || isinf(real) || real == 0.0) { return v; }
    if (precision < 0) {
        double scale = pow(10.0, (double)-precision);
        return value_float(rint(real / scale) * scale);
    }
    if (precision > 22 || fabs(real) >= 1e22) { return v; } /* no digit of it is that small */
    /* printf rounds the exact binary value, which is what Python's round() does. */
    char text[96];
    snprintf(text, sizeof text, "%.*f", (int)precision, real);
    return value_float(strtod(text, NULL));
}

static struct value f_sum(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    const struct list *items = value_items(ctx, v);
    struct value total = param_given(p[1]) ? p[1] : value_int(0);
    for (uint32_t i = 0; items && i < items->count && jinja_charge(ctx, 1); i++) {
        struct value item = items->items[i];
        if (param_given(p[0]) && p[0].kind != V_NONE) { item = jinja_attribute_of(ctx, item, p[0], (struct value){.kind = V_UNDEFINED}); }
        total = jinja_add(ctx, total, item);
    }
    return total;
}

static const struct filter_def filters[] = {
    {"abs", f_abs, "", 0, NULL},
    {"float", f_float, "default", 0, NULL},
    {"int", f_int, "default base", 0, NULL},
    {"round", f_round, "precision method", 0, NULL},
    {"sum", f_sum, "attribute start", 0, NULL},
};
const struct filter_table jinja_number_filters = {filters, sizeof filters / sizeof filters[0]};
