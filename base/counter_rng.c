#include "base/counter_rng.h"

#define ROUNDS 10u

struct counter_rng_block counter_rng_philox(struct counter_rng_block counter, uint32_t key_low, uint32_t key_high)
{
    uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
    for (unsigned round = 0; round < ROUNDS; round++) {
        /* The paper's multipliers M0, M1 and, for the key, the Weyl steps W0, W1. */
        uint64_t product0 = (uint64_t)0xd2511f53u * c0;
        uint64_t product1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key_low;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key_high;
        c1 = (uint32_t)product1;
        c3 = (uint32_t)product0;
        key_low += 0x9e3779b9u;
        key_high += 0xbb67ae85u;
    }
    return (struct counter_rng_block){{c0, c1, c2, c3}};
}

uint64_t counter_rng_draw(uint64_t seed, uint32_t stream, uint32_t position)
{
    struct counter_rng_block counter = {{position, stream, 0, 0}};
    struct counter_rng_block bits = counter_rng_philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
    return bits.word[0] | (uint64_t)bits.word[1] << 32;
}
