/* The operations on rows: near the oracle, in bounds, and a row's bits its own. */
#include "tests/unit/kernels/kernels_testing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_MAX 70u
#define DIM_MAX 400u
#define STRIDE_MAX (DIM_MAX + 4u)

enum operation { RMSNORM, LAYERNORM, ROPE, EMBED, SILU_MUL, GELU_ERF, GELU_TANH, MUL, GATHER, OPERATION_COUNT };
static const char *const names[] = {"rmsnorm", "layernorm", "rope", "embed", "silu_mul", "gelu_erf", "gelu_tanh", "mul", "gather"};

/* Inputs that serve every operation. */
struct input {
    uint32_t rows, heads, dim; /* a row is heads * dim */
    size_t stride;
    enum dtype dtype;
    bool bias;
    uint32_t rotary_dim;
    float *a, *b; /* [rows][stride] */
    void *weight, *bias_data; /* [dim] */
    void *table;              /* [50][dim] */
    struct kernels_matrix packed; /* the same */
    float cosines[20 * DIM_MAX], sines[20 * DIM_MAX];
    uint32_t ids[ROWS_MAX], positions[ROWS_MAX];
};

static struct input *input_make(struct random_state *random, uint32_t rows, uint32_t heads, uint32_t dim)
{
    struct input *in = calloc(1, sizeof(*in));
    assert_non_null(in);
    in->rows = rows;
    in->heads = heads;
    in->dim = dim;
    in->stride = (size_t)heads * dim + random_range(random, 0, 3);
    in->dtype = (enum dtype)random_range(random, 0, DTYPE_F16);
    in->bias = random_range(random, 0, 1);
    in->rotary_dim = dim / 2 * 2;
    if (in->rotary_dim > 4 && random_range(random, 0, 2) == 0) { in->rotary_dim -= 2; }
    size_t count = (rows - 1) * in->stride + (size_t)heads * dim;
    in->a = poisoned(count * sizeof(float));
    in->b = poisoned(count * sizeof(float));
    random_fill(random, in->a, DTYPE_F32, count, 3);
    random_fill(random, in->b, DTYPE_F32, count, 1);
    in->weight = poisoned(dim * dtype_bytes(in->dtype));
    in->bias_data = poisoned(dim * dtype_bytes(in->dtype));
    in->table = poisoned((size_t)50 * dim * dtype_bytes(in->dtype));
    random_fill(random, in->weight, in->dtype, dim, 1);
    random_fill(random, in->bias_data, in->dtype, dim, 1);
    random_fill(random, in->table, in->dtype, (size_t)50 * dim, 1);
    in->packed = (struct kernels_matrix){.format = (enum kernels_weight)in->dtype, .n_out = 50, .n_in = dim};
    void *packed = aligned_alloc(64, kernels_matrix_bytes(&in->packed));
    assert_non_null(packed);
    kernels_matrix_pack(&in->packed, in->table, dim, in->dtype, 0, kernels_matrix_panels(&in->packed), packed);
    in->packed.data = packed;
    for (size_t i = 0; i < 20 * DIM_MAX; i++) {
        in->cosines[i] = cosf((float)i);
        in->sines[i] = sinf((float)i);
    }
    for (uint32_t r = 0; r < rows; r++) {
        in->ids[r] = random_range(random, 0, 49);
        in->positions[r] = random_range(random, 0, 19);
    }
    return in;
}

static void input_free(struct input *in)
{
    free(in->a);
    free(in->b);
    free(in->weight);
    free(in->bias_data);
    free(in->table);
    free((void *)(uintptr_t)in->packed.data);
    free(in);
}

static uint32_t width_of(const struct input *in, enum operation op)
{
    return op == RMSNORM || op == ROPE ? in->heads * in->dim : in->dim;
}

