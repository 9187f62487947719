/* step_rows: the rows of one step, spread out of its spans into the flat arrays that operations read.
 * Flow:    forward_step -> [step_rows] -> the exchange -> kernels
 * Thread:  the engine thread.
 * Memory:  one exchange region, taken in init by the limits; a step writes there and allocates nothing.
 *
 * All of it lies in one piece in the order of the struct, block tables last, so that what a step wrote goes to
 * a device in one send; and every array stays where it is, so that a recorded run of operations finds it. */
#ifndef BATON_MODEL_STEP_ROWS_H
#define BATON_MODEL_STEP_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "kv/kv_layout.h"
#include "model/forward.h"

struct step_rows_limits {
    uint32_t rows_max;
    uint32_t spans_max;
    uint32_t context_tokens;
    uint32_t vocab_size;
    uint32_t block_tokens;
};

struct step_rows {
    struct kernels *kernels;
    struct step_rows_limits limits;
    uint8_t *region;
    size_t region_bytes, used_bytes;

    struct kernels_attention_sequence *sequences; /* [spans_max] */
    struct kernels_kv_slot *slots;                /* [rows_max] */
    uint32_t *ids, *positions;                    /* [rows_max] */
    uint32_t *numbers;                            /* [rows_max]: 0, 1, 2 ... */

    /* Rows that want logits, where they are fewer than all: from the last layer's attention on only they matter. */
    struct kernels_attention_sequence *kept_sequences; /* [spans_max] */
    uint32_t *kept_from, *kept_positions;              /* [rows_max]: which row, and its position */

    uint32_t *tables; /* [tables_max], copies; NULL where operations read the caller's */
    size_t tables_max;

    uint32_t rows;           /* of the step */
    uint32_t kept_rows;      /* of them, that want logits */
    uint32_t sequence_count; /* of either list */
    uint32_t row_count_max;  /* of one sequence */
    uint32_t context_max;    /* tokens of the longest sequence */
    bool is_decode;          /* one row a span, and each wants logits */
};

/* What init will take. copies_tables  as there. */
size_t step_rows_bytes(const struct step_rows_limits *limits, bool copies_tables);

/* Takes the exchange region. Block tables are copied for a device, and used where they lie else.
 * Errors   RESOURCE_EXHAUSTED (node). */
NODISCARD status_t step_rows_init(struct step_rows *rows, struct kernels *kernels, const struct step_rows_limits *limits,
                                  struct diag *diag);

/* Copes with zeroed memory. */
void step_rows_fini(struct step_rows *rows);

/* Checks a step and writes it down; what it says stays until the next. Nothing is sent yet.
 * Errors   as forward_run(); nothing was written then. */
NODISCARD status_t step_rows_set(struct step_rows *rows, const struct forward_step *step, struct diag *diag);

/* Fills a decode step up to `count` rows and sequences, within the limits, with ones that are no sequence's:
 * token 0 at position 0, stored nowhere, attending to nothing. */
void step_rows_fill_up(struct step_rows *rows, uint32_t count);

/* A step of `count` rows that are no sequence's, as step_rows_fill_up() makes them: it computes, and leaves the pool as it is.
 * is_decode  all of them want logits, and count is within spans_max; else only the first does. */
void step_rows_set_empty(struct step_rows *rows, uint32_t count, bool is_decode);

/* Queues what the step wrote, for a device. */
void step_rows_send(struct step_rows *rows);

#endif
