/* counter_rng: random bits that are a pure function of (key, counter).
 * Flow:    (seed; position, sequence index) -> [counter_rng] -> the draw of one token
 * Thread:  any; no state.
 * Memory:  none.
 *
 * A token's draw must be the same wherever and whenever it is sampled: on the prefill node,
 * on the decode node, after a preemption, after a death. A generator with a state would have
 * to be carried along and wound forward; this one is asked for draw number n.
 * Source   Philox4x32-10; Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
 *          1, 2, 3", SC 2011. Passes BigCrush; 2^128 counters for each of 2^64 keys. */
#ifndef BATON_BASE_COUNTER_RNG_H
#define BATON_BASE_COUNTER_RNG_H

#include <stdint.h>

struct counter_rng_block {
    uint32_t word[4];
};

/* 128 uniform bits. Cost: about 20 multiplications. */
struct counter_rng_block counter_rng_philox(struct counter_rng_block counter, uint32_t key_low, uint32_t key_high);

/* 64 uniform bits for draw `position` of stream `stream` under `seed`. The mapping to
 * Philox's words is part of what a user can rely on: the same seed gives the same tokens
 * in every later version.
 *   key     = seed's low word, seed's high word
 *   counter = position, stream, 0, 0
 *   bits    = word 0 + word 1 * 2^32 */
uint64_t counter_rng_draw(uint64_t seed, uint32_t stream, uint32_t position);

#endif
