/* ucx_abi: the part of UCX's binary interface that the ucx cable calls, declared by us.
 *
 * Why not UCX's headers: Baton builds where UCX is not installed, and Debian's headers are of 1.13,
 * older than what we load. UCX keeps this interface stable for the whole of version 1: every struct
 * begins with a mask of the fields that are filled in, and a newer library reads no others. What is
 * here was in 1.13 already, so it holds for every 1.x that we accept. tests/ucx/abi_check.c compares
 * each size, offset and number with the real headers where those are found.
 *
 * Names are UCX's with ucx_ for ucp_ and ucs_, so that both can be included side by side. Handles are
 * void pointers, as they cross into a library that we only know by symbols.
 * Source:  UCX API 1.22, ucp/api/ucp.h and ucp_def.h, ucs/type/status.h */
#ifndef BATON_TRANSFER_UCX_ABI_H
#define BATON_TRANSFER_UCX_ABI_H

#include <stddef.h>
#include <stdint.h>

/* An enum of one byte in UCX's headers; negative is an error. */
typedef int8_t ucx_status_t;
enum {
    UCX_OK = 0, UCX_INPROGRESS = 1, UCX_ERR_UNREACHABLE = -6, UCX_ERR_NO_DEVICE = -14, UCX_ERR_BUSY = -15,
    UCX_ERR_CANCELED = -16, UCX_ERR_UNSUPPORTED = -22, UCX_ERR_LAST = -100,
};

/* What a non-blocking call returns: 0, a status below, or a request. */
typedef void *ucx_request_t;

enum { UCX_FEATURE_RMA = 1 << 1, UCX_FEATURE_WAKEUP = 1 << 4, UCX_FEATURE_AM = 1 << 6 };

enum { UCX_PARAM_FIELD_FEATURES = 1 << 0, UCX_PARAM_FIELD_MT_WORKERS_SHARED = 1 << 5 };
struct ucx_params {
    uint64_t field_mask;
    uint64_t features;
    size_t request_size;
    void *request_init;
    void *request_cleanup;
    uint64_t tag_sender_mask;
    int mt_workers_shared;
    size_t estimated_num_eps;
    size_t estimated_num_ppn;
    const char *name;
    size_t node_local_id;
};

/* Newer versions have more behind it; they fill in what is asked for. */
enum { UCX_ATTR_FIELD_MEMORY_TYPES = 1 << 2 };
struct ucx_context_attr {
    uint64_t field_mask;
    size_t request_size;
    int thread_mode;
    uint64_t memory_types; /* bits of UCX_MEMORY_TYPE_ */
    char name[32];
};

enum { UCX_WORKER_PARAM_FIELD_THREAD_MODE = 1 << 0, UCX_THREAD_MODE_SERIALIZED = 1 };
struct ucx_worker_params {
    uint64_t field_mask;
    int thread_mode;
    uint64_t cpu_mask[16];
    unsigned events;
    void *user_data;
    int event_fd;
    uint64_t flags;
    const char *name;
    size_t am_alignment;
    uint64_t client_id;
};

enum {
    UCX_WORKER_ATTR_FIELD_ADDRESS = 1 << 1, UCX_WORKER_ATTR_FIELD_ADDRESS_FLAGS = 1 << 2,
    UCX_WORKER_ADDRESS_FLAG_NET_ONLY = 1 << 0,
};
struct ucx_worker_attr {
    uint64_t field_mask;
    int thread_mode;
    uint32_t address_flags;
    void *address;
    size_t address_length;
    size_t max_am_header;
    char name[32];
    size_t max_debug_string;
};

typedef void (*ucx_err_handler_fn)(void *arg, void *ep, ucx_status_t status);

