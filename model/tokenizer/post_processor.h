/* post_processor: the ids that go around a text, as <s> in front.
 * Flow:    tokenizer -> [post_processor]
 * Thread:  constant after create.
 * Memory:  two small arrays. */
#ifndef BATON_MODEL_TOKENIZER_POST_PROCESSOR_H
#define BATON_MODEL_TOKENIZER_POST_PROCESSOR_H

#include <jansson.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/growable.h"

struct post_processor {
    struct token_buf before;
    struct token_buf after;
};

/* Reads the "post_processor" of a tokenizer.json: TemplateProcessing (its single form),
 * BertProcessing, RobertaProcessing, ByteLevel (which moves offsets only) and Sequence of
 * these; null is none. {0} may be given to fini.
 * Errors   INVALID_ARGUMENT (node), UNIMPLEMENTED (node) for others, by name. */
NODISCARD status_t post_processor_init(struct post_processor *post, const json_t *json, struct diag *diag);
void post_processor_fini(struct post_processor *post);

#endif
