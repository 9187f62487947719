/* Products with int8 and int4 weights: every instruction set has the oracle's bits, in any cut. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/gemm_int.h"
#include "kernels/quantize.h"
#include "kernels/ref/ref_int.h"
#include "tests/unit/kernels/kernels_testing.h"

struct problem {
    struct kernels_matrix matrix;
    struct kernels_gemm gemm; /* without out */
    unsigned char *data;
    float *x, *before;
    void *bias;
    size_t out_count;
};

/* Codes, scales and zeros at random: any that a file may bring. */
static void fill_int4(struct random_state *random, const struct kernels_matrix *m, unsigned char *data)
{
    uint32_t groups = int4_groups(m), depth = int4_k(m);
    uint8_t *codes = malloc((size_t)16 * m->n_in), *zeros = malloc((size_t)16 * groups);
    uint16_t *scales = malloc((size_t)16 * groups * 2);
    for (uint32_t panel = 0; panel < kernels_matrix_panels(m); panel++) {
        for (size_t i = 0; i < (size_t)16 * m->n_in; i++) { codes[i] = (uint8_t)random_range(random, 0, 15); }
        for (size_t i = 0; i < (size_t)16 * groups; i++) {
            scales[i] = f32_to_f16(random_float(random) * 0.01f);
            zeros[i] = (uint8_t)random_range(random, 0, 15);
        }
        quantize_int4_panel(m, panel, codes, scales, m->has_zeros ? zeros : NULL, data);
    }
    uint32_t *order = (uint32_t *)(void *)(data + kernels_matrix_panel_bytes(m) * kernels_matrix_panels(m));
    for (uint32_t k = 0; m->has_order && k < depth; k++) {
        order[k] = k < m->n_in ? k : m->n_in;
        if (k >= m->n_in) { continue; }
        uint32_t other = random_range(random, 0, k), swap = order[other];
        order[other] = order[k];
        order[k] = swap;
    }
    free(codes);
    free(zeros);
    free(scales);
}

static struct problem problem_make(struct random_state *random, enum kernels_weight format, uint32_t rows, uint32_t n_out,
                                   uint32_t n_in)
{
    static const uint32_t groups[] = {32, 64, 128};
    struct problem p = {.matrix = {.format = format, .n_out = n_out, .n_in = n_in}};
    if (format == KERNELS_WEIGHT_INT4) {
        p.matrix.group = groups[random_range(random, 0, 2)];
        p.matrix.has_zeros = random_range(random, 0, 1) == 1;
        p.matrix.has_order = random_range(random, 0, 1) == 1;
    }
    p.data = aligned_alloc(64, (kernels_matrix_bytes(&p.matrix) + 63) / 64 * 64);
    if (format == KERNELS_WEIGHT_INT4) {
        fill_int4(random, &p.matrix, p.data);
    } else {
        float *rows_f32 = malloc((size_t)n_out * n_in * 4);
        random_fill(random, rows_f32, DTYPE_F32, (size_t)n_out * n_in, 0.05f);
        struct quantize_rows source = {rows_f32, DTYPE_F32, n_in, n_out, n_in};
        quantize_int8(&source, 0, kernels_matrix_panels(&p.matrix), p.data);
        free(rows_f32);
    }
    p.matrix.data = p.data;
    struct kernels_gemm *g = &p.gemm;
    *g = (struct kernels_gemm){.rows = rows, .x_stride = n_in + random_range(random, 0, 3),
                               .out_stride = n_out + random_range(random, 0, 3), .accumulate = random_range(random, 0, 1) == 1,
                               .bias_dtype = (enum dtype)random_range(random, 0, DTYPE_F16)};
    size_t x_count = (rows - 1) * g->x_stride + n_in;
    p.x = poisoned(x_count * 4);
    random_fill(random, p.x, DTYPE_F32, x_count, 1);
    p.bias = poisoned(n_out * dtype_bytes(g->bias_dtype));
    random_fill(random, p.bias, g->bias_dtype, n_out, 1);
    p.out_count = (rows - 1) * g->out_stride + n_out;
    p.before = poisoned(p.out_count * 4);
    random_fill(random, p.before, DTYPE_F32, p.out_count, 1);
    g->x = p.x;
    g->bias = random_range(random, 0, 1) == 1 ? p.bias : NULL;
    return p;
}

