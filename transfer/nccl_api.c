#include "transfer/nccl_api.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY_STANDARD "libnccl.so.2"
#define HOW_TO_GET_IT                                                                                              \
    "NCCL %d.%d or newer is needed: install NVIDIA's package libnccl2, or the Python wheel nvidia-nccl-cu13, and " \
    "name its libnccl.so.2 with --nccl-library if the loader does not find it; or leave --nccl off"
#define NEEDED NCCL_VERSION_MIN / 10000, NCCL_VERSION_MIN / 100 % 100

/* The mutex: endpoints of one process may be created on several threads. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct nccl_api table;
static bool loaded;

static const struct { const char *symbol; size_t offset; } functions[] = {
    {"ncclGetVersion", offsetof(struct nccl_api, get_version)},
    {"ncclGetUniqueId", offsetof(struct nccl_api, get_unique_id)},
    {"ncclCommInitRankConfig", offsetof(struct nccl_api, comm_init_rank_config)},
    {"ncclCommGetAsyncError", offsetof(struct nccl_api, comm_get_async_error)},
    {"ncclCommAbort", offsetof(struct nccl_api, comm_abort)},
    {"ncclCommCount", offsetof(struct nccl_api, comm_count)},
    {"ncclGroupStart", offsetof(struct nccl_api, group_start)},
    {"ncclGroupEnd", offsetof(struct nccl_api, group_end)},
    {"ncclSend", offsetof(struct nccl_api, send)},
    {"ncclRecv", offsetof(struct nccl_api, recv)},
    {"ncclGetErrorString", offsetof(struct nccl_api, get_error_string)},
    {"ncclGetLastError", offsetof(struct nccl_api, get_last_error)},
};
_Static_assert(sizeof functions / sizeof functions[0] * sizeof(void *) == sizeof(struct nccl_api),
               "every function of the table is looked up");

/* Read by NCCL at its first call, which also takes what nccl.conf says and the environment does not. A value the operator
 * set wins. RAS: on by default, it joins all processes with NCCL that ever met into one ring of sockets, which nodes
 * that come and go would tear over and over. BLOCKING: see nccl_api_check_environment(). */
static void environment_set(void)
{
    setenv("NCCL_RAS_ENABLE", "0", 0);
    setenv("NCCL_COMM_BLOCKING", "0", 0);
}

status_t nccl_api_check_environment(struct diag *diag)
{
    const char *blocking = getenv("NCCL_COMM_BLOCKING"), *id = getenv("NCCL_COMM_ID");
    if (blocking && strcmp(blocking, "0") != 0) {
        diag_set(diag, "nccl cable: NCCL_COMM_BLOCKING is \"%s\" in the environment: NCCL would wait without limit for a peer that does not come. "
                       "Unset it, or set it to 0; or leave --nccl off", blocking);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    if (id) {
        diag_set(diag, "nccl cable: NCCL_COMM_ID is \"%s\" in the environment: it is one meeting point for all, and each pair of nodes needs its own. "
                       "Unset it; or leave --nccl off", id);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    return STATUS_OK;
}

status_t nccl_api_check_version(const struct nccl_api *api, int *ret_version, struct diag *diag)
{
    int version = 0;
    nccl_result_t result = api->get_version(&version);
    if (result != NCCL_SUCCESS) { return nccl_api_status(api, NULL, "ncclGetVersion", result, diag); }
    if (version < NCCL_VERSION_MIN) {
        /* Before 2.9 the code was one of a thousand. */
        const int unit = version < 10000 ? 1000 : 10000;
        diag_set(diag, "nccl cable: this is NCCL %d.%d.%d. " HOW_TO_GET_IT, version / unit, version % unit / 100,
                 version % 100, NEEDED);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    if (ret_version) { *ret_version = version; }
    return STATUS_OK;
}

static status_t load(const char *library, struct diag *diag)
{
    TRY(nccl_api_check_environment(diag));
    environment_set();
    /* Local: no symbol of it may stand in for one of ours. Now: what is missing shows here. */
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *why = dlerror();
        diag_set(diag, "nccl cable: %s. " HOW_TO_GET_IT, why ? why : library, NEEDED);
        return STATUS(ST_UNAVAILABLE, SCOPE_NODE);
    }
    /* The version first: what an old library lacks is said by its number, not by the names of its functions. */
    struct nccl_api found = {.get_version = NULL};
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *function = dlsym(handle, functions[i].symbol);
        memcpy((char *)&found + functions[i].offset, &function, sizeof function);
    }
    if (found.get_version && found.get_error_string) { TRY(nccl_api_check_version(&found, NULL, diag)); }
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        if (!dlsym(handle, functions[i].symbol)) {
            diag_set(diag, "nccl cable: %s has no %s. " HOW_TO_GET_IT, library, functions[i].symbol, NEEDED);
            return STATUS(ST_UNAVAILABLE, SCOPE_NODE);
        }
    }
    table = found;
    return STATUS_OK;
}

__attribute__((weak)) status_t nccl_api_load(const char *library, struct diag *diag, const struct nccl_api **ret_api)
{
    pthread_mutex_lock(&mutex);
    status_t st = loaded ? STATUS_OK : load(library && library[0] ? library : LIBRARY_STANDARD, diag);
    loaded |= !failed(st);
    pthread_mutex_unlock(&mutex);
    if (failed(st)) { return st; }
    *ret_api = &table;
    return STATUS_OK;
}

struct nccl_config nccl_config_make(uint32_t channels)
{
    return (struct nccl_config){
        .size = sizeof(struct nccl_config),
        .magic = NCCL_CONFIG_MAGIC,
        .version = NCCL_CONFIG_VERSION,
        .blocking = 0,
        .cga_cluster_size = NCCL_CONFIG_DEFAULT,
        .min_ctas = 1, /* else the library may take its own least, which can be more than our most */
        .max_ctas = (int)channels,
    };
}

status_t nccl_api_status(const struct nccl_api *api, nccl_comm_t comm, const char *call, nccl_result_t result,
                         struct diag *diag)
{
    const char *name = api->get_error_string ? api->get_error_string(result) : NULL;
    const char *last = api->get_last_error ? api->get_last_error(comm) : NULL;
    const bool says_more = last && last[0];
    diag_set(diag, "%s: %s (%d)%s%s", call, name ? name : "an error without a name", result, says_more ? ": " : "",
             says_more ? last : "");
    /* NCCL's own words are lines of a log. */
    for (char *at = diag ? diag->text : NULL; at && *at; at++) {
        if (*at == '\n' || *at == '"') { *at = *at == '"' ? '\'' : ' '; }
    }
    const bool is_far = result == NCCL_REMOTE_ERROR || result == NCCL_SYSTEM_ERROR;
    return STATUS_CAUSE(is_far ? ST_UNAVAILABLE : ST_INTERNAL, SCOPE_PEER, result);
}
