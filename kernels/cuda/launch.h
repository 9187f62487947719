/* launch: the shape of one kernel launch.
 * Flow:    cuda_<name>_shape() beside each kernel's arguments -> struct cuda_launch -> driver.h
 * Thread:  any; a plain value that C11, nvcc and g++ all read. */
#ifndef BATON_KERNELS_CUDA_LAUNCH_H
#define BATON_KERNELS_CUDA_LAUNCH_H

#include <stdint.h>

/* A grid with a zero in it is no launch: the driver's launch() returns OK and queues nothing, so that
 * callers need no special case for zero rows. */
struct cuda_launch {
    uint32_t grid[3];      /* blocks: x up to 2^31-1, y and z up to 65535 */
    uint32_t block[3];     /* threads: their product 1 .. 1024 */
    uint32_t shared_bytes; /* dynamic shared memory of a block; up to cuda_device_info.shared_bytes_max */
};

#endif
