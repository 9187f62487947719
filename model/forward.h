/* forward: one step of the model over a ragged batch of prefill and decode rows.
 * Flow:    engine's batch of spans -> [forward] -> KV in the paged pool, logits -> sampler
 * Thread:  the engine thread; the kernels' own workers run inside a call.
 * Memory:  all scratch is taken in create, sized by the limits; a step calls no malloc.
 *
 * The bits of a row (its KV and its logits) depend on the model, the kernel set and the tokens
 * before it alone: not on the other spans, not on where a prompt was cut into steps, not on the
 * number of threads. Everything here is row-wise or goes through kernels that promise the same. */
#ifndef BATON_MODEL_FORWARD_H
#define BATON_MODEL_FORWARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kv/kv_layout.h"
#include "model/model.h"

struct forward;
struct kernels;

struct forward_limits {
    uint32_t rows_max;  /* rows (tokens) of one step over all spans; all of them may want logits */
    uint32_t spans_max; /* spans (sequences) of one step */
};

/* Which rows of a span want logits. */
enum forward_want {
    FORWARD_WANT_NONE = 0, /* a chunk that is not the prompt's last */
    FORWARD_WANT_LAST = 1, /* the last row: the next token is sampled from it */
    FORWARD_WANT_ALL = 2,  /* every row: prompt logprobs */
};

/* Consecutive tokens of one sequence: a prompt, a chunk of it, or the one token of a decode step. */
struct forward_span {
    const uint32_t *tokens;      /* [row_count], each < vocab_size */
    uint32_t row_count;          /* >= 1 */
    uint32_t first_position;     /* of tokens[0]; the KV of 0 .. first_position-1 is in the pool already */
    const uint32_t *block_table; /* pool indices of the blocks of positions 0 .. first_position+row_count-1;
                                    entries past those, and entries wholly
                                    before the window of every layer, are not read and may be stale */
    enum forward_want want;
};

/* Called once a layer, in order, as soon as the writes of K and V of that layer are queued for all rows of
 * the step, which is before that layer's attention: a push started here overlaps with the rest of
 * the layer and the next ones. They have been done once kernels_mark() `mark` is reached: on the CPU it is
 * 0, done already; whoever moves the bytes waits for it. Runs on the engine thread; must not block. */
typedef void (*forward_layer_done_fn)(uint32_t layer, uint64_t mark, void *user);

struct forward_step {
    const struct forward_span *spans; /* [span_count]; a sequence appears at most once */
    uint32_t span_count;
    void *kv_pool;                    /* first byte of block 0; 64-byte aligned; kv_layout of create; of kernels that
                                         have graphs the same in every step, as its block count */
    uint32_t kv_block_count;          /* blocks of the pool; every block table entry is below it */
    forward_layer_done_fn layer_done; /* may be NULL */
    void *layer_done_user;
};

/* Bytes that create will take for these limits, for the memory plan: about rows_max * (8 * hidden + A * (hidden
 * + 2 * (q_heads + kv_heads) * head_dim + 2 * ffn)), A those of an activation. On a device also the angles of the
 * whole context, and block tables.
 * kernels  NULL: those of a CPU. */
size_t forward_scratch_bytes(const struct model *model, const struct kernels *kernels, const struct forward_limits *limits);

/* Holds model and kernels until forward_destroy().
 * layout   of the pool that steps will name; must be model_kv_layout()'s for this model
 * Errors   INVALID_ARGUMENT (node): a zero limit or a foreign layout; FAILED_PRECONDITION (node): the
 *          weights are not where these kernels read them: model_to_device(); RESOURCE_EXHAUSTED (node): no memory;
 *          INTERNAL (node): the device failed. */
NODISCARD status_t forward_create(const struct model *model, struct kernels *kernels, const struct kv_layout *layout,
                                  const struct forward_limits *limits, struct diag *diag,
                                  struct forward **ret_forward);

/* Takes NULL. */
void forward_destroy(struct forward *forward);

/* Runs all layers over the step's rows: writes their K and V into the pool, and keeps the final
 * hidden state of each row that wants logits until the next run. All is queued when it returns, and done on a CPU;
 * kernels_sync() comes before the next run, and says whether the device failed.
 * Where kernels_has_graphs(), a step of single rows that all want logits is filled up to one of a few sizes, recorded
 * once and queued as a whole from then on.
 * step            borrows
 * ret_logits_rows rows that want logits, numbered in span order and by position inside a span;
 *                 may be NULL
 * Errors   INVALID_ARGUMENT (request): a token is not in the vocabulary, a position not in the context
 *          or a block not in the pool, diag names span and value; RESOURCE_EXHAUSTED (request): the step
 *          is over the limits. Nothing was written then and layer_done was not called.
 * Cost     2 * weights * rows flops; every weight read once a step. Of the last layer only K and V are
 *          computed for rows that want no logits. */
NODISCARD status_t forward_run(struct forward *forward, const struct forward_step *step, struct diag *diag,
                               uint32_t *ret_logits_rows);

/* Runs a step of `rows` rows that are no sequence's: nothing in the pool is read or written, and forward_logits() may
 * follow. So a device chooses its algorithms, and records a size of decode steps when it comes the second time, before
 * the first request. Queued, as forward_run().
 * is_decode  rows of as many sequences, within both limits; else one prompt's, whose last row wants logits
 * Needs      kernels_has_graphs() */
void forward_warm(struct forward *forward, void *kv_pool, uint32_t kv_block_count, uint32_t rows, bool is_decode);

/* The least size of a decode step that is recorded and holds `rows`, within the limits. */
uint32_t forward_decode_size(const struct forward *forward, uint32_t rows);

/* Rows of the last run that forward_logits() takes: those that want logits, and what filled the step up. */
uint32_t forward_ready_rows(const struct forward *forward);

/* Whether the last run was a decode step of one of the recorded sizes. */
bool forward_is_recorded(const struct forward *forward);

/* Logits of rows first .. first+count-1 of the last run, in that numbering; queued. Call it in chunks when
 * the vocabulary is large: a row's bits do not depend on the cut, save on a device that is not deterministic.
 * ret_logits  f32 [count][vocab_size], 64-byte aligned, memory that the kernels write
 * Errors   INVALID_ARGUMENT (request): the last run kept fewer rows. */
NODISCARD status_t forward_logits(struct forward *forward, uint32_t first, uint32_t count, struct diag *diag,
                                  float *ret_logits);

#endif
