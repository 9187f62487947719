#include "model/tokenizer/detokenizer.h"

#include <errno.h>
#include <stdlib.h>

#include "model/tokenizer/tokenizer_internal.h"

struct detokenizer {
    const struct tokenizer *tokenizer;
    struct decoder_state *decoder;
    bool skip_special;
};

status_t detokenizer_create(const struct tokenizer *tokenizer, bool skip_special, struct detokenizer **ret_detokenizer)
{
    struct detokenizer *detokenizer = calloc(1, sizeof *detokenizer);
    if (!detokenizer) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    detokenizer->tokenizer = tokenizer;
    detokenizer->skip_special = skip_special;
    status_t st = decoder_state_create(tokenizer->decoder, &detokenizer->decoder);
    if (failed(st)) { detokenizer_destroy(detokenizer); return st; }
    *ret_detokenizer = detokenizer;
    return STATUS_OK;
}

void detokenizer_destroy(struct detokenizer *detokenizer)
{
    if (!detokenizer) { return; }
    decoder_state_destroy(detokenizer->decoder);
    free(detokenizer);
}

status_t detokenizer_push(struct detokenizer *detokenizer, uint32_t id, struct text_buf *out)
{
    size_t len;
    if (detokenizer->skip_special && tokenizer_is_special(detokenizer->tokenizer, id)) { return STATUS_OK; }
    const char *spelling = tokenizer_token_spelling(detokenizer->tokenizer, id, &len);
    if (!spelling) { return STATUS_OK; } /* models pad their vocabulary with ids that are no tokens */
    return decoder_push(detokenizer->decoder, spelling, len, out);
}

status_t detokenizer_flush(struct detokenizer *detokenizer, struct text_buf *out)
{
    return decoder_flush(detokenizer->decoder, out);
}
