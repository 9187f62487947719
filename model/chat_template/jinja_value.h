/* jinja_value: the values of a chat template, with Python's meaning of them, and the memory
 *           and the limits of one compile or one render.
 * Flow:    JSON messages -> [jinja_value] <- evaluator, filters, methods -> text
 * Thread:  one context belongs to one thread.
 * Memory:  everything lies in the context's arena and goes with it; nothing is freed alone.
 *
 * Errors are sticky: the first jinja_fail() wins, every later step sees ctx->status and does
 * nothing, and results after that are Undefined. So expressions read like expressions.
 * Source:  the Python language reference 3.11 and Jinja 3.1's runtime semantics. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_VALUE_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/diag.h"
#include "base/status.h"

struct jinja_chunk;

struct jinja_ctx {
    struct jinja_chunk *chunks;
    size_t bytes_used, bytes_max; /* of the arena */
    uint64_t steps_left;          /* work units; a hostile template runs out of them */
    uint32_t depth;               /* of nested C calls that follow the template's own nesting */
    uint32_t line;                /* of the template, for error texts */
    status_t status;
    struct diag *diag; /* may be NULL */
};

/* Nesting of expressions, blocks, macro calls and data; far above any real template and far
 * below what an 8 MB stack holds, sanitizers included. */
#define JINJA_DEPTH_MAX 200u

void jinja_ctx_init(struct jinja_ctx *ctx, size_t bytes_max, uint64_t steps_max, struct diag *diag);
void jinja_ctx_fini(struct jinja_ctx *ctx);

static inline bool jinja_failed(const struct jinja_ctx *ctx) { return ctx->status.code != ST_OK; }

/* Records the first error with "line N: " before the text; later ones are dropped. */
__attribute__((format(printf, 3, 4))) void jinja_fail(struct jinja_ctx *ctx, int code, const char *format, ...);

/* Zeroed, 16-byte aligned; on exhaustion fails the context and returns NULL. */
void *jinja_alloc(struct jinja_ctx *ctx, size_t bytes);

/* Takes `units` of work; false, with the error recorded, when none are left or something
 * failed before. */
bool jinja_charge(struct jinja_ctx *ctx, uint64_t units);

/* Around every recursion that the template or its data can drive. */
bool jinja_enter(struct jinja_ctx *ctx);
static inline void jinja_leave(struct jinja_ctx *ctx) { ctx->depth--; }

enum value_kind {
    V_UNDEFINED, /* u.text: why, as Jinja words it */
    V_NONE,
    V_BOOL,
    V_INT,
    V_FLOAT,
    V_STR,
    V_LIST,
    V_TUPLE,
    V_RANGE,
    V_DICT,
    V_ITER,  /* a generator: can be walked once, has no length, is always true */
    V_VIEW,  /* dict.keys(), values(), items() */
    V_NAMESPACE,
    V_MACRO,
    V_FUNCTION, /* a global of the environment */
    V_METHOD,
    V_LOOP,
};

struct text_tip;

struct value {
    uint8_t kind;
    bool safe;      /* a str that went through `safe` or `escape`: Python's Markup */
    uint32_t len;   /* bytes of a str */
    union {
        bool boolean;
        int64_t integer;
        double real;
        const char *text; /* a str: UTF-8, valid, not terminated */
        struct list *list;
        struct dict *dict;
        struct range *range;
        struct iter *iter;
        struct view *view;
        struct macro *macro;
        struct method *method;
        struct loop *loop;
        uint32_t function;
    } u;
    struct text_tip *tip; /* lets s = s + t grow in place; see text_append() */
};

struct list {
    struct value *items;
    uint32_t count, capacity;
};

struct pair {
    struct value key, value;
};

struct dict { /* keeps insertion order; also the attributes of a namespace */
    struct pair *pairs;
    uint32_t count, capacity;
};

struct range {
    struct list list;
    int64_t start, stop, step;
};

struct iter {
    struct list *list;
    bool done;
};

enum view_kind { VIEW_KEYS, VIEW_VALUES, VIEW_ITEMS };

struct view {
    struct list *list;
    enum view_kind kind;
};

struct method {
    struct value self;
    const char *name;
    uint32_t name_len;
};

/* ---- making values ---- */

