/* The emulator computes what the PTX manual says, and a kernel that breaks a rule is found out. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/dtype.h"
#include "tests/unit/kernels_cuda/emu_test_kernels.h"

#define SEEDS 40u

static uint64_t random_word(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 32;
}

static bool launch(const struct emu_kernel *kernel, uint32_t blocks, uint32_t threads, uint32_t shared, const struct probe_args *args,
                   struct emu_fault *ret_fault)
{
    const struct cuda_launch shape = {.grid = {blocks, 1, 1}, .block = {threads, 1, 1}, .shared_bytes = shared};
    return emu_launch_kernel(kernel, &shape, args, sizeof(*args), ret_fault);
}

static void run(const struct emu_kernel *kernel, uint32_t blocks, uint32_t threads, uint32_t shared, const struct probe_args *args)
{
    struct emu_fault fault = {{0}};
    if (!launch(kernel, blocks, threads, shared, args, &fault)) { fail_msg("%s", fault.text); }
}

/* The launch fails, and its fault says all of `words` (separated by '|'). */
static void assert_fault(const struct emu_kernel *kernel, uint32_t threads, uint32_t shared, const struct probe_args *args, const char *words)
{
    struct emu_fault fault = {{0}};
    char copy[256];
    if (launch(kernel, 1, threads, shared, args, &fault)) { fail_msg("mode %u of %s was let pass", args->mode, kernel->name); }
    (void)snprintf(copy, sizeof(copy), "%s", words);
    for (char *rest = copy, *word; (word = strsep(&rest, "|")) != NULL;) {
        if (strstr(fault.text, word) == NULL) { fail_msg("\"%s\" does not say \"%s\"", fault.text, word); }
    }
}

/* A kernel that may start while the launch before it runs must wait for it, all of its threads, before it touches memory. */
static void an_early_kernel_waits(void **state)
{
    (void)state;
    _Alignas(16) uint32_t in[4] = {1, 2, 3, 4}, out[4] = {0};
    struct probe_args args = {.in = in, .out = out};
    run(&probe_early, 2, 64, 64 * 16, &args);
    assert_memory_equal(in, out, sizeof(in));
    args.mode = 1;
    assert_fault(&probe_early, 64, 64 * 16, &args, "touches memory before launch_wait()");
    args.mode = 2;
    assert_fault(&probe_early, 64, 64 * 16, &args, "thread 40|leaves the kernel|without launch_wait()");
}

/* ---- order ---------------------------------------------------------------------------------- */

/* Every thread of every block runs once, and sees its own numbers. */
static void every_thread_runs_once(void **state)
{
    (void)state;
    for (uint32_t seed = 0; seed < 4; seed++) {
        emu_seed(seed);
        uint32_t *out = calloc(7 * 5 * 3 * 96, sizeof(*out));
        assert_non_null(out);
        const struct cuda_launch shape = {.grid = {7, 5, 3}, .block = {96, 1, 1}};
        const struct probe_args args = {.out = out};
        struct emu_fault fault;
        assert_true(emu_launch_kernel(&probe_visit, &shape, &args, sizeof(args), &fault));
        for (uint32_t i = 0; i < 7 * 5 * 3 * 96; i++) { assert_int_equal(out[i], 1); }
        free(out);
    }
}

/* One seed is one order; another seed is another order, of blocks and of warps. */
static void a_seed_is_an_order(void **state)
{
    (void)state;
    static uint32_t out[3][1024];
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t next = 0;
        const struct probe_args args = {.out = out[i], .sum = &next};
        emu_seed(i == 2 ? 8 : 7);
        run(&probe_order, 8, 128, 0, &args);
        assert_int_equal(next, 1024);
    }
    assert_memory_equal(out[0], out[1], sizeof(out[0]));
    assert_memory_not_equal(out[0], out[2], sizeof(out[0]));
    uint32_t rising = 0;
    for (uint32_t i = 1; i < 1024; i++) { rising += out[0][i] == out[0][i - 1] + 1; }
    assert_true(rising < 1000); /* not simply the order of their numbers */
}

