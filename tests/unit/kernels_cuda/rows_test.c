/* The row kernels compute what kernels/ref computes, to the rounding of their arithmetic; write nothing else; and a row's
 * bits are its own, wherever it lies and whatever is beside it. */
#include "kernels/cuda/rows_args.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/kernels_cuda/rows_testing.h"

static const uint32_t dims[] = {1, 2, 7, 8, 9, 31, 64, 100, 128, 255, 256, 257, 264, 500, 1024, 2056, 4096, 8190, 8200};
#define DIM_COUNT (sizeof(dims) / sizeof(dims[0]))

/* Roundings that a thread's own sum and the sums over lanes and warps may add up to, in units. */
static double sum_units(uint32_t dim)
{
    const uint32_t chunks = (dim + 7) / 8, threads = chunks > 1024 ? 1024 : (chunks + 31) / 32 * 32;
    return 8.0 * ((chunks + threads - 1) / threads) + 10;
}

static void run_rmsnorm(const struct rows *x, uint32_t heads, const struct rows *weight, float eps, const struct rows *out)
{
    const struct cuda_rmsnorm_args args = {.rows = x->rows, .heads = heads, .dim = x->dim / heads, .eps = eps, .x = x->data,
                                           .x_stride = x->stride, .x_dtype = x->dtype, .weight = weight->data,
                                           .weight_dtype = weight->dtype, .out = out->data, .out_stride = out->stride,
                                           .out_dtype = out->dtype};
    struct cuda_launch shape;
    cuda_rmsnorm_shape(&args, &shape);
    launch(CUDA_KERNEL_rmsnorm, &shape, &args, sizeof(args));
}

/* The factor errs by half of the sum's roundings and by those of a quotient, a sum with eps, a root and a quotient; two
 * products follow. */
static void check_rmsnorm(struct random *random, struct kernels *ref, uint32_t rows, uint32_t heads, uint32_t dim)
{
    struct rows x = rows_random(random, random_dtype(random), rows, heads * dim, 3);
    struct rows weight = rows_random(random, random_dtype(random), 1, dim, 2);
    struct rows out = rows_poisoned(random, random_dtype(random), rows, heads * dim);
    const float eps = random_range(random, 0, 1) == 0 ? 1e-5f : 1e-2f;
    run_rmsnorm(&x, heads, &weight, eps, &out);
    assert_only_rows_written("rmsnorm", &out);

    float *plain = rows_as_f32(&x), *want = malloc((size_t)rows * heads * dim * sizeof(float));
    assert_non_null(want);
    const struct kernels_rmsnorm args = {.rows = rows, .heads = heads, .dim = dim, .x = plain, .x_stride = heads * dim,
                                         .weight = weight.data, .weight_dtype = weight.dtype, .eps = eps, .out = want,
                                         .out_stride = heads * dim};
    kernels_rmsnorm(ref, &args);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < heads * dim; i++) {
            const double w = (double)want[(size_t)r * heads * dim + i];
            assert_near("rmsnorm", &out, r, i, w, (sum_units(dim) / 2 + 7) * UNIT_F32 * fabs(w));
        }
    }

    /* Each row alone, elsewhere, has the same bits; in place too. */
    for (uint32_t r = 0; r < rows; r++) {
        struct rows one = rows_random(random, x.dtype, 1, heads * dim, 1);
        memcpy(one.data, rows_row(&x, r), (size_t)heads * dim * dtype_bytes(x.dtype));
        struct rows alone = rows_poisoned(random, out.dtype, 1, heads * dim);
        run_rmsnorm(&one, heads, &weight, eps, &alone);
        struct rows part = out;
        part.data = rows_row(&out, r);
        part.rows = 1;
        assert_rows_equal("rmsnorm of one row", &alone, &part);
        if (x.dtype == out.dtype) {
            run_rmsnorm(&one, heads, &weight, eps, &one);
            assert_rows_equal("rmsnorm in place", &one, &part);
            assert_only_rows_written("rmsnorm in place", &one);
        }
        rows_free(&one);
        rows_free(&alone);
    }
    free(plain);
    free(want);
    rows_free(&x);
    rows_free(&weight);
    rows_free(&out);
}

