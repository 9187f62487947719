/* kv_layout: where each byte of a KV block lies.
 * Flow:    model config -> [kv_layout] -> pool, attention, layer push, fingerprint
 * Thread:  any; a plain value.
 * Memory:  none.
 *
 * A block is [layer][K|V][kv_head][slot][head_dim]. One (block, layer) slice is contiguous:
 * the layer push sends it. A whole block is contiguous too: offload moves it.
 * Source: the paging of arXiv 2309.06180, with the layer outermost inside a block. */
#ifndef BATON_KV_KV_LAYOUT_H
#define BATON_KV_KV_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"

/* Grows when the byte order of a block changes; part of the fingerprint. */
#define KV_LAYOUT_VERSION 1u

struct kv_layout {
    uint32_t block_tokens; /* 16 or 32 */
    uint32_t layer_count;
    uint32_t kv_heads;
    uint32_t head_dim;
    enum dtype dtype;
};

/* Bytes of K or of V of one head in one layer of one block. */
static inline size_t kv_layout_head_bytes(const struct kv_layout *layout)
{
    return (size_t)layout->block_tokens * layout->head_dim * dtype_bytes(layout->dtype);
}

/* Bytes of one (block, layer) slice: K of all heads, then V of all heads. */
static inline size_t kv_layout_slice_bytes(const struct kv_layout *layout)
{
    return 2 * (size_t)layout->kv_heads * kv_layout_head_bytes(layout);
}

static inline size_t kv_layout_block_bytes(const struct kv_layout *layout)
{
    return layout->layer_count * kv_layout_slice_bytes(layout);
}

/* From the start of the pool to slice (block, layer). */
static inline size_t kv_layout_slice_offset(const struct kv_layout *layout, uint32_t block, uint32_t layer)
{
    return (size_t)block * kv_layout_block_bytes(layout) + layer * kv_layout_slice_bytes(layout);
}

/* Blocks that `token_count` tokens fill, the last one perhaps in part. */
static inline uint32_t kv_layout_blocks_for(const struct kv_layout *layout, uint32_t token_count)
{
    return (token_count + layout->block_tokens - 1) / layout->block_tokens;
}

#endif
