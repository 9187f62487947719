/* nccl_pair: one NCCL communicator between P's device and D's, its staging slots, and the thread that owns both.
 * Flow:    cable_nccl -> nccl_pair_transfer() -> [nccl_pair] -> nccl_api, on a queue of kv_memory; back by facts
 * Thread:  one of its own, the only one that is ever inside the communicator: NCCL allows no more, and whatever blocks
 *          there (a device that is busy, an abort that does not return) blocks this pair and no other.
 * Memory:  slots and a queue on the device from create on, and what the communicator takes, which is measured; no
 *          heap after create.
 *
 * The life of a pair:
 *     create -> ID (rank 0 only) -> UP -> transfers ... -> nccl_pair_end() -> ENDED -> destroy
 * with BROKEN once at any point, by which a pair only says that it is of no more use: its owner ends it. UP comes when
 * the communicator is made and its first bytes have passed: NCCL connects two ranks with the first transfer, and takes
 * its buffers then, so the pair makes one of its own, and all that is slow is behind it.
 *
 * Transfers. Both sides call nccl_pair_transfer() for the same bytes in the same order. On the device a transfer
 * occupies some SMs from the moment it is queued until the other side's has come, so the receiver calls first and says
 * so, and the sender calls when he has heard it. PASSED: the receiver's slot is filled; the sender's may be filled
 * anew. PASSED never comes for a transfer that an abort cut short.
 *
 * Nothing is waited for without a limit, but NCCL has no limits of its own: what is late makes BROKEN, and what NCCL
 * does not give back is left to it (nccl_pair_is_stuck). Slots of a stuck pair are never freed: the device may still
 * write them.
 *
 * Leaks. The abort of a communicator that is made frees all of it. Of one that was given up while it was being made NCCL
 * (2.19 to 2.30, commReclaim in init.cc) keeps its struct, up to two sockets, two streams, two events and pinned host
 * memory until the process ends, unless its ranks had met; which is not to be seen from outside, so each is counted
 * as one. So is an id whose listener, a thread and a socket, could not be ended (nccl_root.h). Whoever makes pairs
 * with peers that do not come has to make them ever more seldom. */
#ifndef BATON_TRANSFER_NCCL_PAIR_H
#define BATON_TRANSFER_NCCL_PAIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "transfer/nccl_abi.h"

struct kv_memory;
struct nccl_api;
struct nccl_pair; /* private to nccl_pair.c */

#define NCCL_SLOTS_MAX 8u
#define NCCL_SLOT_BYTES_MIN 256u                  /* the first bytes go through a slot */
#define NCCL_WATCH_NS UINT64_C(50000000)          /* how often a pair looks after itself while something is under way */
#define NCCL_WATCH_IDLE_NS UINT64_C(250000000)    /* and while nothing is */
#define NCCL_ABORT_NS UINT64_C(5000000000)        /* a call of NCCL that takes longer will not return */

enum { NCCL_RANK_P = 0, NCCL_RANK_D = 1 };        /* P sends, D receives */

enum nccl_pair_fact_kind {
    NCCL_PAIR_ID,     /* rank 0: the id by which rank 1 finds it; before all others */
    NCCL_PAIR_UP,     /* transfers may be called */
    NCCL_PAIR_PASSED, /* the device is through with the slot's transfer */
    NCCL_PAIR_BROKEN, /* once: no PASSED comes after it */
    NCCL_PAIR_ENDED,  /* the last: nothing of the pair is left but what `leaks` counts */
};

struct nccl_pair_fact {
    enum nccl_pair_fact_kind kind;
    uint32_t slot;                /* PASSED */
    uint8_t id[NCCL_ID_BYTES];    /* ID */
    uint64_t bytes;               /* UP: device memory that the communicator took, by measure, without the slots */
    uint64_t duration_ns;         /* UP: since create; ENDED: since end */
    uint32_t leaks;               /* ENDED: see above */
    status_t status;              /* BROKEN: DEADLINE_EXCEEDED, UNAVAILABLE (both peer) or what the device or NCCL gave */
    char text[256];               /* BROKEN: a sentence */
};

struct nccl_pair_config {
    const struct nccl_api *api;   /* borrowed until destroy; so is memory */
    struct kv_memory *memory;     /* whose device it is; has queues and slots */
    uint32_t rank;                /* NCCL_RANK_P or NCCL_RANK_D */
    uint8_t id[NCCL_ID_BYTES];    /* rank 1: what rank 0's ID said */
    uint32_t channels;            /* 1 to 32: the most SMs that a transfer occupies */
    uint32_t slot_count;          /* 1 to NCCL_SLOTS_MAX */
    size_t slot_bytes;            /* of each; a multiple of 256 */
    uint64_t init_ns;             /* from create to UP, at most */
    uint64_t stall_ns;            /* a transfer that the other side should have joined takes at most so long */
    /* On a thread of the pair's or of the memory's. It must not block and may call nothing of this header but
     * nccl_pair_slot(): it puts the fact where its owner's loop finds it. The fact is borrowed. */
    void (*told)(void *user, const struct nccl_pair_fact *fact);
    void *user;
};

/* Starts the thread; all else comes as facts. Returns owned: end, wait for ENDED, destroy.
 * Errors  RESOURCE_EXHAUSTED (node): no memory or thread.
 * CHECKs  the ranges of config. */
NODISCARD status_t nccl_pair_create(const struct nccl_pair_config *config, struct diag *diag, struct nccl_pair **ret_pair);

/* The device address of a slot. After UP, until nccl_pair_end(). */
uint8_t *nccl_pair_slot(const struct nccl_pair *pair, uint32_t slot);

/* Any thread, after UP; posts. Rank 0 sends the first `bytes` of the slot, rank 1 receives them. The slot is the
 * pair's until PASSED or ENDED: one transfer at a time (CHECK). After BROKEN or end it is not done and never passes. */
void nccl_pair_transfer(struct nccl_pair *pair, uint32_t slot, size_t bytes);

/* Any thread, once (CHECK); posts: aborts the communicator whatever its state, waits for the device to let go of queue
 * and slots, frees them, ends the id's listener where it still waits, ENDED. The same for a pair that is idle: an abort
 * needs no peer. */
void nccl_pair_end(struct nccl_pair *pair);

/* Any thread: the pair's thread has been inside one call of NCCL or of the device for NCCL_ABORT_NS, or the end has
 * lasted so long. Nobody can help such a pair, and it does not help itself: to its owner it is gone, with its
 * memory, unless ENDED comes after all. */
bool nccl_pair_is_stuck(const struct nccl_pair *pair, uint64_t now_ns);

/* After ENDED; joins the thread. Takes NULL. A pair that never ends is never destroyed: it is the process's end that
 * frees it. */
void nccl_pair_destroy(struct nccl_pair *pair);

#endif