static void rmsnorm_is_the_oracles(void **state)
{
    (void)state;
    struct random random = random_from_environment("rmsnorm");
    struct kernels *ref = oracle();
    for (uint32_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < DIM_COUNT; i++) { check_rmsnorm(&random, ref, random_range(&random, 1, 5), 1, dims[i]); }
        for (uint32_t i = 0; i < 10; i++) {
            check_rmsnorm(&random, ref, random_range(&random, 1, 5), random_range(&random, 2, 9), random_range(&random, 1, 300));
        }
        check_rmsnorm(&random, ref, 3, 8, 128);
    }
    check_rmsnorm(&random, ref, 2, 1, 16384); /* the most that registers keep, and more */
    check_rmsnorm(&random, ref, 2, 1, 16385);
    check_rmsnorm(&random, ref, 1, 1, 20000);
    kernels_destroy(ref);
}

static void run_layernorm(const struct rows *x, const struct rows *weight, const struct rows *bias, const struct rows *out)
{
    const struct cuda_layernorm_args args = {.rows = x->rows, .dim = x->dim, .eps = 1e-5f, .x = x->data, .x_stride = x->stride,
                                             .x_dtype = x->dtype, .weight = weight->data, .weight_dtype = weight->dtype,
                                             .bias = bias != NULL ? bias->data : NULL, .out = out->data, .out_stride = out->stride,
                                             .out_dtype = out->dtype};
    struct cuda_launch shape;
    cuda_layernorm_shape(&args, &shape);
    launch(CUDA_KERNEL_layernorm, &shape, &args, sizeof(args));
}

/* The mean errs by `e`, the sum's roundings of the mean of |x|; each difference by that and its own rounding; the factor
 * by half of the sum's roundings, a few of its own, and e against the deviation. */
static void check_layernorm(struct random *random, struct kernels *ref, uint32_t rows, uint32_t dim)
{
    struct rows x = rows_random(random, random_dtype(random), rows, dim, 3);
    const enum dtype dtype = random_dtype(random);
    struct rows weight = rows_random(random, dtype, 1, dim, 2), bias = rows_random(random, dtype, 1, dim, 2);
    struct rows out = rows_poisoned(random, random_dtype(random), rows, dim);
    const bool with_bias = random_range(random, 0, 1) != 0;
    run_layernorm(&x, &weight, with_bias ? &bias : NULL, &out);
    assert_only_rows_written("layernorm", &out);

    float *plain = rows_as_f32(&x), *want = malloc((size_t)rows * dim * sizeof(float));
    assert_non_null(want);
    const struct kernels_layernorm args = {.rows = rows, .dim = dim, .x = plain, .x_stride = dim, .weight = weight.data,
                                           .bias = with_bias ? bias.data : NULL, .dtype = dtype, .eps = 1e-5f, .out = want,
                                           .out_stride = dim};
    kernels_layernorm(ref, &args);
    for (uint32_t r = 0; r < rows; r++) {
        double mean = 0, size = 0, var = 0;
        for (uint32_t i = 0; i < dim; i++) {
            mean += (double)plain[(size_t)r * dim + i] / dim;
            size += fabs((double)plain[(size_t)r * dim + i]) / dim;
        }
        for (uint32_t i = 0; i < dim; i++) { var += pow((double)plain[(size_t)r * dim + i] - mean, 2) / dim; }
        const double factor = 1 / sqrt(var + (double)args.eps), e = (sum_units(dim) + 2) * UNIT_F32 * size;
        for (uint32_t i = 0; i < dim; i++) {
            const double d = fabs((double)plain[(size_t)r * dim + i] - mean), w = fabs(rows_at(&weight, 0, i));
            const double b = with_bias ? fabs(rows_at(&bias, 0, i)) : 0;
            const double bound = w * factor * (e + UNIT_F32 * d) + w * factor * d * ((sum_units(dim) / 2 + 8) * UNIT_F32 + e * factor) +
                                 2 * UNIT_F32 * (w * factor * d + b);
            assert_near("layernorm", &out, r, i, (double)want[(size_t)r * dim + i], bound);
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        struct rows one = rows_random(random, x.dtype, 1, dim, 1);
        memcpy(one.data, rows_row(&x, r), (size_t)dim * dtype_bytes(x.dtype));
        struct rows alone = rows_poisoned(random, out.dtype, 1, dim);
        run_layernorm(&one, &weight, with_bias ? &bias : NULL, &alone);
        struct rows part = out;
        part.data = rows_row(&out, r);
        part.rows = 1;
        assert_rows_equal("layernorm of one row", &alone, &part);
        rows_free(&one);
        rows_free(&alone);
    }
    free(plain);
    free(want);
    rows_free(&x);
    rows_free(&weight);
    rows_free(&bias);
    rows_free(&out);
}

static void layernorm_is_the_oracles(void **state)
{
    (void)state;
    struct random random = random_from_environment("layernorm");
    struct kernels *ref = oracle();
    for (uint32_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < DIM_COUNT; i++) { check_layernorm(&random, ref, random_range(&random, 1, 5), dims[i]); }
    }
    kernels_destroy(ref);
}

