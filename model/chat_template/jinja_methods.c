/* jinja_methods: obj.name, obj[key], obj[a:b:c] and the methods of str, list, dict and loop. */
#include "model/chat_template/jinja_builtins.h"
#include "model/chat_template/jinja_text.h"
#include "model/chat_template/jinja_utf8.h"

static bool in_table(struct value name, const char *const *table)
{
    for (; *table; table++) {
        if (value_is_str(name, *table)) { return true; }
    }
    return false;
}

static const char *const str_methods[] = {
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "replace", "upper", "lower", "title", "capitalize",
    "join", "find", "rfind", "index", "rindex", "count", "isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower", "removeprefix",
    "removesuffix", "partition", "rpartition", "zfill", "ljust", "rjust", "center", NULL};
static const char *const str_others[] = {"casefold", "encode", "expandtabs", "format", "format_map", "isascii", "isdecimal", "isidentifier",
                                         "isnumeric", "isprintable", "istitle", "maketrans", "swapcase", "translate", NULL};
static const char *const list_methods[] = {"index", "count", "copy", NULL};
static const char *const list_changers[] = {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove", NULL};
static const char *const dict_methods[] = {"get", "keys", "values", "items", "copy", NULL};
static const char *const dict_changers[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
static const char *const tuple_methods[] = {"index", "count", NULL};

/* ---- lookup ---- */

static struct value no_attribute(struct jinja_ctx *ctx, struct value object, struct value name)
{
    if (object.kind == V_NONE) { return value_undefined(ctx, "'None' has no attribute '%.*s'", (int)name.len, name.u.text); }
    return value_undefined(ctx, "'%s object' has no attribute '%.*s'", object.kind == V_NAMESPACE ? "jinja2.utils.Namespace" : value_type_name(object),
                           (int)(name.len < 100 ? name.len : 100), name.u.text);
}

static struct value bound(struct jinja_ctx *ctx, struct value self, struct value name)
{
    struct method *method = jinja_alloc(ctx, sizeof *method);
    if (!method) { return value_none(); }
    *method = (struct method){.self = self, .name = name.u.text, .name_len = name.len};
    return (struct value){.kind = V_METHOD, .u.method = method};
}

static struct value loop_attribute(struct jinja_ctx *ctx, struct value object, struct value name, bool *ret_found)
{
    const struct loop *loop = object.u.loop;
    uint32_t count = loop->items->count, index = loop->index;
    *ret_found = true;
    if (value_is_str(name, "index")) { return value_int((int64_t)index + 1); }
    if (value_is_str(name, "index0")) { return value_int(index); }
    if (value_is_str(name, "revindex")) { return value_int((int64_t)count - index); }
    if (value_is_str(name, "revindex0")) { return value_int((int64_t)count - index - 1); }
    if (value_is_str(name, "first")) { return value_bool(index == 0); }
    if (value_is_str(name, "last")) { return value_bool(index + 1 == count); }
    if (value_is_str(name, "length")) { return value_int(count); }
    if (value_is_str(name, "depth")) { return value_int((int64_t)loop->depth + 1); }
    if (value_is_str(name, "depth0")) { return value_int(loop->depth); }
    if (value_is_str(name, "previtem")) { return index ? loop->items->items[index - 1] : value_undefined(ctx, "there is no previous item"); }
    if (value_is_str(name, "nextitem")) { return index + 1 < count ? loop->items->items[index + 1] : value_undefined(ctx, "there is no next item"); }
    if (value_is_str(name, "cycle") || value_is_str(name, "changed")) { return bound(ctx, object, name); }
    *ret_found = false;
    return value_none();
}

/* What Python's getattr() finds, without the fall back to items. */
static struct value own_attribute(struct jinja_ctx *ctx, struct value object, struct value name, bool *ret_found)
{
    *ret_found = true;
    if (name.len > 4 && memcmp(name.u.text, "__", 2) == 0 && memcmp(name.u.text + name.len - 2, "__", 2) == 0) {
        return value_undefined(ctx, "access to attribute '%.*s' of '%s' object is unsafe.", (int)(name.len < 100 ? name.len : 100), name.u.text,
                               value_type_name(object));
    }
    const char *const *methods = NULL, *const *changers = NULL;
    switch (object.kind) {
    case V_STR:
        methods = str_methods;
        if (in_table(name, str_others) || (object.safe && in_table(name, str_methods))) {
            jinja_fail(ctx, ST_UNIMPLEMENTED, "unsupported method '%.*s' of %s at line %u", (int)name.len, name.u.text,
                       object.safe ? "a string marked safe" : "str", ctx->line);
            return value_none();
        }
        break;
    case V_LIST:
        methods = list_methods;
        changers = list_changers;
        break;
    case V_TUPLE:
    case V_RANGE: methods = tuple_methods; break;
    case V_DICT:
        methods = dict_methods;
        changers = dict_changers;
        if (value_is_str(name, "fromkeys")) {
            jinja_fail(ctx, ST_UNIMPLEMENTED, "unsupported method 'fromkeys' of dict at line %u", ctx->line);
            return value_none();
        }
        break;
    case V_LOOP: return loop_attribute(ctx, object, name, ret_found);
    case V_NAMESPACE: {
        const struct value *have = dict_get(ctx, object.u.dict, name);
        if (have) { return *have; }
        break;
    }
    default: break;
    }
    if (methods && in_table(name, methods)) { return bound(ctx, object, name); }
    if (changers && in_table(name, changers)) {
        return value_undefined(ctx, "access to attribute '%.*s' of '%s' object is unsafe.", (int)name.len, name.u.text, value_type_name(object));
    }
    *ret_found = false;
    return value_none();
}

struct value jinja_getattr(struct jinja_ctx *ctx, struct value object, struct value name)
{
    if (!value_require(ctx, object)) { return value_none(); }
    bool found;
    struct value value = own_attribute(ctx, object, name, &found);
    if (found || jinja_failed(ctx)) { return value; }
    if (object.kind == V_DICT) {
        const struct value *item = dict_get(ctx, object.u.dict, name);
        if (item) { return *item; }
    }
    return no_attribute(ctx, object, name);
}

static struct value char_at(struct jinja_ctx *ctx, struct value s, int64_t index)
{
    jinja_charge(ctx, 1 + s.len / 256);
    size_t at = utf8_offset(s.u.text, s.len, index);
    uint32_t code;
    struct value c = value_str(s.u.text + at, utf8_next(s.u.text + at, s.len - at, &code));
    c.safe = s.safe;
    return c;
}

struct value jinja_getitem(struct jinja_ctx *ctx, struct value object, struct value key)
{
    if (!value_require(ctx, object)) { return value_none(); }
    bool is_sequence = object.kind == V_STR || object.kind == V_LIST || object.kind == V_TUPLE || object.kind == V_RANGE;
    if (is_sequence && value_is_integral(key)) {
        int64_t count = value_length(ctx, object), index = value_integer(key);
        if (index < 0) { index += count; }
        if (index >= 0 && index < count) {
            if (object.kind == V_STR) { return char_at(ctx, object, index); }
            const struct list *list = object.kind == V_RANGE ? &object.u.range->list : object.u.list;
            return list->items[index];
        }
    } else if (object.kind == V_DICT && key.kind != V_LIST && key.kind != V_DICT && key.kind != V_UNDEFINED) {
        const struct value *item = dict_get(ctx, object.u.dict, key);
        if (item) { return *item; }
    }
    if (key.kind == V_STR) {
        bool found;
        struct value value = own_attribute(ctx, object, key, &found);
        return found || jinja_failed(ctx) ? value : no_attribute(ctx, object, key);
    }
    struct text repr = {0};
    if (key.kind == V_METHOD || key.kind == V_MACRO || key.kind == V_FUNCTION || key.kind == V_ITER || key.kind == V_LOOP) { key = value_none(); }
    value_put_repr(ctx, &repr, key);
    struct value text = text_value(ctx, &repr);
    if (jinja_failed(ctx)) { return value_none(); }
    return value_undefined(ctx, "%s%s has no element %.*s", object.kind == V_NONE ? "None" : value_type_name(object), object.kind == V_NONE ? "" : " object",
                           (int)(text.len < 100 ? text.len : 100), text.u.text);
}

/* Python's slice.indices(). */
static bool slice_bounds(struct jinja_ctx *ctx, int64_t count, const struct value bounds[3], int64_t *ret_start, int64_t *ret_stop, int64_t *ret_step)
{
    for (int i = 0; i < 3; i++) {
        if (bounds[i].kind != V_NONE && !value_is_integral(bounds[i])) { return false; }
    }
    int64_t step = bounds[2].kind == V_NONE ? 1 : value_integer(bounds[2]);
    if (step == 0) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "slice step cannot be zero");
        return false;
    }
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? count - 1 : count;
    int64_t ends[2];
    for (int i = 0; i < 2; i++) {
        if (bounds[i].kind == V_NONE) {
            ends[i] = (i == 0) == (step > 0) ? low : high;
            continue;
        }
        int64_t at = value_integer(bounds[i]);
        if (at < 0) { at = at < -count ? low : at + count; }
        ends[i] = at < low ? low : at > high ? high : at;
    }
    *ret_start = ends[0];
    *ret_stop = ends[1];
    *ret_step = step;
    return true;
}

