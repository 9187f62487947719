/* jinja_filters: x | filter(...) and x is test(...). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/chat_template/jinja_ast.h"
#include "model/chat_template/jinja_builtins.h"
#include "model/chat_template/jinja_text.h"

typedef struct value (*filter_fn)(struct jinja_ctx *ctx, struct value input, const struct value *p);
typedef struct value (*raw_filter_fn)(struct jinja_ctx *ctx, struct value input, const struct call *call);

struct filter_def {
    const char *name;
    filter_fn fn;
    const char *signature;
    uint32_t required;
    raw_filter_fn raw; /* instead of fn: takes the call as it is */
};

static struct value fail_type(struct jinja_ctx *ctx, const char *filter, struct value v)
{
    if (value_require(ctx, v)) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "filter '%s' cannot take a %s", filter, value_type_name(v)); }
    return value_none();
}

static int64_t int_param(struct jinja_ctx *ctx, struct value v, int64_t otherwise)
{
    if (!param_given(v)) { return otherwise; }
    if (!value_is_integral(v)) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "a filter wants a whole number, not %s", value_type_name(v));
        return otherwise;
    }
    return value_integer(v);
}

/* ---- attributes of items: map(attribute='a.b'), sort(attribute=...) ---- */

/* Walks "a.b.0"; Jinja looks each part up as an item first. */
static struct value attribute_of(struct jinja_ctx *ctx, struct value item, struct value path, struct value otherwise)
{
    if (path.kind != V_STR) { return jinja_getitem(ctx, item, path); }
    for (uint32_t at = 0; at <= path.len && !jinja_failed(ctx);) {
        uint32_t end = at;
        bool digits = true;
        while (end < path.len && path.u.text[end] != '.') {
            digits = digits && path.u.text[end] >= '0' && path.u.text[end] <= '9';
            end++;
        }
        struct value part = value_str(path.u.text + at, end - at);
        if (digits && part.len && part.len < 10) {
            int64_t index = 0;
            for (uint32_t i = 0; i < part.len; i++) { index = index * 10 + (part.u.text[i] - '0'); }
            part = value_int(index);
        }
        item = jinja_getitem(ctx, item, part);
        if (item.kind == V_UNDEFINED && param_given(otherwise) && otherwise.kind != V_NONE) { item = otherwise; }
        at = end + 1;
    }
    return item;
}

/* What items are compared by: their attribute, strings in lower case. */
static struct value sort_key(struct jinja_ctx *ctx, struct value item, struct value attribute, bool case_sensitive)
{
    if (param_given(attribute) && attribute.kind != V_NONE) { item = attribute_of(ctx, item, attribute, (struct value){.kind = V_UNDEFINED}); }
    return item.kind == V_STR && !case_sensitive ? text_lower(ctx, item) : item;
}

/* sort(attribute="a,b") compares by a list of keys. */
static struct value sort_keys(struct jinja_ctx *ctx, struct value item, struct value attribute, bool case_sensitive)
{
    if (attribute.kind != V_STR || !attribute.len || !memchr(attribute.u.text, ',', attribute.len)) { return sort_key(ctx, item, attribute, case_sensitive); }
    struct list *keys = list_new(ctx, 2);
    for (uint32_t at = 0; at <= attribute.len && !jinja_failed(ctx);) {
        uint32_t end = at;
        while (end < attribute.len && attribute.u.text[end] != ',') { end++; }
        list_push(ctx, keys, sort_key(ctx, item, value_str(attribute.u.text + at, end - at), case_sensitive));
        at = end + 1;
    }
    return value_list(keys, V_LIST);
}

/* Stable merge sort of items by keys, both [count]; spare arrays as large. */
struct sorter {
    struct jinja_ctx *ctx;
    struct pair *items, *spare; /* key, item */
    bool reverse;
};

static void merge_sort(struct sorter *s, uint32_t begin, uint32_t end)
{
    if (end - begin < 2 || jinja_failed(s->ctx)) { return; }
    uint32_t middle = begin + (end - begin) / 2, a = begin, b = middle;
    merge_sort(s, begin, middle);
    merge_sort(s, middle, end);
    for (uint32_t at = begin; at < end; at++) {
        bool right = b < end && (a == middle || (s->reverse ? value_less(s->ctx, s->items[a].key, s->items[b].key, "<")
                                                            : value_less(s->ctx, s->items[b].key, s->items[a].key, "<")));
        s->spare[at] = right ? s->items[b++] : s->items[a++];
    }
    memcpy(s->items + begin, s->spare + begin, (end - begin) * sizeof *s->items);
}

