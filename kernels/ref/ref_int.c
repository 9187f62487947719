#include "kernels/ref/ref_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "kernels/int_layout.h"
#include "kernels/quantize.h"

/* Code of input k of an output, as the layout's drawing has it. */
static int int8_code(const struct kernels_matrix *m, uint32_t out, uint32_t k)
{
    const unsigned char *panel = (const unsigned char *)m->data + out / KERNELS_PANEL * int8_panel_bytes(m->n_in);
    return (int8_t)panel[int8_code_at(out % KERNELS_PANEL, k)];
}

static int int4_code(const struct kernels_matrix *m, const unsigned char *panel, uint32_t out, uint32_t k)
{
    uint32_t in_group = k % m->group;
    unsigned char byte = panel[int4_codes_at(m, k / m->group) + (size_t)(in_group / 8) * 64 + out % KERNELS_PANEL * 4 + in_group % 4];
    return in_group % 8 < 4 ? byte & 15 : byte >> 4;
}

static float int8_value(const struct kernels_matrix *m, uint32_t out, const int8_t *codes, float x_scale)
{
    const unsigned char *panel = (const unsigned char *)m->data + out / KERNELS_PANEL * int8_panel_bytes(m->n_in);
    float scale;
    memcpy(&scale, panel + int8_scales_at(m->n_in) + out % KERNELS_PANEL * 4, 4);
    int32_t sum = 0;
    for (uint32_t k = 0; k < m->n_in; k++) { sum += codes[k] * int8_code(m, out, k); }
    float factor = x_scale * scale;
    return factor * (float)sum;
}

static float int4_value(const struct kernels_matrix *m, uint32_t out, const int8_t *codes, const float *x_scales)
{
    const unsigned char *panel = (const unsigned char *)m->data + out / KERNELS_PANEL * kernels_matrix_panel_bytes(m);
    float value = 0;
    for (uint32_t group = 0; group < int4_groups(m); group++) {
        int zero = m->has_zeros ? panel[int4_zeros_at(m, group) + out % KERNELS_PANEL] : INT4_ZERO_SYMMETRIC;
        uint16_t half;
        memcpy(&half, panel + int4_scales_at(m, group) + out % KERNELS_PANEL * 2, 2);
        int32_t sum = 0;
        for (uint32_t k = group * m->group; k < (group + 1) * m->group; k++) {
            sum += codes[k] * (int4_code(m, panel, out, k) - zero);
        }
        float factor = x_scales[group] * f16_to_f32(half);
        value = fmaf((float)sum, factor, value);
    }
    return value;
}

static void int4_codes(const struct kernels_matrix *m, const float *x, int8_t *codes, float *scales)
{
    const unsigned char *order = (const unsigned char *)m->data + kernels_matrix_panel_bytes(m) * kernels_matrix_panels(m);
    for (uint32_t group = 0; group < int4_groups(m); group++) {
        float values[128] = {0};
        for (uint32_t i = 0; i < m->group; i++) {
            uint32_t input = group * m->group + i;
            if (m->has_order) { memcpy(&input, order + (size_t)input * 4, 4); }
            if (input < m->n_in) { values[i] = x[input]; }
        }
        quantize_x(values, m->group, codes + (size_t)group * m->group, &scales[group]);
    }
}

void ref_int_gemm(const struct kernels_gemm *g)
{
    const struct kernels_matrix *m = g->weight;
    uint32_t depth = kernels_matrix_depth(m);
    int8_t *codes = malloc(depth);
    float *scales = malloc((depth / 32 + 1) * sizeof *scales);
    CHECK(codes != NULL);
    CHECK(scales != NULL);
    for (uint32_t row = 0; row < g->rows; row++) {
        const float *x = (const float *)g->x + (size_t)row * g->x_stride;
        if (m->format == KERNELS_WEIGHT_INT8) {
            quantize_x(x, m->n_in, codes, scales);
        } else {
            int4_codes(m, x, codes, scales);
        }
        for (uint32_t out = 0; out < m->n_out; out++) {
            float value = m->format == KERNELS_WEIGHT_INT8 ? int8_value(m, out, codes, scales[0]) : int4_value(m, out, codes, scales);
            if (g->bias != NULL) {
                value += g->bias_dtype == DTYPE_BF16  ? bf16_to_f32(((const uint16_t *)g->bias)[out])
                         : g->bias_dtype == DTYPE_F16 ? f16_to_f32(((const uint16_t *)g->bias)[out])
                                                      : ((const float *)g->bias)[out];
            }
            float *to = (float *)g->out + (size_t)row * g->out_stride + out;
            *to = g->accumulate ? value + *to : value;
        }
    }
    free(codes);
    free(scales);
}