/* Runs op on rows first .. first+rows-1 into out, whose row 0 is row `first`. */
static void run(struct kernels *k, const struct input *in, enum operation op, uint32_t first, uint32_t rows, float *out)
{
    const float *a = in->a + first * in->stride, *b = in->b + first * in->stride;
    size_t stride = in->stride;
    switch (op) {
    case RMSNORM: {
        struct kernels_rmsnorm args = {.rows = rows, .heads = in->heads, .dim = in->dim, .x = a, .x_stride = stride,
                                       .weight = in->weight, .weight_dtype = in->dtype, .eps = 1e-5f, .out = out, .out_stride = stride};
        kernels_rmsnorm(k, &args);
        break;
    }
    case LAYERNORM: {
        struct kernels_layernorm args = {.rows = rows, .dim = in->dim, .x = a, .x_stride = stride, .weight = in->weight,
                                         .bias = in->bias ? in->bias_data : NULL, .dtype = in->dtype, .eps = 1e-5f, .out = out,
                                         .out_stride = stride};
        kernels_layernorm(k, &args);
        break;
    }
    case ROPE: {
        for (uint32_t r = 0; r < rows; r++) { memcpy(out + r * stride, a + r * stride, (size_t)in->heads * in->dim * sizeof(float)); }
        struct kernels_rope args = {.rows = rows, .heads = in->heads, .head_dim = in->dim, .rotary_dim = in->rotary_dim, .x = out,
                                    .x_stride = stride, .cos = in->cosines, .sin = in->sines, .positions = in->positions + first,
                                    .position_count = 20};
        kernels_rope(k, &args);
        break;
    }
    case EMBED: {
        struct kernels_embed args = {.rows = rows, .table = &in->packed, .ids = in->ids + first, .position_table = in->bias ? in->table : NULL, .position_count = 20,
                                     .position_dtype = in->dtype, .positions = in->positions + first, .out = out, .out_stride = stride};
        kernels_embed(k, &args);
        break;
    }
    case SILU_MUL:
        kernels_silu_mul(k, &(struct kernels_silu_mul){.rows = rows, .dim = in->dim, .gate = a, .gate_stride = stride, .up = b,
                                                       .up_stride = stride, .out = out, .out_stride = stride});
        break;
    case GELU_ERF:
    case GELU_TANH:
        kernels_gelu(k, &(struct kernels_gelu){.form = op == GELU_ERF ? KERNELS_GELU_ERF : KERNELS_GELU_TANH, .rows = rows,
                                               .dim = in->dim, .x = a, .x_stride = stride, .out = out, .out_stride = stride});
        break;
    case MUL:
        kernels_mul(k, &(struct kernels_mul){.rows = rows, .dim = in->dim, .a = a, .a_stride = stride, .b = b, .b_stride = stride,
                                             .out = out, .out_stride = stride});
        break;
    default: {
        uint32_t from[ROWS_MAX]; /* each row comes from its mirror image among all */
        for (uint32_t r = 0; r < rows; r++) { from[r] = in->rows - 1 - (first + r); }
        kernels_gather_rows(k, &(struct kernels_gather_rows){.rows = rows, .dim = in->dim, .x = in->a, .x_rows = in->rows,
                                                             .x_stride = stride, .from = from, .out = out, .out_stride = stride});
        break;
    }
    }
}

/* How far element d of a row may be from the oracle's value, to first order in eps.
 * norms     a sum of dim squares in 16 chains: (dim/16 + 7) eps of the sum, half of that in its
 *           root; division, root and two products one each; LayerNorm's mean errs by the same
 *           count of eps times the mean of |x|, which the factor 1/sqrt(var) then scales
 * rope      two rounded products and a rounded sum of |x|, |y| <= both
 * embed     a rounded sum; the table's values are exact
 * silu      exp within 2 eps, its argument exact; sum, division, product: 1 + 1 + 1, doubled to be
 *           first-order safe; exp overflows below -88.7, where silu is -2e-37 at most
 * gelu      tanh form: u errs by 4 eps |u|, and exp(-2u) by 8 |u| eps relatively, which moves the
 *           result by at most 8 |u| e/(1+e) eps of it; erf form: 5e-8 of the fit, and in exp's
 *           argument (z^2 + |P|) eps, in units of |x| erfc(z)/2, which z^2 < 0.4 / erfc(z) bounds */
