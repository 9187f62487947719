/* prefix_guess: which blocks the router believes to lie in one node's prefix cache.
 * Flow:    what was placed and generated -> [prefix_guess] -> the costs of the next placement
 * Thread:  the router's core thread only; names on any.
 * Memory:  about 40 bytes for each block remembered, taken at create and not touched before it is used.
 *
 * Never a truth: nodes evict without a word, and other routers place there too. The node says what it
 * found when it reserves. Blocks are known by the names of kv_hash; a chain goes in so that a block
 * is always younger than those behind it, so the oldest, which are forgotten first, are the ends of
 * chains, and what is left of a chain is always its beginning. */
#ifndef BATON_ROUTER_PREFIX_GUESS_H
#define BATON_ROUTER_PREFIX_GUESS_H

#include <stdint.h>

#include "base/status.h"
#include "kv/kv_hash.h"

struct prefix_guess;

/* blocks_max  at least 1: beyond it the oldest are forgotten
 * Errors      RESOURCE_EXHAUSTED (node): no memory. */
NODISCARD status_t prefix_guess_create(uint32_t blocks_max, struct prefix_guess **ret_guess);
void prefix_guess_destroy(struct prefix_guess *guess); /* takes NULL */

/* How many of a chain's first blocks are believed to be there.
 * names  [count] of the chain from block 0 on
 * Cost   O(log count) lookups. */
uint32_t prefix_guess_find(const struct prefix_guess *guess, const struct kv_hash *names, uint32_t count);

/* The node has them now, or is about to; of more than blocks_max the first ones.
 * Cost   O(count), about 100 ns a block where nothing of the table is in the processor's cache. */
void prefix_guess_add(struct prefix_guess *guess, const struct kv_hash *names, uint32_t count);

/* The node has more of a chain: what comes behind `parent`, which must be known, or nothing is added.
 * They become as old as it is, so that the chain's beginning need not be touched again. Cost O(count). */
void prefix_guess_extend(struct prefix_guess *guess, struct kv_hash parent, const struct kv_hash *names, uint32_t count);

/* The names of a text's first `count` full blocks.
 * tokens  [count * block_tokens]
 * Cost    about 200 ns a block: a long prompt is named on the thread that tokenized it. */
void prefix_guess_names(uint64_t cache_salt, const uint32_t *tokens, uint32_t block_tokens, uint32_t count,
                        struct kv_hash *ret_names);

uint32_t prefix_guess_count(const struct prefix_guess *guess);

/* CHECKs list, table and counts against each other. Cost O(blocks_max). */
void prefix_guess_audit(const struct prefix_guess *guess);

#endif
