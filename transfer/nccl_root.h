/* nccl_root: ends the listener behind an id of NCCL's whose ranks did not all come.
 * Flow:    nccl_pair, after its abort -> [nccl_root] -> the thread of NCCL that made the id listens with
 * Thread:  the pair's own; blocks for at most the limit.
 * Memory:  none.
 *
 * ncclGetUniqueId starts a thread that listens until all ranks have come, and NCCL has no call that takes an id back.
 * It does end when somebody comes who knows the id's secret but is of another kind than the one it waits for; then it
 * closes both sockets. A connection that ends after the right kind ends it as well, but leaves its own socket open; and
 * a second communicator on the same id, from a thread whose first one is still being made, breaks NCCL before 2.27,
 * which keeps the work of both in one place of that thread.
 *
 * This is no part of NCCL's interface, so it is done only where the source was read.
 * Source:  ncclBootstrapHandle in bootstrap.h, bootstrapRoot in bootstrap.cc and socketFinalizeAccept in socket.cc, in
 *          each release from 2.19.1 to 2.30.4; from 2.30.7 on a wrong kind is passed over. */
#ifndef BATON_TRANSFER_NCCL_ROOT_H
#define BATON_TRANSFER_NCCL_ROOT_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "transfer/nccl_abi.h"

#define NCCL_ROOT_VERSION_FIRST NCCL_CODE(2, 19, 1)
#define NCCL_ROOT_VERSION_LAST NCCL_CODE(2, 30, 4)

/* How an id begins. Later releases put more behind it. */
struct nccl_root_handle {
    uint64_t magic; /* the secret: a random number */
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address;
};

/* What comes first on a connection to it: the magic, then this, in the byte order of the machine. */
#define NCCL_ROOT_KIND_RANK INT32_C(1)  /* somebody who says which rank he is */
#define NCCL_ROOT_KIND_OTHER INT32_C(0) /* nobody whom a root waits for */

/* True: nobody listens there any more. False: the version is not one of those above, or the listener does not hear,
 * which it does not while a rank that has come says nothing; it may still end later. `version` as of
 * ncclGetVersion. The id must be one of this machine. */
bool nccl_root_retire(int version, const struct nccl_id *id, uint64_t limit_ns);

#endif
