#include "model/chat_template/jinja_value.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/chat_template/jinja_utf8.h"

/* ---- context ---- */

struct jinja_chunk {
    struct jinja_chunk *next;
    size_t used, size;
    _Alignas(16) char data[];
};

#define CHUNK_BYTES ((size_t)32 * 1024)

struct text_tip {
    size_t used, capacity; /* of the buffer that the string's text points into */
};

void jinja_ctx_init(struct jinja_ctx *ctx, size_t bytes_max, uint64_t steps_max, struct diag *diag)
{
    *ctx = (struct jinja_ctx){.bytes_max = bytes_max, .steps_left = steps_max, .line = 1, .diag = diag};
}

void jinja_ctx_fini(struct jinja_ctx *ctx)
{
    for (struct jinja_chunk *chunk = ctx->chunks; chunk;) {
        struct jinja_chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
    ctx->chunks = NULL;
}

void jinja_fail(struct jinja_ctx *ctx, int code, const char *format, ...)
{
    if (jinja_failed(ctx)) { return; }
    ctx->status = STATUS(code, SCOPE_REQUEST);
    char text[800];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    diag_set(ctx->diag, "line %u: %s", ctx->line, text);
}

void *jinja_alloc(struct jinja_ctx *ctx, size_t bytes)
{
    if (jinja_failed(ctx)) { return NULL; }
    bytes = (bytes + 15) & ~(size_t)15;
    struct jinja_chunk *chunk = ctx->chunks;
    if (!chunk || chunk->size - chunk->used < bytes) {
        size_t size = bytes > CHUNK_BYTES / 4 ? bytes : CHUNK_BYTES;
        if (size > ctx->bytes_max - ctx->bytes_used) {
            jinja_fail(ctx, ST_RESOURCE_EXHAUSTED, "the chat template needs more than %zu bytes of memory", ctx->bytes_max);
            return NULL;
        }
        struct jinja_chunk *fresh = malloc(sizeof *fresh + size);
        if (!fresh) {
            jinja_fail(ctx, ST_RESOURCE_EXHAUSTED, "out of memory for the chat template");
            return NULL;
        }
        ctx->bytes_used += size;
        fresh->used = 0;
        fresh->size = size;
        if (chunk && size != CHUNK_BYTES) {
            /* A chunk for one large object goes behind the open one, which stays in use. */
            fresh->next = chunk->next;
            chunk->next = fresh;
        } else {
            fresh->next = chunk;
            ctx->chunks = fresh;
        }
        chunk = fresh;
    }
    void *memory = chunk->data + chunk->used;
    chunk->used += bytes;
    memset(memory, 0, bytes);
    return memory;
}

bool jinja_charge(struct jinja_ctx *ctx, uint64_t units)
{
    if (jinja_failed(ctx)) { return false; }
    if (ctx->steps_left < units) {
        jinja_fail(ctx, ST_RESOURCE_EXHAUSTED, "the chat template does too much work for these messages");
        return false;
    }
    ctx->steps_left -= units;
    return true;
}

bool jinja_enter(struct jinja_ctx *ctx)
{
    if (jinja_failed(ctx)) { return false; }
    if (ctx->depth >= JINJA_DEPTH_MAX) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "the chat template or its data are nested deeper than %u", JINJA_DEPTH_MAX);
        return false;
    }
    ctx->depth++;
    return true;
}

/* ---- making values ---- */

struct value value_str_copy(struct jinja_ctx *ctx, const char *text, size_t len)
{
    if (len >= UINT32_MAX) {
        jinja_fail(ctx, ST_RESOURCE_EXHAUSTED, "a string of %zu bytes is too long for a chat template", len);
        return value_str("", 0);
    }
    char *copy = jinja_alloc(ctx, len);
    if (!copy) { return value_str("", 0); }
    if (len) { memcpy(copy, text, len); }
    return value_str(copy, len);
}

struct value value_undefined(struct jinja_ctx *ctx, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t len = strlen(text);
    char *copy = jinja_alloc(ctx, len + 1);
    if (copy) { memcpy(copy, text, len + 1); }
    return (struct value){.kind = V_UNDEFINED, .u.text = copy ? copy : "undefined"};
}