/* A kernel that misses a barrier is wrong for some seed, the same kernel with it for none. */
static void missing_sync_shows(const struct emu_kernel *kernel, uint32_t turned_among)
{
    uint32_t wrong[2] = {0, 0};
    for (uint32_t mode = 0; mode < 2; mode++) {
        for (uint32_t seed = 0; seed < SEEDS; seed++) {
            uint32_t in[256], out[256];
            for (uint32_t i = 0; i < 256; i++) { in[i] = i * 31 + seed; }
            const struct probe_args args = {.mode = mode, .in = in, .out = out};
            emu_seed(seed);
            run(kernel, 1, 256, sizeof(in), &args);
            bool right = true;
            for (uint32_t i = 0; i < 256; i++) {
                right = right && out[i] == in[i / turned_among * turned_among + turned_among - 1 - i % turned_among];
            }
            wrong[mode] += !right;
        }
    }
    assert_int_equal(wrong[0], 0);
    assert_true(wrong[1] > SEEDS / 2);
}

static void a_missing_block_sync_shows(void **state) { (void)state; missing_sync_shows(&probe_turn, 256); }
static void a_missing_warp_sync_shows(void **state) { (void)state; missing_sync_shows(&probe_lanes, 32); }

/* A meeting that not all come to is named, with the thread and where the others are. */
static void broken_meetings_are_reported(void **state)
{
    (void)state;
    /* Who comes first, and is reported, follows from the seed; what is said of the meeting does not. */
    static const char *const said[] = {[1] = "block_sync, line",  [2] = "block_sync, line", [3] = "a shuffle, line",
                                       [4] = "a shuffle|a vote",  [5] = "a shuffle|block_sync", [6] = "mma_bf16, line",
                                       [7] = "named_sync, line",  [8] = "block_sync, line"};
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        emu_seed(seed);
        for (uint32_t mode = 1; mode <= 8; mode++) {
            const struct probe_args args = {.mode = mode};
            assert_fault(&probe_meet, 96, 0, &args, "probe_meet: block (0, 0, 0), thread ");
            assert_fault(&probe_meet, 96, 0, &args, said[mode]);
        }
    }
    uint32_t word = 0; /* after a fault the next kernel runs as if nothing had been */
    const struct probe_args args = {.out = &word};
    run(&probe_wait, 1, 96, 0, &args);
    assert_int_equal(word, 3);
}

/* Halves of a block meet at barriers of their own. */
static void named_barriers_join_whole_warps(void **state)
{
    (void)state;
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        uint32_t out[128];
        const struct probe_args args = {.out = out};
        const uint32_t half = 64;
        emu_seed(seed);
        struct emu_fault fault = {{0}};
        /* The first half waits for a third meeting that the second never joins: it is complete by itself. */
        if (!launch(&probe_named, 1, 128, 512, &args, &fault)) { fail_msg("%s", fault.text); }
        for (uint32_t i = 0; i < 128; i++) { assert_int_equal(out[i], i / half * half + half - 1 - i % half); }
    }
}

/* A loop that waits for another thread lets it run; one that waits for nobody ends in a fault. */
static void waiting_loops_end(void **state)
{
    (void)state;
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        uint32_t word = 0;
        const struct probe_args args = {.out = &word};
        emu_seed(seed);
        run(&probe_wait, 1, 128, 0, &args);
        assert_int_equal(word, 3);
    }
    uint32_t word = 0;
    const struct probe_args args = {.mode = 1, .out = &word};
    assert_fault(&probe_wait, 128, 0, &args, "waits in a loop");
}

/* ---- a warp's operations -------------------------------------------------------------------- */

