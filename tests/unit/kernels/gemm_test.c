/* The matrix product: near the oracle, in bounds, and the same bits however it is cut. */
#include "tests/unit/kernels/kernels_testing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct problem {
    uint32_t rows, n_out, n_in;
    enum dtype bias_dtype;
    bool bias, accumulate;
    size_t x_stride, out_stride;
    float *x;
    void *weight;                 /* row-major, of the matrix's format */
    struct kernels_matrix matrix; /* the same packed */
    void *bias_data;
    float *before; /* out as it is before the product */
    size_t out_count;
};

static struct problem problem_make(struct random_state *random, uint32_t rows, uint32_t n_out, uint32_t n_in)
{
    struct problem p = {.rows = rows, .n_out = n_out, .n_in = n_in};
    const enum dtype dtype = (enum dtype)random_range(random, 0, DTYPE_F16);
    p.bias_dtype = (enum dtype)random_range(random, 0, DTYPE_F16);
    p.bias = random_range(random, 0, 1);
    p.accumulate = random_range(random, 0, 1);
    p.x_stride = n_in + random_range(random, 0, 3);
    p.out_stride = n_out + random_range(random, 0, 3);
    size_t x_count = (rows - 1) * p.x_stride + n_in;
    p.x = poisoned(x_count * sizeof(float));
    random_fill(random, p.x, DTYPE_F32, x_count, 1);
    size_t weight_count = (size_t)n_out * n_in;
    p.weight = poisoned(weight_count * dtype_bytes(dtype));
    random_fill(random, p.weight, dtype, weight_count, 0.1f);
    p.matrix = (struct kernels_matrix){.format = (enum kernels_weight)dtype, .n_out = n_out, .n_in = n_in};
    void *packed = aligned_alloc(64, kernels_matrix_bytes(&p.matrix)); /* exactly: the sanitizer sees its end */
    assert_non_null(packed);
    kernels_matrix_pack(&p.matrix, p.weight, n_in, dtype, 0, kernels_matrix_panels(&p.matrix), packed);
    p.matrix.data = packed;
    p.bias_data = poisoned(n_out * dtype_bytes(p.bias_dtype));
    random_fill(random, p.bias_data, p.bias_dtype, n_out, 1);
    p.out_count = (rows - 1) * p.out_stride + n_out;
    p.before = poisoned(p.out_count * sizeof(float));
    random_fill(random, p.before, DTYPE_F32, p.out_count, 1);
    return p;
}

static void problem_free(struct problem *p)
{
    free(p->x);
    free(p->weight);
    free((void *)(uintptr_t)p->matrix.data);
    free(p->bias_data);
    free(p->before);
}

static struct kernels_gemm problem_gemm(const struct problem *p, float *out)
{
    return (struct kernels_gemm){.rows = p->rows, .weight = &p->matrix, .x = p->x, .x_stride = p->x_stride,
                                 .bias = p->bias ? p->bias_data : NULL, .bias_dtype = p->bias_dtype, .out = out,
                                 .out_stride = p->out_stride, .accumulate = p->accumulate};
}

/* Returns owned: out after the product, the gaps between its rows included. */
static float *problem_run(const struct problem *p, struct kernels *kernels)
{
    float *out = poisoned(p->out_count * sizeof(float));
    memcpy(out, p->before, p->out_count * sizeof(float));
    struct kernels_gemm g = problem_gemm(p, out);
    kernels_gemm(kernels, &g, 1);
    return out;
}

/* Bound. A sum of n products in one chain errs by at most n * eps * sum |x w| to first order (Higham,
 * Accuracy and Stability, 3.1; a product that is rounded before it is added adds one eps); bias and
 * old value add a rounding each of the result so far. With bf16 dot products each x is off by
 * EPS_BF16 first. */
