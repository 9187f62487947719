/* Products of the emulated device: right, checked, and of algorithms that differ. */
#include <string.h>

#include "tests/unit/kernels_cuda/emulated_testing.h"

enum { N_OUT = 5, N_IN = 40, ROWS_MAX = 80 };

struct product {
    float *weight, *x, *bias, *out, *workspace; /* device */
    size_t workspace_bytes;
};

static void make_product(const struct bench *t, struct product *p)
{
    float values[N_IN * ROWS_MAX];
    p->workspace_bytes = 1 << 16;
    OK(t->d->mem_alloc(t->d, sizeof(float) * N_IN * 8, (void **)&p->weight, &diag));
    OK(t->d->mem_alloc(t->d, sizeof values, (void **)&p->x, &diag));
    OK(t->d->mem_alloc(t->d, 64, (void **)&p->bias, &diag));
    OK(t->d->mem_alloc(t->d, sizeof(float) * 8 * ROWS_MAX, (void **)&p->out, &diag));
    OK(t->d->mem_alloc(t->d, p->workspace_bytes, (void **)&p->workspace, &diag));
    for (uint32_t i = 0; i < N_IN * ROWS_MAX; i++) { values[i] = (float)(i % 97) * 0.1f - 4.0f + 1.0f / (float)(i % N_IN + 3); }
    emulated_device_poke(t->d, p->x, values, sizeof values);
    emulated_device_poke(t->d, p->weight, values + 7, sizeof(float) * N_IN * N_OUT);
    emulated_device_poke(t->d, p->bias, values, sizeof(float) * N_OUT);
}

static void free_product(const struct bench *t, struct product *p)
{
    t->d->mem_free(t->d, p->weight);
    t->d->mem_free(t->d, p->x);
    t->d->mem_free(t->d, p->bias);
    t->d->mem_free(t->d, p->out);
    t->d->mem_free(t->d, p->workspace);
}

static struct cuda_gemm_shape shape_of(uint32_t rows, bool deterministic)
{
    return (struct cuda_gemm_shape){.rows = rows, .n_out = N_OUT, .n_in = N_IN, .weight_stride = N_IN, .x_stride = N_IN, .out_stride = 8,
                                    .deterministic = deterministic};
}

/* Row 0 of the product by the first algorithm that is offered for so many rows. */
static void first_row(const struct bench *t, const struct product *p, uint32_t rows, const struct cuda_gemm_algorithm *fixed, float ret_row[N_OUT])
{
    struct cuda_gemm_shape shape = shape_of(rows, fixed != NULL);
    struct cuda_gemm *gemm;
    struct cuda_gemm_algorithm algorithms[8];
    uint32_t count;
    OK(t->d->gemm_create(t->d, &shape, &gemm, &diag));
    OK(t->d->gemm_algorithms(t->d, gemm, p->workspace_bytes, 8, algorithms, &count, &diag));
    for (uint32_t i = 0; i < count && fixed != NULL; i++) { assert_int_equal(algorithms[i].split_k, 1); }
    if (fixed != NULL) {
        algorithms[0] = *fixed;
        OK(t->d->gemm_adopt(t->d, gemm, &algorithms[0], &diag));
    }
    OK(t->d->gemm_run(t->d, gemm, &algorithms[0], p->weight, p->x, NULL, p->out, p->workspace, p->workspace_bytes, t->a, &diag));
    OK(t->d->stream_sync(t->d, t->a, &diag));
    assert_true(emulated_device_peek(t->d, p->out, ret_row, sizeof(float) * N_OUT));
    t->d->gemm_destroy(t->d, gemm);
}