struct value jinja_slice(struct jinja_ctx *ctx, struct value object, struct value start, struct value stop, struct value step)
{
    if (!value_require(ctx, object)) { return value_none(); }
    bool is_sequence = object.kind == V_STR || object.kind == V_LIST || object.kind == V_TUPLE || object.kind == V_RANGE;
    int64_t from, to, by;
    const struct value bounds[3] = {start, stop, step};
    if (!is_sequence || !slice_bounds(ctx, value_length(ctx, object), bounds, &from, &to, &by)) {
        return value_undefined(ctx, "%s%s has no element slice", object.kind == V_NONE ? "None" : value_type_name(object), object.kind == V_NONE ? "" : " object");
    }
    if (object.kind == V_STR && by == 1) {
        if (to < from) { to = from; }
        jinja_charge(ctx, 1 + object.len / 256);
        size_t begin = utf8_offset(object.u.text, object.len, from);
        size_t end = begin + utf8_offset(object.u.text + begin, object.len - begin, to - from);
        struct value part = value_str(object.u.text + begin, end - begin);
        part.safe = object.safe;
        return part;
    }
    const struct list *source = value_items(ctx, object);
    struct list *list = list_new(ctx, 0);
    struct text text = {0};
    for (int64_t i = from; source && (by > 0 ? i < to : i > to) && jinja_charge(ctx, 1);) {
        if (object.kind == V_STR) {
            text_put(ctx, &text, source->items[i].u.text, source->items[i].len);
        } else {
            list_push(ctx, list, source->items[i]);
        }
        if (__builtin_add_overflow(i, by, &i)) { break; }
    }
    if (object.kind == V_STR) {
        struct value part = text_value(ctx, &text);
        part.safe = object.safe;
        return part;
    }
    return value_list(list, object.kind == V_TUPLE ? V_TUPLE : V_LIST);
}

