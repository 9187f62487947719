/* attention_plan: cuts attention into pieces for the pool.
 * Flow:    cpu_backend -> [attention_plan] -> pool -> a set's attention
 * Thread:  the caller of the kernels.
 * Memory:  partial results of split contexts, mapped in create, touched when used.
 *
 * A piece is a tile of query rows of one sequence and the heads of one kv head. Where that leaves
 * threads idle (one long context, few kv heads), a piece is one segment of it, and the segments are
 * joined in order by a second round of pieces; the sums are the same, bit for bit. */
#ifndef BATON_KERNELS_CPU_ATTENTION_PLAN_H
#define BATON_KERNELS_CPU_ATTENTION_PLAN_H

#include "base/diag.h"
#include "base/status.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/set.h"

struct attention_plan;

/* Returns owned. Errors: RESOURCE_EXHAUSTED (node). */
NODISCARD status_t attention_plan_create(uint32_t threads, struct attention_plan **ret_plan, struct diag *diag);

/* Takes NULL. */
void attention_plan_destroy(struct attention_plan *plan);

/* Borrows. scratch[threads], of which `attention` is used. */
void attention_plan_run(struct attention_plan *plan, const struct cpu_set *set, struct pool *pool,
                        const struct set_scratch *scratch, const struct kernels_attention *args);

#endif