/* Who takes what is offered has other bits at another number of rows; who fixes an algorithm has not. */
static void algorithms_differ(void **state)
{
    struct bench t;
    struct product p;
    float few[N_OUT], some[N_OUT], many[N_OUT];
    (void)state;
    open_bench(&t, 1);
    make_product(&t, &p);
    first_row(&t, &p, 1, NULL, few);
    first_row(&t, &p, 20, NULL, some);
    first_row(&t, &p, 80, NULL, many);
    assert_memory_not_equal(few, some, sizeof few);
    assert_memory_not_equal(few, many, sizeof few);
    assert_memory_not_equal(some, many, sizeof few);
    for (uint32_t i = 0; i < N_OUT; i++) { assert_true(few[i] - many[i] < 1e-3f && many[i] - few[i] < 1e-3f); }

    struct cuda_gemm_shape shape = shape_of(20, true);
    struct cuda_gemm *gemm;
    struct cuda_gemm_algorithm fixed;
    uint32_t count;
    OK(t.d->gemm_create(t.d, &shape, &gemm, &diag));
    OK(t.d->gemm_algorithms(t.d, gemm, 0, 1, &fixed, &count, &diag));
    first_row(&t, &p, 1, &fixed, few);
    first_row(&t, &p, 20, &fixed, some);
    first_row(&t, &p, 80, &fixed, many);
    assert_memory_equal(few, some, sizeof few);
    assert_memory_equal(few, many, sizeof few);
    t.d->gemm_destroy(t.d, gemm);
    free_product(&t, &p);
    close_bench(&t);
}

/* Sums, bias, accumulation and strides, against a loop written here; each dtype. */
static void products_are_right(void **state)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    struct bench t;
    (void)state;
    open_bench(&t, 1);
    for (int k = 0; k < 6; k++) {
        enum dtype dtype = dtypes[k % 3], out_dtype = k < 3 ? dtype : DTYPE_F32;
        /* x = [1 2 3; 4 5 6], weight = [1 0 2; 3 1 0], bias = [0.5, -1], out before = 8 everywhere; strides 4, 8, 8 */
        static const float xs[8] = {1, 2, 3, 0, 4, 5, 6, 0}, weights[16] = {1, 0, 2, 0, 0, 0, 0, 0, 3, 1, 0}, biases[2] = {0.5f, -1};
        static const float right[2][2] = {{15.5f, 12}, {24.5f, 24}};
        unsigned char bytes[128];
        uint32_t width = dtype_bytes(dtype), out_width = dtype_bytes(out_dtype);
        void *weight, *x, *bias, *out;
        OK(t.d->mem_alloc(t.d, 128, &weight, &diag));
        OK(t.d->mem_alloc(t.d, 128, &x, &diag));
        OK(t.d->mem_alloc(t.d, 128, &bias, &diag));
        OK(t.d->mem_alloc(t.d, 128, &out, &diag));
        const struct { void *to; const float *from; uint32_t count, width; enum dtype dtype; } operands[] = {
            {weight, weights, 16, width, dtype}, {x, xs, 8, width, dtype}, {bias, biases, 2, out_width, out_dtype}};
        for (int o = 0; o < 3; o++) {
            for (uint32_t i = 0; i < operands[o].count; i++) {
                uint16_t half = operands[o].dtype == DTYPE_BF16 ? f32_to_bf16(operands[o].from[i]) : f32_to_f16(operands[o].from[i]);
                memcpy(bytes + i * operands[o].width, operands[o].dtype == DTYPE_F32 ? (const void *)&operands[o].from[i] : (const void *)&half,
                       operands[o].width);
            }
            emulated_device_poke(t.d, operands[o].to, bytes, operands[o].count * operands[o].width);
        }
        for (uint32_t i = 0; i < 16; i++) {
            float eight = 8;
            uint16_t half = out_dtype == DTYPE_BF16 ? f32_to_bf16(eight) : f32_to_f16(eight);
            memcpy(bytes + i * out_width, out_dtype == DTYPE_F32 ? (const void *)&eight : (const void *)&half, out_width);
        }
        emulated_device_poke(t.d, out, bytes, 16 * out_width);
        struct cuda_gemm_shape shape = {.rows = 2, .n_out = 2, .n_in = 3, .dtype = dtype, .out_dtype = out_dtype, .weight_stride = 8,
                                        .x_stride = 4, .out_stride = 8, .has_bias = true, .accumulate = true};
        struct cuda_gemm *gemm;
        struct cuda_gemm_algorithm algorithm;
        uint32_t count;
        OK(t.d->gemm_create(t.d, &shape, &gemm, &diag));
        OK(t.d->gemm_algorithms(t.d, gemm, 0, 1, &algorithm, &count, &diag));
        OK(t.d->gemm_run(t.d, gemm, &algorithm, weight, x, bias, out, NULL, 0, t.a, &diag));
        OK(t.d->stream_sync(t.d, t.a, &diag));
        emulated_device_peek(t.d, out, bytes, 16 * out_width);
        for (uint32_t i = 0; i < 16; i++) {
            uint16_t half;
            float value;
            memcpy(&half, bytes + i * out_width, 2);
            memcpy(&value, bytes + i * out_width, out_width);
            if (out_dtype != DTYPE_F32) { value = out_dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half); }
            float wanted = i % 8 < 2 ? right[i / 8][i % 8] : 8;
            assert_true(value == wanted);
        }
        t.d->gemm_destroy(t.d, gemm);
        t.d->mem_free(t.d, weight);
        t.d->mem_free(t.d, x);
        t.d->mem_free(t.d, bias);
        t.d->mem_free(t.d, out);
    }
    close_bench(&t);
}

