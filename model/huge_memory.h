/* huge_memory: large anonymous memory on 2 MiB pages, for weights.
 * Flow:    model_weights, weight_pack -> [huge_memory]
 * Thread:  any.
 * Memory:  the caller's until huge_memory_free(). */
#ifndef BATON_MODEL_HUGE_MEMORY_H
#define BATON_MODEL_HUGE_MEMORY_H

#include <stddef.h>

#include "base/diag.h"
#include "base/status.h"

/* Zeroed, at a 2 MiB border, asking for 2 MiB pages: with small ones a decode step would miss the TLB
 * every few lines. Refusal of them leaves small pages: slower, not wrong.
 * Errors  RESOURCE_EXHAUSTED (node). */
NODISCARD status_t huge_memory_alloc(size_t bytes, struct diag *diag, void **ret_memory);

/* Takes NULL. The same `bytes`. */
void huge_memory_free(void *memory, size_t bytes);

#endif