static double bound_of(const struct input *in, enum operation op, uint32_t row, uint32_t d, double want)
{
    const float *a = in->a + row * in->stride, *b = in->b + row * in->stride;
    double x = (double)a[d];
    switch (op) {
    case RMSNORM: return (in->dim / 16 + 12) * EPS * fabs(want) + 1e-37;
    case LAYERNORM: {
        double mean = 0, size = 0, var = 0;
        for (uint32_t i = 0; i < in->dim; i++) {
            mean += (double)a[i] / in->dim;
            size += fabs((double)a[i]) / in->dim;
        }
        for (uint32_t i = 0; i < in->dim; i++) { var += ((double)a[i] - mean) * ((double)a[i] - mean) / in->dim; }
        double factor = 1 / sqrt(var + 1e-5);
        double shift = ((in->dim / 16 + 8) * size + fabs(x)) * EPS; /* of the mean, and of x - mean */
        double relative = (in->dim / 16 + 12) * EPS + 2 * shift * factor;
        double weight = fabs(element_at(in->weight, in->dtype, d));
        double bias = in->bias ? fabs(element_at(in->bias_data, in->dtype, d)) : 0;
        return weight * factor * (shift + (fabs(x - mean) + shift) * relative) * 1.01 + EPS * (fabs(want) + bias) + 1e-37;
    }
    case ROPE: {
        uint32_t half = in->rotary_dim / 2, i = d % in->dim;
        if (i >= in->rotary_dim) { return 0; }
        double other = (double)a[i < half ? d + half : d - half];
        return 4 * EPS * (fabs(x) + fabs(other));
    }
    case EMBED: return EPS * fabs(want);
    case SILU_MUL: return 10 * EPS * fabs(want) + 1e-36 * fabs((double)b[d]);
    case GELU_ERF: return fabs(x) * (5e-8 + 10 * EPS) + 1e-36;
    case GELU_TANH: {
        double u = fabs(0.79788456 * (x + 0.044715 * x * x * x));
        return (10 + (x < 0 ? 10 * u : 8)) * EPS * fabs(want) + 1e-36;
    }
    default: return 0; /* one rounded product, as the oracle's; a copy */
    }
}

static void check(const struct input *in, enum operation op, const struct isa_list *isas)
{
    size_t count = (in->rows - 1) * in->stride + width_of(in, op);
    struct kernels *ref = kernels_for("ref", 1);
    float *want = poisoned(count * sizeof(float)), *fused = NULL;
    run(ref, in, op, 0, in->rows, want);
    for (uint32_t i = 0; i < isas->count; i++) {
        struct kernels *k = kernels_for(isas->names[i], 1);
        float *out = poisoned(count * sizeof(float));
        run(k, in, op, 0, in->rows, out);
        for (size_t at = 0; at < count; at++) {
            uint32_t row = (uint32_t)(at / in->stride), d = (uint32_t)(at % in->stride);
            if (d < width_of(in, op)) {
                assert_near(names[op], at, out[at], (double)want[at], bound_of(in, op, row, d, (double)want[at]));
            } else {
                assert_memory_equal(&out[at], "\xA5\xA5\xA5\xA5", 4); /* between rows nothing is touched */
            }
        }
        for (uint32_t row = 0; row < in->rows; row++) {
            float *alone = poisoned(width_of(in, op) * sizeof(float));
            run(k, in, op, row, 1, alone);
            assert_same_bits(names[op], alone, out + row * in->stride, width_of(in, op));
            free(alone);
        }
        for (uint32_t threads = 2; threads <= 3; threads++) {
            struct kernels *many = kernels_for(isas->names[i], threads);
            float *other = poisoned(count * sizeof(float));
            run(many, in, op, 0, in->rows, other);
            assert_same_bits(names[op], other, out, count);
            free(other);
            kernels_destroy(many);
        }
        if (isa_shares_order(kernels_isa_name(k))) {
            if (fused != NULL) { assert_same_bits("avx2 and avx512", out, fused, count); }
            free(fused);
            fused = out;
        } else {
            free(out);
        }
        kernels_destroy(k);
    }
    free(fused);
    free(want);
    kernels_destroy(ref);
}

