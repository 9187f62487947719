/* jinja_filters_sequence: filters over sequences and dicts: ends, order, choice, map.
 * Flow:    jinja_filters -> [jinja_filters_sequence] -> jinja_value; map and select call back into
 *          jinja_filters and jinja_tests
 * Thread:  the context's.
 * Memory:  the context's arena. */
#include "model/chat_template/jinja_filters_internal.h"
#include "model/chat_template/jinja_text.h"

/* ---- order ---- */

/* What items are compared by: their attribute, strings in lower case. */
static struct value sort_key(struct jinja_ctx *ctx, struct value item, struct value attribute, bool case_sensitive)
{
    if (param_given(attribute) && attribute.kind != V_NONE) { item = jinja_attribute_of(ctx, item, attribute, (struct value){.kind = V_UNDEFINED}); }
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

/* ---- the filters ---- */

static struct value f_length(struct jinja_ctx *ctx, struct value v, const struct value *p)
{
    (void)p;
    int64_t length = value_length(ctx, v);
    if (length < 0) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "object of type '%s' has no len()", value_type_name(v)); }
    return value_int(length);
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
    if (v.kind != V_DICT) { return jinja_filter_fail_type(ctx, "dictsort", v); }
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
        list_push(ctx, mapped, filter == BUILTIN_NONE ? jinja_attribute_of(ctx, items->items[i], p[0], p[1]) : jinja_filter_apply(ctx, filter, items->items[i], &rest));
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
        struct value subject = by_attribute ? jinja_attribute_of(ctx, items->items[i], call->values[0], (struct value){.kind = V_UNDEFINED}) : items->items[i];
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
    {"count", f_length, "", 0, NULL},
    {"dictsort", f_dictsort, "case_sensitive by reverse", 0, NULL},
    {"first", f_first, "", 0, NULL},
    {"items", f_items, "", 0, NULL},
    {"last", f_last, "", 0, NULL},
    {"length", f_length, "", 0, NULL},
    {"list", f_list, "", 0, NULL},
    {"map", NULL, NULL, 0, f_map},
    {"max", f_max, "case_sensitive attribute", 0, NULL},
    {"min", f_min, "case_sensitive attribute", 0, NULL},
    {"reject", NULL, NULL, 0, f_reject},
    {"rejectattr", NULL, NULL, 0, f_rejectattr},
    {"reverse", f_reverse, "", 0, NULL},
    {"select", NULL, NULL, 0, f_select},
    {"selectattr", NULL, NULL, 0, f_selectattr},
    {"sort", f_sort, "reverse case_sensitive attribute", 0, NULL},
    {"unique", f_unique, "case_sensitive attribute", 0, NULL},
};
const struct filter_table jinja_sequence_filters = {filters, sizeof filters / sizeof filters[0]};