/* A pair errs by two roundings of its two products; a norm before it by its own bound and a rounding to the dtype. */
static void check_rope(struct random *random, struct kernels *ref, uint32_t rows, uint32_t heads, uint32_t head_dim, uint32_t rotary_dim)
{
    struct rows x = rows_random(random, random_dtype(random), rows, heads * head_dim, 3);
    struct rows norm = rows_random(random, random_dtype(random), 1, head_dim, 2);
    const bool with_norm = random_range(random, 0, 1) != 0;
    float cosines[20 * 128 + 1], sines[20 * 128 + 1];
    for (uint32_t i = 0; i < 20 * 128 + 1; i++) {
        cosines[i] = cosf((float)i);
        sines[i] = sinf((float)i);
    }
    const uint32_t shift = random_range(random, 0, 1); /* tables on a boundary or not */
    uint32_t positions[8];
    for (uint32_t r = 0; r < rows; r++) { positions[r] = random_range(random, 0, 19); }
    struct rows out = rows_copy(&x);
    const struct cuda_rope_args args = {.rows = rows, .heads = heads, .head_dim = head_dim, .rotary_dim = rotary_dim, .dtype = x.dtype,
                                        .x = out.data, .x_stride = out.stride, .cos = cosines + shift, .sin = sines + shift,
                                        .positions = positions, .norm = with_norm ? norm.data : NULL, .norm_dtype = norm.dtype,
                                        .norm_eps = 1e-6f};
    struct cuda_launch shape;
    cuda_rope_shape(&args, &shape);
    launch(CUDA_KERNEL_rope, &shape, &args, sizeof(args));
    assert_only_rows_written("rope", &out);

    float *before = rows_as_f32(&x);
    double units = 0;
    if (with_norm) {
        const struct kernels_rmsnorm first = {.rows = rows, .heads = heads, .dim = head_dim, .x = before, .x_stride = heads * head_dim,
                                              .weight = norm.data, .weight_dtype = norm.dtype, .eps = 1e-6f, .out = before,
                                              .out_stride = heads * head_dim};
        kernels_rmsnorm(ref, &first);
        units = (sum_units(head_dim) / 2 + 8) * UNIT_F32 + unit_of(x.dtype);
    }
    float *want = malloc((size_t)rows * heads * head_dim * sizeof(float));
    assert_non_null(want);
    memcpy(want, before, (size_t)rows * heads * head_dim * sizeof(float));
    if (rotary_dim != 0) {
        const struct kernels_rope turn = {.rows = rows, .heads = heads, .head_dim = head_dim, .rotary_dim = rotary_dim, .x = want,
                                          .x_stride = heads * head_dim, .cos = cosines + shift, .sin = sines + shift,
                                          .positions = positions, .position_count = 20};
        kernels_rope(ref, &turn);
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < heads * head_dim; i++) {
            const size_t at = (size_t)r * heads * head_dim + i;
            const uint32_t d = i % head_dim, half = rotary_dim / 2;
            double size = fabs((double)before[at]);
            if (d < rotary_dim) { size += fabs((double)before[d < half ? at + half : at - half]); }
            const bool untouched = d >= rotary_dim && !with_norm;
            assert_near("rope", &out, r, i, (double)want[at], untouched ? 0 : size * (units * 1.01 + 3 * UNIT_F32) + 0x1p-24 * (x.dtype == DTYPE_F16));
            if (untouched) { assert_true(rows_at(&out, r, i) == rows_at(&x, r, i)); }
        }
    }
    free(before);
    free(want);
    rows_free(&x);
    rows_free(&norm);
    rows_free(&out);
}

