/* Claims on a node's flags, and on the plan of its memory: what does not go together or does not
 * fit is refused before anything starts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "node/memory_plan.h"
#include "node/node_config.h"

static struct node_config config;
static struct diag diag;

static status_t parse(const char *const *words)
{
    static char copies[16][128];
    char *argv[17] = {copies[0]};
    int argc = 1;
    bool wants_help;
    for (; words[argc - 1]; argc++) {
        snprintf(copies[argc], sizeof copies[argc], "%s", words[argc - 1]);
        argv[argc] = copies[argc];
    }
    memset(&diag, 0, sizeof diag);
    TRY(flags_parse(node_flags, node_flag_count, &config, argc, argv, NULL, NULL, &wants_help, &diag));
    return node_config_check(&config, &diag);
}

#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL})

/* The defaults, with a model, are a config that holds. */
static void the_defaults_hold(void **state)
{
    (void)state;
    status_t st = PARSE("--model=dir");
    if (failed(st)) { fail_msg("%s", diag.text); }
    assert_string_equal(config.model, "dir");
    assert_true(config.kv_memory == UINT64_C(256) << 20);
    assert_int_equal(config.block_tokens, 16);
    assert_true(config.lease_ns >= UINT64_C(1000000000)); /* shorter than a pause of the network: no */
    assert_true(config.chunk_tokens <= config.step_tokens);
}

/* No flag is listed twice, each has a help text, and each default is within its own range: the
 * table's own mistakes would show as a user's. */
static void the_table_is_sound(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < node_flag_count; i++) {
        assert_non_null(node_flags[i].help);
        assert_true(node_flags[i].offset < sizeof config);
        for (uint32_t k = 0; k < i; k++) {
            assert_string_not_equal(node_flags[i].name, node_flags[k].name);
            assert_int_not_equal(node_flags[i].offset, node_flags[k].offset);
        }
    }
}