struct list *list_new(struct jinja_ctx *ctx, uint32_t capacity)
{
    struct list *list = jinja_alloc(ctx, sizeof *list);
    if (!list || !capacity) { return list; }
    list->items = jinja_alloc(ctx, (size_t)capacity * sizeof *list->items);
    if (list->items) { list->capacity = capacity; }
    return list;
}

void list_push(struct jinja_ctx *ctx, struct list *list, struct value item)
{
    if (!list || jinja_failed(ctx)) { return; }
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity ? list->capacity * 2 : 8;
        struct value *items = jinja_alloc(ctx, (size_t)capacity * sizeof *items);
        if (!items) { return; }
        if (list->count) { memcpy(items, list->items, list->count * sizeof *items); }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = item;
}

struct value value_list(struct list *list, enum value_kind kind)
{
    if (!list) { return value_none(); }
    return (struct value){.kind = (uint8_t)kind, .u.list = list};
}

struct value value_iter(struct jinja_ctx *ctx, struct list *list)
{
    struct iter *iter = jinja_alloc(ctx, sizeof *iter);
    if (!iter || !list) { return value_none(); }
    iter->list = list;
    return (struct value){.kind = V_ITER, .u.iter = iter};
}

struct dict *dict_new(struct jinja_ctx *ctx) { return jinja_alloc(ctx, sizeof(struct dict)); }

static bool is_hashable(struct value v)
{
    if (v.kind == V_LIST || v.kind == V_DICT || v.kind == V_VIEW || v.kind == V_UNDEFINED) { return false; }
    if (v.kind == V_TUPLE) {
        for (uint32_t i = 0; i < v.u.list->count; i++) {
            /* Tuples in tuples as keys do not occur; refusing them keeps this flat. */
            if (v.u.list->items[i].kind == V_TUPLE || !is_hashable(v.u.list->items[i])) { return false; }
        }
    }
    return true;
}

struct value *dict_get(struct jinja_ctx *ctx, const struct dict *dict, struct value key)
{
    if (!dict) { return NULL; }
    for (uint32_t i = 0; i < dict->count; i++) {
        const struct value *have = &dict->pairs[i].key;
        if (have->kind == V_STR && key.kind == V_STR) {
            if (have->len == key.len && memcmp(have->u.text, key.u.text, key.len) == 0) { return &dict->pairs[i].value; }
            continue;
        }
        if (value_equal(ctx, *have, key)) { return &dict->pairs[i].value; }
    }
    jinja_charge(ctx, 1 + dict->count / 8);
    return NULL;
}

void dict_set(struct jinja_ctx *ctx, struct dict *dict, struct value key, struct value value)
{
    if (!dict || jinja_failed(ctx)) { return; }
    if (!is_hashable(key)) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "unhashable type: '%s'", value_type_name(key));
        return;
    }
    struct value *have = dict_get(ctx, dict, key);
    if (have) {
        *have = value;
        return;
    }
    if (dict->count == dict->capacity) {
        uint32_t capacity = dict->capacity ? dict->capacity * 2 : 4;
        struct pair *pairs = jinja_alloc(ctx, (size_t)capacity * sizeof *pairs);
        if (!pairs) { return; }
        if (dict->count) { memcpy(pairs, dict->pairs, dict->count * sizeof *pairs); }
        dict->pairs = pairs;
        dict->capacity = capacity;
    }
    dict->pairs[dict->count++] = (struct pair){key, value};
}

/* ---- text that grows ---- */

void text_put(struct jinja_ctx *ctx, struct text *text, const char *data, size_t len)
{
    if (len == 0 || !jinja_charge(ctx, 1 + len / 64)) { return; }
    if (text->capacity - text->len < len) {
        size_t capacity = text->capacity * 2 > text->len + len ? text->capacity * 2 : text->len + len + 64;
        char *grown = jinja_alloc(ctx, capacity);
        if (!grown) { return; }
        if (text->len) { memcpy(grown, text->data, text->len); }
        text->data = grown;
        text->capacity = capacity;
    }
    memcpy(text->data + text->len, data, len);
    text->len += len;
}

