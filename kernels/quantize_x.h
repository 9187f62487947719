/* quantize_x: the rounding of activations of quantize.h, as text that each instruction set compiles
 * with its own flags: plain loops that become vectors, every operation rounded once, so that all give
 * the same codes.
 * Flow:    included by quantize.c and kernels/cpu/gemm_int_impl.h alone
 * Thread:  any; plain arithmetic.
 * Memory:  none. */
#ifndef BATON_KERNELS_QUANTIZE_X_H
#define BATON_KERNELS_QUANTIZE_X_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define QUANTIZE_X_MIN 0x1p-100f
#define QUANTIZE_X_CODES 127.0f
#define QUANTIZE_X_STEP (1.0f / 127.0f)

/* The largest magnitude, as bits: so a NaN is larger than infinity, and that larger than any number. */
static inline uint32_t quantize_largest_bits(const float *x, uint32_t count)
{
    uint32_t largest = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], 4);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

/* What values are multiplied with to become codes, and codes to become values. */
static inline bool quantize_x_scale(uint32_t largest_bits, float *ret_factor, float *ret_scale)
{
    if (largest_bits >= 0x7f800000u) {
        *ret_factor = 0.0f;
        *ret_scale = NAN;
        return false;
    }
    float largest;
    memcpy(&largest, &largest_bits, 4);
    largest = largest < QUANTIZE_X_MIN ? QUANTIZE_X_MIN : largest;
    *ret_factor = QUANTIZE_X_CODES / largest;
    *ret_scale = largest * QUANTIZE_X_STEP;
    return true;
}

/* To nearest, ties to even, for |v| < 2^22, without a call: adding 1.5 * 2^23 rounds. */
static inline int32_t quantize_nearest(float v)
{
    float shifted = v + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return bits - 0x4b400000;
}

/* codes[i] = bias + nearest(x[i] * factor), as bytes. */
static inline void quantize_codes(const float *x, uint32_t count, float factor, int32_t bias, uint8_t *ret_codes)
{
    for (uint32_t i = 0; i < count; i++) { ret_codes[i] = (uint8_t)(quantize_nearest(x[i] * factor) + bias); }
}

#endif
