#include "transfer/ucx_api.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define LIBRARY_STANDARD "libucp.so.0"
#define HOW_TO_GET_IT                                                                                              \
    "UCX %u.%u or newer is needed: install it from its own release, or take a Python wheel that carries it, and " \
    "name its libucp with --ucx-library"

/* The mutex: endpoints of one process may be created on several threads, and UCX's log comes from any. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct ucx_api table;
static bool loaded;
static char last_words[256];

/* ---- UCX's own log, which by itself goes to standard output */

enum { UCX_LOG_FATAL = 0, UCX_LOG_ERROR = 1, UCX_LOG_WARN = 2, UCX_LOG_RC_STOP = 0, UCX_LOG_RC_CONTINUE = 1 };

/* The signature of ucs_log_func_t. Its lines become ours: one place, one form. Errors of a peer that
 * died are usual here and counted by the cable, so they are debug; the last one is kept for texts. */
static int on_log(const char *file, unsigned line, const char *function, int level, const void *component,
                  const char *format, va_list arguments)
{
    (void)function;
    (void)component;
    if (level > UCX_LOG_WARN) { return UCX_LOG_RC_CONTINUE; } /* asked for with UCX_LOG_LEVEL: goes to UCX_LOG_FILE */
    char text[sizeof last_words];
    vsnprintf(text, sizeof text, format, arguments);
    for (char *at = text; *at; at++) {
        if (*at == '"') { *at = '\''; }
    }
    pthread_mutex_lock(&mutex);
    memcpy(last_words, text, sizeof last_words);
    pthread_mutex_unlock(&mutex);
    const char *slash = strrchr(file, '/');
    LOGF(LOG_DEBUG, "ucx_says", "level=%d text=\"%s\" source=%s:%u", level, text, slash ? slash + 1 : file, line);
    return UCX_LOG_RC_STOP;
}

void ucx_api_last_words(char *ret_text, size_t size)
{
    pthread_mutex_lock(&mutex);
    snprintf(ret_text, size, "%s", last_words);
    pthread_mutex_unlock(&mutex);
}

/* ---- loading */

static const struct { const char *symbol; size_t offset; } functions[] = {
#define F(field) {"ucp_" #field, offsetof(struct ucx_api, field)}
    F(get_version), F(config_read), F(config_modify), F(config_release), F(init_version), F(cleanup), F(context_query),
    F(mem_map), F(mem_unmap), F(rkey_pack), F(rkey_buffer_release), F(ep_rkey_unpack), F(rkey_destroy), F(worker_create),
    F(worker_destroy), F(worker_progress), F(worker_get_efd), F(worker_arm), F(worker_query),
    F(worker_release_address), F(worker_set_am_recv_handler), F(ep_create), F(ep_query), F(ep_close_nbx),
    F(ep_flush_nbx), F(put_nbx), F(am_send_nbx), F(request_free), F(request_check_status),
#undef F
    {"ucs_status_string", offsetof(struct ucx_api, status_string)},
};
_Static_assert(sizeof functions / sizeof functions[0] * sizeof(void *) == sizeof(struct ucx_api),
               "every function of the table is looked up");

/* Read by UCX when its libraries are loaded, and by nothing later. A value the operator set wins.
 * Hooks: by default UCX rewrites the code of mmap and its kin in the running process to keep a cache
 * of registrations; we register the pool once and name it in every put, so there is nothing to keep.
 * Signals: a server has its own handlers of faults. */
static void environment_set(void)
{
    setenv("UCX_MEM_MMAP_HOOK_MODE", "none", 0);
    setenv("UCX_MEM_CUDA_HOOK_MODE", "none", 0);
    setenv("UCX_MEM_EVENTS", "no", 0);
    setenv("UCX_ERROR_SIGNALS", "", 0);
    setenv("UCX_HANDLE_ERRORS", "", 0);
}

status_t ucx_api_check_version(const struct ucx_api *api, struct diag *diag)
{
    unsigned major = 0, minor = 0, release = 0;
    api->get_version(&major, &minor, &release);
    if (major != UCX_VERSION_MAJOR || minor < UCX_VERSION_MINOR_MIN) {
        diag_set(diag, "ucx cable: this is UCX %u.%u.%u. " HOW_TO_GET_IT, major, minor, release, UCX_VERSION_MAJOR,
                 UCX_VERSION_MINOR_MIN);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    return STATUS_OK;
}

static status_t load(const char *library, struct diag *diag)
{
    environment_set();
    /* Local: no symbol of it may stand in for one of ours. Now: what is missing shows here. */
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *why = dlerror();
        diag_set(diag, "ucx cable: %s. " HOW_TO_GET_IT, why ? why : library, UCX_VERSION_MAJOR, UCX_VERSION_MINOR_MIN);
        return STATUS(ST_UNAVAILABLE, SCOPE_NODE);
    }
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        /* libucs is a dependency of libucp, so the handle finds its symbols too. */
        void *found = dlsym(handle, functions[i].symbol);
        if (!found) {
            diag_set(diag, "ucx cable: %s has no %s. " HOW_TO_GET_IT, library, functions[i].symbol, UCX_VERSION_MAJOR,
                     UCX_VERSION_MINOR_MIN);
            return STATUS(ST_UNAVAILABLE, SCOPE_NODE);
        }
        memcpy((char *)&table + functions[i].offset, &found, sizeof found);
    }
    TRY(ucx_api_check_version(&table, diag));
    void (*push_handler)(int (*)(const char *, unsigned, const char *, int, const void *, const char *, va_list)) = NULL;
    void *found = dlsym(handle, "ucs_log_push_handler");
    if (found) { /* not of the documented interface: without it UCX prints by itself */
        memcpy(&push_handler, &found, sizeof found);
        push_handler(on_log);
    }
    return STATUS_OK;
}

status_t ucx_api_load(const char *library, struct diag *diag, const struct ucx_api **ret_api)
{
    pthread_mutex_lock(&mutex);
    bool have = loaded;
    pthread_mutex_unlock(&mutex);
    if (!have) {
        TRY(load(library && library[0] ? library : LIBRARY_STANDARD, diag));
        pthread_mutex_lock(&mutex);
        loaded = true;
        pthread_mutex_unlock(&mutex);
    }
    *ret_api = &table;
    return STATUS_OK;
}
