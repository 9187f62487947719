/* chat_template: turns chat messages into the prompt that a model was trained on.
 * Flow:    tokenizer_config.json (chat_template) or a family's name -> [chat_template];
 *          request's messages -> render -> tokenizer
 * Thread:  a template does not change after compile; any number of threads may render it.
 * Memory:  a template owns its tree; a render takes and frees its own, within limits.
 *
 * The language is the part of Jinja2 that chat templates use, with the meaning that Hugging
 * Face transformers gives it: trim_blocks, lstrip_blocks, loopcontrols, {% generation %}, the
 * immutable sandbox, raise_exception, strftime_now, and tojson without HTML escapes.
 * Templates are foreign code: work, memory, output and nesting are bounded, and whatever this
 * interpreter does not know is refused by name and line rather than rendered differently.
 * Source:  Jinja 3.1.6; transformers' apply_chat_template. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_CHAT_TEMPLATE_H
#define BATON_MODEL_CHAT_TEMPLATE_CHAT_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

struct chat_template; /* private to chat_template.c */

/* The families that --chat-template knows, for help texts. */
#define CHAT_TEMPLATE_FAMILIES "chatml|llama2|llama3|mistral|zephyr|qwen"

/* Parses a template.
 * source  borrowed; copied
 * Errors  INVALID_ARGUMENT (request): not UTF-8, not a template, or longer than 1 MiB;
 *         UNIMPLEMENTED (request): a tag, filter or test that is not known. diag names it, its
 *         line, and the flag that chooses a family instead. */
NODISCARD status_t chat_template_compile(const char *source, size_t len, struct chat_template **ret_template, struct diag *diag);

/* The template of a family: chatml, llama2, llama3, mistral, zephyr or qwen.
 * Errors  NOT_FOUND (request): no such family; diag lists them. */
NODISCARD status_t chat_template_builtin(const char *name, struct chat_template **ret_template, struct diag *diag);

/* Its text, or NULL for a name that is none; static. */
const char *chat_template_builtin_source(const char *name);

/* What the flag --chat-template takes: a family's name, else the path of a file.
 * Errors  as the two above; NOT_FOUND also for a file that cannot be read, cause is errno. */
NODISCARD status_t chat_template_choose(const char *name_or_path, struct chat_template **ret_template, struct diag *diag);

void chat_template_destroy(struct chat_template *chat);

struct chat_options {
    bool add_generation_prompt;
    const char *bos_token; /* NULL: the variable is not defined, and prints as nothing */
    const char *eos_token;
    const json_t *tools;     /* array, or NULL for none */
    const json_t *documents; /* array, or NULL for none */
    const json_t *variables; /* object of further variables (enable_thinking, pad_token), or NULL; they win */
    int64_t now_s;           /* seconds since 1970 for strftime_now; shown in local time */
};

/* Renders messages.
 * messages    JSON array of objects: role, content and whatever else the template reads
 *             (tool_calls, name, reasoning_content); borrowed
 * ret_text    Returns owned, free() it; ret_len bytes of UTF-8 and a closing zero
 * Errors      INVALID_ARGUMENT (request): the template refused the messages, and diag is the
 *             very text it raised; or the messages are not what it can read, and diag says
 *             where in the template. UNIMPLEMENTED: a method or function that is not known.
 *             RESOURCE_EXHAUSTED: a limit of work, memory (128 MiB) or output (32 MiB). */
NODISCARD status_t chat_template_render(const struct chat_template *chat, const json_t *messages, const struct chat_options *options,
                                        char **ret_text, size_t *ret_len, struct diag *diag);

struct chat_message {
    const char *role;    /* UTF-8 */
    const char *content; /* UTF-8 */
};

/* Plain messages as the array that render takes. Returns owned, json_decref() it; NULL when
 * a text is not valid UTF-8 or memory is out. */
json_t *chat_messages_json(const struct chat_message *messages, size_t count);

#endif
