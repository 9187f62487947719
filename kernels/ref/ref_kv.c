#include "kernels/ref/ref_kv.h"

#include <math.h>
#include <string.h>

/* Where things lie and how they are rounded is written in kv/kv_layout.h. */
static unsigned char *slice_at(const struct kernels_kv *kv, uint32_t block)
{
    return (unsigned char *)kv->pool + kv_layout_slice_offset(&kv->layout, block, kv->layer);
}

static double value_load(const unsigned char *at, enum dtype dtype)
{
    uint16_t half;
    float value;
    switch (dtype) {
    case DTYPE_BF16: memcpy(&half, at, 2); return (double)bf16_to_f32(half);
    case DTYPE_F16: memcpy(&half, at, 2); return (double)f16_to_f32(half);
    case DTYPE_INT8: return (double)(int8_t)*at;
    case DTYPE_FP8_E4M3: return (double)fp8_e4m3_to_f32(*at);
    default: memcpy(&value, at, 4); return (double)value;
    }
}

/* `value` divided by its scale already. */
static void value_store(unsigned char *at, enum dtype dtype, float value)
{
    uint16_t half;
    switch (dtype) {
    case DTYPE_BF16: half = f32_to_bf16(value); memcpy(at, &half, 2); break;
    case DTYPE_F16: half = f32_to_f16(value); memcpy(at, &half, 2); break;
    case DTYPE_INT8: *at = (unsigned char)(int8_t)rintf(value); break;
    case DTYPE_FP8_E4M3: *at = f32_to_fp8_e4m3(value); break;
    default: memcpy(at, &value, 4); break;
    }
}

static uint16_t scale_of(const float *x, uint32_t count, enum dtype dtype)
{
    float top = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) { return 0x7fc0; }
        top = fmaxf(top, fabsf(x[i]));
    }
    return f32_to_bf16_up(top / (dtype == DTYPE_INT8 ? 127.0f : 448.0f));
}

static double scale_load(const unsigned char *slice, const struct kv_layout *layout, uint32_t head, uint32_t slot, bool of_v)
{
    if (!kv_layout_has_scales(layout)) { return 1; }
    uint16_t bits;
    memcpy(&bits, slice + kv_layout_scale_offset(layout, head, slot) + (of_v ? 2 * KV_TILE_TOKENS : 0), 2);
    return (double)bf16_to_f32(bits);
}

void ref_kv_write(struct kernels *kernels, const struct kernels_kv_write *a)
{
    (void)kernels;
    const struct kv_layout *layout = &a->kv.layout;
    for (uint32_t row = 0; row < a->rows; row++) {
        if (a->slots[row].block == KERNELS_SLOT_NONE) { continue; }
        unsigned char *slice = slice_at(&a->kv, a->slots[row].block);
        uint32_t slot = a->slots[row].slot;
        for (uint32_t h = 0; h < 2 * layout->kv_heads; h++) {
            bool of_v = h >= layout->kv_heads;
            uint32_t head = h % layout->kv_heads;
            const float *x = of_v ? (const float *)a->v + row * a->v_stride : (const float *)a->k + row * a->k_stride;
            x += (size_t)head * layout->head_dim;
            float scale = 1;
            if (kv_layout_has_scales(layout)) {
                uint16_t bits = scale_of(x, layout->head_dim, layout->dtype);
                scale = bf16_to_f32(bits);
                memcpy(slice + kv_layout_scale_offset(layout, head, slot) + (of_v ? 2 * KV_TILE_TOKENS : 0), &bits, 2);
            }
            for (uint32_t d = 0; d < layout->head_dim; d++) {
                size_t at = of_v ? kv_layout_v_offset(layout, head, slot, d) : kv_layout_k_offset(layout, head, slot, d);
                value_store(slice + at, layout->dtype, scale > 0 ? x[d] / scale : 0); /* 0 for a scale of 0 or NaN */
            }
        }
    }
}

/* softmax(scale * q.K) . V in two passes over the tokens that the row sees. */
static void attention_head(const struct kernels_attention *a, const struct kernels_attention_sequence *seq,
                           uint32_t row, uint32_t head)
{
    const struct kv_layout *layout = &a->kv.layout;
    uint32_t dim = layout->head_dim;
    uint32_t kv_head = head / (a->q_heads / layout->kv_heads);
    uint32_t position = seq->position_first + row;
    uint32_t start = a->window == 0 || position < a->window ? 0 : position - a->window + 1;
    const float *q = (const float *)a->q + (seq->row_first + row) * a->q_stride + (size_t)head * dim;
    float *out = (float *)a->out + (seq->row_first + row) * a->out_stride + (size_t)head * dim;
    double acc[KERNELS_HEAD_DIM_MAX] = {0};
    double max = -HUGE_VAL, sum = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t t = start; t <= position; t++) {
            const unsigned char *slice = slice_at(&a->kv, seq->blocks[t / layout->block_tokens]);
            uint32_t slot = t % layout->block_tokens;
            double score = 0;
            for (uint32_t i = 0; i < dim; i++) {
                score += (double)q[i] * value_load(slice + kv_layout_k_offset(layout, kv_head, slot, i), layout->dtype);
            }
            score *= (double)a->scale * scale_load(slice, layout, kv_head, slot, false);
            if (pass == 0) { max = fmax(max, score); continue; }
            double p = exp(score - max);
            sum += p;
            double weight = p * scale_load(slice, layout, kv_head, slot, true);
            for (uint32_t i = 0; i < dim; i++) {
                acc[i] += weight * value_load(slice + kv_layout_v_offset(layout, kv_head, slot, i), layout->dtype);
            }
        }
    }
    for (uint32_t i = 0; i < dim; i++) { out[i] = (float)(acc[i] / sum); }
}

void ref_attention(struct kernels *kernels, const struct kernels_attention *a)
{
    (void)kernels;
    for (uint32_t s = 0; s < a->sequence_count; s++) {
        for (uint32_t row = 0; row < a->sequences[s].row_count; row++) {
            for (uint32_t head = 0; head < a->q_heads; head++) { attention_head(a, &a->sequences[s], row, head); }
        }
    }
}
