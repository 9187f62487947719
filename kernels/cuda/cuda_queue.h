/* cuda_queue: the compute stream of a handle, its first error, and the calls of a capture.
 * Flow:    cuda_ops, cuda_gemm_plan, cuda_graphs -> [cuda_queue] -> driver
 * Thread:  the handle's caller.
 * Memory:  the list of a capture's calls grows while graphs are recorded and is kept; nothing else.
 *
 * Operations return nothing, so errors are kept: the first one with its operation's name, and from then on
 * nothing is queued any more. What was queued before a kernel that fails late is told by the next sync.
 *
 * A capture runs nothing, and may turn out to be no good when its operations have long been issued. So the
 * driver calls of a capture are written down as well: whoever abandons it queues them as they are, and no
 * operation is lost. */
#ifndef BATON_KERNELS_CUDA_CUDA_QUEUE_H
#define BATON_KERNELS_CUDA_CUDA_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/cuda/driver.h"

struct cuda_queue {
    const struct cuda_driver *driver;
    struct cuda_stream *stream;

    status_t error;         /* the first; OK: none */
    struct diag error_text; /* "rmsnorm: CUDA_ERROR_...: ..." */
    const char *operation;  /* that runs, or ran last; static text */
    bool was_told;          /* the log has the error */

    bool is_capturing;
    struct diag abandon_text; /* why the last capture was abandoned */
    uint8_t *calls;           /* of the capture: struct call, then its bytes */
    size_t calls_bytes, calls_capacity;
};

/* Borrows the driver until fini. Errors as the driver's stream_create. */
NODISCARD status_t cuda_queue_init(struct cuda_queue *queue, const struct cuda_driver *driver, struct diag *diag);
/* Takes a zeroed one. Waits for the stream. */
void cuda_queue_fini(struct cuda_queue *queue);

static inline bool cuda_queue_failed(const struct cuda_queue *queue) { return failed(queue->error); }

/* Keeps a failure, if it is the first. text  the driver's, or ours; without the operation. */
void cuda_queue_fail(struct cuda_queue *queue, status_t st, const struct diag *text);

/* The calls of an operation. After an error they do nothing. */
void cuda_queue_launch(struct cuda_queue *queue, enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args,
                       size_t args_bytes);
void cuda_queue_copy(struct cuda_queue *queue, enum cuda_copy_kind kind, void *to, const void *from, size_t bytes);
void cuda_queue_copy_2d(struct cuda_queue *queue, const struct cuda_copy_2d *copy);
void cuda_queue_fill(struct cuda_queue *queue, void *device, uint8_t value, size_t bytes);

struct cuda_queue_gemm {
    struct cuda_gemm *gemm; /* lives until the capture has ended */
    const struct cuda_gemm_algorithm *algorithm; /* the same */
    const void *weight, *x, *bias;
    void *out;
    void *workspace;
    size_t workspace_bytes;
};
void cuda_queue_gemm(struct cuda_queue *queue, const struct cuda_queue_gemm *args);

/* Begins a capture; false: it could not be begun, abandon_text says why, and operations run as ever. */
bool cuda_queue_capture_begin(struct cuda_queue *queue);
/* Ends it. NULL: it was no good; its calls have been queued one by one, abandon_text says why. The graph has
 * not been launched. */
struct cuda_graph *cuda_queue_capture_end(struct cuda_queue *queue);
/* Gives a capture up half way, if there is one: its calls are queued, and what follows runs as ever. For
 * operations that must wait or allocate. why  a format-free sentence. */
void cuda_queue_capture_abandon(struct cuda_queue *queue, const char *why);

/* Waits for all that was queued. Errors: the kept one, now or before. */
NODISCARD status_t cuda_queue_sync(struct cuda_queue *queue);

#endif
