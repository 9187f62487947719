/* The CUDA backend's life, memory, order and errors, on the emulated device. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/cuda_marks.h"
#include "tests/unit/kernels_cuda/backend_testing.h"

/* ---- life ----------------------------------------------------------------------------------- */

/* The set's name says what bits depend on; sets of other modes, dtypes or chips have other names. */
static void the_set_is_named_after_what_its_bits_depend_on(void **state)
{
    (void)state;
    static const struct {
        enum dtype act;
        bool deterministic;
        uint32_t arch;
        const char *name, *isa;
    } cases[] = {{DTYPE_BF16, false, 90, "cuda-bf16-sm90-fast-v1", "sm_90 "},
                 {DTYPE_F16, true, 80, "cuda-f16-sm80-det-v1", "sm_80 "},
                 {DTYPE_F32, true, 100, "cuda-f32-sm100-det-v1", "sm_100 "}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kernels *kernels = NULL;
        struct diag diag = {{0}};
        const struct cuda_driver *driver = emulated_device_create(&(struct emulated_options){.arch = cases[i].arch, .memory_bytes = PAIR_MEMORY_BYTES});
        struct kernels_config config = {.threads = 1, .activations = cases[i].act, .deterministic = cases[i].deterministic};
        assert_false(failed(cuda_backend_create_on(driver, &config, &kernels, &diag)));
        assert_string_equal(kernels_set_name(kernels), cases[i].name);
        assert_true(strncmp(kernels_isa_name(kernels), cases[i].isa, strlen(cases[i].isa)) == 0);
        assert_int_equal(kernels_activation_dtype(kernels), cases[i].act);
        assert_int_equal(kernels_weight_order(kernels), KERNELS_ORDER_ROWS);
        assert_int_equal(kernels_kv_order(kernels), KV_ORDER_ROWS);
        assert_false(kernels_uses_host_memory(kernels));
        assert_true(kernels_can_sample(kernels));
        kernels_destroy(kernels);
    }
}

/* Whichever call fails, create says so and leaves nothing: closing the device would end the process. */
static void every_failure_of_create_is_told_and_undone(void **state)
{
    (void)state;
    static const enum emulated_call calls[] = {EMULATED_MEM_ALLOC, EMULATED_HOST_ALLOC, EMULATED_STREAM, EMULATED_EVENT};
    struct kernels_config config = {.threads = 1, .activations = DTYPE_BF16};
    for (size_t c = 0; c < sizeof(calls) / sizeof(calls[0]); c++) {
        uint64_t nth = 1;
        for (;; nth++) {
            const struct cuda_driver *driver = emulated_device_create(&(struct emulated_options){.memory_bytes = PAIR_MEMORY_BYTES});
            struct kernels *kernels = NULL;
            struct diag diag = {{0}};
            emulated_device_fail(driver, calls[c], nth, 2);
            status_t st = cuda_backend_create_on(driver, &config, &kernels, &diag);
            if (!failed(st)) {
                kernels_destroy(kernels);
                break;
            }
            assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
            assert_int_equal(st.scope, SCOPE_NODE);
            assert_non_null(strstr(diag.text, "MiB left"));
            assert_null(kernels);
            driver->close(driver);
        }
        assert_true(nth > 1); /* create does call it */
    }
}

/* A device too small for the workspace is refused with the figures. */
static void a_full_device_is_refused_with_figures(void **state)
{
    (void)state;
    const struct cuda_driver *driver = emulated_device_create(&(struct emulated_options){.memory_bytes = 1 << 20});
    struct kernels *kernels = NULL;
    struct diag diag = {{0}};
    status_t st = cuda_backend_create_on(driver, &(struct kernels_config){.threads = 1}, &kernels, &diag);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(diag.text, "of 1 MiB left"));
    driver->close(driver);
}

/* ---- memory --------------------------------------------------------------------------------- */

/* Buffers are zeroed and aligned; one that does not fit is refused, and all is as before. */
static void buffers_are_zeroed_aligned_and_bounded(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_F32, false, 1);
    struct diag diag = {{0}};
    void *big = NULL;
    for (size_t bytes = 1; bytes < 3000; bytes = bytes * 3 + 1) {
        uint8_t *device = pair_device(p, bytes), *got = pair_host(p, bytes), *zeros = pair_host(p, bytes);
        assert_int_equal((uintptr_t)device % 256, 0);
        memset(got, 1, bytes);
        kernels_download(p->cuda, got, device, bytes);
        assert_false(failed(kernels_sync(p->cuda)));
        assert_memory_equal(got, zeros, bytes);
    }
    status_t st = kernels_buffer_alloc(p->cuda, (size_t)1 << 40, &big, &diag);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(diag.text, "1048576 MiB are asked for"));
    assert_null(big);
    assert_false(failed(kernels_sync(p->cuda)));
    kernels_buffer_free(p->cuda, NULL, 0);
    pair_destroy(p);
}

