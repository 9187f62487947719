/* kv_memory_inbox: ops that are done, from the memory's threads to the loop of who submitted them.
 * Flow:    kv_memory's done -> [kv_memory_inbox] -> a loop that watches the descriptor
 * Thread:  put from any; the rest from the owner's. A lock and not a ring: there are as many ops as
 *          owners have made, so a bound would be one more number to keep right; it is held for a few
 *          instructions.
 * Memory:  one descriptor; ops are linked by their own `next`. */
#ifndef BATON_KV_KV_MEMORY_INBOX_H
#define BATON_KV_KV_MEMORY_INBOX_H

#include <pthread.h>
#include <stdbool.h>

#include "base/status.h"
#include "kv/kv_memory.h"

struct kv_memory_inbox {
    int fd; /* readable while something is there; -1 before init */
    bool has_lock;
    pthread_mutex_t lock; /* guards the list */
    struct kv_memory_op *first, *last;
};

/* Errors  RESOURCE_EXHAUSTED (node), cause errno; fini is good then too. */
NODISCARD status_t kv_memory_inbox_init(struct kv_memory_inbox *inbox);
void kv_memory_inbox_fini(struct kv_memory_inbox *inbox); /* takes a zeroed one */

/* A kv_memory_op's `done`, whose `user` is the inbox. */
void kv_memory_inbox_put(struct kv_memory_op *op);

/* All that came since, oldest first, linked by next; NULL: nothing. The descriptor is quiet after. */
struct kv_memory_op *kv_memory_inbox_take_all(struct kv_memory_inbox *inbox);

/* Makes the descriptor readable with nothing there: a turn of the loop for its own sake. */
void kv_memory_inbox_poke(struct kv_memory_inbox *inbox);

/* Waits until something is there. For the end of an owner, who waits for his own ops. */
void kv_memory_inbox_wait(struct kv_memory_inbox *inbox);

#endif
