/* quantize: codes and scales by their definitions, element by element. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/int_layout.h"
#include "kernels/quantize.h"
#include "tests/unit/kernels/kernels_testing.h"

static double largest_of(const void *data, enum dtype dtype, size_t first, uint32_t count)
{
    double largest = 0;
    for (uint32_t i = 0; i < count; i++) { largest = fmax(largest, fabs(element_at(data, dtype, first + i))); }
    return largest;
}

/* Codes, scale and sum of an activation: to nearest, the largest becomes 127, zeros stay zeros. */
static void an_activation_is_rounded_to_nearest(void **state)
{
    (void)state;
    struct random_state random = random_start("an_activation_is_rounded_to_nearest");
    for (int round = 0; round < 200; round++) {
        uint32_t count = random_range(&random, 1, 300);
        float *x = poisoned(count * sizeof *x);
        int8_t *codes = poisoned(count);
        float scale;
        random_fill(&random, x, DTYPE_F32, count, powf(10.0f, (float)random_range(&random, 0, 20) - 10.0f));
        quantize_x(x, count, codes, &scale);
        double largest = largest_of(x, DTYPE_F32, 0, count);
        assert_near("scale", 0, scale, largest / 127, largest / 127 * 2 * EPS);
        bool has_top = false;
        for (uint32_t i = 0; i < count; i++) {
            /* Half a step, and three roundings of a value of up to 127 steps. */
            assert_near("code", i, scale * (float)codes[i], (double)x[i], (double)scale * (0.5 + 127 * 4 * EPS));
            has_top = has_top || abs(codes[i]) == 127;
        }
        assert_true(has_top);
        free(x);
        free(codes);
    }
}

/* What is no number makes a scale that is none; what is tiny or zero makes codes of zero. */
static void odd_activations(void **state)
{
    (void)state;
    int8_t codes[3];
    float scale;
    quantize_x((const float[]){1.0f, INFINITY, 2.0f}, 3, codes, &scale);
    assert_true(isnan(scale));
    assert_int_equal(codes[0], 0);
    quantize_x((const float[]){1.0f, -NAN, 2.0f}, 3, codes, &scale);
    assert_true(isnan(scale));
    quantize_x((const float[]){0.0f, -0.0f, 1e-40f}, 3, codes, &scale);
    assert_true(isfinite(scale));
    assert_int_equal(codes[0] | codes[1] | codes[2], 0);
    quantize_x((const float[]){3.4e38f, -3.4e38f, 1.0f}, 3, codes, &scale);
    assert_true(isfinite(scale));
    assert_int_equal(codes[0], 127);
    assert_int_equal(codes[1], -127);
    assert_int_equal(codes[2], 0);
    quantize_x((const float[]){127.0f, 0.5f, 1.5f}, 3, codes, &scale); /* ties to even */
    assert_int_equal(codes[1], 0);
    assert_int_equal(codes[2], 2);
}

static struct kernels_matrix matrix_of(enum kernels_weight format, uint32_t n_out, uint32_t n_in, uint32_t group)
{
    return (struct kernels_matrix){.format = format, .n_out = n_out, .n_in = n_in, .group = group};
}

/* int8: every weight comes back within half a step of its output's scale, whichever panels were packed
 * first; sums are those of the codes; all that fills up is zero. */
