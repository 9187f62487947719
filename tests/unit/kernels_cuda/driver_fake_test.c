/* The real driver calls libcuda and cuBLASLt as their documents say: here it finds libraries of the same names that know the calls
 * and nothing of us (tests/cuda/fake_cuda.h). What a chip does with them is not claimed. */
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/driver.h"

#ifdef DRIVER_TOOLKIT
#include "kernels/cuda/rows_args.h"
#include "tests/cuda/fake_cuda.h"

static struct fake_cuda *fake;

static int find_fakes(void **state)
{
    (void)state;
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW), *cublaslt = dlopen("libcublasLt.so.13", RTLD_NOW);
    if (cuda == NULL || cublaslt == NULL) { fail_msg("%s", dlerror()); }
    fake_cuda_state_fn get;
    fake_cublaslt_use_fn use;
    void *symbol = dlsym(cuda, "fake_cuda_state");
    if (symbol == NULL) { fail_msg("the libcuda that was found is no fake"); }
    memcpy(&get, &symbol, sizeof get);
    symbol = dlsym(cublaslt, "fake_cublaslt_use");
    assert_non_null(symbol);
    memcpy(&use, &symbol, sizeof use);
    fake = get();
    use(fake);
    return 0;
}

static void forget(void)
{
    fake->log_len = 0;
    fake->log[0] = 0;
    fake->fail_name[0] = 0;
    fake->device_count = 2;
    fake->driver_version = 13000;
}

static void nothing_is_left(void)
{
    assert_int_equal(fake->contexts, 0);
    assert_int_equal(fake->allocations, 0);
    assert_int_equal(fake->streams, 0);
    assert_int_equal(fake->events, 0);
    assert_int_equal(fake->graphs, 0);
    assert_int_equal(fake->modules, 0);
    assert_int_equal(fake->handles, 0);
    assert_int_equal(fake->descriptions, 0);
}

static struct diag diag; /* of the last call */

static void ok(status_t st)
{
    if (failed(st)) { fail_msg("%s: %s", status_code_name(st.code), diag.text); }
}

static const struct cuda_driver *open_device(uint32_t device)
{
    const struct cuda_driver *d = NULL;
    forget();
    ok(cuda_driver_open(device, &d, &diag));
    assert_non_null(d);
    return d;
}

static void logged(const char *line)
{
    char whole[256];
    snprintf(whole, sizeof whole, "%s\n", line);
    if (strstr(fake->log, whole) == NULL) { fail_msg("no call '%s' among:\n%.2000s", line, fake->log); }
}

/* The device that was asked for is opened, described and given back. */
static void opening_and_closing(void **state)
{
    (void)state;
    const struct cuda_driver *d = open_device(1);
    logged("cuInit 0");
    logged("cuDeviceGet 1");
    logged("cuDevicePrimaryCtxRetain 101");
    assert_string_equal(d->info.name, "fake 101");
    assert_int_equal(d->info.device, 1);
    assert_int_equal(d->info.arch, 90);
    assert_int_equal(d->info.sm_count, 132);
    assert_int_equal(d->info.shared_bytes_max, 232448);
    assert_int_equal(d->info.l2_bytes, 52428800);
    assert_true(d->info.memory_bytes == (uint64_t)1 << 37);
    assert_int_equal(d->info.uuid[15], 0xab);
    assert_int_equal(d->info.driver_version, 13000);
    logged("cuFuncSetAttribute cuda_embed 8 232432"); /* 8: the most dynamic shared memory; less the fixed 16 of the fake */
    logged("cuFuncSetAttribute cuda_embed 9 100"); /* 9: the share of an SM's memory that is shared */
    assert_string_equal(d->error_name(d, 2), "CUDA_ERROR_OUT_OF_MEMORY");
    assert_string_equal(d->error_name(d, CUDA_CAUSE_CUBLAS + 15), "CUBLAS_STATUS_NOT_SUPPORTED");
    d->close(d);
    nothing_is_left();
}

