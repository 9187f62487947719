#include "model/tokenizer/growable.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The next capacity that holds `needed`; 0 when that many bytes cannot exist. */
static size_t grown(size_t capacity, size_t needed, size_t item_bytes)
{
    if (needed > SIZE_MAX / 4 / item_bytes) { return 0; }
    size_t next = capacity ? capacity : 64;
    while (next < needed) { next *= 2; }
    return next;
}

status_t text_buf_reserve(struct text_buf *buf, size_t extra)
{
    if (extra <= buf->capacity - buf->len) { return STATUS_OK; }
    size_t next = extra > SIZE_MAX / 8 ? 0 : grown(buf->capacity, buf->len + extra, 1);
    char *data = next ? realloc(buf->data, next) : NULL;
    if (!data) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    buf->data = data;
    buf->capacity = next;
    return STATUS_OK;
}

status_t token_buf_reserve(struct token_buf *buf, size_t extra)
{
    if (extra <= buf->capacity - buf->count) { return STATUS_OK; }
    size_t next = extra > SIZE_MAX / 8 ? 0 : grown(buf->capacity, buf->count + extra, sizeof *buf->ids);
    uint32_t *ids = next ? realloc(buf->ids, next * sizeof *ids) : NULL;
    if (!ids) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    buf->ids = ids;
    buf->capacity = next;
    return STATUS_OK;
}

status_t text_buf_append(struct text_buf *buf, const char *data, size_t len)
{
    if (len == 0) { return STATUS_OK; }
    TRY(text_buf_reserve(buf, len));
    memcpy(buf->data + buf->len, data, len);
    buf->len += len;
    return STATUS_OK;
}

status_t token_buf_append(struct token_buf *buf, uint32_t id)
{
    if (buf->count == buf->capacity) { TRY(token_buf_reserve(buf, 1)); }
    buf->ids[buf->count++] = id;
    return STATUS_OK;
}

void text_buf_fini(struct text_buf *buf)
{
    free(buf->data);
    *buf = (struct text_buf){0};
}

void token_buf_fini(struct token_buf *buf)
{
    free(buf->ids);
    *buf = (struct token_buf){0};
}