static struct value sorted(struct jinja_ctx *ctx, const struct list *list, bool reverse, bool case_sensitive, struct value attribute)
{
    if (!list) { return value_none(); }
    struct sorter s = {.ctx = ctx, .reverse = reverse};
    s.items = jinja_alloc(ctx, (list->count + 1) * sizeof *s.items);
    s.spare = jinja_alloc(ctx, (list->count + 1) * sizeof *s.spare);
    if (!s.items || !s.spare) { return value_none(); }
    for (uint32_t i = 0; i < list->count; i++) { s.items[i] = (struct pair){sort_keys(ctx, list->items[i], attribute, case_sensitive), list->items[i]}; }
    merge_sort(&s, 0, list->count);
    struct list *result = list_new(ctx, list->count);
    for (uint32_t i = 0; i < list->count; i++) { list_push(ctx, result, s.items[i].value); }
    return value_list(result, V_LIST);
}

/* ---- filters over text ---- */

static struct value f_upper(struct jinja_ctx *ctx, struct value v, const struct value *p) { (void)p; return text_upper(ctx, value_to_str(ctx, v)); }
static struct value f_lower(struct jinja_ctx *ctx, struct value v, const struct value *p) { (void)p; return text_lower(ctx, value_to_str(ctx, v)); }
static struct value f_title(struct jinja_ctx *ctx, struct value v, const struct value *p) { (void)p; return text_title_words(ctx, value_to_str(ctx, v)); }
static struct value f_capitalize(struct jinja_ctx *ctx, struct value v, const struct value *p) { (void)p; return text_capitalize(ctx, value_to_str(ctx, v)); }
static struct value f_string(struct jinja_ctx *ctx, struct value v, const struct value *p) { (void)p; return value_to_str(ctx, v); }
static struct value f_escape(struct jinja_ctx *ctx, struct value v, const struct value *p) { (void)p; return text_escape(ctx, value_to_str(ctx, v)); }

static struct value f_forceescape(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    v = value_to_str(ctx, v);
    v.safe = false;
    return text_escape(ctx, v);
}

static struct value f_safe(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    v = value_to_str(ctx, v);
    v.safe = !jinja_failed(ctx);
    return v;
}

static struct value f_trim(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    v = value_to_str(ctx, v);
    if (jinja_failed(ctx)) { return v; }
    if (!param_given(p[0]) || p[0].kind == V_NONE) { return text_strip(ctx, v, NULL, true, true); }
    if (p[0].kind != V_STR) { return fail_type(ctx, "trim", p[0]); }
    return text_strip(ctx, v, &p[0], true, true);
}

static struct value f_replace(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    v = value_to_str(ctx, v);
    struct value from = value_to_str(ctx, p[0]), to = value_to_str(ctx, p[1]);
    int64_t count = p[2].kind == V_NONE ? -1 : int_param(ctx, p[2], -1);
    return jinja_failed(ctx) ? value_none() : text_replace(ctx, v, from, to, count);
}

static struct value f_center(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    struct value width = value_int(int_param(ctx, p[0], 80)), name = value_none();
    v = value_to_str(ctx, v);
    if (jinja_failed(ctx)) { return value_none(); }
    struct method method = {.self = v, .name = "center", .name_len = 6};
    return jinja_method_call(ctx, &method, &(struct call){.values = &width, .names = &name, .count = 1, .positional = 1});
}

static struct value f_indent(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    if (v.kind != V_STR) { return fail_type(ctx, "indent", v); }
    struct value by = p[0];
    if (by.kind != V_STR) {
        int64_t width = int_param(ctx, p[0], 4);
        struct text spaces = {0};
        for (int64_t i = 0; i < width && jinja_charge(ctx, 1); i++) { text_putc(ctx, &spaces, ' '); }
        by = text_value(ctx, &spaces);
    }
    bool first = value_truth(ctx, p[1]), blank = value_truth(ctx, p[2]);
    struct value newline = value_cstr("\n");
    bool safe = v.safe;
    v.tip = NULL;
    const struct list *lines = text_splitlines(ctx, text_append(ctx, v, newline), false);
    struct text text = {0};
    for (uint32_t i = 0; lines && i < lines->count && !jinja_failed(ctx); i++) {
        if (i) { text_putc(ctx, &text, '\n'); }
        if (i == 0 ? first : blank || lines->items[i].len) { text_put(ctx, &text, by.u.text, by.len); }
        text_put(ctx, &text, lines->items[i].u.text, lines->items[i].len);
    }
    struct value result = text_value(ctx, &text);
    result.safe = safe;
    return result;
}

