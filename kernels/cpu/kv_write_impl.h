/* kv_write_impl: stores rows of K and V in the order and roundings of kv/kv_layout.h.
 *
 * A row is rounded into a strip of its own first, 16 lanes at a time, then its values are put one by
 * one where they belong: tokens share cache lines, and another thread may be writing the next one. */

/* The scale of one row of K or V as it is stored. */
VEC_FN uint16_t kv_write_scale(const float *x, uint32_t dim, float code_max)
{
    vec top = vec_zero(), odd = vec_zero();
    ROW_EACH(d, count, dim)
    {
        vec v = row_load(x + d, count);
        top = vec_max(vec_abs(v), top);
        odd = vec_fma(v, vec_zero(), odd); /* NaN if anything is not finite */
    }
    if (vec_sum(odd) != 0.0f) { return 0x7fc0; }
    return f32_to_bf16_up(vec_max_lane(top) / code_max);
}

/* Codes of one row, which lie `step` bytes apart. */
VEC_FN void kv_write_codes(unsigned char *slice, size_t scale_at, size_t first, size_t step, const float *x, uint32_t dim,
                           const enum dtype dtype)
{
    unsigned char codes[KERNELS_HEAD_DIM_MAX + 16];
    const uint16_t stored = kv_write_scale(x, dim, dtype == DTYPE_INT8 ? 127.0f : 448.0f);
    const float scale = bf16_to_f32(stored);
    memcpy(slice + scale_at, &stored, 2);
    if (scale > 0.0f) {
        ROW_EACH(d, count, dim)
        {
            vec code = vec_div(row_load(x + d, count), vec_set(scale));
            if (dtype == DTYPE_INT8) {
                vec_store_int8(codes + d, code);
            } else {
                vec_store_fp8(codes + d, code);
            }
        }
    } else {
        memset(codes, 0, dim);
    }
    for (uint32_t d = 0; d < dim; d++) { slice[first + d * step] = codes[d]; }
}

static void kv_write_head(const struct kv_layout *layout, unsigned char *slice, uint32_t head, uint32_t slot, bool of_v, const float *x)
{
    const uint32_t dim = layout->head_dim;
    const size_t first = of_v ? kv_layout_v_offset(layout, head, slot, 0) : kv_layout_k_offset(layout, head, slot, 0);
    uint16_t rounded[KERNELS_HEAD_DIM_MAX + 16];
    switch (layout->dtype) {
    case DTYPE_BF16:
        ROW_EACH(d, count, dim) { vec_store_bf16(rounded + d, row_load(x + d, count)); }
        if (of_v) {
            for (uint32_t d = 0; d < dim; d++) { memcpy(slice + first + d * 4u, &rounded[d], 2); }
        } else { /* pairs of dimensions */
            for (uint32_t d = 0; d < dim; d += 2) { memcpy(slice + first + d * 32u, &rounded[d], 4); }
        }
        break;
    case DTYPE_F16:
        ROW_EACH(d, count, dim) { vec_store_f16(rounded + d, row_load(x + d, count)); }
        if (of_v) {
            memcpy(slice + first, rounded, dim * 2u);
        } else {
            for (uint32_t d = 0; d < dim; d++) { memcpy(slice + first + d * 32u, &rounded[d], 2); }
        }
        break;
    case DTYPE_INT8:
    case DTYPE_FP8_E4M3: {
        const size_t scale_at = kv_layout_scale_offset(layout, head, slot) + (of_v ? 2 * KV_TILE_TOKENS : 0);
        const size_t step = of_v ? 1 : KV_TILE_TOKENS;
        if (layout->dtype == DTYPE_INT8) {
            kv_write_codes(slice, scale_at, first, step, x, dim, DTYPE_INT8);
        } else {
            kv_write_codes(slice, scale_at, first, step, x, dim, DTYPE_FP8_E4M3);
        }
        break;
    }
    default:
        if (of_v) {
            memcpy(slice + first, x, dim * 4u);
        } else {
            for (uint32_t d = 0; d < dim; d++) { memcpy(slice + first + d * 64u, &x[d], 4); }
        }
        break;
    }
}

static void kv_write_rows(const struct kernels_kv_write *a, uint32_t row_first, uint32_t rows)
{
    const struct kv_layout *layout = &a->kv.layout;
    for (uint32_t row = row_first; row < row_first + rows; row++) {
        if (a->slots[row].block == KERNELS_SLOT_NONE) { continue; }
        unsigned char *slice = (unsigned char *)a->kv.pool + kv_layout_slice_offset(layout, a->slots[row].block, a->kv.layer);
        const float *k = (const float *)a->k + row * a->k_stride, *v = (const float *)a->v + row * a->v_stride;
        for (uint32_t head = 0; head < layout->kv_heads; head++) {
            kv_write_head(layout, slice, head, a->slots[row].slot, false, k + (size_t)head * layout->head_dim);
            kv_write_head(layout, slice, head, a->slots[row].slot, true, v + (size_t)head * layout->head_dim);
        }
    }
}
