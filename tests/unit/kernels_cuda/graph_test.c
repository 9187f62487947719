/* Graphs of operations on the emulated device: recorded on the second run of a key, launched from then on, and never
 * at the price of an operation: whatever goes wrong while recording, the run has its results. */
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/cuda_graphs.h"
#include "tests/unit/kernels_cuda/backend_testing.h"

#define ROWS 6u /* more than gemv takes: the products have plans */
#define DIM 24u
#define VOCAB 30u

/* A small step: rows of a table by ids in the exchange, a norm, a product that is added. */
struct step {
    struct pair *p;
    struct kernels_matrix ref_table, cuda_table, ref_weight, cuda_weight;
    struct pair_values x, normed, norm;
    uint32_t *ids;
    uint32_t gemms; /* with how many products; another number is another shape of scratch and plans */
};

static void step_init(struct step *s, struct pair *p)
{
    *s = (struct step){.p = p, .gemms = 1};
    pair_matrix(p, VOCAB, DIM, p->act, &s->ref_table, &s->cuda_table);
    pair_matrix(p, DIM, DIM, p->act, &s->ref_weight, &s->cuda_weight);
    s->x = pair_values(p, ROWS * DIM, DTYPE_F32, 1);
    s->normed = pair_values(p, ROWS * DIM, p->act, 1);
    s->norm = pair_values(p, DIM, DTYPE_F32, 1);
    s->ids = pair_exchange(p, ROWS * sizeof(*s->ids));
}

static void issue(struct step *s, bool on_device, uint32_t rows)
{
    struct kernels *kernels = on_device ? s->p->cuda : s->p->ref;
    const enum dtype act = on_device ? s->p->act : DTYPE_F32;
    void *x = on_device ? s->x.device : (void *)s->x.host, *normed = on_device ? s->normed.device : (void *)s->normed.host;
    kernels_embed(kernels, &(struct kernels_embed){.rows = ROWS, .table = on_device ? &s->cuda_table : &s->ref_table, .ids = s->ids,
                                                   .out = x, .out_stride = DIM});
    kernels_rmsnorm(kernels, &(struct kernels_rmsnorm){.rows = ROWS, .heads = 1, .dim = DIM, .x = x, .x_stride = DIM,
                                                       .weight = on_device ? s->norm.device : (void *)s->norm.host, .eps = 1e-5f,
                                                       .out = normed, .out_dtype = act, .out_stride = DIM});
    for (uint32_t i = 0; i < s->gemms; i++) {
        kernels_gemm(kernels, &(struct kernels_gemm){.rows = rows, .weight = on_device ? &s->cuda_weight : &s->ref_weight, .x = normed,
                                                     .x_dtype = act, .x_stride = DIM, .out = x, .out_stride = DIM, .accumulate = true}, 1);
    }
}

/* One run with fresh ids under a key; says whether it was launched as a graph. The results are the oracle's. */
static bool run(struct step *s, uint64_t key, uint32_t rows)
{
    for (uint32_t r = 0; r < ROWS; r++) { s->ids[r] = pair_random_range(s->p, 0, VOCAB - 1); }
    kernels_exchange_send(s->p->cuda, s->ids, ROWS * sizeof(*s->ids));
    bool issued = kernels_graph_begin(s->p->cuda, key);
    if (issued) {
        issue(s, true, rows);
        kernels_graph_end(s->p->cuda);
    }
    issue(s, false, rows);
    pair_compare(s->p, "step", &s->x, 4 * pair_epsilon(s->p->act), 8 * pair_epsilon(s->p->act) * s->gemms + 1e-5);
    return !issued;
}

static void counts(const struct step *s, uint64_t launched, uint64_t captured)
{
    uint64_t is_launched, is_captured;
    cuda_backend_graph_counts(s->p->cuda, &is_launched, &is_captured);
    assert_int_equal(is_launched, launched);
    assert_int_equal(is_captured, captured);
}

/* Plain, captured, then launched with other values behind the same addresses, and as few host calls as that needs. */
static void a_graph_reads_what_the_exchange_holds_now(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct pair *p = pair_create(seed % 2 == 0 ? DTYPE_BF16 : DTYPE_F32, seed == 3, seed);
        struct step s;
        printf("seed=%llu\n", (unsigned long long)seed);
        step_init(&s, p);
        assert_true(kernels_has_graphs(p->cuda));
        assert_false(run(&s, 7, ROWS));
        assert_false(run(&s, 7, ROWS));
        counts(&s, 1, 1);
        for (int i = 0; i < 5; i++) {
            uint64_t launches = emulated_device_calls(p->driver, EMULATED_LAUNCH), gemms = emulated_device_calls(p->driver, EMULATED_GEMM);
            uint64_t allocs = emulated_device_calls(p->driver, EMULATED_MEM_ALLOC) + emulated_device_calls(p->driver, EMULATED_HOST_ALLOC);
            assert_true(run(&s, 7, ROWS));
            assert_int_equal(emulated_device_calls(p->driver, EMULATED_LAUNCH), launches);
            assert_int_equal(emulated_device_calls(p->driver, EMULATED_GEMM), gemms);
            assert_int_equal(emulated_device_calls(p->driver, EMULATED_MEM_ALLOC) + emulated_device_calls(p->driver, EMULATED_HOST_ALLOC), allocs);
        }
        counts(&s, 6, 1);
        pair_destroy(p);
    }
}

