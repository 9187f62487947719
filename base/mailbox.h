/* mailbox: a bounded ring of small fixed-size messages from any thread to one.
 * Flow:    rpc threads, engine, transfer -> [mailbox] -> core thread
 * Thread:  post from any; take and wait from the owner only.
 * Memory:  one allocation at create.
 *
 * A mutex, not a lock-free ring: a message is tens of bytes and a post is followed by a
 * wake-up anyway, which costs ten times the lock. The one who posts decides what a full
 * ring means. */
#ifndef BATON_BASE_MAILBOX_H
#define BATON_BASE_MAILBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct mailbox;

NODISCARD status_t mailbox_create(uint32_t capacity, size_t message_bytes, struct mailbox **ret_mailbox);
void mailbox_destroy(struct mailbox *mailbox); /* takes NULL */

/* Copies message_bytes. RESOURCE_EXHAUSTED (request): the ring is full, nothing was posted. */
NODISCARD status_t mailbox_post(struct mailbox *mailbox, const void *message);

/* As mailbox_post, but waits for room: for facts that must not be lost (a step's result, a
 * stream's end). The owner must not call it. */
void mailbox_post_wait(struct mailbox *mailbox, const void *message);

/* False: empty. */
bool mailbox_take(struct mailbox *mailbox, void *ret_message);

/* Sleeps until something is there or the monotonic clock passes deadline_ns (UINT64_MAX:
 * for ever). True: something is there. */
bool mailbox_wait(struct mailbox *mailbox, uint64_t deadline_ns);

#endif
