/* Sliding windows: a long prompt of a model whose every layer sees only a window holds a ring of blocks.
 *
 * Entry i of the block table is block i % ring: what has left the window of every row still to be
 * computed is overwritten. The ring has room for a window and a chunk, so that the first row of a chunk
 * still finds its window while the last one is written, and for a block that both cut. Memory is the
 * same at any length.
 *
 * Blocks that were pushed are read until the transfer is over. So a ring is used only where the grant
 * begins with a block that no later one overwrites; a decode node asks for what its window needs, and
 * that is so by a chunk. Blocks of a ring have no names: their content does not last. */
#include "base/check.h"
#include "prefill_node/prefill_state.h"

uint32_t prefill_ring_blocks(const struct prefill_core_config *config, uint32_t table_count, uint32_t grant_first)
{
    if (config->window_tokens == 0) { return 0; }
    uint64_t span = (uint64_t)config->window_tokens + config->chunk_tokens;
    uint64_t ring = (span + config->block_tokens - 1) / config->block_tokens + 1;
    return ring < table_count && table_count - grant_first <= ring ? (uint32_t)ring : 0;
}

void prefill_ring_fill(struct prefill_job *job, uint32_t table_count)
{
    CHECK(job->ring > 0);
    for (uint32_t i = job->ring; i < table_count; i++) { job->blocks[i] = job->blocks[i - job->ring]; }
}
