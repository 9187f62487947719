/* The handle: which sets can be had, what it says about itself, its memory, and no allocation
 * after it is made. */
#include "tests/unit/kernels/kernels_testing.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An instruction set nobody knows is refused by name, with what there is instead. */
static void unknown_isa(void **state)
{
    (void)state;
    struct kernels *kernels = NULL;
    struct diag diag = {{0}};
    struct kernels_config config = {.isa = "sse9", .threads = 1};
    status_t st = kernels_create(&config, &kernels, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_null(kernels);
    assert_non_null(strstr(diag.text, "sse9"));
    assert_non_null(strstr(diag.text, "scalar"));
}

/* One that this machine lacks is refused as such, and named in the list if and only if it is had. */
static void known_isa_is_had_or_refused(void **state)
{
    (void)state;
    static const char *const known[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        char spaced[32], all[256];
        snprintf(spaced, sizeof(spaced), " %s ", known[i]);
        snprintf(all, sizeof(all), " %s ", kernels_isa_available());
        struct kernels *kernels = NULL;
        struct diag diag = {{0}};
        struct kernels_config config = {.isa = known[i], .threads = 1};
        status_t st = kernels_create(&config, &kernels, &diag);
        if (strstr(all, spaced) != NULL) {
            assert_int_equal(st.code, ST_OK);
            assert_string_equal(kernels_isa_name(kernels), known[i]);
        } else {
            assert_int_equal(st.code, st.code == ST_INVALID_ARGUMENT ? ST_INVALID_ARGUMENT : ST_FAILED_PRECONDITION);
            assert_non_null(strstr(diag.text, known[i]));
        }
        kernels_destroy(kernels);
    }
}

static void thread_count_out_of_range(void **state)
{
    (void)state;
    struct kernels *kernels = NULL;
    struct diag diag = {{0}};
    struct kernels_config config = {.isa = "auto", .threads = 0};
    assert_int_equal(kernels_create(&config, &kernels, &diag).code, ST_INVALID_ARGUMENT);
    config.threads = KERNELS_THREADS_MAX + 1;
    assert_int_equal(kernels_create(&config, &kernels, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "257"));
}

/* auto keeps activations f32 unless it is told that bf16 will do, and then takes the best there is. */
static void automatic_choice(void **state)
{
    (void)state;
    struct kernels *by_name = kernels_for("auto", 2), *by_null = kernels_for(NULL, 2);
    assert_string_equal(kernels_isa_name(by_name), kernels_isa_name(by_null));
    assert_false(isa_rounds_x(kernels_isa_name(by_name)));
    struct kernels_config config = {.isa = "auto", .threads = 1, .compute = KERNELS_COMPUTE_BF16};
    struct kernels *fast = NULL;
    struct diag diag = {{0}};
    assert_false(failed(kernels_create(&config, &fast, &diag)));
    assert_int_equal(strncmp(kernels_isa_available(), kernels_isa_name(fast), strlen(kernels_isa_name(fast))), 0);
    kernels_destroy(fast);
    assert_int_equal(kernels_threads(by_name), 2);
    kernels_destroy(by_name);
    kernels_destroy(by_null);
    kernels_destroy(NULL);
}

/* Sets whose bits may differ differ in name. */
static void names_tell_orders_apart(void **state)
{
    (void)state;
    struct isa_list isas = isa_list_all();
    for (uint32_t i = 0; i < isas.count; i++) {
        for (uint32_t j = 0; j < i; j++) {
            struct kernels *a = kernels_for(isas.names[i], 1), *b = kernels_for(isas.names[j], 1);
            bool both_fuse = isa_shares_order(isas.names[i]) && isa_shares_order(isas.names[j]);
            assert_int_equal(strcmp(kernels_set_name(a), kernels_set_name(b)) == 0, both_fuse);
            kernels_destroy(a);
            kernels_destroy(b);
        }
    }
}

static void buffers(void **state)
{
    (void)state;
    struct kernels *kernels = kernels_for("auto", 1);
    struct diag diag = {{0}};
    static const size_t sizes[] = {0, 1, 100, 4096, 70000, (2u << 20) - 1, 2u << 20, (5u << 20) + 12345};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        unsigned char *buffer = NULL;
        assert_int_equal(kernels_buffer_alloc(kernels, sizes[i], (void **)&buffer, &diag).code, ST_OK);
        assert_int_equal((uintptr_t)buffer % 64, 0);
        for (size_t at = 0; at < sizes[i]; at += 4093) { assert_int_equal(buffer[at], 0); }
        memset(buffer, 7, sizes[i]);
        kernels_buffer_free(kernels, buffer, sizes[i]);
    }
    void *none = NULL;
    assert_int_equal(kernels_buffer_alloc(kernels, SIZE_MAX - 4096, &none, &diag).code, ST_RESOURCE_EXHAUSTED);
    assert_null(none);
    kernels_buffer_free(kernels, NULL, 0);
    assert_true(kernels_uses_host_memory(kernels));
    float from[3] = {1, 2, 3}, to[3] = {0};
    kernels_upload(kernels, to, from, sizeof(from));
    assert_memory_equal(from, to, sizeof(from));
    assert_false(failed(kernels_sync(kernels)));
    kernels_destroy(kernels);
}

