/* device_space: how much memory a CUDA device has left, for whoever plans before taking any.
 * Flow:    node start-up -> [device_space] -> driver
 * Thread:  any. */
#ifndef BATON_KERNELS_CUDA_DEVICE_SPACE_H
#define BATON_KERNELS_CUDA_DEVICE_SPACE_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"

/* Of the device of `kernels`, which is of a cuda backend (CHECK). Other processes take of it too, so this is what
 * there is now and no promise. In bytes.
 * Errors   INTERNAL (node): the device. */
NODISCARD status_t device_space_left(struct kernels *kernels, uint64_t *ret_free, uint64_t *ret_total, struct diag *diag);

#endif
