#include "model/tokenizer/merge_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

status_t merge_table_init(struct merge_table *table, size_t count)
{
    unsigned bits = 4;
    while (((size_t)1 << bits) < 2 * count) { bits++; }
    table->merges = malloc(sizeof *table->merges << bits);
    if (!table->merges) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    memset(table->merges, 0xff, sizeof *table->merges << bits);
    table->shift = 64 - bits;
    table->mask = ((uint64_t)1 << bits) - 1;
    return STATUS_OK;
}

void merge_table_fini(struct merge_table *table)
{
    free(table->merges);
    *table = (struct merge_table){0};
}

void merge_table_add(struct merge_table *table, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint64_t slot = (pair * UINT64_C(0x9e3779b97f4a7c15)) >> table->shift;
    while (table->merges[slot].pair != UINT64_MAX && table->merges[slot].pair != pair) {
        slot = (slot + 1) & table->mask;
    }
    table->merges[slot] = (struct merge){.pair = pair, .rank = rank, .id = id};
}
