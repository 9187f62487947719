/* cuda_attention_check: does the Hopper kernel of attention compute on this chip what the other one does?
 * Flow:    cuda_backend at create -> [cuda_attention_check] -> cuda_attention_device.use_sm90
 * Thread:  the handle's caller; no capture is under way.
 * Memory:  a few hundred KiB of device and pinned memory while it runs.
 *
 * Its matrix instructions take operands by descriptors of shared memory, which only the chip itself interprets: an
 * emulation can agree with a wrong reading of the manual. So it is believed when it has been seen to work. */
#ifndef BATON_KERNELS_CUDA_CUDA_ATTENTION_CHECK_H
#define BATON_KERNELS_CUDA_CUDA_ATTENTION_CHECK_H

#include "base/diag.h"
#include "base/dtype.h"
#include "base/status.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/driver.h"

/* Attends over a few ragged prompts with both kernels, for each head size that the Hopper kernel has.
 * device  use_sm90 is not read
 * dtype   of activations and KV: BF16 or F16
 * Errors  FAILED_PRECONDITION (node): an element differs by more than roundings explain, diag says which;
 *         UNIMPLEMENTED (node): the kernel is none for this device; else the driver's. */
NODISCARD status_t cuda_attention_check(const struct cuda_driver *driver, struct cuda_stream *stream,
                                        const struct cuda_attention_device *device, enum dtype dtype, struct diag *diag);

#endif
