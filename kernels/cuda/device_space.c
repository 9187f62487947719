#include "kernels/cuda/device_space.h"

#include "base/check.h"
#include "kernels/cuda/cuda_handle.h"

status_t device_space_left(struct kernels *kernels, uint64_t *ret_free, uint64_t *ret_total, struct diag *diag)
{
    CHECK(!kernels->uses_host_memory);
    const struct cuda_driver *driver = cuda_handle(kernels)->driver;
    return driver->memory_left(driver, ret_free, ret_total, diag);
}
