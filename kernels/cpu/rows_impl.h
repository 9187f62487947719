/* rows_impl: the operations of set_impl.h that work on one row at a time. */

#define ROW_EACH(i, count, dim)                                                                 \
    for (uint32_t i = 0, count = (dim) < 16 ? (dim) : 16; i < (dim); i += 16, count = (dim) - i < 16 ? (dim) - i : 16)

VEC_FN vec row_load(const float *p, uint32_t count) { return count == 16 ? vec_load(p) : vec_load_part(p, count); }
VEC_FN void row_store(float *p, vec a, uint32_t count)
{
    if (count == 16) {
        vec_store(p, a);
    } else {
        vec_store_part(p, a, count);
    }
}

/* Element `index` of a row of any dtype and what follows it. */
VEC_FN vec row_load_as(enum dtype dtype, const void *p, size_t index, uint32_t count)
{
    return load_part(dtype, (const unsigned char *)p + index * dtype_bytes(dtype), count);
}

static void rmsnorm_rows(const struct kernels_rmsnorm *a, uint32_t row_first, uint32_t rows)
{
    for (size_t i = (size_t)row_first * a->heads; i < (size_t)(row_first + rows) * a->heads; i++) {
        const float *x = (const float *)a->x + i / a->heads * a->x_stride + i % a->heads * a->dim;
        float *out = (float *)a->out + i / a->heads * a->out_stride + i % a->heads * a->dim;
        vec squares = vec_zero();
        ROW_EACH(d, count, a->dim)
        {
            vec v = row_load(x + d, count);
            squares = vec_fma(v, v, squares);
        }
        vec factor = vec_set(1.0f / sqrtf(vec_sum(squares) / (float)a->dim + a->eps));
        ROW_EACH(d, count, a->dim)
        {
            vec v = vec_mul(row_load(x + d, count), factor);
            row_store(out + d, vec_mul(v, row_load_as(a->weight_dtype, a->weight, d, count)), count);
        }
    }
}

static void layernorm_rows(const struct kernels_layernorm *a, uint32_t row_first, uint32_t rows)
{
    for (uint32_t row = row_first; row < row_first + rows; row++) {
        const float *x = (const float *)a->x + row * a->x_stride;
        float *out = (float *)a->out + row * a->out_stride;
        vec sum = vec_zero(), squares = vec_zero();
        ROW_EACH(d, count, a->dim) { sum = vec_add(sum, row_load(x + d, count)); }
        vec mean = vec_set(vec_sum(sum) / (float)a->dim);
        ROW_EACH(d, count, a->dim)
        {
            vec v = vec_keep(vec_sub(row_load(x + d, count), mean), 0, count, 0.0f);
            squares = vec_fma(v, v, squares);
        }
        vec factor = vec_set(1.0f / sqrtf(vec_sum(squares) / (float)a->dim + a->eps));
        ROW_EACH(d, count, a->dim)
        {
            vec v = vec_mul(vec_sub(row_load(x + d, count), mean), factor);
            vec bias = a->bias != NULL ? row_load_as(a->dtype, a->bias, d, count) : vec_zero();
            row_store(out + d, vec_fma(v, row_load_as(a->dtype, a->weight, d, count), bias), count);
        }
    }
}

static void rope_rows(const struct kernels_rope *a, uint32_t row_first, uint32_t rows)
{
    const uint32_t half = a->rotary_dim / 2;
    for (uint32_t row = row_first; row < row_first + rows; row++) {
        const float *cos_row = a->cos + (size_t)a->positions[row] * half;
        const float *sin_row = a->sin + (size_t)a->positions[row] * half;
        for (uint32_t head = 0; head < a->heads; head++) {
            float *lo = (float *)a->x + row * a->x_stride + (size_t)head * a->head_dim;
            float *hi = lo + half;
            ROW_EACH(d, count, half)
            {
                vec c = row_load(cos_row + d, count), s = row_load(sin_row + d, count);
                vec x = row_load(lo + d, count), y = row_load(hi + d, count);
                row_store(lo + d, vec_sub(vec_mul(x, c), vec_mul(y, s)), count);
                row_store(hi + d, vec_add(vec_mul(y, c), vec_mul(x, s)), count);
            }
        }
    }
}

static void embed_rows(const struct kernels_embed *a, uint32_t row_first, uint32_t rows)
{
    for (uint32_t row = row_first; row < row_first + rows; row++) {
        float *out = a->out + row * a->out_stride;
        const uint32_t dim = a->table->n_in;
        kernels_matrix_read(a->table, a->ids[row], 0, dim, out);
        if (a->position_table == NULL) { continue; }
        ROW_EACH(d, count, dim)
        {
            size_t at = (size_t)a->positions[row] * dim + d;
            row_store(out + d, vec_add(row_load(out + d, count), row_load_as(a->position_dtype, a->position_table, at, count)), count);
        }
    }
}

static void silu_mul_row(uint32_t dim, const float *gate, const float *up, float *out)
{
    ROW_EACH(d, count, dim)
    {
        vec g = row_load(gate + d, count);
        vec silu = vec_div(g, vec_add(vec_set(1.0f), vec_exp(vec_sub(vec_zero(), g))));
        row_store(out + d, vec_mul(silu, row_load(up + d, count)), count);
    }
}

/* x/2 * (1 + tanh(u)) is x / (1 + exp(-2u)), which loses no digits where tanh is near -1. */
VEC_FN vec gelu_tanh(vec x)
{
    vec cubic = vec_fma(vec_mul(vec_mul(x, x), vec_set(0.044715f)), x, x);
    return vec_div(x, vec_add(vec_set(1.0f), vec_exp(vec_mul(cubic, vec_set(-1.5957691216f)))));
}

/* erfc(z) = t * exp(P(t) - z^2), t = 1 / (1 + z/2), z >= 0: P is our own fit of degree 9 (weighted
 * least squares driven to a minimax of ln erfc) with relative error 5e-8 on 0 .. 10; at 10 erfc has
 * left the range of f32. The normal distribution below x is erfc(-x / sqrt 2) / 2. */
VEC_FN vec gelu_erf(vec x)
{
    static const float fit[10] = {-1.26545298f, 0.998726189f, 0.385906398f, 0.0378141962f, -0.00740148313f,
                                  -0.0652290657f, -0.713135302f, 1.16857767f, -0.685557306f, 0.145751834f};
    vec z = vec_min(vec_set(10.0f), vec_mul(vec_abs(x), vec_set(0.707106781f)));
    vec t = vec_div(vec_set(1.0f), vec_fma(z, vec_set(0.5f), vec_set(1.0f)));
    vec poly = vec_set(fit[9]);
    VEC_UNROLL
    for (int i = 8; i >= 0; i--) { poly = vec_fma(poly, t, vec_set(fit[i])); }
    vec tail = vec_mul(vec_mul(t, vec_exp(vec_sub(poly, vec_mul(z, z)))), vec_set(0.5f));
    return vec_mul(x, vec_if_negative(x, tail, vec_sub(vec_set(1.0f), tail)));
}

static void gelu_row(enum kernels_gelu_form form, uint32_t dim, const float *x, float *out)
{
    ROW_EACH(d, count, dim)
    {
        vec v = row_load(x + d, count);
        row_store(out + d, form == KERNELS_GELU_ERF ? gelu_erf(v) : gelu_tanh(v), count);
    }
}

static void mul_row(uint32_t dim, const float *a, const float *b, float *out)
{
    ROW_EACH(d, count, dim) { row_store(out + d, vec_mul(row_load(a + d, count), row_load(b + d, count)), count); }
}
