/* sample_math: the integers that sampling decides by, the same bits as model/token_mass.c and model/token_select.c.
 * Flow:    sample.cu, sample_block.cuh -> [sample_math]
 * Thread:  of the device; no memory.
 *
 * Every f64 operation here stands in model/token_mass.c in the same order, and each is rounded once. */
#ifndef BATON_KERNELS_CUDA_SAMPLE_MATH_CUH
#define BATON_KERNELS_CUDA_SAMPLE_MATH_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sample_args.h"

#define MASS_BITS 44u
#define MASS_ONE ((uint64_t)1 << MASS_BITS)

#define KEY_MINUS_INF 0x007fffffu /* key_of(-inf) */
#define TOKEN_NONE 0xffffffffu

/* An unsigned integer that orders as the float does; adding +0 makes the two zeros one. Not for a NaN. */
DEVICE_FN uint32_t key_of(float logit)
{
    const uint32_t bits = f32_bits(add_rn(logit, 0.0f));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

DEVICE_FN float logit_of(uint32_t key)
{
    return f32_of_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* exp(d) in units of 2^-44, rounded; d <= 0. See mass_of_difference() of model/token_mass.c for the reasons. */
DEVICE_FN uint64_t mass_of_difference(double d)
{
    d = d > -40.0 ? d : -40.0;
    const double shifter = 0x1.8p52;
    const double shifted = add_rn64(mul_rn64(d, 0x1.71547652b82fep0), shifter);
    const double n = add_rn64(shifted, -shifter);
    const double r = add_rn64(add_rn64(d, -mul_rn64(n, 0x1.62e42fee00000p-1)), -mul_rn64(n, 0x1.a39ef35793c76p-33));
    double p = 1.0 / 479001600.0;
    p = add_rn64(mul_rn64(p, r), 1.0 / 39916800.0);
    p = add_rn64(mul_rn64(p, r), 1.0 / 3628800.0);
    p = add_rn64(mul_rn64(p, r), 1.0 / 362880.0);
    p = add_rn64(mul_rn64(p, r), 1.0 / 40320.0);
    p = add_rn64(mul_rn64(p, r), 1.0 / 5040.0);
    p = add_rn64(mul_rn64(p, r), 1.0 / 720.0);
    p = add_rn64(mul_rn64(p, r), 1.0 / 120.0);
    p = add_rn64(mul_rn64(p, r), 1.0 / 24.0);
    p = add_rn64(mul_rn64(p, r), 1.0 / 6.0);
    p = add_rn64(mul_rn64(p, r), 0.5);
    p = add_rn64(mul_rn64(p, r), 1.0);
    p = add_rn64(mul_rn64(p, r), 1.0);
    const uint64_t exponent = (f64_bits(shifted) + (1023 + MASS_BITS)) << 52;
    const double whole = add_rn64(mul_rn64(p, f64_of_bits(exponent)), 0x1p52);
    return f64_bits(whole) - f64_bits(0x1p52);
}

/* What the masses of a row depend on. */
struct softmax {
    float max;
    double inverse_temperature;
};

/* token_mass_of(): infinite logits share everything, for below an infinite best the difference is -inf. */
DEVICE_FN uint64_t mass_of(const struct softmax &softmax, float logit)
{
    if (logit == softmax.max) { return MASS_ONE; }
    return mass_of_difference(mul_rn64(add_rn64((double)logit, -(double)softmax.max), softmax.inverse_temperature));
}

/* True where logit lies more than `reach` below the best: for most of a vocabulary this spares the f64. */
DEVICE_FN bool is_beyond(float max, float logit, float reach)
{
    return add_rn(max, -logit) > reach;
}

/* Distance from the best in steps, the same or more for a lower logit, since rounding keeps order. The last bin is
 * for all that is farther, infinities too. */
DEVICE_FN uint32_t bin_of(float max, float scale, float logit)
{
    if (logit == max) { return 0; }
    const float steps = mul_rn(add_rn(max, -logit), scale);
    return steps < (float)(CUDA_SAMPLE_BINS - 1) ? (uint32_t)steps : CUDA_SAMPLE_BINS - 1; /* a NaN is farther too */
}

/* top_p of total, rounded up, 1 .. total: mass_needed() of model/sampler.c. */
DEVICE_FN uint64_t mass_needed(float top_p, uint64_t total)
{
    const double needed = ceil(mul_rn64((double)top_p, (double)total));
    if (needed < 1.0) { return 1; }
    return needed < (double)total ? (uint64_t)needed : total;
}

/* The high half of bits * total: scale() of model/sampler.c. */
DEVICE_FN uint64_t draw_target(uint64_t bits, uint64_t total)
{
    const uint64_t bits_high = bits >> 32, bits_low = bits & 0xffffffffu;
    const uint64_t total_high = total >> 32, total_low = total & 0xffffffffu;
    const uint64_t low = bits_low * total_low;
    const uint64_t middle = bits_high * total_low + (low >> 32);
    const uint64_t middle2 = bits_low * total_high + (middle & 0xffffffffu);
    return bits_high * total_high + (middle >> 32) + (middle2 >> 32);
}

DEVICE_FN bool is_in_run(const struct cuda_sample_run &run, uint32_t key, uint32_t token)
{
    return key > run.key || (key == run.key && token <= run.token);
}

#endif
