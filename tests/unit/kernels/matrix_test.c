/* Weights in panels: every element where the header says, what fills up is zero, nothing past the end
 * is written, and panels packed apart are those packed together. */
#include <string.h>

#include "kernels/matrix.h"
#include "tests/unit/kernels/kernels_testing.h"

#include <math.h>
#include <stdlib.h>

static const uint32_t shapes[][2] = {{1, 1}, {16, 32}, {17, 33}, {15, 31}, {48, 64}, {5, 7}, {33, 100}, {64, 172}, {40, 1029}};

/* What the header's drawing says, written anew. */
static float element_by_the_drawing(const struct kernels_matrix *m, uint32_t out, uint32_t k)
{
    size_t depth = m->format == KERNELS_WEIGHT_BF16 ? (m->n_in + 31) / 32 * 32 : m->format == KERNELS_WEIGHT_F16 ? (m->n_in + 1) / 2 * 2 : m->n_in;
    size_t panel = out / 16, o = out % 16;
    switch (m->format) {
    case KERNELS_WEIGHT_F32: return ((const float *)m->data)[panel * depth * 16 + k * 16 + o];
    case KERNELS_WEIGHT_BF16: return bf16_to_f32(((const uint16_t *)m->data)[panel * depth * 16 + (k / 2 * 16 + o) * 2 + k % 2]);
    default: return f16_to_f32(((const uint16_t *)m->data)[panel * depth * 16 + k * 16 + o]);
    }
}

/* Every element of every format, from rows of every dtype at an odd address, lies where the drawing says. */
static void elements_lie_where_the_header_says(void **state)
{
    (void)state;
    struct random_state random = random_start("matrix elements");
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        for (int format = 0; format <= KERNELS_WEIGHT_F16; format++) {
            for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
                struct kernels_matrix m = {.format = (enum kernels_weight)format, .n_out = shapes[s][0], .n_in = shapes[s][1]};
                size_t stride = m.n_in + random_range(&random, 0, 3), element = dtype_bytes((enum dtype)dtype);
                size_t count = (m.n_out - 1) * stride + m.n_in, bytes = kernels_matrix_bytes(&m);
                unsigned char *memory = poisoned(count * element + 1), *aligned = poisoned(count * element);
                random_fill(&random, aligned, (enum dtype)dtype, count, 1);
                memcpy(memory + 1, aligned, count * element);
                void *data = aligned_alloc(64, (bytes + 63) / 64 * 64);
                memset(data, 0xA5, bytes);
                kernels_matrix_pack(&m, memory + 1, stride, (enum dtype)dtype, 0, kernels_matrix_panels(&m), data);
                m.data = data;
                for (uint32_t out = 0; out < m.n_out; out++) {
                    float row[2048];
                    kernels_matrix_read(&m, out, 0, m.n_in, row);
                    for (uint32_t k = 0; k < m.n_in; k++) {
                        float value = (float)element_at(aligned, (enum dtype)dtype, out * stride + k);
                        if (format == KERNELS_WEIGHT_BF16) { value = bf16_to_f32(f32_to_bf16(value)); }
                        if (format == KERNELS_WEIGHT_F16) { value = f16_to_f32(f32_to_f16(value)); }
                        float lies = element_by_the_drawing(&m, out, k);
                        assert_memory_equal(&lies, &value, 4);
                        assert_memory_equal(&row[k], &value, 4);
                    }
                }
                free(memory);
                free(aligned);
                free(data);
            }
        }
    }
}

/* All bytes are defined: those that fill up are zero, so the same rows always give the same bytes; and a
 * range of panels writes those panels only. */
static void what_fills_up_is_zero(void **state)
{
    (void)state;
    struct random_state random = random_start("matrix zeros");
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        for (int format = 0; format <= KERNELS_WEIGHT_F16; format++) {
            struct kernels_matrix m = {.format = (enum kernels_weight)format, .n_out = shapes[s][0], .n_in = shapes[s][1]};
            size_t count = (size_t)m.n_out * m.n_in, bytes = kernels_matrix_bytes(&m), nonzero = 0;
            float *rows = poisoned(count * 4);
            for (size_t i = 0; i < count; i++) { rows[i] = 1.0f + (float)random_range(&random, 0, 7); }
            unsigned char *whole = poisoned(bytes), *parts = poisoned(bytes + 64);
            kernels_matrix_pack(&m, rows, m.n_in, DTYPE_F32, 0, kernels_matrix_panels(&m), whole);
            for (uint32_t p = kernels_matrix_panels(&m); p-- > 0;) { /* last first: a panel leaves the others alone */
                kernels_matrix_pack(&m, rows, m.n_in, DTYPE_F32, p, 1, parts);
            }
            assert_memory_equal(whole, parts, bytes);
            for (int i = 0; i < 64; i++) { assert_int_equal(parts[bytes + (size_t)i], 0xA5); }
            size_t element = format == KERNELS_WEIGHT_F32 ? 4 : 2;
            for (size_t i = 0; i < bytes; i += element) { nonzero += memcmp(whole + i, "\0\0\0\0", element) != 0; }
            assert_int_equal(nonzero, count);
            free(rows);
            free(whole);
            free(parts);
        }
    }
}

