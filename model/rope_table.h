/* rope_table: the angles of rotary position embedding, with every supported scaling.
 * Flow:    model_config -> [rope_table] -> kernels_rope, once a step for all layers
 * Thread:  any; a plain value.
 * Memory:  the caller's. The cosines of a step's rows are made each step: a table over a context of
 *          131,072 tokens would be 64 MB and a third of a second at start-up; a row is 2 us.
 *
 * Source: RoFormer, arXiv 2104.09864; the llama3 scaling as in transformers' _compute_llama3_parameters.
 * Arithmetic is float32 wherever transformers' is, so that both round the same angle the same way. */
#ifndef BATON_MODEL_ROPE_TABLE_H
#define BATON_MODEL_ROPE_TABLE_H

#include <stdint.h>

#include "model/model_config.h"

#define ROPE_TABLE_PAIRS_MAX 128u /* half of the largest head */

struct rope_table {
    uint32_t pair_count;                     /* head_dim / 2 */
    float inverse_frequency[ROPE_TABLE_PAIRS_MAX];
};

/* Needs  config->rope not MODEL_ROPE_NONE and head_dim <= 2 * ROPE_TABLE_PAIRS_MAX. */
void rope_table_init(struct rope_table *table, const struct model_config *config);

/* ret_cos, ret_sin  [pair_count] of one position. */
void rope_table_row(const struct rope_table *table, uint32_t position, float *ret_cos, float *ret_sin);

#endif