/* Pinned or not, small or larger than the staging memory: bytes go to the device and back, in order with each other. */
static void bytes_go_there_and_back_in_order(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct pair *p = pair_create(DTYPE_F32, false, seed);
        struct diag diag;
        const size_t bytes = ((size_t)5 << 20) + 13;
        uint8_t *device = pair_device(p, bytes), *plain = malloc(bytes), *back = malloc(bytes);
        void *memory = NULL;
        printf("seed=%llu\n", (unsigned long long)seed);
        assert_false(failed(kernels_pinned_alloc(p->cuda, bytes, &memory, &diag)));
        assert_int_equal((uintptr_t)memory % 64, 0);
        uint8_t *pinned = memory;
        for (size_t i = 0; i < bytes; i++) {
            plain[i] = (uint8_t)(i * 7 + i / 251);
            pinned[i] = (uint8_t)(i * 11 + 3);
        }
        kernels_upload(p->cuda, device, pinned, bytes); /* all of it, then part of it again */
        kernels_upload(p->cuda, device + 5, plain + 5, bytes - 11);
        memset(plain, 0, 64); /* has been read, though the device may not have it yet */
        kernels_download(p->cuda, back, device, bytes);
        assert_false(failed(kernels_sync(p->cuda)));
        for (size_t i = 0; i < bytes; i++) {
            bool inner = i >= 5 && i < bytes - 6;
            assert_int_equal(back[i], inner ? (uint8_t)(i * 7 + i / 251) : (uint8_t)(i * 11 + 3));
        }
        uint64_t ticket = 0;
        kernels_download(p->cuda, pinned + 64, device + 64, 1000);
        ticket = kernels_mark(p->cuda);
        assert_false(failed(kernels_wait(p->cuda, ticket)));
        assert_memory_equal(pinned + 64, back + 64, 1000);
        kernels_pinned_free(p->cuda, memory, bytes);
        free(plain);
        free(back);
        pair_destroy(p);
    }
}

/* Runs what must not be done in a child, which a failed CHECK ends. */
static bool dies(struct pair *p, void (*deed)(struct pair *p))
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (freopen("/dev/null", "w", stderr) == NULL) { _exit(3); }
        signal(SIGABRT, SIG_DFL);
        deed(p);
        _exit(0);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    return WIFSIGNALED(how) && WTERMSIG(how) == SIGABRT;
}

static void embed_ids(struct pair *p, const uint32_t *ids, uint32_t rows)
{
    struct kernels_matrix ref, table;
    pair_matrix(p, 4, 8, DTYPE_F32, &ref, &table);
    kernels_embed(p->cuda, &(struct kernels_embed){.rows = rows, .table = &table, .ids = ids, .out = pair_device(p, 4096), .out_stride = 8});
}

static uint32_t outside[8];
static void name_what_is_outside(struct pair *p) { embed_ids(p, outside, 2); }
/* Inside the page, so that the facade can look at the id, but past the region. */
static uint32_t *short_region;
static void run_over_the_end(struct pair *p) { embed_ids(p, short_region + 23, 3); }
static void send_what_is_outside(struct pair *p) { kernels_exchange_send(p->cuda, outside, 8); }
static void free_what_is_none(struct pair *p) { kernels_exchange_free(p->cuda, outside, 8); }
static void name_what_is_inside(struct pair *p) { embed_ids(p, short_region + 23, 2); }

/* Host memory that an operation names lies in the exchange, all of it, or the process ends. */
static void what_an_operation_names_lies_in_the_exchange(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_F32, false, 1);
    struct diag diag;
    void *region = NULL;
    assert_false(failed(kernels_exchange_alloc(p->cuda, 100, &region, &diag)));
    short_region = region;
    assert_true(dies(p, name_what_is_outside));
    assert_true(dies(p, run_over_the_end));
    assert_true(dies(p, send_what_is_outside));
    assert_true(dies(p, free_what_is_none));
    assert_false(dies(p, name_what_is_inside));
    kernels_exchange_free(p->cuda, region, 100);
    pair_destroy(p);
}

static void sync_inside(struct pair *p) { if (kernels_graph_begin(p->cuda, 1)) { (void)!kernels_sync(p->cuda).code; } }
static void mark_inside(struct pair *p) { if (kernels_graph_begin(p->cuda, 1)) { (void)kernels_mark(p->cuda); } }
static void send_inside(struct pair *p) { if (kernels_graph_begin(p->cuda, 1)) { kernels_exchange_send(p->cuda, p->exchange, 8); } }
static void begin_inside(struct pair *p) { if (kernels_graph_begin(p->cuda, 1)) { (void)kernels_graph_begin(p->cuda, 2); } }
static void end_outside(struct pair *p) { kernels_graph_end(p->cuda); }

