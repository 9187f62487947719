/* sample_select: the exact end of a run of best tokens, among the tokens of one bin, by the threads of one block.
 * Flow:    sample.cu (SELECT) -> [sample_select]
 * Thread:  of the device; functions are "block".
 * Memory:  the block's shared memory; the row's list, or the row itself where the list was too short. */
#ifndef BATON_KERNELS_CUDA_SAMPLE_SELECT_CUH
#define BATON_KERNELS_CUDA_SAMPLE_SELECT_CUH

#include "kernels/cuda/sample_block.cuh"

/* The tokens of bins bin_first .. bin_last of a row. */
struct sample_items {
    const float *row;
    uint32_t vocab;
    float max;
    float scale;
    uint32_t bin_first;
    uint32_t bin_last;
    uint64_t *list;  /* [min(listed, CUDA_SAMPLE_LIST_MAX)] key << 32 | token, in no order */
    uint32_t listed; /* how many there are */
};

DEVICE_FN bool is_listed(const struct sample_items &items, float logit)
{
    const uint32_t bin = bin_of(items.max, items.scale, logit);
    return items.bin_first <= bin && bin <= items.bin_last;
}

/* Places to look at for tokens: the list, or all of the row. */
DEVICE_FN uint32_t item_places(const struct sample_items &items)
{
    return items.listed <= CUDA_SAMPLE_LIST_MAX ? items.listed : items.vocab;
}

/* The token at a place; false: none is there. */
DEVICE_FN bool item_at(const struct sample_items &items, uint32_t place, uint32_t *ret_key, uint32_t *ret_token)
{
    if (items.listed <= CUDA_SAMPLE_LIST_MAX) {
        const uint64_t item = load8_l2(&items.list[place]);
        *ret_key = (uint32_t)(item >> 32);
        *ret_token = (uint32_t)item;
        return true;
    }
    const float logit = items.row[place];
    *ret_key = key_of(logit);
    *ret_token = place;
    return is_listed(items, logit);
}

/* The mass of those that lie in a run. */
DEVICE_FN uint64_t sum_of_run(struct sample_shared *shared, const struct sample_items &items,
                              const struct softmax &softmax, const struct cuda_sample_run &run)
{
    const uint32_t places = item_places(items);
    uint64_t mass = 0;
    for (uint32_t place = threadIdx.x; place < places; place += CUDA_SAMPLE_THREADS) {
        uint32_t key, token;
        if (!item_at(items, place, &key, &token) || !is_in_run(run, key, token)) { continue; }
        mass += mass_of(softmax, logit_of(key));
    }
    return block_sum(shared, mass);
}

/* One digit of a number that is looked for, from its highest bit on: of the values seen so far, those that begin as
 * it does. */
struct radix {
    uint32_t prefix; /* the bits found */
    uint32_t bits;   /* how many lower ones are not */
};

DEVICE_FN bool radix_begins(const struct radix &radix, uint32_t value)
{
    return (uint32_t)((uint64_t)value >> radix.bits) == radix.prefix;
}

/* What all values between two bounds begin with. */
DEVICE_FN struct radix radix_between(uint32_t lowest, uint32_t highest)
{
    const uint32_t bits = CUDA_WARP - count_leading_zeros(lowest ^ highest); /* 32 for equal ones: none is open */
    return {(uint32_t)((uint64_t)highest >> bits), bits};
}

#define RADIX_DIGIT_BITS 9u
static_assert((1u << RADIX_DIGIT_BITS) == CUDA_SAMPLE_BINS, "a thread for each value of a digit");

/* The run that ends with the token at which the best of the listed tokens within `within` come to `needed`: tokens
 * (by_count), or mass. 1 <= needed <= what they come to. A radix selection from the first bit in which they differ, first
 * over keys, then, among equals of the last key, over token ids; so no input makes it slow. */