/* A machine that cannot do it is told why. */
static void what_is_missing_is_said(void **state)
{
    const struct cuda_driver *d = NULL;
    (void)state;
    forget();
    status_t st = cuda_driver_open(2, &d, &diag);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "there is no device 2: this machine shows 2"));
    fake->driver_version = 12080;
    st = cuda_driver_open(0, &d, &diag);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "for CUDA 12.8; Baton needs one for 13.0"));
    assert_null(d);
    nothing_is_left();
}

/* Whichever call of opening fails, opening fails with a sentence and keeps nothing. */
static void opening_is_all_or_nothing(void **state)
{
    (void)state;
    const struct cuda_driver *d = open_device(0);
    d->close(d);
    char *calls = strdup(fake->log), *rest = calls;
    uint32_t tried = 0;
    for (char *line; (line = strsep(&rest, "\n")) != NULL && line[0] != 0;) {
        char name[64];
        int before = 0;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(line, " "), line);
        if (strstr(name, "Release") != NULL || strstr(name, "Unload") != NULL) { continue; } /* of closing */
        for (const char *at = calls; at < line; at += strlen(at) + 1) {
            before += strncmp(at, name, strlen(name)) == 0 && (at[strlen(name)] == ' ' || at[strlen(name)] == 0);
        }
        /* Every call of a kind would take minutes where there are kernels by the hundred: the first ones, and some. */
        if (before > 3 && before % 37 != 0) { continue; }
            forget();
        memcpy(fake->fail_name, name, sizeof name);
        fake->fail_after = before;
        fake->fail_code = strncmp(name, "cublas", 6) == 0 ? 14 : 999;
        d = NULL;
        status_t st = cuda_driver_open(0, &d, &diag);
        if (!failed(st)) { fail_msg("call %d of %s failed, and opening did not", before, name); }
        assert_int_equal(st.scope, SCOPE_NODE);
        assert_true(st.cause != 0);
        assert_true(diag.text[0] != 0);
        assert_null(d);
        nothing_is_left();
        tried++;
    }
    free(calls);
    forget();
    assert_true(tried > 20);
}

static void *query_memory(void *user)
{
    const struct cuda_driver *d = user;
    uint64_t left, total;
    ok(d->memory_left(d, &left, &total, &diag));
    assert_int_equal(left, 5);
    assert_int_equal(total, 7);
    return NULL;
}

/* The context is made current once in each thread that calls, and again after another opening. */
static void threads_enter(void **state)
{
    (void)state;
    for (int round = 0; round < 2; round++) {
        const struct cuda_driver *d = open_device(0);
        forget();
        (void)query_memory((void *)(uintptr_t)d);
        assert_null(strstr(fake->log, "cuCtxSetCurrent"));
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, query_memory, (void *)(uintptr_t)d), 0);
        pthread_join(thread, NULL);
        logged("cuCtxSetCurrent 1");
        d->close(d);
    }
    nothing_is_left();
}

