/* gemv: products of few rows on the device against kernels/ref: bit for bit where the numbers are integers, whose sums
 * are exact in any order; within the bound of f32 sums where they are not. */
#include "tests/unit/kernels/kernels_testing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/gemv_args.h"
#include "tests/cuda/emu.h"

enum { PAD = 8, POISON = 0xA5 };

/* One launch and what it needs, in buffers of exactly the right length. */
struct problem {
    struct cuda_gemv_args args;
    float *x;           /* [rows][n_in]: what the device's x holds, exactly */
    float *norm_weight; /* [n_in], or NULL */
    float *weight[CUDA_GEMV_PARTS]; /* [n_out][n_in] */
    float *bias[CUDA_GEMV_PARTS];   /* [n_out], or NULL */
    float *before[CUDA_GEMV_PARTS]; /* [rows][out_stride]: what out holds before, or NULL where it is poison */
};

/* ---- making one ---------------------------------------------------------------------------- */

static void put(void *data, enum dtype dtype, size_t index, float value)
{
    switch (dtype) {
    case DTYPE_BF16: ((uint16_t *)data)[index] = f32_to_bf16(value); break;
    case DTYPE_F16: ((uint16_t *)data)[index] = f32_to_f16(value); break;
    default: ((float *)data)[index] = value; break;
    }
}

static float rounded(float value, enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(value)) : dtype == DTYPE_F16 ? f16_to_f32(f32_to_f16(value)) : value;
}

/* An integer of -3 .. 3, or a normal value that the dtype has. */
static float draw(struct random_state *random, bool integers, enum dtype dtype)
{
    return integers ? (float)random_range(random, 0, 6) - 3.0f : rounded(random_float(random), dtype);
}

struct wish {
    uint32_t rows, n_in, part_count, n_out[CUDA_GEMV_PARTS];
    enum dtype dtype, out_dtype;
    bool integers, has_norm, silu_mul, accumulate, has_bias;
};

/* 64-byte aligned and of exactly `bytes`, so that the address sanitizer sees the end. */
static void *filled(size_t bytes, int byte)
{
    void *memory;
    assert_int_equal(posix_memalign(&memory, 64, bytes + (bytes == 0)), 0);
    memset(memory, byte, bytes);
    return memory;
}

static void *copy_as(const float *values, size_t count, enum dtype dtype)
{
    void *data = poisoned(count * dtype_bytes(dtype));
    for (size_t i = 0; i < count; i++) { put(data, dtype, i, values[i]); }
    return data;
}

