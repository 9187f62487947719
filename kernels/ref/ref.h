/* ref: the oracle: every operation as its formula reads, in double, in plain C.
 * Flow:    tests compare every other backend with it; a model runs on it, slowly.
 * Thread:  as kernels.h; it has one.
 * Memory:  its handle. */
#ifndef BATON_KERNELS_REF_REF_H
#define BATON_KERNELS_REF_REF_H

#include "kernels/kernels.h"

/* Returns owned. Errors: RESOURCE_EXHAUSTED (node). */
NODISCARD status_t ref_create(struct kernels **ret_kernels, struct diag *diag);

#endif
