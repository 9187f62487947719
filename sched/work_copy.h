/* work_copy: what both kinds of node do with a ctl_work from the wire: refuse it, or keep it.
 * Flow:    RESERVE, PREFILL -> [work_copy] -> decode leg, prefill job
 * Thread:  any; no state.
 * Memory:  the copy lies in memory that the caller has; work_copy_bytes() says how much. */
#ifndef BATON_SCHED_WORK_COPY_H
#define BATON_SCHED_WORK_COPY_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"

struct work_limits {
    uint32_t vocab_size;
    uint32_t context_tokens;
};

/* Checks every count and value that the node will rely on.
 * Errors  INVALID_ARGUMENT (request), diag names the field, its value and its range. */
NODISCARD status_t work_validate(const struct ctl_work *work, const struct work_limits *limits, struct diag *diag);

/* Bytes that work_copy() needs for the arrays: prompt, output, stop tokens, logit bias. */
size_t work_copy_bytes(const struct ctl_work *work);

/* A copy whose arrays lie in `memory` [work_copy_bytes()], 4-byte aligned. */
struct ctl_work work_copy(const struct ctl_work *work, void *memory);

/* Copies tokens [first, first + count) of the text "prompt, then output".
 * output  of the sequence meant, which has grown since the work came */
void work_tokens(const struct ctl_work *work, const uint32_t *output, uint32_t first, uint32_t count,
                 uint32_t *ret_tokens);

#endif