static void int8_weights_come_back(void **state)
{
    (void)state;
    struct random_state random = random_start("int8_weights_come_back");
    for (int round = 0; round < 40; round++) {
        enum dtype dtype = (enum dtype)random_range(&random, 0, DTYPE_COUNT - 1);
        struct kernels_matrix m = matrix_of(KERNELS_WEIGHT_INT8, random_range(&random, 1, 50), random_range(&random, 1, 700), 0);
        size_t stride = m.n_in + random_range(&random, 0, 3);
        void *rows = poisoned(m.n_out * stride * dtype_bytes(dtype));
        random_fill(&random, rows, dtype, m.n_out * stride, 0.05f);
        unsigned char *data = poisoned(kernels_matrix_bytes(&m));
        struct quantize_rows source = {rows, dtype, stride, m.n_out, m.n_in};
        uint32_t panels = kernels_matrix_panels(&m), cut = random_range(&random, 0, panels);
        quantize_int8(&source, cut, panels - cut, data);
        quantize_int8(&source, 0, cut, data);
        m.data = data;
        float *row = poisoned(m.n_in * sizeof *row);
        for (uint32_t out = 0; out < m.n_out; out++) {
            kernels_matrix_read(&m, out, 0, m.n_in, row);
            double step = largest_of(rows, dtype, out * stride, m.n_in) / 127;
            const unsigned char *panel = data + out / 16 * int8_panel_bytes(m.n_in);
            int32_t sum, want = 0;
            memcpy(&sum, panel + int8_sums_at(m.n_in) + out % 16 * 4, 4);
            for (uint32_t k = 0; k < int8_k(m.n_in); k++) {
                int8_t code = (int8_t)panel[int8_code_at(out % 16, k)];
                want += code;
                assert_true(code >= -127);
                if (k >= m.n_in) {
                    assert_int_equal(code, 0);
                    continue;
                }
                assert_near("weight", k, row[k], element_at(rows, dtype, out * stride + k), step * (0.5 + 127 * 4 * EPS));
            }
            assert_int_equal(sum, want);
        }
        for (uint32_t out = m.n_out; out < panels * 16; out++) {
            const unsigned char *panel = data + out / 16 * int8_panel_bytes(m.n_in);
            for (uint32_t k = 0; k < int8_k(m.n_in); k++) { assert_int_equal(panel[int8_code_at(out % 16, k)], 0); }
        }
        free(rows);
        free(data);
        free(row);
    }
}

/* int4: the error of a group is no more than that of the plain choice, largest weight / -8; zero groups
 * come back as zeros. */
static void int4_is_no_worse_than_the_plain_choice(void **state)
{
    (void)state;
    struct random_state random = random_start("int4_is_no_worse_than_the_plain_choice");
    for (int round = 0; round < 40; round++) {
        static const uint32_t groups[] = {32, 64, 128};
        enum dtype dtype = (enum dtype)random_range(&random, 0, DTYPE_COUNT - 1);
        struct kernels_matrix m = matrix_of(KERNELS_WEIGHT_INT4, random_range(&random, 1, 40), random_range(&random, 1, 500),
                                            groups[random_range(&random, 0, 2)]);
        void *rows = poisoned((size_t)m.n_out * m.n_in * dtype_bytes(dtype));
        random_fill(&random, rows, dtype, (size_t)m.n_out * m.n_in, 0.05f);
        if (round % 4 == 0) { memset(rows, 0, (m.n_in < m.group ? m.n_in : m.group) * dtype_bytes(dtype)); }
        unsigned char *data = poisoned(kernels_matrix_bytes(&m));
        struct quantize_rows source = {rows, dtype, m.n_in, m.n_out, m.n_in};
        uint32_t panels = kernels_matrix_panels(&m), cut = random_range(&random, 0, panels);
        quantize_int4(&source, &m, cut, panels - cut, data);
        quantize_int4(&source, &m, 0, cut, data);
        m.data = data;
        float *row = poisoned(m.n_in * sizeof *row);
        for (uint32_t out = 0; out < m.n_out; out++) {
            kernels_matrix_read(&m, out, 0, m.n_in, row);
            for (uint32_t k = 0; k < m.n_in; k += m.group) {
                uint32_t count = m.n_in - k < m.group ? m.n_in - k : m.group;
                double largest = 0, error = 0, plain = 0;
                for (uint32_t i = k; i < k + count; i++) {
                    double w = element_at(rows, dtype, (size_t)out * m.n_in + i);
                    if (fabs(w) > fabs(largest)) { largest = w; }
                }
                double scale = (double)f16_to_f32(f32_to_f16((float)(largest / -8)));
                for (uint32_t i = k; i < k + count; i++) {
                    double w = element_at(rows, dtype, (size_t)out * m.n_in + i);
                    double code = scale != 0 ? fmin(7, fmax(-8, nearbyint(w / scale))) : 0;
                    plain += (w - scale * code) * (w - scale * code);
                    error += (w - (double)row[i]) * (w - (double)row[i]);
                }
                assert_true(error <= plain * (1 + 1e-4));
                if (largest == 0) { assert_true(error == 0); }
            }
        }
        free(rows);
        free(data);
        free(row);
    }
}