static void problem_free(struct problem *p)
{
    free(p->data);
    free(p->x);
    free(p->before);
    free(p->bias);
}

static struct kernels_gemm problem_gemm(const struct problem *p, float *out)
{
    struct kernels_gemm g = p->gemm;
    g.weight = &p->matrix;
    g.out = out;
    return g;
}

static float *out_before(const struct problem *p)
{
    float *out = poisoned(p->out_count * 4);
    memcpy(out, p->before, p->out_count * 4);
    return out;
}

static float *run_ref(const struct problem *p)
{
    float *out = out_before(p);
    struct kernels_gemm g = problem_gemm(p, out);
    ref_int_gemm(&g);
    return out;
}

/* The product in pieces of at most `rows` rows and `panels` panels. */
static float *run_set(const struct problem *p, const struct gemm_int_set *set, uint32_t rows, uint32_t panels,
                      struct gemm_int_scratch *scratch)
{
    float *out = out_before(p);
    struct kernels_gemm g = problem_gemm(p, out);
    uint32_t rows_max = gemm_int_rows_max(&p->matrix), panel_count = kernels_matrix_panels(&p->matrix);
    rows = rows < rows_max ? rows : rows_max;
    scratch->x = NULL;
    for (uint32_t r = 0; r < g.rows; r += rows) {
        for (uint32_t first = 0; first < panel_count; first += panels) {
            set->piece(&g, r, g.rows - r < rows ? g.rows - r : rows, first, panel_count - first < panels ? panel_count - first : panels,
                       scratch);
        }
    }
    return out;
}

static void compare_all(struct random_state *random, const struct problem *p, struct gemm_int_scratch *scratch)
{
    float *want = run_ref(p);
    const struct gemm_int_set *set, *emulated = gemm_int_pick("amx-emulated");
    for (uint32_t i = 0; (set = gemm_int_available(i)) != NULL || emulated != NULL; i++) {
        if (set == NULL) { /* the tiles, worked out in C, where there is AVX-512 around them */
            set = emulated;
            emulated = NULL;
        }
        for (int cut = 0; cut < 3; cut++) {
            uint32_t rows = cut == 0 ? UINT32_MAX : random_range(random, 1, p->gemm.rows);
            uint32_t panels = cut == 0 ? UINT32_MAX : random_range(random, 1, kernels_matrix_panels(&p->matrix));
            float *got = run_set(p, set, rows, panels, scratch);
            assert_same_bits(set->isa_name, got, want, p->out_count);
            free(got);
        }
    }
    free(want);
}

static int scratch_make(void **state)
{
    struct gemm_int_scratch *scratch = malloc(sizeof *scratch);
    gemm_int_scratch_init(scratch, aligned_alloc(64, GEMM_INT_SCRATCH_BYTES));
    *state = scratch;
    return 0;
}

static int scratch_drop(void **state)
{
    struct gemm_int_scratch *scratch = *state;
    free(scratch->codes);
    free(scratch);
    return 0;
}

/* Every set has the oracle's bits, whatever the shape, the format and the cut into pieces; what lies
 * between the rows of out stays as it was. */
static void sets_have_the_oracles_bits(void **state)
{
    struct random_state random = random_start("sets_have_the_oracles_bits");
    for (int round = 0; round < 60; round++) {
        enum kernels_weight format = round % 2 == 0 ? KERNELS_WEIGHT_INT8 : KERNELS_WEIGHT_INT4;
        struct problem p = problem_make(&random, format, random_range(&random, 1, 40), random_range(&random, 1, 100),
                                        random_range(&random, 1, 1200));
        compare_all(&random, &p, *state);
        problem_free(&p);
    }
}

