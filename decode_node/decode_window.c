/* Sliding windows: where no layer sees more than the last window_tokens tokens, blocks that lie wholly
 * before them are given back while the request runs, so that it holds the same few blocks at any length.
 *
 * The table keeps its length: entries before seq->block_first are stale and not read, as the kernels
 * promise. What is given back has its name and stays cached, so the next turn of a long chat finds it: it
 * needs the blocks that the window before its first missing token sees, and none before those. */
#include "base/check.h"
#include "decode_node/decode_state.h"

uint32_t window_first(const struct decode_core *core, uint32_t position)
{
    uint32_t window = core->config.window_tokens;
    if (window == 0 || position < window) { return 0; }
    return (position - window + 1) / core->config.block_tokens;
}

/* The window before a chunk and the chunk itself, wherever in their blocks they begin and end. */
uint32_t window_blocks_max(const struct decode_core *core)
{
    if (core->config.window_tokens == 0) { return UINT32_MAX; }
    uint64_t tokens = (uint64_t)core->config.window_tokens + core->config.chunk_tokens;
    return (uint32_t)((tokens + core->config.block_tokens - 1) / core->config.block_tokens) + 1;
}

void window_slide(struct decode_core *core, struct decode_seq *seq)
{
    uint32_t first = window_first(core, seq->computed);
    if (first <= seq->block_first) { return; }
    CHECK(first <= seq->block_count);
    kv_cache_release(core->cache, first - seq->block_first, seq_own_blocks(seq));
    seq->block_first = first;
}

uint32_t window_find_cached(struct decode_core *core, struct decode_seq *seq, uint32_t most)
{
    uint32_t found = 0;
    uint32_t run = 0; /* blocks in a row that are cached, up to this one */
    for (uint32_t b = 0; b < most; b++) {
        seq_name_blocks(core, seq, b + 1);
        run = kv_cache_has(core->cache, seq->hashes[b]) ? run + 1 : 0;
        if (b + 1 - run <= window_first(core, (b + 1) * core->config.block_tokens)) { found = b + 1; }
    }
    return found;
}
