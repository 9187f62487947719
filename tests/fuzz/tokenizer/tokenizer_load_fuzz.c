/* Any bytes as a tokenizer.json (and, after a zero byte, a tokenizer_config.json) are loaded or
 * refused with a sentence; what loads encodes and decodes. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello, W\u00f6rld! <s> it's 123\n\n  \u4f60\u597d \U0001F600 aaaaaaaa";
    const char *json = (const char *)data;
    const char *config = size ? memchr(json, 0, size) : NULL;
    size_t len = config ? (size_t)(config - json) : size;
    size_t config_len = config ? size - len - 1 : 0;
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    status_t st = tokenizer_create_from_json(size ? json : "", len, config ? config + 1 : NULL, config_len, &tokenizer, &diag);
    if (failed(st)) {
        if (!diag.text[0]) { abort(); }
        return 0;
    }
    struct token_buf ids = {0};
    struct text_buf out = {0};
    st = tokenizer_encode(tokenizer, text, sizeof text - 1, (struct encode_options){true, size & 1}, &ids, &diag);
    if (!failed(st)) { st = tokenizer_decode(tokenizer, ids.ids, ids.count, size & 2, &out); }
    for (uint32_t id = 0; id < 20 && !failed(st); id++) { st = tokenizer_token_text(tokenizer, id, &out); }
    token_buf_fini(&ids);
    text_buf_fini(&out);
    tokenizer_destroy(tokenizer);
    return 0;
}