/* ---- str ---- */

static bool want_str(struct jinja_ctx *ctx, const char *function, struct value v)
{
    if (jinja_failed(ctx)) { return false; }
    if (v.kind == V_STR) { return true; }
    jinja_fail(ctx, ST_INVALID_ARGUMENT, "%s() wants a str, not %s", function, value_type_name(v));
    return false;
}

static int64_t int_or(struct jinja_ctx *ctx, struct value v, int64_t otherwise)
{
    if (v.kind == V_NONE || !param_given(v)) { return otherwise; }
    if (!value_is_integral(v)) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "'%s' object cannot be interpreted as an integer", value_type_name(v));
        return otherwise;
    }
    return value_integer(v);
}

/* split() without a separator: at runs of white space. */
static struct list *split_spaces(struct jinja_ctx *ctx, struct value s, int64_t max, bool from_right)
{
    struct list *parts = list_new(ctx, 0);
    struct value rest = text_strip(ctx, s, NULL, !from_right, from_right);
    while (rest.len && jinja_charge(ctx, 1)) {
        if (max >= 0 && parts->count == (uint64_t)max) {
            struct value last = text_strip(ctx, rest, NULL, from_right, false);
            list_push(ctx, parts, from_right ? text_strip(ctx, rest, NULL, false, true) : last);
            break;
        }
        uint32_t at = from_right ? rest.len : 0;
        if (from_right) {
            while (at > 0) {
                uint32_t step = at - 1, code;
                while (step > 0 && ((unsigned char)rest.u.text[step] & 0xc0) == 0x80) { step--; }
                utf8_next(rest.u.text + step, rest.len - step, &code);
                if (text_is_space(code)) { break; }
                at = step;
            }
            list_push(ctx, parts, value_str(rest.u.text + at, rest.len - at));
            rest = text_strip(ctx, value_str(rest.u.text, at), NULL, false, true);
        } else {
            while (at < rest.len) {
                uint32_t code;
                uint32_t len = utf8_next(rest.u.text + at, rest.len - at, &code);
                if (text_is_space(code)) { break; }
                at += len;
            }
            list_push(ctx, parts, value_str(rest.u.text, at));
            rest = text_strip(ctx, value_str(rest.u.text + at, rest.len - at), NULL, true, false);
        }
        jinja_charge(ctx, (at + 63) / 64);
    }
    return parts;
}

