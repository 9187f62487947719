/* jinja_filters_internal: what the files of filters share: the shape of a table, and helpers.
 * Flow:    jinja_filters_text, _number, _sequence -> tables -> jinja_filters
 * Thread:  the context's.
 * Memory:  the context's arena. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_FILTERS_INTERNAL_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_FILTERS_INTERNAL_H

#include "model/chat_template/jinja_builtins.h"

typedef struct value (*filter_fn)(struct jinja_ctx *ctx, struct value input, const struct value *p);
typedef struct value (*raw_filter_fn)(struct jinja_ctx *ctx, struct value input, const struct call *call);

struct filter_def {
    const char *name;
    filter_fn fn;
    const char *signature;
    uint32_t required;
    raw_filter_fn raw; /* instead of fn: takes the call as it is */
};

struct filter_table {
    const struct filter_def *filters;
    uint32_t count;
};

extern const struct filter_table jinja_text_filters;
extern const struct filter_table jinja_number_filters;
extern const struct filter_table jinja_sequence_filters;

/* Fails the context: that filter cannot take a value of this type. */
struct value jinja_filter_fail_type(struct jinja_ctx *ctx, const char *filter, struct value v);
/* A whole number given as a parameter, or `otherwise`. */
int64_t jinja_filter_int(struct jinja_ctx *ctx, struct value v, int64_t otherwise);
/* Walks "a.b.0", as in map(attribute='a.b'); Jinja looks each part up as an item first. */
struct value jinja_attribute_of(struct jinja_ctx *ctx, struct value item, struct value path, struct value otherwise);

#endif
