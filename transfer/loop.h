/* loop: the epoll loop of the transfer thread.
 * Flow:    sockets, eventfd -> [loop] -> callbacks of endpoint and cables
 * Thread:  one; only loop_wake may be called from others.
 * Memory:  watches belong to their owners and are unlinked by loop_remove; one that is
 *          removed inside a batch of events is skipped by it. */
#ifndef BATON_TRANSFER_LOOP_H
#define BATON_TRANSFER_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct kv_loop;

/* Embed one per file descriptor; zeroed means not watched. */
struct kv_watch {
    void (*on_ready)(struct kv_watch *watch, uint32_t epoll_events);
    int fd;
    uint32_t events; /* EPOLLIN and so on, level-triggered; 0: hangups and errors only */
    bool watched;
};

NODISCARD status_t kv_loop_create(struct kv_loop **ret_loop);
void kv_loop_destroy(struct kv_loop *loop);

/* Starts or changes what is watched. Errors: RESOURCE_EXHAUSTED, cause errno. */
NODISCARD status_t kv_loop_watch(struct kv_loop *loop, struct kv_watch *watch, uint32_t events);
/* Before the fd is closed. After it returns the callback is not called; the memory may go. */
void kv_loop_remove(struct kv_loop *loop, struct kv_watch *watch);

/* Waits up to timeout_ms for events or a wake and runs the callbacks. */
void kv_loop_run_once(struct kv_loop *loop, int timeout_ms);
/* From any thread: the current or next run_once returns soon. */
void kv_loop_wake(struct kv_loop *loop);

#endif