static void check_near_oracle(const struct problem *p, struct kernels *kernels, const float *out)
{
    const enum dtype dtype = (enum dtype)p->matrix.format;
    bool rounds_x = isa_rounds_x(kernels_isa_name(kernels)) && dtype == DTYPE_BF16;
    double relative = (p->n_in + 2) * EPS + (rounds_x ? EPS_BF16 : 0);
    for (uint32_t m = 0; m < p->rows; m++) {
        for (uint32_t n = 0; n < p->n_out; n++) {
            double sum = 0, size = 0;
            for (uint32_t k = 0; k < p->n_in; k++) {
                double product = (double)p->x[m * p->x_stride + k] * element_at(p->weight, dtype, n * p->n_in + k);
                sum += product;
                size += fabs(product);
            }
            double bound = relative * size;
            if (p->bias) {
                sum += element_at(p->bias_data, p->bias_dtype, n);
                bound += 2 * EPS * (fabs(sum) + size);
            }
            if (p->accumulate) {
                sum += (double)p->before[m * p->out_stride + n];
                bound += 2 * EPS * (fabs(sum) + size);
            }
            assert_near(kernels_isa_name(kernels), m * p->out_stride + n, out[m * p->out_stride + n], sum, bound + 1e-37);
        }
        size_t gap = m * p->out_stride + p->n_out;
        for (; gap < (m + 1) * p->out_stride && gap < p->out_count; gap++) { /* between rows nothing is touched */
            assert_memory_equal(&out[gap], &p->before[gap], sizeof(float));
        }
    }
}

static void check_problem(struct random_state *random, const struct isa_list *isas, struct kernels *(*made)[3],
                          uint32_t rows, uint32_t n_out, uint32_t n_in)
{
    struct problem p = problem_make(random, rows, n_out, n_in);
    float *fused = NULL; /* of the first set that fuses */
    for (uint32_t i = 0; i < isas->count; i++) {
        float *out = problem_run(&p, made[i][0]);
        check_near_oracle(&p, made[i][0], out);
        for (uint32_t t = 1; t < 3; t++) { /* 2 and 3 threads */
            float *other = problem_run(&p, made[i][t]);
            assert_same_bits("threads", other, out, p.out_count);
            free(other);
        }
        for (uint32_t m = 0; m < rows; m++) { /* each row alone */
            struct problem alone = p;
            alone.rows = 1;
            alone.x += m * p.x_stride;
            alone.before += m * p.out_stride;
            alone.out_count = n_out;
            float *row = problem_run(&alone, made[i][m % 3]);
            assert_same_bits("row alone", row, out + m * p.out_stride, n_out);
            free(row);
        }
        if (isa_shares_order(isas->names[i])) {
            if (fused != NULL) { assert_same_bits("avx2 and avx512", out, fused, p.out_count); }
            free(fused);
            fused = out;
        } else {
            free(out);
        }
    }
    free(fused);
    problem_free(&p);
}

static void make_all(const struct isa_list *isas, struct kernels *(*made)[3])
{
    for (uint32_t i = 0; i < isas->count; i++) {
        for (uint32_t t = 0; t < 3; t++) { made[i][t] = kernels_for(isas->names[i], t + 1); }
    }
}

static void destroy_all(const struct isa_list *isas, struct kernels *(*made)[3])
{
    for (uint32_t i = 0; i < isas->count; i++) {
        for (uint32_t t = 0; t < 3; t++) { kernels_destroy(made[i][t]); }
    }
}

/* Every set is near the oracle on odd shapes, writes its elements and no others, and gives the same
 * bits for a row alone and in a batch, for 1, 2 and 3 threads, and on avx2 and avx512. */
static void odd_shapes(void **state)
{
    (void)state;
    static const uint32_t shapes[][3] = {
        {1, 1, 1}, {1, 8, 31}, {2, 7, 32}, {3, 9, 33}, {4, 64, 172}, {5, 65, 172}, {6, 130, 64}, {7, 3, 1024},
        {8, 5, 1025}, {13, 66, 1056}, {48, 17, 2080}, {49, 12, 40}, {70, 70, 100}, {2, 512, 896}, {97, 5, 8},
        {12, 4, 3100}, {50, 8, 2048}, {300, 33, 600}, {12, 200, 70}, {8, 129, 513}, {255, 270, 64},
    };
    struct random_state random = random_start("gemm odd_shapes");
    struct isa_list isas = isa_list_all();
    struct kernels *made[ISA_MAX][3];
    make_all(&isas, made);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        check_problem(&random, &isas, made, shapes[i][0], shapes[i][1], shapes[i][2]);
    }
    for (int i = 0; i < 60; i++) {
        uint32_t rows = random_range(&random, 1, 70), n_out = random_range(&random, 1, 90), n_in = random_range(&random, 1, 200);
        check_problem(&random, &isas, made, rows, n_out, n_in);
    }
    destroy_all(&isas, made);
}

