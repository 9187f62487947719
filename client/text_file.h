/* text_file: a whole file, or standard input, as text. */
#ifndef BATON_CLIENT_TEXT_FILE_H
#define BATON_CLIENT_TEXT_FILE_H

#include <stddef.h>

#include "base/diag.h"
#include "base/status.h"

/* path "-": standard input. ret_text is malloc'd, with a zero byte behind it.
 * Errors  NOT_FOUND (request): cannot be read, diag says why. */
NODISCARD status_t text_file_read(const char *path, char **ret_text, size_t *ret_len, struct diag *diag);

#endif