/* What the header forbids between begin and end is a CHECK in the first, plain run already. */
static void a_graph_has_operations_alone(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_F32, false, 1);
    assert_true(dies(p, sync_inside));
    assert_true(dies(p, mark_inside));
    assert_true(dies(p, send_inside));
    assert_true(dies(p, begin_inside));
    assert_true(dies(p, end_outside));
    pair_destroy(p);
}

/* Regions are bounded in number, come back, and each is known by its own addresses. */
static void exchange_regions_come_and_go(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_F32, false, 1); /* has one */
    struct diag diag = {{0}};
    void *regions[KERNELS_EXCHANGES_MAX] = {NULL};
    for (int round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < KERNELS_EXCHANGES_MAX - 1; i++) {
            assert_false(failed(kernels_exchange_alloc(p->cuda, 100 * (i + 1), &regions[i], &diag)));
            assert_int_equal(*(uint8_t *)regions[i], 0);
            memset(regions[i], 0, 8);
            ((uint32_t *)regions[i])[1] = i;
            kernels_exchange_send(p->cuda, regions[i], 8);
            embed_ids(p, regions[i], 2);
        }
        assert_int_equal(kernels_exchange_alloc(p->cuda, 8, &regions[KERNELS_EXCHANGES_MAX - 1], &diag).code, ST_RESOURCE_EXHAUSTED);
        for (uint32_t i = 0; i < KERNELS_EXCHANGES_MAX - 1; i++) { kernels_exchange_free(p->cuda, regions[i], 100 * (i + 1)); }
    }
    for (enum emulated_call call = EMULATED_MEM_ALLOC; call <= EMULATED_HOST_ALLOC; call++) {
        emulated_device_fail(p->driver, call, 1, 2);
        assert_int_equal(kernels_exchange_alloc(p->cuda, 8, &regions[0], &diag).code, ST_RESOURCE_EXHAUSTED);
    }
    assert_false(failed(kernels_sync(p->cuda)));
    pair_destroy(p);
}

/* ---- order ---------------------------------------------------------------------------------- */

/* A download, waited for by its mark alone, has the bytes of before the mark; tickets rise, and one whose event has come
 * round is still good. */
static void marks_rise_and_stay_good(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_F32, false, 6);
    struct diag diag;
    void *memory = NULL;
    uint32_t *device = pair_device(p, 4 * 200);
    assert_false(failed(kernels_pinned_alloc(p->cuda, 2 * 4 * 200, &memory, &diag)));
    uint32_t *up = memory, *down = up + 200;
    uint64_t first = 0, last = 0;
    for (uint32_t i = 0; i < 200; i++) {
        up[i] = i + 1;
        kernels_upload(p->cuda, device + i, up + i, 4);
        kernels_download(p->cuda, down + i, device + i, 4);
        uint64_t ticket = kernels_mark(p->cuda);
        assert_true(ticket > last);
        last = ticket;
        if (i == 0) { first = ticket; }
        if (i % 3 == 0) {
            assert_false(failed(kernels_wait(p->cuda, ticket)));
            assert_int_equal(down[i], i + 1);
        }
    }
    assert_true(last - first >= 3 * CUDA_MARKS);
    assert_false(failed(kernels_wait(p->cuda, first)));
    assert_int_equal(down[0], 1);
    assert_false(failed(kernels_wait(p->cuda, 0)));
    assert_false(failed(kernels_wait(p->cuda, last)));
    for (uint32_t i = 0; i < 200; i++) { assert_int_equal(down[i], i + 1); }
    kernels_pinned_free(p->cuda, memory, 2 * 4 * 200);
    pair_destroy(p);
}

/* ---- errors --------------------------------------------------------------------------------- */

static void queue_some(struct pair *p, const struct pair_values *x)
{
    struct kernels_mul m = {.rows = 2, .dim = 8, .dtype = p->act, .a = x->device, .a_stride = 8, .b = x->device, .b_stride = 8,
                            .out = x->device, .out_stride = 8};
    struct kernels_gelu g = {.rows = 2, .dim = 8, .dtype = p->act, .x = x->device, .x_stride = 8, .out = x->device, .out_stride = 8};
    kernels_mul(p->cuda, &m);
    kernels_gelu(p->cuda, &g);
    kernels_mul(p->cuda, &m);
}