/* What does not go together is refused by the names of the flags. */
static void what_does_not_fit_together_is_refused(void **state)
{
    (void)state;
    static const struct { const char *words[5]; const char *reason; } cases[] = {
        {{NULL}, "--model: needed"},
        {{"--model=d", "--kv-block-tokens=24", NULL}, "16 or 32"},
        {{"--model=d", "--kv-block-tokens=64", NULL}, "--kv-block-tokens=64"},
        {{"--model=d", "--batch-max=64", "--step-tokens=32", NULL}, "--step-tokens"},
        {{"--model=d", "--tls-cert=a.pem", NULL}, "go together"},
        {{"--model=d", "--tls-cert=a", "--tls-key=b", NULL}, "--tls-ca"},
        {{"--model=d", "--threads=257", NULL}, "from 0 to 256"},
        {{"--model=d", "--prefix-cache=maybe", NULL}, "on or off"},
        {{"--model=d", "--preempt=never", NULL}, "auto, swap or recompute"},
        {{"--model=d", "--kv-disk=1GiB", NULL}, "--kv-disk-path"},
        {{"--model=d", "--kv-disk-path=/tmp/kv", NULL}, "--kv-disk"},
        {{"--model=d", "--kv-host-memory=1GiB", "--prefix-cache=off", NULL}, "--prefix-cache=on"},
        {{"--model=d", "--preempt=swap", NULL}, "--preempt=swap needs --kv-host-memory or --kv-disk"},
        {{"--model=d", "--isa=quantum", NULL}, "--isa=quantum: takes auto, amx, avx512bf16, avx512, avx2, scalar or ref"},
        {{"--model=d", "--isa=", NULL}, "--isa"},
        {{"--model=d", "--compute=int8", NULL}, "--compute=int8: takes auto, f32 or bf16"},
        {{"--model=d", "--weights=f16", NULL}, "--weights=f16: takes auto, bf16, int8 or int4"},
        {{"--model=d", "--kv-dtype=fp4", NULL}, "--kv-dtype=fp4: takes auto, f32, bf16, f16, int8 or fp8"},
        {{"--model=d", "--compute=bf16", "--isa=avx512", NULL}, "--compute=bf16 needs --isa=auto, avx512bf16 or amx: the kernels of --isa=avx512 "},
        {{"--model=d", "--compute=bf16", "--isa=ref", NULL}, "--isa=ref"},
        {{"--model=d", "--compute=f32", "--isa=avx512bf16", NULL}, "--compute=f32 needs --isa=auto, avx512, avx2, scalar or ref: the kernels of --isa=avx512bf16 "},
        {{"--model=d", "--itl-stretch=0.5", NULL}, "1 to 1000"},
        {{"--model=d", "--itl-stretch=nan", NULL}, "--itl-stretch"},
        {{"--model=d", "--lease=0s", NULL}, "from 1ms to 3600s"},
        {{"--model=d", "--cables=tcp,tcp", NULL}, "each at most once"},
        {{"--model=d", "--cables=shm,,tcp", NULL}, "--cables=shm,,tcp: takes auto"},
        {{"--model=d", "--cables=tc", NULL}, "--cables=tc: takes auto"},
        {{"--model=d", "--cables=ucx", NULL}, "--ucx=off"},
        {{"--model=d", "--cables=tcp", "--ucx=rdma", NULL}, "does not name"},
        {{"--model=d", "--ucx=tcp", NULL}, "off, rdma or trust-network"},
        {{"--model=d", "--cables=nccl,tcp", NULL}, "--cables names nccl and --nccl=off: --nccl=on turns it on"},
        {{"--model=d", "--cables=nccl,ucx", "--ucx=rdma", NULL}, "--nccl=off"},
        {{"--model=d", "--cables=nccl,nccl", NULL}, "of shm, nccl, ucx and tcp each at most once"},
        {{"--model=d", "--backend=cuda", "--nccl=on", "--cables=shm,tcp"}, "--nccl turns on a cable that --cables does not name"},
        {{"--model=d", "--nccl=on", NULL}, "--nccl=on needs --backend=cuda"},
        {{"--model=d", "--nccl=on", "--backend=cpu", NULL}, "--nccl=on needs --backend=cuda"},
        {{"--model=d", "--backend=cuda", "--nccl=auto", NULL}, "--nccl: takes off or on"},
        {{"--model=d", "--backend=cuda", "--nccl=", NULL}, "--nccl: takes off or on"},
        {{"--model=d", "--nccl-channels=0", NULL}, "--nccl-channels=0: takes a whole number from 1 to 32"},
        {{"--model=d", "--nccl-channels=33", NULL}, "from 1 to 32"},
        {{"--model=d", "--nccl-pairs-max=1025", NULL}, "from 0 to 1024"},
        {{"--model=d", "--nccl-memory=1MiB", NULL}, "from 64MiB to 1024GiB"},
        {{"--model=d", "--nccl-init-timeout=1ms", NULL}, "from 100ms to 600s"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        status_t st = parse(cases[i].words);
        assert_int_equal(st.code, ST_INVALID_ARGUMENT);
        if (!strstr(diag.text, cases[i].reason)) { fail_msg("case %zu: %s", i, diag.text); }
    }
    assert_false(failed(PARSE("--model=d", "--ucx=rdma")));
    assert_false(failed(PARSE("--model=d", "--ucx=trust-network", "--cables=ucx,tcp", "--ucx-library=/x")));
    assert_false(failed(PARSE("--model=d", "--cables=tcp,shm")));
    assert_false(failed(PARSE("--model=d", "--preempt=swap", "--kv-host-memory=1MiB")));
    assert_false(failed(PARSE("--model=d", "--preempt=swap", "--kv-disk=1MiB", "--kv-disk-path=f")));
    assert_false(failed(PARSE("--model=d", "--isa=avx512bf16", "--compute=bf16", "--weights=int4", "--kv-dtype=fp8")));
    assert_false(failed(PARSE("--model=d", "--isa=auto", "--compute=bf16")));
    assert_false(failed(PARSE("--model=d", "--isa=scalar", "--compute=auto")));
    assert_false(failed(PARSE("--model=d", "--isa=avx2", "--compute=f32")));
    assert_false(failed(PARSE("--model=d", "--kv-block-tokens=32", "--tls-cert=a", "--tls-key=b", "--tls-ca=c")));
}

/* The nccl cable is off until it is turned on; it goes with any cables that name it; its numbers are what the flags say. */
static void nccl_is_turned_on_by_its_flag(void **state)
{
    (void)state;
    assert_false(failed(PARSE("--model=d", "--backend=cuda")));
    assert_false(node_config_wants_nccl(&config));
    assert_int_equal(config.nccl_channels, 4);
    assert_int_equal(config.nccl_pairs_max, 0);
    assert_true(config.nccl_memory == UINT64_C(2) << 30);
    assert_true(config.nccl_init_timeout_ns == UINT64_C(15000000000));
    assert_false(failed(PARSE("--model=d", "--backend=cuda", "--nccl=on")));
    assert_true(node_config_wants_nccl(&config));
    assert_false(node_config_converts(&config));
    assert_false(failed(PARSE("--model=d", "--backend=cuda", "--nccl=on", "--kv-convert=on")));
    assert_true(node_config_converts(&config));
    static const char *const orders[] = {"--cables=auto", "--cables=nccl", "--cables=nccl,tcp", "--cables=shm,nccl,tcp", "--cables=tcp,nccl"};
    for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++) {
        status_t st = PARSE("--model=d", "--backend=cuda", "--nccl=on", orders[i]);
        if (failed(st)) { fail_msg("%s: %s", orders[i], diag.text); }
    }
    assert_false(failed(PARSE("--model=d", "--backend=cuda", "--nccl=on", "--ucx=rdma", "--cables=shm,nccl,ucx,tcp")));
    assert_false(failed(PARSE("--model=d", "--backend=cuda", "--nccl=on", "--nccl-library=/x", "--nccl-channels=32", "--nccl-pairs-max=1",
                              "--nccl-memory=64MiB", "--nccl-init-timeout=600s")));
    assert_string_equal(config.nccl_library, "/x");
    assert_int_equal(config.nccl_channels, 32);
    assert_int_equal(config.nccl_pairs_max, 1);
    config.nccl = NULL; /* as a configuration that was made without the field */
    assert_false(failed(node_config_check(&config, &diag)));
    assert_false(node_config_wants_nccl(&config));
}