/* A NaN, infinities, zeros of both signs and subnormals come through whole where the format is the dtype. */
static void odd_values_come_through(void **state)
{
    (void)state;
    static const float odd[8] = {0.0f, -0.0f, HUGE_VALF, -HUGE_VALF, 1e-40f, -1e-45f, NAN, 3.4e38f};
    struct kernels_matrix m = {.format = KERNELS_WEIGHT_F32, .n_out = 16, .n_in = 8};
    float rows[16 * 8], data[16 * 8], back[8];
    for (int o = 0; o < 16; o++) { memcpy(rows + o * 8, odd, sizeof(odd)); }
    kernels_matrix_pack(&m, rows, 8, DTYPE_F32, 0, 1, data);
    m.data = data;
    kernels_matrix_read(&m, 11, 0, 8, back);
    assert_memory_equal(back, odd, sizeof(odd));
}

/* The names of formats are read back as they are written. */
static void names(void **state)
{
    (void)state;
    for (int i = 0; i < KERNELS_WEIGHT_COUNT; i++) {
        enum kernels_weight format;
        assert_true(kernels_weight_parse(kernels_weight_name((enum kernels_weight)i), &format));
        assert_int_equal(format, i);
    }
    enum kernels_weight format;
    assert_false(kernels_weight_parse("fp4", &format));
}

/* Sizes of the integer formats, by hand. */
static void integer_sizes(void **state)
{
    (void)state;
    struct kernels_matrix m = {.format = KERNELS_WEIGHT_INT8, .n_out = 17, .n_in = 65};
    assert_int_equal(kernels_matrix_bytes(&m), 2 * (128 * 16 + 64 + 64));
    m = (struct kernels_matrix){.format = KERNELS_WEIGHT_INT4, .n_out = 16, .n_in = 64, .group = 32};
    assert_int_equal(kernels_matrix_bytes(&m), 128 + 2 * 256);
    m.has_zeros = true;
    assert_int_equal(kernels_matrix_bytes(&m), 128 + 64 + 2 * 256);
    m.has_order = true;
    m.n_in = 5 * 32 - 1; /* two blocks, the second with one group */
    assert_int_equal(kernels_matrix_bytes(&m), 2 * (128 + 64) + 5 * 256 + 5 * 32 * 4);
}

/* In rows, an element lies at out * stride + in, whatever fills a row up is counted and not read. */
static void rows_are_read_where_they_lie(void **state)
{
    (void)state;
    struct random_state random = random_start("matrix rows");
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        for (int format = 0; format <= KERNELS_WEIGHT_F16; format++) {
            struct kernels_matrix m = {.format = (enum kernels_weight)format, .n_out = shapes[s][0], .n_in = shapes[s][1],
                                       .order = KERNELS_ORDER_ROWS, .stride = kernels_matrix_rows_stride(shapes[s][1])};
            assert_true(m.stride >= m.n_in && m.stride % 8 == 0 && m.stride - m.n_in < 8);
            size_t count = (size_t)m.n_out * m.stride, element = dtype_bytes((enum dtype)format);
            assert_int_equal(kernels_matrix_bytes(&m), count * element);
            unsigned char *data = poisoned(count * element);
            random_fill(&random, data, (enum dtype)format, count, 1);
            m.data = data;
            for (uint32_t out = 0; out < m.n_out; out++) {
                float row[2048];
                uint32_t first = random_range(&random, 0, m.n_in - 1);
                kernels_matrix_read(&m, out, first, m.n_in - first, row);
                for (uint32_t k = first; k < m.n_in; k++) {
                    float value = (float)element_at(data, (enum dtype)format, (size_t)out * m.stride + k);
                    assert_memory_equal(&row[k - first], &value, 4);
                }
            }
            free(data);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elements_lie_where_the_header_says),
        cmocka_unit_test(what_fills_up_is_zero),
        cmocka_unit_test(rows_are_read_where_they_lie),
        cmocka_unit_test(odd_values_come_through),
        cmocka_unit_test(names),
        cmocka_unit_test(integer_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