static inline struct value value_none(void) { return (struct value){.kind = V_NONE}; }
static inline struct value value_bool(bool b) { return (struct value){.kind = V_BOOL, .u.boolean = b}; }
static inline struct value value_int(int64_t i) { return (struct value){.kind = V_INT, .u.integer = i}; }
static inline struct value value_float(double f) { return (struct value){.kind = V_FLOAT, .u.real = f}; }

/* Borrows `text` until the context goes. */
static inline struct value value_str(const char *text, size_t len)
{
    return (struct value){.kind = V_STR, .len = (uint32_t)len, .u.text = text};
}
static inline struct value value_cstr(const char *text) { return value_str(text, strlen(text)); }

/* A copy in the arena; fails the context at 4 GiB. */
struct value value_str_copy(struct jinja_ctx *ctx, const char *text, size_t len);

static inline bool value_is_str(struct value v, const char *text)
{
    return v.kind == V_STR && v.len == strlen(text) && memcmp(v.u.text, text, v.len) == 0;
}

__attribute__((format(printf, 2, 3))) struct value value_undefined(struct jinja_ctx *ctx, const char *format, ...);

struct list *list_new(struct jinja_ctx *ctx, uint32_t capacity);
void list_push(struct jinja_ctx *ctx, struct list *list, struct value item);
struct value value_list(struct list *list, enum value_kind kind);
struct value value_iter(struct jinja_ctx *ctx, struct list *list);

struct dict *dict_new(struct jinja_ctx *ctx);
/* Fails on a key that Python cannot hash. */
void dict_set(struct jinja_ctx *ctx, struct dict *dict, struct value key, struct value value);
struct value *dict_get(struct jinja_ctx *ctx, const struct dict *dict, struct value key);
static inline struct value value_dict(struct dict *dict) { return (struct value){.kind = V_DICT, .u.dict = dict}; }

/* ---- text that grows ---- */

struct text {
    char *data;
    size_t len, capacity;
};
void text_put(struct jinja_ctx *ctx, struct text *text, const char *data, size_t len);
void text_puts(struct jinja_ctx *ctx, struct text *text, const char *data);
static inline void text_putc(struct jinja_ctx *ctx, struct text *text, char c) { text_put(ctx, text, &c, 1); }
struct value text_value(struct jinja_ctx *ctx, struct text *text);

/* a + b for two str. A template that builds its output by s = s + t in a loop costs time and
 * memory linear in the result, because the longer string keeps room behind it. */
struct value text_append(struct jinja_ctx *ctx, struct value a, struct value b);

/* ---- Python's view of values ---- */

const char *value_type_name(struct value v); /* "str", "NoneType", "list" */
bool value_truth(struct jinja_ctx *ctx, struct value v);
bool value_equal(struct jinja_ctx *ctx, struct value a, struct value b);
/* a < b; fails with a TypeError's text for what Python cannot order. `op` is for that text. */
bool value_less(struct jinja_ctx *ctx, struct value a, struct value b, const char *op);
struct value value_to_str(struct jinja_ctx *ctx, struct value v);
void value_put_repr(struct jinja_ctx *ctx, struct text *text, struct value v);
void float_repr(double value, char ret_text[40]);

/* What iter(v) would give, all of it; consumes a V_ITER. Fails for what cannot be walked. */
struct list *value_items(struct jinja_ctx *ctx, struct value v);
bool value_is_iterable(struct value v);
/* len(v), or -1 for what has none. */
int64_t value_length(struct jinja_ctx *ctx, struct value v);
bool value_contains(struct jinja_ctx *ctx, struct value item, struct value container);

/* Fails when v is Undefined, with its reason. */
bool value_require(struct jinja_ctx *ctx, struct value v);

static inline bool value_is_number(struct value v) { return v.kind == V_BOOL || v.kind == V_INT || v.kind == V_FLOAT; }
static inline bool value_is_integral(struct value v) { return v.kind == V_BOOL || v.kind == V_INT; }
static inline int64_t value_integer(struct value v) { return v.kind == V_BOOL ? v.u.boolean : v.u.integer; }
static inline double value_real(struct value v) { return v.kind == V_FLOAT ? v.u.real : (double)value_integer(v); }

#endif
