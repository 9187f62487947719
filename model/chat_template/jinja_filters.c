/* jinja_filters: x | filter(...): finds a filter by its name and applies it.
 * Flow:    jinja_expression asks for its number, jinja_eval applies it -> [jinja_filters] -> the
 *          tables of jinja_filters_text, _number and _sequence
 * Thread:  the context's.
 * Memory:  the context's arena. */
#include "model/chat_template/jinja_filters_internal.h"

/* ---- filters over any value ---- */

static struct value f_default(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    struct value otherwise = param_given(p[0]) ? p[0] : value_str("", 0);
    return v.kind == V_UNDEFINED || (value_truth(ctx, p[1]) && !value_truth(ctx, v)) ? otherwise : v;
}

static struct value f_attr(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    if (p[0].kind != V_STR) { return jinja_filter_fail_type(ctx, "attr", p[0]); }
    if (v.kind == V_DICT) { /* unlike v.name it does not fall back to items */
        struct value found = jinja_getattr(ctx, value_dict(dict_new(ctx)), p[0]);
        if (found.kind == V_METHOD) { found.u.method->self = v; }
        return found;
    }
    return jinja_getattr(ctx, v, p[0]);
}

static const struct filter_def value_filters[] = {
    {"attr", f_attr, "name", 1, NULL},
    {"d", f_default, "default_value boolean", 0, NULL},
    {"default", f_default, "default_value boolean", 0, NULL},
};
static const struct filter_table jinja_value_filters = {value_filters, sizeof value_filters / sizeof value_filters[0]};

/* ---- by name, by number ---- */

/* A filter's number counts through the tables in this order; BUILTIN_NONE is none of them. */
static const struct filter_table *const tables[] = {&jinja_text_filters, &jinja_number_filters, &jinja_sequence_filters, &jinja_value_filters};

uint32_t jinja_filter_find(struct value name)
{
    uint32_t number = 0;
    for (size_t t = 0; t < sizeof tables / sizeof tables[0]; t++) {
        for (uint32_t i = 0; i < tables[t]->count; i++, number++) {
            if (value_is_str(name, tables[t]->filters[i].name)) { return number; }
        }
    }
    return BUILTIN_NONE;
}

static const struct filter_def *filter_at(uint32_t number)
{
    size_t t = 0;
    for (; number >= tables[t]->count; t++) { number -= tables[t]->count; }
    return &tables[t]->filters[number];
}

struct value jinja_filter_apply(struct jinja_ctx *ctx, uint32_t filter, struct value input, const struct call *call)
{
    const struct filter_def *def = filter_at(filter);
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

/* ---- what the filters share ---- */

struct value jinja_filter_fail_type(struct jinja_ctx *ctx, const char *filter, struct value v)
{
    if (value_require(ctx, v)) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "filter '%s' cannot take a %s", filter, value_type_name(v)); }
    return value_none();
}

int64_t jinja_filter_int(struct jinja_ctx *ctx, struct value v, int64_t otherwise)
{
    if (!param_given(v)) { return otherwise; }
    if (!value_is_integral(v)) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "a filter wants a whole number, not %s", value_type_name(v));
        return otherwise;
    }
    return value_integer(v);
}

/* Walks "a.b.0"; Jinja looks each part up as an item first. */
struct value jinja_attribute_of(struct jinja_ctx *ctx, struct value item, struct value path, struct value otherwise)
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
