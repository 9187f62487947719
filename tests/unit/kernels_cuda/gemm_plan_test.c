/* Products on the device: which are one, which algorithm, unaligned operands, biases of any dtype. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda_gemm_plan.h"
#include "tests/unit/kernels_cuda/backend_testing.h"

/* ---- pure parts ----------------------------------------------------------------------------- */

/* A bucket is the least of its row counts' upper ends, and there are two in each doubling from 16 on. */
static void buckets_are_what_the_header_says(void **state)
{
    (void)state;
    static const uint32_t ends[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024};
    uint32_t end = 0;
    for (uint32_t rows = 1; rows <= 1024; rows++) {
        if (rows > ends[end]) { end++; }
        assert_int_equal(cuda_gemm_bucket(rows), ends[end]);
    }
    assert_int_equal(cuda_gemm_bucket(8000), 8192);
}

struct trio {
    struct kernels_matrix weights[3];
    struct kernels_gemm gemms[3];
    uint16_t memory[3 * 64 * 16], x[8], bias[256], out[4 * 256];
};

/* q, k and v as the forward pass lays them. */
static void trio_init(struct trio *t)
{
    static const uint32_t n_outs[3] = {64, 16, 16};
    uint32_t at = 0;
    memset(t, 0, sizeof(*t));
    for (uint32_t i = 0; i < 3; i++) {
        t->weights[i] = (struct kernels_matrix){.format = KERNELS_WEIGHT_BF16, .n_out = n_outs[i], .n_in = 14, .order = KERNELS_ORDER_ROWS,
                                                .stride = 16, .data = t->memory + at * 16};
        t->gemms[i] = (struct kernels_gemm){.rows = 4, .weight = &t->weights[i], .x = t->x, .x_dtype = DTYPE_BF16, .x_stride = 14,
                                            .bias = t->bias + at, .bias_dtype = DTYPE_BF16, .out = t->out + at, .out_dtype = DTYPE_BF16,
                                            .out_stride = 96};
        at += n_outs[i];
    }
}

static uint32_t merged(const struct trio *t, uint32_t count, uint32_t *ret_n_out)
{
    struct kernels_gemm gemm;
    struct kernels_matrix weight;
    uint32_t one = cuda_gemm_merge(t->gemms, count, &gemm, &weight);
    assert_ptr_equal(gemm.weight, &weight);
    assert_ptr_equal(gemm.out, t->gemms[0].out);
    *ret_n_out = weight.n_out;
    return one;
}

/* Neighbours are one product only where everything continues: one thing that does not, and they stay apart. */
static void products_merge_only_where_all_continues(void **state)
{
    (void)state;
    struct trio t;
    uint32_t n_out;
    trio_init(&t);
    assert_int_equal(merged(&t, 3, &n_out), 3);
    assert_int_equal(n_out, 96);
    assert_int_equal(merged(&t, 2, &n_out), 2);
    assert_int_equal(n_out, 80);
    for (uint32_t broken = 0; broken < 14; broken++) {
        trio_init(&t);
        struct kernels_gemm *second = &t.gemms[1];
        switch (broken) {
        case 0: second->rows = 3; break;
        case 1: second->x = t.x + 1; break;
        case 2: second->x_stride = 15; break;
        case 3: second->bias = NULL; break;
        case 4: second->bias = t.bias + 65; break;
        case 5: second->bias_dtype = DTYPE_F16; break;
        case 6: second->out = t.out + 72; break;
        case 7: second->out_dtype = DTYPE_F32; break;
        case 8: second->out_stride = 97; break;
        case 9: second->accumulate = true; break;
        case 10: t.weights[1].data = t.memory + 65 * 16; break;
        case 11: t.weights[1].n_in = 13; break;
        case 12: t.weights[1].format = KERNELS_WEIGHT_F16; break;
        default: t.weights[1].stride = 24; break;
        }
        assert_int_equal(merged(&t, 3, &n_out), 1);
        assert_int_equal(n_out, 64);
    }
    trio_init(&t);
    for (uint32_t i = 0; i < 3; i++) { t.gemms[i].out_stride = 90; } /* rows that all three together do not fit */
    assert_int_equal(merged(&t, 3, &n_out), 2);
}

