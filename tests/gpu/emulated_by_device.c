/* emulated_by_device: the backend tests' device, a real one instead of the emulated one.
 * Flow:    tests/unit/kernels_cuda, tests/unit/model -> device_emulated.h -> [emulated_by_device] -> driver.h -> a GPU
 *
 * tests/gpu/build.sh links with this file in place of tests/cuda those tests that ask the device for nothing but its
 * work; what only the emulated one can do (fail on demand, show its memory) ends the program here.
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

const struct cuda_driver *emulated_device_create(const struct emulated_options *options)
{
    const char *device = getenv("BATON_CUDA_DEVICE");
    /* One stays open: as a node's, the device's context lives as long as the program, and a test needs not wait for a
     * new one, nor the libraries that keep things by context meet a second. */
    static const struct cuda_driver *kept;
    const struct cuda_driver *driver;
    struct diag diag = {{0}};
    const uint32_t number = device ? (uint32_t)strtoul(device, NULL, 10) : 0;
    (void)options; /* seeds and sizes are the chip's own */
    if (!kept && failed(cuda_driver_open(number, &kept, &diag))) { give_up(diag.text); }
    if (failed(cuda_driver_open(number, &driver, &diag))) { give_up(diag.text); }
    return driver;
}

uint64_t emulated_device_calls(const struct cuda_driver *driver, enum emulated_call call)
{
    (void)driver;
    (void)call;
    give_up("calls are counted by the emulated device alone");
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

uint64_t emulated_device_operations_run(const struct cuda_driver *driver)
{
    (void)driver;
    give_up("operations are counted by the emulated device alone");
    return 0;
}

uint64_t emulated_device_operations_left(const struct cuda_driver *driver)
{
    (void)driver;
    give_up("operations are counted by the emulated device alone");
    return 0;
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