static void rope_is_the_oracles(void **state)
{
    (void)state;
    struct random random = random_from_environment("rope");
    struct kernels *ref = oracle();
    static const uint32_t head_dims[] = {2, 6, 16, 30, 64, 80, 96, 128, 130, 192, 254, 256};
    for (uint32_t round = 0; round < 8; round++) {
        for (size_t i = 0; i < sizeof(head_dims) / sizeof(head_dims[0]); i++) {
            const uint32_t dim = head_dims[i], part = random_range(&random, 0, dim / 2) * 2;
            check_rope(&random, ref, random_range(&random, 1, 6), random_range(&random, 1, 7), dim, round % 2 == 0 ? dim : part);
        }
    }
    kernels_destroy(ref);
}

/* Without learned positions a row is a row of the table, exactly; with them one rounding. */
static void embed_is_the_oracles(void **state)
{
    (void)state;
    struct random random = random_from_environment("embed");
    for (uint32_t round = 0; round < 60; round++) {
        const uint32_t rows = random_range(&random, 1, 6), dim = dims[random_range(&random, 0, 15)];
        struct rows table = rows_random(&random, random_dtype(&random), 30, dim, 1);
        struct rows places = rows_random(&random, random_dtype(&random), 1, 20 * dim, 1);
        struct rows out = rows_poisoned(&random, DTYPE_F32, rows, dim);
        const bool with_positions = random_range(&random, 0, 1) != 0;
        uint32_t ids[6], positions[6];
        for (uint32_t r = 0; r < rows; r++) {
            ids[r] = random_range(&random, 0, 29);
            positions[r] = random_range(&random, 0, 19);
        }
        const struct cuda_embed_args args = {.rows = rows, .dim = dim, .table = table.data, .table_stride = table.stride,
                                             .table_dtype = table.dtype, .position_dtype = places.dtype, .ids = ids,
                                             .position_table = with_positions ? places.data : NULL, .positions = positions,
                                             .out = out.data, .out_stride = out.stride};
        struct cuda_launch shape;
        cuda_embed_shape(&args, &shape);
        launch(CUDA_KERNEL_embed, &shape, &args, sizeof(args));
        assert_only_rows_written("embed", &out);
        for (uint32_t r = 0; r < rows; r++) {
            for (uint32_t i = 0; i < dim; i++) {
                const double word = rows_at(&table, ids[r], i), place = with_positions ? rows_at(&places, 0, positions[r] * dim + i) : 0;
                assert_true(rows_at(&out, r, i) == (double)(float)(word + place));
            }
        }
        rows_free(&table);
        rows_free(&places);
        rows_free(&out);
    }
}

static void run_map(enum cuda_map map, const struct rows *a, const struct rows *b, const struct rows *out)
{
    const struct cuda_map_args args = {.map = map, .rows = a->rows, .dim = a->dim, .dtype = a->dtype, .out_dtype = out->dtype,
                                       .a = a->data, .a_stride = a->stride, .b = b != NULL ? b->data : NULL,
                                       .b_stride = b != NULL ? b->stride : 0, .out = out->data, .out_stride = out->stride};
    struct cuda_launch shape;
    cuda_map_shape(&args, &shape);
    launch(CUDA_KERNEL_map, &shape, &args, sizeof(args));
}

/* What the forms of the map kernel may err by, in units of the result; exp, erf and erfc err by 8 units (4 ulp) at most:
 *   silu       exp 8, a sum, a quotient, a product, and the oracle's rounding
 *   gelu_erf   erfc 8 and what its argument's two roundings change, 2 z^2 + 2 times each where z > 0; two products
 *   gelu_tanh  the exponent's five roundings times the exponent, exp 8, a sum, a quotient
 * Where exp overflows or erfc underflows the result is below 2^-118. */
