/* ucx_api: UCX as a table of functions, found in a library at run time.
 * Flow:    cable_ucx's open -> [ucx_api] -> the table; a test hands the cable a table of its own
 * Thread:  ucx_api_load on the thread that creates the endpoint, before others start: it sets
 *          environment variables, which UCX reads as it is loaded.
 * Memory:  one table for the life of the process. The library is never unloaded: it leaves a thread
 *          and exit handlers behind.
 *
 * Run time, and not link time, so that the binaries need no UCX: most nodes have no RDMA. */
#ifndef BATON_TRANSFER_UCX_API_H
#define BATON_TRANSFER_UCX_API_H

#include "base/diag.h"
#include "base/status.h"
#include "transfer/ucx_abi.h"

/* 1.19: the first whose errors on the verbs path end in callbacks instead of asserts, and which NIXL
 * requires as well; Debian 12's 1.13 crashed in 8 of 9 runs of that path. */
#define UCX_VERSION_MAJOR 1u
#define UCX_VERSION_MINOR_MIN 19u

struct ucx_api {
    void (*get_version)(unsigned *ret_major, unsigned *ret_minor, unsigned *ret_release);
    ucx_status_t (*config_read)(const char *env_prefix, const char *file, void **ret_config);
    ucx_status_t (*config_modify)(void *config, const char *name, const char *value);
    void (*config_release)(void *config);
    ucx_status_t (*init_version)(unsigned major, unsigned minor, const struct ucx_params *params, const void *config,
                                 void **ret_context);
    void (*cleanup)(void *context);
    ucx_status_t (*context_query)(void *context, struct ucx_context_attr *attr);
    ucx_status_t (*mem_map)(void *context, const struct ucx_mem_map_params *params, void **ret_memh);
    ucx_status_t (*mem_unmap)(void *context, void *memh);
    ucx_status_t (*rkey_pack)(void *context, void *memh, void **ret_buffer, size_t *ret_bytes);
    void (*rkey_buffer_release)(void *buffer);
    ucx_status_t (*ep_rkey_unpack)(void *ep, const void *buffer, void **ret_rkey);
    void (*rkey_destroy)(void *rkey);
    ucx_status_t (*worker_create)(void *context, const struct ucx_worker_params *params, void **ret_worker);
    void (*worker_destroy)(void *worker);
    unsigned (*worker_progress)(void *worker);
    ucx_status_t (*worker_get_efd)(void *worker, int *ret_fd);
    ucx_status_t (*worker_arm)(void *worker);
    ucx_status_t (*worker_query)(void *worker, struct ucx_worker_attr *attr);
    void (*worker_release_address)(void *worker, void *address);
    ucx_status_t (*worker_set_am_recv_handler)(void *worker, const struct ucx_am_handler_param *param);
    ucx_status_t (*ep_create)(void *worker, const struct ucx_ep_params *params, void **ret_ep);
    ucx_status_t (*ep_query)(void *ep, struct ucx_ep_attr *attr);
    ucx_request_t (*ep_close_nbx)(void *ep, const struct ucx_request_param *param);
    ucx_request_t (*ep_flush_nbx)(void *ep, const struct ucx_request_param *param);
    ucx_request_t (*put_nbx)(void *ep, const void *buffer, size_t bytes, uint64_t remote_address, void *rkey,
                             const struct ucx_request_param *param);
    ucx_request_t (*am_send_nbx)(void *ep, unsigned id, const void *header, size_t header_bytes, const void *data,
                                 size_t bytes, const struct ucx_request_param *param);
    void (*request_free)(ucx_request_t request);
    ucx_status_t (*request_check_status)(ucx_request_t request);
    const char *(*status_string)(ucx_status_t status);
};

/* Loads `library` (NULL or "": libucp.so.0 where the loader looks) and fills the table, once for the
 * process; a second call gives the same table. Errors: UNAVAILABLE (node): the library, or one of its
 * functions, is not there; FAILED_PRECONDITION (node): it is too old. The text says what to do. */
NODISCARD status_t ucx_api_load(const char *library, struct diag *diag, const struct ucx_api **ret_api);

/* Whether this library's version will do; api is one that was filled in. */
NODISCARD status_t ucx_api_check_version(const struct ucx_api *api, struct diag *diag);

/* The last warning or error that UCX reported; "" when none. Without it a status such as "no device" says
 * nothing about why. ret_text [size]. */
void ucx_api_last_words(char *ret_text, size_t size);

static inline int ucx_is_request(ucx_request_t request) { return (uintptr_t)request - 1u < (uintptr_t)UCX_ERR_LAST - 1u; }
/* Of what a call returned at once: UCX_INPROGRESS for a request. */
static inline ucx_status_t ucx_status_of(ucx_request_t request)
{
    return ucx_is_request(request) ? UCX_INPROGRESS : (ucx_status_t)(intptr_t)request;
}

#endif