static void shuffles_and_votes(void **state)
{
    (void)state;
    uint32_t out[7][32];
    const struct probe_args args = {.out = out[0]};
    emu_seed(3);
    run(&probe_shuffle, 1, 32, 0, &args);
    for (uint32_t lane = 0; lane < 32; lane++) {
        assert_int_equal(out[0][lane], lane ^ 5);
        assert_int_equal(out[1][lane], 7);
        assert_int_equal(out[2][lane], lane < 3 ? lane : lane - 3);
        assert_int_equal(out[3][lane], lane > 28 ? lane : lane + 3);
        assert_int_equal(out[4][lane], 0x49249249u);
        assert_int_equal(out[5][lane], 1 | 4);
        assert_int_equal(out[6][lane], 1);
    }
}

static uint16_t half_of(float v, bool f16) { return f16 ? f32_to_f16(v) : f32_to_bf16(v); }

/* Every element of a and b lies where the manual's formulas put it: groupID = lane / 4, threadID_in_group = lane % 4,
 * for a_i: row = groupID for i in 0, 1, 4, 5, else groupID + 8; col = threadID * 2 + (i & 1), + 8 for i >= 4;
 * for b_i: row = threadID * 2 + (i & 1), + 8 for i >= 2; col = groupID;
 * for c_i: row = groupID, + 8 for i >= 2; col = threadID * 2 + (i & 1). */
static void mma_follows_the_manual(void **state)
{
    (void)state;
    uint64_t random = 5;
    for (uint32_t round = 0; round < 20; round++) {
        const bool f16 = round % 2 != 0;
        float a[16][16], b[16][8];
        uint16_t fa[32][8], fb[32][4];
        float d[32][4];
        /* Small integers: every sum is exact, in any order. */
        for (int i = 0; i < 256; i++) { a[i / 16][i % 16] = (float)(random_word(&random) % 17) - 8; }
        for (int i = 0; i < 128; i++) { b[i / 8][i % 8] = (float)(random_word(&random) % 17) - 8; }
        for (int lane = 0; lane < 32; lane++) {
            const int group = lane / 4, in_group = lane % 4;
            for (int i = 0; i < 8; i++) {
                const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
                fa[lane][i] = half_of(a[row][in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)], f16);
            }
            for (int i = 0; i < 4; i++) { fb[lane][i] = half_of(b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group], f16); }
        }
        const struct probe_args args = {.mode = f16, .in = fa, .in2 = fb, .out = (uint32_t *)(void *)d};
        emu_seed(round);
        run(&probe_mma, 1, 32, 0, &args);
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 4; i++) {
                const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + (i & 1);
                float want = 1;
                for (int k = 0; k < 16; k++) { want += a[row][k] * b[k][column]; }
                assert_true(d[lane][i] == want);
            }
        }
    }
}

/* Fragments that ldmatrix reads out of rows are those that mma takes. */
static void ldmatrix_feeds_mma(void **state)
{
    (void)state;
    uint64_t random = 6;
    for (uint32_t round = 0; round < 8; round++) {
        const bool f16 = round % 2 != 0;
        _Alignas(16) uint16_t a[16][16], b[16][8];
        float d[16][8];
        for (int i = 0; i < 256; i++) { a[i / 16][i % 16] = half_of((float)(random_word(&random) % 17) - 8, f16); }
        for (int i = 0; i < 128; i++) { b[i / 8][i % 8] = half_of((float)(random_word(&random) % 17) - 8, f16); }
        const struct probe_args args = {.mode = f16, .in = a, .in2 = b, .out = (uint32_t *)(void *)d};
        emu_seed(round);
        run(&probe_product, 1, 32, 768, &args);
        for (int row = 0; row < 16; row++) {
            for (int column = 0; column < 8; column++) {
                float want = 0;
                for (int k = 0; k < 16; k++) {
                    want += f16 ? f16_to_f32(a[row][k]) * f16_to_f32(b[k][column]) : bf16_to_f32(a[row][k]) * bf16_to_f32(b[k][column]);
                }
                assert_true(d[row][column] == want);
            }
        }
    }
}

