/* The emulated device keeps the promises of its header: each mistake that it is there to find is made here once. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/cuda/rows_args.h"
#include "tests/cuda/device_emulated.h"

#define COUNT 64u
#define SEEDS 64u

struct bench {
    const struct cuda_driver *d;
    struct cuda_stream *a, *b;
    uint32_t *pinned, *device, *other; /* COUNT words each */
};

static void ok(status_t st, const struct diag *diag)
{
    if (failed(st)) { fail_msg("%s: %s", status_code_name(st.code), diag->text); }
}
#define OK(call)                        \
    do {                                \
        struct diag diag = {.text = ""}; \
        ok(call, &diag);                \
    } while (0)

static void open_bench(struct bench *t, uint64_t seed)
{
    t->d = emulated_device_create(&(struct emulated_options){.seed = seed});
    OK(t->d->stream_create(t->d, false, &t->a, &diag));
    OK(t->d->stream_create(t->d, true, &t->b, &diag));
    OK(t->d->host_alloc(t->d, COUNT * 4, (void **)&t->pinned, &diag));
    OK(t->d->mem_alloc(t->d, COUNT * 4, (void **)&t->device, &diag));
    OK(t->d->mem_alloc(t->d, COUNT * 4, (void **)&t->other, &diag));
}

static void close_bench(struct bench *t)
{
    t->d->stream_destroy(t->d, t->a);
    t->d->stream_destroy(t->d, t->b);
    t->d->mem_free(t->d, t->device);
    t->d->mem_free(t->d, t->other);
    t->d->host_free(t->d, t->pinned);
    t->d->close(t->d);
}

static uint32_t word(const struct bench *t, const uint32_t *device, uint32_t at)
{
    uint32_t value;
    assert_true(emulated_device_peek(t->d, device + at, &value, 4));
    return value;
}

static status_t to_device(const struct bench *t, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag)
{
    return t->d->copy(t->d, CUDA_COPY_TO_DEVICE, to, from, bytes, stream, diag);
}
static status_t to_host(const struct bench *t, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag)
{
    return t->d->copy(t->d, CUDA_COPY_TO_HOST, to, from, bytes, stream, diag);
}
static status_t on_device(const struct bench *t, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag)
{
    return t->d->copy(t->d, CUDA_COPY_ON_DEVICE, to, from, bytes, stream, diag);
}

/* A status of this code, with a sentence that holds `words`. */
static void refused(status_t st, uint8_t code, const struct diag *diag, const char *words)
{
    assert_int_equal(st.code, code);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_true(st.cause != 0);
    if (strstr(diag->text, words) == NULL) { fail_msg("'%s' does not say '%s'", diag->text, words); }
}
#define REFUSED(code, words, call)               \
    do {                                         \
        struct diag diag = {.text = ""};          \
        status_t refused_ = (call);              \
        refused(refused_, code, &diag, words);   \
    } while (0)

/* Runs `doing` in a child, which must die by `sig`. */
static void dies(void (*doing)(struct bench *t), struct bench *t, int sig)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        fclose(stderr);
        signal(SIGSEGV, SIG_DFL); /* a sanitizer's own handler would end with another status */
        signal(SIGABRT, SIG_DFL);
        doing(t);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status)) { fail_msg("it lived on (status %d)", status); }
    assert_int_equal(WTERMSIG(status), sig);
}

/* ---- memory ------------------------------------------------------------------------------- */

static void write_device_memory(struct bench *t) { *(volatile uint32_t *)t->device = 1; }
static void read_device_memory(struct bench *t) { (void)*(volatile uint32_t *)t->device; }

/* The host cannot follow a device address, even after an operation has. */
static void host_may_not_touch(void **state)
{
    struct bench t;
    (void)state;
    open_bench(&t, 1);
    dies(write_device_memory, &t, SIGSEGV);
    OK(t.d->fill(t.d, t.device, 0, COUNT * 4, t.a, &diag));
    OK(t.d->stream_sync(t.d, t.a, &diag));
    dies(read_device_memory, &t, SIGSEGV);
    close_bench(&t);
}

/* Device memory is NaN at first; pinned memory is zero. */
static void memory_starts_poisoned(void **state)
{
    struct bench t;
    (void)state;
    open_bench(&t, 1);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_int_equal(word(&t, t.device, i), 0xffffffffu);
        assert_int_equal(t.pinned[i], 0);
    }
    close_bench(&t);
}

