/* Claims on the plan of a device's memory: what fits passes to the byte, what does not is refused with its numbers, and a
 * pool of --kv-memory=auto always fits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "node/device_plan.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

static struct diag diag;

/* A plan that takes exactly what is free passes; one byte more does not, whichever part has it. */
static void a_plan_fits_to_the_byte(void **state)
{
    (void)state;
    const struct device_plan fits = {.device = 3, .free_bytes = 100 * MIB, .total_bytes = 128 * MIB, .weights_bytes = 40 * MIB,
                                     .engine_bytes = 10 * MIB, .nccl_bytes = 20 * MIB, .kv_bytes = 30 * MIB};
    assert_false(failed(device_plan_check(&fits, &diag)));
    for (int part = 0; part < 4; part++) {
        struct device_plan plan = fits;
        uint64_t *const parts[] = {&plan.weights_bytes, &plan.engine_bytes, &plan.nccl_bytes, &plan.kv_bytes};
        (*parts[part])++;
        status_t st = device_plan_check(&plan, &diag);
        assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
        assert_int_equal(st.scope, SCOPE_NODE);
    }
}

/* The refusal names the device, each part, the sum, what there is, and the flags; --nccl-memory only where it has a part. */
static void the_refusal_has_the_numbers(void **state)
{
    (void)state;
    struct device_plan plan = {.device = 3, .free_bytes = 79 * GIB, .total_bytes = 80 * GIB, .weights_bytes = 15000 * MIB,
                               .engine_bytes = 900 * MIB, .nccl_bytes = 2048 * MIB, .kv_bytes = 70 * GIB};
    assert_int_equal(device_plan_check(&plan, &diag).code, ST_RESOURCE_EXHAUSTED);
    static const char *const words[] = {"--device=3", "weights (15000 MiB)", "engine (900 MiB)", "NCCL (2048 MiB)", "KV pool (71680 MiB)",
                                        "take 89628 MiB", "80896 of 81920 MiB are free", "--kv-memory", "--kv-memory=auto", "--step-tokens",
                                        "--nccl-memory"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (!strstr(diag.text, words[i])) { fail_msg("no \"%s\" in: %s", words[i], diag.text); }
    }
    plan.nccl_bytes = 0;
    assert_true(failed(device_plan_check(&plan, &diag)));
    assert_null(strstr(diag.text, "--nccl-memory"));
    plan = (struct device_plan){.free_bytes = 79 * GIB, .total_bytes = 80 * GIB, .weights_bytes = 90 * GIB}; /* auto found nothing left */
    assert_true(failed(device_plan_check(&plan, &diag)));
    assert_null(strstr(diag.text, "--kv-memory"));
    assert_non_null(strstr(diag.text, "are free; lower --step-tokens"));
}

/* Memory of NCCL's for less than one pair is refused whatever is free, with what one takes; for exactly one it is not. */
static void one_pair_is_the_least(void **state)
{
    (void)state;
    struct device_plan plan = {.free_bytes = 80 * GIB, .total_bytes = 80 * GIB, .nccl_bytes = 41 * MIB, .nccl_pair_bytes_min = 41 * MIB};
    assert_false(failed(device_plan_check(&plan, &diag)));
    plan.nccl_bytes--;
    status_t st = device_plan_check(&plan, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_non_null(strstr(diag.text, "--nccl-memory: 40 MiB"));
    assert_non_null(strstr(diag.text, "at least 41 MiB"));
    plan.nccl_pair_bytes_min++; /* 41 MiB would not do */
    assert_true(failed(device_plan_check(&plan, &diag)));
    assert_non_null(strstr(diag.text, "at least 42 MiB"));
}

/* Sums that wrap around do not fit. */
static void sums_do_not_wrap(void **state)
{
    (void)state;
    struct device_plan plan = {.free_bytes = 80 * GIB, .total_bytes = 80 * GIB, .weights_bytes = UINT64_MAX, .engine_bytes = 2};
    assert_true(failed(device_plan_check(&plan, &diag)));
    assert_true(device_plan_kv_auto(&plan) == 0);
    plan = (struct device_plan){.free_bytes = 80 * GIB, .total_bytes = 80 * GIB, .kv_bytes = UINT64_MAX, .nccl_bytes = 1};
    assert_true(failed(device_plan_check(&plan, &diag)));
}

/* auto is nine tenths of what the rest leaves, nothing where the rest leaves nothing, and always fits. */
static void auto_takes_a_share_of_what_is_left(void **state)
{
    (void)state;
    struct device_plan plan = {.free_bytes = 1000, .weights_bytes = 500, .engine_bytes = 200, .nccl_bytes = 100};
    assert_true(device_plan_kv_auto(&plan) == 180);
    plan.weights_bytes = 700;
    assert_true(device_plan_kv_auto(&plan) == 0);
    plan.weights_bytes = 701;
    assert_true(device_plan_kv_auto(&plan) == 0);
    const uint64_t seed = 20;
    struct rng rng = rng_init(seed);
    for (int i = 0; i < 10000; i++) {
        plan = (struct device_plan){.free_bytes = rng_next(&rng) >> (rng_next(&rng) % 64), .weights_bytes = rng_next(&rng) >> (rng_next(&rng) % 64),
                                    .engine_bytes = rng_next(&rng) >> (rng_next(&rng) % 64), .nccl_bytes = rng_next(&rng) >> (rng_next(&rng) % 64)};
        plan.kv_bytes = device_plan_kv_auto(&plan);
        if (plan.kv_bytes > 0 && failed(device_plan_check(&plan, &diag))) { fail_msg("seed %llu, plan %d: %s", (unsigned long long)seed, i, diag.text); }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plan_fits_to_the_byte),
        cmocka_unit_test(the_refusal_has_the_numbers),
        cmocka_unit_test(one_pair_is_the_least),
        cmocka_unit_test(sums_do_not_wrap),
        cmocka_unit_test(auto_takes_a_share_of_what_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