static void ldmatrix_follows_the_manual(void **state)
{
    (void)state;
    _Alignas(16) uint16_t m[4][8][8];
    for (uint16_t i = 0; i < 256; i++) { m[i / 64][i / 8 % 8][i % 8] = i; }
    for (uint32_t mode = 0; mode < 2; mode++) {
        uint16_t out[32][4][2];
        const struct probe_args args = {.mode = mode, .in = m, .out = (uint32_t *)(void *)out};
        run(&probe_ldmatrix, 1, 32, 512, &args);
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 4; i++) {
                for (int half = 0; half < 2; half++) {
                    const int row = lane / 4, column = lane % 4 * 2 + half;
                    assert_int_equal(out[lane][i][half], mode == 0 ? m[i][row][column] : m[i][column][row]);
                }
            }
        }
    }
}

/* ---- memory --------------------------------------------------------------------------------- */

/* A copy lands when its thread has waited for its group, and not before; others see it after a barrier. */
static void asynchronous_copies_are_late(void **state)
{
    (void)state;
    _Alignas(16) uint32_t in[128][4];
    for (uint32_t i = 0; i < 128; i++) { in[i][0] = in[i][1] = in[i][2] = in[i][3] = 1000 + i; }
    uint32_t unseen = 0;
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        for (uint32_t mode = 0; mode < 6; mode++) {
            uint32_t out[256] = {0};
            const struct probe_args args = {.mode = mode, .in = in, .out = out};
            emu_seed(seed);
            run(&probe_copy, 1, 128, 4096, &args);
            for (uint32_t i = 0; i < 128; i++) {
                const uint32_t neighbour = (i + 32) % 128;
                switch (mode) {
                case 0: assert_int_equal(out[i], neighbour % 2 == 0 ? 1000 + neighbour : 0); break;
                case 3:
                    assert_int_equal(out[i], 1000 + i);
                    assert_int_equal(out[128 + i], UINT32_MAX);
                    break;
                case 4: unseen += out[i] != 1000 + neighbour; break;
                default: assert_int_equal(out[i], UINT32_MAX); break;
                }
            }
        }
    }
    assert_true(unseen > SEEDS);
}

/* Addresses that the chip would refuse, and those beside the block's shared memory. */
static void bad_addresses_are_reported(void **state)
{
    (void)state;
    _Alignas(16) uint32_t in[16] = {0}, out[16] = {0};
    static const char *const said[] = {
        [1] = "load16, line|4 past a multiple of 16", [2] = "store16, line|8 past", [3] = "copy_async16|8 past",
        [4] = "copy_async16|no multiple of 16", [5] = "copy_async16|outside of shared memory", [6] = "load16|byte 512 of 512",
        [7] = "store16|byte -16 of 512", [8] = "ldmatrix|outside of shared memory", [9] = "ldmatrix|past a multiple of 16"};
    for (uint32_t mode = 0; mode <= 9; mode++) {
        const struct probe_args args = {.mode = mode, .in = in, .out = out};
        if (mode == 0) {
            run(&probe_address, 1, 32, 512, &args);
        } else {
            assert_fault(&probe_address, 32, 512, &args, said[mode]);
        }
    }
    for (uint32_t far = 0; far < 900; far += 100) {
        const struct probe_args after = {.mode = 10, .count = far, .in = in, .out = out};
        assert_fault(&probe_address, 32, 512, &after, "wrote to byte|of 512");
        const struct probe_args before = {.mode = 11, .count = far, .in = in, .out = out};
        assert_fault(&probe_address, 32, 512, &before, "wrote to byte -|of 512");
    }
}

/* No block finds what another left in shared memory. */
static void shared_memory_starts_poisoned(void **state)
{
    (void)state;
    uint32_t out[10 * 64];
    const struct probe_args args = {.out = out};
    run(&probe_poison, 10, 64, 256, &args);
    for (uint32_t i = 0; i < 640; i++) { assert_int_equal(out[i], UINT32_MAX); }
}