/* Each kind of memory is refused where the other belongs, and so is what leaves an allocation. */
static void addresses_are_checked_at_once(void **state)
{
    struct bench t;
    uint32_t heap[COUNT] = {0};
    (void)state;
    open_bench(&t, 1);
    REFUSED(ST_INVALID_ARGUMENT, "device memory", to_device(&t, t.pinned, t.pinned, 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "device memory", to_device(&t, heap, t.pinned, 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "pinned memory", to_device(&t, t.device, heap, 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "pinned memory", to_device(&t, t.device, t.other, 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "pinned memory", to_host(&t, heap, t.device, 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "device memory", to_host(&t, t.pinned, t.pinned, 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "device memory", on_device(&t, t.pinned, t.device, 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "device memory", to_device(&t, t.device + 1, t.pinned, COUNT * 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "pinned memory", to_device(&t, t.device, t.pinned + 1, COUNT * 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "device memory", t.d->fill(t.d, t.device, 0, COUNT * 4 + 1, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "device memory", t.d->fill(t.d, heap, 0, 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "pitch",
            t.d->copy_2d(t.d, &(struct cuda_copy_2d){CUDA_COPY_TO_DEVICE, t.device, 4, t.pinned, 8, 8, 2}, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "pinned memory", /* the last row of two ends one word late */
            t.d->copy_2d(t.d, &(struct cuda_copy_2d){CUDA_COPY_TO_DEVICE, t.device, 8, t.pinned, COUNT * 4 - 4, 8, 2}, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "one is not", t.d->copy_from_pageable(t.d, t.device, t.other, 4, t.a, &diag));
    struct cuda_copy copies[2] = {{t.device, t.pinned, 4}, {heap, t.pinned, 4}};
    REFUSED(ST_INVALID_ARGUMENT, "device memory", t.d->copy_batch(t.d, CUDA_COPY_TO_DEVICE, copies, 2, t.a, &diag));
    assert_int_equal(emulated_device_operations_run(t.d) + emulated_device_operations_left(t.d), 0);
    close_bench(&t);
}

/* Registered memory is pinned until it is unregistered, and must be whole pages of its own. */
static void registered_memory_is_pinned(void **state)
{
    struct bench t;
    void *pages;
    (void)state;
    open_bench(&t, 1);
    assert_int_equal(posix_memalign(&pages, 4096, 8192), 0);
    memset(pages, 7, 8192);
    REFUSED(ST_INVALID_ARGUMENT, "whole pages", t.d->host_register(t.d, (char *)pages + 1, 4096, &diag));
    OK(t.d->host_register(t.d, pages, 8192, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "part of which is pinned", t.d->host_register(t.d, (char *)pages + 4096, 4096, &diag));
    OK(to_device(&t, t.device, pages, COUNT * 4, t.a, &diag));
    t.d->host_unregister(t.d, pages); /* waits */
    assert_int_equal(word(&t, t.device, 0), 0x07070707u);
    REFUSED(ST_INVALID_ARGUMENT, "pinned memory", to_device(&t, t.device, pages, 4, t.a, &diag));
    free(pages);
    close_bench(&t);
}

/* Memory ends where the options say, and comes back when it is freed. */
static void memory_runs_out(void **state)
{
    (void)state;
    const struct cuda_driver *d = emulated_device_create(&(struct emulated_options){.memory_bytes = 65536});
    void *first, *second;
    uint64_t left, total;
    OK(d->mem_alloc(d, 40000, &first, &diag));
    REFUSED(ST_RESOURCE_EXHAUSTED, "of 65536 in use", d->mem_alloc(d, 40000, &second, &diag));
    OK(d->memory_left(d, &left, &total, &diag));
    assert_in_range(left, 20000, 25536);
    assert_int_equal(total, 65536);
    d->mem_free(d, first);
    OK(d->mem_alloc(d, 65536, &second, &diag));
    d->mem_free(d, second);
    d->close(d);
}

static void free_what_is_not(struct bench *t) { t->d->mem_free(t->d, t->device + 1); }
static void close_with_leaks(struct bench *t) { t->d->close(t->d); }
static void free_pinned_as_device(struct bench *t) { t->d->mem_free(t->d, t->pinned); }
static void overrun(struct bench *t) /* of 256 bytes by one, which lies in the guard page */
{
    t->d->mem_free(t->d, t->other);
    (void)t->d->mem_alloc(t->d, 100, (void **)&t->other, NULL);
    struct cuda_gather_rows_args args = {.rows = 1, .row_bytes = 102, .x = t->device, .from = t->device, .out = t->other};
    struct cuda_launch shape;
    uint32_t zero = 0;
    emulated_device_poke(t->d, t->device, &zero, 4);
    cuda_gather_rows_shape(&args, &shape);
    (void)t->d->launch(t->d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args, t->a, NULL);
    (void)t->d->stream_sync(t->d, t->a, NULL);
    t->d->mem_free(t->d, t->other);
}

/* What would corrupt a chip's heap, or leak on it, ends the process. */
static void violations_end_the_process(void **state)
{
    struct bench t;
    (void)state;
    open_bench(&t, 1);
    dies(free_what_is_not, &t, SIGABRT);
    dies(free_pinned_as_device, &t, SIGABRT);
    dies(close_with_leaks, &t, SIGABRT);
    dies(overrun, &t, SIGABRT);
    close_bench(&t);
}

/* ---- lateness ----------------------------------------------------------------------------- */

/* What a mistake reads for a seed: `right` when it was lucky. */
typedef bool (*lucky_fn)(struct bench *t);

/* The mistake shows for some seed, and the same seed gives the same again. */
static void shows(lucky_fn is_lucky)
{
    uint32_t lucky = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        bool found[2];
        for (int again = 0; again < 2; again++) {
            struct bench t;
            open_bench(&t, seed);
            found[again] = is_lucky(&t);
            close_bench(&t);
        }
        assert_int_equal(found[0], found[1]);
        lucky += found[0];
    }
    print_message("lucky for %u of %u seeds\n", lucky, SEEDS);
    assert_true(lucky < SEEDS);
}

/* And what is right is right for every seed. */
static void holds(lucky_fn is_right)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct bench t;
        open_bench(&t, seed);
        if (!is_right(&t)) { fail_msg("wrong for seed %llu", (unsigned long long)seed); }
        close_bench(&t);
    }
}

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
    bool done;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t->d->event_query(t->d, event, &done, &diag));
    bool right = done; /* never recorded */
    OK(t->d->fill(t->d, t->device, 3, 4, t->a, &diag));
    OK(t->d->event_record(t->d, event, t->a, &diag));
    OK(t->d->event_sync(t->d, event, &diag));
    right = right && word(t, t->device, 0) == 0x03030303u;
    OK(t->d->event_query(t->d, event, &done, &diag));
    t->d->event_destroy(t->d, event);
    return right && done;
}
static bool polling_ends(struct bench *t)
{
    struct cuda_event *event;
    bool done = false;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t->d->fill(t->d, t->device, 3, 4, t->b, &diag));
    OK(t->d->event_record(t->d, event, t->b, &diag));
    OK(t->d->stream_wait_event(t->d, t->a, event, &diag));
    OK(t->d->fill(t->d, t->other, 4, 4, t->a, &diag));
    while (!done) { OK(t->d->stream_query(t->d, t->a, &done, &diag)); }
    bool right = word(t, t->other, 0) == 0x04040404u && word(t, t->device, 0) == 0x03030303u;
    OK(t->d->event_record(t->d, event, t->b, &diag));
    for (done = false; !done;) { OK(t->d->event_query(t->d, event, &done, &diag)); }
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
    holds(polling_ends);
    holds(pageable_bytes_are_taken_at_once);
    holds(pitches_are_kept);
    holds(timing_is_not_negative);
}

/* ---- callbacks ---------------------------------------------------------------------------- */

struct note {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    uint32_t count;
    status_t status;
    const struct bench *bench;
    _Atomic uint32_t *seen;
};

static void note_done(void *user, status_t status)
{
    struct note *note = user;
    pthread_mutex_lock(&note->lock);
    note->count++;
    note->thread = pthread_self();
    note->status = status;
    pthread_cond_signal(&note->changed);
    pthread_mutex_unlock(&note->lock);
}

static void wait_for_note(struct note *note, uint32_t count)
{
    pthread_mutex_lock(&note->lock);
    while (note->count < count) { pthread_cond_wait(&note->changed, &note->lock); }
    pthread_mutex_unlock(&note->lock);
}

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

/* ---- kernels ------------------------------------------------------------------------------ */

static status_t gather(const struct bench *t, const void *x, const void *from, void *out, struct cuda_stream *stream, struct diag *diag)
{
    struct cuda_gather_rows_args args = {
        .rows = 2, .row_bytes = 8, .x = x, .x_stride_bytes = 8, .from = from, .out = out, .out_stride_bytes = 8};
    struct cuda_launch shape;
    cuda_gather_rows_shape(&args, &shape);
    return t->d->launch(t->d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args, stream, diag);
}

/* Launches do what the kernel says, late, with the arguments of the call; wrong ones are refused at once. */
static void kernels_run(void **state)
{
    struct bench t;
    (void)state;
    open_bench(&t, 3);
    const uint32_t values[6] = {10, 11, 20, 21, 1, 0}; /* two rows, then the numbers of the rows */
    assert_true(emulated_device_poke(t.d, t.device, values, sizeof values));
    OK(gather(&t, t.device, t.device + 4, t.other, t.a, &diag));
    OK(t.d->stream_sync(t.d, t.a, &diag));
    assert_int_equal(word(&t, t.other, 0), 20);
    assert_int_equal(word(&t, t.other, 3), 11);

    uint32_t heap[COUNT] = {0};
    REFUSED(ST_INVALID_ARGUMENT, "host address", gather(&t, heap, t.device, t.other, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "host address", gather(&t, t.device, t.pinned, t.other, t.a, &diag));
    struct cuda_gather_rows_args args = {.rows = 1, .row_bytes = 8, .x = t.device, .from = t.device, .out = t.other};
    struct cuda_launch shape = {{1, 1, 1}, {32, 1, 1}, 0};
    REFUSED(ST_INVALID_ARGUMENT, "bytes of arguments",
            t.d->launch(t.d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args - 1, t.a, &diag));
    shape.block[0] = 2048;
    REFUSED(ST_INVALID_ARGUMENT, "no launch", t.d->launch(t.d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args, t.a, &diag));
    shape.block[0] = 32;
    shape.shared_bytes = t.d->info.shared_bytes_max + 1;
    REFUSED(ST_INVALID_ARGUMENT, "no launch", t.d->launch(t.d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args, t.a, &diag));
    shape.grid[0] = 0;
    OK(t.d->launch(t.d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args, t.a, &diag));
    uint32_t blocks;
    OK(t.d->occupancy(t.d, CUDA_KERNEL_gather_rows, &(struct cuda_launch){{1, 1, 1}, {256, 1, 1}, 100000}, &blocks, &diag));
    assert_int_equal(blocks, 2);
    close_bench(&t);
}

/* ---- graphs ------------------------------------------------------------------------------- */

static bool graphs_replay_what_was_said(struct bench *t)
{
    struct cuda_graph *graph;
    const uint32_t values[6] = {10, 11, 20, 21, 1, 0};
    emulated_device_poke(t->d, t->device, values, sizeof values);
    uint64_t before = emulated_device_operations_run(t->d);
    OK(t->d->capture_begin(t->d, t->a, &diag));
    OK(to_device(t, t->device, t->pinned, 8, t->a, &diag));
    OK(gather(t, t->device, t->device + 4, t->other, t->a, &diag));
    OK(t->d->capture_end(t->d, t->a, &graph, &diag));
    bool right = emulated_device_operations_run(t->d) == before && emulated_device_operations_left(t->d) == 0;
    for (uint32_t i = 0; i < 3; i++) {
        t->pinned[0] = 100 + i; /* read when the graph runs, from where it lay */
        OK(t->d->graph_launch(t->d, graph, t->a, &diag));
        OK(t->d->stream_sync(t->d, t->a, &diag));
        right = right && word(t, t->other, 2) == 100 + i && word(t, t->other, 0) == 20;
    }
    OK(t->d->graph_launch(t->d, graph, t->a, &diag));
    t->d->graph_destroy(t->d, graph); /* a launch that is queued outlives it */
    OK(t->d->stream_sync(t->d, t->a, &diag));
    return right;
}

/* Two streams of one capture: joined by an event, they are ordered in the replay; without, they are not. */
static bool fork_and_join(struct bench *t, bool with_event_between)
{
    struct cuda_graph *graph;
    struct cuda_event *fork_event, *join_event, *between;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &fork_event, &diag));
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &join_event, &diag));
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &between, &diag));
    OK(t->d->capture_begin(t->d, t->a, &diag));
    OK(t->d->fill(t->d, t->device, 1, 4, t->a, &diag));
    OK(t->d->event_record(t->d, fork_event, t->a, &diag));
    OK(t->d->stream_wait_event(t->d, t->b, fork_event, &diag));
    OK(t->d->fill(t->d, t->device, 2, 4, t->a, &diag));
    OK(t->d->event_record(t->d, between, t->a, &diag));
    if (with_event_between) { OK(t->d->stream_wait_event(t->d, t->b, between, &diag)); }
    OK(on_device(t, t->other, t->device, 4, t->b, &diag));
    OK(t->d->event_record(t->d, join_event, t->b, &diag));
    OK(t->d->stream_wait_event(t->d, t->a, join_event, &diag));
    OK(t->d->capture_end(t->d, t->a, &graph, &diag));
    OK(t->d->graph_launch(t->d, graph, t->b, &diag));
    OK(t->d->stream_sync(t->d, t->b, &diag));
    t->d->graph_destroy(t->d, graph);
    t->d->event_destroy(t->d, fork_event);
    t->d->event_destroy(t->d, join_event);
    t->d->event_destroy(t->d, between);
    return word(t, t->other, 0) == 0x02020202u;
}
static bool forked_streams_with_an_event(struct bench *t) { return fork_and_join(t, true); }
static bool forked_streams_without(struct bench *t) { return fork_and_join(t, false); }

static void graphs(void **state)
{
    (void)state;
    holds(graphs_replay_what_was_said);
    holds(forked_streams_with_an_event);
    shows(forked_streams_without);
}

struct spoil {
    const char *says;
    status_t (*doing)(struct bench *t, struct diag *why);
};

static status_t spoil_sync(struct bench *t, struct diag *why) { return t->d->stream_sync(t->d, t->a, why); }
static status_t spoil_sync_other(struct bench *t, struct diag *why) { return t->d->stream_sync(t->d, t->b, why); }
static status_t spoil_query(struct bench *t, struct diag *why)
{
    bool done;
    return t->d->stream_query(t->d, t->b, &done, why);
}
static status_t spoil_alloc(struct bench *t, struct diag *why)
{
    void *memory;
    return t->d->mem_alloc(t->d, 16, &memory, why);
}
static status_t spoil_host_alloc(struct bench *t, struct diag *why)
{
    void *memory;
    return t->d->host_alloc(t->d, 16, &memory, why);
}
static status_t spoil_pageable(struct bench *t, struct diag *why)
{
    uint32_t heap = 1;
    return t->d->copy_from_pageable(t->d, t->device, &heap, 4, t->a, why);
}
static status_t spoil_batch(struct bench *t, struct diag *why)
{
    struct cuda_copy copy = {t->device, t->pinned, 4};
    return t->d->copy_batch(t->d, CUDA_COPY_TO_DEVICE, &copy, 1, t->a, why);
}
static status_t spoil_callback(struct bench *t, struct diag *why) { return t->d->stream_callback(t->d, t->a, note_done, NULL, why); }
static status_t spoil_outside(struct bench *t, struct diag *why)
{
    struct cuda_event *event;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t->d->event_record(t->d, event, t->b, &diag));
    status_t st = t->d->stream_wait_event(t->d, t->a, event, why);
    t->d->event_destroy(t->d, event);
    return st;
}
static status_t spoil_event_sync(struct bench *t, struct diag *why)
{
    struct cuda_event *event;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t->d->event_record(t->d, event, t->a, &diag));
    status_t st = t->d->event_sync(t->d, event, why);
    t->d->event_destroy(t->d, event);
    return st;
}
static status_t spoil_interprocess(struct bench *t, struct diag *why)
{
    struct cuda_event *event;
    OK(t->d->event_create(t->d, CUDA_EVENT_INTERPROCESS, &event, &diag));
    status_t st = t->d->event_record(t->d, event, t->a, why);
    t->d->event_destroy(t->d, event);
    return st;
}

/* What CUDA refuses in a capture is refused, the capture is lost, and the stream goes on without it. */
static void captures_are_spoiled(void **state)
{
    static const struct spoil spoils[] = {
        {"stream_sync", spoil_sync},         {"stream_sync", spoil_sync_other}, {"stream_query", spoil_query},
        {"mem_alloc", spoil_alloc},          {"host_alloc", spoil_host_alloc},  {"copy_from_pageable", spoil_pageable},
        {"copy_batch", spoil_batch},         {"stream_callback", spoil_callback}, {"outside", spoil_outside},
        {"event_sync", spoil_event_sync},    {"interprocess", spoil_interprocess},
    };
    struct bench t;
    struct cuda_graph *graph = NULL;
    (void)state;
    open_bench(&t, 5);
    for (size_t i = 0; i < sizeof spoils / sizeof spoils[0]; i++) {
        OK(t.d->capture_begin(t.d, t.a, &diag));
        OK(t.d->fill(t.d, t.device, 9, 4, t.a, &diag));
        struct diag why = {.text = ""};
        status_t st = spoils[i].doing(&t, &why);
        if (st.code != ST_FAILED_PRECONDITION) { fail_msg("spoil %zu: %s", i, why.text); }
        REFUSED(ST_FAILED_PRECONDITION, spoils[i].says, t.d->capture_end(t.d, t.a, &graph, &diag));
        assert_null(graph);
    }
    OK(t.d->stream_sync(t.d, t.a, &diag));
    assert_int_equal(word(&t, t.device, 0), 0xffffffffu); /* none of it ran */
    close_bench(&t);
}

/* A stream that a capture took in must come back before its end; and an event of a capture is none outside. */
static void captures_end_whole(void **state)
{
    struct bench t;
    struct cuda_graph *graph = NULL;
    struct cuda_event *event;
    (void)state;
    open_bench(&t, 5);
    OK(t.d->event_create(t.d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t.d->capture_begin(t.d, t.a, &diag));
    OK(t.d->fill(t.d, t.device, 9, 4, t.a, &diag));
    OK(t.d->event_record(t.d, event, t.a, &diag));
    OK(t.d->stream_wait_event(t.d, t.b, event, &diag));
    OK(t.d->fill(t.d, t.other, 9, 4, t.b, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "has not been waited for", t.d->capture_end(t.d, t.a, &graph, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "CAPTURED_EVENT", t.d->stream_wait_event(t.d, t.b, event, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "CAPTURED_EVENT", t.d->event_sync(t.d, event, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "does not capture", t.d->capture_end(t.d, t.a, &graph, &diag));
    OK(t.d->event_record(t.d, event, t.a, &diag)); /* and is one again */
    OK(t.d->event_sync(t.d, event, &diag));
    t.d->event_destroy(t.d, event);
    close_bench(&t);
}

/* ---- failures ----------------------------------------------------------------------------- */

/* The n-th call of a kind fails, that one alone, and it has done nothing. */
static void a_call_fails(void **state)
{
    struct bench t;
    void *memory;
    (void)state;
    open_bench(&t, 1);
    uint64_t before = emulated_device_calls(t.d, EMULATED_COPY);
    emulated_device_fail(t.d, EMULATED_COPY, 2, 1);
    OK(t.d->fill(t.d, t.device, 1, 4, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "as the test wants", t.d->fill(t.d, t.device, 2, 4, t.a, &diag));
    OK(t.d->stream_sync(t.d, t.a, &diag));
    assert_int_equal(word(&t, t.device, 0), 0x01010101u);
    OK(t.d->fill(t.d, t.device, 3, 4, t.a, &diag));
    assert_int_equal(emulated_device_calls(t.d, EMULATED_COPY), before + 3);
    emulated_device_fail(t.d, EMULATED_MEM_ALLOC, 1, 2);
    REFUSED(ST_RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", t.d->mem_alloc(t.d, 16, &memory, &diag));
    assert_string_equal(t.d->error_name(t.d, 700), "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_string_equal(t.d->error_name(t.d, CUDA_CAUSE_CUBLAS + 15), "CUBLAS_STATUS_NOT_SUPPORTED");
    close_bench(&t);
}

/* A capture that fails to end has ended. */
static void capture_end_fails(void **state)
{
    struct bench t;
    struct cuda_graph *graph = NULL;
    (void)state;
    open_bench(&t, 1);
    emulated_device_fail(t.d, EMULATED_GRAPH, 2, 2);
    OK(t.d->capture_begin(t.d, t.a, &diag));
    OK(t.d->fill(t.d, t.device, 1, 4, t.a, &diag));
    REFUSED(ST_RESOURCE_EXHAUSTED, "as the test wants", t.d->capture_end(t.d, t.a, &graph, &diag));
    assert_null(graph);
    OK(t.d->stream_sync(t.d, t.a, &diag));
    assert_int_equal(word(&t, t.device, 0), 0xffffffffu);
    close_bench(&t);
}

/* A broken device says so late and for ever; nothing runs any more, and callbacks still come, with the error. */
static void errors_stick(void **state)
{
    struct bench t;
    struct note note = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    (void)state;
    for (uint64_t seed = 1; seed < 8; seed++) {
        open_bench(&t, seed);
        note.count = 0;
        OK(t.d->fill(t.d, t.device, 1, 4, t.a, &diag));
        OK(t.d->stream_sync(t.d, t.a, &diag));
        OK(t.d->stream_callback(t.d, t.b, note_done, &note, &diag));
        wait_for_note(&note, 1);
        assert_false(failed(note.status));
        emulated_device_break(t.d, 1);
        OK(t.d->fill(t.d, t.device, 2, 4, t.a, &diag)); /* queues, as on the chip */
        REFUSED(ST_INTERNAL, "ILLEGAL_ADDRESS", t.d->stream_sync(t.d, t.a, &diag));
        REFUSED(ST_INTERNAL, "ILLEGAL_ADDRESS", t.d->stream_sync(t.d, t.b, &diag));
        REFUSED(ST_INTERNAL, "ILLEGAL_ADDRESS", t.d->fill(t.d, t.device, 3, 4, t.a, &diag));
        REFUSED(ST_INTERNAL, "ILLEGAL_ADDRESS", t.d->stream_callback(t.d, t.a, note_done, &note, &diag));
        assert_int_equal(word(&t, t.device, 0), 0x01010101u);
        assert_int_equal(note.count, 1);
        close_bench(&t);
    }
}

/* A callback that is queued behind what breaks the device comes with the error. */
static void callbacks_hear_of_errors(void **state)
{
    struct bench t;
    struct note note = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct cuda_event *event;
    (void)state;
    open_bench(&t, 1);
    OK(t.d->event_create(t.d, CUDA_EVENT_ORDER, &event, &diag));
    emulated_device_break(t.d, 4);
    OK(t.d->fill(t.d, t.device, 1, 4, t.a, &diag));
    OK(t.d->event_record(t.d, event, t.a, &diag));
    OK(t.d->fill(t.d, t.device, 1, 4, t.a, &diag));
    status_t st = t.d->fill(t.d, t.device, 1, 4, t.a, NULL); /* breaks, now or later */
    if (!failed(st)) { st = t.d->stream_callback(t.d, t.a, note_done, &note, NULL); }
    if (!failed(st)) {
        wait_for_note(&note, 1);
        assert_int_equal(note.status.code, ST_INTERNAL);
        assert_int_equal(note.status.cause, 700);
    }
    assert_true(failed(t.d->stream_sync(t.d, t.a, NULL)));
    t.d->event_destroy(t.d, event);
    close_bench(&t);
}

/* ---- products ----------------------------------------------------------------------------- */

enum { N_OUT = 5, N_IN = 40, ROWS_MAX = 80 };

struct product {
    float *weight, *x, *bias, *out, *workspace; /* device */
    size_t workspace_bytes;
};

static void make_product(const struct bench *t, struct product *p)
{
    float values[N_IN * ROWS_MAX];
    p->workspace_bytes = 1 << 16;
    OK(t->d->mem_alloc(t->d, sizeof(float) * N_IN * 8, (void **)&p->weight, &diag));
    OK(t->d->mem_alloc(t->d, sizeof values, (void **)&p->x, &diag));
    OK(t->d->mem_alloc(t->d, 64, (void **)&p->bias, &diag));
    OK(t->d->mem_alloc(t->d, sizeof(float) * 8 * ROWS_MAX, (void **)&p->out, &diag));
    OK(t->d->mem_alloc(t->d, p->workspace_bytes, (void **)&p->workspace, &diag));
    for (uint32_t i = 0; i < N_IN * ROWS_MAX; i++) { values[i] = (float)(i % 97) * 0.1f - 4.0f + 1.0f / (float)(i % N_IN + 3); }
    emulated_device_poke(t->d, p->x, values, sizeof values);
    emulated_device_poke(t->d, p->weight, values + 7, sizeof(float) * N_IN * N_OUT);
    emulated_device_poke(t->d, p->bias, values, sizeof(float) * N_OUT);
}

static void free_product(const struct bench *t, struct product *p)
{
    t->d->mem_free(t->d, p->weight);
    t->d->mem_free(t->d, p->x);
    t->d->mem_free(t->d, p->bias);
    t->d->mem_free(t->d, p->out);
    t->d->mem_free(t->d, p->workspace);
}

static struct cuda_gemm_shape shape_of(uint32_t rows, bool deterministic)
{
    return (struct cuda_gemm_shape){.rows = rows, .n_out = N_OUT, .n_in = N_IN, .weight_stride = N_IN, .x_stride = N_IN, .out_stride = 8,
                                    .deterministic = deterministic};
}

/* Row 0 of the product by the first algorithm that is offered for so many rows. */
static void first_row(const struct bench *t, const struct product *p, uint32_t rows, const struct cuda_gemm_algorithm *fixed, float ret_row[N_OUT])
{
    struct cuda_gemm_shape shape = shape_of(rows, fixed != NULL);
    struct cuda_gemm *gemm;
    struct cuda_gemm_algorithm algorithms[8];
    uint32_t count;
    OK(t->d->gemm_create(t->d, &shape, &gemm, &diag));
    OK(t->d->gemm_algorithms(t->d, gemm, p->workspace_bytes, 8, algorithms, &count, &diag));
    for (uint32_t i = 0; i < count && fixed != NULL; i++) { assert_int_equal(algorithms[i].split_k, 1); }
    if (fixed != NULL) {
        algorithms[0] = *fixed;
        OK(t->d->gemm_adopt(t->d, gemm, &algorithms[0], &diag));
    }
    OK(t->d->gemm_run(t->d, gemm, &algorithms[0], p->weight, p->x, NULL, p->out, p->workspace, p->workspace_bytes, t->a, &diag));
    OK(t->d->stream_sync(t->d, t->a, &diag));
    assert_true(emulated_device_peek(t->d, p->out, ret_row, sizeof(float) * N_OUT));
    t->d->gemm_destroy(t->d, gemm);
}

/* Who takes what is offered has other bits at another number of rows; who fixes an algorithm has not. */
static void algorithms_differ(void **state)
{
    struct bench t;
    struct product p;
    float few[N_OUT], some[N_OUT], many[N_OUT];
    (void)state;
    open_bench(&t, 1);
    make_product(&t, &p);
    first_row(&t, &p, 1, NULL, few);
    first_row(&t, &p, 20, NULL, some);
    first_row(&t, &p, 80, NULL, many);
    assert_memory_not_equal(few, some, sizeof few);
    assert_memory_not_equal(few, many, sizeof few);
    assert_memory_not_equal(some, many, sizeof few);
    for (uint32_t i = 0; i < N_OUT; i++) { assert_true(few[i] - many[i] < 1e-3f && many[i] - few[i] < 1e-3f); }

    struct cuda_gemm_shape shape = shape_of(20, true);
    struct cuda_gemm *gemm;
    struct cuda_gemm_algorithm fixed;
    uint32_t count;
    OK(t.d->gemm_create(t.d, &shape, &gemm, &diag));
    OK(t.d->gemm_algorithms(t.d, gemm, 0, 1, &fixed, &count, &diag));
    first_row(&t, &p, 1, &fixed, few);
    first_row(&t, &p, 20, &fixed, some);
    first_row(&t, &p, 80, &fixed, many);
    assert_memory_equal(few, some, sizeof few);
    assert_memory_equal(few, many, sizeof few);
    t.d->gemm_destroy(t.d, gemm);
    free_product(&t, &p);
    close_bench(&t);
}

/* Sums, bias, accumulation and strides, against a loop written here; each dtype. */
static void products_are_right(void **state)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    struct bench t;
    (void)state;
    open_bench(&t, 1);
    for (int k = 0; k < 6; k++) {
        enum dtype dtype = dtypes[k % 3], out_dtype = k < 3 ? dtype : DTYPE_F32;
        /* x = [1 2 3; 4 5 6], weight = [1 0 2; 3 1 0], bias = [0.5, -1], out before = 8 everywhere; strides 4, 8, 8 */
        static const float xs[8] = {1, 2, 3, 0, 4, 5, 6, 0}, weights[16] = {1, 0, 2, 0, 0, 0, 0, 0, 3, 1, 0}, biases[2] = {0.5f, -1};
        static const float right[2][2] = {{15.5f, 12}, {24.5f, 24}};
        unsigned char bytes[128];
        uint32_t width = dtype_bytes(dtype), out_width = dtype_bytes(out_dtype);
        void *weight, *x, *bias, *out;
        OK(t.d->mem_alloc(t.d, 128, &weight, &diag));
        OK(t.d->mem_alloc(t.d, 128, &x, &diag));
        OK(t.d->mem_alloc(t.d, 128, &bias, &diag));
        OK(t.d->mem_alloc(t.d, 128, &out, &diag));
        const struct { void *to; const float *from; uint32_t count, width; enum dtype dtype; } operands[] = {
            {weight, weights, 16, width, dtype}, {x, xs, 8, width, dtype}, {bias, biases, 2, out_width, out_dtype}};
        for (int o = 0; o < 3; o++) {
            for (uint32_t i = 0; i < operands[o].count; i++) {
                uint16_t half = operands[o].dtype == DTYPE_BF16 ? f32_to_bf16(operands[o].from[i]) : f32_to_f16(operands[o].from[i]);
                memcpy(bytes + i * operands[o].width, operands[o].dtype == DTYPE_F32 ? (const void *)&operands[o].from[i] : (const void *)&half,
                       operands[o].width);
            }
            emulated_device_poke(t.d, operands[o].to, bytes, operands[o].count * operands[o].width);
        }
        for (uint32_t i = 0; i < 16; i++) {
            float eight = 8;
            uint16_t half = out_dtype == DTYPE_BF16 ? f32_to_bf16(eight) : f32_to_f16(eight);
            memcpy(bytes + i * out_width, out_dtype == DTYPE_F32 ? (const void *)&eight : (const void *)&half, out_width);
        }
        emulated_device_poke(t.d, out, bytes, 16 * out_width);
        struct cuda_gemm_shape shape = {.rows = 2, .n_out = 2, .n_in = 3, .dtype = dtype, .out_dtype = out_dtype, .weight_stride = 8,
                                        .x_stride = 4, .out_stride = 8, .has_bias = true, .accumulate = true};
        struct cuda_gemm *gemm;
        struct cuda_gemm_algorithm algorithm;
        uint32_t count;
        OK(t.d->gemm_create(t.d, &shape, &gemm, &diag));
        OK(t.d->gemm_algorithms(t.d, gemm, 0, 1, &algorithm, &count, &diag));
        OK(t.d->gemm_run(t.d, gemm, &algorithm, weight, x, bias, out, NULL, 0, t.a, &diag));
        OK(t.d->stream_sync(t.d, t.a, &diag));
        emulated_device_peek(t.d, out, bytes, 16 * out_width);
        for (uint32_t i = 0; i < 16; i++) {
            uint16_t half;
            float value;
            memcpy(&half, bytes + i * out_width, 2);
            memcpy(&value, bytes + i * out_width, out_width);
            if (out_dtype != DTYPE_F32) { value = out_dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half); }
            float wanted = i % 8 < 2 ? right[i / 8][i % 8] : 8;
            assert_true(value == wanted);
        }
        t.d->gemm_destroy(t.d, gemm);
        t.d->mem_free(t.d, weight);
        t.d->mem_free(t.d, x);
        t.d->mem_free(t.d, bias);
        t.d->mem_free(t.d, out);
    }
    close_bench(&t);
}

/* Plans, algorithms and operands that do not fit are refused. */
static void products_are_checked(void **state)
{
    struct bench t;
    struct product p;
    struct cuda_gemm *one, *many;
    struct cuda_gemm_algorithm algorithms[8];
    uint32_t count;
    (void)state;
    open_bench(&t, 1);
    make_product(&t, &p);
    struct cuda_gemm_shape shape = shape_of(1, false);
    shape.x_stride = N_IN - 1;
    REFUSED(ST_INVALID_ARGUMENT, "strides", t.d->gemm_create(t.d, &shape, &one, &diag));
    shape = shape_of(1, false);
    OK(t.d->gemm_create(t.d, &shape, &one, &diag));
    shape = shape_of(80, false);
    OK(t.d->gemm_create(t.d, &shape, &many, &diag));
    OK(t.d->gemm_algorithms(t.d, one, p.workspace_bytes, 8, algorithms, &count, &diag));
    assert_true(count > 1);
    assert_true(algorithms[0].workspace_bytes > 0);
    size_t needed = algorithms[0].workspace_bytes;
    REFUSED(ST_UNIMPLEMENTED, "rows", t.d->gemm_adopt(t.d, many, &algorithms[0], &diag));
    REFUSED(ST_INVALID_ARGUMENT, "workspace",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x, NULL, p.out, p.workspace, needed - 1, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "workspace",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x, NULL, p.out, p.workspace + 1, needed, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "bias",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x, p.bias, p.out, p.workspace, p.workspace_bytes, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "weight",
            t.d->gemm_run(t.d, one, &algorithms[0], p.bias, p.x, NULL, p.out, p.workspace, p.workspace_bytes, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "aligned",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x + 1, NULL, p.out, p.workspace, p.workspace_bytes, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "out",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x, NULL, t.pinned, p.workspace, p.workspace_bytes, t.a, &diag));
    memset(&algorithms[0], 0, sizeof algorithms[0]);
    REFUSED(ST_INVALID_ARGUMENT, "did not give", t.d->gemm_adopt(t.d, one, &algorithms[0], &diag));
    t.d->gemm_destroy(t.d, one);
    t.d->gemm_destroy(t.d, many);
    free_product(&t, &p);
    close_bench(&t);
}

/* ---- between processes -------------------------------------------------------------------- */

struct parcel {
    struct cuda_ipc_handle memory, event;
};

static void send_bytes(int fd, const void *bytes, size_t count) { assert_int_equal(write(fd, bytes, count), (ssize_t)count); }

static void receive_bytes(int fd, void *bytes, size_t count)
{
    size_t got = 0;
    while (got < count) {
        ssize_t part = read(fd, (char *)bytes + got, count - got);
        assert_true(part > 0);
        got += (size_t)part;
    }
}

/* The other process: fills, records, and never waits; ends when it is told to, or is killed. */
static void export_from(int to_parent, int from_parent)
{
    struct bench t;
    struct parcel parcel;
    struct cuda_event *event;
    char turn;
    open_bench(&t, 9);
    OK(t.d->event_create(t.d, CUDA_EVENT_INTERPROCESS, &event, &diag));
    OK(t.d->ipc_export_memory(t.d, t.device, &parcel.memory, &diag));
    OK(t.d->ipc_export_event(t.d, event, &parcel.event, &diag));
    send_bytes(to_parent, &parcel, sizeof parcel);
    for (uint8_t round = 1; read(from_parent, &turn, 1) == 1 && turn != 'q'; round++) {
        OK(t.d->fill(t.d, t.device, round, COUNT * 4, t.a, &diag));
        OK(t.d->event_record(t.d, event, t.a, &diag));
        send_bytes(to_parent, &turn, 1);
    }
    t.d->event_destroy(t.d, event);
    close_bench(&t);
    _exit(0);
}

static pid_t start_exporter(int *ret_to, int *ret_from)
{
    int up[2], down[2];
    assert_int_equal(pipe(up), 0);
    assert_int_equal(pipe(down), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) { export_from(up[1], down[0]); }
    close(up[1]);
    close(down[0]);
    *ret_to = down[1];
    *ret_from = up[0];
    return child;
}

/* Memory and events work from one process to another: after the imported event the bytes are there, though the exporter never
 * waits itself. */
static void between_processes(void **state)
{
    struct bench t;
    struct parcel parcel;
    struct cuda_event *event;
    uint32_t *imported;
    int to, from, status;
    char turn = 'g';
    (void)state;
    pid_t child = start_exporter(&to, &from); /* before this process has threads */
    open_bench(&t, 4);
    receive_bytes(from, &parcel, sizeof parcel);
    OK(t.d->ipc_import_memory(t.d, &parcel.memory, (void **)&imported, &diag));
    OK(t.d->ipc_import_event(t.d, &parcel.event, &event, &diag));
    for (uint32_t round = 1; round <= 10; round++) {
        send_bytes(to, &turn, 1);
        receive_bytes(from, &turn, 1);
        OK(t.d->stream_wait_event(t.d, t.a, event, &diag));
        OK(on_device(&t, t.other, imported, COUNT * 4, t.a, &diag));
        OK(t.d->stream_sync(t.d, t.a, &diag));
        assert_int_equal(word(&t, t.other, COUNT - 1), round * 0x01010101u);
        OK(t.d->event_sync(t.d, event, &diag));
    }
    REFUSED(ST_INVALID_ARGUMENT, "is recorded", t.d->event_record(t.d, event, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "did not give", t.d->ipc_export_memory(t.d, imported, &parcel.memory, &diag));
    t.d->ipc_close_memory(t.d, imported);
    turn = 'q';
    send_bytes(to, &turn, 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    REFUSED(ST_INVALID_ARGUMENT, "gone", t.d->ipc_import_memory(t.d, &parcel.memory, (void **)&imported, &diag));
    t.d->event_destroy(t.d, event);
    close_bench(&t);
    close(to);
    close(from);
}

/* Whoever imported from a process that is killed goes on. */
static void a_killed_exporter_holds_nobody(void **state)
{
    struct bench t;
    struct parcel parcel;
    struct cuda_event *event;
    uint32_t *imported;
    int to, from, status;
    (void)state;
    pid_t child = start_exporter(&to, &from);
    open_bench(&t, 4);
    receive_bytes(from, &parcel, sizeof parcel);
    OK(t.d->ipc_import_memory(t.d, &parcel.memory, (void **)&imported, &diag));
    OK(t.d->ipc_import_event(t.d, &parcel.event, &event, &diag));
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    OK(t.d->stream_wait_event(t.d, t.a, event, &diag));
    OK(on_device(&t, t.other, imported, COUNT * 4, t.a, &diag));
    OK(t.d->stream_sync(t.d, t.a, &diag));
    OK(t.d->event_sync(t.d, event, &diag));
    t.d->ipc_close_memory(t.d, imported);
    t.d->event_destroy(t.d, event);
    close_bench(&t);
    close(to);
    close(from);
}

static void *close_imported_under_copy_memory;
static void close_under_copy(struct bench *t)
{
    (void)on_device(t, t->other, close_imported_under_copy_memory, 4, t->a, NULL);
    t->d->ipc_close_memory(t->d, close_imported_under_copy_memory);
}

/* Two devices of one process are as two processes; one device does not take its own handles, nor garbage. */
static void handles_are_checked(void **state)
{
    struct bench t, other;
    struct cuda_ipc_handle handle, garbage = {{1}};
    struct cuda_event *event, *imported_event;
    void *imported;
    (void)state;
    /* A seed that runs nothing by itself, for the death of close_under_copy. */
    open_bench(&t, 1);
    for (uint64_t seed = 1;; seed++) {
        open_bench(&other, seed);
        for (int i = 0; i < 40; i++) { OK(other.d->fill(other.d, other.device, 0, 4, other.a, &diag)); }
        if (emulated_device_operations_left(other.d) == 40) { break; }
        close_bench(&other);
    }
    REFUSED(ST_INVALID_ARGUMENT, "did not give", t.d->ipc_export_memory(t.d, t.device + 1, &handle, &diag));
    OK(t.d->ipc_export_memory(t.d, t.device, &handle, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "its own", t.d->ipc_import_memory(t.d, &handle, &imported, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "another kind", other.d->ipc_import_event(other.d, &handle, &event, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "another kind", other.d->ipc_import_memory(other.d, &garbage, &imported, &diag));
    OK(other.d->ipc_import_memory(other.d, &handle, &imported, &diag));
    close_imported_under_copy_memory = imported;
    dies(close_under_copy, &other, SIGABRT);
    OK(t.d->event_create(t.d, CUDA_EVENT_ORDER, &event, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "not interprocess", t.d->ipc_export_event(t.d, event, &handle, &diag));
    t.d->event_destroy(t.d, event);
    OK(t.d->event_create(t.d, CUDA_EVENT_INTERPROCESS, &event, &diag));
    OK(t.d->ipc_export_event(t.d, event, &handle, &diag));
    OK(other.d->ipc_import_event(other.d, &handle, &imported_event, &diag));
    bool done = false;
    OK(other.d->event_query(other.d, imported_event, &done, &diag));
    assert_true(done);
    OK(t.d->fill(t.d, t.device, 5, COUNT * 4, t.a, &diag));
    OK(t.d->event_record(t.d, event, t.a, &diag));
    OK(other.d->stream_wait_event(other.d, other.b, imported_event, &diag));
    OK(on_device(&other, other.other, imported, COUNT * 4, other.b, &diag));
    OK(other.d->stream_sync(other.d, other.b, &diag));
    assert_int_equal(word(&other, other.other, 3), 0x05050505u);
    other.d->event_destroy(other.d, imported_event);
    t.d->event_destroy(t.d, event);
    other.d->ipc_close_memory(other.d, imported);
    close_bench(&other);
    close_bench(&t);
}

/* ---- threads ------------------------------------------------------------------------------ */

static void *hammer(void *user)
{
    const struct cuda_driver *d = user;
    struct bench t = {.d = d};
    OK(d->stream_create(d, false, &t.a, &diag));
    OK(d->host_alloc(d, COUNT * 4, (void **)&t.pinned, &diag));
    OK(d->mem_alloc(d, COUNT * 4, (void **)&t.device, &diag));
    struct note note = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    for (uint32_t round = 1; round <= 50; round++) {
        OK(d->fill(d, t.device, (uint8_t)round, COUNT * 4, t.a, &diag));
        OK(to_host(&t, t.pinned, t.device, COUNT * 4, t.a, &diag));
        if (round % 2 == 0) {
            OK(d->stream_callback(d, t.a, note_done, &note, &diag));
            wait_for_note(&note, round / 2);
        } else {
            OK(d->stream_sync(d, t.a, &diag));
        }
        assert_int_equal(t.pinned[COUNT - 1], round * 0x01010101u);
    }
    d->stream_destroy(d, t.a);
    d->mem_free(d, t.device);
    d->host_free(d, t.pinned);
    return NULL;
}

/* Several threads with a stream each get what they asked for, and do not hold each other up for ever. */
static void threads_share_a_device(void **state)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    (void)state;
    const struct cuda_driver *d = emulated_device_create(&(struct emulated_options){.seed = 12});
    for (int i = 0; i < THREADS; i++) { assert_int_equal(pthread_create(&threads[i], NULL, hammer, (void *)(uintptr_t)d), 0); }
    for (int i = 0; i < THREADS; i++) { pthread_join(threads[i], NULL); }
    d->close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(between_processes),
        cmocka_unit_test(a_killed_exporter_holds_nobody),
        cmocka_unit_test(host_may_not_touch),
        cmocka_unit_test(memory_starts_poisoned),
        cmocka_unit_test(addresses_are_checked_at_once),
        cmocka_unit_test(registered_memory_is_pinned),
        cmocka_unit_test(memory_runs_out),
        cmocka_unit_test(violations_end_the_process),
        cmocka_unit_test(missing_order_shows),
        cmocka_unit_test(order_that_is_asked_for_holds),
        cmocka_unit_test(callbacks),
        cmocka_unit_test(kernels_run),
        cmocka_unit_test(graphs),
        cmocka_unit_test(captures_are_spoiled),
        cmocka_unit_test(captures_end_whole),
        cmocka_unit_test(a_call_fails),
        cmocka_unit_test(capture_end_fails),
        cmocka_unit_test(errors_stick),
        cmocka_unit_test(callbacks_hear_of_errors),
        cmocka_unit_test(algorithms_differ),
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(products_are_checked),
        cmocka_unit_test(handles_are_checked),
        cmocka_unit_test(threads_share_a_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
