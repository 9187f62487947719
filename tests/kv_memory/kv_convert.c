#include "tests/kv_memory/kv_convert.h"

#include <math.h>
#include <string.h>

enum { HEAD_DIM_MAX = 1024 };

static size_t value_offset(const struct kv_layout *layout, bool of_v, uint32_t head, uint32_t slot, uint32_t d)
{
    return of_v ? kv_layout_v_offset(layout, head, slot, d) : kv_layout_k_offset(layout, head, slot, d);
}

static size_t scale_offset(const struct kv_layout *layout, bool of_v, uint32_t head, uint32_t slot)
{
    return kv_layout_scale_offset(layout, head, slot) + (of_v ? 2 * KV_TILE_TOKENS : 0);
}

static float value_load(const unsigned char *at, enum dtype dtype)
{
    uint16_t half;
    float value;
    switch (dtype) {
    case DTYPE_BF16: memcpy(&half, at, 2); return bf16_to_f32(half);
    case DTYPE_F16: memcpy(&half, at, 2); return f16_to_f32(half);
    case DTYPE_INT8: return (float)(int8_t)*at;
    case DTYPE_FP8_E4M3: return fp8_e4m3_to_f32(*at);
    default: memcpy(&value, at, 4); return value;
    }
}

/* `value` divided by its scale already. Of NaNs there is one in each dtype. */
static void value_store(unsigned char *at, enum dtype dtype, float value)
{
    uint32_t bits;
    uint16_t half;
    switch (dtype) {
    case DTYPE_BF16:
    case DTYPE_F16:
        half = isnan(value) ? 0x7fff : dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
        memcpy(at, &half, 2);
        break;
    case DTYPE_INT8: *at = (unsigned char)(int8_t)rintf(value); break;
    case DTYPE_FP8_E4M3: *at = f32_to_fp8_e4m3(value); break;
    default:
        memcpy(&bits, &value, 4);
        if (isnan(value)) { bits = 0x7fffffff; }
        memcpy(at, &bits, 4);
        break;
    }
}

static uint16_t scale_of(const float *x, uint32_t count, enum dtype dtype)
{
    float top = 0;
    for (uint32_t d = 0; d < count; d++) {
        if (!isfinite(x[d])) { return 0x7fc0; }
        top = fmaxf(top, fabsf(x[d]));
    }
    return f32_to_bf16_up(top / (dtype == DTYPE_INT8 ? 127.0f : 448.0f));
}

/* One dtype: bits move and nothing is computed. */
static void row_move(const struct kv_layout *from_layout, const unsigned char *from, const struct kv_layout *to_layout, unsigned char *to,
                     bool of_v, uint32_t head, uint32_t slot)
{
    for (uint32_t d = 0; d < from_layout->head_dim; d++) {
        memcpy(to + value_offset(to_layout, of_v, head, slot, d), from + value_offset(from_layout, of_v, head, slot, d),
               dtype_bytes(from_layout->dtype));
    }
    if (kv_layout_has_scales(from_layout)) {
        memcpy(to + scale_offset(to_layout, of_v, head, slot), from + scale_offset(from_layout, of_v, head, slot), 2);
    }
}

static void row_round(const struct kv_layout *from_layout, const unsigned char *from, const struct kv_layout *to_layout, unsigned char *to,
                      bool of_v, uint32_t head, uint32_t slot)
{
    float x[HEAD_DIM_MAX], scale = 1;
    uint16_t bits;
    if (kv_layout_has_scales(from_layout)) {
        memcpy(&bits, from + scale_offset(from_layout, of_v, head, slot), 2);
        scale = bf16_to_f32(bits);
    }
    for (uint32_t d = 0; d < from_layout->head_dim; d++) {
        x[d] = value_load(from + value_offset(from_layout, of_v, head, slot, d), from_layout->dtype);
        if (kv_layout_has_scales(from_layout)) { x[d] *= scale; }
    }
    if (kv_layout_has_scales(to_layout)) {
        bits = scale_of(x, to_layout->head_dim, to_layout->dtype);
        scale = bf16_to_f32(bits);
        memcpy(to + scale_offset(to_layout, of_v, head, slot), &bits, 2);
        for (uint32_t d = 0; d < to_layout->head_dim; d++) { x[d] = scale > 0 ? x[d] / scale : 0; }
    }
    for (uint32_t d = 0; d < to_layout->head_dim; d++) { value_store(to + value_offset(to_layout, of_v, head, slot, d), to_layout->dtype, x[d]); }
}

void kv_convert(const struct kv_layout *from_layout, const unsigned char *from, const struct kv_layout *to_layout, unsigned char *to)
{
    for (uint32_t vector = 0; vector < 2 * from_layout->kv_heads * from_layout->block_tokens; vector++) {
        const uint32_t row = vector / 2, head = row / from_layout->block_tokens, slot = row % from_layout->block_tokens;
        const bool of_v = vector % 2 != 0;
        if (from_layout->dtype == to_layout->dtype) {
            row_move(from_layout, from, to_layout, to, of_v, head, slot);
        } else {
            row_round(from_layout, from, to_layout, to, of_v, head, slot);
        }
    }
}