static void check_atomics(void)
{
    uint64_t sum[2] = {0, 0};
    uint32_t out[8] = {0, 0, UINT32_MAX, 0, 0, 0, 0, 9};
    const struct probe_args args = {.out = out, .sum = sum};
    run(&probe_atomics, 25, 64, 0, &args);
    uint32_t all = 0;
    for (uint32_t i = 0; i < 1600; i++) { all ^= i; }
    assert_int_equal(sum[0], 1600 * 1599 / 2);
    assert_int_equal(sum[1], UINT64_C(1599) << 20);
    assert_int_equal(out[0], 1600);
    assert_int_equal(out[1], 1599);
    assert_int_equal(out[2], 0);
    assert_int_equal(out[3], UINT32_MAX);
    assert_int_equal(out[4], all);
    assert_int_equal(out[5], 3200);
    assert_int_equal(out[6], 9);
    assert_int_equal(out[7], 5);
}

static void atomics_add_up(void **state)
{
    (void)state;
    check_atomics();
}

/* Blocks shared out over threads of this machine: atomics hold, a fault is still one. */
static void blocks_run_on_several_threads(void **state)
{
    (void)state;
    emu_threads(3);
    for (int i = 0; i < 5; i++) { check_atomics(); }
    const struct probe_args args = {.mode = 3};
    struct emu_fault fault;
    assert_false(launch(&probe_meet, 50, 96, 0, &args, &fault));
    emu_threads(1);
}

/* Launches that a device would refuse. */
static void bad_shapes_are_refused(void **state)
{
    (void)state;
    const struct probe_args args = {.mode = 3}; /* a block of it would be reported */
    struct emu_fault fault;
    const struct cuda_launch shapes[] = {
        {.grid = {1, 1, 1}, .block = {33, 1, 1}},     {.grid = {1, 1, 1}, .block = {0, 1, 1}},
        {.grid = {1, 1, 1}, .block = {1056, 1, 1}},   {.grid = {1, 1, 1}, .block = {32, 2, 1}},
        {.grid = {1, 65536, 1}, .block = {32, 1, 1}}, {.grid = {UINT32_MAX, 1, 1}, .block = {32, 1, 1}},
        {.grid = {1, 1, 1}, .block = {32, 1, 1}, .shared_bytes = EMU_SHARED_BYTES_MAX + 1}};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        assert_false(emu_launch_kernel(&probe_meet, &shapes[i], &args, sizeof(args), &fault));
        assert_null(strstr(fault.text, "block (")); /* before any block ran */
    }
    const struct cuda_launch one = {.grid = {1, 1, 1}, .block = {32, 1, 1}};
    assert_false(emu_launch_kernel(&probe_meet, &one, &args, sizeof(args) - 1, &fault));
    const struct cuda_launch none = {.grid = {4, 0, 1}, .block = {32, 1, 1}};
    assert_true(emu_launch_kernel(&probe_meet, &none, &args, sizeof(args), &fault));
}

/* ---- numbers -------------------------------------------------------------------------------- */

static float float_of(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

/* The roundings are those of base/dtype.h, which writes KV on the CPU; NaN is the chip's own. */
static void conversions_round_as_the_host_does(void **state)
{
    (void)state;
    uint64_t random = 11;
    for (uint32_t i = 0; i < 3000000; i++) {
        /* Around every tie of the three formats, subnormals and limits, and anywhere. */
        uint32_t bits = (uint32_t)random_word(&random);
        if (i % 4 == 1) { bits &= 0xfffff000u; }
        if (i % 4 == 2) { bits = (bits & 0xfff80000u) + (bits % 3) - 1; }
        if (i % 4 == 3) { bits = (bits & 0x87ffffffu) | 0x38000000u; }
        const float v = float_of(bits);
        if (isnan(v)) {
            assert_int_equal(probe_bf16_of(v), 0x7fff);
            assert_int_equal(probe_f16_of(v), 0x7fff);
            assert_int_equal(probe_fp8x2_of(v, 1) & 0x7f, 0x7f);
            continue;
        }
        if (probe_bf16_of(v) != f32_to_bf16(v)) { fail_msg("bf16 of %08x", bits); }
        if (probe_f16_of(v) != f32_to_f16(v)) { fail_msg("f16 of %08x", bits); }
        if (probe_fp8x2_of(v, 1) != (f32_to_fp8_e4m3(v) | 0x3800)) { fail_msg("fp8 of %08x", bits); }
        if (probe_fp8x2_of(1, v) != (f32_to_fp8_e4m3(v) << 8 | 0x38)) { fail_msg("fp8 of %08x", bits); }
    }
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const float want = f16_to_f32((uint16_t)bits), got = probe_f32_of_f16((uint16_t)bits);
        if (isnan(want) ? !isnan(got) : memcmp(&want, &got, 4) != 0) { fail_msg("f32 of f16 %04x", bits); }
    }
}

