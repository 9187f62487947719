#include "kv/kv_memory_inbox.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

status_t kv_memory_inbox_init(struct kv_memory_inbox *inbox)
{
    *inbox = (struct kv_memory_inbox){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (inbox->fd < 0) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, errno); }
    int error = pthread_mutex_init(&inbox->lock, NULL);
    if (error != 0) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, error); }
    inbox->has_lock = true;
    return STATUS_OK;
}

void kv_memory_inbox_fini(struct kv_memory_inbox *inbox)
{
    if (inbox->has_lock) { pthread_mutex_destroy(&inbox->lock); }
    if (inbox->fd > 0) { close(inbox->fd); } /* 0: zeroed; ours is never 0, which is standard input's */
    *inbox = (struct kv_memory_inbox){.fd = -1};
}

void kv_memory_inbox_poke(struct kv_memory_inbox *inbox)
{
    uint64_t one = 1;
    ssize_t wrote;
    do { wrote = write(inbox->fd, &one, sizeof one); } while (wrote < 0 && errno == EINTR);
}

void kv_memory_inbox_put(struct kv_memory_op *op)
{
    struct kv_memory_inbox *inbox = op->user;
    op->next = NULL;
    pthread_mutex_lock(&inbox->lock);
    *(inbox->first == NULL ? &inbox->first : &inbox->last->next) = op;
    inbox->last = op;
    /* Under the lock: who takes the last op may end the inbox, and with it the descriptor. */
    kv_memory_inbox_poke(inbox);
    pthread_mutex_unlock(&inbox->lock);
}

struct kv_memory_op *kv_memory_inbox_take_all(struct kv_memory_inbox *inbox)
{
    uint64_t count;
    pthread_mutex_lock(&inbox->lock);
    struct kv_memory_op *first = inbox->first;
    inbox->first = inbox->last = NULL;
    ssize_t got = read(inbox->fd, &count, sizeof count);
    (void)got; /* EAGAIN: it was quiet */
    pthread_mutex_unlock(&inbox->lock);
    return first;
}

void kv_memory_inbox_wait(struct kv_memory_inbox *inbox)
{
    struct pollfd fd = {.fd = inbox->fd, .events = POLLIN};
    while (poll(&fd, 1, -1) < 0 && errno == EINTR) {}
}