/* On the CPU an exchange is plain memory, everything has been done when it returns, and nothing is ever replayed. */
static void nothing_is_queued(void **state)
{
    (void)state;
    struct kernels *kernels = kernels_for("auto", 1);
    struct diag diag = {{0}};
    unsigned char *exchange = NULL, *pinned = NULL;
    assert_false(failed(kernels_exchange_alloc(kernels, 1000, (void **)&exchange, &diag)));
    assert_false(failed(kernels_pinned_alloc(kernels, 1000, (void **)&pinned, &diag)));
    assert_int_equal((uintptr_t)exchange % 64, 0);
    assert_int_equal((uintptr_t)pinned % 64, 0);
    kernels_exchange_send(kernels, exchange, 1000);
    assert_int_equal(kernels_mark(kernels), 0);
    assert_false(failed(kernels_wait(kernels, kernels_mark(kernels))));
    assert_false(kernels_has_graphs(kernels));
    assert_false(kernels_can_sample(kernels));
    for (int i = 0; i < 2; i++) {
        assert_true(kernels_graph_begin(kernels, 7));
        kernels_graph_end(kernels);
    }
    assert_int_equal(kernels_activation_dtype(kernels), DTYPE_F32);
    assert_int_equal(kernels_weight_order(kernels), KERNELS_ORDER_PANELS);
    assert_int_equal(kernels_kv_order(kernels), KV_ORDER_TILES);
    kernels_exchange_free(kernels, exchange, 1000);
    kernels_pinned_free(kernels, pinned, 1000);
    kernels_exchange_free(kernels, NULL, 0);
    kernels_pinned_free(kernels, NULL, 0);
    kernels_destroy(kernels);
}

/* A block is copied whole, over what was there, and its neighbours stay. */
static void copy_of_a_block(void **state)
{
    (void)state;
    struct kernels *kernels = kernels_for("auto", 1);
    struct kernels_copy_block copy = {.layout = {16, 2, 1, 8, DTYPE_F32, KV_ORDER_TILES}, .block_count = 4, .from = 3, .to = 1};
    size_t bytes = kv_layout_block_bytes(&copy.layout);
    unsigned char *pool = malloc(4 * bytes);
    assert_non_null(pool);
    for (size_t i = 0; i < 4 * bytes; i++) { pool[i] = (unsigned char)(i / bytes * 50 + i % 47); }
    copy.pool = pool;
    kernels_copy_block(kernels, &copy);
    for (size_t i = 0; i < 4 * bytes; i++) {
        size_t from = i / bytes == 1 ? i + 2 * bytes : i;
        assert_int_equal(pool[i], (unsigned char)(from / bytes * 50 + from % 47));
    }
    free(pool);
    kernels_destroy(kernels);
}

