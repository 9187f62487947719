/* driver_absent: what a build without the CUDA toolkit says when it is asked for a GPU. */
#define CUDA_DRIVER_IMPLEMENTATION
#include "kernels/cuda/driver.h"

status_t cuda_driver_open(uint32_t device, const struct cuda_driver **ret_driver, struct diag *diag)
{
    (void)ret_driver;
    diag_set(diag,
             "no device %u: this program was built without CUDA (%s); run `deploy/install_deps.sh cuda` or set "
             "CUDA_HOME, and build again",
             device, DRIVER_MISSING);
    return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
}
