#include "model/token_mass.h"

#include <math.h>
#include <string.h>

/* Every loop that must be fast is written once, as an inline body of integer reductions and
 * element-wise IEEE operations, and compiled for the base instruction set, for AVX2 and for AVX-512.
 * None may fuse multiply-add (see -ffp-contract=off in BUILD), so all give the same bits. */
#define BODY static inline __attribute__((always_inline))
BODY int32_t bits_of_f32(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

BODY double f64_of_bits(int64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

BODY int64_t bits_of_f64(double x)
{
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* A signed integer that orders as the float does; adding +0 makes the two zeros one. */
BODY int32_t order_of(float x)
{
    int32_t bits = bits_of_f32(x + 0.0f);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

/* Mass for a difference d = (logit - max) / temperature, <= 0, not NaN. */
BODY uint64_t mass_of_difference(double d)
{
    /* Below -40 the mass rounds to 0 (exp(-40) * 2^44 < 1e-4); -inf becomes a number here. */
    d = d > -40.0 ? d : -40.0;
    /* d = n * ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^52 rounds to the nearest integer and
     * leaves it in the low bits. ln 2 is split in two so that n * high is exact. */
    const double shifter = 0x1.8p52;
    double shifted = d * 0x1.71547652b82fep0 + shifter;
    double n = shifted - shifter;
    double r = (d - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
    /* Taylor's series to r^12: the rest is below 2e-16. */
    double p = 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    /* 2^(n + 44), made from its exponent field; n is -58 .. 0, so it is normal. The shift drops
     * the shifter's own exponent bits. */
    int64_t exponent = (int64_t)((uint64_t)(bits_of_f64(shifted) + (1023 + TOKEN_MASS_BITS)) << 52);
    /* Adding 2^52 rounds to the nearest integer and leaves it in the mantissa. */
    double whole = p * f64_of_bits(exponent) + 0x1p52;
    return (uint64_t)(bits_of_f64(whole) - bits_of_f64(0x1p52));
}

BODY uint64_t sum_body(const float *logits, uint32_t count, float max, double inverse_temperature)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += mass_of_difference(((double)logits[i] - (double)max) * inverse_temperature);
    }
    return sum;
}

BODY void masses_body(const float *logits, uint32_t count, float max, double inverse_temperature, uint64_t *ret_masses)
{
    for (uint32_t i = 0; i < count; i++) {
        ret_masses[i] = mass_of_difference(((double)logits[i] - (double)max) * inverse_temperature);
    }
}

BODY void extremes_body(const float *logits, uint32_t count, int32_t *ret_order, int32_t *ret_magnitude)
{
    int32_t order = INT32_MIN;
    int32_t magnitude = 0;
    for (uint32_t i = 0; i < count; i++) {
        int32_t here = order_of(logits[i]);
        int32_t size = bits_of_f32(logits[i]) & 0x7fffffff;
        order = here > order ? here : order;
        magnitude = size > magnitude ? size : magnitude;
    }
    *ret_order = order;
    *ret_magnitude = magnitude;
}

/* Defines the three loops for one instruction set. */
#define TWIN(name, attribute)                                                                                       \
    attribute static uint64_t sum_##name(const float *logits, uint32_t count, float max, double inverse_temperature) \
    {                                                                                                               \
        return sum_body(logits, count, max, inverse_temperature);                                                   \
    }                                                                                                               \
    attribute static void masses_##name(const float *logits, uint32_t count, float max, double inverse_temperature,  \
                                        uint64_t *ret_masses)                                                       \
    {                                                                                                               \
        masses_body(logits, count, max, inverse_temperature, ret_masses);                                           \
    }                                                                                                               \
    attribute static void extremes_##name(const float *logits, uint32_t count, int32_t *ret_order,                  \
                                          int32_t *ret_magnitude)                                                   \
    {                                                                                                               \
        extremes_body(logits, count, ret_order, ret_magnitude);                                                     \
    }

struct twin {
    uint64_t (*sum)(const float *logits, uint32_t count, float max, double inverse_temperature);
    void (*masses)(const float *logits, uint32_t count, float max, double inverse_temperature, uint64_t *ret_masses);
    void (*extremes)(const float *logits, uint32_t count, int32_t *ret_order, int32_t *ret_magnitude);
};

TWIN(base, )
#if defined(__x86_64__)
TWIN(avx2, __attribute__((target("avx2"))))
#if defined(__clang__)
TWIN(avx512, __attribute__((target("avx512f,avx512dq,avx512vl"))))
#else
TWIN(avx512, __attribute__((target("avx512f,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif
#define TWIN_COUNT 3u
static const struct twin twins[TWIN_COUNT] = {
    {sum_base, masses_base, extremes_base}, {sum_avx2, masses_avx2, extremes_avx2}, {sum_avx512, masses_avx512, extremes_avx512}};

static bool machine_runs(unsigned twin)
{
    switch (twin) {
    case 0: return true;
    case 1: return __builtin_cpu_supports("avx2") != 0;
    case 2:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
    default: return false;
    }
}
#else
#define TWIN_COUNT 1u
static const struct twin twins[TWIN_COUNT] = {{sum_base, masses_base, extremes_base}};
static bool machine_runs(unsigned twin) { return twin == 0; }
#endif

/* A few loads per row, against a hundred thousand operations; so no start-up step is needed. */
static const struct twin *best_twin(void)
{
    unsigned twin = TWIN_COUNT - 1;
    while (!machine_runs(twin)) { twin--; }
    return &twins[twin];
}

/* The first token whose order equals `order`. Blocks first, so that the compare vectorizes. */
static uint32_t find_order(const float *logits, uint32_t count, int32_t order)
{
    uint32_t first = 0;
    for (; first + 64 <= count; first += 64) {
        int32_t hit = 0;
        for (uint32_t i = 0; i < 64; i++) { hit |= order_of(logits[first + i]) == order; }
        if (hit) { break; }
    }
    while (first < count && order_of(logits[first]) != order) { first++; }
    return first;
}

struct logit_scan token_mass_scan(const float *logits, uint32_t count)
{
    int32_t order;
    int32_t magnitude;
    best_twin()->extremes(logits, count, &order, &magnitude);
    struct logit_scan scan = {.has_nan = magnitude > 0x7f800000};
    if (scan.has_nan) {
        while (!isnan(logits[scan.nan_at])) { scan.nan_at++; }
        return scan;
    }
    scan.argmax = find_order(logits, count, order);
    scan.max = logits[scan.argmax];
    return scan;
}

uint64_t token_mass_of(float logit, float max, double inverse_temperature)
{
    /* inf - inf is no number: the infinite ones share everything. */
    if (isinf(max)) { return logit == max ? TOKEN_MASS_ONE : 0; }
    return mass_of_difference(((double)logit - (double)max) * inverse_temperature);
}

void token_mass_many(const float *logits, uint32_t count, float max, double inverse_temperature, uint64_t *ret_masses)
{
    if (!isinf(max)) {
        best_twin()->masses(logits, count, max, inverse_temperature, ret_masses);
        return;
    }
    for (uint32_t i = 0; i < count; i++) { ret_masses[i] = token_mass_of(logits[i], max, inverse_temperature); }
}

uint64_t token_mass_sum(const float *logits, uint32_t count, float max, double inverse_temperature,
                        uint64_t *ret_blocks)
{
    const struct twin *twin = best_twin();
    uint64_t total = 0;
    for (uint32_t first = 0; first < count; first += TOKEN_MASS_BLOCK) {
        uint32_t len = count - first < TOKEN_MASS_BLOCK ? count - first : TOKEN_MASS_BLOCK;
        uint64_t sum = 0;
        if (isinf(max)) {
            for (uint32_t i = 0; i < len; i++) { sum += token_mass_of(logits[first + i], max, inverse_temperature); }
        } else {
            sum = twin->sum(logits + first, len, max, inverse_temperature);
        }
        if (ret_blocks) { ret_blocks[first / TOKEN_MASS_BLOCK] = sum; }
        total += sum;
    }
    return total;
}

bool token_mass_sum_by(unsigned twin, const float *logits, uint32_t count, float max, double inverse_temperature,
                       uint64_t *ret_sum, int32_t *ret_order)
{
    if (twin >= TWIN_COUNT || !machine_runs(twin)) { return false; }
    int32_t magnitude;
    *ret_sum = twins[twin].sum(logits, count, max, inverse_temperature);
    twins[twin].extremes(logits, count, ret_order, &magnitude);
    return true;
}

double token_mass_log(double value)
{
    /* value = m * 2^e with m in [sqrt 1/2, sqrt 2); ln m = 2 atanh((m - 1) / (m + 1)). */
    int64_t bits = bits_of_f64(value);
    int64_t e = ((bits >> 52) & 0x7ff) - 1023;
    double m = f64_of_bits((bits & 0x000fffffffffffff) | 0x3ff0000000000000);
    if (m > 0x1.6a09e667f3bcdp0) {
        m *= 0.5;
        e += 1;
    }
    double s = (m - 1.0) / (m + 1.0); /* at most 0.1716 */
    double square = s * s;
    double series = 0.0;
    for (int k = 23; k >= 3; k -= 2) { series = series * square + 1.0 / k; }
    double ln_m = 2.0 * (s + s * square * series);
    return ((double)e * 0x1.a39ef35793c76p-33 + ln_m) + (double)e * 0x1.62e42fee00000p-1;
}