static const char *find_last(struct jinja_ctx *ctx, const char *text, size_t len, struct value what)
{
    /* At worst every place costs a whole comparison; paid for in advance. */
    if (!jinja_charge(ctx, 1 + len / 64 * (1 + what.len / 64))) { return NULL; }
    for (size_t at = len >= what.len ? len - what.len + 1 : 0; at > 0; at--) {
        if (memcmp(text + at - 1, what.u.text, what.len) == 0) { return text + at - 1; }
    }
    return NULL;
}

static struct list *split_at(struct jinja_ctx *ctx, struct value s, struct value separator, int64_t max, bool from_right)
{
    struct list *parts = list_new(ctx, 0);
    const char *text = s.u.text;
    size_t len = s.len;
    jinja_charge(ctx, 1 + len / 64);
    while (parts && (max < 0 || parts->count < (uint64_t)max) && jinja_charge(ctx, 1)) {
        const char *hit = from_right ? find_last(ctx, text, len, separator) : len ? memmem(text, len, separator.u.text, separator.len) : NULL;
        if (!hit) { break; }
        size_t before = (size_t)(hit - text), after = len - before - separator.len;
        if (from_right) {
            list_push(ctx, parts, value_str(hit + separator.len, after));
            len = before;
        } else {
            list_push(ctx, parts, value_str(text, before));
            text = hit + separator.len;
            len = after;
        }
    }
    list_push(ctx, parts, value_str(text, len));
    return parts;
}

static void turn_around(struct list *list)
{
    for (uint32_t i = 0; list && i < list->count / 2; i++) {
        struct value swap = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = swap;
    }
}

static struct value split(struct jinja_ctx *ctx, struct value s, const struct call *call, bool from_right)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "split", call, "sep maxsplit", 0, p)) { return value_none(); }
    int64_t max = int_or(ctx, p[1], -1);
    struct list *parts;
    if (!param_given(p[0]) || p[0].kind == V_NONE) {
        parts = split_spaces(ctx, s, max, from_right);
    } else if (!want_str(ctx, "split", p[0])) {
        return value_none();
    } else if (p[0].len == 0) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "empty separator");
        return value_none();
    } else {
        parts = split_at(ctx, s, p[0], max, from_right);
    }
    if (from_right) { turn_around(parts); }
    return value_list(parts, V_LIST);
}

static struct value partition(struct jinja_ctx *ctx, struct value s, const struct call *call, bool from_right)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "partition", call, "sep", 1, p) || !want_str(ctx, "partition", p[0])) { return value_none(); }
    if (p[0].len == 0) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "empty separator"); }
    struct list *parts = split_at(ctx, s, p[0], 1, from_right);
    if (jinja_failed(ctx)) { return value_none(); }
    struct list *three = list_new(ctx, 3);
    struct value nothing = value_str("", 0);
    if (from_right) { turn_around(parts); }
    bool hit = parts->count == 2;
    list_push(ctx, three, hit || !from_right ? parts->items[0] : nothing);
    list_push(ctx, three, hit ? p[0] : nothing);
    list_push(ctx, three, hit ? parts->items[1] : from_right ? parts->items[0] : nothing);
    return value_list(three, V_TUPLE);
}

/* startswith and endswith: one str or a tuple of them. */
static struct value has_end(struct jinja_ctx *ctx, struct value s, const struct call *call, bool at_start)
{
    const char *name = at_start ? "startswith" : "endswith";
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, name, call, "prefix start end", 1, p)) { return value_none(); }
    if (param_given(p[1]) || param_given(p[2])) {
        struct value start = param_given(p[1]) ? p[1] : value_none(), stop = param_given(p[2]) ? p[2] : value_none();
        s = jinja_slice(ctx, s, start, stop, value_none());
        if (s.kind != V_STR) { return value_bool(false); }
    }
    const struct value *options = &p[0];
    uint32_t count = 1;
    if (p[0].kind == V_TUPLE) {
        options = p[0].u.list->items;
        count = p[0].u.list->count;
    }
    for (uint32_t i = 0; i < count && jinja_charge(ctx, 1); i++) {
        if (options[i].kind != V_STR) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "%s first arg must be str or a tuple of str, not %s", name, value_type_name(options[i]));
            break;
        }
        uint32_t len = options[i].len;
        if (len <= s.len && memcmp(at_start ? s.u.text : s.u.text + s.len - len, options[i].u.text, len) == 0) { return value_bool(true); }
    }
    return value_bool(false);
}

