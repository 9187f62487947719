#include "model/tokenizer/file_text.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FILE_BYTES_MAX (256u << 20) /* the largest tokenizer.json known has 33 MB */

status_t file_text_read(const char *dir, const char *name, struct text_buf *out, struct diag *diag)
{
    char path[4096];
    int len = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (len < 0 || (size_t)len >= sizeof path) {
        diag_set(diag, "the path %.200s/... is too long", dir);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    FILE *file = fopen(path, "rb");
    if (!file) {
        int cause = errno;
        diag_set(diag, "%.800s: %s", path, strerror(cause));
        return STATUS_CAUSE(cause == ENOENT || cause == ENOTDIR ? ST_NOT_FOUND : ST_INVALID_ARGUMENT, SCOPE_NODE, cause);
    }
    status_t st = STATUS_OK;
    for (size_t got = 1; got > 0 && !failed(st);) {
        st = text_buf_reserve(out, 1u << 16);
        if (failed(st)) { break; }
        got = fread(out->data + out->len, 1, out->capacity - out->len, file);
        out->len += got;
        if (out->len > FILE_BYTES_MAX) {
            diag_set(diag, "%.800s is larger than %u bytes", path, FILE_BYTES_MAX);
            st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
    }
    if (!failed(st) && ferror(file)) {
        diag_set(diag, "%.800s: %s", path, strerror(errno));
        st = STATUS_CAUSE(ST_INVALID_ARGUMENT, SCOPE_NODE, errno);
    }
    fclose(file);
    return st;
}
