/* nccl_abi: the part of NCCL's binary interface that the nccl cable calls, declared by us.
 *
 * Why not NCCL's header: Baton builds where NCCL is not installed, and nccl.h wants the CUDA runtime's headers.
 * NCCL keeps this interface stable for the whole of version 2: a communicator's configuration says of itself how long
 * it is and which version it was written for, and a newer library fills in the rest. Ours is that of 2.17, the first
 * with max_ctas, which every later one reads alike. tests/nccl/abi_check.c compares each size, offset and number with
 * the real header where that is found.
 *
 * Names are NCCL's in our spelling, so that both can be included side by side. Handles are void pointers, as they
 * cross into a library that we only know by symbols.
 * Source:  NCCL 2.28.9, nccl.h; parseCommConfig in init.cc of 2.19.3 to 2.28.9 */
#ifndef BATON_TRANSFER_NCCL_ABI_H
#define BATON_TRANSFER_NCCL_ABI_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

/* An enum of the size of an int in NCCL's header. */
typedef int32_t nccl_result_t;
enum {
    NCCL_SUCCESS = 0,
    NCCL_UNHANDLED_CUDA_ERROR = 1,
    NCCL_SYSTEM_ERROR = 2,
    NCCL_INTERNAL_ERROR = 3,
    NCCL_INVALID_ARGUMENT = 4,
    NCCL_INVALID_USAGE = 5,
    NCCL_REMOTE_ERROR = 6,
    NCCL_IN_PROGRESS = 7,
};

typedef void *nccl_comm_t;

#define NCCL_ID_BYTES 128u
struct nccl_id { char internal[NCCL_ID_BYTES]; }; /* passed by value */

enum { NCCL_UINT8 = 1 }; /* of the data types: KV blocks are bytes to it */

/* 22809 is 2.28.9; that form holds from 2.9 on. */
#define NCCL_CODE(major, minor, patch) ((major) * 10000 + (minor) * 100 + (patch))

#define NCCL_CONFIG_MAGIC 0xcafebeefu
#define NCCL_CONFIG_VERSION NCCL_CODE(2, 17, 0)
#define NCCL_CONFIG_DEFAULT INT_MIN /* of a number that the library is to choose */
struct nccl_config {
    size_t size;
    uint32_t magic;
    uint32_t version;
    int blocking;
    int cga_cluster_size;
    int min_ctas;
    int max_ctas;
    const char *net_name; /* NULL: the library chooses */
};

/* The functions, each named as in NCCL's header but for the case: ncclCommAbort. */
struct nccl_api {
    nccl_result_t (*get_version)(int *ret_version);
    /* Listens on a port of this process, with a thread, until all ranks of the communicator have come; what
     * ends it when they never do is nccl_root's. Needs no device. */
    nccl_result_t (*get_unique_id)(struct nccl_id *ret_id);
    /* On the calling thread's device. *ret_comm may be set though it failed; then comm_abort frees it. */
    nccl_result_t (*comm_init_rank_config)(nccl_comm_t *ret_comm, int ranks, struct nccl_id id, int rank,
                                           struct nccl_config *config);
    nccl_result_t (*comm_get_async_error)(nccl_comm_t comm, nccl_result_t *ret_error);
    /* Stops what is queued, whatever state the communicator is in, and frees it; blocks meanwhile. Of one that is not
     * made yet NCCL keeps a part: nccl_pair.h. */
    nccl_result_t (*comm_abort)(nccl_comm_t comm);
    nccl_result_t (*comm_count)(nccl_comm_t comm, int *ret_ranks);
    /* What the calling thread queues in between is one operation: needed to send to oneself. */
    nccl_result_t (*group_start)(void);
    nccl_result_t (*group_end)(void);
    /* Queued on `stream`, a CUstream; on the device it then waits for the peer's call of the same place in the order,
     * which must have the same count. */
    nccl_result_t (*send)(const void *device, size_t count, int type, int peer, nccl_comm_t comm, void *stream);
    nccl_result_t (*recv)(void *device, size_t count, int type, int peer, nccl_comm_t comm, void *stream);
    const char *(*get_error_string)(nccl_result_t result);
    const char *(*get_last_error)(nccl_comm_t comm); /* takes NULL */
};

#endif
