/* AMX: the self check passes on right tiles and catches wrong ones; tiles in C do what the manual says. The
 * products' bits are gemm_test's business, which runs the emulation as one of its sets. */
#include "tests/unit/kernels/kernels_testing.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/amx_check.h"
#include "kernels/cpu/gemm_amx.h"

#define AMX_TILE_EMULATED 1
#include "kernels/cpu/amx_tile.h"

static void wrong_piece(const struct set_gemm_piece *piece, struct set_scratch *scratch)
{
    gemm_amx_emulated_piece(piece, scratch);
    if (piece->rows == 33) { ((float *)piece->g->out)[32 * piece->g->out_stride + 5] += 0x1p-12f; }
}

static void lost_config(const struct set_gemm_piece *piece, struct set_scratch *scratch)
{
    (void)scratch; /* what a compiler made that dropped the configuration: nothing is computed */
    memset(piece->g->out, 0, piece->rows * piece->g->out_stride * sizeof(float));
}

static bool what_surrounds_the_tiles_is_there(void) { return strstr(kernels_isa_available(), "avx512bf16") != NULL; }

/* A processor may have them and the system not grant them, as some containers and virtual machines do. */
static bool tiles_are_granted(void)
{
    struct diag diag = {{0}};
    if (!amx_has_bf16()) {
        print_message("this machine has no AMX\n");
        return false;
    }
    if (failed(amx_ask_permission(&diag))) {
        print_message("%s\n", diag.text);
        return false;
    }
    return true;
}

/* The emulation passes the check that hardware must pass; one wrong element, or none right, does not. */
static void the_self_check_tells_right_from_wrong(void **state)
{
    (void)state;
    if (!what_surrounds_the_tiles_is_there()) { skip(); }
    struct diag diag = {{0}};
    status_t st = amx_self_check(gemm_amx_emulated_piece, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    assert_int_equal(amx_self_check(wrong_piece, &diag).code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "(32, 5)"));
    assert_int_equal(amx_self_check(lost_config, &diag).code, ST_FAILED_PRECONDITION);
}

/* The real thing passes it too. */
static void the_hardware_passes_the_self_check(void **state)
{
    (void)state;
    if (!what_surrounds_the_tiles_is_there() || !tiles_are_granted()) { skip(); }
    struct diag diag = {{0}};
    status_t st = amx_self_check(gemm_amx_piece, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
}

/* Where the tiles are, the system grants them and they multiply rightly, the set is offered; elsewhere it is not. */
static void the_set_is_offered_where_it_works(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    bool works = what_surrounds_the_tiles_is_there() && tiles_are_granted() && !failed(amx_self_check(gemm_amx_piece, &diag));
    assert_int_equal(strncmp(kernels_isa_available(), "amx ", 4) == 0, works);
    assert_null(strstr(kernels_isa_available(), "emulated"));
}

static const struct amx_config small = {.palette = 1, .row_bytes = {8, 8, 8}, .rows = {3, 3, 2}}; /* 3 x 2, 3 x 2 fours, 2 fours x 2 */

/* bf16 by hand: even and odd inputs are chains of their own, which matters where a chain swallows what the other keeps. */
static void bf16_as_the_manual_says(void **state)
{
    (void)state;
    const uint16_t one = f32_to_bf16(1), big = f32_to_bf16(0x1p24f), minus = f32_to_bf16(-0x1p24f);
    const uint16_t x[3][4] = {{one, one, one, one}, {one, big, one, minus}, {big, one, minus, one}};
    const uint16_t w[2][4] = {{one, one, one, f32_to_bf16(3)}, {one, one, one, one}};
    float sum[3][2] = {{10, 20}, {0, 0}, {0.5f, 0}};
    amx_configure(&small);
    amx_load(0, sum, 8);
    amx_load(1, x, 8);
    amx_load(2, w, 8);
    amx_dot_bf16(0, 1, 2);
    amx_store(0, sum, 8);
    assert_true(sum[0][0] == 14 && sum[0][1] == 26);
    /* Row 1: even 1 + 1, odd 2^24 - 2^24 (times 3 and 1 in the second column). */
    assert_true(sum[1][0] == 2 && sum[1][1] == 2 + 0x1p25f);
    assert_true(sum[2][0] == 2.5f && sum[2][1] == 4);
    const uint16_t tiny[3][4] = {{1, 0, 0, 0}, {0}, {0}}; /* subnormal: taken for zero */
    amx_load(1, tiny, 8);
    amx_zero(0);
    amx_dot_bf16(0, 1, 2);
    amx_store(0, sum, 8);
    assert_true(sum[0][0] == 0 && sum[0][1] == 0);
    amx_release();
}

/* Bytes are signed on both sides, and sums are exact. */
static void int8_as_the_manual_says(void **state)
{
    (void)state;
    const int8_t x[3][8] = {{1, 2, 3, 4, 5, 6, 7, 8}, {-128, 127, -128, 127, 0, 0, 0, 0}, {-1, -1, -1, -1, -1, -1, -1, -1}};
    const int8_t w[2][8] = {{1, 1, 1, 1, -128, -128, -128, -128}, {1, 1, 1, 1, 127, 127, 127, 127}};
    int32_t sum[3][2] = {{100, 0}, {0, 0}, {0, 0}};
    amx_configure(&small);
    amx_load(0, sum, 8);
    amx_load(1, x, 8);
    amx_load(2, w, 8);
    amx_dot_int8(0, 1, 2);
    amx_store(0, sum, 8);
    assert_true(sum[0][0] == 136 && sum[0][1] == -128 * 10 + 127 * 26);
    assert_true(sum[1][0] == -2 && sum[1][1] == 256);
    assert_true(sum[2][0] == -8 && sum[2][1] == 4);
    amx_release();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_as_the_manual_says),
        cmocka_unit_test(int8_as_the_manual_says),
        cmocka_unit_test(the_self_check_tells_right_from_wrong),
        cmocka_unit_test(the_hardware_passes_the_self_check),
        cmocka_unit_test(the_set_is_offered_where_it_works),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