/* A plan that fits passes; one that does not names its parts, the sum and what there is; sums
 * that wrap around do not fit either. */
static void memory_is_planned(void **state)
{
    (void)state;
    assert_true(memory_plan_available() > 0);
    struct memory_plan plan = {.kv_bytes = 1 << 20, .engine_bytes = 1 << 20};
    assert_false(failed(memory_plan_check(&plan, &diag)));
    plan.weights_mapped_bytes = UINT64_MAX; /* mapped files are the page cache's */
    assert_false(failed(memory_plan_check(&plan, &diag)));
    plan = (struct memory_plan){.kv_bytes = UINT64_C(1) << 60, .engine_bytes = UINT64_C(3) << 20, .weights_owned_bytes = 7u << 20};
    status_t st = memory_plan_check(&plan, &diag);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_non_null(strstr(diag.text, "(1099511627776 MiB)"));
    assert_non_null(strstr(diag.text, "(3 MiB)"));
    assert_non_null(strstr(diag.text, "take 1099511627779 MiB"));
    assert_non_null(strstr(diag.text, "7 MiB packed"));
    assert_non_null(strstr(diag.text, "--kv-memory"));
    plan = (struct memory_plan){.kv_bytes = UINT64_MAX, .engine_bytes = 2};
    assert_true(failed(memory_plan_check(&plan, &diag)));
}

/* What a GPU would not heed, and what only a GPU has, is refused with both flags named; the rest holds. */
static void backends_refuse_what_is_not_theirs(void **state)
{
    (void)state;
    static const struct { const char *flag, *names[2]; } wrong[] = {
        {"--isa=avx2", {"--isa", "--backend=cpu"}},
        {"--isa=ref", {"--isa", "--backend=cpu"}},
        {"--compute=f32", {"--compute", "--backend=cpu"}},
        {"--compute=bf16", {"--compute", "--backend=cpu"}},
        {"--weights=int8", {"--weights=int8", "--backend=cpu"}},
        {"--weights=int4", {"--weights=int4", "--backend=cpu"}},
        {"--pack-cache=off", {"--pack-cache", "--backend=cpu"}},
        {"--pack-cache=/tmp", {"--pack-cache", "--backend=cpu"}},
    };
    assert_int_equal(PARSE("--model=dir", "--kv-memory=auto").code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "--kv-memory=auto needs --backend=cuda"));
    assert_int_equal(PARSE("--model=dir", "--backend=cuda", "--kv-memory=auto").code, ST_OK);
    assert_true(config.kv_memory == FLAG_AUTO);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        status_t st = PARSE("--model=dir", "--backend=cuda", wrong[i].flag);
        assert_int_equal(st.code, ST_INVALID_ARGUMENT);
        for (int k = 0; k < 2; k++) {
            if (!strstr(diag.text, wrong[i].names[k])) { fail_msg("%s: %s", wrong[i].flag, diag.text); }
        }
    }
    assert_int_equal(PARSE("--model=dir", "--backend=gpu").code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "--backend=gpu: takes cpu or cuda"));
    assert_int_equal(PARSE("--model=dir", "--device=1").code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "--device needs --backend=cuda"));
    assert_int_equal(PARSE("--model=dir", "--backend=cuda", "--device=1024").code, ST_INVALID_ARGUMENT);

    static const char *const kv_dtypes[] = {"auto", "f32", "bf16", "f16", "int8", "fp8"};
    for (size_t i = 0; i < sizeof kv_dtypes / sizeof kv_dtypes[0]; i++) {
        char flag[32];
        snprintf(flag, sizeof flag, "--kv-dtype=%s", kv_dtypes[i]);
        status_t st = PARSE("--model=dir", "--backend=cuda", "--device=7", "--deterministic", "--weights=bf16", flag);
        if (failed(st)) { fail_msg("%s: %s", flag, diag.text); }
    }
    assert_int_equal(config.device, 7);
    assert_true(config.deterministic);
    assert_int_equal(PARSE("--model=dir", "--deterministic").code, ST_OK); /* as a CPU always is */
    assert_int_equal(PARSE("--model=dir", "--backend=cpu", "--isa=avx2").code, ST_OK);
}

/* A configuration that was made without these fields is one of the CPU. */
static void no_backend_is_the_cpu(void **state)
{
    (void)state;
    assert_int_equal(PARSE("--model=dir").code, ST_OK);
    assert_string_equal(config.backend, "cpu");
    assert_false(config.deterministic);
    config.backend = NULL;
    assert_int_equal(node_config_check(&config, &diag).code, ST_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(backends_refuse_what_is_not_theirs), cmocka_unit_test(no_backend_is_the_cpu),
        cmocka_unit_test(the_defaults_hold),
        cmocka_unit_test(the_table_is_sound),
        cmocka_unit_test(what_does_not_fit_together_is_refused),
        cmocka_unit_test(nccl_is_turned_on_by_its_flag),
        cmocka_unit_test(memory_is_planned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
