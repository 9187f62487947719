/* Compiled, not run, against UCX's own headers: what transfer/ucx_abi.h declares is what UCX has. */
#include <ucp/api/ucp.h>

#include "transfer/ucx_abi.h"

#define SAME(condition) _Static_assert(condition, #condition)
#define EQUAL(ours, theirs) _Static_assert((long)(ours) == (long)(theirs), #ours)
#define SIZE(ours, theirs) SAME(sizeof(struct ours) == sizeof(theirs))
#define AT(ours, theirs, field) \
    SAME(offsetof(struct ours, field) == offsetof(theirs, field)); \
    SAME(sizeof(((struct ours *)0)->field) == sizeof(((theirs *)0)->field))
#define NUMBER(name) EQUAL(UCX_##name, UCP_##name)

SAME(sizeof(ucx_status_t) == sizeof(ucs_status_t));
EQUAL(UCX_OK, UCS_OK);
EQUAL(UCX_INPROGRESS, UCS_INPROGRESS);
EQUAL(UCX_ERR_UNREACHABLE, UCS_ERR_UNREACHABLE);
EQUAL(UCX_ERR_NO_DEVICE, UCS_ERR_NO_DEVICE);
EQUAL(UCX_ERR_BUSY, UCS_ERR_BUSY);
EQUAL(UCX_ERR_CANCELED, UCS_ERR_CANCELED);
EQUAL(UCX_ERR_UNSUPPORTED, UCS_ERR_UNSUPPORTED);
EQUAL(UCX_ERR_LAST, UCS_ERR_LAST);

NUMBER(FEATURE_RMA);
NUMBER(FEATURE_WAKEUP);
NUMBER(FEATURE_AM);

NUMBER(PARAM_FIELD_FEATURES);
NUMBER(PARAM_FIELD_MT_WORKERS_SHARED);
SIZE(ucx_params, ucp_params_t);
AT(ucx_params, ucp_params_t, features);
AT(ucx_params, ucp_params_t, mt_workers_shared);

NUMBER(ATTR_FIELD_MEMORY_TYPES);
AT(ucx_context_attr, ucp_context_attr_t, memory_types);
SAME(sizeof(struct ucx_context_attr) <= sizeof(ucp_context_attr_t));

NUMBER(WORKER_PARAM_FIELD_THREAD_MODE);
EQUAL(UCX_THREAD_MODE_SERIALIZED, UCS_THREAD_MODE_SERIALIZED);
SIZE(ucx_worker_params, ucp_worker_params_t);
AT(ucx_worker_params, ucp_worker_params_t, thread_mode);
AT(ucx_worker_params, ucp_worker_params_t, events);

NUMBER(WORKER_ATTR_FIELD_ADDRESS);
NUMBER(WORKER_ATTR_FIELD_ADDRESS_FLAGS);
NUMBER(WORKER_ADDRESS_FLAG_NET_ONLY);
SIZE(ucx_worker_attr, ucp_worker_attr_t);
AT(ucx_worker_attr, ucp_worker_attr_t, address_flags);
AT(ucx_worker_attr, ucp_worker_attr_t, address);
AT(ucx_worker_attr, ucp_worker_attr_t, address_length);

NUMBER(EP_PARAM_FIELD_REMOTE_ADDRESS);
NUMBER(EP_PARAM_FIELD_ERR_HANDLING_MODE);
NUMBER(EP_PARAM_FIELD_ERR_HANDLER);
NUMBER(EP_PARAM_FIELD_FLAGS);
NUMBER(ERR_HANDLING_MODE_PEER);
NUMBER(EP_PARAMS_FLAGS_NO_LOOPBACK);
SIZE(ucx_ep_params, ucp_ep_params_t);
AT(ucx_ep_params, ucp_ep_params_t, address);
AT(ucx_ep_params, ucp_ep_params_t, err_mode);
AT(ucx_ep_params, ucp_ep_params_t, err_handler);
AT(ucx_ep_params, ucp_ep_params_t, flags);

NUMBER(EP_ATTR_FIELD_TRANSPORTS);
SAME(sizeof(struct ucx_transport_entry) == sizeof(ucp_transport_entry_t));
SIZE(ucx_ep_attr, ucp_ep_attr_t);
AT(ucx_ep_attr, ucp_ep_attr_t, transports);
AT(ucx_ep_attr, ucp_ep_attr_t, transports.entries);
AT(ucx_ep_attr, ucp_ep_attr_t, transports.num_entries);
AT(ucx_ep_attr, ucp_ep_attr_t, transports.entry_size);

NUMBER(MEM_MAP_PARAM_FIELD_ADDRESS);
NUMBER(MEM_MAP_PARAM_FIELD_LENGTH);
NUMBER(MEM_MAP_PARAM_FIELD_PROT);
NUMBER(MEM_MAP_PARAM_FIELD_MEMORY_TYPE);
NUMBER(MEM_MAP_PROT_LOCAL_READ);
NUMBER(MEM_MAP_PROT_LOCAL_WRITE);
NUMBER(MEM_MAP_PROT_REMOTE_WRITE);
EQUAL(UCX_MEMORY_TYPE_HOST, UCS_MEMORY_TYPE_HOST);
EQUAL(UCX_MEMORY_TYPE_CUDA, UCS_MEMORY_TYPE_CUDA);
SIZE(ucx_mem_map_params, ucp_mem_map_params_t);
AT(ucx_mem_map_params, ucp_mem_map_params_t, address);
AT(ucx_mem_map_params, ucp_mem_map_params_t, length);
AT(ucx_mem_map_params, ucp_mem_map_params_t, prot);
AT(ucx_mem_map_params, ucp_mem_map_params_t, memory_type);

NUMBER(OP_ATTR_FIELD_CALLBACK);
NUMBER(OP_ATTR_FIELD_USER_DATA);
NUMBER(OP_ATTR_FIELD_FLAGS);
NUMBER(OP_ATTR_FIELD_MEMORY_TYPE);
NUMBER(OP_ATTR_FIELD_MEMH);
NUMBER(AM_SEND_FLAG_EAGER);
NUMBER(EP_CLOSE_FLAG_FORCE);
SIZE(ucx_request_param, ucp_request_param_t);
AT(ucx_request_param, ucp_request_param_t, flags);
AT(ucx_request_param, ucp_request_param_t, cb);
AT(ucx_request_param, ucp_request_param_t, user_data);
AT(ucx_request_param, ucp_request_param_t, memory_type);
AT(ucx_request_param, ucp_request_param_t, memh);

SIZE(ucx_am_recv_param, ucp_am_recv_param_t);
AT(ucx_am_recv_param, ucp_am_recv_param_t, recv_attr);
AT(ucx_am_recv_param, ucp_am_recv_param_t, reply_ep);
NUMBER(AM_RECV_ATTR_FLAG_RNDV);
NUMBER(AM_HANDLER_PARAM_FIELD_ID);
NUMBER(AM_HANDLER_PARAM_FIELD_FLAGS);
NUMBER(AM_HANDLER_PARAM_FIELD_CB);
NUMBER(AM_HANDLER_PARAM_FIELD_ARG);
NUMBER(AM_FLAG_WHOLE_MSG);
SIZE(ucx_am_handler_param, ucp_am_handler_param_t);
AT(ucx_am_handler_param, ucp_am_handler_param_t, id);
AT(ucx_am_handler_param, ucp_am_handler_param_t, flags);
AT(ucx_am_handler_param, ucp_am_handler_param_t, cb);
AT(ucx_am_handler_param, ucp_am_handler_param_t, arg);