/* A backend that is not there, or does not compute so, is refused by name. */
static void unknown_backend(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct kernels *kernels = NULL;
    struct kernels_config config = {.backend = "abacus", .threads = 1};
    assert_int_equal(kernels_create(&config, &kernels, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "abacus"));
    config = (struct kernels_config){.backend = "cpu", .threads = 1, .activations = DTYPE_BF16};
    assert_int_equal(kernels_create(&config, &kernels, &diag).code, ST_INVALID_ARGUMENT);
    config = (struct kernels_config){.backend = "cuda", .threads = 1, .activations = DTYPE_INT8};
    assert_int_equal(kernels_create(&config, &kernels, &diag).code, ST_INVALID_ARGUMENT);
    assert_null(kernels);
}

/* No operation takes memory: the heap is as it was after each of them. */
static void no_allocation_after_create(void **state)
{
    (void)state;
    struct kernels *kernels = kernels_for("auto", 3);
    enum { ROWS = 20, DIM = 64 };
    static _Alignas(64) float weight[DIM * DIM];
    static float x[ROWS * DIM], out[ROWS * DIM], pool[4 * 2 * 16 * DIM];
    uint32_t table[4] = {3, 1, 0, 2};
    struct kernels_kv kv = {.pool = pool, .layout = {16, 1, 1, DIM, DTYPE_F32, KV_ORDER_TILES}, .block_count = 4};
    struct kernels_kv_slot slots[ROWS];
    for (uint32_t i = 0; i < ROWS; i++) { slots[i] = (struct kernels_kv_slot){table[i / 16], i % 16}; }
    struct kernels_attention_sequence sequence = {0, ROWS, 0, table};
    struct mallinfo2 before = mallinfo2();
    for (int turn = 0; turn < 50; turn++) {
        struct kernels_matrix matrix = {.format = KERNELS_WEIGHT_F32, .n_out = DIM, .n_in = DIM, .data = weight};
        struct kernels_gemm g = {.rows = ROWS, .weight = &matrix, .x = x, .x_stride = DIM, .out = out, .out_stride = DIM};
        kernels_gemm(kernels, &g, 1);
        struct kernels_kv_write w = {.kv = kv, .rows = ROWS, .k = x, .k_stride = DIM, .v = x, .v_stride = DIM, .slots = slots};
        kernels_kv_write(kernels, &w);
        struct kernels_attention a = {.kv = kv, .q_heads = 1, .scale = 1, .q = x, .q_stride = DIM, .out = out, .out_stride = DIM,
                                      .sequences = &sequence, .sequence_count = 1};
        kernels_attention(kernels, &a);
        kernels_silu_mul(kernels, &(struct kernels_silu_mul){.rows = ROWS, .dim = DIM, .gate = x, .gate_stride = DIM, .up = x,
                                                             .up_stride = DIM, .out = out, .out_stride = DIM});
    }
    struct mallinfo2 after = mallinfo2();
    assert_int_equal(before.uordblks, after.uordblks);
    assert_int_equal(before.hblkhd, after.hblkhd);
    kernels_destroy(kernels);
}

/* Nothing to do is nothing done, on null pointers too. */
static void zero_rows(void **state)
{
    (void)state;
    struct kernels *kernels = kernels_for("auto", 2);
    struct kernels_matrix matrix = {.n_out = 3, .n_in = 5};
    struct kernels_gemm g = {.weight = &matrix, .x_stride = 5, .out_stride = 3};
    kernels_gemm(kernels, &g, 1);
    kernels_gemm(kernels, NULL, 0);
    kernels_mul(kernels, &(struct kernels_mul){.dim = 5});
    kernels_gather_rows(kernels, &(struct kernels_gather_rows){.dim = 5});
    kernels_exchange_send(kernels, NULL, 0);
    struct kernels_attention a = {.kv = {.layout = {16, 1, 1, 8, DTYPE_F32, KV_ORDER_TILES}}, .q_heads = 1};
    kernels_attention(kernels, &a);
    kernels_destroy(kernels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_isa),
        cmocka_unit_test(known_isa_is_had_or_refused),
        cmocka_unit_test(thread_count_out_of_range),
        cmocka_unit_test(automatic_choice),
        cmocka_unit_test(names_tell_orders_apart),
        cmocka_unit_test(buffers),
        cmocka_unit_test(nothing_is_queued),
        cmocka_unit_test(copy_of_a_block),
        cmocka_unit_test(unknown_backend),
        cmocka_unit_test(no_allocation_after_create),
        cmocka_unit_test(zero_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