static struct problem problem_of(struct random_state *random, const struct wish *wish)
{
    struct problem p = {.args = {.rows = wish->rows, .n_in = wish->n_in, .part_count = wish->part_count,
                                 .accumulate = wish->accumulate, .silu_mul = wish->silu_mul, .dtype = wish->dtype,
                                 .out_dtype = wish->out_dtype, .bias_dtype = random_range(random, 0, 2), .eps = 0.0f}};
    struct cuda_gemv_args *a = &p.args;
    uint32_t n_in = wish->n_in;
    enum dtype x_dtype = wish->has_norm ? DTYPE_F32 : wish->dtype;
    a->x_stride = (n_in + 7) / 8 * 8 + PAD * random_range(random, 0, 2);
    p.x = malloc((size_t)wish->rows * n_in * sizeof *p.x + 1);
    /* Past n_in lies a NaN in every lane: read, it would show. The last row ends where n_in does. */
    size_t x_count = wish->rows == 0 ? 0 : (wish->rows - 1) * a->x_stride + n_in;
    void *x = filled(x_count * dtype_bytes(x_dtype), 0xff);
    for (uint32_t row = 0; row < wish->rows; row++) {
        for (uint32_t k = 0; k < n_in; k++) {
            /* A row of +-2^m has a mean square of 4^m: its norm is exactly +-1. */
            float value = wish->has_norm && wish->integers ? ldexpf(random_range(random, 0, 1) ? 1.0f : -1.0f, (int)row - 3)
                                                           : draw(random, wish->integers, x_dtype);
            p.x[(size_t)row * n_in + k] = value;
            put(x, x_dtype, row * a->x_stride + k, value);
        }
    }
    a->x = x;
    if (wish->has_norm) {
        a->norm_dtype = random_range(random, 0, 2);
        a->eps = wish->integers ? 0.0f : 1e-5f;
        p.norm_weight = malloc(n_in * sizeof *p.norm_weight);
        for (uint32_t k = 0; k < n_in; k++) { p.norm_weight[k] = draw(random, wish->integers, a->norm_dtype); }
        a->norm_weight = copy_as(p.norm_weight, n_in, a->norm_dtype);
    }
    for (uint32_t i = 0; i < wish->part_count; i++) {
        struct cuda_gemv_part *part = &a->parts[i];
        part->n_out = wish->n_out[i];
        part->stride = (n_in + 7) / 8 * 8;
        part->out_stride = part->n_out + random_range(random, 0, 3);
        size_t values = (size_t)part->n_out * part->stride;
        void *weight = filled(values * dtype_bytes(wish->dtype), 0);
        p.weight[i] = malloc((size_t)part->n_out * n_in * sizeof *p.weight[i]);
        for (uint32_t out = 0; out < part->n_out; out++) {
            for (uint32_t k = 0; k < n_in; k++) {
                float value = draw(random, wish->integers, wish->dtype);
                p.weight[i][(size_t)out * n_in + k] = value;
                put(weight, wish->dtype, (size_t)out * part->stride + k, value);
            }
        }
        part->weight = weight;
        if (wish->has_bias) {
            p.bias[i] = malloc(part->n_out * sizeof *p.bias[i]);
            for (uint32_t out = 0; out < part->n_out; out++) { p.bias[i][out] = draw(random, wish->integers, a->bias_dtype); }
            part->bias = copy_as(p.bias[i], part->n_out, a->bias_dtype);
        }
        size_t out_count = (size_t)wish->rows * part->out_stride;
        part->out = poisoned(out_count * dtype_bytes(wish->out_dtype));
        if (wish->accumulate) {
            p.before[i] = malloc(out_count * sizeof *p.before[i] + 1);
            for (size_t j = 0; j < out_count; j++) { p.before[i][j] = draw(random, wish->integers, DTYPE_F32); }
            memcpy(part->out, p.before[i], out_count * sizeof *p.before[i]);
        }
    }
    return p;
}

static void free_problem(struct problem *p)
{
    free((void *)(uintptr_t)p->args.x);
    free((void *)(uintptr_t)p->args.norm_weight);
    free(p->x);
    free(p->norm_weight);
    for (uint32_t i = 0; i < p->args.part_count; i++) {
        free((void *)(uintptr_t)p->args.parts[i].weight);
        free((void *)(uintptr_t)p->args.parts[i].bias);
        free(p->args.parts[i].out);
        free(p->weight[i]);
        free(p->bias[i]);
        free(p->before[i]);
    }
}

static void launch(const struct cuda_gemv_args *args)
{
    struct cuda_launch shape;
    struct emu_fault fault;
    assert_true(cuda_gemv_takes(args));
    cuda_gemv_shape(args, &shape);
    if (!emu_launch(cuda_gemv_kernel(args), &shape, args, sizeof *args, &fault)) { fail_msg("%s", fault.text); }
}

/* ---- the oracle: kernels/ref on the same values, f32 ---------------------------------------- */