static void codes_of_fp8_widen_exactly(void **state)
{
    (void)state;
    for (uint32_t low = 0; low < 256; low++) {
        if ((low & 0x7f) == 0x7f) { continue; } /* the NaN code, which no KV holds */
        const uint8_t high = (uint8_t)(low * 7 + 3);
        const float want = fp8_e4m3_to_f32((uint8_t)low), got = probe_f32_of_fp8((uint8_t)low);
        assert_memory_equal(&want, &got, 4);
        const uint32_t codes = low | (uint32_t)high << 8;
        assert_true(f16_to_f32((uint16_t)probe_f16x2_of_fp8x2(codes)) == want);
        assert_true(bf16_to_f32((uint16_t)probe_bf16x2_of_fp8x2(codes)) == want);
        if ((high & 0x7f) == 0x7f) { continue; }
        assert_true(f16_to_f32((uint16_t)(probe_f16x2_of_fp8x2(codes) >> 16)) == fp8_e4m3_to_f32(high));
        assert_true(bf16_to_f32((uint16_t)(probe_bf16x2_of_fp8x2(codes) >> 16)) == fp8_e4m3_to_f32(high));
    }
}

/* One rounding: 1 + 2^-8 is a tie of bf16 and goes to 1; a little more, far below f32's last bit, goes up. */
static void fma_of_bf16_rounds_once(void **state)
{
    (void)state;
    const uint16_t one = f32_to_bf16(1), tie = f32_to_bf16(0x1p-8f), little = f32_to_bf16(0x1p-40f);
    assert_int_equal(probe_fma_bf16x2(one, tie, one) & 0xffff, one);
    /* (1 + 2^-7) * 2^-8 = 2^-8 + 2^-15; less 2^-15 would be the tie again. */
    assert_int_equal(probe_fma_bf16x2(f32_to_bf16(1 + 0x1p-7f), tie, one) & 0xffff, one + 1);
    /* 2^-4 * 2^-4 is the tie, and the addend 1; with an addend of 1 and a product a hair below or above 2^-8. */
    assert_int_equal(probe_fma_bf16x2((uint32_t)little << 16 | tie, (uint32_t)one << 16 | one, (uint32_t)one << 16 | one), (uint32_t)one << 16 | one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_shapes_are_refused),
        cmocka_unit_test(broken_meetings_are_reported),
        cmocka_unit_test(bad_addresses_are_reported),
        cmocka_unit_test(an_early_kernel_waits),
        cmocka_unit_test(every_thread_runs_once),
        cmocka_unit_test(a_seed_is_an_order),
        cmocka_unit_test(a_missing_block_sync_shows),
        cmocka_unit_test(a_missing_warp_sync_shows),
        cmocka_unit_test(named_barriers_join_whole_warps),
        cmocka_unit_test(waiting_loops_end),
        cmocka_unit_test(shuffles_and_votes),
        cmocka_unit_test(mma_follows_the_manual),
        cmocka_unit_test(ldmatrix_feeds_mma),
        cmocka_unit_test(ldmatrix_follows_the_manual),
        cmocka_unit_test(asynchronous_copies_are_late),
        cmocka_unit_test(shared_memory_starts_poisoned),
        cmocka_unit_test(atomics_add_up),
        cmocka_unit_test(blocks_run_on_several_threads),
        cmocka_unit_test(conversions_round_as_the_host_does),
        cmocka_unit_test(codes_of_fp8_widen_exactly),
        cmocka_unit_test(fma_of_bf16_rounds_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
