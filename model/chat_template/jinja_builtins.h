/* jinja_builtins: the filters, tests, methods and global functions of the environment.
 * Flow:    jinja_parse asks whether a name is known; jinja_eval calls it -> [jinja_builtins]
 * Thread:  any; tables are constant.
 * Memory:  the context's arena.
 * Source:  Jinja 3.1 (filters.py, tests.py, defaults.py) and Python 3.11's str, list, dict;
 *          `tojson`, raise_exception and strftime_now as transformers defines them. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_BUILTINS_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_BUILTINS_H

#include "model/chat_template/jinja_value.h"

/* The arguments of one call, evaluated. */
struct call {
    struct value *values; /* [count]; positional first */
    struct value *names;  /* [count]; V_NONE for positional */
    uint32_t count;
    uint32_t positional;
};

#define CALL_PARAMS_MAX 6u

/* Puts a call's arguments into the places of a signature, "width first blank": later ones may
 * be given by name. Places not given stay V_UNDEFINED with u.text NULL; see param_given().
 * required  how many of the first must be given
 * False, with the error recorded, when the call does not fit. */
bool call_bind(struct jinja_ctx *ctx, const char *function, const struct call *call, const char *signature, uint32_t required,
               struct value ret_params[CALL_PARAMS_MAX]);
static inline bool param_given(struct value v) { return v.kind != V_UNDEFINED || v.u.text != NULL; }

/* ---- filters and tests ---- */

#define BUILTIN_NONE UINT32_MAX

uint32_t jinja_filter_find(struct value name);
uint32_t jinja_test_find(struct value name);
struct value jinja_filter_apply(struct jinja_ctx *ctx, uint32_t filter, struct value input, const struct call *call);
bool jinja_test_apply(struct jinja_ctx *ctx, uint32_t test, struct value input, const struct call *call);

/* ---- attributes, items, methods ---- */

struct node;
struct scope;

struct loop { /* the `loop` of a for */
    const struct list *items;
    uint32_t index;            /* of the round, from 0 */
    uint32_t depth;            /* of recursion, from 0 */
    const struct list *changed; /* what loop.changed() saw last, or NULL */
    const struct node *node;   /* the loop when it is recursive, else NULL */
    struct scope *scope;       /* around it */
};


/* obj.name and obj[key] as the sandboxed environment resolves them; Undefined where there is
 * nothing. */
struct value jinja_getattr(struct jinja_ctx *ctx, struct value object, struct value name);
struct value jinja_getitem(struct jinja_ctx *ctx, struct value object, struct value key);
/* object[start:stop:step]; each bound V_NONE when left out. */
struct value jinja_slice(struct jinja_ctx *ctx, struct value object, struct value start, struct value stop, struct value step);
struct value jinja_method_call(struct jinja_ctx *ctx, const struct method *method, const struct call *call);

/* ---- operators ---- */

struct value jinja_add(struct jinja_ctx *ctx, struct value a, struct value b);
struct value jinja_arithmetic(struct jinja_ctx *ctx, int op, struct value a, struct value b); /* enum node_op */
struct value jinja_negate(struct jinja_ctx *ctx, struct value a, bool minus);
struct value jinja_concat(struct jinja_ctx *ctx, const struct value *parts, uint32_t count); /* a ~ b ~ c */

/* ---- JSON ---- */

/* Python's json.dumps. */
struct value jinja_tojson(struct jinja_ctx *ctx, struct value v, const struct call *call);

#endif
