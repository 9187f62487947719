/* served_model: what the router knows of the model: config, tokenizer, chat template. No weights.
 * Flow:    --model -> [served_model] -> request_parse, sessions
 * Thread:  constant after open; any thread reads it.
 * Memory:  the tokenizer's tables. */
#ifndef BATON_ROUTER_SERVED_MODEL_H
#define BATON_ROUTER_SERVED_MODEL_H

#include "base/diag.h"
#include "base/status.h"
#include "model/chat_template/chat_template.h"
#include "model/model_config.h"
#include "model/tokenizer/tokenizer.h"

struct served_model {
    char name[256];
    struct model_config config;
    struct generation_defaults defaults;
    struct tokenizer *tokenizer; /* NULL: there is none, only token ids are served; see text_problem */
    struct chat_template *chat;  /* NULL: there is none, see chat_problem */
    char chat_label[256];        /* "model", a family's name, a file's name, "" */
    struct diag chat_problem;    /* why Chat is refused */
    struct diag text_problem;    /* why text is refused */
};

/* name, chat_template  may be NULL: the directory's name; the model's own template
 * A template of the model's own that is not understood does not stop the router: Generate
 * works, and Chat says what is wrong and which flag helps. A directory without a
 * tokenizer.json is served by token ids alone; one with a broken file is an error.
 * Errors  those of the config, the tokenizer and a template that was asked for; diag says which. */
NODISCARD status_t served_model_open(const char *directory, const char *name, const char *chat_template,
                                     struct served_model *ret_model, struct diag *diag);
void served_model_close(struct served_model *model); /* takes a zeroed one */

#endif
