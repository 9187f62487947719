#include "kernels/cuda/driver_library.h"

#include <dlfcn.h>
#include <glob.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CUBLASLT_FILE "libcublasLt.so.13"

struct symbol {
    const char *name;
    size_t offset; /* of its pointer in the table */
};

#define STRING_OF(text) #text
#define CUDA_ROW(name) {STRING_OF(name), offsetof(struct cuda_api, name)},
#define CUBLASLT_ROW(name) {STRING_OF(name), offsetof(struct cublaslt_api, name)},
/* The detour lets cuda.h rename before STRING_OF sees the name. */
#define CUDA_SYMBOL(name) CUDA_ROW(name)

static const struct symbol cuda_symbols[] = {CUDA_SYMBOLS(CUDA_SYMBOL)};
static const struct symbol cublaslt_symbols[] = {CUBLASLT_SYMBOLS(CUBLASLT_ROW)};

static status_t find_symbols(void *library, const char *library_name, const struct symbol *symbols, size_t count,
                             void *table, struct diag *diag)
{
    for (size_t i = 0; i < count; i++) {
        void *found = dlsym(library, symbols[i].name);
        if (found == NULL) {
            diag_set(diag,
                     "%s of this machine has no %s: it is older than CUDA 13.0, which Baton needs; "
                     "install a newer NVIDIA driver or toolkit",
                     library_name, symbols[i].name);
            return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
        }
        /* ISO C has no cast from an object's address to a function's; POSIX has dlsym mean this. */
        memcpy((char *)table + symbols[i].offset, &found, sizeof found);
    }
    return STATUS_OK;
}

status_t driver_library_load_cuda(const char *path, struct cuda_api *ret_api, struct diag *diag)
{
    const char *name = path != NULL ? path : "libcuda.so.1";
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        diag_set(diag, "%s is not here: no NVIDIA driver on this machine (%s)", name, dlerror());
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    struct cuda_api api;
    TRY(find_symbols(library, name, cuda_symbols, sizeof cuda_symbols / sizeof cuda_symbols[0], &api, diag));
    *ret_api = api;
    return STATUS_OK;
}

/* Tries the files that match a pattern; what a newer toolkit or Python left comes last in glob's order and is
 * as good as the first: they are all version 13. */
static void *open_match(const char *pattern)
{
    glob_t found;
    void *library = NULL;
    if (glob(pattern, 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc && library == NULL; i++) {
            library = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
        }
        globfree(&found);
    }
    return library;
}

static void *open_below(const char *variable, const char *below)
{
    const char *root = getenv(variable);
    char pattern[4096];
    if (root == NULL || root[0] != '/') { return NULL; }
    int len = snprintf(pattern, sizeof pattern, "%s%s/" CUBLASLT_FILE, root, below);
    return len > 0 && (size_t)len < sizeof pattern ? open_match(pattern) : NULL;
}

static void *open_cublaslt(void)
{
    static const char *const usual[] = {
        "/usr/local/cuda/lib64/" CUBLASLT_FILE,
        "/usr/local/cuda-13*/lib64/" CUBLASLT_FILE,
        "/opt/cuda/lib64/" CUBLASLT_FILE,
        "/usr/local/lib/python3*/*-packages/nvidia/cu13/lib/" CUBLASLT_FILE,
        "/usr/lib/python3*/*-packages/nvidia/cu13/lib/" CUBLASLT_FILE,
    };
    void *library = dlopen(CUBLASLT_FILE, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) { library = open_below("CUDA_HOME", "/lib64"); }
    if (library == NULL) { library = open_below("CUDA_HOME", "/lib"); }
    if (library == NULL) { library = open_below("VIRTUAL_ENV", "/lib/python3*/site-packages/nvidia/cu13/lib"); }
    for (size_t i = 0; i < sizeof usual / sizeof usual[0] && library == NULL; i++) { library = open_match(usual[i]); }
    return library;
}

status_t driver_library_load_cublaslt(const char *path, struct cublaslt_api *ret_api, struct diag *diag)
{
    void *library = path != NULL ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : open_cublaslt();
    if (library == NULL) {
        diag_set(diag,
                 "%s is not here; sought in the loader's folders (LD_LIBRARY_PATH), $CUDA_HOME/lib64, "
                 "/usr/local/cuda*, /opt/cuda and nvidia/cu13/lib of Python's packages. It comes with the CUDA 13 "
                 "toolkit, or with `pip install nvidia-cublas`; then set CUDA_HOME or LD_LIBRARY_PATH",
                 path != NULL ? path : CUBLASLT_FILE);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    struct cublaslt_api api;
    TRY(find_symbols(library, CUBLASLT_FILE, cublaslt_symbols, sizeof cublaslt_symbols / sizeof cublaslt_symbols[0],
                     &api, diag));
    *ret_api = api;
    return STATUS_OK;
}
