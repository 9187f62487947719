/* fake_nccl: NCCL's functions over sockets of this machine, for what a network and a device do not show on demand.
 * Flow:    nccl_pair -> nccl_api's table -> [fake_nccl] -> the stream of a fake or an emulated device
 * Thread:  as NCCL: one at a time inside a communicator, each of which has two threads of its own.
 * Memory:  heap; freed by comm_abort, as device memory is. fake_nccl_end() tells what was not.
 *
 * What it has of NCCL, between two processes or two communicators of one:
 *   Bootstrap. get_unique_id listens with a thread that ends only when all ranks have come, or one that does not fit,
 *     or somebody who is no rank; the id is laid out as NCCL's, and who comes says first what NCCL's say. A rank whose
 *     root has gone wrong waits for ever.
 *   Not blocking. Init, and every group of sends and receives, goes on behind NCCL_IN_PROGRESS. The first transfer
 *     connects, for which both sides must have called, and takes device memory for each channel.
 *   Kernels. A send or receive occupies its stream from its turn there until the peer's matching one runs too: the n-th
 *     send with the n-th receive. Only an abort ends it otherwise. A send's bytes are read, and a receive's written, then.
 *   Errors. That the peer has gone is an async error, or none at all; kernels spin on either way.
 *   Abort. From any state; blocks until kernels have ended, so no longer than they have to wait for their stream.
 * Rules of NCCL that a caller breaks end the process with a word on standard error: two threads inside a communicator, a
 * call on one while it is in progress or after its abort, a second one by a thread whose first is still being made, sizes
 * that differ, memory that is not the device's.
 *
 * Not there: communicators that block, collectives, more than two ranks; what NCCL keeps of one that is aborted while it
 * is being made, which is only counted. */
#ifndef BATON_TESTS_NCCL_FAKE_NCCL_H
#define BATON_TESTS_NCCL_FAKE_NCCL_H

#include <stdbool.h>

#include "transfer/nccl_api.h"

/* The device: fake_nccl_on_memory over tests/kv_memory, fake_nccl_on_emulated over tests/cuda. */
struct fake_nccl_device {
    void *(*bound)(void); /* the calling thread's device; NULL: none */
    bool (*take)(void *device, uint64_t bytes);
    void (*give_back)(void *device, uint64_t bytes);
    /* On a thread of the stream's, in its order; fn may wait as long as it likes. */
    void (*run)(void *device, void *stream, void (*fn)(void *user), void *user);
    /* False: there is no such memory. */
    bool (*peek)(void *device, const void *at, void *ret_bytes, size_t bytes);
    bool (*poke)(void *device, void *at, const void *from, size_t bytes);
};
extern const struct fake_nccl_device fake_nccl_on_memory;
extern const struct fake_nccl_device fake_nccl_on_emulated;

#define FAKE_NCCL_BYTES_INIT (UINT64_C(3) << 20)    /* device memory of a communicator */
#define FAKE_NCCL_BYTES_CHANNEL (UINT64_C(6) << 20) /* of each channel, once connected */

/* All zero: 2.28.9, and nothing goes wrong. A communicator has those that stood when it was made; its sends and receives
 * are counted from 1, of which a pair's first bytes are the first. */
struct fake_nccl_options {
    int version;
    nccl_result_t id_fails;   /* get_unique_id */
    bool init_hangs;          /* it never goes to the root */
    nccl_result_t init_fails; /* after it has come back in progress */
    int ranks;                /* what comm_count says instead of the truth */
    uint64_t error_at;        /* an async error comes with this one, which then spins */
    nccl_result_t error;      /* 0: NCCL_REMOTE_ERROR */
    uint64_t hang_at;         /* this one spins though its peer has come */
    uint64_t call_hangs_at;   /* the call of this one does not return until fake_nccl_let_go() */
    uint32_t abort_ms;        /* an abort begins so late */
    bool abort_hangs;         /* or only with fake_nccl_let_go() */
    bool death_unseen;        /* a peer that is gone makes no error */
};

/* The table, over that device; the options are FAKE_NCCL of the environment, and the same for whoever calls again.
 * FAKE_NCCL  options with commas between them, "hang_at=3,abort_ms=200,death_unseen"; a word that is none ends the process. */
const struct nccl_api *fake_nccl_api(const struct fake_nccl_device *device);

/* Of the communicators and ids that are made from here on. */
void fake_nccl_set(const struct fake_nccl_options *options);
/* Calls and aborts that hang go on, those that are under way and those to come, until the next fake_nccl_set(). */
void fake_nccl_let_go(void);

struct fake_nccl_counts {
    uint32_t comms, roots; /* alive */
    uint32_t kernels;      /* on the streams: waiting for their turn, or spinning */
    uint32_t hanging;      /* calls that wait for fake_nccl_let_go() */
    uint64_t inits, aborts, transfers, looks; /* so far; looks: comm_get_async_error */
    uint64_t given_up; /* so far: aborted before they were made */
};
struct fake_nccl_counts fake_nccl_counts(void);

/* False, with what is left over printed: at the end of a test. */
bool fake_nccl_end(void);

#endif