static double map_units(enum cuda_map map, double x)
{
    const double z = -x * 0.70710678, v = 1.5957691216 * (x + 0.044715 * x * x * x);
    switch (map) {
    case CUDA_MAP_SILU_MUL: return 13;
    case CUDA_MAP_GELU_ERF: return 12 + (z > 0 ? 2 * (2 * z * z + 2) : 2 * fabs(z));
    case CUDA_MAP_GELU_TANH: return 12 + 5 * fabs(v);
    default: return 1;
    }
}

static void check_map(struct random *random, struct kernels *ref, enum cuda_map map, uint32_t rows, uint32_t dim, float factor)
{
    const enum dtype dtype = random_dtype(random);
    struct rows a = rows_random(random, dtype, rows, dim, factor), b = rows_random(random, dtype, rows, dim, 2);
    struct rows out = rows_poisoned(random, dtype, rows, dim);
    const bool two = map == CUDA_MAP_SILU_MUL || map == CUDA_MAP_MUL;
    run_map(map, &a, two ? &b : NULL, &out);
    assert_only_rows_written("map", &out);

    float *x = rows_as_f32(&a), *y = rows_as_f32(&b), *want = malloc((size_t)rows * dim * sizeof(float));
    assert_non_null(want);
    if (map == CUDA_MAP_SILU_MUL) {
        const struct kernels_silu_mul args = {.rows = rows, .dim = dim, .gate = x, .gate_stride = dim, .up = y, .up_stride = dim,
                                              .out = want, .out_stride = dim};
        kernels_silu_mul(ref, &args);
    } else if (map == CUDA_MAP_MUL) {
        const struct kernels_mul args = {.rows = rows, .dim = dim, .a = x, .a_stride = dim, .b = y, .b_stride = dim, .out = want,
                                         .out_stride = dim};
        kernels_mul(ref, &args);
    } else {
        const struct kernels_gelu args = {.form = map == CUDA_MAP_GELU_ERF ? KERNELS_GELU_ERF : KERNELS_GELU_TANH, .rows = rows,
                                          .dim = dim, .x = x, .x_stride = dim, .out = want, .out_stride = dim};
        kernels_gelu(ref, &args);
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < dim; i++) {
            const double w = (double)want[(size_t)r * dim + i], v = (double)x[(size_t)r * dim + i];
            assert_near("map", &out, r, i, w, (map_units(map, v) + 1) * UNIT_F32 * fabs(w) + (two ? 2 : 1) * 0x1p-118);
        }
    }
    /* In place, over either input. */
    struct rows in_place = rows_copy(&a);
    run_map(map, &in_place, two ? &b : NULL, &in_place);
    assert_rows_equal("map in place", &in_place, &out);
    if (two) {
        struct rows over_b = rows_copy(&b);
        run_map(map, &a, &over_b, &over_b);
        assert_rows_equal("map over b", &over_b, &out);
        rows_free(&over_b);
    }
    free(x);
    free(y);
    free(want);
    rows_free(&in_place);
    rows_free(&a);
    rows_free(&b);
    rows_free(&out);
}

static void elementwise_is_the_oracles(void **state)
{
    (void)state;
    struct random random = random_from_environment("map");
    struct kernels *ref = oracle();
    for (uint32_t round = 0; round < 60; round++) {
        const uint32_t rows = random_range(&random, 1, 5), dim = dims[random_range(&random, 0, 15)];
        for (int map = CUDA_MAP_SILU_MUL; map <= CUDA_MAP_MUL; map++) {
            /* Small ones, and some for which exp leaves the range. */
            check_map(&random, ref, (enum cuda_map)map, rows, dim, round % 4 == 0 ? 110 : round % 4 == 1 ? 12 : 3);
        }
    }
    kernels_destroy(ref);
}