static struct value find(struct jinja_ctx *ctx, struct value s, const struct call *call, bool from_right, bool must)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "find", call, "sub start end", 1, p) || !want_str(ctx, "find", p[0])) { return value_none(); }
    int64_t shift = 0;
    struct value in = s;
    if (param_given(p[1]) || param_given(p[2])) {
        struct value start = param_given(p[1]) ? p[1] : value_none(), stop = param_given(p[2]) ? p[2] : value_none();
        in = jinja_slice(ctx, s, start, stop, value_none());
        if (in.kind != V_STR) { return value_int(-1); }
        shift = utf8_count(s.u.text, (size_t)(in.u.text - s.u.text));
        /* Past the end even the empty string is not found. */
        if (in.len == 0 && int_or(ctx, p[1], 0) > value_length(ctx, s)) { return value_int(-1); }
    }
    jinja_charge(ctx, 1 + in.len / 64);
    const char *hit = from_right     ? (p[0].len ? find_last(ctx, in.u.text, in.len, p[0]) : in.u.text + in.len)
                      : p[0].len     ? (in.len ? memmem(in.u.text, in.len, p[0].u.text, p[0].len) : NULL)
                                     : in.u.text;
    if (!hit) {
        if (must) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "substring not found"); }
        return value_int(-1);
    }
    return value_int(shift + utf8_count(in.u.text, (size_t)(hit - in.u.text)));
}

static struct value count_str(struct jinja_ctx *ctx, struct value s, const struct call *call)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "count", call, "sub", 1, p) || !want_str(ctx, "count", p[0])) { return value_none(); }
    if (p[0].len == 0) { return value_int(value_length(ctx, s) + 1); }
    const struct list *parts = split_at(ctx, s, p[0], -1, false);
    return value_int(parts ? (int64_t)parts->count - 1 : 0);
}

static struct value pad(struct jinja_ctx *ctx, struct value s, const struct call *call, char where)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "ljust", call, "width fillchar", 1, p)) { return value_none(); }
    struct value fill = where == 'z' ? value_cstr("0") : param_given(p[1]) ? p[1] : value_cstr(" ");
    if (!want_str(ctx, "ljust", fill)) { return value_none(); }
    if (value_length(ctx, fill) != 1) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "The fill character must be exactly one character long"); }
    int64_t width = int_or(ctx, p[0], 0), length = value_length(ctx, s), missing = width - length;
    if (missing <= 0 || jinja_failed(ctx)) { return s; }
    /* Python's center puts the odd one left when the width is odd too. */
    int64_t left = where == 'l' ? 0 : where == 'c' ? missing / 2 + (missing & width & 1) : missing;
    struct text text = {0};
    uint32_t sign = where == 'z' && s.len && (s.u.text[0] == '-' || s.u.text[0] == '+');
    text_put(ctx, &text, s.u.text, sign);
    for (int64_t i = 0; i < left && jinja_charge(ctx, 1); i++) { text_put(ctx, &text, fill.u.text, fill.len); }
    text_put(ctx, &text, s.u.text + sign, s.len - sign);
    for (int64_t i = left; i < missing && jinja_charge(ctx, 1); i++) { text_put(ctx, &text, fill.u.text, fill.len); }
    return text_value(ctx, &text);
}

static struct value join(struct jinja_ctx *ctx, struct value s, const struct call *call)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "join", call, "iterable", 1, p)) { return value_none(); }
    const struct list *items = value_items(ctx, p[0]);
    struct text text = {0};
    for (uint32_t i = 0; items && i < items->count && jinja_charge(ctx, 1); i++) {
        if (items->items[i].kind != V_STR) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "sequence item %u: expected str instance, %s found", i, value_type_name(items->items[i]));
            break;
        }
        if (i) { text_put(ctx, &text, s.u.text, s.len); }
        text_put(ctx, &text, items->items[i].u.text, items->items[i].len);
    }
    return text_value(ctx, &text);
}

