#include "base/mailbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "base/clock.h"

struct mailbox {
    pthread_mutex_t mutex; /* guards everything below */
    pthread_cond_t filled;
    pthread_cond_t drained;
    uint32_t capacity, first, count, blocked_posters;
    size_t message_bytes;
    unsigned char ring[];
};

status_t mailbox_create(uint32_t capacity, size_t message_bytes, struct mailbox **ret_mailbox)
{
    CHECK(capacity > 0);
    CHECK(message_bytes > 0);
    struct mailbox *mailbox = calloc(1, sizeof *mailbox + (size_t)capacity * message_bytes);
    if (!mailbox) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&mailbox->mutex, NULL);
    pthread_cond_init(&mailbox->filled, &attr);
    pthread_cond_init(&mailbox->drained, &attr);
    pthread_condattr_destroy(&attr);
    mailbox->capacity = capacity;
    mailbox->message_bytes = message_bytes;
    *ret_mailbox = mailbox;
    return STATUS_OK;
}

void mailbox_destroy(struct mailbox *mailbox)
{
    if (!mailbox) { return; }
    pthread_cond_destroy(&mailbox->filled);
    pthread_cond_destroy(&mailbox->drained);
    pthread_mutex_destroy(&mailbox->mutex);
    free(mailbox);
}

static void put(struct mailbox *mailbox, const void *message)
{
    uint32_t slot = (mailbox->first + mailbox->count) % mailbox->capacity;
    memcpy(mailbox->ring + (size_t)slot * mailbox->message_bytes, message, mailbox->message_bytes);
    mailbox->count++;
    if (mailbox->count == 1) { pthread_cond_signal(&mailbox->filled); }
}

status_t mailbox_post(struct mailbox *mailbox, const void *message)
{
    pthread_mutex_lock(&mailbox->mutex);
    bool full = mailbox->count == mailbox->capacity;
    if (!full) { put(mailbox, message); }
    pthread_mutex_unlock(&mailbox->mutex);
    return full ? STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST) : STATUS_OK;
}

void mailbox_post_wait(struct mailbox *mailbox, const void *message)
{
    pthread_mutex_lock(&mailbox->mutex);
    while (mailbox->count == mailbox->capacity) {
        mailbox->blocked_posters++;
        pthread_cond_wait(&mailbox->drained, &mailbox->mutex);
        mailbox->blocked_posters--;
    }
    put(mailbox, message);
    pthread_mutex_unlock(&mailbox->mutex);
}

bool mailbox_take(struct mailbox *mailbox, void *ret_message)
{
    pthread_mutex_lock(&mailbox->mutex);
    bool some = mailbox->count > 0;
    if (some) {
        memcpy(ret_message, mailbox->ring + (size_t)mailbox->first * mailbox->message_bytes, mailbox->message_bytes);
        mailbox->first = (mailbox->first + 1) % mailbox->capacity;
        mailbox->count--;
        if (mailbox->blocked_posters > 0) { pthread_cond_signal(&mailbox->drained); }
    }
    pthread_mutex_unlock(&mailbox->mutex);
    return some;
}

bool mailbox_wait(struct mailbox *mailbox, uint64_t deadline_ns)
{
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / NS_PER_S), .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    pthread_mutex_lock(&mailbox->mutex);
    while (mailbox->count == 0) {
        if (deadline_ns == UINT64_MAX) {
            pthread_cond_wait(&mailbox->filled, &mailbox->mutex);
        } else if (pthread_cond_timedwait(&mailbox->filled, &mailbox->mutex, &until) == ETIMEDOUT) {
            break;
        }
    }
    bool some = mailbox->count > 0;
    pthread_mutex_unlock(&mailbox->mutex);
    return some;
}
