/* jinja_tojson: the filter tojson: a value as JSON text, byte for byte as Python's json.dumps.
 * Flow:    jinja_filters_text -> [jinja_tojson]
 * Thread:  the context's.
 * Memory:  the context's arena. */
#include <math.h>
#include <stdio.h>

#include "model/chat_template/jinja_builtins.h"
#include "model/chat_template/jinja_utf8.h"

struct dumper {
    struct jinja_ctx *ctx;
    struct text text;
    bool ascii, sort, pretty;
    struct value indent, item_separator, key_separator;
    uint32_t level;
};

static void put_json_string(struct dumper *d, struct value s)
{
    text_putc(d->ctx, &d->text, '"');
    uint32_t begin = 0;
    for (uint32_t at = 0; at < s.len && !jinja_failed(d->ctx);) {
        unsigned char c = (unsigned char)s.u.text[at];
        uint32_t code = c, len = 1;
        if (c >= 0x80) { len = utf8_next(s.u.text + at, s.len - at, &code); }
        const char *known = code == '"' ? "\\\"" : code == '\\' ? "\\\\" : code == '\n' ? "\\n" : code == '\r' ? "\\r" : code == '\t' ? "\\t"
                          : code == '\b' ? "\\b" : code == '\f' ? "\\f" : NULL;
        if (!known && code >= 0x20 && !(d->ascii && code >= 0x7f)) {
            at += len;
            continue;
        }
        text_put(d->ctx, &d->text, s.u.text + begin, at - begin);
        char escape[16];
        if (code >= 0x10000) {
            uint32_t rest = code - 0x10000;
            snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xd800 + (rest >> 10), 0xdc00 + (rest & 0x3ff));
        } else {
            snprintf(escape, sizeof escape, "\\u%04x", code);
        }
        text_puts(d->ctx, &d->text, known ? known : escape);
        at += len;
        begin = at;
    }
    text_put(d->ctx, &d->text, s.u.text + begin, s.len - begin);
    text_putc(d->ctx, &d->text, '"');
}

static void put_line(struct dumper *d)
{
    if (!d->pretty) { return; }
    text_putc(d->ctx, &d->text, '\n');
    for (uint32_t i = 0; i < d->level; i++) { text_put(d->ctx, &d->text, d->indent.u.text, d->indent.len); }
}

static const char *number_text(struct value v, char text[64])
{
    if (v.kind == V_BOOL) { return v.u.boolean ? "true" : "false"; }
    if (v.kind == V_INT) {
        snprintf(text, 64, "%lld", (long long)v.u.integer);
    } else if (isnan(v.u.real) || isinf(v.u.real)) {
        return isnan(v.u.real) ? "NaN" : v.u.real > 0 ? "Infinity" : "-Infinity";
    } else {
        float_repr(v.u.real, text);
    }
    return text;
}

static void put_json(struct dumper *d, struct value v);

static void put_json_dict(struct dumper *d, const struct dict *dict)
{
    struct jinja_ctx *ctx = d->ctx;
    uint32_t *order = jinja_alloc(ctx, (dict->count + 1) * sizeof *order);
    if (!order) { return; }
    for (uint32_t i = 0; i < dict->count; i++) {
        uint32_t at = i;
        /* Insertion sort: tool schemas have a handful of keys, and the work is charged. */
        while (d->sort && at > 0 && value_less(ctx, dict->pairs[i].key, dict->pairs[order[at - 1]].key, "<")) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = i;
    }
    text_putc(ctx, &d->text, '{');
    d->level++;
    for (uint32_t i = 0; i < dict->count && !jinja_failed(ctx); i++) {
        if (i) { text_put(ctx, &d->text, d->item_separator.u.text, d->item_separator.len); }
        put_line(d);
        struct value key = dict->pairs[order[i]].key;
        char number[64];
        if (key.kind == V_NONE) {
            key = value_cstr("null");
        } else if (value_is_number(key)) {
            key = value_cstr(number_text(key, number));
        } else if (key.kind != V_STR) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "keys must be str, int, float, bool or None, not %s", value_type_name(key));
            return;
        }
        put_json_string(d, key);
        text_put(ctx, &d->text, d->key_separator.u.text, d->key_separator.len);
        put_json(d, dict->pairs[order[i]].value);
    }
    d->level--;
    put_line(d);
    text_putc(ctx, &d->text, '}');
}

static void put_json_list(struct dumper *d, const struct list *list)
{
    text_putc(d->ctx, &d->text, '[');
    d->level++;
    for (uint32_t i = 0; i < list->count && !jinja_failed(d->ctx); i++) {
        if (i) { text_put(d->ctx, &d->text, d->item_separator.u.text, d->item_separator.len); }
        put_line(d);
        put_json(d, list->items[i]);
    }
    d->level--;
    put_line(d);
    text_putc(d->ctx, &d->text, ']');
}

static void put_json(struct dumper *d, struct value v)
{
    char number[64];
    if (!jinja_charge(d->ctx, 1) || !jinja_enter(d->ctx)) { return; }
    switch (v.kind) {
    case V_NONE: text_puts(d->ctx, &d->text, "null"); break;
    case V_BOOL:
    case V_INT:
    case V_FLOAT: text_puts(d->ctx, &d->text, number_text(v, number)); break;
    case V_STR: put_json_string(d, v); break;
    case V_LIST:
    case V_TUPLE:
        if (v.u.list->count) { put_json_list(d, v.u.list); } else { text_puts(d->ctx, &d->text, "[]"); }
        break;
    case V_DICT:
        if (v.u.dict->count) { put_json_dict(d, v.u.dict); } else { text_puts(d->ctx, &d->text, "{}"); }
        break;
    default:
        jinja_fail(d->ctx, ST_INVALID_ARGUMENT, "Object of type %s is not JSON serializable", value_type_name(v));
    }
    jinja_leave(d->ctx);
}

struct value jinja_tojson(struct jinja_ctx *ctx, struct value v, const struct call *call)
{
    struct value params[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "tojson", call, "ensure_ascii indent separators sort_keys", 0, params)) { return value_none(); }
    struct dumper d = {.ctx = ctx, .item_separator = value_cstr(", "), .key_separator = value_cstr(": ")};
    d.ascii = value_truth(ctx, params[0]);
    d.sort = value_truth(ctx, params[3]);
    struct value indent = params[1];
    if (indent.kind == V_STR) {
        d.pretty = true;
        d.indent = indent;
    } else if (value_is_integral(indent)) {
        int64_t width = value_integer(indent);
        if (width > 1000) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "tojson: indent %lld is above 1000", (long long)width); }
        d.pretty = true;
        d.indent = value_str("", 0);
        for (int64_t i = 0; i < width && !jinja_failed(ctx); i++) { d.indent = text_append(ctx, d.indent, value_cstr(" ")); }
    } else if (indent.kind != V_UNDEFINED && indent.kind != V_NONE) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "tojson: indent must be a number or a string, not %s", value_type_name(indent));
    }
    if (d.pretty) { d.item_separator = value_cstr(","); }
    struct value separators = params[2];
    if ((separators.kind == V_TUPLE || separators.kind == V_LIST) && separators.u.list->count == 2 &&
        separators.u.list->items[0].kind == V_STR && separators.u.list->items[1].kind == V_STR) {
        d.item_separator = separators.u.list->items[0];
        d.key_separator = separators.u.list->items[1];
    } else if (separators.kind != V_UNDEFINED && separators.kind != V_NONE) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "tojson: separators must be two strings");
    }
    put_json(&d, v);
    return text_value(ctx, &d.text);
}
