/* The check of the Hopper kernel of attention: it passes a kernel that computes right, tells one that does not, and the
 * backend then goes without it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/cuda_attention_check.h"
#include "tests/unit/kernels_cuda/backend_testing.h"

/* A device whose Hopper kernel is given other arguments than those asked for. */
enum flaw { FLAW_NONE, FLAW_SCALE, FLAW_WINDOW, FLAW_NOT_RUN, FLAW_REFUSED };
static const struct cuda_driver *inner;
static enum flaw flaw;
static uint32_t hopper_launches;

static bool is_hopper(enum cuda_kernel kernel)
{
    return kernel == CUDA_KERNEL_attention_sm90_bf16_64 || kernel == CUDA_KERNEL_attention_sm90_bf16_128 ||
           kernel == CUDA_KERNEL_attention_sm90_f16_64 || kernel == CUDA_KERNEL_attention_sm90_f16_128;
}

static status_t flawed_launch(const struct cuda_driver *self, enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args,
                              size_t args_bytes, struct cuda_stream *stream, struct diag *diag)
{
    (void)self;
    if (!is_hopper(kernel)) { return inner->launch(inner, kernel, shape, args, args_bytes, stream, diag); }
    struct cuda_attention_args changed;
    memcpy(&changed, args, sizeof(changed));
    hopper_launches++;
    if (flaw == FLAW_SCALE) { changed.scale_log2 *= 1.5f; }
    if (flaw == FLAW_WINDOW) { changed.window = changed.window == 0 ? 30 : changed.window + 1; }
    if (flaw == FLAW_NOT_RUN) { return STATUS_OK; }
    if (flaw == FLAW_REFUSED) {
        diag_set(diag, "no code for it");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    return inner->launch(inner, kernel, shape, &changed, sizeof(changed), stream, diag);
}

static void flawed_close(const struct cuda_driver *self)
{
    free((void *)(uintptr_t)self);
    inner->close(inner);
}

static const struct cuda_driver *flawed_driver(enum flaw which, uint32_t arch)
{
    struct cuda_driver *table = malloc(sizeof(*table));
    assert_non_null(table);
    inner = emulated_device_create(&(struct emulated_options){.arch = arch, .memory_bytes = PAIR_MEMORY_BYTES});
    flaw = which;
    hopper_launches = 0;
    *table = *inner;
    table->launch = flawed_launch;
    table->close = flawed_close;
    return table;
}

static status_t check(enum flaw which, uint32_t arch, bool deterministic, enum dtype dtype, struct diag *diag)
{
    const struct cuda_driver *driver = flawed_driver(which, arch);
    struct cuda_stream *stream = NULL;
    struct cuda_attention_device device = {.arch = arch, .sm_count = driver->info.sm_count, .deterministic = deterministic,
                                           .shared_bytes_max = driver->info.shared_bytes_max};
    assert_false(failed(driver->stream_create(driver, false, &stream, diag)));
    status_t st = cuda_attention_check(driver, stream, &device, dtype, diag);
    driver->stream_destroy(driver, stream);
    driver->close(driver); /* ends the process if anything was left */
    return st;
}

/* Right, wrong in the least way, or not there at all. */
static void a_wrong_kernel_is_told_from_a_right_one(void **state)
{
    (void)state;
    for (int which = 0; which < 2; which++) {
        const enum dtype dtype = which == 0 ? DTYPE_BF16 : DTYPE_F16;
        struct diag diag = {{0}};
        status_t st = check(FLAW_NONE, 90, false, dtype, &diag);
        if (failed(st)) { fail_msg("%s", diag.text); }
        assert_int_equal(hopper_launches, 2);
        for (int f = FLAW_SCALE; f <= FLAW_REFUSED; f++) {
            assert_int_equal(check((enum flaw)f, 90, false, dtype, &diag).code, ST_FAILED_PRECONDITION);
            printf("%s\n", diag.text);
            assert_int_equal(hopper_launches, 1); /* the first difference is enough */
        }
    }
}

/* Where the kernel is none for the chip or the mode, nothing is compared. */
static void other_chips_and_modes_are_not_checked(void **state)
{
    (void)state;
    struct diag diag;
    assert_int_equal(check(FLAW_NONE, 80, false, DTYPE_BF16, &diag).code, ST_UNIMPLEMENTED);
    assert_int_equal(check(FLAW_NONE, 90, true, DTYPE_BF16, &diag).code, ST_UNIMPLEMENTED);
    assert_int_equal(hopper_launches, 0);
}

/* The backend asks once, at create, and a device with a wrong kernel is one without. */
static void a_backend_goes_without_a_wrong_kernel(void **state)
{
    (void)state;
    for (int f = FLAW_NONE; f <= FLAW_WINDOW; f++) {
        const struct cuda_driver *driver = flawed_driver((enum flaw)f, 90);
        struct kernels *kernels = NULL;
        struct diag diag = {{0}};
        void *region = NULL, *q = NULL, *pool = NULL;
        struct kernels_config config = {.threads = 1, .activations = DTYPE_BF16};
        if (failed(cuda_backend_create_on(driver, &config, &kernels, &diag))) { fail_msg("%s", diag.text); }
        uint32_t at_create = hopper_launches;
        assert_true(at_create > 0);
        assert_false(failed(kernels_exchange_alloc(kernels, 4096, &region, &diag)));
        assert_false(failed(kernels_buffer_alloc(kernels, 65536, &q, &diag)));
        assert_false(failed(kernels_buffer_alloc(kernels, 65536, &pool, &diag)));
        struct kernels_attention_sequence *sequence = region;
        uint32_t *table = (uint32_t *)region + 64;
        *sequence = (struct kernels_attention_sequence){.row_count = 9, .blocks = table};
        kernels_exchange_send(kernels, region, 4096);
        kernels_attention(kernels, &(struct kernels_attention){
                                       .kv = {.pool = pool, .block_count = 1, .layout = {.block_tokens = 16, .layer_count = 1, .kv_heads = 1, .head_dim = 64,
                                                                                          .dtype = DTYPE_BF16, .order = KV_ORDER_ROWS}},
                                       .q_heads = 2, .scale = 0.1f, .dtype = DTYPE_BF16, .q = q, .q_stride = 128, .out = (uint8_t *)q + 32768,
                                       .out_stride = 128, .sequences = sequence, .sequence_count = 1, .rows = 9, .row_count_max = 9, .context_max = 16});
        assert_false(failed(kernels_sync(kernels)));
        assert_int_equal(hopper_launches, at_create + (f == FLAW_NONE ? 1 : 0));
        kernels_buffer_free(kernels, q, 65536);
        kernels_buffer_free(kernels, pool, 65536);
        kernels_exchange_free(kernels, region, 4096);
        kernels_destroy(kernels);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wrong_kernel_is_told_from_a_right_one),
        cmocka_unit_test(other_chips_and_modes_are_not_checked),
        cmocka_unit_test(a_backend_goes_without_a_wrong_kernel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
