/* Any bytes are encoded, or refused as no UTF-8; and where every byte has a token the text comes
 * back as it was. The first byte picks the tokenizer and the options. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/utf8.h"
#include "tests/fuzz/tokenizer/small_tokenizers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) { return 0; }
    unsigned which = data[0] % SMALL_COUNT;
    const struct tokenizer *tokenizer = small_tokenizer(which);
    const char *text = (const char *)data + 1;
    size_t len = size - 1;
    struct token_buf ids = {0};
    struct text_buf out = {0};
    struct diag diag = {{0}};
    status_t st = tokenizer_encode(tokenizer, text, len, (struct encode_options){data[0] & 64, data[0] & 128}, &ids, &diag);
    bool valid = utf8_valid_prefix(text, len) == len;
    if (failed(st) == valid && st.code != ST_RESOURCE_EXHAUSTED) { abort(); }
    for (size_t i = 0; i < ids.count; i++) {
        if (ids.ids[i] >= tokenizer_id_end(tokenizer)) { abort(); }
    }
    if (!failed(st)) {
        if (failed(tokenizer_decode(tokenizer, ids.ids, ids.count, false, &out))) { abort(); }
        bool same = out.len == len && (len == 0 || memcmp(out.data, text, len) == 0);
        if (which == SMALL_BYTES && !same) { abort(); }
    }
    token_buf_fini(&ids);
    text_buf_fini(&out);
    return 0;
}