void text_puts(struct jinja_ctx *ctx, struct text *text, const char *data) { text_put(ctx, text, data, strlen(data)); }

struct value text_value(struct jinja_ctx *ctx, struct text *text)
{
    if (text->len >= UINT32_MAX) { jinja_fail(ctx, ST_RESOURCE_EXHAUSTED, "a string of %zu bytes is too long", text->len); }
    /* A str even after an error, so that callers need not look before they use it as one. */
    if (jinja_failed(ctx)) { return value_str("", 0); }
    return value_str(text->data ? text->data : "", text->len);
}

struct value text_append(struct jinja_ctx *ctx, struct value a, struct value b)
{
    size_t len = (size_t)a.len + b.len;
    if (len >= UINT32_MAX) {
        jinja_fail(ctx, ST_RESOURCE_EXHAUSTED, "a string of %zu bytes is too long for a chat template", len);
        return value_str("", 0);
    }
    if (b.len == 0) { return a; }
    if (!jinja_charge(ctx, 1 + b.len / 64)) { return value_str("", 0); }
    /* In place only if nobody has written behind `a` yet: then the bytes after it are ours,
     * and every shorter string over the same buffer still reads what it read before. */
    if (a.tip && a.tip->used == a.len && a.tip->capacity - a.len >= b.len) {
        memcpy((char *)(uintptr_t)a.u.text + a.len, b.u.text, b.len);
        a.tip->used = len;
        a.len = (uint32_t)len;
        return a;
    }
    if (!jinja_charge(ctx, 1 + a.len / 64)) { return value_str("", 0); }
    struct value result = value_str("", 0);
    size_t capacity = len < 128 ? len : 2 * len;
    char *data = jinja_alloc(ctx, capacity);
    if (!data) { return result; }
    if (a.len) { memcpy(data, a.u.text, a.len); }
    memcpy(data + a.len, b.u.text, b.len);
    result = value_str(data, len);
    if (capacity > len) {
        struct text_tip *tip = jinja_alloc(ctx, sizeof *tip);
        if (tip) {
            tip->used = len;
            tip->capacity = capacity;
            result.tip = tip;
        }
    }
    return result;
}

/* ---- Python's view of values ---- */

const char *value_type_name(struct value v)
{
    switch (v.kind) {
    case V_UNDEFINED: return "Undefined";
    case V_NONE: return "NoneType";
    case V_BOOL: return "bool";
    case V_INT: return "int";
    case V_FLOAT: return "float";
    case V_STR: return v.safe ? "Markup" : "str";
    case V_LIST: return "list";
    case V_TUPLE: return "tuple";
    case V_RANGE: return "range";
    case V_DICT: return "dict";
    case V_ITER: return "generator";
    case V_VIEW:
        return v.u.view->kind == VIEW_KEYS ? "dict_keys" : v.u.view->kind == VIEW_VALUES ? "dict_values" : "dict_items";
    case V_NAMESPACE: return "Namespace";
    case V_MACRO: return "Macro";
    case V_FUNCTION: return "function";
    case V_METHOD: return "builtin_function_or_method";
    case V_LOOP: return "LoopContext";
    default: return "object";
    }
}

bool value_require(struct jinja_ctx *ctx, struct value v)
{
    if (v.kind != V_UNDEFINED) { return !jinja_failed(ctx); }
    jinja_fail(ctx, ST_INVALID_ARGUMENT, "%s", v.u.text ? v.u.text : "undefined");
    return false;
}

bool value_truth(struct jinja_ctx *ctx, struct value v)
{
    (void)ctx;
    switch (v.kind) {
    case V_UNDEFINED:
    case V_NONE: return false;
    case V_BOOL: return v.u.boolean;
    case V_INT: return v.u.integer != 0;
    case V_FLOAT: return v.u.real != 0.0;
    case V_STR: return v.len != 0;
    case V_LIST:
    case V_TUPLE: return v.u.list->count != 0;
    case V_RANGE: return v.u.range->list.count != 0;
    case V_DICT: return v.u.dict->count != 0;
    case V_VIEW: return v.u.view->list->count != 0;
    default: return true;
    }
}