/* What part `i` should be, and the sum of |x w| beside it. ret_out comes in as what out holds before. */
static void product_by_ref(struct kernels *ref, const struct problem *p, const float *x, uint32_t i, float *ret_out, float *ret_size)
{
    const struct cuda_gemv_part *part = &p->args.parts[i];
    uint32_t n_in = p->args.n_in, rows = p->args.rows;
    struct kernels_matrix matrix = {.format = KERNELS_WEIGHT_F32, .n_out = part->n_out, .n_in = n_in};
    float *sizes = malloc((size_t)part->n_out * n_in * sizeof *sizes), *x_size = malloc((size_t)rows * n_in * sizeof *x_size);
    for (size_t j = 0; j < (size_t)part->n_out * n_in; j++) { sizes[j] = fabsf(p->weight[i][j]); }
    for (size_t j = 0; j < (size_t)rows * n_in; j++) { x_size[j] = fabsf(x[j]); }
    for (int size = 0; size < 2; size++) {
        void *data = aligned_alloc(64, (kernels_matrix_bytes(&matrix) + 63) / 64 * 64);
        kernels_matrix_pack(&matrix, size ? sizes : p->weight[i], n_in, DTYPE_F32, 0, kernels_matrix_panels(&matrix), data);
        matrix.data = data;
        struct kernels_gemm gemm = {.rows = rows, .weight = &matrix, .x = size ? x_size : x, .x_stride = n_in,
                                    .out = size ? ret_size : ret_out, .out_stride = part->out_stride,
                                    .bias = size ? NULL : p->bias[i], .bias_dtype = DTYPE_F32,
                                    .accumulate = !size && p->args.accumulate};
        kernels_gemm(ref, &gemm, 1);
        free(data);
    }
    free(sizes);
    free(x_size);
}

/* Runs the launch and holds it against the oracle: exactly, or within the error of sums. */
static void check_problem(struct kernels *ref, struct problem *p, bool is_exact, const char *what)
{
    const struct cuda_gemv_args *a = &p->args;
    launch(a);
    size_t x_count = (size_t)a->rows * a->n_in;
    float *x = malloc(x_count * sizeof *x + 1);
    memcpy(x, p->x, x_count * sizeof *x);
    if (p->norm_weight != NULL) {
        struct kernels_rmsnorm norm = {.rows = a->rows, .heads = 1, .dim = a->n_in, .x = x, .x_stride = a->n_in,
                                       .weight = p->norm_weight, .weight_dtype = DTYPE_F32, .eps = a->eps, .out = x,
                                       .out_stride = a->n_in};
        kernels_rmsnorm(ref, &norm);
    }
    float *want[CUDA_GEMV_PARTS], *size[CUDA_GEMV_PARTS];
    for (uint32_t i = 0; i < a->part_count; i++) {
        size_t count = (size_t)a->rows * a->parts[i].out_stride;
        want[i] = calloc(count + 1, sizeof **want);
        size[i] = calloc(count + 1, sizeof **size);
        if (p->before[i] != NULL) { memcpy(want[i], p->before[i], count * sizeof **want); }
        product_by_ref(ref, p, x, i, want[i], size[i]);
    }
    /* Two f32 sums of n_in products, in whatever order, each err by n_in roundings of the sum of |x w|; the norm's x is
     * rounded to the dtype, to half a unit. */
    double x_error = p->norm_weight == NULL ? 0 : a->dtype == DTYPE_BF16 ? EPS_BF16 : a->dtype == DTYPE_F16 ? 1.0 / 2048 : 8 * EPS;
    double sum_error = 2 * (a->n_in + 4) * EPS + x_error;
    double out_error = a->out_dtype == DTYPE_BF16 ? EPS_BF16 : a->out_dtype == DTYPE_F16 ? 1.0 / 2048 : 2 * EPS;
    for (uint32_t i = 0; i < (a->silu_mul ? 1 : a->part_count); i++) {
        const struct cuda_gemv_part *part = &a->parts[i];
        for (uint32_t row = 0; row < a->rows; row++) {
            for (uint32_t out = 0; out < part->out_stride; out++) {
                size_t at = row * part->out_stride + out;
                if (out >= part->n_out) {
                    const unsigned char *bytes = (const unsigned char *)part->out + at * dtype_bytes(a->out_dtype);
                    for (uint32_t b = 0; p->before[i] == NULL && b < dtype_bytes(a->out_dtype); b++) { assert_int_equal(bytes[b], POISON); }
                    if (p->before[i] != NULL) { assert_true(((const float *)part->out)[at] == p->before[i][at]); }
                    continue;
                }
                float got = (float)element_at(part->out, a->out_dtype, at);
                double value = want[i][at], bound = sum_error * (double)size[i][at];
                if (a->silu_mul) {
                    size_t up_at = row * a->parts[1].out_stride + out;
                    double up = want[1][up_at], up_bound = sum_error * (double)size[1][up_at], gate_bound = bound;
                    double silu = value / (1 + exp(-value));
                    /* silu's slope is below 1.1 everywhere. */
                    bound = 1.1 * gate_bound * (fabs(up) + up_bound) + fabs(silu) * up_bound + 8 * EPS * fabs(silu * up);
                    value = silu * up;
                    bound = is_exact ? 8 * EPS * fabs(value) + 1e-37 : bound;
                } else if (is_exact) {
                    if (got != rounded((float)value, a->out_dtype)) { fail_msg("%s part %u row %u out %u: %g, not %g", what, i, row, out, (double)got, value); }
                    continue;
                }
                if (a->out_dtype == DTYPE_F16 && fabs(value) > 65519.0 * (1 + 8 * EPS)) {
                    assert_true(isinf(got)); /* past the range of f16, as everywhere */
                    continue;
                }
                assert_near(what, at, got, value, bound + out_error * fabs(value) + 1e-7);
            }
        }
    }
    for (uint32_t i = 0; i < a->part_count; i++) {
        free(want[i]);
        free(size[i]);
    }
    free(x);
}