static struct value f_join(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    const struct list *items = value_items(ctx, v);
    struct value separator = param_given(p[0]) ? value_to_str(ctx, p[0]) : value_str("", 0);
    struct text text = {0};
    for (uint32_t i = 0; items && i < items->count && jinja_charge(ctx, 1); i++) {
        struct value item = items->items[i];
        if (param_given(p[1]) && p[1].kind != V_NONE) { item = attribute_of(ctx, item, p[1], (struct value){.kind = V_UNDEFINED}); }
        item = value_to_str(ctx, item);
        if (jinja_failed(ctx)) { break; }
        if (i) { text_put(ctx, &text, separator.u.text, separator.len); }
        text_put(ctx, &text, item.u.text, item.len);
    }
    return text_value(ctx, &text);
}

/* ---- filters over numbers ---- */

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
    int64_t number, base = int_param(ctx, p[1], 10);
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
    if (!value_is_number(v)) { return fail_type(ctx, "abs", v); }
    if (v.kind == V_FLOAT) { return value_float(fabs(v.u.real)); }
    return jinja_negate(ctx, v, value_integer(v) < 0);
}

static struct value f_round(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    int64_t precision = int_param(ctx, p[0], 0);
    if (!value_is_number(v)) { return fail_type(ctx, "round", v); }
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
        if (param_given(p[0]) && p[0].kind != V_NONE) { item = attribute_of(ctx, item, p[0], (struct value){.kind = V_UNDEFINED}); }
        total = jinja_add(ctx, total, item);
    }
    return total;
}

/* ---- filters over sequences ---- */

static struct value f_length(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    int64_t length = value_length(ctx, v);
    if (length < 0) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "object of type '%s' has no len()", value_type_name(v)); }
    return value_int(length);
}

static struct value f_default(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    struct value otherwise = param_given(p[0]) ? p[0] : value_str("", 0);
    return v.kind == V_UNDEFINED || (value_truth(ctx, p[1]) && !value_truth(ctx, v)) ? otherwise : v;
}

static struct value f_first(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    const struct list *items = value_items(ctx, v);
    if (items && items->count) { return items->items[0]; }
    return value_undefined(ctx, "No first item, sequence was empty.");
}

static struct value f_last(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    if (v.kind == V_ITER) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "'generator' object is not reversible");
        return value_none();
    }
    const struct list *items = value_items(ctx, v);
    if (items && items->count) { return items->items[items->count - 1]; }
    return value_undefined(ctx, "No last item, sequence was empty.");
}

static struct value f_list(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    return value_list(value_items(ctx, v), V_LIST);
}

static struct value f_items(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    if (v.kind == V_UNDEFINED) { return value_iter(ctx, list_new(ctx, 0)); }
    if (v.kind != V_DICT) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "Can only get item pairs from a mapping.");
        return value_none();
    }
    struct method method = {.self = v, .name = "items", .name_len = 5};
    struct value view = jinja_method_call(ctx, &method, &(struct call){0});
    return view.kind == V_VIEW ? value_iter(ctx, view.u.view->list) : value_none();
}

static struct value f_reverse(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    if (v.kind == V_STR) { return jinja_slice(ctx, v, value_none(), value_none(), value_int(-1)); }
    const struct list *items = value_items(ctx, v);
    struct list *reversed = list_new(ctx, items ? items->count : 0);
    for (uint32_t i = items ? items->count : 0; i > 0; i--) { list_push(ctx, reversed, items->items[i - 1]); }
    /* Python reverses what has an order lazily and a generator by way of a list. */
    return v.kind == V_ITER || v.kind == V_UNDEFINED ? value_list(reversed, V_LIST) : value_iter(ctx, reversed);
}

static struct value f_sort(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    return sorted(ctx, value_items(ctx, v), value_truth(ctx, p[0]), value_truth(ctx, p[1]), p[2]);
}

static struct value f_dictsort(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    if (v.kind != V_DICT) { return fail_type(ctx, "dictsort", v); }
    bool by_value = value_is_str(p[1], "value");
    if (param_given(p[1]) && !by_value && !value_is_str(p[1], "key")) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "You can only sort by either \"key\" or \"value\"");
        return value_none();
    }
    struct method method = {.self = v, .name = "items", .name_len = 5};
    struct value view = jinja_method_call(ctx, &method, &(struct call){0});
    return view.kind == V_VIEW ? sorted(ctx, view.u.view->list, value_truth(ctx, p[2]), value_truth(ctx, p[0]), value_int(by_value)) : value_none();
}