/* The deepest product that is allowed has room in the pack, at any number of rows. */
static void deepest(void **state)
{
    (void)state;
    struct random_state random = random_start("gemm deepest");
    struct isa_list isas = isa_list_all();
    struct kernels *made[ISA_MAX][3];
    make_all(&isas, made);
    check_problem(&random, &isas, made, 7, 2, KERNELS_GEMM_IN_MAX);
    check_problem(&random, &isas, made, 13, 1, KERNELS_GEMM_IN_MAX / 2 - 1);
    destroy_all(&isas, made);
}

/* Several products in one call are the products one by one, whether they share x or not. */
static void several_are_each(void **state)
{
    (void)state;
    struct random_state random = random_start("gemm several");
    struct isa_list isas = isa_list_all();
    for (uint32_t i = 0; i < isas.count; i++) {
        struct kernels *kernels = kernels_for(isas.names[i], 3);
        for (uint32_t rows = 1; rows <= 60; rows += 19) {
            enum { COUNT = 11 }; /* more than one job holds */
            struct problem p[COUNT];
            struct kernels_gemm g[COUNT];
            float *out[COUNT];
            for (int j = 0; j < COUNT; j++) {
                p[j] = problem_make(&random, rows, random_range(&random, 1, 80), 96);
                out[j] = poisoned(p[j].out_count * sizeof(float));
                memcpy(out[j], p[j].before, p[j].out_count * sizeof(float));
                g[j] = problem_gemm(&p[j], out[j]);
                if (j % 3 != 0) { /* as q, k, v: the same rows, perhaps another dtype of weight */
                    g[j].x = g[j - 1].x;
                    g[j].x_stride = g[j - 1].x_stride;
                }
            }
            kernels_gemm(kernels, g, COUNT);
            for (int j = 0; j < COUNT; j++) {
                float *alone = poisoned(p[j].out_count * sizeof(float));
                memcpy(alone, p[j].before, p[j].out_count * sizeof(float));
                struct kernels_gemm one = g[j];
                one.out = alone;
                kernels_gemm(kernels, &one, 1);
                assert_same_bits("one of several", out[j], alone, p[j].out_count);
                free(alone);
                free(out[j]);
            }
            for (int j = 0; j < COUNT; j++) { problem_free(&p[j]); }
        }
        kernels_destroy(kernels);
    }
}

/* x changed in place between two calls is read anew: nothing packed outlives a call. */
static void pack_does_not_outlive_a_call(void **state)
{
    (void)state;
    struct random_state random = random_start("gemm pack");
    struct isa_list isas = isa_list_all();
    for (uint32_t i = 0; i < isas.count; i++) {
        struct kernels *kernels = kernels_for(isas.names[i], 2);
        struct problem p = problem_make(&random, 9, 33, 50);
        free(problem_run(&p, kernels));
        random_fill(&random, p.x, DTYPE_F32, 8 * p.x_stride + 50, 1);
        float *out = problem_run(&p, kernels);
        check_near_oracle(&p, kernels, out);
        free(out);
        problem_free(&p);
        kernels_destroy(kernels);
    }
}

/* The oracle itself agrees with a product worked out by hand. */
static void oracle_by_hand(void **state)
{
    (void)state;
    struct kernels *kernels = kernels_for("ref", 1);
    float x[2][3] = {{1, 2, 3}, {4, 5, 6}}, weight[2][3] = {{1, 0, -1}, {2, 2, 2}}, bias[2] = {10, 20};
    float out[2][2] = {{100, 200}, {300, 400}};
    float *packed = aligned_alloc(64, 3 * 64);
    struct kernels_matrix matrix = {.format = KERNELS_WEIGHT_F32, .n_out = 2, .n_in = 3, .data = packed};
    kernels_matrix_pack(&matrix, weight, 3, DTYPE_F32, 0, 1, packed);
    struct kernels_gemm g = {.rows = 2, .weight = &matrix, .x = x[0], .x_stride = 3, .bias = bias, .bias_dtype = DTYPE_F32, .out = out[0], .out_stride = 2,
                             .accumulate = true};
    kernels_gemm(kernels, &g, 1);
    assert_true(out[0][0] == 108 && out[0][1] == 232 && out[1][0] == 308 && out[1][1] == 450);
    free(packed);
    kernels_destroy(kernels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(oracle_by_hand),
        cmocka_unit_test(odd_shapes),
        cmocka_unit_test(deepest),
        cmocka_unit_test(several_are_each),
        cmocka_unit_test(pack_does_not_outlive_a_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
