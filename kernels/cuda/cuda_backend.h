/* cuda_backend: kernels.h on a CUDA device.
 * Flow:    kernels_create(backend "cuda") -> [cuda_backend] -> kernels/cuda
 * Thread:  as kernels.h.
 * Memory:  as kernels.h; the device's own. */
#ifndef BATON_KERNELS_CUDA_CUDA_BACKEND_H
#define BATON_KERNELS_CUDA_CUDA_BACKEND_H

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"

/* Returns owned; kernels_destroy() ends it. `config` is checked but for what the device must say.
 * Errors   FAILED_PRECONDITION (node): no driver library, no device of that number, no code for its
 *          architecture, or a build without CUDA; INVALID_ARGUMENT, RESOURCE_EXHAUSTED (node). */
NODISCARD status_t cuda_backend_create(const struct kernels_config *config, struct kernels **ret_kernels, struct diag *diag);

#endif
