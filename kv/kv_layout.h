/* kv_layout: where each byte of a KV block lies.
 * Flow:    model config -> [kv_layout] -> pool, attention, layer push, fingerprint
 * Thread:  any; a plain value.
 * Memory:  none.
 *
 * A block is [layer][K values of all heads | V values of all heads | scales]. One (block, layer)
 * slice is contiguous: the layer push sends it. A whole block is contiguous too: offload moves it.
 * Every byte of a token's K and V depends on that token alone, and no two tokens share a byte.
 *
 * Values come in tiles of 16 tokens, in the order in which attention reads them:
 *   K  [kv_head][tile][head_dim / pair][16 tokens][pair]: a vector of 16 lanes is one dimension, or
 *      one pair of dimensions, of 16 tokens; nothing is turned while attending
 *   V  [kv_head][tile][16 / pair][head_dim][pair]: a lane is one dimension, or one dimension of a
 *      pair of tokens
 * pair is 2 for bf16, whose dot-product instructions take two values a lane (and whose pairs come
 * apart by a shift and a mask where there are none), 1 for every other dtype.
 *
 * A device takes values row by row (KV_ORDER_ROWS): K as [kv_head][token][head_dim], then V the same.
 *
 * int8 and fp8_e4m3 have one bf16 scale per token, kv head and K or V, after the values:
 * [kv_head][tile][K|V][16 tokens]. A value is scale * code. The scale is the least bf16 not below
 * max|x| / 127 (int8) or / 448 (fp8), that quotient rounded to f32; the code is x / scale rounded to
 * f32, then to the nearest code, ties to even: the scale is rounded up, so no code saturates. Zeros
 * are scale 0 and codes 0. A row with a NaN or an infinity in it is codes 0 and a NaN for scale: all of
 * it reads as NaN, which shows, where a saturated value would pass.
 *
 * Bytes a token, against bf16: (head_dim + 2) / (2 * head_dim); 51.6 % at head_dim 64, 50.8 % at 128.
 * Source: the paging of arXiv 2309.06180, with the layer outermost inside a block. */
#ifndef BATON_KV_KV_LAYOUT_H
#define BATON_KV_KV_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"

/* Grows when the byte order of a block changes; part of the fingerprint. */
#define KV_LAYOUT_VERSION 2u

#define KV_TILE_TOKENS 16u /* block_tokens is a multiple of it */

/* The numbers go over the wire in layout fingerprints: append only. */
enum kv_order {
    KV_ORDER_TILES = 0,
    KV_ORDER_ROWS = 1,
};
#define KV_ORDER_COUNT 2

struct kv_layout {
    uint32_t block_tokens; /* 16 or 32 */
    uint32_t layer_count;
    uint32_t kv_heads;
    uint32_t head_dim;
    enum dtype dtype;
    enum kv_order order;
};

/* Values that lie side by side: see above. */
static inline uint32_t kv_layout_pair(const struct kv_layout *layout) { return layout->dtype == DTYPE_BF16 ? 2 : 1; }

static inline bool kv_layout_has_scales(const struct kv_layout *layout)
{
    return layout->dtype == DTYPE_INT8 || layout->dtype == DTYPE_FP8_E4M3;
}

/* Bytes of the values of K or of V of one head in one tile. */
static inline size_t kv_layout_tile_bytes(const struct kv_layout *layout)
{
    return (size_t)KV_TILE_TOKENS * layout->head_dim * dtype_bytes(layout->dtype);
}

/* Bytes of the values of K or of V of one head in one layer of one block. */
static inline size_t kv_layout_head_bytes(const struct kv_layout *layout)
{
    return (size_t)layout->block_tokens * layout->head_dim * dtype_bytes(layout->dtype);
}

/* Bytes of one (block, layer) slice. */
static inline size_t kv_layout_slice_bytes(const struct kv_layout *layout)
{
    size_t scales = kv_layout_has_scales(layout) ? (size_t)layout->block_tokens * sizeof(uint16_t) : 0;
    return 2 * (size_t)layout->kv_heads * (kv_layout_head_bytes(layout) + scales);
}

/* KV_ORDER_ROWS: heads of V follow those of K. */
static inline size_t kv_layout_row_offset(const struct kv_layout *layout, uint32_t head, uint32_t slot, uint32_t d)
{
    return (((size_t)head * layout->block_tokens + slot) * layout->head_dim + d) * dtype_bytes(layout->dtype);
}

/* From the start of a slice to dimension d of the K of a token. */
static inline size_t kv_layout_k_offset(const struct kv_layout *layout, uint32_t head, uint32_t slot, uint32_t d)
{
    if (layout->order == KV_ORDER_ROWS) { return kv_layout_row_offset(layout, head, slot, d); }
    const uint32_t pair = kv_layout_pair(layout);
    size_t in_tile = ((size_t)(d / pair) * KV_TILE_TOKENS + slot % KV_TILE_TOKENS) * pair + d % pair;
    return head * kv_layout_head_bytes(layout) + slot / KV_TILE_TOKENS * kv_layout_tile_bytes(layout)
         + in_tile * dtype_bytes(layout->dtype);
}

/* The same of its V. */
static inline size_t kv_layout_v_offset(const struct kv_layout *layout, uint32_t head, uint32_t slot, uint32_t d)
{
    if (layout->order == KV_ORDER_ROWS) { return kv_layout_row_offset(layout, layout->kv_heads + head, slot, d); }
    const uint32_t pair = kv_layout_pair(layout), in = slot % KV_TILE_TOKENS;
    size_t in_tile = ((size_t)(in / pair) * layout->head_dim + d) * pair + in % pair;
    return (layout->kv_heads + head) * kv_layout_head_bytes(layout)
         + slot / KV_TILE_TOKENS * kv_layout_tile_bytes(layout) + in_tile * dtype_bytes(layout->dtype);
}

/* From the start of a slice to the scale of the K of a token; that of its V lies
 * 2 * KV_TILE_TOKENS bytes further. Only where kv_layout_has_scales(). */
static inline size_t kv_layout_scale_offset(const struct kv_layout *layout, uint32_t head, uint32_t slot)
{
    size_t tile = head * (size_t)(layout->block_tokens / KV_TILE_TOKENS) + slot / KV_TILE_TOKENS;
    return 2 * layout->kv_heads * kv_layout_head_bytes(layout)
         + (tile * 2 * KV_TILE_TOKENS + slot % KV_TILE_TOKENS) * sizeof(uint16_t);
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