static struct value f_unique(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    const struct list *items = value_items(ctx, v);
    struct list *unique = list_new(ctx, 0), *keys = list_new(ctx, 0);
    for (uint32_t i = 0; items && i < items->count && !jinja_failed(ctx); i++) {
        struct value key = sort_key(ctx, items->items[i], p[1], value_truth(ctx, p[0]));
        if (key.kind == V_LIST || key.kind == V_DICT) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "unhashable type: '%s'", value_type_name(key)); }
        bool seen = false;
        for (uint32_t k = 0; keys && k < keys->count && !seen; k++) { seen = value_equal(ctx, keys->items[k], key); }
        if (seen) { continue; }
        list_push(ctx, keys, key);
        list_push(ctx, unique, items->items[i]);
    }
    return value_iter(ctx, unique);
}

static struct value extreme(struct jinja_ctx *ctx, struct value v, const struct value *p, bool want_max)
{
    const struct list *items = value_items(ctx, v);
    if (!items || items->count == 0) { return value_undefined(ctx, "No aggregated item, sequence was empty."); }
    bool case_sensitive = value_truth(ctx, p[0]);
    struct value best = items->items[0], best_key = sort_key(ctx, best, p[1], case_sensitive);
    for (uint32_t i = 1; i < items->count && !jinja_failed(ctx); i++) {
        struct value key = sort_key(ctx, items->items[i], p[1], case_sensitive);
        if (want_max ? value_less(ctx, best_key, key, ">") : value_less(ctx, key, best_key, "<")) {
            best = items->items[i];
            best_key = key;
        }
    }
    return best;
}

static struct value f_min(struct jinja_ctx *ctx, struct value v, const struct value *p) { return extreme(ctx, v, p, false); }
static struct value f_max(struct jinja_ctx *ctx, struct value v, const struct value *p) { return extreme(ctx, v, p, true); }

static struct value f_attr(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    if (p[0].kind != V_STR) { return fail_type(ctx, "attr", p[0]); }
    if (v.kind == V_DICT) { /* unlike v.name it does not fall back to items */
        struct value found = jinja_getattr(ctx, value_dict(dict_new(ctx)), p[0]);
        if (found.kind == V_METHOD) { found.u.method->self = v; }
        return found;
    }
    return jinja_getattr(ctx, v, p[0]);
}

/* ---- filters that call filters and tests ---- */

static struct value f_map(struct jinja_ctx *ctx, struct value v, const struct call *call)
{
    struct list *mapped = list_new(ctx, 0);
    if (!value_truth(ctx, v)) { return value_iter(ctx, mapped); }
    struct value p[CALL_PARAMS_MAX] = {{0}};
    uint32_t filter = BUILTIN_NONE;
    struct call rest = {0};
    if (call && call->positional) {
        filter = jinja_filter_find(call->values[0]);
        if (filter == BUILTIN_NONE) {
            struct value name = value_to_str(ctx, call->values[0]);
            if (!jinja_failed(ctx)) { jinja_fail(ctx, ST_UNIMPLEMENTED, "unsupported filter '%.*s' at line %u", (int)(name.len < 60 ? name.len : 60), name.u.text, ctx->line); }
            return value_none();
        }
        rest = (struct call){call->values + 1, call->names + 1, call->count - 1, call->positional - 1};
    } else if (!call_bind(ctx, "map", call, "attribute default", 1, p)) {
        return value_none();
    }
    const struct list *items = value_items(ctx, v);
    for (uint32_t i = 0; items && i < items->count && jinja_charge(ctx, 1); i++) {
        list_push(ctx, mapped, filter == BUILTIN_NONE ? attribute_of(ctx, items->items[i], p[0], p[1]) : jinja_filter_apply(ctx, filter, items->items[i], &rest));
    }
    return value_iter(ctx, mapped);
}

static struct value choose(struct jinja_ctx *ctx, struct value v, const struct call *call, bool by_attribute, bool keep)
{
    struct list *kept = list_new(ctx, 0);
    if (!value_truth(ctx, v)) { return value_iter(ctx, kept); }
    uint32_t at = by_attribute, test = BUILTIN_NONE, positional = call ? call->positional : 0;
    if (positional < at) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "Missing parameter for attribute name");
        return value_none();
    }
    struct call rest = {0};
    if (positional > at) {
        test = jinja_test_find(call->values[at]);
        if (test == BUILTIN_NONE) {
            struct value name = value_to_str(ctx, call->values[at]);
            if (!jinja_failed(ctx)) { jinja_fail(ctx, ST_UNIMPLEMENTED, "unsupported test '%.*s' at line %u", (int)(name.len < 60 ? name.len : 60), name.u.text, ctx->line); }
            return value_none();
        }
        rest = (struct call){call->values + at + 1, call->names + at + 1, call->count - at - 1, positional - at - 1};
    }
    const struct list *items = value_items(ctx, v);
    for (uint32_t i = 0; items && i < items->count && jinja_charge(ctx, 1); i++) {
        struct value subject = by_attribute ? attribute_of(ctx, items->items[i], call->values[0], (struct value){.kind = V_UNDEFINED}) : items->items[i];
        bool passes = test == BUILTIN_NONE ? value_truth(ctx, subject) : jinja_test_apply(ctx, test, subject, &rest);
        if (passes == keep) { list_push(ctx, kept, items->items[i]); }
    }
    return value_iter(ctx, kept);
}

