#include "tests/unit/kernels/kernels_testing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct random_state random_start(const char *what)
{
    const char *text = getenv("KERNELS_TEST_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : 20251;
    printf("%s: KERNELS_TEST_SEED=%llu\n", what, (unsigned long long)seed);
    return (struct random_state){.state = seed};
}

/* splitmix64 */
uint64_t random_next(struct random_state *random)
{
    uint64_t z = (random->state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint32_t random_range(struct random_state *random, uint32_t from, uint32_t to)
{
    return from + (uint32_t)(random_next(random) % ((uint64_t)to - from + 1));
}

float random_float(struct random_state *random)
{
    double sum = 0;
    for (int i = 0; i < 4; i++) { sum += (double)(random_next(random) >> 40) / 16777216.0 - 0.5; }
    return (float)(sum * 1.7320508);
}

void random_fill(struct random_state *random, void *data, enum dtype dtype, size_t count, float factor)
{
    for (size_t i = 0; i < count; i++) {
        float value = random_float(random) * factor;
        switch (dtype) {
        case DTYPE_BF16: ((uint16_t *)data)[i] = f32_to_bf16(value); break;
        case DTYPE_F16: ((uint16_t *)data)[i] = f32_to_f16(value); break;
        default: ((float *)data)[i] = value; break;
        }
    }
}

double element_at(const void *data, enum dtype dtype, size_t index)
{
    switch (dtype) {
    case DTYPE_BF16: return (double)bf16_to_f32(((const uint16_t *)data)[index]);
    case DTYPE_F16: return (double)f16_to_f32(((const uint16_t *)data)[index]);
    default: return (double)((const float *)data)[index];
    }
}

void *poisoned(size_t bytes)
{
    void *data = malloc(bytes != 0 ? bytes : 1);
    assert_non_null(data);
    memset(data, 0xA5, bytes);
    return data;
}

struct isa_list isa_list_all(void)
{
    struct isa_list list = {0};
    char text[256], *save = NULL;
    snprintf(text, sizeof(text), "%s", kernels_isa_available());
    for (char *name = strtok_r(text, " ", &save); name != NULL; name = strtok_r(NULL, " ", &save)) {
        if (strcmp(name, "ref") != 0 && list.count < ISA_MAX) {
            snprintf(list.names[list.count++], sizeof(list.names[0]), "%s", name);
        }
        if (strcmp(name, "avx512bf16") == 0 && list.count < ISA_MAX) { /* what surrounds the tiles is that set's */
            snprintf(list.names[list.count++], sizeof(list.names[0]), "amx-emulated");
        }
    }
    return list;
}

bool isa_rounds_x(const char *isa) { return strcmp(isa, "avx512bf16") == 0 || strncmp(isa, "amx", 3) == 0; }

bool isa_shares_order(const char *isa) { return strcmp(isa, "avx2") == 0 || strcmp(isa, "avx512") == 0; }

struct kernels *kernels_for(const char *isa, uint32_t threads)
{
    struct kernels *kernels = NULL;
    struct diag diag = {{0}};
    struct kernels_config config = {.isa = isa, .threads = threads};
    status_t st = kernels_create(&config, &kernels, &diag);
    if (failed(st)) { fail_msg("%s: %s", isa, diag.text); }
    return kernels;
}

void assert_same_bits(const char *what, const float *got, const float *want, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (memcmp(&got[i], &want[i], sizeof(float)) != 0) {
            fail_msg("%s: value %zu is %a, want the bits of %a", what, i, (double)got[i], (double)want[i]);
        }
    }
}

void assert_near(const char *what, size_t index, float got, double want, double bound)
{
    if (!(fabs((double)got - want) <= bound)) {
        fail_msg("%s: value %zu is %.9g, want %.9g within %.3g, off by %.3g", what, index, (double)got, want, bound,
                 fabs((double)got - want));
    }
}
