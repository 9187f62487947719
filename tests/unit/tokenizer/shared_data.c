#include "tests/unit/tokenizer/shared_data.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool has_manifest(const char *folder)
{
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/MANIFEST.md", folder);
    return access(path, R_OK) == 0;
}

/* Goes up from a real path: Bazel runs tests among links to the sources. */
static bool search_above(const char *start, char *ret_path, size_t size)
{
    char at[PATH_MAX];
    if (!realpath(start, at)) { return false; }
    for (;;) {
        int len = snprintf(ret_path, size, "%s/shared/data", at);
        if (len > 0 && (size_t)len < size && has_manifest(ret_path)) { return true; }
        char *slash = strrchr(at, '/');
        if (!slash || slash == at) { return false; }
        *slash = '\0';
    }
}

bool shared_data_find(char *ret_path, size_t size)
{
    const char *given = getenv("BATON_SHARED_DATA");
    if (given && *given) {
        int len = snprintf(ret_path, size, "%s", given);
        return len > 0 && (size_t)len < size && has_manifest(ret_path);
    }
    return search_above("tests/golden/tokenizer/gpt2/tokenizer.json", ret_path, size) || search_above(".", ret_path, size);
}