enum {
    UCX_EP_PARAM_FIELD_REMOTE_ADDRESS = 1 << 0, UCX_EP_PARAM_FIELD_ERR_HANDLING_MODE = 1 << 1,
    UCX_EP_PARAM_FIELD_ERR_HANDLER = 1 << 2, UCX_EP_PARAM_FIELD_FLAGS = 1 << 5,
    UCX_ERR_HANDLING_MODE_PEER = 1, UCX_EP_PARAMS_FLAGS_NO_LOOPBACK = 1 << 1,
};
struct ucx_ep_params {
    uint64_t field_mask;
    const void *address;
    int err_mode;
    struct { ucx_err_handler_fn cb; void *arg; } err_handler;
    void *user_data;
    unsigned flags;
    struct { const void *addr; uint32_t addrlen; } sockaddr;
    void *conn_request;
    const char *name;
    struct { const void *addr; uint32_t addrlen; } local_sockaddr;
};

enum { UCX_EP_ATTR_FIELD_TRANSPORTS = 1 << 3 };
struct ucx_transport_entry { const char *transport_name, *device_name; };
struct ucx_ep_attr {
    uint64_t field_mask;
    char name[32];
    _Alignas(8) char local_sockaddr[128];
    _Alignas(8) char remote_sockaddr[128];
    struct { struct ucx_transport_entry *entries; unsigned num_entries; size_t entry_size; } transports;
    void *user_data;
};

enum {
    UCX_MEM_MAP_PARAM_FIELD_ADDRESS = 1 << 0, UCX_MEM_MAP_PARAM_FIELD_LENGTH = 1 << 1,
    UCX_MEM_MAP_PARAM_FIELD_PROT = 1 << 3, UCX_MEM_MAP_PARAM_FIELD_MEMORY_TYPE = 1 << 4,
    UCX_MEM_MAP_PROT_LOCAL_READ = 1 << 0, UCX_MEM_MAP_PROT_LOCAL_WRITE = 1 << 1, UCX_MEM_MAP_PROT_REMOTE_WRITE = 1 << 9,
    UCX_MEMORY_TYPE_HOST = 0, UCX_MEMORY_TYPE_CUDA = 1,
};
struct ucx_mem_map_params {
    uint64_t field_mask;
    void *address;
    size_t length;
    unsigned flags;
    unsigned prot;
    int memory_type;
    const void *exported_memh_buffer;
};

typedef void (*ucx_send_fn)(void *request, ucx_status_t status, void *user_data);

enum {
    UCX_OP_ATTR_FIELD_CALLBACK = 1 << 1, UCX_OP_ATTR_FIELD_USER_DATA = 1 << 2, UCX_OP_ATTR_FIELD_FLAGS = 1 << 4,
    UCX_OP_ATTR_FIELD_MEMORY_TYPE = 1 << 6, UCX_OP_ATTR_FIELD_MEMH = 1 << 8,
    UCX_AM_SEND_FLAG_EAGER = 1 << 1, UCX_EP_CLOSE_FLAG_FORCE = 1 << 0,
};
struct ucx_request_param {
    uint32_t op_attr_mask;
    uint32_t flags;
    void *request;
    union { ucx_send_fn send; void (*other)(void); } cb;
    uint64_t datatype;
    void *user_data;
    void *reply_buffer;
    int memory_type;
    union { size_t *length; void *tag_info; } recv_info;
    void *memh;
    uint64_t remote_datatype;
    const void *remote;
    size_t remote_count;
};

struct ucx_am_recv_param { uint64_t recv_attr; void *reply_ep; };
typedef ucx_status_t (*ucx_am_recv_fn)(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                                       const struct ucx_am_recv_param *param);
enum {
    UCX_AM_HANDLER_PARAM_FIELD_ID = 1 << 0, UCX_AM_HANDLER_PARAM_FIELD_FLAGS = 1 << 1,
    UCX_AM_HANDLER_PARAM_FIELD_CB = 1 << 2, UCX_AM_HANDLER_PARAM_FIELD_ARG = 1 << 3,
    UCX_AM_FLAG_WHOLE_MSG = 1 << 0,
    UCX_AM_RECV_ATTR_FLAG_RNDV = 1 << 17, /* the data is not here yet; we ask for eager and take no other */
};
struct ucx_am_handler_param {
    uint64_t field_mask;
    unsigned id;
    uint32_t flags;
    ucx_am_recv_fn cb;
    void *arg;
};

#endif