/* Memory and copies of every form: right function, right direction, right bytes. */
static void memory_and_copies(void **state)
{
    (void)state;
    const struct cuda_driver *d = open_device(0);
    struct cuda_stream *stream;
    unsigned char *pinned, *device, *other;
    ok(d->stream_create(d, false, &stream, &diag));
    logged("cuStreamCreateWithPriority 1 0");
    ok(d->host_alloc(d, 64, (void **)&pinned, &diag));
    for (int i = 0; i < 64; i++) { assert_int_equal(pinned[i], 0); } /* the fake's is not */
    ok(d->mem_alloc(d, 64, (void **)&device, &diag));
    ok(d->mem_alloc(d, 64, (void **)&other, &diag));
    for (int i = 0; i < 64; i++) { pinned[i] = (unsigned char)i; }
    ok(d->copy(d, CUDA_COPY_TO_DEVICE, device, pinned, 64, stream, &diag));
    logged("cuMemcpyHtoDAsync_v2 64");
    ok(d->copy(d, CUDA_COPY_ON_DEVICE, other, device, 64, stream, &diag));
    logged("cuMemcpyDtoDAsync_v2 64");
    ok(d->copy(d, CUDA_COPY_TO_HOST, pinned, other + 8, 8, stream, &diag));
    logged("cuMemcpyDtoHAsync_v2 8");
    assert_int_equal(pinned[0], 8);
    ok(d->copy_2d(d, &(struct cuda_copy_2d){CUDA_COPY_TO_DEVICE, device, 5, pinned, 4, 2, 3}, stream, &diag));
    logged("cuMemcpy2DAsync_v2 1 2");
    assert_int_equal(device[5], pinned[4]);
    assert_int_equal(device[11], pinned[9]);
    assert_int_equal(device[12], 12);
    ok(d->copy_2d(d, &(struct cuda_copy_2d){CUDA_COPY_TO_HOST, pinned, 32, device, 5, 2, 2}, stream, &diag));
    logged("cuMemcpy2DAsync_v2 2 1");
    assert_int_equal(pinned[32], device[5]);
    ok(d->copy_2d(d, &(struct cuda_copy_2d){CUDA_COPY_ON_DEVICE, other, 1, device, 1, 1, 2}, stream, &diag));
    logged("cuMemcpy2DAsync_v2 2 2");
    ok(d->fill(d, device, 0xab, 3, stream, &diag));
    logged("cuMemsetD8Async 171 3");
    ok(d->copy_from_pageable(d, other, "abc", 3, stream, &diag));
    assert_memory_equal(other, "abc", 3);

    /* A batch goes in parts of 256, and empty copies are left out. */
    struct cuda_copy copies[301];
    for (int i = 0; i < 301; i++) { copies[i] = (struct cuda_copy){other + i % 64, device + i % 64, i == 7 ? 0 : 1}; }
    forget();
    ok(d->copy_batch(d, CUDA_COPY_ON_DEVICE, copies, 301, stream, &diag));
    logged("cuMemcpyBatchAsync_v2 256 1 0 1"); /* 1: the source is read in the stream's order */
    logged("cuMemcpyBatchAsync_v2 44 1 0 1");
    assert_memory_equal(other, device, 64);
    forget();
    ok(d->copy(d, CUDA_COPY_TO_DEVICE, NULL, NULL, 0, stream, &diag));
    ok(d->copy_batch(d, CUDA_COPY_ON_DEVICE, copies, 0, stream, &diag));
    ok(d->fill(d, NULL, 0, 0, stream, &diag));
    assert_null(strstr(fake->log, "Memcpy"));
    assert_null(strstr(fake->log, "Memset"));

    strcpy(fake->fail_name, "cuMemAlloc_v2");
    fake->fail_after = 0;
    fake->fail_code = 2;
    status_t st = d->mem_alloc(d, 12345, (void **)&other, &diag);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(st.cause, 2);
    assert_non_null(strstr(diag.text, "12345 bytes: CUDA_ERROR_OUT_OF_MEMORY (a sentence)"));
    ok(d->host_register(d, pinned, 64, &diag));
    assert_non_null(strstr(fake->log, "cuMemHostRegister_v2 64 3")); /* portable, and in the device's address space */
    d->host_unregister(d, pinned);
    d->host_free(d, pinned);
    d->mem_free(d, device);
    d->mem_free(d, other);
    d->mem_free(d, NULL);
    d->stream_destroy(d, stream);
    logged("cuStreamSynchronize  "); /* destroying waits */
    d->close(d);
    nothing_is_left();
}

struct note {
    int count;
    status_t status;
};
static void note_done(void *user, status_t status)
{
    struct note *note = user;
    note->count++;
    note->status = status;
}

