#include "kernels/cuda/driver_environment.h"

#include <stdlib.h>

void cuda_driver_environment_set(void)
{
    if (getenv("CUDA_DEVICE_MAX_CONNECTIONS") == NULL) { setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); }
}