DEVICE_FN struct cuda_sample_run select_run(struct sample_shared *shared, const struct sample_items &items,
                                            const struct softmax &softmax, const struct cuda_sample_run &within,
                                            bool by_count, uint64_t needed)
{
    const uint32_t places = item_places(items);
    uint32_t lowest = TOKEN_NONE, highest = 0;
    for (uint32_t place = threadIdx.x; place < places; place += CUDA_SAMPLE_THREADS) {
        uint32_t key, token;
        if (!item_at(items, place, &key, &token) || !is_in_run(within, key, token)) { continue; }
        lowest = key < lowest ? key : lowest;
        highest = key > highest ? key : highest;
    }
    lowest = block_min(shared, lowest);
    highest = block_max(shared, highest);
    struct radix radix = radix_between(lowest, highest);
    while (radix.bits > 0) {
        const uint32_t width = radix.bits < RADIX_DIGIT_BITS ? radix.bits : RADIX_DIGIT_BITS;
        const uint32_t shift = radix.bits - width, digit_max = (1u << width) - 1;
        histogram_clear(shared);
        for (uint32_t place = threadIdx.x; place < places; place += CUDA_SAMPLE_THREADS) {
            uint32_t key, token;
            if (!item_at(items, place, &key, &token) || !is_in_run(within, key, token)) { continue; }
            if (!radix_begins(radix, key)) { continue; }
            histogram_add(shared, key >> shift & digit_max, by_count ? 1 : mass_of(softmax, logit_of(key)));
        }
        block_sync();
        /* Thread 0 has the best digit. */
        const uint64_t own = threadIdx.x <= digit_max ? histogram_of(shared, digit_max - threadIdx.x) : 0;
        const struct crossing cut = block_crossing(shared, own, needed - 1);
        const uint32_t digit = cut.thread <= digit_max ? digit_max - cut.thread : 0;
        needed -= cut.before;
        radix = {radix.prefix << width | digit, shift};
    }
    const uint32_t key_last = radix.prefix;

    /* Equal logits weigh the same, so how many of them are kept is a quotient. */
    const uint64_t each = by_count ? 1 : mass_of(softmax, logit_of(key_last));
    uint64_t equals_needed = each > 1 ? (needed + each - 1) / each : needed;
    uint64_t equals = 0;
    lowest = TOKEN_NONE;
    highest = 0;
    for (uint32_t place = threadIdx.x; place < places; place += CUDA_SAMPLE_THREADS) {
        uint32_t key, token;
        if (!item_at(items, place, &key, &token) || !is_in_run(within, key, token) || key != key_last) { continue; }
        lowest = token < lowest ? token : lowest;
        highest = token > highest ? token : highest;
        equals++;
    }
    lowest = block_min(shared, lowest);
    highest = block_max(shared, highest);
    equals = block_sum(shared, equals);
    if (equals_needed >= equals) { return {key_last, highest}; }
    radix = radix_between(lowest, highest);
    while (radix.bits > 0) {
        const uint32_t width = radix.bits < RADIX_DIGIT_BITS ? radix.bits : RADIX_DIGIT_BITS;
        const uint32_t shift = radix.bits - width, digit_max = (1u << width) - 1;
        histogram_clear(shared);
        for (uint32_t place = threadIdx.x; place < places; place += CUDA_SAMPLE_THREADS) {
            uint32_t key, token;
            if (!item_at(items, place, &key, &token) || !is_in_run(within, key, token) || key != key_last) { continue; }
            if (radix_begins(radix, token)) { histogram_add(shared, token >> shift & digit_max, 1); }
        }
        block_sync();
        const uint64_t own = threadIdx.x <= digit_max ? histogram_of(shared, threadIdx.x) : 0;
        const struct crossing cut = block_crossing(shared, own, equals_needed - 1);
        equals_needed -= cut.before;
        radix = {radix.prefix << width | (cut.thread <= digit_max ? cut.thread : digit_max), shift};
    }
    return {key_last, radix.prefix};
}

#endif