static enum dtype random_out_dtype(struct random_state *random, enum dtype dtype)
{
    return random_range(random, 0, 1) ? DTYPE_F32 : dtype;
}

static void check_random(const char *name, bool integers, uint32_t rounds)
{
    static const uint32_t depths[] = {1, 7, 8, 31, 33, 64, 100, 127, 128, 129, 512, 1023, 1024, 1025, 2200};
    struct random_state random = random_start(name);
    struct kernels *ref = kernels_for("ref", 1);
    for (uint32_t round = 0; round < rounds; round++) {
        struct wish wish = {.rows = random_range(&random, 0, CUDA_GEMV_ROWS_MAX), .n_in = depths[random_range(&random, 0, 14)],
                            .dtype = round % 3, .integers = integers, .has_norm = random_range(&random, 0, 2) == 0,
                            .silu_mul = random_range(&random, 0, 2) == 0, .has_bias = random_range(&random, 0, 1) == 0};
        if (wish.has_norm && wish.n_in > 1200 && wish.rows > 4) { wish.rows = 4; } /* what fits shared memory in f32 */
        wish.part_count = wish.silu_mul ? 2 : random_range(&random, 1, CUDA_GEMV_PARTS);
        for (uint32_t i = 0; i < CUDA_GEMV_PARTS; i++) { wish.n_out[i] = random_range(&random, 1, 30); }
        if (wish.silu_mul) { wish.n_out[1] = wish.n_out[0]; }
        wish.accumulate = !wish.silu_mul && random_range(&random, 0, 1) == 0;
        wish.out_dtype = wish.accumulate ? DTYPE_F32 : random_out_dtype(&random, wish.dtype);
        char what[160];
        snprintf(what, sizeof what, "round %u: dtype %d rows %u n_in %u parts %u norm %d silu %d", round, wish.dtype, wish.rows,
                 wish.n_in, wish.part_count, wish.has_norm, wish.silu_mul);
        struct problem p = problem_of(&random, &wish);
        check_problem(ref, &p, integers, what);
        free_problem(&p);
    }
    kernels_destroy(ref);
}

/* Every element of every part, whatever the shape, is the sum of all its products and nothing else. */
static void integers_come_out_exactly(void **unused)
{
    (void)unused;
    check_random("integers_come_out_exactly", true, 600);
}

static void values_come_out_within_the_error_of_a_sum(void **unused)
{
    (void)unused;
    check_random("values_come_out_within_the_error_of_a_sum", false, 300);
}

