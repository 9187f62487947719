/* What is queued on the emulated device is late, and ordered only where somebody asks for it. */
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "tests/unit/kernels_cuda/emulated_testing.h"

/* ---- lateness ------------------------------------------------------------------------- */

static bool reads_without_sync(struct bench *t)
{
    OK(t->d->fill(t->d, t->device, 1, 4, t->a, &diag));
    OK(to_host(t, t->pinned, t->device, 4, t->a, &diag));
    return t->pinned[0] == 0x01010101u;
}
static bool overwrites_too_soon(struct bench *t)
{
    t->pinned[0] = 5;
    OK(to_device(t, t->device, t->pinned, 4, t->a, &diag));
    t->pinned[0] = 6;
    OK(t->d->stream_sync(t->d, t->a, &diag));
    return word(t, t->device, 0) == 5;
}
static bool writes_too_late(struct bench *t)
{
    OK(to_device(t, t->device, t->pinned, 4, t->a, &diag));
    t->pinned[0] = 6;
    OK(t->d->stream_sync(t->d, t->a, &diag));
    return word(t, t->device, 0) == 6;
}
static bool forgets_the_event(struct bench *t)
{
    OK(t->d->fill(t->d, t->device, 3, 4, t->a, &diag));
    OK(on_device(t, t->other, t->device, 4, t->b, &diag));
    OK(t->d->stream_sync(t->d, t->b, &diag));
    return word(t, t->other, 0) == 0x03030303u;
}
static bool waits_for_another_record(struct bench *t)
{
    struct cuda_event *event;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t->d->event_record(t->d, event, t->a, &diag)); /* before the fill, not after */
    OK(t->d->fill(t->d, t->device, 3, 4, t->a, &diag));
    OK(t->d->stream_wait_event(t->d, t->b, event, &diag));
    OK(on_device(t, t->other, t->device, 4, t->b, &diag));
    OK(t->d->stream_sync(t->d, t->b, &diag));
    t->d->event_destroy(t->d, event);
    return word(t, t->other, 0) == 0x03030303u;
}
static bool overlapping_batch(struct bench *t)
{
    t->pinned[0] = 1;
    t->pinned[1] = 2;
    struct cuda_copy copies[2] = {{t->device, t->pinned, 4}, {t->device, t->pinned + 1, 4}};
    OK(t->d->copy_batch(t->d, CUDA_COPY_TO_DEVICE, copies, 2, t->a, &diag));
    OK(t->d->stream_sync(t->d, t->a, &diag));
    return word(t, t->device, 0) == 2;
}

static void missing_order_shows(void **state)
{
    (void)state;
    shows(reads_without_sync);
    shows(overwrites_too_soon);
    shows(writes_too_late);
    shows(forgets_the_event);
    shows(waits_for_another_record);
    shows(overlapping_batch);
}

