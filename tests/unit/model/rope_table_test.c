/* The angles of rotary embedding against their formulas in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "model/rope_table.h"

#define PI 3.14159265358979323846

static struct model_config rope_config(enum model_rope rope, uint32_t head_dim, double theta)
{
    return (struct model_config){.rope = rope, .head_dim = head_dim, .rope_theta = theta, .rope_factor = 8.0,
                                 .rope_low_factor = 1.0, .rope_high_factor = 4.0, .rope_original_tokens = 8192};
}

/* Relative distance; a float holds 2^-24, and a frequency is a power, a quotient and a scaling of it. */
static void assert_close(double ours, double wanted, double relative)
{
    if (fabs(ours - wanted) > relative * fabs(wanted)) { fail_msg("%.12g is not %.12g", ours, wanted); }
}

/* Pair i turns by theta^(-2i/dim) a position; linear scaling divides all of them. */
static void plain_and_linear_follow_the_formula(void **state)
{
    (void)state;
    struct rope_table plain, linear;
    struct model_config config = rope_config(MODEL_ROPE_PLAIN, 128, 500000.0);
    rope_table_init(&plain, &config);
    config.rope = MODEL_ROPE_LINEAR;
    rope_table_init(&linear, &config);
    assert_int_equal(plain.pair_count, 64);
    for (uint32_t i = 0; i < 64; i++) {
        double wanted = pow(500000.0, -2.0 * i / 128.0);
        /* The exponent is a rounded float too: its error times ln(theta) = 13. */
        assert_close((double)plain.inverse_frequency[i], wanted, 16 * 0x1p-24);
        assert_close((double)linear.inverse_frequency[i], wanted / 8.0, 16 * 0x1p-24);
    }
}

/* llama3: wavelengths up to original/high stay, from original/low on are stretched by the factor, and in
 * between go from one to the other. */
static void llama3_scales_by_wavelength(void **state)
{
    (void)state;
    struct rope_table table;
    struct model_config config = rope_config(MODEL_ROPE_LLAMA3, 128, 500000.0);
    rope_table_init(&table, &config);
    uint32_t kept = 0, blended = 0, stretched = 0;
    for (uint32_t i = 0; i < 64; i++) {
        double inverse = pow(500000.0, -2.0 * i / 128.0), wavelength = 2.0 * PI / inverse;
        double wanted = inverse / 8.0;
        if (wavelength < 8192.0 / 4.0) {
            wanted = inverse;
            kept++;
        } else if (wavelength <= 8192.0) {
            double smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
            wanted = (1.0 - smooth) * inverse / 8.0 + smooth * inverse;
            blended++;
        } else {
            stretched++;
        }
        assert_close((double)table.inverse_frequency[i], wanted, 64 * 0x1p-24);
    }
    assert_true(kept > 0 && blended > 0 && stretched > 0);
}

/* A row is the cosine and sine of position * frequency, rounded once from that float's exact value. */
static void rows_are_cosines_of_the_rounded_angle(void **state)
{
    (void)state;
    struct rope_table table;
    struct model_config config = rope_config(MODEL_ROPE_PLAIN, 64, 10000.0);
    rope_table_init(&table, &config);
    static const uint32_t positions[] = {0, 1, 7, 4095, 131071, 1000003};
    float cosines[32], sines[32];
    for (size_t p = 0; p < sizeof positions / sizeof positions[0]; p++) {
        rope_table_row(&table, positions[p], cosines, sines);
        for (uint32_t i = 0; i < 32; i++) {
            float angle = (float)positions[p] * table.inverse_frequency[i];
            assert_true(fabs((double)cosines[i] - cos((double)angle)) <= 0x1p-24);
            assert_true(fabs((double)sines[i] - sin((double)angle)) <= 0x1p-24);
        }
    }
    rope_table_row(&table, 0, cosines, sines);
    assert_true(cosines[5] == 1.0f && sines[5] == 0.0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_and_linear_follow_the_formula),
        cmocka_unit_test(llama3_scales_by_wavelength),
        cmocka_unit_test(rows_are_cosines_of_the_rounded_angle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
