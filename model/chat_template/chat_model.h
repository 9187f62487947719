/* chat_model: the chat side of a model directory: its template and its special tokens.
 * Flow:    model directory, --chat-template -> [chat_model]; request's messages -> prompt text
 *          -> tokenizer, without adding special tokens: the template wrote them
 * Thread:  not changed after load; any number of threads may render.
 * Memory:  owned by the chat_model; a render as in chat_template.h. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_CHAT_MODEL_H
#define BATON_MODEL_CHAT_TEMPLATE_CHAT_MODEL_H

#include "model/chat_template/chat_template.h"

struct chat_model; /* private to chat_model.c */

/* Reads tokenizer_config.json: chat_template (a text, or a list of {name, template}, of which
 * `default` is taken) and the special tokens (bos_token, eos_token, unk_token, pad_token, ...),
 * which become variables of the template. A chat_template.jinja beside it wins, as in
 * transformers.
 * choice  the flag --chat-template: a family's name or a file's path, in place of the model's
 *         own; NULL or "" for the model's own
 * A model without any template loads too; rendering then fails, naming the flag.
 * Errors  NOT_FOUND (node): no tokenizer_config.json; INVALID_ARGUMENT (node): it is no JSON
 *         object; else as chat_template_choose() and chat_template_compile(). */
NODISCARD status_t chat_model_load(const char *model_dir, const char *choice, struct chat_model **ret_model, struct diag *diag);

void chat_model_destroy(struct chat_model *model);

/* As chat_template_render(); the options' bos_token and eos_token are the model's where NULL.
 * Errors  FAILED_PRECONDITION (request): the model has no template. */
NODISCARD status_t chat_model_render(const struct chat_model *model, const json_t *messages, const struct chat_options *options, char **ret_text,
                                     size_t *ret_len, struct diag *diag);

#endif
