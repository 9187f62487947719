/* tokenizer_config: what stands beside tokenizer.json: tokenizer_config.json,
 * special_tokens_map.json, chat_template.jinja and additional_chat_templates/.
 * Flow:    tokenizer_create -> [tokenizer_config] -> chat templates
 * Thread:  constant after init.
 * Memory:  copies of the strings. */
#ifndef BATON_MODEL_TOKENIZER_TOKENIZER_CONFIG_H
#define BATON_MODEL_TOKENIZER_TOKENIZER_CONFIG_H

#include <jansson.h>
#include <stddef.h>

#include "base/diag.h"
#include "base/status.h"

struct named_template {
    char *name; /* "default" for the one without a name */
    char *text;
};

enum tri_state { TRI_UNSET, TRI_FALSE, TRI_TRUE };

struct tokenizer_config {
    /* As written; NULL where none is named. */
    char *bos_token, *eos_token, *pad_token, *unk_token;
    char *tokenizer_class;
    enum tri_state add_bos_token, add_eos_token;
    struct named_template *templates; /* [template_count] */
    size_t template_count;
};

/* Reads what a directory has of these files; none of them has to be there.
 * Errors   INVALID_ARGUMENT (node): a file is no JSON or a field has the wrong type; diag names
 *          the file. */
NODISCARD status_t tokenizer_config_init(struct tokenizer_config *config, const char *dir, struct diag *diag);
void tokenizer_config_fini(struct tokenizer_config *config);

/* Reads the fields of a tokenizer_config.json into a zeroed config. */
NODISCARD status_t tokenizer_config_read(struct tokenizer_config *config, const json_t *json, struct diag *diag);

#endif