static void every_operation(void **state)
{
    (void)state;
    struct random_state random = random_start("rows every_operation");
    struct isa_list isas = isa_list_all();
    for (int op = 0; op < OPERATION_COUNT; op++) {
        for (int turn = 0; turn < 12; turn++) {
            uint32_t rows = turn == 0 ? ROWS_MAX : random_range(&random, 1, 9);
            uint32_t heads = random_range(&random, 1, 4), dim = turn == 1 ? DIM_MAX : random_range(&random, 1, 100);
            struct input *in = input_make(&random, rows, heads, dim);
            check(in, (enum operation)op, &isas);
            input_free(in);
        }
    }
}

/* Outputs that the header lets lie on an input give the same bits there. */
static void in_place(void **state)
{
    (void)state;
    static const enum operation ops[] = {RMSNORM, LAYERNORM, SILU_MUL, GELU_ERF, GELU_TANH, MUL};
    struct random_state random = random_start("rows in_place");
    struct isa_list isas = isa_list_all();
    for (uint32_t i = 0; i < isas.count; i++) {
        struct kernels *k = kernels_for(isas.names[i], 2);
        for (size_t o = 0; o < sizeof(ops) / sizeof(ops[0]); o++) {
            struct input *in = input_make(&random, 5, 1, 77);
            float *out = poisoned((4 * in->stride + 77) * sizeof(float));
            run(k, in, ops[o], 0, 5, out);
            run(k, in, ops[o], 0, 5, in->a);
            for (uint32_t r = 0; r < 5; r++) { assert_same_bits(names[ops[o]], in->a + r * in->stride, out + r * in->stride, 77); }
            free(out);
            input_free(in);
        }
        kernels_destroy(k);
    }
}

/* The exponential under silu, over all of its range: silu(-x) = -x e^-x / (1 + e^-x). */
static void sweep_of_exp(void **state)
{
    (void)state;
    enum { COUNT = 60000 };
    struct isa_list isas = isa_list_all();
    float *x = poisoned(COUNT * sizeof(float)), *ones = poisoned(COUNT * sizeof(float)), *out = poisoned(COUNT * sizeof(float));
    for (int i = 0; i < COUNT; i++) {
        x[i] = -105.0f + (float)i * (210.0f / COUNT);
        ones[i] = 1;
    }
    x[0] = -INFINITY;
    x[1] = INFINITY;
    x[2] = NAN;
    for (uint32_t s = 0; s < isas.count; s++) {
        struct kernels *k = kernels_for(isas.names[s], 1);
        kernels_silu_mul(k, &(struct kernels_silu_mul){.rows = 1, .dim = COUNT, .gate = x, .gate_stride = COUNT, .up = ones,
                                                       .up_stride = COUNT, .out = out, .out_stride = COUNT});
        assert_true(out[1] == INFINITY);
        assert_true(isnan(out[2]));
        for (int i = 3; i < COUNT; i++) {
            double want = (double)x[i] / (1 + exp(-(double)x[i]));
            assert_near(isas.names[s], (size_t)i, out[i], want, 10 * EPS * fabs(want) + 1e-36);
        }
        kernels_destroy(k);
    }
    free(x);
    free(ones);
    free(out);
}

/* A stride of 0 gives every row the same factors: silu without a gate is a product with one row of ones. */
static void one_row_of_factors(void **state)
{
    (void)state;
    struct random_state random = random_start("one_row_of_factors");
    struct isa_list isas = isa_list_all();
    for (uint32_t i = 0; i < isas.count; i++) {
        struct kernels *k = kernels_for(isas.names[i], 2);
        struct input *in = input_make(&random, 5, 1, 77);
        float *want = poisoned((4 * in->stride + 77) * sizeof(float)), *got = poisoned((4 * in->stride + 77) * sizeof(float));
        struct kernels_silu_mul args = {.rows = 5, .dim = 77, .gate = in->a, .gate_stride = in->stride, .up = in->b, .out = got,
                                        .out_stride = in->stride};
        kernels_silu_mul(k, &args);
        for (uint32_t r = 1; r < 5; r++) { memcpy(in->b + r * in->stride, in->b, 77 * sizeof(float)); }
        run(k, in, SILU_MUL, 0, 5, want);
        assert_same_bits("silu_mul", got, want, 4 * in->stride + 77);
        free(want);
        free(got);
        input_free(in);
        kernels_destroy(k);
    }
}

