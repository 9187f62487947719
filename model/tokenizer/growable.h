/* growable: the two arrays that tokenizing fills, of bytes and of token ids.
 * Flow:    tokenizer, detokenizer -> [growable] -> router
 * Thread:  one owner at a time.
 * Memory:  heap, doubled as needed; kept on clear, so a reused one stops allocating. */
#ifndef BATON_MODEL_TOKENIZER_GROWABLE_H
#define BATON_MODEL_TOKENIZER_GROWABLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Bytes, not zero-terminated. {0} is a valid empty one. */
struct text_buf {
    char *data;
    size_t len;
    size_t capacity;
};

/* Token ids. {0} is a valid empty one. */
struct token_buf {
    uint32_t *ids;
    size_t count;
    size_t capacity;
};

/* Makes room for `extra` more.
 * Errors   RESOURCE_EXHAUSTED (request): no memory; what was there stays. */
NODISCARD status_t text_buf_reserve(struct text_buf *buf, size_t extra);
NODISCARD status_t token_buf_reserve(struct token_buf *buf, size_t extra);

/* Appends a copy; errors as reserve. */
NODISCARD status_t text_buf_append(struct text_buf *buf, const char *data, size_t len);
NODISCARD status_t token_buf_append(struct token_buf *buf, uint32_t id);

void text_buf_fini(struct text_buf *buf);
void token_buf_fini(struct token_buf *buf);

#endif
