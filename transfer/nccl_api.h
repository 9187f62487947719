/* nccl_api: NCCL as a table of functions, found in a library at run time.
 * Flow:    cable_nccl's open -> [nccl_api] -> the table -> nccl_pair; a test hands the cable a table of its own
 * Thread:  nccl_api_load on the thread that creates the endpoint, before others start: it sets environment
 *          variables, which NCCL reads once. The table's functions: one thread at a time inside one communicator.
 * Memory:  one table for the life of the process. The library is never unloaded: it leaves threads behind.
 *
 * Run time, and not link time, so that the binaries need no NCCL: the library alone is 200 MB, and most nodes of
 * one machine have shm.
 *
 * A communicator that does not block: a call that answers NCCL_IN_PROGRESS goes on inside the library, and the next
 * call on that communicator, but for comm_get_async_error and comm_abort, has to wait until comm_get_async_error
 * says something else. With blocking 0 every call that sends or receives answers so as a rule. */
#ifndef BATON_TRANSFER_NCCL_API_H
#define BATON_TRANSFER_NCCL_API_H

#include "base/diag.h"
#include "base/status.h"
#include "transfer/nccl_abi.h"

/* 2.19: the first with all of: configuration by struct, an abort that ends the making of a communicator that does not
 * block (what it leaves behind: nccl_pair.h), and errors of the proxy thread in comm_get_async_error. Older ones are
 * found in old images. */
#define NCCL_VERSION_MIN NCCL_CODE(2, 19, 0)

/* Loads `library` (NULL or "": libnccl.so.2 where the loader looks) and fills the table, once for the process; a
 * second call gives the same table. A program that links another definition has that one: this one is weak.
 * Errors: UNAVAILABLE (node): the library, or one of its functions, is not there; FAILED_PRECONDITION (node): it is
 * too old, or the environment says what nccl_api_check_environment() refuses. The text says what to do. */
NODISCARD status_t nccl_api_load(const char *library, struct diag *diag, const struct nccl_api **ret_api);

/* Refuses what the operator may have set for another program of his, and what would take the ground from under a pair:
 * NCCL_COMM_BLOCKING but 0, which wins over a communicator's own configuration: its making would block in the call, out
 * of reach of any limit; and NCCL_COMM_ID, which gives all ids one address, at which only one can listen.
 * Errors: FAILED_PRECONDITION (node). The text names it and says what to do. */
NODISCARD status_t nccl_api_check_environment(struct diag *diag);

/* Whether this library's version will do; api is one that was filled in. ret_version  22809 for 2.28.9; may be NULL. */
NODISCARD status_t nccl_api_check_version(const struct nccl_api *api, int *ret_version, struct diag *diag);

/* Everything at its default, and such that calls do not block. */
struct nccl_config nccl_config_make(uint32_t channels);

/* A result that is neither success nor in progress, as ours, with NCCL's own words in diag: "ncclSend: remote
 * process exited or there was a network error (6): ...". UNAVAILABLE (peer) for what a peer or a network can cause,
 * else INTERNAL (peer): a pair is broken, the node is not. cause = the result.
 * call  the function as NCCL names it. comm  may be NULL. */
NODISCARD status_t nccl_api_status(const struct nccl_api *api, nccl_comm_t comm, const char *call, nccl_result_t result,
                                   struct diag *diag);

#endif