/* ---- against the oracle --------------------------------------------------------------------- */

/* Sums of n_in products of numbers up to 1, in any order. */
static double bound_of(uint32_t n_in) { return n_in * 4e-7 + 1e-6; }

static void run_random_product(struct pair *p, uint32_t round)
{
    const enum dtype out_dtype = round % 2 == 0 ? DTYPE_F32 : p->act;
    const bool accumulate = out_dtype == DTYPE_F32 && round % 4 == 0;
    const uint32_t rows = pair_random_range(p, 1, 9), n_in = pair_random_range(p, 1, 70), n_out = pair_random_range(p, 1, 70);
    const size_t x_stride = n_in + pair_random_range(p, 0, 9), out_stride = n_out + pair_random_range(p, 0, 9);
    const uint32_t x_skip = round % 3 == 0 ? 1 : 0, out_skip = round % 5 == 0 ? 3 : 0, bias_skip = round % 7 == 0 ? 1 : 0;
    const enum dtype bias_dtype = (enum dtype)(round % 3);
    struct kernels_matrix ref_weight, cuda_weight;
    pair_matrix(p, n_out, n_in, p->act, &ref_weight, &cuda_weight);
    struct pair_values x = pair_values(p, x_skip + rows * x_stride, p->act, 1), bias = pair_values(p, bias_skip + n_out, bias_dtype, 1);
    struct pair_values out = pair_values(p, out_skip + rows * out_stride, out_dtype, 1);
    struct kernels_gemm g = {.rows = rows, .weight = &cuda_weight, .x = (uint8_t *)x.device + x_skip * dtype_bytes(p->act), .x_dtype = p->act,
                             .x_stride = x_stride, .bias_dtype = bias_dtype, .out = (uint8_t *)out.device + out_skip * dtype_bytes(out_dtype),
                             .out_dtype = out_dtype, .out_stride = out_stride, .accumulate = accumulate};
    if (round % 4 < 2) { g.bias = (uint8_t *)bias.device + bias_skip * dtype_bytes(bias_dtype); }
    kernels_gemm(p->cuda, &g, 1);
    g.weight = &ref_weight;
    g.x = x.host + x_skip;
    g.x_dtype = g.out_dtype = g.bias_dtype = DTYPE_F32;
    g.bias = g.bias != NULL ? bias.host + bias_skip : NULL;
    g.out = out.host + out_skip;
    kernels_gemm(p->ref, &g, 1);
    /* The library takes a bias of out's dtype: one of up to 1 is rounded to it. */
    pair_compare(p, "gemm", &out, pair_epsilon(out_dtype), bound_of(n_in) + (bias_dtype != out_dtype ? pair_epsilon(out_dtype) : 0));
}

/* Any shape, stride, alignment, bias and dtype, in both modes; what lies between rows stays. */
static void products_are_the_oracles(void **state)
{
    (void)state;
    for (uint32_t run = 0; run < 6; run++) {
        struct pair *p = pair_create((enum dtype)(run % 3), run >= 3, run + 1);
        printf("act=%s deterministic=%d\n", dtype_name(p->act), run >= 3);
        for (uint32_t round = 0; round < 24; round++) { run_random_product(p, round); }
        pair_destroy(p);
    }
}

