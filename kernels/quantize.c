#include "kernels/quantize.h"

#include <math.h>
#include <string.h>

#include "base/check.h"
#include "kernels/quantize_x.h"

#define GROUP_MAX 128u

static float element(const struct quantize_rows *rows, uint32_t out, uint32_t k)
{
    const unsigned char *at = (const unsigned char *)rows->data + ((size_t)out * rows->stride + k) * dtype_bytes(rows->dtype);
    uint16_t half;
    float value;
    switch (rows->dtype) {
    case DTYPE_BF16: memcpy(&half, at, 2); return bf16_to_f32(half);
    case DTYPE_F16: memcpy(&half, at, 2); return f16_to_f32(half);
    default: memcpy(&value, at, 4); return value;
    }
}

enum { CHUNK = 256 }; /* elements at a time: a multiple of INT8_K_STEP */

/* Elements [k, k + count) of a row as f32; count <= CHUNK. */
static void elements(const struct quantize_rows *rows, uint32_t out, uint32_t k, uint32_t count, float *ret_values)
{
    if (rows->dtype == DTYPE_BF16) { /* the common case, in a loop that compiles to vectors */
        uint16_t halves[CHUNK];
        uint32_t wide[CHUNK];
        memcpy(halves, (const unsigned char *)rows->data + ((size_t)out * rows->stride + k) * 2, count * sizeof *halves);
        for (uint32_t i = 0; i < count; i++) { wide[i] = (uint32_t)halves[i] << 16; }
        memcpy(ret_values, wide, count * sizeof *wide);
        return;
    }
    for (uint32_t i = 0; i < count; i++) { ret_values[i] = element(rows, out, k + i); }
}

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void quantize_x(const float *x, uint32_t count, int8_t *ret_codes, float *ret_scale)
{
    float factor;
    if (!quantize_x_scale(quantize_largest_bits(x, count), &factor, ret_scale)) {
        memset(ret_codes, 0, count);
        return;
    }
    quantize_codes(x, count, factor, 0, (uint8_t *)ret_codes);
}

/* ---- int8 ---------------------------------------------------------------------------------- */

static void int8_output(const struct quantize_rows *rows, uint32_t out, unsigned char *panel)
{
    uint32_t index = out % KERNELS_PANEL;
    float values[CHUNK];
    uint32_t bits = 0;
    for (uint32_t k = 0; k < rows->n_in; k += CHUNK) {
        uint32_t count = rows->n_in - k < CHUNK ? rows->n_in - k : CHUNK;
        elements(rows, out, k, count, values);
        uint32_t largest = quantize_largest_bits(values, count);
        bits = largest > bits ? largest : bits;
    }
    bool is_finite = bits < 0x7f800000u;
    float largest = is_finite ? from_bits(bits) : 0.0f;
    if (largest < QUANTIZE_X_MIN) { largest = QUANTIZE_X_MIN; }
    float factor = 127.0f / largest, scale = is_finite ? largest * QUANTIZE_X_STEP : NAN;
    int32_t sum = 0;
    for (uint32_t k = 0; is_finite && k < rows->n_in; k += CHUNK) {
        uint32_t count = rows->n_in - k < CHUNK ? rows->n_in - k : CHUNK;
        int8_t codes[CHUNK];
        elements(rows, out, k, count, values);
        for (uint32_t i = 0; i < count; i++) { codes[i] = (int8_t)quantize_nearest(values[i] * factor); }
        for (uint32_t i = 0; i < count; i++) { sum += codes[i]; }
        memset(codes + count, 0, CHUNK - count);
        for (uint32_t i = 0; i < count; i += 4) { memcpy(panel + int8_code_at(index, k + i), codes + i, 4); }
    }
    memcpy(panel + int8_scales_at(rows->n_in) + (size_t)index * 4, &scale, 4);
    memcpy(panel + int8_sums_at(rows->n_in) + (size_t)index * 4, &sum, 4);
}

void quantize_int8(const struct quantize_rows *rows, uint32_t panel_first, uint32_t panels, void *data)
{
    for (uint32_t panel = panel_first; panel < panel_first + panels; panel++) {
        size_t panel_bytes = int8_panel_bytes(rows->n_in);
        unsigned char *to = (unsigned char *)data + panel * panel_bytes;
        memset(to, 0, panel_bytes);
        for (uint32_t i = 0; i < KERNELS_PANEL && panel * KERNELS_PANEL + i < rows->n_out; i++) {
            int8_output(rows, panel * KERNELS_PANEL + i, to);
        }
    }
}

/* ---- int4 ---------------------------------------------------------------------------------- */

/* Four at a time: every machine has registers of that, and gcc makes no vectors of the plain loops (twice slower). */
typedef float floats4 __attribute__((vector_size(16)));
typedef int32_t ints4 __attribute__((vector_size(16)));

static inline floats4 four(float value) { return (floats4){value, value, value, value}; }

