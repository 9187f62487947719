/* cpu_backend: the kernels of this machine's CPU, by the best instruction set it has.
 * Flow:    kernels.c -> [cpu_backend] -> pool -> set_*.c
 * Thread:  as kernels.h.
 * Memory:  its handle and the scratch of each worker, in create. */
#ifndef BATON_KERNELS_CPU_CPU_BACKEND_H
#define BATON_KERNELS_CPU_CPU_BACKEND_H

#include "kernels/kernels.h"

/* isa: "auto" or the name of a set. Returns owned. Errors as kernels_create(). */
NODISCARD status_t cpu_backend_create(const char *isa, const struct kernels_config *config,
                                      struct kernels **ret_kernels, struct diag *diag);

/* As kernels_isa_available(). */
const char *cpu_backend_isa_available(void);

#endif