/* q, k and v in one call, merged or not, are three products. */
static void a_call_of_three_is_three_products(void **state)
{
    (void)state;
    for (int apart = 0; apart < 2; apart++) {
        struct pair *p = pair_create(DTYPE_BF16, false, 5);
        struct kernels_matrix ref_all, cuda_all, ref_w[3], cuda_w[3];
        static const uint32_t n_outs[3] = {24, 8, 8};
        pair_matrix(p, 40, 24, DTYPE_BF16, &ref_all, &cuda_all);
        struct pair_values x = pair_values(p, 3 * 24, DTYPE_BF16, 1), out = pair_values(p, 3 * 48, DTYPE_BF16, 1);
        struct kernels_gemm ref_g[3], cuda_g[3];
        uint32_t at = 0;
        for (int i = 0; i < 3; i++) {
            ref_w[i] = ref_all;
            cuda_w[i] = cuda_all;
            ref_w[i].n_out = cuda_w[i].n_out = n_outs[i];
            ref_w[i].data = (const uint16_t *)ref_all.data + at * 24;
            cuda_w[i].data = (const uint16_t *)cuda_all.data + at * 24;
            uint32_t column = at + (i > 0 ? (uint32_t)apart * 8u : 0);
            cuda_g[i] = (struct kernels_gemm){.rows = 3, .weight = &cuda_w[i], .x = x.device, .x_dtype = DTYPE_BF16, .x_stride = 24,
                                              .out = (uint16_t *)out.device + column, .out_dtype = DTYPE_BF16, .out_stride = 48};
            ref_g[i] = (struct kernels_gemm){.rows = 3, .weight = &ref_w[i], .x = x.host, .x_stride = 24, .out = out.host + column, .out_stride = 48};
            at += n_outs[i];
        }
        /* The last one's weights are not on 64 bytes: the oracle takes rows on 16. */
        uint64_t before = emulated_device_operations_run(p->driver) + emulated_device_operations_left(p->driver);
        kernels_gemm(p->cuda, cuda_g, 3); /* chooses algorithms */
        assert_false(failed(kernels_sync(p->cuda)));
        before = emulated_device_operations_run(p->driver) + emulated_device_operations_left(p->driver);
        kernels_gemm(p->cuda, cuda_g, 3);
        uint64_t queued = emulated_device_operations_run(p->driver) + emulated_device_operations_left(p->driver) - before;
        assert_int_equal(queued, apart ? 2 : 1); /* k and v are neighbours in any case */
        kernels_gemm(p->ref, ref_g, 3);
        pair_compare(p, "q, k, v", &out, pair_epsilon(DTYPE_BF16), bound_of(24));
        pair_destroy(p);
    }
}

/* ---- bits ----------------------------------------------------------------------------------- */

struct bits_world {
    struct pair *p;
    struct kernels_matrix ref_weight, cuda_weight;
    struct pair_values x;
    uint32_t n_in, n_out;
};

#define BITS_ROWS 90u

/* Row 0 of a product of `rows` rows, with strides and places as they come. */
static void row_bits(struct bits_world *w, uint32_t rows, uint32_t out_extra, uint32_t out_skip, float *ret_row)
{
    const size_t stride = w->n_out + out_extra;
    void *out = pair_device(w->p, (out_skip + rows * stride) * 4);
    kernels_gemm(w->p->cuda, &(struct kernels_gemm){.rows = rows, .weight = &w->cuda_weight, .x = w->x.device, .x_dtype = w->p->act,
                                                    .x_stride = w->n_in, .out = (float *)out + out_skip, .out_stride = stride}, 1);
    pair_download(w->p, (float *)out + out_skip, DTYPE_F32, w->n_out, ret_row);
}

static uint32_t rows_that_differ(enum dtype act, bool deterministic, uint64_t seed)
{
    struct bits_world w = {.p = pair_create(act, deterministic, seed), .n_in = 203, .n_out = 17};
    float first[32], row[32];
    uint32_t differ = 0;
    pair_matrix(w.p, w.n_out, w.n_in, act, &w.ref_weight, &w.cuda_weight);
    w.x = pair_values(w.p, (size_t)BITS_ROWS * w.n_in, act, 1);
    row_bits(&w, BITS_ROWS, 0, 0, first);
    for (uint32_t rows = 1; rows < BITS_ROWS; rows += rows < 20 ? 1 : 7) {
        row_bits(&w, rows, rows % 3, rows % 2, row);
        if (memcmp(row, first, w.n_out * sizeof(float)) != 0) { differ++; }
    }
    pair_destroy(w.p);
    return differ;
}

/* Deterministic: a row has its bits whatever the number of rows, the strides and the places. Fast: among algorithms
 * that sum in different orders the best of each bucket is taken, so somewhere bits differ - else the claim
 * above would be an empty one. */