/* Events with the flags of their kind; queries; callbacks, with the device's error. */
static void events_and_callbacks(void **state)
{
    (void)state;
    const struct cuda_driver *d = open_device(0);
    struct cuda_stream *stream;
    struct cuda_event *order, *timing, *interprocess, *imported;
    struct cuda_ipc_handle handle;
    struct note note = {.count = 0};
    float ms = 0;
    ok(d->stream_create(d, true, &stream, &diag));
    logged("cuStreamCreateWithPriority 1 -5");
    assert_ptr_equal(d->stream_handle(d, stream), stream); /* the library's own, as others that use the library take it */
    forget();
    ok(d->thread_bind(d, &diag));
    ok(d->thread_bind(d, &diag)); /* whatever the thread has done in between, of which nothing is known */
    assert_non_null(strstr(strstr(fake->log, "cuCtxSetCurrent 1") + 1, "cuCtxSetCurrent 1"));
    ok(d->event_create(d, CUDA_EVENT_ORDER, &order, &diag));
    logged("cuEventCreate 2");
    ok(d->event_create(d, CUDA_EVENT_TIMING, &timing, &diag));
    logged("cuEventCreate 0");
    ok(d->event_create(d, CUDA_EVENT_INTERPROCESS, &interprocess, &diag));
    logged("cuEventCreate 6");
    ok(d->event_record(d, order, stream, &diag));
    ok(d->stream_wait_event(d, stream, order, &diag));
    ok(d->event_sync(d, order, &diag));
    ok(d->event_elapsed(d, timing, timing, &ms, &diag));
    assert_true(ms == 1.5f);
    strcpy(fake->fail_name, "cuStreamSynchronize");
    fake->fail_after = 0;
    fake->fail_code = 700;
    status_t st = d->stream_sync(d, stream, &diag);
    assert_int_equal(st.code, ST_INTERNAL);
    assert_int_equal(st.cause, 700);
    ok(d->stream_callback(d, stream, note_done, &note, &diag));
    assert_int_equal(note.count, 1);
    assert_false(failed(note.status));
    fake->device_count = 77; /* its callbacks come with an error now */
    ok(d->stream_callback(d, stream, note_done, &note, &diag));
    assert_int_equal(note.count, 2);
    assert_int_equal(note.status.cause, 700);
    strcpy(fake->fail_name, "cuStreamAddCallback");
    fake->fail_after = 0;
    assert_true(failed(d->stream_callback(d, stream, note_done, &note, &diag)));
    assert_int_equal(note.count, 2);
    ok(d->ipc_export_event(d, interprocess, &handle, &diag));
    ok(d->ipc_import_event(d, &handle, &imported, &diag));
    logged("cuIpcOpenEventHandle 9"); /* all 64 bytes went through */
    void *memory, *again;
    ok(d->mem_alloc(d, 16, &memory, &diag));
    ok(d->ipc_export_memory(d, memory, &handle, &diag));
    ok(d->ipc_import_memory(d, &handle, &again, &diag));
    logged("cuIpcOpenMemHandle_v2 1 7");
    assert_ptr_equal(memory, again);
    d->ipc_close_memory(d, again);
    d->mem_free(d, memory);
    d->event_destroy(d, order);
    d->event_destroy(d, timing);
    d->event_destroy(d, interprocess);
    d->event_destroy(d, imported);
    d->stream_destroy(d, stream);
    d->close(d);
    nothing_is_left();
}

