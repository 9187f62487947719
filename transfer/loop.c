#include "transfer/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { BATCH_MAX = 64 };

struct kv_loop {
    int epoll_fd;
    int wake_fd;
    struct epoll_event batch[BATCH_MAX];
    int batch_at, batch_count; /* events of the batch that are still to be run */
};

status_t kv_loop_create(struct kv_loop **ret_loop)
{
    struct kv_loop *loop = calloc(1, sizeof *loop);
    if (!loop) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (loop->epoll_fd < 0 || loop->wake_fd < 0 || epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &event) != 0) {
        status_t st = STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, errno);
        kv_loop_destroy(loop);
        return st;
    }
    *ret_loop = loop;
    return STATUS_OK;
}

void kv_loop_destroy(struct kv_loop *loop)
{
    if (!loop) { return; }
    if (loop->epoll_fd >= 0) { close(loop->epoll_fd); }
    if (loop->wake_fd >= 0) { close(loop->wake_fd); }
    free(loop);
}

status_t kv_loop_watch(struct kv_loop *loop, struct kv_watch *watch, uint32_t events)
{
    if (watch->watched && watch->events == events) { return STATUS_OK; }
    struct epoll_event event = {.events = events, .data.ptr = watch};
    int op = watch->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(loop->epoll_fd, op, watch->fd, &event) != 0) {
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, errno);
    }
    watch->watched = true;
    watch->events = events;
    return STATUS_OK;
}

void kv_loop_remove(struct kv_loop *loop, struct kv_watch *watch)
{
    if (!watch->watched) { return; }
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    watch->watched = false;
    for (int i = loop->batch_at; i < loop->batch_count; i++) {
        if (loop->batch[i].data.ptr == watch) { loop->batch[i].events = 0; }
    }
}

void kv_loop_run_once(struct kv_loop *loop, int timeout_ms)
{
    int count = epoll_wait(loop->epoll_fd, loop->batch, BATCH_MAX, timeout_ms);
    loop->batch_count = count > 0 ? count : 0;
    for (loop->batch_at = 0; loop->batch_at < loop->batch_count;) {
        struct epoll_event event = loop->batch[loop->batch_at++];
        struct kv_watch *watch = event.data.ptr;
        if (!watch) {
            uint64_t wakes;
            ssize_t got = read(loop->wake_fd, &wakes, sizeof wakes);
            (void)got; /* EAGAIN only: somebody else took it */
        } else if (event.events != 0) {
            watch->on_ready(watch, event.events);
        }
    }
    loop->batch_count = loop->batch_at = 0;
}

void kv_loop_wake(struct kv_loop *loop)
{
    uint64_t one = 1;
    ssize_t wrote = write(loop->wake_fd, &one, sizeof one);
    (void)wrote; /* EAGAIN only: the counter is full, so it is awake */
}