static inline floats4 load4(const float *from)
{
    floats4 v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* To nearest whole step within -8 .. 7; w * factor may be anything finite. */
static inline floats4 steps_of(floats4 w, floats4 factor)
{
    floats4 steps = w * factor;
    ints4 low = steps < four(-8.0f), high = steps > four(7.0f);
    ints4 held = ((ints4)steps & ~low & ~high) | ((ints4)four(-8.0f) & low) | ((ints4)four(7.0f) & high);
    return ((floats4)held + four(12582912.0f)) - four(12582912.0f); /* see quantize_nearest() */
}

/* Sum of squared errors over whole eights, in 8 running sums. */
static float group_error(const float *w, uint32_t group, float scale)
{
    const floats4 factor = four(1.0f / scale), step = four(scale);
    floats4 sums[2] = {four(0.0f), four(0.0f)};
    for (uint32_t i = 0; i < group; i += 8) {
        floats4 a = load4(w + i), b = load4(w + i + 4);
        a -= step * steps_of(a, factor);
        b -= step * steps_of(b, factor);
        sums[0] += a * a;
        sums[1] += b * b;
    }
    sums[0] += sums[1];
    return (sums[0][0] + sums[0][2]) + (sums[0][1] + sums[0][3]);
}

/* Codes of a group (w filled up with zeros) and the f16 of its scale; 0 where all are zero, NaN where one is no
 * number or past every scale.
 * A code's 16 steps are one more on the negative side: the scale's sign puts the largest weight there.
 * Shrinking the step by up to a sixth cuts that weight and serves the others better. On normal weights the five take
 * 6 % off the squared error of -8 alone, ten candidates 9 %, at twice the time. */
static uint16_t group_quantize(const float *w, uint32_t group, uint8_t *ret_codes)
{
    static const float divisors[] = {-8.0f, -7.5f, -8.6f, -9.4f, 8.5f};
    uint32_t bits = quantize_largest_bits(w, group);
    float largest = from_bits(bits < 0x7f800000u ? bits : 0);
    for (uint32_t i = group; i-- > 0;) { largest = fabsf(w[i]) == fabsf(largest) ? w[i] : largest; } /* the first of equals, with its sign */
    uint16_t best = 0;
    float best_error = HUGE_VALF;
    for (size_t i = 0; largest != 0.0f && i < sizeof divisors / sizeof divisors[0]; i++) {
        uint16_t half = f32_to_f16(largest / divisors[i]);
        if ((half & 0x7fffu) == 0 || (half & 0x7fffu) >= 0x7c00u) { continue; } /* 0: all codes 8, exact for zeros */
        float error = group_error(w, group, f16_to_f32(half));
        if (error < best_error) {
            best_error = error;
            best = half;
        }
    }
    memset(ret_codes, INT4_ZERO_SYMMETRIC, group);
    if (best == 0) { return bits >= 0x7f800000u || fabsf(largest) > 1.0f ? 0x7e00u : 0; }
    const floats4 factor = four(1.0f / f16_to_f32(best));
    for (uint32_t i = 0; i < group; i += 4) {
        ints4 steps = __builtin_convertvector(steps_of(load4(w + i), factor), ints4);
        for (uint32_t l = 0; l < 4; l++) { ret_codes[i + l] = (uint8_t)(INT4_ZERO_SYMMETRIC + steps[l]); }
    }
    return best;
}

static void write_code(const struct kernels_matrix *matrix, unsigned char *panel, uint32_t index, uint32_t k, uint8_t code)
{
    uint32_t in_group = k % matrix->group;
    unsigned char *at = panel + int4_codes_at(matrix, k / matrix->group) + (size_t)(in_group / 8) * 64 + index * 4 + in_group % 4;
    *at = (unsigned char)(*at | (in_group % 8 < 4 ? code : code << 4));
}

static void write_u16(unsigned char *at, uint16_t value) { memcpy(at, &value, 2); }

static unsigned char *panel_begin(const struct kernels_matrix *matrix, uint32_t panel, void *data)
{
    size_t bytes = kernels_matrix_panel_bytes(matrix);
    unsigned char *at = (unsigned char *)data + panel * bytes;
    memset(at, 0, bytes);
    return at;
}

void quantize_int4(const struct quantize_rows *rows, const struct kernels_matrix *matrix, uint32_t panel_first,
                   uint32_t panels, void *data)
{
    CHECK(!matrix->has_zeros);
    CHECK(!matrix->has_order);
    CHECK(matrix->group <= GROUP_MAX);
    float w[GROUP_MAX];
    for (uint32_t panel = panel_first; panel < panel_first + panels; panel++) {
        unsigned char *to = panel_begin(matrix, panel, data);
        for (uint32_t i = 0; i < KERNELS_PANEL && panel * KERNELS_PANEL + i < rows->n_out; i++) {
            for (uint32_t g = 0; g < int4_groups(matrix); g++) {
                uint32_t k = g * matrix->group, count = rows->n_in - k < matrix->group ? rows->n_in - k : matrix->group;
                uint8_t codes[GROUP_MAX];
                elements(rows, panel * KERNELS_PANEL + i, k, count, w);
                for (uint32_t j = count; j < matrix->group; j++) { w[j] = 0.0f; }
                write_u16(to + int4_scales_at(matrix, g) + i * 2, group_quantize(w, matrix->group, codes));
                unsigned char *at = to + int4_codes_at(matrix, g) + i * 4;
                for (uint32_t j = 0; j < matrix->group; j += 8) {
                    for (uint32_t b = 0; b < 4; b++) { at[j * 8 + b] = (unsigned char)(codes[j + b] | codes[j + 4 + b] << 4); }
                }
            }
        }
    }
}

void quantize_int4_panel(const struct kernels_matrix *matrix, uint32_t panel, const uint8_t *codes, const uint16_t *scales,
                         const uint8_t *zeros, void *data)
{
    uint32_t groups = int4_groups(matrix);
    unsigned char *to = panel_begin(matrix, panel, data);
    for (uint32_t i = 0; i < KERNELS_PANEL && panel * KERNELS_PANEL + i < matrix->n_out; i++) {
        for (uint32_t g = 0; g < groups; g++) {
            write_u16(to + int4_scales_at(matrix, g) + i * 2, scales[(size_t)i * groups + g]);
            if (matrix->has_zeros) { to[int4_zeros_at(matrix, g) + i] = zeros[(size_t)i * groups + g]; }
        }
        for (uint32_t k = 0; k < matrix->n_in; k++) {
            write_code(matrix, to, i, k, codes[(size_t)i * matrix->n_in + k]);
        }
    }
}
