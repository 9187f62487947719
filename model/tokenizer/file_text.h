/* file_text: a whole file in memory.
 * Thread:  the loader's.
 * Memory:  the caller's text_buf. */
#ifndef BATON_MODEL_TOKENIZER_FILE_TEXT_H
#define BATON_MODEL_TOKENIZER_FILE_TEXT_H

#include "base/diag.h"
#include "base/status.h"
#include "model/tokenizer/growable.h"

/* Appends the bytes of dir/name.
 * Errors   NOT_FOUND (node) when there is no such file; others by errno; diag names the path. */
NODISCARD status_t file_text_read(const char *dir, const char *name, struct text_buf *out, struct diag *diag);

#endif