static bool lists_equal(struct jinja_ctx *ctx, const struct list *a, const struct list *b)
{
    if (a->count != b->count) { return false; }
    for (uint32_t i = 0; i < a->count; i++) {
        if (!value_equal(ctx, a->items[i], b->items[i])) { return false; }
    }
    return true;
}

static bool dicts_equal(struct jinja_ctx *ctx, const struct dict *a, const struct dict *b)
{
    if (a->count != b->count) { return false; }
    for (uint32_t i = 0; i < a->count; i++) {
        const struct value *other = dict_get(ctx, b, a->pairs[i].key);
        if (!other || !value_equal(ctx, a->pairs[i].value, *other)) { return false; }
    }
    return true;
}

bool value_equal(struct jinja_ctx *ctx, struct value a, struct value b)
{
    if (!jinja_charge(ctx, 1)) { return false; }
    if (value_is_number(a) && value_is_number(b)) {
        if (a.kind == V_FLOAT || b.kind == V_FLOAT) { return value_real(a) == value_real(b); }
        return value_integer(a) == value_integer(b);
    }
    if (a.kind != b.kind) { return false; }
    switch (a.kind) {
    case V_UNDEFINED:
    case V_NONE: return true;
    case V_STR: return a.len == b.len && jinja_charge(ctx, a.len / 256) && memcmp(a.u.text, b.u.text, a.len) == 0;
    case V_LIST:
    case V_TUPLE:
    case V_RANGE:
    case V_DICT: {
        if (!jinja_enter(ctx)) { return false; }
        bool equal = a.kind == V_DICT    ? dicts_equal(ctx, a.u.dict, b.u.dict)
                     : a.kind == V_RANGE ? lists_equal(ctx, &a.u.range->list, &b.u.range->list)
                                         : lists_equal(ctx, a.u.list, b.u.list);
        jinja_leave(ctx);
        return equal;
    }
    case V_FUNCTION: return a.u.function == b.u.function;
    default: return a.u.list == b.u.list; /* the same object */
    }
}

bool value_less(struct jinja_ctx *ctx, struct value a, struct value b, const char *op)
{
    if (!jinja_charge(ctx, 1) || !value_require(ctx, a) || !value_require(ctx, b)) { return false; }
    if (value_is_number(a) && value_is_number(b)) {
        if (a.kind == V_FLOAT || b.kind == V_FLOAT) { return value_real(a) < value_real(b); }
        return value_integer(a) < value_integer(b);
    }
    if (a.kind == V_STR && b.kind == V_STR) {
        /* Byte order of UTF-8 is code point order, which is Python's. */
        uint32_t len = a.len < b.len ? a.len : b.len;
        jinja_charge(ctx, len / 256);
        int order = memcmp(a.u.text, b.u.text, len);
        return order != 0 ? order < 0 : a.len < b.len;
    }
    if (a.kind == b.kind && (a.kind == V_LIST || a.kind == V_TUPLE)) {
        if (!jinja_enter(ctx)) { return false; }
        const struct list *x = a.u.list, *y = b.u.list;
        uint32_t i = 0;
        while (i < x->count && i < y->count && value_equal(ctx, x->items[i], y->items[i])) { i++; }
        bool less = i < x->count && i < y->count ? value_less(ctx, x->items[i], y->items[i], op) : x->count < y->count;
        jinja_leave(ctx);
        return less;
    }
    bool turned = op[0] == '>'; /* a > b is asked as b < a, and worded as it was written */
    jinja_fail(ctx, ST_INVALID_ARGUMENT, "'%s' not supported between instances of '%s' and '%s'", op, value_type_name(turned ? b : a),
               value_type_name(turned ? a : b));
    return false;
}

/* Python's repr(float): the shortest digits that read back to the same number, written
 * without an exponent between 1e-4 and 1e16. */