/* Weights that are no numbers, or past every scale, make a scale that is none. */
static void odd_weights(void **state)
{
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f};
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        float rows[64] = {1.0f, odd[i]}, row[64];
        struct kernels_matrix m = matrix_of(KERNELS_WEIGHT_INT4, 1, 64, 32);
        struct quantize_rows source = {rows, DTYPE_F32, 64, 1, 64};
        void *data = poisoned(kernels_matrix_bytes(&m));
        quantize_int4(&source, &m, 0, 1, data);
        m.data = data;
        kernels_matrix_read(&m, 0, 0, 64, row);
        assert_true(isnan(row[0]));
        assert_true(row[32] == 0.0f);
        free(data);
        m = matrix_of(KERNELS_WEIGHT_INT8, 1, 64, 0);
        data = poisoned(kernels_matrix_bytes(&m));
        quantize_int8(&source, 0, 1, data);
        m.data = data;
        kernels_matrix_read(&m, 0, 0, 64, row);
        if (i < 3) {
            assert_true(isnan(row[0]));
        } else {
            assert_near("large", 1, row[1], (double)odd[i], (double)odd[i] * 4 * EPS);
        }
        free(data);
    }
}

/* Codes from elsewhere: each comes back as scale * (code - zero) at the input it belongs to, in order and
 * out of order, with zeros and without. */
static void codes_of_others_come_back(void **state)
{
    (void)state;
    struct random_state random = random_start("codes_of_others_come_back");
    for (int round = 0; round < 60; round++) {
        static const uint32_t sizes[] = {32, 64, 128};
        struct kernels_matrix m = matrix_of(KERNELS_WEIGHT_INT4, random_range(&random, 1, 40), random_range(&random, 1, 600),
                                            sizes[random_range(&random, 0, 2)]);
        m.has_zeros = random_range(&random, 0, 1) == 1;
        m.has_order = random_range(&random, 0, 1) == 1;
        uint32_t groups = int4_groups(&m), depth = int4_k(&m);
        uint8_t *codes = poisoned((size_t)16 * m.n_in), *zeros = poisoned((size_t)16 * groups);
        uint16_t *scales = poisoned((size_t)16 * groups * 2);
        unsigned char *data = poisoned(kernels_matrix_bytes(&m));
        uint32_t *order = (uint32_t *)(void *)(data + kernels_matrix_panel_bytes(&m) * kernels_matrix_panels(&m));
        for (uint32_t k = 0; m.has_order && k < depth; k++) {
            order[k] = k < m.n_in ? k : m.n_in;
            if (k >= m.n_in) { continue; }
            uint32_t other = random_range(&random, 0, k), swap = order[other];
            order[other] = order[k];
            order[k] = swap;
        }
        float *row = poisoned(m.n_in * sizeof *row);
        for (uint32_t panel = 0; panel < kernels_matrix_panels(&m); panel++) {
            uint32_t outs = m.n_out - panel * 16 < 16 ? m.n_out - panel * 16 : 16;
            for (size_t i = 0; i < (size_t)outs * m.n_in; i++) { codes[i] = (uint8_t)random_range(&random, 0, 15); }
            for (size_t i = 0; i < (size_t)outs * groups; i++) {
                scales[i] = f32_to_f16(random_float(&random));
                zeros[i] = (uint8_t)random_range(&random, 0, 15);
            }
            quantize_int4_panel(&m, panel, codes, scales, m.has_zeros ? zeros : NULL, data);
            m.data = data;
            for (uint32_t o = 0; o < outs; o++) {
                kernels_matrix_read(&m, panel * 16 + o, 0, m.n_in, row);
                for (uint32_t k = 0; k < m.n_in; k++) {
                    uint32_t input = m.has_order ? order[k] : k;
                    int zero = m.has_zeros ? zeros[o * groups + k / m.group] : 8;
                    float want = f16_to_f32(scales[o * groups + k / m.group]) * (float)(codes[o * m.n_in + k] - zero);
                    assert_true(row[input] == want);
                }
            }
        }
        free(codes);
        free(zeros);
        free(scales);
        free(data);
        free(row);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_activations),
        cmocka_unit_test(odd_weights),
        cmocka_unit_test(an_activation_is_rounded_to_nearest),
        cmocka_unit_test(int8_weights_come_back),
        cmocka_unit_test(int4_is_no_worse_than_the_plain_choice),
        cmocka_unit_test(codes_of_others_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