/* The first failure is kept with its operation's name; nothing is queued after it, sync tells it each time. */
static void the_first_error_is_kept(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_F32, false, 2);
    struct pair_values x = pair_values(p, 16, DTYPE_F32, 1);
    assert_string_equal(cuda_backend_error(p->cuda), "");
    emulated_device_fail(p->driver, EMULATED_LAUNCH, 2, 999);
    queue_some(p, &x);
    uint64_t launches = emulated_device_calls(p->driver, EMULATED_LAUNCH);
    queue_some(p, &x);
    kernels_upload(p->cuda, x.device, x.host, 16);
    kernels_download(p->cuda, x.host, x.device, 16);
    kernels_exchange_send(p->cuda, p->exchange, 16);
    assert_int_equal(emulated_device_calls(p->driver, EMULATED_LAUNCH), launches);
    for (int i = 0; i < 2; i++) {
        status_t st = kernels_sync(p->cuda);
        assert_int_equal(st.code, ST_INTERNAL);
        assert_int_equal(st.scope, SCOPE_NODE);
        assert_int_equal(st.cause, 999);
        assert_true(strncmp(cuda_backend_error(p->cuda), "gelu: CUDA_ERROR_UNKNOWN: ", 26) == 0);
    }
    assert_int_equal(kernels_wait(p->cuda, kernels_mark(p->cuda)).code, ST_INTERNAL);
    pair_destroy(p);
}

/* A kernel that fails late is found by whoever waits, once, with what was queued last. */
static void a_late_error_is_found_by_sync(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        struct pair *p = pair_create(DTYPE_F32, false, 3);
        struct pair_values x = pair_values(p, 16, DTYPE_F32, 1);
        emulated_device_break(p->driver, 2);
        queue_some(p, &x);
        status_t st = STATUS_OK;
        uint8_t bytes[16];
        switch (how) {
        case 0: st = kernels_sync(p->cuda); break;
        case 1: st = kernels_wait(p->cuda, kernels_mark(p->cuda)); break;
        default:
            kernels_download(p->cuda, bytes, x.device, sizeof(bytes)); /* waits, for the memory is not pinned */
            st = kernels_sync(p->cuda);
            break;
        }
        assert_int_equal(st.code, ST_INTERNAL);
        printf("%s\n", cuda_backend_error(p->cuda));
        assert_true(strlen(cuda_backend_error(p->cuda)) > 10);
        queue_some(p, &x);
        assert_int_equal(kernels_sync(p->cuda).code, ST_INTERNAL);
        pair_destroy(p);
    }
}

/* Nothing in the loop takes memory, plans or events once each shape has come; the calls of a step stay the same. */
static void a_step_that_came_before_allocates_nothing(void **state)
{
    (void)state;
    struct pair *p = pair_create(DTYPE_BF16, false, 8);
    struct pair_values x = pair_values(p, 16, DTYPE_BF16, 1), logits = pair_values(p, 4 * 100, DTYPE_F32, 1);
    struct kernels_sample_row *params = pair_exchange(p, 4 * sizeof(*params));
    struct kernels_sample_result *results = pair_exchange(p, 4 * sizeof(*results));
    uint64_t before = 0;
    for (int round = 0; round < 300; round++) {
        pair_send(p);
        queue_some(p, &x);
        kernels_sample(p->cuda, &(struct kernels_sample){.rows = 1 + (uint32_t)round % 4, .vocab = 100, .logits = logits.device, .stride = 100,
                                                         .params = params, .results = results});
        if (round % 2 == 0) { assert_true(kernels_mark(p->cuda) != 0); }
        if (round % 5 == 0) { assert_false(failed(kernels_sync(p->cuda))); }
        uint64_t now = emulated_device_calls(p->driver, EMULATED_MEM_ALLOC) + emulated_device_calls(p->driver, EMULATED_HOST_ALLOC) +
                       emulated_device_calls(p->driver, EMULATED_STREAM) + emulated_device_calls(p->driver, EMULATED_GEMM);
        if (round >= 4) { assert_int_equal(now, before); }
        before = now;
    }
    assert_false(failed(kernels_sync(p->cuda)));
    pair_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_set_is_named_after_what_its_bits_depend_on),
        cmocka_unit_test(every_failure_of_create_is_told_and_undone),
        cmocka_unit_test(a_full_device_is_refused_with_figures),
        cmocka_unit_test(buffers_are_zeroed_aligned_and_bounded),
        cmocka_unit_test(bytes_go_there_and_back_in_order),
        cmocka_unit_test(what_an_operation_names_lies_in_the_exchange),
        cmocka_unit_test(a_graph_has_operations_alone),
        cmocka_unit_test(exchange_regions_come_and_go),
        cmocka_unit_test(marks_rise_and_stay_good),
        cmocka_unit_test(the_first_error_is_kept),
        cmocka_unit_test(a_late_error_is_found_by_sync),
        cmocka_unit_test(a_step_that_came_before_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
