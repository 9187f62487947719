/* device_open: the emulated device as the one that a program links, for nodes that are run whole.
 * EMULATED_DEVICE in the environment sets the seed, e.g. EMULATED_DEVICE=7; without it the seed is 1. EMULATED_DEVICE_MIB
 * sets how much memory the device has. Such programs are test-only. */
#define CUDA_DRIVER_IMPLEMENTATION
#include "tests/cuda/device_emulated.h"

#include <stdlib.h>

status_t cuda_driver_open(uint32_t device, const struct cuda_driver **ret_driver, struct diag *diag)
{
    const char *seed = getenv("EMULATED_DEVICE");
    const char *mib = getenv("EMULATED_DEVICE_MIB");
    struct emulated_options options = {.device = device, .seed = seed == NULL ? 1 : strtoull(seed, NULL, 10),
                                       .memory_bytes = mib == NULL ? 0 : (uint64_t)strtoull(mib, NULL, 10) << 20};
    if (device > 1) {
        diag_set(diag, "there is no device %u: this machine emulates 2", device);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    *ret_driver = emulated_device_create(&options);
    return STATUS_OK;
}
