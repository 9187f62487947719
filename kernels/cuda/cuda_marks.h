/* cuda_marks: tickets for "all operations queued so far", that other threads' streams can wait for.
 * Flow:    cuda_backend (records) -> [cuda_marks] -> device_memory (waits)
 * Thread:  record, sync and fail from the handle's caller; wait_on from any. A lock guards the events: the
 *          driver forbids to wait for an event while it is recorded, and a ring comes round.
 * Memory:  a ring of events, taken in create.
 *
 * Ticket t is told by event t mod CUDA_MARKS. Where that event has been recorded again since, waiting for it
 * waits for a later ticket, which is late but never early: so a ticket is good for ever. */
#ifndef BATON_KERNELS_CUDA_CUDA_MARKS_H
#define BATON_KERNELS_CUDA_CUDA_MARKS_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/cuda/driver.h"

#define CUDA_MARKS 64u

struct cuda_marks; /* private to cuda_marks.c */

/* Returns owned. Borrows the driver until destroy. */
NODISCARD status_t cuda_marks_create(const struct cuda_driver *driver, struct cuda_marks **ret_marks, struct diag *diag);
void cuda_marks_destroy(struct cuda_marks *marks); /* takes NULL */

/* Records the next ticket on a stream. ret_ticket  1, 2, 3, ... */
NODISCARD status_t cuda_marks_record(struct cuda_marks *marks, struct cuda_stream *stream, uint64_t *ret_ticket, struct diag *diag);

/* After this every wait fails: operations before later tickets were never queued. */
void cuda_marks_fail(struct cuda_marks *marks);

/* What is queued on `stream` from here on runs after the ticket; 0 has passed. A ticket that was never given
 * out is a CHECK.
 * Errors  INTERNAL (node): the device, or cuda_marks_fail(). */
NODISCARD status_t cuda_marks_wait_on(struct cuda_marks *marks, uint64_t ticket, struct cuda_stream *stream, struct diag *diag);

/* Blocks until the ticket has passed. Errors as wait_on. */
NODISCARD status_t cuda_marks_sync(struct cuda_marks *marks, uint64_t ticket, struct diag *diag);

#endif