static bool one_stream_is_in_order(struct bench *t)
{
    for (uint32_t i = 0; i < 20; i++) { OK(t->d->fill(t->d, t->device, (uint8_t)i, 4, t->a, &diag)); }
    OK(to_host(t, t->pinned, t->device, 4, t->a, &diag));
    OK(t->d->stream_sync(t->d, t->a, &diag));
    return t->pinned[0] == 0x13131313u;
}
static bool an_event_orders(struct bench *t)
{
    struct cuda_event *event;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t->d->fill(t->d, t->device, 3, 4, t->a, &diag));
    OK(t->d->event_record(t->d, event, t->a, &diag));
    OK(t->d->stream_wait_event(t->d, t->b, event, &diag));
    OK(t->d->event_record(t->d, event, t->b, &diag)); /* the wait before is for the record on a */
    t->d->event_destroy(t->d, event);                 /* and outlives the event */
    OK(on_device(t, t->other, t->device, 4, t->b, &diag));
    OK(t->d->stream_sync(t->d, t->b, &diag));
    return word(t, t->other, 0) == 0x03030303u;
}
static bool event_sync_waits(struct bench *t)
{
    struct cuda_event *event;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t->d->event_sync(t->d, event, &diag)); /* never recorded: at once */
    OK(t->d->fill(t->d, t->device, 3, 4, t->a, &diag));
    OK(t->d->event_record(t->d, event, t->a, &diag));
    OK(t->d->event_sync(t->d, event, &diag));
    const bool right = word(t, t->device, 0) == 0x03030303u;
    t->d->event_destroy(t->d, event);
    return right;
}
static bool pageable_bytes_are_taken_at_once(struct bench *t)
{
    uint32_t heap[2] = {11, 12};
    OK(t->d->copy_from_pageable(t->d, t->device, heap, 8, t->a, &diag));
    heap[0] = heap[1] = 0;
    OK(t->d->stream_sync(t->d, t->a, &diag));
    return word(t, t->device, 0) == 11 && word(t, t->device, 1) == 12;
}
static bool pitches_are_kept(struct bench *t)
{
    for (uint32_t i = 0; i < 12; i++) { t->pinned[i] = i; }
    OK(t->d->copy_2d(t->d, &(struct cuda_copy_2d){CUDA_COPY_TO_DEVICE, t->device, 20, t->pinned, 16, 8, 3}, t->a, &diag));
    OK(t->d->stream_sync(t->d, t->a, &diag));
    return word(t, t->device, 0) == 0 && word(t, t->device, 1) == 1 && word(t, t->device, 2) == 0xffffffffu &&
           word(t, t->device, 5) == 4 && word(t, t->device, 6) == 5 && word(t, t->device, 7) == 0xffffffffu &&
           word(t, t->device, 10) == 8 && word(t, t->device, 11) == 9 && word(t, t->device, 12) == 0xffffffffu;
}
static bool timing_is_not_negative(struct bench *t)
{
    struct cuda_event *first, *last;
    float ms = -1;
    OK(t->d->event_create(t->d, CUDA_EVENT_TIMING, &first, &diag));
    OK(t->d->event_create(t->d, CUDA_EVENT_TIMING, &last, &diag));
    OK(t->d->event_record(t->d, first, t->a, &diag));
    OK(t->d->event_record(t->d, last, t->a, &diag));
    OK(t->d->event_sync(t->d, last, &diag));
    OK(t->d->event_elapsed(t->d, first, last, &ms, &diag));
    t->d->event_destroy(t->d, first);
    t->d->event_destroy(t->d, last);
    return ms >= 0;
}

static void order_that_is_asked_for_holds(void **state)
{
    (void)state;
    holds(one_stream_is_in_order);
    holds(an_event_orders);
    holds(event_sync_waits);
    holds(pageable_bytes_are_taken_at_once);
    holds(pitches_are_kept);
    holds(timing_is_not_negative);
}

/* ---- callbacks ------------------------------------------------------------------------ */

static bool a_callback_comes_by_itself(struct bench *t)
{
    struct note note = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    OK(t->d->fill(t->d, t->device, 3, 4, t->a, &diag));
    OK(to_host(t, t->pinned, t->device, 4, t->a, &diag));
    OK(t->d->stream_callback(t->d, t->a, note_done, &note, &diag));
    wait_for_note(&note, 1); /* nobody syncs */
    bool right = t->pinned[0] == 0x03030303u && !pthread_equal(note.thread, pthread_self()) && !failed(note.status);
    OK(t->d->stream_callback(t->d, t->a, note_done, &note, &diag));
    OK(t->d->stream_sync(t->d, t->a, &diag)); /* waits for the callback too */
    return right && note.count == 2;
}

static void call_the_driver(void *user, status_t status)
{
    struct bench *t = user;
    (void)status;
    (void)t->d->stream_sync(t->d, t->b, NULL);
}
static void callback_that_calls(struct bench *t)
{
    (void)t->d->stream_callback(t->d, t->a, call_the_driver, t, NULL);
    (void)t->d->stream_sync(t->d, t->a, NULL);
}

static void callbacks(void **state)
{
    struct bench t;
    (void)state;
    open_bench(&t, 1);
    dies(callback_that_calls, &t, SIGABRT);
    close_bench(&t);
    holds(a_callback_comes_by_itself);
}

/* ---- a library's own work ------------------------------------------------------------- */

struct work {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool may_go, has_run;
    struct bench *bench;
    uint32_t seen;
};

/* Reads what the stream had written by then, and writes something else. */
static void do_work(void *user)
{
    struct work *work = user;
    pthread_mutex_lock(&work->lock);
    while (!work->may_go) { pthread_cond_wait(&work->changed, &work->lock); }
    (void)emulated_device_peek(work->bench->d, work->bench->device, &work->seen, 4);
    (void)emulated_device_poke(work->bench->d, work->bench->device, &(uint32_t){77}, 4);
    work->has_run = true;
    pthread_cond_signal(&work->changed);
    pthread_mutex_unlock(&work->lock);
}
static struct work work_of(struct bench *t, bool may_go)
{
    return (struct work){.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .may_go = may_go, .bench = t};
}