void float_repr(double value, char ret_text[40])
{
    if (isnan(value) || isinf(value)) {
        strcpy(ret_text, isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
        return;
    }
    char digits[40];
    int precision = 1;
    do {
        snprintf(digits, sizeof digits, "%.*e", precision - 1, value);
    } while (strtod(digits, NULL) != value && ++precision <= 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        snprintf(ret_text, 40, "%.*e", precision - 1, value); /* C writes two exponent digits, as Python does */
        return;
    }
    int decimals = precision - 1 - exponent;
    snprintf(ret_text, 40, "%.*f", decimals > 0 ? decimals : 1, value);
}

static void put_str_repr(struct jinja_ctx *ctx, struct text *text, struct value v)
{
    bool single = memchr(v.u.text, '\'', v.len) != NULL;
    bool use_double = single && memchr(v.u.text, '"', v.len) == NULL;
    char quote = use_double ? '"' : '\'';
    text_putc(ctx, text, quote);
    for (uint32_t at = 0; at < v.len && !jinja_failed(ctx);) {
        uint32_t code;
        uint32_t len = utf8_next(v.u.text + at, v.len - at, &code);
        char escape[16];
        if (code == (unsigned char)quote || code == '\\') {
            snprintf(escape, sizeof escape, "\\%c", (char)code);
        } else if (code == '\n' || code == '\r' || code == '\t') {
            snprintf(escape, sizeof escape, "\\%c", code == '\n' ? 'n' : code == '\r' ? 'r' : 't');
        } else if (text_is_printable(code)) {
            text_put(ctx, text, v.u.text + at, len);
            at += len;
            continue;
        } else {
            snprintf(escape, sizeof escape, code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x", code);
        }
        text_puts(ctx, text, escape);
        at += len;
    }
    text_putc(ctx, text, quote);
}

static void put_list_repr(struct jinja_ctx *ctx, struct text *text, const struct list *list, const char *open, const char *close)
{
    text_puts(ctx, text, open);
    for (uint32_t i = 0; i < list->count && !jinja_failed(ctx); i++) {
        if (i) { text_puts(ctx, text, ", "); }
        value_put_repr(ctx, text, list->items[i]);
    }
    text_puts(ctx, text, close);
}

static void put_dict_repr(struct jinja_ctx *ctx, struct text *text, const struct dict *dict)
{
    text_putc(ctx, text, '{');
    for (uint32_t i = 0; i < dict->count && !jinja_failed(ctx); i++) {
        if (i) { text_puts(ctx, text, ", "); }
        value_put_repr(ctx, text, dict->pairs[i].key);
        text_puts(ctx, text, ": ");
        value_put_repr(ctx, text, dict->pairs[i].value);
    }
    text_putc(ctx, text, '}');
}

void value_put_repr(struct jinja_ctx *ctx, struct text *text, struct value v)
{
    if (!jinja_enter(ctx)) { return; }
    char number[64];
    switch (v.kind) {
    case V_UNDEFINED: text_puts(ctx, text, "Undefined"); break;
    case V_NONE: text_puts(ctx, text, "None"); break;
    case V_BOOL: text_puts(ctx, text, v.u.boolean ? "True" : "False"); break;
    case V_INT:
        snprintf(number, sizeof number, "%lld", (long long)v.u.integer);
        text_puts(ctx, text, number);
        break;
    case V_FLOAT:
        float_repr(v.u.real, number);
        text_puts(ctx, text, number);
        break;
    case V_STR:
        if (v.safe) { text_puts(ctx, text, "Markup("); }
        put_str_repr(ctx, text, v);
        if (v.safe) { text_putc(ctx, text, ')'); }
        break;
    case V_LIST: put_list_repr(ctx, text, v.u.list, "[", "]"); break;
    case V_TUPLE: put_list_repr(ctx, text, v.u.list, "(", v.u.list->count == 1 ? ",)" : ")"); break;
    case V_RANGE:
        snprintf(number, sizeof number, v.u.range->step == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)",
                 (long long)v.u.range->start, (long long)v.u.range->stop, (long long)v.u.range->step);
        text_puts(ctx, text, number);
        break;
    case V_DICT: put_dict_repr(ctx, text, v.u.dict); break;
    case V_VIEW:
        text_puts(ctx, text, value_type_name(v));
        put_list_repr(ctx, text, v.u.view->list, "([", "])");
        break;
    case V_NAMESPACE:
        text_puts(ctx, text, "<Namespace ");
        put_dict_repr(ctx, text, v.u.dict);
        text_putc(ctx, text, '>');
        break;
    default:
        jinja_fail(ctx, ST_INVALID_ARGUMENT,
                   "the template turns a %s into text, which is an address in Python; add | list if it is a generator",
                   value_type_name(v));
    }
    jinja_leave(ctx);
}

struct value value_to_str(struct jinja_ctx *ctx, struct value v)
{
    if (v.kind == V_STR) { return v; }
    if (v.kind == V_UNDEFINED) { return value_str("", 0); }
    struct text text = {0};
    value_put_repr(ctx, &text, v);
    return text_value(ctx, &text);
}

bool value_is_iterable(struct value v)
{
    switch (v.kind) {
    case V_UNDEFINED:
    case V_STR:
    case V_LIST:
    case V_TUPLE:
    case V_RANGE:
    case V_DICT:
    case V_ITER:
    case V_VIEW:
    case V_LOOP: return true;
    default: return false;
    }
}

struct list *value_items(struct jinja_ctx *ctx, struct value v)
{
    struct list *list = NULL;
    switch (v.kind) {
    case V_UNDEFINED: return list_new(ctx, 0);
    case V_LIST:
    case V_TUPLE: return v.u.list;
    case V_RANGE: return &v.u.range->list;
    case V_VIEW: return v.u.view->list;
    case V_ITER:
        if (v.u.iter->done) { return list_new(ctx, 0); }
        v.u.iter->done = true;
        return v.u.iter->list;
    case V_DICT:
        list = list_new(ctx, v.u.dict->count);
        for (uint32_t i = 0; i < v.u.dict->count; i++) { list_push(ctx, list, v.u.dict->pairs[i].key); }
        return list;
    case V_STR:
        list = list_new(ctx, 0);
        for (uint32_t at = 0; at < v.len && jinja_charge(ctx, 1);) {
            uint32_t code;
            uint32_t len = utf8_next(v.u.text + at, v.len - at, &code);
            list_push(ctx, list, value_str(v.u.text + at, len));
            at += len;
        }
        return list;
    default:
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "'%s' object is not iterable", value_type_name(v));
        return NULL;
    }
}

