#include "tests/conformance/ucx_library.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transfer/ucx_api.h"

static bool beside_python(char *ret_path, size_t size)
{
    const char *python = getenv("BATON_PYTHON"); /* <venv>/bin/python */
    char pattern[512];
    glob_t found;
    if (!python || !python[0]) { return false; }
    const char *bin = strstr(python, "/bin/");
    if (!bin) { return false; }
    snprintf(pattern, sizeof pattern, "%.*s/lib/python3*/site-packages/libucx/lib/libucp.so.0", (int)(bin - python), python);
    bool any = glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc > 0;
    if (any) { snprintf(ret_path, size, "%s", found.gl_pathv[0]); }
    globfree(&found);
    return any;
}

bool ucx_library_find(char *ret_path, size_t path_size, char *ret_text, size_t text_size)
{
    const char *named = getenv("BATON_UCX_LIBRARY");
    const struct ucx_api *api = NULL;
    struct diag diag = {.text = ""};
    if (named && named[0]) {
        snprintf(ret_path, path_size, "%s", named);
    } else if (!beside_python(ret_path, path_size)) {
        snprintf(ret_path, path_size, "libucp.so.0");
    }
    bool good = !failed(ucx_api_load(ret_path, &diag, &api));
    snprintf(ret_text, text_size, "%s", diag.text);
    return good;
}
