#include "base/rng.h"

#include "base/check.h"

static uint64_t rotl(uint64_t x, unsigned bits) { return (x << bits) | (x >> (64 - bits)); }

struct rng rng_init(uint64_t seed)
{
    struct rng rng;
    for (unsigned i = 0; i < 4; i++) { rng.word[i] = rng_splitmix64(&seed); }
    /* splitmix64 maps distinct states to distinct outputs, so at most one word is zero. */
    return rng;
}

uint64_t rng_next(struct rng *rng)
{
    uint64_t *s = rng->word;
    uint64_t out = rotl(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return out;
}

uint64_t rng_below(struct rng *rng, uint64_t bound)
{
    CHECK(bound >= 1);
    /* The 2^64 mod bound lowest values are thrown away; the rest is a multiple of bound. */
    uint64_t reject = (0 - bound) % bound;
    uint64_t x;
    do { x = rng_next(rng); } while (x < reject);
    return x % bound;
}

double rng_unit(struct rng *rng) { return (double)(rng_next(rng) >> 11) * 0x1p-53; }

uint64_t rng_splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
