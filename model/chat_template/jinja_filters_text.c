/* jinja_filters_text: filters that give text: case, escapes, white space, join, tojson.
 * Flow:    jinja_filters -> [jinja_filters_text] -> jinja_text, jinja_tojson
 * Thread:  the context's.
 * Memory:  the context's arena. */
#include "model/chat_template/jinja_filters_internal.h"
#include "model/chat_template/jinja_text.h"

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
    if (p[0].kind != V_STR) { return jinja_filter_fail_type(ctx, "trim", p[0]); }
    return text_strip(ctx, v, &p[0], true, true);
}

static struct value f_replace(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    v = value_to_str(ctx, v);
    struct value from = value_to_str(ctx, p[0]), to = value_to_str(ctx, p[1]);
    int64_t count = p[2].kind == V_NONE ? -1 : jinja_filter_int(ctx, p[2], -1);
    return jinja_failed(ctx) ? value_none() : text_replace(ctx, v, from, to, count);
}

static struct value f_center(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    struct value width = value_int(jinja_filter_int(ctx, p[0], 80)), name = value_none();
    v = value_to_str(ctx, v);
    if (jinja_failed(ctx)) { return value_none(); }
    struct method method = {.self = v, .name = "center", .name_len = 6};
    return jinja_method_call(ctx, &method, &(struct call){.values = &width, .names = &name, .count = 1, .positional = 1});
}

static struct value f_indent(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    if (v.kind != V_STR) { return jinja_filter_fail_type(ctx, "indent", v); }
    struct value by = p[0];
    if (by.kind != V_STR) {
        int64_t width = jinja_filter_int(ctx, p[0], 4);
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
        if (param_given(p[1]) && p[1].kind != V_NONE) { item = jinja_attribute_of(ctx, item, p[1], (struct value){.kind = V_UNDEFINED}); }
        item = value_to_str(ctx, item);
        if (jinja_failed(ctx)) { break; }
        if (i) { text_put(ctx, &text, separator.u.text, separator.len); }
        text_put(ctx, &text, item.u.text, item.len);
    }
    return text_value(ctx, &text);
}

static const struct filter_def filters[] = {
    {"capitalize", f_capitalize, "", 0, NULL},
    {"center", f_center, "width", 0, NULL},
    {"e", f_escape, "", 0, NULL},
    {"escape", f_escape, "", 0, NULL},
    {"forceescape", f_forceescape, "", 0, NULL},
    {"indent", f_indent, "width first blank", 0, NULL},
    {"join", f_join, "d attribute", 0, NULL},
    {"lower", f_lower, "", 0, NULL},
    {"replace", f_replace, "old new count", 2, NULL},
    {"safe", f_safe, "", 0, NULL},
    {"string", f_string, "", 0, NULL},
    {"title", f_title, "", 0, NULL},
    {"tojson", NULL, NULL, 0, jinja_tojson},
    {"trim", f_trim, "chars", 0, NULL},
    {"upper", f_upper, "", 0, NULL},
};
const struct filter_table jinja_text_filters = {filters, sizeof filters / sizeof filters[0]};
