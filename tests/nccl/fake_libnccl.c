/* fake_libnccl: libraries that call themselves NCCL, for the test of what a node says of one that will not do.
 * FAKE_VERSION  what it calls itself. Unless FAKE_IS_WHOLE it has no functions but those that name it and their errors. */
#include "transfer/nccl_abi.h"

#define FAKE __attribute__((visibility("default")))

FAKE nccl_result_t ncclGetVersion(int *ret_version);
FAKE nccl_result_t ncclGetVersion(int *ret_version)
{
#ifdef FAKE_FAILS
    (void)ret_version;
    return NCCL_INTERNAL_ERROR;
#else
    *ret_version = FAKE_VERSION;
    return NCCL_SUCCESS;
#endif
}
FAKE const char *ncclGetErrorString(nccl_result_t result);
FAKE const char *ncclGetErrorString(nccl_result_t result) { return result == NCCL_INTERNAL_ERROR ? "internal error" : "?"; }
FAKE const char *ncclGetLastError(nccl_comm_t comm);
FAKE const char *ncclGetLastError(nccl_comm_t comm)
{
    (void)comm;
    return "a \"line\"\nof a log";
}

#ifdef FAKE_IS_WHOLE
/* Found, never called. */
#define NEVER(name)                                     \
    FAKE nccl_result_t name(void);                      \
    FAKE nccl_result_t name(void) { return NCCL_INTERNAL_ERROR; }
NEVER(ncclGetUniqueId)
NEVER(ncclCommInitRankConfig)
NEVER(ncclCommGetAsyncError)
NEVER(ncclCommAbort)
NEVER(ncclCommCount)
NEVER(ncclGroupStart)
NEVER(ncclGroupEnd)
NEVER(ncclSend)
NEVER(ncclRecv)
#endif
