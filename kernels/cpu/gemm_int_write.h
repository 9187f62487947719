/* gemm_int_write: what every set of gemm_int.h does before and after its sums, over the `vec` of a vec_<isa>.h
 * that was included before. */
#include "kernels/quantize_x.h"

static inline uint32_t int_div_up(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }
static inline uint32_t int_min(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Rows of tile i when `rows` are dealt out to `tiles` as evenly as can be. */
static inline uint32_t int_tile_rows(uint32_t rows, uint32_t tiles, uint32_t i) { return rows / tiles + (i < rows % tiles ? 1 : 0); }

VEC_FN vec int_bias(const struct kernels_gemm *g, uint32_t out, uint32_t count)
{
    float values[16] = {0};
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = out + i;
        values[i] = g->bias_dtype == DTYPE_BF16  ? bf16_to_f32(((const uint16_t *)g->bias)[at])
                    : g->bias_dtype == DTYPE_F16 ? f16_to_f32(((const uint16_t *)g->bias)[at])
                                                 : ((const float *)g->bias)[at];
    }
    return vec_load(values);
}

/* out = value (+ bias) (+ out) for one row and panel. */
VEC_FN void int_write(const struct kernels_gemm *g, uint32_t row, uint32_t out, vec value)
{
    uint32_t count = int_min(g->weight->n_out - out, KERNELS_PANEL);
    float *to = (float *)g->out + (size_t)row * g->out_stride + out;
    if (g->bias != NULL) { value = vec_add(value, int_bias(g, out, count)); }
    if (count == KERNELS_PANEL) {
        vec_store(to, g->accumulate ? vec_add(value, vec_load(to)) : value);
        return;
    }
    vec_store_part(to, g->accumulate ? vec_add(value, vec_load_part(to, count)) : value, count);
}

/* True where the scratch holds these rows already: q, k and v read the same. Else marks it so. */
static bool int_is_packed(const struct kernels_gemm *g, const uint32_t *order, uint32_t row_first, uint32_t rows, uint32_t group,
                          struct gemm_int_scratch *s)
{
    if (s->x == g->x && s->x_row_first == row_first && s->x_rows == rows && s->x_in == g->weight->n_in && s->x_group == group
        && s->x_order == order) {
        return true;
    }
    s->x = g->x;
    s->x_row_first = row_first;
    s->x_rows = rows;
    s->x_in = g->weight->n_in;
    s->x_group = group;
    s->x_order = order;
    return false;
}