static struct value strip(struct jinja_ctx *ctx, struct value s, const struct call *call, bool left, bool right)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "strip", call, "chars", 0, p)) { return value_none(); }
    if (!param_given(p[0]) || p[0].kind == V_NONE) { return text_strip(ctx, s, NULL, left, right); }
    if (!want_str(ctx, "strip", p[0])) { return value_none(); }
    return text_strip(ctx, s, &p[0], left, right);
}

static struct value remove_end(struct jinja_ctx *ctx, struct value s, const struct call *call, bool at_start)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "removeprefix", call, "prefix", 1, p) || !want_str(ctx, "removeprefix", p[0])) { return value_none(); }
    if (p[0].len > s.len || memcmp(at_start ? s.u.text : s.u.text + s.len - p[0].len, p[0].u.text, p[0].len) != 0) { return s; }
    return value_str(at_start ? s.u.text + p[0].len : s.u.text, s.len - p[0].len);
}

static struct value replace(struct jinja_ctx *ctx, struct value s, const struct call *call)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "replace", call, "old new count", 2, p) || !want_str(ctx, "replace", p[0]) || !want_str(ctx, "replace", p[1])) {
        return value_none();
    }
    return text_replace(ctx, s, p[0], p[1], int_or(ctx, p[2], -1));
}

static struct value splitlines(struct jinja_ctx *ctx, struct value s, const struct call *call)
{
    struct value p[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "splitlines", call, "keepends", 0, p)) { return value_none(); }
    return value_list(text_splitlines(ctx, s, value_truth(ctx, p[0])), V_LIST);
}

static struct value call_str(struct jinja_ctx *ctx, struct value s, struct value name, const struct call *call)
{
    if (value_is_str(name, "strip")) { return strip(ctx, s, call, true, true); }
    if (value_is_str(name, "lstrip")) { return strip(ctx, s, call, true, false); }
    if (value_is_str(name, "rstrip")) { return strip(ctx, s, call, false, true); }
    if (value_is_str(name, "split")) { return split(ctx, s, call, false); }
    if (value_is_str(name, "rsplit")) { return split(ctx, s, call, true); }
    if (value_is_str(name, "splitlines")) { return splitlines(ctx, s, call); }
    if (value_is_str(name, "startswith")) { return has_end(ctx, s, call, true); }
    if (value_is_str(name, "endswith")) { return has_end(ctx, s, call, false); }
    if (value_is_str(name, "replace")) { return replace(ctx, s, call); }
    if (value_is_str(name, "join")) { return join(ctx, s, call); }
    if (value_is_str(name, "find")) { return find(ctx, s, call, false, false); }
    if (value_is_str(name, "rfind")) { return find(ctx, s, call, true, false); }
    if (value_is_str(name, "index")) { return find(ctx, s, call, false, true); }
    if (value_is_str(name, "rindex")) { return find(ctx, s, call, true, true); }
    if (value_is_str(name, "count")) { return count_str(ctx, s, call); }
    if (value_is_str(name, "removeprefix")) { return remove_end(ctx, s, call, true); }
    if (value_is_str(name, "removesuffix")) { return remove_end(ctx, s, call, false); }
    if (value_is_str(name, "partition")) { return partition(ctx, s, call, false); }
    if (value_is_str(name, "rpartition")) { return partition(ctx, s, call, true); }
    if (value_is_str(name, "zfill")) { return pad(ctx, s, call, 'z'); }
    if (value_is_str(name, "ljust")) { return pad(ctx, s, call, 'l'); }
    if (value_is_str(name, "rjust")) { return pad(ctx, s, call, 'r'); }
    if (value_is_str(name, "center")) { return pad(ctx, s, call, 'c'); }
    struct value none[CALL_PARAMS_MAX];
    if (!call_bind(ctx, "this method", call, "", 0, none) || !jinja_charge(ctx, 1 + s.len / 64)) { return value_none(); }
    if (value_is_str(name, "upper")) { return text_upper(ctx, s); }
    if (value_is_str(name, "lower")) { return text_lower(ctx, s); }
    if (value_is_str(name, "title")) { return text_title(ctx, s); }
    if (value_is_str(name, "capitalize")) { return text_capitalize(ctx, s); }
    if (value_is_str(name, "isupper")) { return value_bool(text_is_upper(s)); }
    if (value_is_str(name, "islower")) { return value_bool(text_is_lower(s)); }
    /* isdigit, isalpha, isalnum, isspace */
    char which = value_is_str(name, "isdigit") ? 'd' : value_is_str(name, "isalpha") ? 'a' : value_is_str(name, "isalnum") ? 'n' : 's';
    return value_bool(text_is_all(s, which));
}

