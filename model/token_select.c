#include "model/token_select.h"

#include <string.h>

#include "base/check.h"

static bool is_better(struct candidate a, struct candidate b)
{
    if (a.logit != b.logit) { return a.logit > b.logit; }
    return a.token < b.token;
}

/* The heap's root is the worst kept. */
static void sift_down(struct candidate *heap, uint32_t count, uint32_t at)
{
    struct candidate moving = heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= count) { break; }
        if (child + 1 < count && is_better(heap[child], heap[child + 1])) { child++; }
        if (!is_better(moving, heap[child])) { break; }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

static bool any_above(const float *logits, float bound)
{
    int hit = 0;
    for (uint32_t i = 0; i < 64; i++) { hit |= logits[i] > bound; }
    return hit != 0;
}

uint32_t token_select_best(const float *logits, uint32_t count, uint32_t k, struct candidate *ret_best)
{
    CHECK(k >= 1);
    CHECK(k <= TOKEN_SELECT_BEST_MAX);
    uint32_t kept = k < count ? k : count;
    for (uint32_t i = 0; i < kept; i++) { ret_best[i] = (struct candidate){.logit = logits[i], .token = i}; }
    for (uint32_t i = kept / 2; i-- > 0;) { sift_down(ret_best, kept, i); }
    for (uint32_t i = kept; i < count;) {
        /* A token equal to the root has the higher id, so only a strictly better one enters. */
        if (count - i >= 64 && !any_above(logits + i, ret_best[0].logit)) {
            i += 64;
            continue;
        }
        uint32_t end = count - i >= 64 ? i + 64 : count;
        for (; i < end; i++) {
            if (logits[i] > ret_best[0].logit) {
                ret_best[0] = (struct candidate){.logit = logits[i], .token = i};
                sift_down(ret_best, kept, 0);
            }
        }
    }
    for (uint32_t left = kept; left > 1; left--) {
        struct candidate worst = ret_best[0];
        ret_best[0] = ret_best[left - 1];
        ret_best[left - 1] = worst;
        sift_down(ret_best, left - 1, 0);
    }
    return kept;
}

void token_select_sort_by_token(struct candidate *candidates, uint32_t count)
{
    /* Shell sort: in place, no recursion, quick enough for a thousand. Ciura's gaps. */
    static const uint32_t gaps[] = {301, 132, 57, 23, 10, 4, 1};
    for (unsigned g = 0; g < sizeof gaps / sizeof gaps[0]; g++) {
        uint32_t gap = gaps[g];
        for (uint32_t i = gap; i < count; i++) {
            struct candidate moving = candidates[i];
            uint32_t at = i;
            for (; at >= gap && candidates[at - gap].token > moving.token; at -= gap) {
                candidates[at] = candidates[at - gap];
            }
            candidates[at] = moving;
        }
    }
}

/* An unsigned integer that orders as the float does; adding +0 makes the two zeros one. */
static uint32_t key_of(float logit)
{
    float x = logit + 0.0f;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Finds the key at which the measure (mass, or 1 each) of the best reaches `needed`, digit by
 * digit from the top: a radix select, so no input makes it slow. */
static uint32_t keep(struct candidate *candidates, uint32_t count, uint64_t needed, bool by_mass)
{
    enum { DIGIT_BITS_MAX = 11 };
    static const uint8_t shifts[3] = {21, 10, 0};
    static const uint8_t digit_bits[3] = {11, 11, 10};
    uint64_t measure[1 << DIGIT_BITS_MAX];
    uint32_t boundary = 0; /* the digits of the boundary key found so far */
    uint32_t known = 0;    /* which bits those are */
    uint64_t above = 0;    /* measure of all keys above the boundary */
    for (unsigned pass = 0; pass < 3; pass++) {
        uint32_t digit_count = (uint32_t)1 << digit_bits[pass];
        memset(measure, 0, digit_count * sizeof measure[0]);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t key = key_of(candidates[i].logit);
            if ((key & known) != boundary) { continue; }
            measure[(key >> shifts[pass]) & (digit_count - 1)] += by_mass ? candidates[i].mass : 1;
        }
        uint32_t digit = digit_count;
        do {
            CHECK(digit > 0); /* else `needed` is more than there is */
            digit--;
            above += measure[digit];
        } while (above < needed);
        above -= measure[digit];
        boundary |= digit << shifts[pass];
        known |= (digit_count - 1) << shifts[pass];
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t key = key_of(candidates[i].logit);
        if (key == boundary) { /* few; the others go or stay without a branch, which would be a coin toss */
            if (above >= needed) { continue; }
            above += by_mass ? candidates[i].mass : 1;
            candidates[kept++] = candidates[i];
            continue;
        }
        candidates[kept] = candidates[i];
        kept += key > boundary;
    }
    return kept;
}

uint32_t token_select_keep_count(struct candidate *candidates, uint32_t count, uint32_t needed)
{
    CHECK(needed >= 1);
    if (needed >= count) { return count; }
    return keep(candidates, count, needed, false);
}

uint32_t token_select_keep_mass(struct candidate *candidates, uint32_t count, uint64_t needed)
{
    CHECK(needed >= 1);
    return keep(candidates, count, needed, true);
}
