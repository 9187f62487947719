#include "kernels/cpu/gemm_int.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/check.h"
#include "base/log.h"
#if defined(__x86_64__)
#include "kernels/cpu/amx_check.h"
#endif

void gemm_int_scratch_init(struct gemm_int_scratch *scratch, void *memory)
{
    unsigned char *at = memory;
    *scratch = (struct gemm_int_scratch){.codes = at};
    at += GEMM_INT_CODES_ROOM;
    scratch->scales = (float *)(void *)at;
    at += GEMM_INT_SCALES_BYTES;
    scratch->sums = (int32_t *)(void *)at;
    at += GEMM_INT_SCALES_BYTES;
    scratch->parked = at;
}

uint32_t gemm_int_rows_max(const struct kernels_matrix *weight)
{
    size_t depth = kernels_matrix_depth(weight), rows = GEMM_INT_CODES_BYTES / depth;
    CHECK(rows >= 1);
    return rows < GEMM_INT_ROWS_MAX ? (uint32_t)rows : GEMM_INT_ROWS_MAX;
}

#if defined(__x86_64__)
/* __builtin_cpu_supports also asks whether the operating system saves the registers. */
static bool have_avx512vnni(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

static bool have_avx2(void)
{
    unsigned a, b, c = 0, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d)
        && (c & bit_F16C) != 0;
}

static bool have_avxvnni(void)
{
    unsigned a = 0, b, c, d;
    return have_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)) != 0;
}
#endif

#if defined(__x86_64__)
/* The tiles against vpdpbusd, to the bit. */
static bool amx_is_exact(void)
{
    enum { ROWS = 35, OUTS = 50, INPUTS = 200 };
    const struct kernels_matrix shape = {.format = KERNELS_WEIGHT_INT8, .n_out = OUTS, .n_in = INPUTS};
    const size_t bytes = (kernels_matrix_bytes(&shape) + 63) / 64 * 64;
    unsigned char *data = aligned_alloc(64, bytes);
    void *memory = aligned_alloc(64, GEMM_INT_SCRATCH_BYTES);
    float *x = malloc(ROWS * INPUTS * sizeof *x), *out = calloc(2 * ROWS * OUTS, sizeof *out);
    bool is_exact = false;
    if (data != NULL && memory != NULL && x != NULL && out != NULL) {
        uint32_t state = 1;
        for (size_t i = 0; i < bytes; i++) { data[i] = (unsigned char)((state = state * 1664525u + 1013904223u) >> 24); }
        for (size_t i = 0; i < ROWS * INPUTS; i++) { x[i] = (float)((int32_t)(state = state * 1664525u + 1013904223u) >> 16); }
        for (uint32_t panel = 0; panel < kernels_matrix_panels(&shape); panel++) { /* scales and sums that belong to the codes */
            unsigned char *at = data + panel * int8_panel_bytes(INPUTS);
            for (uint32_t n = 0; n < KERNELS_PANEL; n++) {
                const float scale = 1.0f;
                int32_t sum = 0;
                for (uint32_t k = 0; k < int8_k(INPUTS); k++) { sum += (int8_t)at[int8_code_at(n, k)]; }
                memcpy(at + int8_scales_at(INPUTS) + n * 4, &scale, 4);
                memcpy(at + int8_sums_at(INPUTS) + n * 4, &sum, 4);
            }
        }
        struct kernels_matrix matrix = shape;
        matrix.data = data;
        for (int i = 0; i < 2; i++) {
            const struct gemm_int_set *set = i == 0 ? &gemm_int_avx512vnni : &gemm_int_amx;
            const struct kernels_gemm g = {.rows = ROWS, .weight = &matrix, .x = x, .x_stride = INPUTS, .out = out + i * ROWS * OUTS, .out_stride = OUTS};
            struct gemm_int_scratch scratch;
            gemm_int_scratch_init(&scratch, memory);
            set->piece(&g, 0, ROWS, 0, kernels_matrix_panels(&shape), &scratch);
        }
        is_exact = memcmp(out, out + ROWS * OUTS, ROWS * OUTS * sizeof *out) == 0;
        if (!is_exact) { LOGF(LOG_WARN, "amx_int8_not_used", "why=\"its sums differ from those of AVX512-VNNI\""); }
    }
    free(data);
    free(memory);
    free(x);
    free(out);
    return is_exact;
}

static pthread_once_t amx_once = PTHREAD_ONCE_INIT;
static bool amx_is_good;

static void amx_examine(void)
{
    struct diag diag;
    if (!have_avx512vnni() || !amx_has_int8()) { return; }
    if (failed(amx_ask_permission(&diag))) {
        LOGF(LOG_WARN, "amx_int8_not_used", "why=\"%s\"", diag.text);
        return;
    }
    amx_is_good = amx_is_exact();
}

static bool have_amx(void)
{
    pthread_once(&amx_once, amx_examine);
    return amx_is_good;
}
#endif

static bool have_scalar(void) { return true; }

static const struct {
    const struct gemm_int_set *set;
    bool (*have)(void);
    enum { INT_NARROW, INT_WIDE_LANES, INT_TILES } needs;
} sets[] = {
#if defined(__x86_64__)
    {&gemm_int_amx, have_amx, INT_TILES},
    {&gemm_int_avx512vnni, have_avx512vnni, INT_WIDE_LANES},
    {&gemm_int_avxvnni, have_avxvnni, INT_NARROW},
    {&gemm_int_avx2, have_avx2, INT_NARROW},
#endif
    {&gemm_int_scalar, have_scalar, INT_NARROW},
};
#define SET_COUNT (sizeof(sets) / sizeof(sets[0]))

const struct gemm_int_set *gemm_int_available(uint32_t index)
{
    for (size_t i = 0; i < SET_COUNT; i++) {
        if (sets[i].have() && index-- == 0) { return sets[i].set; }
    }
    return NULL;
}

const struct gemm_int_set *gemm_int_pick(const char *isa)
{
    if (strcmp(isa, "scalar") == 0) { return &gemm_int_scalar; }
#if defined(__x86_64__)
    if (strcmp(isa, "amx-emulated") == 0 && have_avx512vnni()) { return &gemm_int_amx_emulated; }
#endif
    int most = strcmp(isa, "avx2") == 0 ? INT_NARROW : strncmp(isa, "avx512", 6) == 0 ? INT_WIDE_LANES : INT_TILES;
    for (size_t i = 0; i < SET_COUNT; i++) {
        if ((int)sets[i].needs <= most && sets[i].have()) { return sets[i].set; }
    }
    return &gemm_int_scalar;
}