/* ---- list, dict, loop ---- */

static struct value call_list(struct jinja_ctx *ctx, struct value self, struct value name, const struct call *call)
{
    struct value p[CALL_PARAMS_MAX];
    if (value_is_str(name, "copy")) { return self; } /* nothing can change a list, so one is as good as two */
    if (!call_bind(ctx, "index", call, "value", 1, p)) { return value_none(); }
    const struct list *list = value_items(ctx, self);
    int64_t count = 0;
    bool wants_index = value_is_str(name, "index");
    for (uint32_t i = 0; list && i < list->count && !jinja_failed(ctx); i++) {
        if (!value_equal(ctx, list->items[i], p[0])) { continue; }
        if (wants_index) { return value_int(i); }
        count++;
    }
    if (wants_index) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "the value is not in list"); }
    return value_int(count);
}

static struct value dict_view(struct jinja_ctx *ctx, const struct dict *dict, enum view_kind kind)
{
    struct view *view = jinja_alloc(ctx, sizeof *view);
    struct list *list = list_new(ctx, dict->count);
    for (uint32_t i = 0; i < dict->count && jinja_charge(ctx, 1); i++) {
        struct value item = kind == VIEW_KEYS ? dict->pairs[i].key : dict->pairs[i].value;
        if (kind == VIEW_ITEMS) {
            struct list *two = list_new(ctx, 2);
            list_push(ctx, two, dict->pairs[i].key);
            list_push(ctx, two, dict->pairs[i].value);
            item = value_list(two, V_TUPLE);
        }
        list_push(ctx, list, item);
    }
    if (!view || jinja_failed(ctx)) { return value_none(); }
    *view = (struct view){list, kind};
    return (struct value){.kind = V_VIEW, .u.view = view};
}

static struct value call_dict(struct jinja_ctx *ctx, struct value self, struct value name, const struct call *call)
{
    struct value p[CALL_PARAMS_MAX];
    if (value_is_str(name, "get")) {
        if (!call_bind(ctx, "get", call, "key default", 1, p)) { return value_none(); }
        if (p[0].kind == V_LIST || p[0].kind == V_DICT) { jinja_fail(ctx, ST_INVALID_ARGUMENT, "unhashable type: '%s'", value_type_name(p[0])); }
        const struct value *have = p[0].kind == V_UNDEFINED ? NULL : dict_get(ctx, self.u.dict, p[0]);
        return have ? *have : param_given(p[1]) ? p[1] : value_none();
    }
    if (!call_bind(ctx, "items", call, "", 0, p)) { return value_none(); }
    if (value_is_str(name, "copy")) { return self; }
    return dict_view(ctx, self.u.dict, value_is_str(name, "keys") ? VIEW_KEYS : value_is_str(name, "values") ? VIEW_VALUES : VIEW_ITEMS);
}

static struct value call_loop(struct jinja_ctx *ctx, struct loop *loop, struct value name, const struct call *call)
{
    if (value_is_str(name, "cycle")) {
        if (call->positional == 0) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "no items for cycling given");
            return value_none();
        }
        return call->values[loop->index % call->positional];
    }
    struct list *now = list_new(ctx, call->positional);
    for (uint32_t i = 0; i < call->positional; i++) { list_push(ctx, now, call->values[i]); }
    bool same = loop->changed && now && loop->changed->count == now->count;
    for (uint32_t i = 0; same && i < now->count; i++) { same = value_equal(ctx, loop->changed->items[i], now->items[i]); }
    loop->changed = now;
    return value_bool(!same);
}

struct value jinja_method_call(struct jinja_ctx *ctx, const struct method *method, const struct call *call)
{
    struct value name = value_str(method->name, method->name_len), self = method->self;
    if (!jinja_charge(ctx, 1)) { return value_none(); }
    switch (self.kind) {
    case V_STR: return call_str(ctx, self, name, call);
    case V_LIST:
    case V_TUPLE:
    case V_RANGE: return call_list(ctx, self, name, call);
    case V_DICT: return call_dict(ctx, self, name, call);
    default: return call_loop(ctx, self.u.loop, name, call);
    }
}
