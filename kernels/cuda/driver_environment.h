/* driver_environment: what the CUDA driver reads of the environment and is not left to its defaults.
 * Flow:    main of a node -> [driver_environment]; cuda_driver_open() -> [driver_environment], for programs that do not
 * Thread:  any while there is one thread: it writes the environment. Where all is set, it writes nothing. */
#ifndef BATON_KERNELS_CUDA_DRIVER_ENVIRONMENT_H
#define BATON_KERNELS_CUDA_DRIVER_ENVIRONMENT_H

/* Before the driver is initialised (cuInit). What the operator has set stays.
 * CUDA_DEVICE_MAX_CONNECTIONS=32, the most there is, of 8: streams beyond it share a hardware queue, in order. A receive of
 * NCCL's waits on the device for its sender, and whatever shares its queue would wait with it: a step, another pair's
 * send, and in a ring of nodes each for the other. */
void cuda_driver_environment_set(void);

#endif
