/* logits_rows: the logits of a step's rows, a chunk at a time, and the tokens that a device samples from them.
 * Flow:    engine -> [logits_rows] -> forward_logits, kernels_sample -> engine, which samples the other rows
 * Thread:  the engine thread.
 * Memory:  taken in create: logits of a chunk; for a device that samples also what it is told and tells, and host
 *          memory for rows that it cannot do alone. A step allocates nothing.
 *
 * A chunk is listed row by row, run, and read row by row. On a device a whole chunk costs one wait, unless more of
 * its rows than LOGITS_HOST_ROWS need the host. */
#ifndef BATON_ENGINE_LOGITS_ROWS_H
#define BATON_ENGINE_LOGITS_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "model/forward.h"
#include "model/sampler_state.h"

#define LOGITS_HOST_ROWS 64u

struct logits_rows;

/* Bytes that create will take. */
uint64_t logits_rows_bytes(const struct kernels *kernels, uint32_t vocab_size, uint32_t rows_max);

/* rows_max  of one step
 * Holds kernels and forward until destroy.
 * Errors   RESOURCE_EXHAUSTED (node). */
NODISCARD status_t logits_rows_create(struct kernels *kernels, struct forward *forward, uint32_t vocab_size,
                                      uint32_t rows_max, struct diag *diag, struct logits_rows **ret_rows);

/* Takes NULL. */
void logits_rows_destroy(struct logits_rows *rows);

/* Begins a chunk at row `first` of `wanted`, numbered as forward_logits() does. Returns how many rows it has. */
uint32_t logits_rows_begin(struct logits_rows *rows, uint32_t first, uint32_t wanted);

/* The next row of the chunk. state  samples one token from it, and nothing else needs the row; held until the chunk
 * has been read; NULL: the row itself is needed. */
void logits_rows_add(struct logits_rows *rows, const struct sampler_state *state);

/* Computes the chunk, and waits. Errors  INTERNAL (node): the device failed. */
NODISCARD status_t logits_rows_run(struct logits_rows *rows, struct diag *diag);

/* A chunk for the rows of forward_warm(), read by nobody. Errors  as logits_rows_run(). */
NODISCARD status_t logits_rows_warm(struct logits_rows *rows, struct diag *diag);

/* Whether row `index` of the chunk was sampled already: if so, logits_rows_token(); if not, logits_rows_host(). */
bool logits_rows_is_sampled(const struct logits_rows *rows, uint32_t index);

/* Errors  as sampler_choose(), in its words. */
NODISCARD status_t logits_rows_token(const struct logits_rows *rows, uint32_t index, struct diag *diag, uint32_t *ret_token);

/* The row in host memory, until the next call. Rows by rising index.
 * Errors  INTERNAL (node): the device failed. */
NODISCARD status_t logits_rows_host(struct logits_rows *rows, uint32_t index, const float **ret_logits);

#endif
