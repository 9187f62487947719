#include "client/text_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

status_t text_file_read(const char *path, char **ret_text, size_t *ret_len, struct diag *diag)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (!file) {
        diag_set(diag, "%s: %s", path, strerror(errno));
        return STATUS_CAUSE(ST_NOT_FOUND, SCOPE_REQUEST, errno);
    }
    char *text = NULL;
    size_t len = 0, capacity = 0;
    bool failed_read = false;
    for (;;) {
        if (len + 1 >= capacity) {
            capacity = capacity ? capacity * 2 : 4096;
            char *grown = realloc(text, capacity);
            if (!grown) { failed_read = true; break; }
            text = grown;
        }
        size_t got = fread(text + len, 1, capacity - len - 1, file);
        if (got == 0) { failed_read = ferror(file) != 0; break; }
        len += got;
    }
    if (file != stdin) { fclose(file); }
    if (failed_read) {
        free(text);
        diag_set(diag, "%s: cannot be read: %s", path, strerror(errno));
        return STATUS(ST_NOT_FOUND, SCOPE_REQUEST);
    }
    text[len] = '\0';
    *ret_text = text;
    *ret_len = len;
    return STATUS_OK;
}