/* Each count of rows up to a few tiles, where shapes of tiles change. */
static void every_count_of_rows(void **state)
{
    struct random_state random = random_start("every_count_of_rows");
    for (uint32_t rows = 1; rows <= 26; rows++) {
        for (int format = KERNELS_WEIGHT_INT8; format <= KERNELS_WEIGHT_INT4; format++) {
            struct problem p = problem_make(&random, (enum kernels_weight)format, rows, 16 * 7 + 3, 640);
            compare_all(&random, &p, *state);
            problem_free(&p);
        }
    }
}

/* Many rows: whole pieces of the longest, and what is left over. */
static void many_rows(void **state)
{
    struct random_state random = random_start("many_rows");
    for (int format = KERNELS_WEIGHT_INT8; format <= KERNELS_WEIGHT_INT4; format++) {
        struct problem p = problem_make(&random, (enum kernels_weight)format, GEMM_INT_ROWS_MAX + 5, 50, 1100);
        compare_all(&random, &p, *state);
        problem_free(&p);
    }
}

/* The longest sum of the largest codes is exact: no set wraps or saturates where it shows. */
static void the_longest_sum_is_exact(void **state)
{
    struct random_state random = random_start("the_longest_sum_is_exact");
    for (int sign = -1; sign <= 1; sign += 2) {
        for (int format = KERNELS_WEIGHT_INT8; format <= KERNELS_WEIGHT_INT4; format++) {
            struct problem p = problem_make(&random, (enum kernels_weight)format, 2, 17, KERNELS_GEMM_IN_MAX);
            if (format == KERNELS_WEIGHT_INT8) {
                float *ones = malloc((size_t)17 * KERNELS_GEMM_IN_MAX * 4);
                for (size_t i = 0; i < (size_t)17 * KERNELS_GEMM_IN_MAX; i++) { ones[i] = 1.0f; }
                struct quantize_rows source = {ones, DTYPE_F32, KERNELS_GEMM_IN_MAX, 17, KERNELS_GEMM_IN_MAX};
                quantize_int8(&source, 0, 2, p.data);
                free(ones);
                p.gemm.accumulate = false;
                p.gemm.bias = NULL;
            }
            for (size_t i = 0; i < p.gemm.x_stride + KERNELS_GEMM_IN_MAX; i++) { p.x[i] = (float)sign; }
            if (format == KERNELS_WEIGHT_INT8) {
                float *want = run_ref(&p);
                assert_near("sum", 0, want[0], (double)sign * KERNELS_GEMM_IN_MAX, KERNELS_GEMM_IN_MAX * 10 * EPS);
                free(want);
            }
            compare_all(&random, &p, *state);
            problem_free(&p);
        }
    }
}

/* A row with a value that is not finite comes out as NaN, and its neighbours as without it. */
static void a_bad_row_stays_alone(void **state)
{
    struct random_state random = random_start("a_bad_row_stays_alone");
    for (int format = KERNELS_WEIGHT_INT8; format <= KERNELS_WEIGHT_INT4; format++) {
        struct problem p = problem_make(&random, (enum kernels_weight)format, 3, 33, 200);
        p.x[p.gemm.x_stride + 7] = INFINITY;
        compare_all(&random, &p, *state);
        float *want = run_ref(&p);
        for (uint32_t n = 0; n < p.matrix.n_out; n++) {
            assert_false(isnan(want[n]));
            assert_true(isnan(want[p.gemm.out_stride + n]));
            assert_false(isnan(want[2 * p.gemm.out_stride + n]));
        }
        free(want);
        problem_free(&p);
    }
}

/* The values are those of the product. Each x errs by half a step of its row's or group's scale, and a
 * few float roundings, so an element by at most the sum of |w| * (scale / 2) and (groups + 8) roundings
 * of sum |w x|. */