/* Keys do not see each other, and more of them than there is room for push out the one unused for longest. */
static void the_key_unused_for_longest_gives_way(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_F32, false, 9);
    struct step s;
    step_init(&s, p);
    for (uint64_t key = 0; key < CUDA_GRAPHS_MAX; key++) {
        assert_false(run(&s, key, ROWS));
        assert_false(run(&s, key, ROWS));
    }
    for (uint64_t key = 0; key < CUDA_GRAPHS_MAX; key += 13) { assert_true(run(&s, key, ROWS)); }
    assert_true(run(&s, 1, ROWS));
    assert_false(run(&s, 1000, ROWS)); /* takes the place of key 2 */
    assert_false(run(&s, 2, ROWS));    /* and this that of key 3 */
    assert_true(run(&s, 4, ROWS));
    assert_true(run(&s, 0, ROWS));
    assert_false(run(&s, 3, ROWS));
    pair_destroy(p);
}

/* What must wait or allocate ends a capture, and the run goes on plainly; a later run is captured. */
static void what_comes_for_the_first_time_ends_a_capture(void **state)
{
    (void)state;
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        struct pair *p = pair_create(DTYPE_BF16, deterministic == 1, 5);
        struct step s;
        step_init(&s, p);
        assert_false(run(&s, 1, ROWS));
        assert_false(run(&s, 1, ROWS - 1)); /* against the rules: another shape under the key. No operation is lost */
        counts(&s, 0, 0);
        assert_false(run(&s, 1, ROWS));
        counts(&s, 1, 1);
        assert_true(run(&s, 1, ROWS));
        pair_destroy(p);
    }
}

/* Each call that can fail while a key is recorded, failing: results stay right, and after CUDA_GRAPH_TRIES bad captures
 * the key runs plainly. */
static void a_bad_capture_loses_no_operation(void **state)
{
    (void)state;
    static const struct {
        enum emulated_call call;
        uint64_t nths;
        int32_t cause;
    } faults[] = {{EMULATED_GRAPH, 2, 900}, {EMULATED_LAUNCH, 2, 900}, {EMULATED_GEMM, 1, CUDA_CAUSE_CUBLAS + 15}};
    for (size_t f = 0; f < sizeof(faults) / sizeof(faults[0]); f++) {
        for (uint64_t nth = 1; nth <= faults[f].nths; nth++) {
            struct pair *p = pair_create(DTYPE_BF16, false, 20 + nth);
            struct step s;
            printf("call=%d nth=%llu\n", (int)faults[f].call, (unsigned long long)nth);
            step_init(&s, p);
            assert_false(run(&s, 1, ROWS));
            for (uint32_t i = 0; i < CUDA_GRAPH_TRIES - 1; i++) {
                emulated_device_fail(p->driver, faults[f].call, nth, faults[f].cause);
                assert_false(run(&s, 1, ROWS));
                emulated_device_fail(p->driver, faults[f].call, 0, 0);
                counts(&s, 0, 0);
            }
            assert_false(run(&s, 1, ROWS)); /* the last try succeeds */
            assert_true(run(&s, 1, ROWS));
            counts(&s, 2, 1);
            assert_false(run(&s, 2, ROWS));
            for (uint32_t i = 0; i < CUDA_GRAPH_TRIES; i++) {
                emulated_device_fail(p->driver, faults[f].call, nth, faults[f].cause);
                assert_false(run(&s, 2, ROWS));
                emulated_device_fail(p->driver, faults[f].call, 0, 0);
            }
            for (int i = 0; i < 3; i++) { assert_false(run(&s, 2, ROWS)); } /* given up */
            counts(&s, 2, 1);
            pair_destroy(p);
        }
    }
}

/* A graph that cannot be launched is an error of the device: it was the operations. */
static void a_graph_that_cannot_be_launched_is_told(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_BF16, false, 31);
    struct step s;
    step_init(&s, p);
    run(&s, 1, ROWS);
    run(&s, 1, ROWS);
    emulated_device_fail(p->driver, EMULATED_GRAPH, 1, 999);
    assert_false(kernels_graph_begin(p->cuda, 1));
    assert_int_equal(kernels_sync(p->cuda).code, ST_INTERNAL);
    assert_non_null(strstr(cuda_backend_error(p->cuda), "graph: "));
    assert_false(kernels_graph_begin(p->cuda, 1)); /* quietly nothing: the error is kept */
    assert_true(kernels_graph_begin(p->cuda, 2));
    kernels_graph_end(p->cuda);
    assert_int_equal(kernels_sync(p->cuda).code, ST_INTERNAL);
    pair_destroy(p);
}

/* Freed memory takes the graphs with it, that may name it. */
static void freed_memory_drops_graphs(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_F32, false, 33);
    struct step s;
    struct diag diag;
    void *other = NULL, *region = NULL;
    step_init(&s, p);
    for (int round = 0; round < 2; round++) {
        run(&s, 1, ROWS);
        run(&s, 1, ROWS);
        assert_true(run(&s, 1, ROWS));
        if (round == 0) {
            assert_false(failed(kernels_buffer_alloc(p->cuda, 100, &other, &diag)));
            kernels_buffer_free(p->cuda, other, 100);
        } else {
            assert_false(failed(kernels_exchange_alloc(p->cuda, 100, &region, &diag)));
            kernels_exchange_free(p->cuda, region, 100);
        }
        assert_false(run(&s, 1, ROWS));
    }
    pair_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_graph_reads_what_the_exchange_holds_now),
        cmocka_unit_test(a_bad_capture_loses_no_operation),
        cmocka_unit_test(what_comes_for_the_first_time_ends_a_capture),
        cmocka_unit_test(a_graph_that_cannot_be_launched_is_told),
        cmocka_unit_test(freed_memory_drops_graphs),
        cmocka_unit_test(the_key_unused_for_longest_gives_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