static void deterministic_rows_have_bits_of_their_own(void **state)
{
    (void)state;
    uint32_t differ_when_fast = 0;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        for (int act = 0; act < 3; act++) {
            assert_int_equal(rows_that_differ((enum dtype)act, true, seed), 0);
            differ_when_fast += rows_that_differ((enum dtype)act, false, seed);
        }
    }
    assert_true(differ_when_fast > 0);
}

/* A library that offers before each algorithm one that gives few rows other bits than many, as a kernel with tiles of
 * its own for few rows would: below FEW rows it runs another one of the list. */
#define FEW 30u
#define LIAR 1000u /* added to the id */
static const struct cuda_driver *inner;
static struct {
    const struct cuda_gemm *gemm;
    uint32_t rows;
} seen[4096];
static uint32_t seen_count;
static struct cuda_gemm_algorithm honest[2];
static bool was_honest_picked;

static status_t liars_create(const struct cuda_driver *self, const struct cuda_gemm_shape *shape, struct cuda_gemm **ret_gemm, struct diag *diag)
{
    (void)self;
    TRY(inner->gemm_create(inner, shape, ret_gemm, diag));
    assert_true(seen_count < sizeof(seen) / sizeof(seen[0]));
    seen[seen_count].gemm = *ret_gemm;
    seen[seen_count++].rows = shape->rows;
    return STATUS_OK;
}

static status_t liars_algorithms(const struct cuda_driver *self, struct cuda_gemm *gemm, size_t workspace_max, uint32_t capacity,
                                 struct cuda_gemm_algorithm *ret_algorithms, uint32_t *ret_count, struct diag *diag)
{
    (void)self;
    TRY(inner->gemm_algorithms(inner, gemm, workspace_max, 2, honest, ret_count, diag));
    assert_int_equal(*ret_count, 2);
    assert_true(capacity >= 4);
    for (uint32_t i = 0; i < 2; i++) {
        ret_algorithms[2 * i] = ret_algorithms[2 * i + 1] = honest[i];
        ret_algorithms[2 * i].id += LIAR;
    }
    *ret_count = 4;
    return STATUS_OK;
}

static status_t liars_adopt(const struct cuda_driver *self, struct cuda_gemm *gemm, struct cuda_gemm_algorithm *algorithm, struct diag *diag)
{
    (void)self;
    const uint32_t id = algorithm->id;
    algorithm->id %= LIAR;
    status_t st = inner->gemm_adopt(inner, gemm, algorithm, diag);
    algorithm->id = id;
    return st;
}

static status_t liars_run(const struct cuda_driver *self, struct cuda_gemm *gemm, const struct cuda_gemm_algorithm *algorithm,
                          const void *weight, const void *x, const void *bias, void *out, void *workspace, size_t workspace_bytes,
                          struct cuda_stream *stream, struct diag *diag)
{
    (void)self;
    uint32_t rows = 0;
    for (uint32_t i = 0; i < seen_count; i++) { /* the last one at this address */
        if (seen[i].gemm == gemm) { rows = seen[i].rows; }
    }
    struct cuda_gemm_algorithm real = *algorithm;
    was_honest_picked = real.id < LIAR;
    if (real.id >= LIAR) { real.id -= LIAR; }
    if (!was_honest_picked && rows < FEW) { real = honest[real.id == honest[0].id]; }
    return inner->gemm_run(inner, gemm, &real, weight, x, bias, out, workspace, workspace_bytes, stream, diag);
}

static void liars_close(const struct cuda_driver *self)
{
    free((void *)(uintptr_t)self);
    inner->close(inner);
}

