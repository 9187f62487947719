/* rng: a small seeded generator for tests, benches and the simulator. Not for secrets, and
 *      not for sampling tokens: those draws must not depend on how many came before them
 *      (base/counter_rng.h).
 * Flow:    a seed that was printed -> [rng] -> the same run again
 * Thread:  the caller's; a plain value, one per stream.
 * Memory:  the caller's, 32 bytes.
 * Source   xoshiro256**, Blackman and Vigna, arXiv 1805.01407; seeded by splitmix64 (the same
 *          authors' advice, since nearby seeds must not give nearby states). */
#ifndef BATON_BASE_RNG_H
#define BATON_BASE_RNG_H

#include <stdint.h>

struct rng {
    uint64_t word[4]; /* never all zero */
};

struct rng rng_init(uint64_t seed);

/* 64 uniform bits. */
uint64_t rng_next(struct rng *rng);

/* Uniform in 0 .. bound-1, without bias; bound >= 1 (CHECK). */
uint64_t rng_below(struct rng *rng, uint64_t bound);

/* Uniform in [0, 1), a multiple of 2^-53. */
double rng_unit(struct rng *rng);

/* One step of splitmix64: advances *state, returns 64 mixed bits. */
uint64_t rng_splitmix64(uint64_t *state);

#endif
