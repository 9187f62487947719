#include "kernels/cuda/cuda_marks.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"

struct cuda_marks {
    const struct cuda_driver *driver;
    pthread_mutex_t lock; /* guards all below */
    bool has_lock;
    struct cuda_event *events[CUDA_MARKS];
    uint64_t last; /* ticket given out; 0: none */
    bool has_failed;
};

status_t cuda_marks_create(const struct cuda_driver *driver, struct cuda_marks **ret_marks, struct diag *diag)
{
    struct cuda_marks *marks = calloc(1, sizeof(*marks));
    if (marks == NULL) {
        diag_set(diag, "no memory for the marks of a device");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    marks->driver = driver;
    status_t st = STATUS_OK;
    marks->has_lock = pthread_mutex_init(&marks->lock, NULL) == 0;
    if (!marks->has_lock) {
        diag_set(diag, "no lock for the marks of a device");
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    for (uint32_t i = 0; i < CUDA_MARKS && !failed(st); i++) {
        st = driver->event_create(driver, CUDA_EVENT_ORDER, &marks->events[i], diag);
    }
    if (failed(st)) {
        cuda_marks_destroy(marks);
        return st;
    }
    *ret_marks = marks;
    return STATUS_OK;
}

void cuda_marks_destroy(struct cuda_marks *marks)
{
    if (marks == NULL) { return; }
    for (uint32_t i = 0; i < CUDA_MARKS; i++) { marks->driver->event_destroy(marks->driver, marks->events[i]); }
    if (marks->has_lock) { pthread_mutex_destroy(&marks->lock); }
    free(marks);
}

status_t cuda_marks_record(struct cuda_marks *marks, struct cuda_stream *stream, uint64_t *ret_ticket, struct diag *diag)
{
    pthread_mutex_lock(&marks->lock);
    uint64_t ticket = marks->last + 1;
    status_t st = marks->driver->event_record(marks->driver, marks->events[ticket % CUDA_MARKS], stream, diag);
    marks->last = ticket;
    if (failed(st)) { marks->has_failed = true; }
    pthread_mutex_unlock(&marks->lock);
    *ret_ticket = ticket;
    return st;
}

void cuda_marks_fail(struct cuda_marks *marks)
{
    pthread_mutex_lock(&marks->lock);
    marks->has_failed = true;
    pthread_mutex_unlock(&marks->lock);
}

static status_t failed_before(struct diag *diag)
{
    diag_set(diag, "an operation before the mark was never queued");
    return STATUS(ST_INTERNAL, SCOPE_NODE);
}

status_t cuda_marks_wait_on(struct cuda_marks *marks, uint64_t ticket, struct cuda_stream *stream, struct diag *diag)
{
    if (ticket == 0) { return STATUS_OK; }
    pthread_mutex_lock(&marks->lock);
    CHECK(ticket <= marks->last);
    status_t st = marks->has_failed ? failed_before(diag)
                                    : marks->driver->stream_wait_event(marks->driver, stream, marks->events[ticket % CUDA_MARKS], diag);
    pthread_mutex_unlock(&marks->lock);
    return st;
}

status_t cuda_marks_sync(struct cuda_marks *marks, uint64_t ticket, struct diag *diag)
{
    if (ticket == 0) { return STATUS_OK; }
    pthread_mutex_lock(&marks->lock);
    CHECK(ticket <= marks->last);
    bool has_failed = marks->has_failed;
    pthread_mutex_unlock(&marks->lock);
    if (has_failed) { return failed_before(diag); }
    /* Without the lock: recording, which alone must not happen now, is our own thread's. */
    return marks->driver->event_sync(marks->driver, marks->events[ticket % CUDA_MARKS], diag);
}
