#include "kernels/cpu/amx_check.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM */
#define TILE_DATA 18              /* XFEATURE_XTILEDATA */

static bool system_saves_tiles(void)
{
    unsigned a, b, c = 0, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (1u << 27)) == 0) { return false; } /* OSXSAVE */
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & (3u << 17)) == (3u << 17);
}

static bool has_feature(unsigned bit)
{
    unsigned a, b, c, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 24)) != 0 && (d & (1u << bit)) != 0 && system_saves_tiles();
}

bool amx_has_bf16(void) { return has_feature(22); }
bool amx_has_int8(void) { return has_feature(25); }

status_t amx_ask_permission(struct diag *diag)
{
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0) { return STATUS_OK; }
    int cause = errno;
    diag_set(diag, "the system does not grant the AMX tiles: %s", strerror(cause));
    return STATUS_CAUSE(ST_FAILED_PRECONDITION, SCOPE_NODE, cause);
}

/* Multiples of 1/64 up to 1: bf16 holds them, and sums of up to 2^11 products are exact in f32 in any order. Of
 * both signs, so that a wrong place shows. */
static float number(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)((int)(*state >> 25) - 64) / 64.0f;
}

#define IN_MAX 1100u
#define OUT_MAX 80u
#define ROWS_MAX 70u

typedef void (*piece_fn)(const struct set_gemm_piece *piece, struct set_scratch *scratch);

static status_t check_shape(piece_fn fn, struct set_scratch *scratch, uint32_t rows, uint32_t n_out, uint32_t n_in,
                            float *numbers, unsigned char *packed, struct diag *diag)
{
    float *x = numbers, *weight = x + ROWS_MAX * IN_MAX, *out = weight + OUT_MAX * IN_MAX;
    uint32_t state = rows * 7919u + n_in;
    for (uint32_t i = 0; i < rows * n_in; i++) { x[i] = number(&state); }
    for (uint32_t i = 0; i < n_out * n_in; i++) { weight[i] = number(&state); }
    struct kernels_matrix matrix = {.format = KERNELS_WEIGHT_BF16, .n_out = n_out, .n_in = n_in, .data = packed};
    kernels_matrix_pack(&matrix, weight, n_in, DTYPE_F32, 0, kernels_matrix_panels(&matrix), packed);
    struct kernels_gemm g = {.rows = rows, .weight = &matrix, .x = x, .x_stride = n_in, .out = out, .out_stride = n_out};
    scratch->pack_x = NULL;
    struct set_gemm_piece piece = {.g = &g, .rows = rows, .panels = kernels_matrix_panels(&matrix)};
    fn(&piece, scratch);
    for (uint32_t m = 0; m < rows; m++) {
        for (uint32_t n = 0; n < n_out; n++) {
            double sum = 0;
            for (uint32_t k = 0; k < n_in; k++) { sum += (double)x[m * n_in + k] * (double)weight[n * n_in + k]; }
            if ((double)out[m * n_out + n] != sum) {
                diag_set(diag, "AMX multiplied %u x %u x %u wrongly: element (%u, %u) is %g, should be %g", rows, n_in, n_out, m, n,
                         (double)out[m * n_out + n], sum);
                return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
            }
        }
    }
    return STATUS_OK;
}

status_t amx_self_check(piece_fn piece, struct diag *diag)
{
    static const uint32_t shapes[][3] = {{1, 70, 100}, {5, 48, 33}, {16, 64, 64}, {17, 40, 96}, {32, 33, 70}, {33, 80, 1100}, {70, 17, 600}};
    const size_t numbers = (ROWS_MAX + OUT_MAX) * IN_MAX + ROWS_MAX * OUT_MAX;
    const size_t packed = (size_t)(OUT_MAX + 16) * (IN_MAX + 32) * 2, pack = (ROWS_MAX + 16) * (IN_MAX * 4 + 256);
    const size_t sums = SET_SUMS_FLOATS * sizeof(float), bytes = (packed + pack + sums + numbers * sizeof(float) + 320) / 64 * 64;
    unsigned char *memory = aligned_alloc(64, bytes);
    if (!memory) {
        diag_set(diag, "no memory to check AMX");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    unsigned char *at = memory + (packed + 63) / 64 * 64;
    struct set_scratch scratch = {.sums = (float *)(void *)at, .pack = at + sums};
    float *floats = (float *)(void *)(at + sums + (pack + 63) / 64 * 64);
    status_t st = STATUS_OK;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]) && !failed(st); i++) {
        st = check_shape(piece, &scratch, shapes[i][0], shapes[i][1], shapes[i][2], floats, memory, diag);
    }
    free(memory);
    return st;
}
