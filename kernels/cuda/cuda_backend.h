/* cuda_backend: kernels.h on a CUDA device.
 * Flow:    kernels_create(backend "cuda") -> [cuda_backend] -> cuda_ops, cuda_gemm_plan, ... -> driver
 * Thread:  as kernels.h.
 * Memory:  in create: the workspace of products (64 MiB on sm_90 and later, 32 before; never more than a 64th
 *          of the device), 4 MiB for unaligned operands, 4 MiB of pinned memory. When a shape, a bias, or more
 *          rows than ever before come for the first time: a plan, a copy, larger scratch. So a step that has
 *          run once takes nothing any more.
 *
 * Everything runs on one stream, in order. An operation is one launch, or a few; nothing on the host depends on
 * what lies in the exchange, but for the facade's checks of indices.
 *
 * What fails: a wrong argument of ours is a CHECK. The first error of a driver call is kept with the name of its
 * operation, nothing is queued after it, and kernels_sync() returns it and logs it, once ("cuda_failed"). */
#ifndef BATON_KERNELS_CUDA_CUDA_BACKEND_H
#define BATON_KERNELS_CUDA_CUDA_BACKEND_H

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"

struct cuda_driver;

/* Returns owned; kernels_destroy() ends it. `config` is checked but for what the device must say.
 * The set of kernels is named cuda-<activations>-sm<architecture>-<det|fast>-v1.
 * Errors   FAILED_PRECONDITION (node): no driver library, no device of that number, no code for its
 *          architecture, or a build without CUDA; INVALID_ARGUMENT, RESOURCE_EXHAUSTED (node). */
NODISCARD status_t cuda_backend_create(const struct kernels_config *config, struct kernels **ret_kernels, struct diag *diag);

/* The same on a device that is open. Takes the driver. */
NODISCARD status_t cuda_backend_create_on(const struct cuda_driver *driver, const struct kernels_config *config,
                                          struct kernels **ret_kernels, struct diag *diag);

/* The first error with its operation, e.g. "gemm: CUDA_ERROR_...: ..."; "" where there is none. */
const char *cuda_backend_error(const struct kernels *kernels);

/* How many graphs were launched, and how many captured, since create. */
void cuda_backend_graph_counts(const struct kernels *kernels, uint64_t *ret_launched, uint64_t *ret_captured);

#endif