/* A launch hands over the struct by value and the shape as it is; one of another size is refused. */
static void launches(void **state)
{
    (void)state;
    const struct cuda_driver *d = open_device(0);
    struct cuda_stream *stream;
    ok(d->stream_create(d, false, &stream, &diag));
    struct cuda_gather_rows_args args = {.rows = 3, .row_bytes = 10, .x = &args, .x_stride_bytes = 77};
    struct cuda_launch shape = {{3, 2, 1}, {64, 1, 1}, 128};
    ok(d->launch(d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args, stream, &diag));
    logged("cuLaunchKernelEx cuda_gather_rows 3 2 1 64 1 1 128 1 6 1 0"); /* 6: may start while the one before runs */
    assert_int_equal(fake->args_bytes, sizeof args);
    assert_memory_equal(fake->args, &args, sizeof args);
    status_t st = d->launch(d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args - 8, stream, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_int_equal(d->launch(d, CUDA_KERNEL_COUNT, &shape, &args, sizeof args, stream, &diag).code, ST_INVALID_ARGUMENT);
    forget();
    shape.grid[1] = 0;
    ok(d->launch(d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args, stream, &diag));
    assert_null(strstr(fake->log, "cuLaunchKernel"));
    d->stream_destroy(d, stream);
    d->close(d);

    /* A way round it, and kernels that are not written for it. */
    assert_int_equal(setenv("BATON_CUDA_LAUNCH", "serial", 1), 0);
    d = open_device(0);
    assert_int_equal(unsetenv("BATON_CUDA_LAUNCH"), 0);
    ok(d->stream_create(d, false, &stream, &diag));
    shape.grid[1] = 2;
    ok(d->launch(d, CUDA_KERNEL_gather_rows, &shape, &args, sizeof args, stream, &diag));
    logged("cuLaunchKernel cuda_gather_rows 3 2 1 64 1 1 128 0");
    d->stream_destroy(d, stream);
    d->close(d);
    nothing_is_left();
}

/* A capture becomes an executable graph that is on the device; what fails on the way leaves none. */
static void graphs(void **state)
{
    (void)state;
    const struct cuda_driver *d = open_device(0);
    struct cuda_stream *stream;
    struct cuda_graph *graph = NULL;
    void *memory;
    ok(d->stream_create(d, false, &stream, &diag));
    ok(d->mem_alloc(d, 64, &memory, &diag));
    ok(d->capture_begin(d, stream, &diag));
    logged("cuStreamBeginCapture_v2 1"); /* 1: of this thread alone */
    ok(d->copy(d, CUDA_COPY_ON_DEVICE, memory, (char *)memory + 8, 8, stream, &diag));
    assert_int_equal(d->copy_from_pageable(d, memory, "a", 1, stream, &diag).code, ST_FAILED_PRECONDITION);
    struct cuda_copy one = {memory, (char *)memory + 8, 1};
    assert_int_equal(d->copy_batch(d, CUDA_COPY_ON_DEVICE, &one, 1, stream, &diag).code, ST_FAILED_PRECONDITION);
    ok(d->capture_end(d, stream, &graph, &diag));
    logged("cuGraphInstantiateWithFlags 0");
    logged("cuGraphUpload  ");
    assert_int_equal(fake->graphs, 1);
    ok(d->graph_launch(d, graph, stream, &diag));
    logged("cuGraphLaunch 1");
    d->graph_destroy(d, graph);
    static const char *const fails[] = {"cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphUpload"};
    for (size_t i = 0; i < 3; i++) {
        graph = NULL;
        ok(d->capture_begin(d, stream, &diag));
        strcpy(fake->fail_name, fails[i]);
        fake->fail_after = 0;
        fake->fail_code = 901;
        assert_int_equal(d->capture_end(d, stream, &graph, &diag).code, ST_FAILED_PRECONDITION);
        assert_null(graph);
        assert_int_equal(fake->graphs, 0);
    }
    d->mem_free(d, memory);
    d->stream_destroy(d, stream);
    d->close(d);
    nothing_is_left();
}

/* Products, which the library counts columns first, come out row by row as driver.h has them: strides, bias and accumulation. */
static void products(void **state)
{
    (void)state;
    const struct cuda_driver *d = open_device(0);
    struct cuda_stream *stream;
    enum { ROWS = 3, OUT = 2, IN = 4 };
    static const float weight[OUT][6] = {{1, 2, 3, 4, 99, 99}, {0, 1, 0, -1, 99, 99}}, x[ROWS][5] = {{1, 0, 0, 0, 99}, {0, 1, 0, 2, 99}, {1, 1, 1, 1, 99}};
    static const float bias[OUT] = {0.5f, -0.5f};
    ok(d->stream_create(d, false, &stream, &diag));
    for (int form = 0; form < 4; form++) {
        float out[ROWS][7];
        for (int i = 0; i < ROWS * 7; i++) { ((float *)out)[i] = 10; }
        struct cuda_gemm_shape shape = {.rows = ROWS, .n_out = OUT, .n_in = IN, .weight_stride = 6, .x_stride = 5, .out_stride = 7,
                                        .has_bias = form % 2 == 1, .accumulate = form >= 2, .deterministic = form == 0};
        struct cuda_gemm *gemm;
        struct cuda_gemm_algorithm algorithms[8];
        uint32_t count = 0;
        ok(d->gemm_create(d, &shape, &gemm, &diag));
        ok(d->gemm_algorithms(d, gemm, 1 << 20, 8, algorithms, &count, &diag));
        /* One of three is not for this shape; and a split one is not taken where sums must be whole. */
        assert_int_equal(count, form == 0 ? 1 : 2);
        assert_int_equal(algorithms[count - 1].split_k, 1);
        if (form != 0) {
            assert_int_equal(algorithms[0].split_k, 4);
            assert_int_equal(algorithms[0].workspace_bytes, 1024);
            assert_int_equal(d->gemm_run(d, gemm, &algorithms[0], weight, x, form % 2 ? bias : NULL, out, NULL, 512, stream, &diag).code, ST_INVALID_ARGUMENT);
        }
        assert_int_equal(d->gemm_run(d, gemm, &algorithms[count - 1], weight, x, form % 2 ? NULL : bias, out, NULL, 0, stream, &diag).code, ST_INVALID_ARGUMENT);
        ok(d->gemm_run(d, gemm, &algorithms[count - 1], weight, x, form % 2 ? bias : NULL, out, NULL, 0, stream, &diag));
        for (int r = 0; r < ROWS; r++) {
            for (int o = 0; o < 7; o++) {
                float sum = form >= 2 ? 10 : 0;
                for (int i = 0; i < IN && o < OUT; i++) { sum += x[r][i] * weight[o][i]; }
                if (form % 2 && o < OUT) { sum += bias[o]; }
                assert_true(out[r][o] == (o < OUT ? sum : 10));
            }
        }
        ok(d->gemm_adopt(d, gemm, &algorithms[0], &diag));
        assert_int_equal(algorithms[0].workspace_bytes, 512);
        /* Whatever the library calls it, an algorithm that is none for a good shape is another shape's. */
        forget();
        strcpy(fake->fail_name, "cublasLtMatmulAlgoCheck");
        fake->fail_after = 0;
        fake->fail_code = 7; /* invalid value */
        assert_int_equal(d->gemm_adopt(d, gemm, &algorithms[0], &diag).code, ST_UNIMPLEMENTED);
        forget();
        status_t st = d->gemm_algorithms(d, gemm, 0, 1, algorithms, &count, &diag);
        assert_int_equal(st.code, ST_UNIMPLEMENTED);
        d->gemm_destroy(d, gemm);
    }
    struct cuda_gemm_shape wrong = {.rows = 1, .n_out = 4, .n_in = 4, .weight_stride = 3, .x_stride = 4, .out_stride = 4};
    struct cuda_gemm *none = NULL;
    assert_int_equal(d->gemm_create(d, &wrong, &none, &diag).code, ST_INVALID_ARGUMENT);
    wrong.weight_stride = 4;
    static const char *const fails[] = {"cublasLtMatmulDescCreate", "cublasLtMatmulDescSetAttribute", "cublasLtMatrixLayoutCreate"};
    for (int i = 0; i < 6; i++) {
        strcpy(fake->fail_name, fails[i % 3]);
        fake->fail_after = i / 3;
        fake->fail_code = 15;
        if (i == 3) { continue; } /* there is one */
        assert_int_equal(d->gemm_create(d, &wrong, &none, &diag).code, ST_UNIMPLEMENTED);
        assert_null(none);
    }
    d->stream_destroy(d, stream);
    d->close(d);
    nothing_is_left();
}
#endif

int main(void)
{
#ifdef DRIVER_TOOLKIT
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opening_and_closing), cmocka_unit_test(what_is_missing_is_said), cmocka_unit_test(opening_is_all_or_nothing),
        cmocka_unit_test(threads_enter),       cmocka_unit_test(memory_and_copies),       cmocka_unit_test(events_and_callbacks),
        cmocka_unit_test(launches),            cmocka_unit_test(graphs),                  cmocka_unit_test(products),
    };
    return cmocka_run_group_tests(tests, find_fakes, NULL);
#else
    printf("no CUDA toolkit where this was built: the real driver was not compiled, and is not tested\n");
    return 0;
#endif
}
