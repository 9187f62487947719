/* driver_library: finds libcuda and libcublasLt on this machine while the process runs, so that one binary
 * serves machines with and without a GPU. Private to driver_*.c and its test.
 * Flow:    cuda_driver_open -> [driver_library] -> dlopen
 * Thread:  any.
 * Memory:  what is loaded stays loaded until the process ends: these libraries start threads of their own. */
#ifndef BATON_KERNELS_CUDA_DRIVER_LIBRARY_H
#define BATON_KERNELS_CUDA_DRIVER_LIBRARY_H

#include "base/diag.h"
#include "base/status.h"
#include "kernels/cuda/driver_symbols.h"

#define DRIVER_CUDA_VERSION_MIN 13000 /* what the fatbins and the names above are made for */

/* path  the library's file, or NULL to look for it in the usual places:
 *       libcuda.so.1 where the loader finds it (LD_LIBRARY_PATH, ld.so.cache);
 *       libcublasLt.so.13 there, in $CUDA_HOME, /usr/local/cuda*, /opt/cuda, and where pip puts it
 *       (nvidia/cu13/lib below a site-packages folder of $VIRTUAL_ENV, or of the system).
 * Errors  FAILED_PRECONDITION (node): it is nowhere, or too old to have every function; diag says where it was
 *         sought and which function lacks. */
NODISCARD status_t driver_library_load_cuda(const char *path, struct cuda_api *ret_api, struct diag *diag);
NODISCARD status_t driver_library_load_cublaslt(const char *path, struct cublaslt_api *ret_api,
                                                struct diag *diag);

#endif
