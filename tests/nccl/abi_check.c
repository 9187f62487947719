/* Compiled, not run, against NCCL's own header: what transfer/nccl_abi.h declares is what NCCL has. */
#include <nccl.h>

#include "transfer/nccl_abi.h"

#define SAME(condition) _Static_assert(condition, #condition)
#define EQUAL(ours, theirs) _Static_assert((long)(ours) == (long)(theirs), #ours)
#define AT(ours, theirs)                                                              \
    SAME(offsetof(struct nccl_config, ours) == offsetof(ncclConfig_t, theirs));       \
    SAME(sizeof(((struct nccl_config *)0)->ours) == sizeof(((ncclConfig_t *)0)->theirs))

SAME(sizeof(nccl_result_t) == sizeof(ncclResult_t));
EQUAL(NCCL_SUCCESS, ncclSuccess);
EQUAL(NCCL_UNHANDLED_CUDA_ERROR, ncclUnhandledCudaError);
EQUAL(NCCL_SYSTEM_ERROR, ncclSystemError);
EQUAL(NCCL_INTERNAL_ERROR, ncclInternalError);
EQUAL(NCCL_INVALID_ARGUMENT, ncclInvalidArgument);
EQUAL(NCCL_INVALID_USAGE, ncclInvalidUsage);
EQUAL(NCCL_REMOTE_ERROR, ncclRemoteError);
EQUAL(NCCL_IN_PROGRESS, ncclInProgress);

SAME(sizeof(struct nccl_id) == sizeof(ncclUniqueId));
SAME(_Alignof(struct nccl_id) == _Alignof(ncclUniqueId));
EQUAL(NCCL_ID_BYTES, NCCL_UNIQUE_ID_BYTES);
EQUAL(NCCL_UINT8, ncclUint8);
SAME(sizeof(ncclDataType_t) == sizeof(int));

/* A newer struct only grows at its end. */
SAME(sizeof(struct nccl_config) <= sizeof(ncclConfig_t));
AT(size, size);
AT(magic, magic);
AT(version, version);
AT(blocking, blocking);
AT(cga_cluster_size, cgaClusterSize);
AT(min_ctas, minCTAs);
AT(max_ctas, maxCTAs);
AT(net_name, netName);
EQUAL(NCCL_CONFIG_DEFAULT, NCCL_CONFIG_UNDEF_INT);
EQUAL(NCCL_CODE(2, 19, 3), NCCL_VERSION(2, 19, 3));

/* The magic has no name in NCCL's header. */
static const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
int main(void) { return theirs.magic == NCCL_CONFIG_MAGIC && theirs.size == sizeof theirs ? 0 : 1; }

/* Each function takes what the table's does, up to the names of types: as many arguments, each of the same size. */
#define TAKES(ours, theirs, ...) SAME(sizeof(((struct nccl_api *)0)->ours(__VA_ARGS__)) == sizeof(theirs(__VA_ARGS__)))
static const struct nccl_id our_id;
static const ncclUniqueId their_id;
TAKES(get_version, ncclGetVersion, (int *)0);
SAME(sizeof(((struct nccl_api *)0)->get_unique_id((struct nccl_id *)0)) == sizeof(ncclGetUniqueId((ncclUniqueId *)0)));
SAME(sizeof(((struct nccl_api *)0)->comm_init_rank_config((void *)0, 2, our_id, 0, (struct nccl_config *)0)) ==
     sizeof(ncclCommInitRankConfig((ncclComm_t *)0, 2, their_id, 0, (ncclConfig_t *)0)));
SAME(sizeof(((struct nccl_api *)0)->comm_get_async_error((nccl_comm_t)0, (nccl_result_t *)0)) ==
     sizeof(ncclCommGetAsyncError((ncclComm_t)0, (ncclResult_t *)0)));
TAKES(comm_abort, ncclCommAbort, (void *)0);
TAKES(comm_count, ncclCommCount, (void *)0, (int *)0);
TAKES(group_start, ncclGroupStart);
TAKES(group_end, ncclGroupEnd);
TAKES(send, ncclSend, (const void *)0, (size_t)1, 1, 0, (void *)0, (void *)0);
TAKES(recv, ncclRecv, (void *)0, (size_t)1, 1, 0, (void *)0, (void *)0);
TAKES(get_error_string, ncclGetErrorString, 0);
TAKES(get_last_error, ncclGetLastError, (void *)0);
