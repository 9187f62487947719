#include "kernels/cpu/gemm_int.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/check.h"

void gemm_int_scratch_init(struct gemm_int_scratch *scratch, void *memory)
{
    unsigned char *at = memory;
    *scratch = (struct gemm_int_scratch){.codes = at};
    at += GEMM_INT_CODES_BYTES;
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

static bool have_scalar(void) { return true; }

static const struct {
    const struct gemm_int_set *set;
    bool (*have)(void);
    bool is_wide; /* needs AVX-512 */
} sets[] = {
#if defined(__x86_64__)
    {&gemm_int_avx512vnni, have_avx512vnni, true},
    {&gemm_int_avxvnni, have_avxvnni, false},
    {&gemm_int_avx2, have_avx2, false},
#endif
    {&gemm_int_scalar, have_scalar, false},
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
    bool is_narrow = strcmp(isa, "avx2") == 0;
    for (size_t i = 0; i < SET_COUNT; i++) {
        if (sets[i].have() && !(is_narrow && sets[i].is_wide)) { return sets[i].set; }
    }
    return &gemm_int_scalar;
}