/* An algorithm is held to bits, not believed: the one that lies is passed over, and rows keep their bits. */
static void an_algorithm_that_gives_few_rows_other_bits_is_passed_over(void **state)
{
    (void)state;
    struct cuda_driver *table = malloc(sizeof(*table));
    struct kernels *kernels = NULL;
    struct diag diag = {{0}};
    void *memory[3] = {NULL};
    enum { N_IN = 203, N_OUT = 16, STRIDE = 208, ROWS = 64 };
    static float host[ROWS * STRIDE], all[ROWS * N_OUT], few[ROWS * N_OUT];
    assert_non_null(table);
    inner = emulated_device_create(&(struct emulated_options){.seed = 3, .memory_bytes = PAIR_MEMORY_BYTES});
    *table = *inner;
    table->gemm_create = liars_create;
    table->gemm_algorithms = liars_algorithms;
    table->gemm_adopt = liars_adopt;
    table->gemm_run = liars_run;
    table->close = liars_close;
    struct kernels_config config = {.threads = 1, .deterministic = true};
    if (failed(cuda_backend_create_on(table, &config, &kernels, &diag))) { fail_msg("%s", diag.text); }
    for (size_t i = 0; i < ROWS * STRIDE; i++) { host[i] = (float)((i * 2654435761u) % 1000003) / 500001.0f - 1.0f; }
    for (int i = 0; i < 3; i++) { assert_false(failed(kernels_buffer_alloc(kernels, sizeof(host), &memory[i], &diag))); }
    kernels_upload(kernels, memory[0], host, sizeof(host));
    kernels_upload(kernels, memory[1], host, N_OUT * STRIDE * sizeof(float));
    struct kernels_matrix weight = {.n_out = N_OUT, .n_in = N_IN, .order = KERNELS_ORDER_ROWS, .stride = STRIDE, .data = memory[1]};
    struct kernels_gemm g = {.rows = ROWS, .weight = &weight, .x = memory[0], .x_stride = STRIDE, .out = memory[2], .out_stride = N_OUT};
    kernels_gemm(kernels, &g, 1);
    kernels_download(kernels, all, memory[2], sizeof(all));
    if (failed(kernels_sync(kernels))) { fail_msg("%s", cuda_backend_error(kernels)); }
    assert_true(was_honest_picked);
    for (uint32_t rows = 1; rows < ROWS; rows += 5) {
        g.rows = rows;
        kernels_gemm(kernels, &g, 1);
        kernels_download(kernels, few, memory[2], rows * N_OUT * sizeof(float));
        assert_false(failed(kernels_sync(kernels)));
        assert_memory_equal(few, all, rows * N_OUT * sizeof(float));
    }
    for (int i = 0; i < 3; i++) { kernels_buffer_free(kernels, memory[i], sizeof(host)); }
    kernels_destroy(kernels);
}

/* Two processes must choose alike, whatever came first in each: other rows, other strides. */
static void deterministic_choices_do_not_depend_on_what_came_first(void **state)
{
    (void)state;
    float rows[2][32];
    for (int which = 0; which < 2; which++) {
        struct bits_world w = {.p = pair_create(DTYPE_BF16, true, 11 + (uint64_t)which), .n_in = 203, .n_out = 17};
        w.p->random = 99;
        pair_matrix(w.p, w.n_out, w.n_in, DTYPE_BF16, &w.ref_weight, &w.cuda_weight);
        w.x = pair_values(w.p, (size_t)BITS_ROWS * w.n_in, DTYPE_BF16, 1);
        float other[32];
        row_bits(&w, which == 0 ? 3 : 80, which == 0 ? 5 : 0, 0, other);
        row_bits(&w, which == 0 ? 40 : 2, 0, 0, rows[which]);
        pair_destroy(w.p);
    }
    assert_memory_equal(rows[0], rows[1], 17 * sizeof(float));
}

/* ---- plans and biases ----------------------------------------------------------------------- */