/* Plans, algorithms and operands that do not fit are refused. */
static void products_are_checked(void **state)
{
    struct bench t;
    struct product p;
    struct cuda_gemm *one, *many;
    struct cuda_gemm_algorithm algorithms[8];
    uint32_t count;
    (void)state;
    open_bench(&t, 1);
    make_product(&t, &p);
    struct cuda_gemm_shape shape = shape_of(1, false);
    shape.x_stride = N_IN - 1;
    REFUSED(ST_INVALID_ARGUMENT, "strides", t.d->gemm_create(t.d, &shape, &one, &diag));
    shape = shape_of(1, false);
    OK(t.d->gemm_create(t.d, &shape, &one, &diag));
    shape = shape_of(80, false);
    OK(t.d->gemm_create(t.d, &shape, &many, &diag));
    OK(t.d->gemm_algorithms(t.d, one, p.workspace_bytes, 8, algorithms, &count, &diag));
    assert_true(count > 1);
    assert_true(algorithms[0].workspace_bytes > 0);
    size_t needed = algorithms[0].workspace_bytes;
    REFUSED(ST_UNIMPLEMENTED, "rows", t.d->gemm_adopt(t.d, many, &algorithms[0], &diag));
    REFUSED(ST_INVALID_ARGUMENT, "workspace",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x, NULL, p.out, p.workspace, needed - 1, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "workspace",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x, NULL, p.out, p.workspace + 1, needed, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "bias",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x, p.bias, p.out, p.workspace, p.workspace_bytes, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "weight",
            t.d->gemm_run(t.d, one, &algorithms[0], p.bias, p.x, NULL, p.out, p.workspace, p.workspace_bytes, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "aligned",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x + 1, NULL, p.out, p.workspace, p.workspace_bytes, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "out",
            t.d->gemm_run(t.d, one, &algorithms[0], p.weight, p.x, NULL, t.pinned, p.workspace, p.workspace_bytes, t.a, &diag));
    memset(&algorithms[0], 0, sizeof algorithms[0]);
    REFUSED(ST_INVALID_ARGUMENT, "did not give", t.d->gemm_adopt(t.d, one, &algorithms[0], &diag));
    t.d->gemm_destroy(t.d, one);
    t.d->gemm_destroy(t.d, many);
    free_product(&t, &p);
    close_bench(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(algorithms_differ),
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(products_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
