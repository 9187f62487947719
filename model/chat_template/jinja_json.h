/* jinja_json: JSON into values. The way back is the filter tojson, of jinja_builtins.
 * Flow:    messages and tools (jansson) -> [jinja_json] -> evaluator
 * Thread:  the context's. Memory: the context's arena; strings are copied out of jansson. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_JSON_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_JSON_H

#include <jansson.h>

#include "model/chat_template/jinja_value.h"

/* Borrows json. Fails the context on data nested deeper than JINJA_DEPTH_MAX. */
struct value jinja_from_json(struct jinja_ctx *ctx, const json_t *json);

#endif