/* Shapes that have come once take nothing more, from the device or the library. */
static void a_shape_that_came_before_allocates_nothing(void **state)
{
    (void)state;
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        struct pair *p = pair_create(DTYPE_F16, deterministic == 1, 3);
        struct kernels_matrix ref_weight, cuda_weight;
        pair_matrix(p, 24, 32, DTYPE_F16, &ref_weight, &cuda_weight);
        struct pair_values x = pair_values(p, 20 * 32, DTYPE_F16, 1), bias = pair_values(p, 24, DTYPE_BF16, 1), out = pair_values(p, 20 * 24, DTYPE_F32, 1);
        uint64_t plans = 0, memory = 0;
        for (uint32_t round = 0; round < 6; round++) {
            for (uint32_t rows = 5; rows <= 20; rows++) {
                kernels_gemm(p->cuda, &(struct kernels_gemm){.rows = rows, .weight = &cuda_weight, .x = x.device, .x_dtype = DTYPE_F16,
                                                             .x_stride = 32, .bias = bias.device, .bias_dtype = DTYPE_BF16, .out = out.device,
                                                             .out_stride = 24, .accumulate = rows % 2 == 0}, 1);
            }
            assert_false(failed(kernels_sync(p->cuda)));
            uint64_t plans_now = emulated_device_calls(p->driver, EMULATED_GEMM);
            uint64_t memory_now = emulated_device_calls(p->driver, EMULATED_MEM_ALLOC) + emulated_device_calls(p->driver, EMULATED_HOST_ALLOC) +
                                  emulated_device_calls(p->driver, EMULATED_EVENT);
            if (round > 0) {
                assert_int_equal(plans_now - plans, 16); /* runs alone */
                assert_int_equal(memory_now, memory);
            }
            plans = plans_now;
            memory = memory_now;
        }
        pair_destroy(p);
    }
}

/* A bias that is written again is read again, though its copy had been made. */
static void a_bias_that_changes_is_read_again(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_BF16, false, 4);
    struct kernels_matrix ref_weight, cuda_weight;
    pair_matrix(p, 8, 8, DTYPE_BF16, &ref_weight, &cuda_weight);
    struct pair_values x = pair_values(p, 5 * 8, DTYPE_BF16, 1), bias = pair_values(p, 8, DTYPE_BF16, 1), out = pair_values(p, 5 * 8, DTYPE_F32, 1);
    for (uint32_t round = 0; round < 3; round++) {
        struct kernels_gemm g = {.rows = 5, .weight = &cuda_weight, .x = x.device, .x_dtype = DTYPE_BF16, .x_stride = 8, .bias = bias.device,
                                 .bias_dtype = DTYPE_BF16, .out = out.device, .out_stride = 8};
        kernels_gemm(p->cuda, &g, 1);
        g.weight = &ref_weight;
        g.x = x.host;
        g.x_dtype = g.bias_dtype = DTYPE_F32;
        g.bias = bias.host;
        g.out = out.host;
        kernels_gemm(p->ref, &g, 1);
        pair_compare(p, "gemm", &out, 1e-6, 1e-5);
        for (uint32_t i = 0; i < 8; i++) { bias.host[i] = (float)(round * 8 + i); }
        pair_upload(p, &bias);
    }
    pair_destroy(p);
}

/* An algorithm that the library offers and then refuses to run is passed over. */
static void an_algorithm_that_is_refused_when_it_runs_is_passed_over(void **state)
{
    (void)state;
    for (uint64_t nth = 3; nth <= 9; nth++) { /* the first two calls make a plan and ask */
        struct pair *p = pair_create(DTYPE_BF16, false, nth);
        struct kernels_matrix ref_weight, cuda_weight;
        pair_matrix(p, 12, 16, DTYPE_BF16, &ref_weight, &cuda_weight);
        struct pair_values x = pair_values(p, 6 * 16, DTYPE_BF16, 1), out = pair_values(p, 6 * 12, DTYPE_F32, 1);
        struct kernels_gemm g = {.rows = 6, .weight = &cuda_weight, .x = x.device, .x_dtype = DTYPE_BF16, .x_stride = 16, .out = out.device, .out_stride = 12};
        emulated_device_fail(p->driver, EMULATED_GEMM, nth, CUDA_CAUSE_CUBLAS + 15);
        kernels_gemm(p->cuda, &g, 1);
        emulated_device_fail(p->driver, EMULATED_GEMM, 0, 0);
        if (failed(kernels_sync(p->cuda))) { fail_msg("call %llu: %s", (unsigned long long)nth, cuda_backend_error(p->cuda)); }
        g.weight = &ref_weight;
        g.x = x.host;
        g.x_dtype = DTYPE_F32;
        g.out = out.host;
        kernels_gemm(p->ref, &g, 1);
        pair_compare(p, "gemm", &out, 1e-6, 1e-5);
        pair_destroy(p);
    }
}

