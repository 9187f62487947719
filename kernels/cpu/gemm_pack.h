/* gemm_pack: what the products of gemm_impl.h and gemm_amx.c share: rows of x as they are read, and where sums end.
 * After a vec_<isa>.h and set_lanes.h. */

#ifndef GEMM_BF16_DOT
#define GEMM_BF16_DOT 0 /* 1: bf16 weights meet x rounded to bf16, by the set's gemm_dot() */
#endif

VEC_FN bool gemm_is_dot(enum kernels_weight format) { return GEMM_BF16_DOT && format == KERNELS_WEIGHT_BF16; }

/* ---- x ------------------------------------------------------------------------------------- */

/* Bytes of a packed row; odd in cache lines, so that rows do not share the sets of a cache. */
VEC_FN size_t gemm_pack_stride(enum kernels_weight format, uint32_t n_in)
{
    size_t inputs = ((size_t)n_in + 31) / 32 * 32;
    return inputs * (gemm_is_dot(format) ? 2 : 4) + 64;
}

/* Rows of x as the steps read them: whole lines, what is past n_in zero; rounded where the set does. */
static void gemm_pack(const struct kernels_gemm *g, uint32_t row_first, uint32_t rows, struct set_scratch *scratch)
{
    const enum kernels_weight format = g->weight->format;
    const uint32_t n_in = g->weight->n_in;
    if (scratch->pack_x == g->x && scratch->pack_row_first == row_first && scratch->pack_rows == rows
        && scratch->pack_in == n_in && scratch->pack_format == format) {
        return; /* q, k and v read the same rows */
    }
    const size_t stride = gemm_pack_stride(format, n_in);
    for (uint32_t r = 0; r < rows; r++) {
        const float *x = (const float *)g->x + (size_t)(row_first + r) * g->x_stride;
        unsigned char *to = scratch->pack + r * stride;
        for (uint32_t k = 0; k < (n_in + 31) / 32 * 32; k += 16) {
            const uint32_t left = k < n_in ? n_in - k : 0;
            vec values = left == 0 ? vec_zero() : left < 16 ? vec_load_part(x + k, left) : vec_load(x + k);
            if (gemm_is_dot(format)) {
                vec_store_bf16(to + (size_t)k * 2, values);
            } else {
                vec_store((float *)(void *)to + k, values);
            }
        }
    }
    scratch->pack_x = g->x;
    scratch->pack_row_first = row_first;
    scratch->pack_rows = rows;
    scratch->pack_in = n_in;
    scratch->pack_format = format;
}

VEC_FN const unsigned char *gemm_panel(const struct kernels_gemm *g, uint32_t panel, size_t panel_bytes)
{
    return (const unsigned char *)g->weight->data + panel * panel_bytes;
}

/* 16 outputs of one row: (+ bias) (+ old), in this order. */
VEC_FN void gemm_finish(const struct kernels_gemm *g, uint32_t row, uint32_t n, vec sum)
{
    const uint32_t left = g->weight->n_out - n, count = left < 16 ? left : 16;
    float *out = (float *)g->out + (size_t)row * g->out_stride + n;
    if (g->bias != NULL) {
        sum = vec_add(sum, load_part(g->bias_dtype, (const unsigned char *)g->bias + (size_t)n * dtype_bytes(g->bias_dtype), count));
    }
    if (count == 16) {
        vec_store(out, g->accumulate ? vec_add(sum, vec_load(out)) : sum);
    } else {
        vec_store_part(out, g->accumulate ? vec_add(sum, vec_load_part(out, count)) : sum, count);
    }
}