static bool a_librarys_work_is_in_order(struct bench *t)
{
    struct work work = work_of(t, true);
    struct note note = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    void *handle = t->d->stream_handle(t->d, t->a);
    OK(t->d->fill(t->d, t->device, 3, 4, t->a, &diag));
    emulated_device_stream_run(t->d, handle, do_work, &work);
    OK(to_host(t, t->pinned, t->device, 4, t->a, &diag));
    OK(t->d->stream_callback(t->d, t->a, note_done, &note, &diag));
    wait_for_note(&note, 1); /* nobody syncs: it goes on by itself */
    return work.seen == 0x03030303u && t->pinned[0] == 77;
}
static void wait_for_work(struct work *work)
{
    pthread_mutex_lock(&work->lock);
    while (!work->has_run) { pthread_cond_wait(&work->changed, &work->lock); }
    pthread_mutex_unlock(&work->lock);
}
static bool a_librarys_work_needs_nobody_who_waits(struct bench *t)
{
    struct work work = work_of(t, true);
    OK(t->d->fill(t->d, t->device, 3, 4, t->a, &diag));
    emulated_device_stream_run(t->d, t->d->stream_handle(t->d, t->a), do_work, &work);
    wait_for_work(&work); /* a peer in another process may be waiting for it */
    return work.seen == 0x03030303u;
}
static bool a_librarys_work_holds_up_its_own_stream_alone(struct bench *t)
{
    struct work work = work_of(t, false);
    struct note mine = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER}, other = mine;
    emulated_device_stream_run(t->d, t->d->stream_handle(t->d, t->a), do_work, &work);
    OK(t->d->stream_callback(t->d, t->a, note_done, &mine, &diag));
    OK(t->d->fill(t->d, t->other, 4, 4, t->b, &diag));
    OK(t->d->stream_callback(t->d, t->b, note_done, &other, &diag));
    wait_for_note(&other, 1);
    OK(t->d->stream_sync(t->d, t->b, &diag));
    bool right = word(t, t->other, 0) == 0x04040404u;
    pthread_mutex_lock(&work.lock);
    right = right && !work.has_run && mine.count == 0; /* nobody has gone past it */
    work.may_go = true;
    pthread_cond_signal(&work.changed);
    pthread_mutex_unlock(&work.lock);
    OK(t->d->stream_sync(t->d, t->a, &diag));
    return right && work.has_run && mine.count == 1;
}
static bool a_librarys_work_runs_on_a_broken_device(struct bench *t)
{
    struct work work = work_of(t, true);
    emulated_device_break(t->d, 1);
    OK(t->d->fill(t->d, t->device, 3, 4, t->a, &diag));
    emulated_device_stream_run(t->d, t->d->stream_handle(t->d, t->a), do_work, &work);
    bool right = failed(t->d->stream_sync(t->d, t->a, NULL)); /* which a broken device need not wait with */
    wait_for_work(&work);
    return right;
}
static bool a_library_finds_and_takes(struct bench *t)
{
    uint64_t before, after, total;
    OK(t->d->thread_bind(t->d, &diag));
    OK(t->d->memory_left(t->d, &before, &total, &diag));
    bool right = emulated_device_bound() == t->d && emulated_device_take(t->d, 1000) && !emulated_device_take(t->d, before);
    OK(t->d->memory_left(t->d, &after, &total, &diag));
    emulated_device_give_back(t->d, 1000);
    return right && after == before - 1000;
}

static void work_for_no_stream(struct bench *t) { emulated_device_stream_run(t->d, t, do_work, t); }
static void more_given_back_than_taken(struct bench *t) { emulated_device_give_back(t->d, 1 << 30); }

static void a_librarys_own_work(void **state)
{
    struct bench t;
    (void)state;
    open_bench(&t, 1);
    dies(work_for_no_stream, &t, SIGABRT);
    dies(more_given_back_than_taken, &t, SIGABRT);
    close_bench(&t);
    holds(a_library_finds_and_takes);
    holds(a_librarys_work_is_in_order);
    holds(a_librarys_work_needs_nobody_who_waits);
    holds(a_librarys_work_holds_up_its_own_stream_alone);
    holds(a_librarys_work_runs_on_a_broken_device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(missing_order_shows),
        cmocka_unit_test(order_that_is_asked_for_holds),
        cmocka_unit_test(callbacks),
        cmocka_unit_test(a_librarys_own_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
