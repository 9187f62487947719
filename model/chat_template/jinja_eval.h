/* jinja_eval: runs a parsed template over its variables.
 * Flow:    tree, variables -> [jinja_eval] -> text
 * Thread:  the context's; the tree is only read.
 * Memory:  the context's arena.
 * Source:  scoping and loops as in Jinja 3.1's compiler: a for, a macro and a with have a scope
 *          of their own, an if has none. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_EVAL_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_EVAL_H

#include "model/chat_template/jinja_ast.h"

/* variables  names to values; the template cannot change it
 * now_s      seconds since 1970, what strftime_now() shows as local time
 * ret_raised set when the error is the text that the template gave to raise_exception()
 * The text, or an empty one with the error in ctx. */
struct value jinja_run(struct jinja_ctx *ctx, const struct node *root, const struct dict *variables, int64_t now_s, size_t output_max,
                       bool *ret_raised);

#endif
