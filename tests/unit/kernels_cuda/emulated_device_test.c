/* The emulated device keeps the promises of its header: each mistake that it is there to find is made here once. Its memory,
 * kernels, failures and threads; the rest in emulated_order_test, _graph_test, _gemm_test and _process_test. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/rows_args.h"
#include "tests/unit/kernels_cuda/emulated_testing.h"

/* ---- memory --------------------------------------------------------------------------- */

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

/* ---- kernels -------------------------------------------------------------------------- */

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
    close_bench(&t);
}

/* ---- failures ------------------------------------------------------------------------- */

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

/* ---- threads -------------------------------------------------------------------------- */

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
        cmocka_unit_test(host_may_not_touch),
        cmocka_unit_test(memory_starts_poisoned),
        cmocka_unit_test(addresses_are_checked_at_once),
        cmocka_unit_test(registered_memory_is_pinned),
        cmocka_unit_test(memory_runs_out),
        cmocka_unit_test(violations_end_the_process),
        cmocka_unit_test(kernels_run),
        cmocka_unit_test(a_call_fails),
        cmocka_unit_test(capture_end_fails),
        cmocka_unit_test(errors_stick),
        cmocka_unit_test(callbacks_hear_of_errors),
        cmocka_unit_test(threads_share_a_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
