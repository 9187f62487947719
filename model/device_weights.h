/* device_weights: a checkpoint's tensors, straight into a device's memory.
 * Flow:    model_weights_open -> [device_weights] -> forward; on a CPU model_weights_fill stands here
 * Thread:  the engine's or the one before it, with others of its own beside it; nobody else uses the kernels meanwhile.
 * Memory:  two pieces of pinned host memory while it runs, and the device's for the weights. The host never holds
 *          a second copy: pages of the mapped files are the page cache's.
 *
 * Matrices are KERNELS_ORDER_ROWS, all in one format; q, k and v of a layer lie one right after the other, gate and
 * up too, and their biases, so that a product of each can be one. Threads fill one piece, converting where the format
 * is another, while the other piece is on its way. */
#ifndef BATON_MODEL_DEVICE_WEIGHTS_H
#define BATON_MODEL_DEVICE_WEIGHTS_H

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "model/model_tensors.h"

/* weights  of model_weights_open() with is_for_device, not filled yet; closes the checkpoint's files
 * threads  that read and convert; 0 is 1
 * Holds kernels until device_weights_drop().
 * Errors   RESOURCE_EXHAUSTED (node): no memory, on the device or for the pieces, or no thread; INTERNAL (node): the
 *          device failed. Nothing is held then, and a second call may follow.
 * Cost     the slower of reading (about 5 GB/s a thread from the page cache, 1 of dummy weights) and the bus. */
NODISCARD status_t device_weights_fill(struct model_weights *weights, struct kernels *kernels, uint32_t threads,
                                       struct diag *diag);

/* Bytes that fill will take on the device, or has. */
uint64_t device_weights_bytes(const struct model_weights *weights);

/* Frees the device's memory, before the kernels go. The tensors have no data any more. */
void device_weights_drop(struct model_weights *weights);

#endif
