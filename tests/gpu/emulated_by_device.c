/* emulated_by_device: the backend tests' device, a real one instead of the emulated one.
 * Flow:    tests/unit/kernels_cuda, tests/unit/model -> device_emulated.h -> [emulated_by_device] -> driver.h -> a GPU
 *
 * tests/gpu/build.sh links with this file in place of tests/cuda those tests that ask the device for its work and for how
 * often it was called; what only the emulated one can do (fail on demand, show its memory) ends the program here.
 * BATON_CUDA_DEVICE: which GPU. BATON_CHECK: run the tests of this name alone, * and ? as usual. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/cuda/device_emulated.h"

__attribute__((constructor)) static void choose(void)
{
    if (getenv("BATON_CHECK")) { cmocka_set_test_filter(getenv("BATON_CHECK")); }
}

static void give_up(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

/* ---- calls, counted: one test runs at a time, so of all that are open -------------------------- */

static struct cuda_driver real;
static uint64_t calls[EMULATED_CALL_COUNT];
static uint64_t operations; /* queued; what a graph holds counts when it is recorded */

#define D const struct cuda_driver *d
#define COUNTED(kind, is_operation, name, params, args) \
    static status_t name params                         \
    {                                                   \
        calls[kind]++;                                  \
        operations += (is_operation);                   \
        return real.name args;                          \
    }
COUNTED(EMULATED_MEM_ALLOC, 0, mem_alloc, (D, size_t bytes, void **ret, struct diag *diag), (d, bytes, ret, diag))
COUNTED(EMULATED_HOST_ALLOC, 0, host_alloc, (D, size_t bytes, void **ret, struct diag *diag), (d, bytes, ret, diag))
COUNTED(EMULATED_COPY, 1, copy, (D, enum cuda_copy_kind kind, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag),
        (d, kind, to, from, bytes, stream, diag))
COUNTED(EMULATED_COPY, 1, copy_2d, (D, const struct cuda_copy_2d *copy, struct cuda_stream *stream, struct diag *diag), (d, copy, stream, diag))
COUNTED(EMULATED_COPY, 1, fill, (D, void *device, uint8_t value, size_t bytes, struct cuda_stream *stream, struct diag *diag),
        (d, device, value, bytes, stream, diag))
COUNTED(EMULATED_LAUNCH, 1, launch, (D, enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args, size_t bytes,
                                     struct cuda_stream *stream, struct diag *diag), (d, kernel, shape, args, bytes, stream, diag))
COUNTED(EMULATED_GEMM, 0, gemm_create, (D, const struct cuda_gemm_shape *shape, struct cuda_gemm **ret, struct diag *diag), (d, shape, ret, diag))
COUNTED(EMULATED_GEMM, 0, gemm_algorithms, (D, struct cuda_gemm *gemm, size_t workspace, uint32_t capacity, struct cuda_gemm_algorithm *ret,
                                            uint32_t *ret_count, struct diag *diag), (d, gemm, workspace, capacity, ret, ret_count, diag))
COUNTED(EMULATED_GEMM, 0, gemm_adopt, (D, struct cuda_gemm *gemm, struct cuda_gemm_algorithm *algorithm, struct diag *diag), (d, gemm, algorithm, diag))
COUNTED(EMULATED_GEMM, 1, gemm_run, (D, struct cuda_gemm *gemm, const struct cuda_gemm_algorithm *algorithm, const void *weight, const void *x,
                                     const void *bias, void *out, void *workspace, size_t bytes, struct cuda_stream *stream, struct diag *diag),
        (d, gemm, algorithm, weight, x, bias, out, workspace, bytes, stream, diag))

static void close_counted(D)
{
    real.close(d); /* knows itself by its context, which a copy of the table has too */
    free((void *)(uintptr_t)d);
}

const struct cuda_driver *emulated_device_create(const struct emulated_options *options)
{
    const char *device = getenv("BATON_CUDA_DEVICE");
    /* One stays open: as a node's, the device's context lives as long as the program, and a test needs not wait for a
     * new one, nor the libraries that keep things by context meet a second. */
    static const struct cuda_driver *kept;
    const struct cuda_driver *driver;
    struct cuda_driver *counted = malloc(sizeof *counted);
    struct diag diag = {{0}};
    const uint32_t number = device ? (uint32_t)strtoul(device, NULL, 10) : 0;
    (void)options; /* seeds and sizes are the chip's own */
    if (!counted) { give_up("no memory"); }
    if (!kept && failed(cuda_driver_open(number, &kept, &diag))) { give_up(diag.text); }
    if (failed(cuda_driver_open(number, &driver, &diag))) { give_up(diag.text); }
    real = *driver;
    *counted = *driver;
    counted->close = close_counted;
    counted->mem_alloc = mem_alloc;
    counted->host_alloc = host_alloc;
    counted->copy = copy;
    counted->copy_2d = copy_2d;
    counted->fill = fill;
    counted->launch = launch;
    counted->gemm_create = gemm_create;
    counted->gemm_algorithms = gemm_algorithms;
    counted->gemm_adopt = gemm_adopt;
    counted->gemm_run = gemm_run;
    return counted;
}

uint64_t emulated_device_calls(const struct cuda_driver *driver, enum emulated_call call)
{
    (void)driver;
    return calls[call];
}

uint64_t emulated_device_operations_run(const struct cuda_driver *driver)
{
    (void)driver;
    return operations;
}

/* Those that are queued count as run. */
uint64_t emulated_device_operations_left(const struct cuda_driver *driver)
{
    (void)driver;
    return 0;
}

void emulated_device_fail(const struct cuda_driver *driver, enum emulated_call call, uint64_t nth, int32_t cause)
{
    (void)driver;
    (void)call;
    (void)cause;
    if (nth != 0) { give_up("calls fail on demand on the emulated device alone"); }
}

void emulated_device_break(const struct cuda_driver *driver, uint64_t nth)
{
    (void)driver;
    if (nth != 0) { give_up("only the emulated device breaks on demand"); }
}

bool emulated_device_peek(const struct cuda_driver *driver, const void *device, void *ret_bytes, size_t bytes)
{
    (void)driver;
    (void)device;
    (void)ret_bytes;
    (void)bytes;
    give_up("the memory of a chip cannot be seen past its queues");
    return false;
}

bool emulated_device_poke(const struct cuda_driver *driver, void *device, const void *from, size_t bytes)
{
    (void)driver;
    (void)device;
    (void)from;
    (void)bytes;
    give_up("the memory of a chip cannot be written past its queues");
    return false;
}