/* A row has the same bits alone and among seven others, in one launch with other parts and without. */
static void a_row_is_the_same_alone(void **unused)
{
    (void)unused;
    struct random_state random = random_start("a_row_is_the_same_alone");
    for (uint32_t round = 0; round < 36; round++) {
        struct wish wish = {.rows = CUDA_GEMV_ROWS_MAX, .n_in = random_range(&random, 1, 1500), .part_count = 2, .n_out = {13, 13},
                            .dtype = round % 3, .out_dtype = DTYPE_F32, .has_norm = round / 3 % 2, .silu_mul = round / 6 % 2};
        struct problem p = problem_of(&random, &wish);
        launch(&p.args);
        for (uint32_t row = 0; row < CUDA_GEMV_ROWS_MAX; row++) {
            struct cuda_gemv_args alone = p.args;
            float out[2][13];
            alone.rows = 1;
            alone.x = (const unsigned char *)p.args.x + row * p.args.x_stride * (wish.has_norm ? 4 : dtype_bytes(wish.dtype));
            alone.parts[0].out = out[0];
            alone.parts[1].out = out[1];
            if (!wish.silu_mul) {
                alone.part_count = 1;
                launch(&alone);
                alone.parts[0] = alone.parts[1];
            }
            launch(&alone);
            for (uint32_t i = 0; i < (wish.silu_mul ? 1u : 2u); i++) {
                const struct cuda_gemv_part *part = &p.args.parts[i];
                assert_same_bits("alone", out[i], (const float *)part->out + row * part->out_stride, part->n_out);
            }
        }
        free_problem(&p);
    }
}

/* What the kernel cannot do it refuses, so that a caller takes another way. */
static void what_it_cannot_do_is_refused(void **unused)
{
    (void)unused;
    _Alignas(16) static unsigned char memory[64];
    struct cuda_gemv_args good = {.rows = 8, .n_in = 4096, .part_count = 2, .dtype = DTYPE_BF16, .out_dtype = DTYPE_F32,
                                  .x = memory, .x_stride = 4096};
    for (uint32_t i = 0; i < 2; i++) { good.parts[i] = (struct cuda_gemv_part){.weight = memory, .stride = 4096, .n_out = 24, .out = memory}; }
    assert_true(cuda_gemv_takes(&good));
    struct cuda_launch shape;
    cuda_gemv_shape(&good, &shape);
    assert_int_equal(shape.grid[0], 6);
    struct cuda_gemv_args bad = good;
    bad.rows = 9;
    assert_false(cuda_gemv_takes(&bad));
    bad = good;
    bad.x = memory + 8;
    assert_false(cuda_gemv_takes(&bad));
    bad = good;
    bad.x_stride = 4100;
    assert_false(cuda_gemv_takes(&bad));
    bad = good;
    bad.parts[1].weight = memory + 2;
    assert_false(cuda_gemv_takes(&bad));
    bad = good;
    bad.parts[1].stride = 4088;
    assert_false(cuda_gemv_takes(&bad));
    bad = good;
    bad.dtype = DTYPE_INT8;
    assert_false(cuda_gemv_takes(&bad));
    bad = good;
    bad.silu_mul = 1;
    assert_true(cuda_gemv_takes(&bad));
    cuda_gemv_shape(&bad, &shape);
    assert_int_equal(shape.grid[0], 3);
    bad.accumulate = 1;
    assert_false(cuda_gemv_takes(&bad));
    bad.accumulate = 0;
    bad.parts[1].n_out = 25;
    assert_false(cuda_gemv_takes(&bad));
    bad = good;
    bad.accumulate = 1;
    bad.out_dtype = DTYPE_BF16;
    assert_false(cuda_gemv_takes(&bad));
    /* Eight normed rows of 4096 do not fit beside each other; four do. */
    bad = good;
    bad.norm_weight = memory;
    assert_false(cuda_gemv_takes(&bad));
    bad.rows = 4;
    assert_true(cuda_gemv_takes(&bad));
    bad.rows = 0;
    cuda_gemv_shape(&bad, &shape);
    assert_int_equal(shape.grid[0], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_it_cannot_do_is_refused),
        cmocka_unit_test(integers_come_out_exactly),
        cmocka_unit_test(values_come_out_within_the_error_of_a_sum),
        cmocka_unit_test(a_row_is_the_same_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
