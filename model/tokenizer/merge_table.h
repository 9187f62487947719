/* merge_table: which two symbols make which third, and how early.
 * Flow:    bpe's load -> [merge_table] -> bpe
 * Thread:  constant after the last add.
 * Memory:  two open-addressing tables, taken at init for a known number of merges. */
#ifndef BATON_MODEL_TOKENIZER_MERGE_TABLE_H
#define BATON_MODEL_TOKENIZER_MERGE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define MERGE_NONE UINT32_MAX

struct merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX is free */
    uint32_t rank; /* the smaller goes first */
    uint32_t id;   /* what the two become */
};

struct merge_table {
    struct merge *merges;
    unsigned shift; /* 64 - log2(slots) */
    uint64_t mask;
};

/* {0} may be given to fini. */
NODISCARD status_t merge_table_init(struct merge_table *table, size_t count);
void merge_table_fini(struct merge_table *table);

/* A pair added again takes the new rank and id. */
void merge_table_add(struct merge_table *table, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);

/* The merge of two symbols, NULL when there is none. */
static inline const struct merge *merge_table_find(const struct merge_table *table, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    /* Fibonacci hashing: the high bits of the product depend on all bits of both ids. */
    uint64_t slot = (pair * UINT64_C(0x9e3779b97f4a7c15)) >> table->shift;
    for (;; slot = (slot + 1) & table->mask) {
        const struct merge *merge = &table->merges[slot];
        if (merge->pair == pair) { return merge; }
        if (merge->pair == UINT64_MAX) { return NULL; }
    }
}

#endif