static struct value f_select(struct jinja_ctx *ctx, struct value v, const struct call *call) { return choose(ctx, v, call, false, true); }
static struct value f_reject(struct jinja_ctx *ctx, struct value v, const struct call *call) { return choose(ctx, v, call, false, false); }
static struct value f_selectattr(struct jinja_ctx *ctx, struct value v, const struct call *call) { return choose(ctx, v, call, true, true); }
static struct value f_rejectattr(struct jinja_ctx *ctx, struct value v, const struct call *call) { return choose(ctx, v, call, true, false); }

static const struct filter_def filters[] = {
    {"abs", f_abs, "", 0, NULL},
    {"attr", f_attr, "name", 1, NULL},
    {"capitalize", f_capitalize, "", 0, NULL},
    {"center", f_center, "width", 0, NULL},
    {"count", f_length, "", 0, NULL},
    {"d", f_default, "default_value boolean", 0, NULL},
    {"default", f_default, "default_value boolean", 0, NULL},
    {"dictsort", f_dictsort, "case_sensitive by reverse", 0, NULL},
    {"e", f_escape, "", 0, NULL},
    {"escape", f_escape, "", 0, NULL},
    {"first", f_first, "", 0, NULL},
    {"float", f_float, "default", 0, NULL},
    {"forceescape", f_forceescape, "", 0, NULL},
    {"indent", f_indent, "width first blank", 0, NULL},
    {"int", f_int, "default base", 0, NULL},
    {"items", f_items, "", 0, NULL},
    {"join", f_join, "d attribute", 0, NULL},
    {"last", f_last, "", 0, NULL},
    {"length", f_length, "", 0, NULL},
    {"list", f_list, "", 0, NULL},
    {"lower", f_lower, "", 0, NULL},
    {"map", NULL, NULL, 0, f_map},
    {"max", f_max, "case_sensitive attribute", 0, NULL},
    {"min", f_min, "case_sensitive attribute", 0, NULL},
    {"reject", NULL, NULL, 0, f_reject},
    {"rejectattr", NULL, NULL, 0, f_rejectattr},
    {"replace", f_replace, "old new count", 2, NULL},
    {"reverse", f_reverse, "", 0, NULL},
    {"round", f_round, "precision method", 0, NULL},
    {"safe", f_safe, "", 0, NULL},
    {"select", NULL, NULL, 0, f_select},
    {"selectattr", NULL, NULL, 0, f_selectattr},
    {"sort", f_sort, "reverse case_sensitive attribute", 0, NULL},
    {"string", f_string, "", 0, NULL},
    {"sum", f_sum, "attribute start", 0, NULL},
    {"title", f_title, "", 0, NULL},
    {"tojson", NULL, NULL, 0, jinja_tojson},
    {"trim", f_trim, "chars", 0, NULL},
    {"unique", f_unique, "case_sensitive attribute", 0, NULL},
    {"upper", f_upper, "", 0, NULL},
};

uint32_t jinja_filter_find(struct value name)
{
    for (uint32_t i = 0; i < sizeof filters / sizeof filters[0]; i++) {
        if (value_is_str(name, filters[i].name)) { return i; }
    }
    return BUILTIN_NONE;
}

struct value jinja_filter_apply(struct jinja_ctx *ctx, uint32_t filter, struct value input, const struct call *call)
{
    const struct filter_def *def = &filters[filter];
    struct value params[CALL_PARAMS_MAX];
    if (!jinja_charge(ctx, 1)) { return value_none(); }
    if (def->raw) {
        if (!jinja_enter(ctx)) { return value_none(); } /* map('map', 'map', ...) */
        struct value result = def->raw(ctx, input, call);
        jinja_leave(ctx);
        return result;
    }
    if (!call_bind(ctx, def->name, call, def->signature, def->required, params)) { return value_none(); }
    return def->fn(ctx, input, params);
}

/* ---- tests ---- */

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