/* Whatever call of the library or allocation fails on a shape's first product, it is a kept error that names the product,
 * or it did not matter; nothing is left behind, which closing the device shows. */
static void every_failure_of_a_first_product_is_told(void **state)
{
    (void)state;
    static const enum emulated_call calls[] = {EMULATED_MEM_ALLOC, EMULATED_HOST_ALLOC, EMULATED_EVENT, EMULATED_GEMM, EMULATED_COPY, EMULATED_WAIT};
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        for (size_t c = 0; c < sizeof(calls) / sizeof(calls[0]); c++) {
            uint32_t told = 0;
            for (uint64_t nth = 1;; nth += nth < 6 ? 1 : nth < 20 ? 5 : 29) { /* a choice by bits makes hundreds of calls, alike */
                struct pair *p = pair_create(DTYPE_BF16, deterministic == 1, 2);
                struct kernels_matrix ref_weight, cuda_weight;
                pair_matrix(p, 12, 16, DTYPE_BF16, &ref_weight, &cuda_weight);
                struct pair_values x = pair_values(p, 6 * 16, DTYPE_BF16, 1), bias = pair_values(p, 12, DTYPE_F16, 1), out = pair_values(p, 6 * 12, DTYPE_F32, 1);
                struct kernels_gemm g = {.rows = 6, .weight = &cuda_weight, .x = x.device, .x_dtype = DTYPE_BF16, .x_stride = 16, .bias = bias.device,
                                         .bias_dtype = DTYPE_F16, .out = out.device, .out_stride = 12, .accumulate = true};
                uint64_t before = emulated_device_calls(p->driver, calls[c]);
                emulated_device_fail(p->driver, calls[c], nth, calls[c] == EMULATED_MEM_ALLOC || calls[c] == EMULATED_HOST_ALLOC ? 2 : 999);
                kernels_gemm(p->cuda, &g, 1);
                bool came = emulated_device_calls(p->driver, calls[c]) - before >= nth;
                emulated_device_fail(p->driver, calls[c], 0, 0);
                status_t st = kernels_sync(p->cuda);
                if (failed(st)) {
                    told++;
                    assert_true(st.code == ST_INTERNAL || st.code == ST_RESOURCE_EXHAUSTED);
                    assert_int_equal(st.scope, SCOPE_NODE);
                    assert_non_null(strstr(cuda_backend_error(p->cuda), "gemm: "));
                    assert_int_equal(kernels_sync(p->cuda).code, st.code);
                } else {
                    g.weight = &ref_weight;
                    g.x = x.host;
                    g.x_dtype = g.bias_dtype = DTYPE_F32;
                    g.bias = bias.host;
                    g.out = out.host;
                    kernels_gemm(p->ref, &g, 1);
                    pair_compare(p, "gemm", &out, 1e-6, 1e-5);
                }
                pair_destroy(p);
                if (!came) { break; }
            }
            if (calls[c] == EMULATED_GEMM) { assert_true(told > 0); }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buckets_are_what_the_header_says),
        cmocka_unit_test(products_merge_only_where_all_continues),
        cmocka_unit_test(every_failure_of_a_first_product_is_told),
        cmocka_unit_test(an_algorithm_that_is_refused_when_it_runs_is_passed_over),
        cmocka_unit_test(products_are_the_oracles),
        cmocka_unit_test(a_call_of_three_is_three_products),
        cmocka_unit_test(deterministic_rows_have_bits_of_their_own),
        cmocka_unit_test(an_algorithm_that_gives_few_rows_other_bits_is_passed_over),
        cmocka_unit_test(deterministic_choices_do_not_depend_on_what_came_first),
        cmocka_unit_test(a_shape_that_came_before_allocates_nothing),
        cmocka_unit_test(a_bias_that_changes_is_read_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