/* A conversion rounds as the host rounds; what is out of range or no number is too. */
static void convert_rounds_as_the_host_does(void **state)
{
    (void)state;
    struct random random = random_from_environment("convert");
    for (uint32_t round = 0; round < 60; round++) {
        const uint32_t rows = random_range(&random, 1, 5), dim = dims[random_range(&random, 0, 15)];
        struct rows x = rows_random(&random, random_dtype(&random), rows, dim, round % 2 == 0 ? 2 : 1e6f);
        struct rows out = rows_poisoned(&random, random_dtype(&random), rows, dim);
        run_map(CUDA_MAP_CONVERT, &x, NULL, &out);
        assert_only_rows_written("convert", &out);
        for (uint32_t r = 0; r < rows; r++) {
            for (uint32_t i = 0; i < dim; i++) {
                const float v = (float)rows_at(&x, r, i);
                const float want = out.dtype == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(v)) : out.dtype == DTYPE_F16 ? f16_to_f32(f32_to_f16(v)) : v;
                assert_true(rows_at(&out, r, i) == (double)want);
            }
        }
        rows_free(&x);
        rows_free(&out);
    }
}

/* Rows are gathered byte for byte. */
static void gather_moves_rows(void **state)
{
    (void)state;
    struct random random = random_from_environment("gather");
    for (uint32_t round = 0; round < 60; round++) {
        const enum dtype dtype = random_dtype(&random);
        const uint32_t rows = random_range(&random, 1, 9), dim = dims[random_range(&random, 0, 15)];
        struct rows x = rows_random(&random, dtype, 12, dim, 1), out = rows_poisoned(&random, dtype, rows, dim);
        uint32_t from[9];
        for (uint32_t r = 0; r < rows; r++) { from[r] = random_range(&random, 0, 11); }
        const uint32_t element = dtype_bytes(dtype);
        const struct cuda_gather_rows_args args = {.rows = rows, .row_bytes = dim * element, .x = x.data, .x_stride_bytes = x.stride * element,
                                                   .from = from, .out = out.data, .out_stride_bytes = out.stride * element};
        struct cuda_launch shape;
        cuda_gather_rows_shape(&args, &shape);
        launch(CUDA_KERNEL_gather_rows, &shape, &args, sizeof(args));
        assert_only_rows_written("gather", &out);
        for (uint32_t r = 0; r < rows; r++) { assert_memory_equal(rows_row(&out, r), rows_row(&x, from[r]), dim * element); }
        rows_free(&x);
        rows_free(&out);
    }
}

/* No rows: no blocks, which is no launch. */
static void no_rows_is_no_launch(void **state)
{
    (void)state;
    struct cuda_launch shape;
    cuda_embed_shape(&(struct cuda_embed_args){.dim = 8}, &shape);
    assert_int_equal(shape.grid[0], 0);
    cuda_rmsnorm_shape(&(struct cuda_rmsnorm_args){.dim = 8, .heads = 1}, &shape);
    assert_int_equal(shape.grid[0], 0);
    cuda_rmsnorm_shape(&(struct cuda_rmsnorm_args){.dim = 800, .heads = 1}, &shape);
    assert_int_equal(shape.grid[0], 0);
    cuda_layernorm_shape(&(struct cuda_layernorm_args){.dim = 8}, &shape);
    assert_int_equal(shape.grid[0], 0);
    cuda_rope_shape(&(struct cuda_rope_args){.head_dim = 8, .heads = 4}, &shape);
    assert_int_equal(shape.grid[0], 0);
    cuda_map_shape(&(struct cuda_map_args){.dim = 8, .map = CUDA_MAP_CONVERT}, &shape);
    assert_int_equal(shape.grid[0], 0);
    cuda_gather_rows_shape(&(struct cuda_gather_rows_args){.row_bytes = 8}, &shape);
    assert_int_equal(shape.grid[0], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_rows_is_no_launch),
        cmocka_unit_test(rmsnorm_is_the_oracles),
        cmocka_unit_test(layernorm_is_the_oracles),
        cmocka_unit_test(rope_is_the_oracles),
        cmocka_unit_test(embed_is_the_oracles),
        cmocka_unit_test(elementwise_is_the_oracles),
        cmocka_unit_test(convert_rounds_as_the_host_does),
        cmocka_unit_test(gather_moves_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
