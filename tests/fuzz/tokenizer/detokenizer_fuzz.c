/* Any ids stream to pieces of whole characters that together are the text of all ids. The first
 * byte picks the tokenizer and the options; each further pair of bytes is an id. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/detokenizer.h"
#include "model/tokenizer/utf8.h"
#include "tests/fuzz/tokenizer/small_tokenizers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > 4096) { return 0; }
    const struct tokenizer *tokenizer = small_tokenizer(data[0] % SMALL_COUNT);
    bool skip = data[0] & 128;
    uint32_t ids[2048];
    size_t count = (size - 1) / 2;
    for (size_t i = 0; i < count; i++) { ids[i] = (uint32_t)(data[1 + 2 * i] | data[2 + 2 * i] << 8) % 300; }
    struct text_buf pieces = {0}, whole = {0};
    struct detokenizer *detokenizer = NULL;
    if (failed(detokenizer_create(tokenizer, skip, &detokenizer))) { abort(); }
    for (size_t i = 0; i <= count; i++) {
        size_t at = pieces.len;
        status_t st = i < count ? detokenizer_push(detokenizer, ids[i], &pieces) : detokenizer_flush(detokenizer, &pieces);
        if (failed(st)) { abort(); }
        size_t len = pieces.len - at;
        if (len && utf8_valid_prefix(pieces.data + at, len) != len) { abort(); }
    }
    if (failed(tokenizer_decode(tokenizer, ids, count, skip, &whole))) { abort(); }
    if (whole.len != pieces.len || (whole.len && memcmp(whole.data, pieces.data, whole.len) != 0)) { abort(); }
    detokenizer_destroy(detokenizer);
    text_buf_fini(&pieces);
    text_buf_fini(&whole);
    return 0;
}
