/* Claims on what a device has left: it is what the device has less what was taken there, and comes back when that is freed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/dtype.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_space.h"
#include "kernels/kernels.h"
#include "tests/cuda/device_emulated.h"

#define DEVICE_BYTES (UINT64_C(512) << 20)

static void what_is_left_follows_what_is_taken(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct kernels *kernels = NULL;
    const struct cuda_driver *driver = emulated_device_create(&(struct emulated_options){.seed = 5, .memory_bytes = DEVICE_BYTES});
    const struct kernels_config config = {.backend = "cuda", .activations = DTYPE_F32};
    if (failed(cuda_backend_create_on(driver, &config, &kernels, &diag))) { fail_msg("%s", diag.text); }
    uint64_t before, between, after, total;
    assert_false(failed(device_space_left(kernels, &before, &total, &diag)));
    assert_true(total == DEVICE_BYTES);
    assert_true(before > 0 && before < total); /* the backend's own workspace is gone already */
    void *buffer = NULL;
    assert_false(failed(kernels_buffer_alloc(kernels, 64u << 20, &buffer, &diag)));
    assert_false(failed(device_space_left(kernels, &between, &total, &diag)));
    assert_true(before - between >= 64u << 20 && before - between < 65u << 20);
    kernels_buffer_free(kernels, buffer, 64u << 20);
    assert_false(failed(device_space_left(kernels, &after, &total, &diag)));
    assert_true(after == before);
    kernels_destroy(kernels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_left_follows_what_is_taken)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