/* A norm inside rope is the norm and then the rotation; kernels_rope_kv is its parts in order, and rows without a
 * slot are not stored. */
static void rope_with_norm_and_kv(void **state)
{
    (void)state;
    enum { ROWS = 7, HEADS = 3, DIM = 26, TOKENS = 32 };
    struct random_state random = random_start("rope_with_norm_and_kv");
    struct isa_list isas = isa_list_all();
    struct kv_layout layout = {.block_tokens = 16, .layer_count = 1, .kv_heads = HEADS, .head_dim = DIM};
    for (uint32_t i = 0; i < isas.count; i++) {
        struct kernels *k = kernels_for(isas.names[i], 2);
        for (int with_norm = 0; with_norm < 2; with_norm++) {
            struct input *in = input_make(&random, ROWS, HEADS, DIM);
            const size_t count = (ROWS - 1) * in->stride + HEADS * DIM, bytes = count * sizeof(float);
            float *q = poisoned(bytes), *kk = poisoned(bytes), *q_want = poisoned(bytes), *k_want = poisoned(bytes);
            memcpy(q, in->a, bytes);
            memcpy(q_want, in->a, bytes);
            memcpy(kk, in->b, bytes);
            memcpy(k_want, in->b, bytes);
            unsigned char *pool = poisoned(2 * kv_layout_block_bytes(&layout)), *pool_want = poisoned(2 * kv_layout_block_bytes(&layout));
            struct kernels_kv_slot slots[ROWS];
            for (uint32_t r = 0; r < ROWS; r++) { slots[r] = (struct kernels_kv_slot){r % 3 == 1 ? KERNELS_SLOT_NONE : r % 2, r * 2}; }
            struct kernels_rope rope = {.rows = ROWS, .heads = HEADS, .head_dim = DIM, .rotary_dim = DIM, .x_stride = in->stride,
                                        .cos = in->cosines, .sin = in->sines, .positions = in->positions, .position_count = 20};
            float *both[2] = {q_want, k_want};
            for (int b = 0; b < 2; b++) {
                if (with_norm) {
                    kernels_rmsnorm(k, &(struct kernels_rmsnorm){.rows = ROWS, .heads = HEADS, .dim = DIM, .x = both[b], .x_stride = in->stride,
                                                                 .weight = in->weight, .weight_dtype = in->dtype, .eps = 1e-5f,
                                                                 .out = both[b], .out_stride = in->stride});
                }
                rope.x = both[b];
                kernels_rope(k, &rope);
            }
            struct kernels_kv_write write = {.kv = {.layout = layout, .block_count = 2, .pool = pool_want}, .k = k_want,
                                             .k_stride = in->stride, .v = in->a, .v_stride = in->stride};
            for (uint32_t r = 0; r < ROWS; r++) { /* row by row, those with a slot */
                if (slots[r].block == KERNELS_SLOT_NONE) { continue; }
                struct kernels_kv_write one = write;
                one.rows = 1;
                one.k = k_want + r * in->stride;
                one.v = in->a + r * in->stride;
                one.slots = &slots[r];
                kernels_kv_write(k, &one);
            }
            if (with_norm) {
                rope.norm = in->weight;
                rope.norm_dtype = in->dtype;
                rope.norm_eps = 1e-5f;
            }
            struct kernels_rope_kv args = {.k = rope, .write = write, .q = rope};
            args.k.x = kk;
            args.q.x = q;
            args.write.rows = ROWS;
            args.write.k = kk;
            args.write.slots = slots;
            args.write.kv.pool = pool;
            kernels_rope_kv(k, &args);
            assert_same_bits("q", q, q_want, count);
            assert_same_bits("k", kk, k_want, count);
            assert_memory_equal(pool, pool_want, 2 * kv_layout_block_bytes(&layout));
            free(q); free(kk); free(q_want); free(k_want); free(pool); free(pool_want);
            input_free(in);
        }
        kernels_destroy(k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sweep_of_exp),
        cmocka_unit_test(one_row_of_factors),
        cmocka_unit_test(rope_with_norm_and_kv),
        cmocka_unit_test(in_place),
        cmocka_unit_test(every_operation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