int64_t value_length(struct jinja_ctx *ctx, struct value v)
{
    switch (v.kind) {
    case V_UNDEFINED: return 0;
    case V_STR: jinja_charge(ctx, v.len / 256); return utf8_count(v.u.text, v.len);
    case V_LIST:
    case V_TUPLE: return v.u.list->count;
    case V_RANGE: return v.u.range->list.count;
    case V_DICT: return v.u.dict->count;
    case V_VIEW: return v.u.view->list->count;
    default: return -1;
    }
}

bool value_contains(struct jinja_ctx *ctx, struct value item, struct value container)
{
    switch (container.kind) {
    case V_STR:
        if (item.kind != V_STR) {
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "'in <string>' requires string as left operand, not %s", value_type_name(item));
            return false;
        }
        if (!jinja_charge(ctx, container.len / 64)) { return false; }
        return item.len == 0 || (container.len && memmem(container.u.text, container.len, item.u.text, item.len) != NULL);
    case V_DICT:
        if (!is_hashable(item)) {
            if (item.kind == V_UNDEFINED) { return false; }
            jinja_fail(ctx, ST_INVALID_ARGUMENT, "unhashable type: '%s'", value_type_name(item));
            return false;
        }
        return dict_get(ctx, container.u.dict, item) != NULL;
    case V_UNDEFINED: return false;
    default: break;
    }
    if (!value_is_iterable(container) || container.kind == V_LOOP) {
        jinja_fail(ctx, ST_INVALID_ARGUMENT, "argument of type '%s' is not iterable", value_type_name(container));
        return false;
    }
    const struct list *list = value_items(ctx, container);
    for (uint32_t i = 0; list && i < list->count; i++) {
        if (value_equal(ctx, list->items[i], item)) { return true; }
    }
    return false;
}