static void values_are_those_of_the_product(void **state)
{
    (void)state;
    struct random_state random = random_start("values_are_those_of_the_product");
    for (int round = 0; round < 20; round++) {
        enum kernels_weight format = round % 2 == 0 ? KERNELS_WEIGHT_INT8 : KERNELS_WEIGHT_INT4;
        struct problem p = problem_make(&random, format, 2, random_range(&random, 1, 40), random_range(&random, 1, 600));
        p.gemm.accumulate = false;
        p.gemm.bias = NULL;
        float *got = run_ref(&p), *w = poisoned(p.matrix.n_in * 4);
        for (uint32_t row = 0; row < 2; row++) {
            const float *x = p.x + row * p.gemm.x_stride;
            double largest = 0;
            for (uint32_t k = 0; k < p.matrix.n_in; k++) { largest = fmax(largest, fabs((double)x[k])); }
            for (uint32_t n = 0; n < p.matrix.n_out; n++) {
                kernels_matrix_read(&p.matrix, n, 0, p.matrix.n_in, w);
                double want = 0, rounding = 0, size = 0;
                for (uint32_t k = 0; k < p.matrix.n_in; k++) {
                    want += (double)w[k] * (double)x[k];
                    size += fabs((double)w[k] * (double)x[k]);
                    rounding += fabs((double)w[k]) * largest / 127 * 0.5;
                }
                assert_near("value", n, got[row * p.gemm.out_stride + n], want, rounding * 1.001 + size * (p.matrix.n_in / 32 + 12) * EPS);
            }
        }
        free(got);
        free(w);
        problem_free(&p);
    }
}

/* kernels_gemm has the oracle's bits for every instruction set and any number of threads, also where it does
 * both formats, and rows of x that they share, in one job. */
static void every_backend_has_the_same_bits(void **state)
{
    (void)state;
    struct random_state random = random_start("every_backend_has_the_same_bits");
    struct isa_list isas = isa_list_all();
    assert_true(isas.count < ISA_MAX);
    strcpy(isas.names[isas.count++], "ref");
    for (int round = 0; round < 6; round++) {
        struct problem p[2];
        const uint32_t rows = random_range(&random, 1, 30), n_in = random_range(&random, 1, 500);
        p[0] = problem_make(&random, KERNELS_WEIGHT_INT8, rows, random_range(&random, 1, 400), n_in);
        p[1] = problem_make(&random, KERNELS_WEIGHT_INT4, rows, random_range(&random, 1, 400), n_in);
        p[1].gemm.x = p[0].x;
        p[1].gemm.x_stride = p[0].gemm.x_stride;
        float *want[2] = {run_ref(&p[0]), run_ref(&p[1])};
        for (uint32_t i = 0; i < isas.count; i++) {
            for (uint32_t threads = 1; threads <= 3; threads += 2) {
                struct kernels *kernels = kernels_for(isas.names[i], strcmp(isas.names[i], "ref") == 0 ? 1 : threads);
                float *got[2] = {out_before(&p[0]), out_before(&p[1])};
                const struct kernels_gemm gemms[2] = {problem_gemm(&p[0], got[0]), problem_gemm(&p[1], got[1])};
                kernels_gemm(kernels, gemms, 2);
                for (int f = 0; f < 2; f++) {
                    assert_same_bits(isas.names[i], got[f], want[f], p[f].out_count);
                    free(got[f]);
                }
                kernels_destroy(kernels);
            }
        }
        for (int f = 0; f < 2; f++) {
            free(want[f]);
            problem_free(&p[f]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_bad_row_stays_alone, scratch_make, scratch_drop),
        cmocka_unit_test_setup_teardown(the_longest_sum_is_exact, scratch_make, scratch_drop),
        cmocka_unit_test(values_are_those_of_the_product),
        cmocka_unit_test(every_backend_has_the_same_bits),
        cmocka_unit_test_setup_teardown(every_count_of_rows, scratch_make, scratch_drop),
        cmocka_unit_test_setup_teardown(many_rows, scratch_make, scratch_drop),
        cmocka_unit_test_setup_teardown(sets_have_the_oracles_bits, scratch_make, scratch_drop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
