/* Claims on the half-width formats: exact both ways, and rounded to nearest, ties to even. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "base/dtype.h"
#include "base/rng.h"

/* The value of f16 bits by IEEE 754's definition. */
static double f16_value(uint32_t bits)
{
    int exponent = (int)(bits >> 10 & 0x1f);
    double mantissa = bits & 0x3ff;
    double magnitude = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

/* All 65,536 patterns of f16 and bf16 widen to their value and come back as they were. */
static void every_pattern_round_trips(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float value = f16_to_f32((uint16_t)bits);
        if ((bits & 0x7c00) != 0x7c00) {
            assert_true((double)value == f16_value(bits));
            assert_int_equal(signbit(value) != 0, bits >> 15);
        }
        if (isnan(value)) {
            assert_true((bits & 0x7fff) > 0x7c00);
            assert_true(isnan(f16_to_f32(f32_to_f16(value))));
        } else {
            assert_int_equal(f32_to_f16(value), bits);
        }
        float wide = bf16_to_f32((uint16_t)bits);
        if (isnan(wide)) {
            assert_true(isnan(bf16_to_f32(f32_to_bf16(wide))));
        } else {
            assert_int_equal(f32_to_bf16(wide), bits);
        }
    }
}

/* Half way between two neighbours of f16 goes to the even one; a hair off goes to the nearer. */
static void f16_ties_go_to_even(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x7bff; bits++) {
        float half = (float)((f16_value(bits) + f16_value(bits + 1)) / 2); /* exact: f32 has bits to spare */
        assert_int_equal(f32_to_f16(half), bits & 1 ? bits + 1 : bits);
        assert_int_equal(f32_to_f16(nextafterf(half, 0)), bits);
        assert_int_equal(f32_to_f16(nextafterf(half, INFINITY)), bits + 1);
        assert_int_equal(f32_to_f16(-half), (bits & 1 ? bits + 1 : bits) | 0x8000);
    }
    assert_int_equal(f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(f32_to_f16(65520), 0x7c00); /* half way past the largest: infinity */
    assert_int_equal(f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(f32_to_f16(-INFINITY), 0xfc00);
}

/* The same of bf16, in random places. */
static void bf16_ties_go_to_even(void **state)
{
    (void)state;
    struct rng rng = rng_init(11);
    for (int i = 0; i < 200000; i++) {
        uint32_t high = (uint32_t)rng_below(&rng, 0x7f7f); /* below the largest finite */
        uint32_t low = i % 4 == 0 ? 0x8000 : (uint32_t)rng_below(&rng, 65536);
        uint32_t bits = high << 16 | low;
        float value;
        memcpy(&value, &bits, 4);
        uint32_t want = low < 0x8000 ? high : low > 0x8000 ? high + 1 : high + (high & 1);
        assert_int_equal(f32_to_bf16(value), want);
    }
    assert_int_equal(f32_to_bf16(3.4e38f), 0x7f80); /* nearer to infinity's place */
    assert_true(isnan(bf16_to_f32(f32_to_bf16(-NAN))));
}

/* The value of e4m3 bits by the definition of the OCP format. */
static double fp8_value(uint32_t bits)
{
    int exponent = (int)(bits >> 3 & 0xf), mantissa = (int)(bits & 7);
    double magnitude = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
    return bits & 0x80 ? -magnitude : magnitude;
}

/* All 256 patterns of e4m3 widen to their value and come back; half way between two goes to the even
 * one, a hair off to the nearer; past the largest is the largest; a NaN stays one. */
static void fp8_is_nearest_even(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 256; bits++) {
        float value = fp8_e4m3_to_f32((uint8_t)bits);
        if ((bits & 0x7f) == 0x7f) {
            assert_true(isnan(value));
            assert_int_equal(f32_to_fp8_e4m3(value) & 0x7f, 0x7f);
            continue;
        }
        assert_true((double)value == fp8_value(bits));
        assert_int_equal(signbit(value) != 0, bits >> 7);
        assert_int_equal(f32_to_fp8_e4m3(value), bits);
        if ((bits & 0x7f) == 0x7e) { continue; }
        float half = (float)((fp8_value(bits) + fp8_value(bits + 1)) / 2);
        assert_int_equal(f32_to_fp8_e4m3(half), bits & 1 ? bits + 1 : bits);
        assert_int_equal(f32_to_fp8_e4m3(nextafterf(half, 0)), bits);
        assert_int_equal(f32_to_fp8_e4m3(nextafterf(half, half > 0 ? INFINITY : -INFINITY)), bits + 1);
    }
    assert_int_equal(f32_to_fp8_e4m3(1e30f), 0x7e);
    assert_int_equal(f32_to_fp8_e4m3(-INFINITY), 0xfe);
    assert_int_equal(f32_to_fp8_e4m3(1e-30f), 0);
    assert_int_equal(f32_to_fp8_e4m3(-1e-30f), 0x80);
}

/* Rounding up gives the least bf16 that is not below. */
static void bf16_up_is_the_least_not_below(void **state)
{
    (void)state;
    struct rng rng = rng_init(12);
    for (int i = 0; i < 100000; i++) {
        uint32_t bits = (uint32_t)rng_below(&rng, 0x7f000000);
        if (i % 4 == 0) { bits &= 0xffff0000u; }
        float value;
        memcpy(&value, &bits, 4);
        uint16_t up = f32_to_bf16_up(value);
        assert_true(bf16_to_f32(up) >= value);
        assert_true(up == 0 || bf16_to_f32((uint16_t)(up - 1)) < value);
    }
}

/* Names parse back to what they name, and nothing else does. */
static void names_are_what_parses(void **state)
{
    (void)state;
    enum dtype dtype = DTYPE_F32;
    for (unsigned i = 0; i < DTYPE_KV_COUNT; i++) {
        assert_true(dtype_parse(dtype_name((enum dtype)i), &dtype));
        assert_int_equal(dtype, i);
    }
    assert_false(dtype_parse("", &dtype));
    assert_false(dtype_parse("F32", &dtype));
    assert_false(dtype_parse("f32 ", &dtype));
    assert_string_equal(dtype_name((enum dtype)DTYPE_KV_COUNT), "?");
    assert_int_equal(dtype_bytes(DTYPE_F32), 4);
    assert_int_equal(dtype_bytes(DTYPE_BF16), 2);
    assert_int_equal(dtype_bytes(DTYPE_F16), 2);
    assert_int_equal(dtype_bytes(DTYPE_INT8), 1);
    assert_int_equal(dtype_bytes(DTYPE_FP8_E4M3), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pattern_round_trips), cmocka_unit_test(f16_ties_go_to_even),
        cmocka_unit_test(bf16_ties_go_to_even),      cmocka_unit_test(fp8_is_nearest_even),
        cmocka_unit_test(bf16_up_is_the_least_not_below), cmocka_unit_test(names_are_what_parses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
