/* prefill_inspect: a prefill core's blocks and who holds them, for an operator.
 * Flow:    prefill_core's tables -> [prefill_inspect] -> the node's Inspect answer
 * Thread:  the node's core thread; reads only.
 * Memory:  none. Cost O(jobs). */
#ifndef BATON_PREFILL_NODE_PREFILL_INSPECT_H
#define BATON_PREFILL_NODE_PREFILL_INSPECT_H

#include "kv/kv_inspect.h"
#include "prefill_node/prefill_core.h"

/* Calls `fn` for every job, those without blocks too, by arrival. */
void prefill_core_inspect(const struct prefill_core *core, struct kv_inspection *ret_inspection, kv_holder_fn fn, void *user);

#endif
