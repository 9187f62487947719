#include "tests/unit/kernels_cuda/rows_testing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD_BYTES 64u

double unit_of(enum dtype dtype) { return dtype == DTYPE_BF16 ? 1.0 / 256 : dtype == DTYPE_F16 ? 1.0 / 2048 : UNIT_F32; }

uint64_t random_word(struct random *random)
{
    uint64_t z = (random->state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

struct random random_from_environment(const char *what)
{
    const char *text = getenv("KERNELS_TEST_SEED");
    const uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : 20260;
    printf("%s: KERNELS_TEST_SEED=%llu\n", what, (unsigned long long)seed);
    emu_seed(seed);
    return (struct random){.state = seed};
}

uint32_t random_range(struct random *random, uint32_t from, uint32_t to)
{
    return from + (uint32_t)(random_word(random) % ((uint64_t)to - from + 1));
}

float random_value(struct random *random) { return (float)((double)(random_word(random) >> 40) / 8388608.0 - 1.0); }

enum dtype random_dtype(struct random *random) { return (enum dtype)random_range(random, 0, DTYPE_COUNT - 1); }

struct rows rows_poisoned(struct random *random, enum dtype dtype, uint32_t rows, uint32_t dim)
{
    const bool aligned = random_range(random, 0, 1) == 0;
    const uint32_t element = dtype_bytes(dtype);
    struct rows r = {.dtype = dtype, .rows = rows, .dim = dim};
    r.stride = dim + random_range(random, 0, 9);
    if (aligned) { r.stride = (r.stride + 7) / 8 * 8; }
    const size_t shift = aligned ? 0 : (size_t)random_range(random, 0, 16 / element - 1) * element;
    r.bytes = 2 * GUARD_BYTES + shift + ((size_t)(rows - 1) * r.stride + dim) * element;
    /* One byte more than a multiple of 16 may be missing at the end: the address sanitizer sees the very end. */
    r.memory = aligned_alloc(64, (r.bytes + 63) / 64 * 64);
    assert_non_null(r.memory);
    memset(r.memory, POISON, (r.bytes + 63) / 64 * 64);
    r.data = r.memory + GUARD_BYTES + shift;
    return r;
}

static void put(const struct rows *r, uint32_t row, uint32_t index, float value)
{
    unsigned char *p = (unsigned char *)r->data + (row * r->stride + index) * dtype_bytes(r->dtype);
    const uint16_t half = r->dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
    if (r->dtype == DTYPE_F32) { memcpy(p, &value, 4); } else { memcpy(p, &half, 2); }
}

struct rows rows_random(struct random *random, enum dtype dtype, uint32_t rows, uint32_t dim, float factor)
{
    struct rows r = rows_poisoned(random, dtype, rows, dim);
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t i = 0; i < dim; i++) { put(&r, row, i, random_value(random) * factor); }
    }
    return r;
}

struct rows rows_copy(const struct rows *rows)
{
    struct rows r = *rows;
    const size_t bytes = (r.bytes + 63) / 64 * 64;
    r.memory = aligned_alloc(64, bytes);
    assert_non_null(r.memory);
    memcpy(r.memory, rows->memory, bytes);
    r.data = r.memory + ((unsigned char *)rows->data - rows->memory);
    return r;
}

void rows_free(struct rows *rows)
{
    free(rows->memory);
    *rows = (struct rows){0};
}

void *rows_row(const struct rows *rows, uint32_t row) { return (unsigned char *)rows->data + row * rows->stride * dtype_bytes(rows->dtype); }

double rows_at(const struct rows *rows, uint32_t row, uint32_t index)
{
    const unsigned char *p = (const unsigned char *)rows_row(rows, row) + (size_t)index * dtype_bytes(rows->dtype);
    uint16_t half;
    float value;
    memcpy(&half, p, 2);
    if (rows->dtype == DTYPE_BF16) { return (double)bf16_to_f32(half); }
    if (rows->dtype == DTYPE_F16) { return (double)f16_to_f32(half); }
    memcpy(&value, p, 4);
    return (double)value;
}

float *rows_as_f32(const struct rows *rows)
{
    float *values = malloc((size_t)rows->rows * rows->dim * sizeof(float));
    assert_non_null(values);
    for (uint32_t row = 0; row < rows->rows; row++) {
        for (uint32_t i = 0; i < rows->dim; i++) { values[(size_t)row * rows->dim + i] = (float)rows_at(rows, row, i); }
    }
    return values;
}

void assert_only_rows_written(const char *what, const struct rows *rows)
{
    const size_t row_bytes = (size_t)rows->dim * dtype_bytes(rows->dtype), step = rows->stride * dtype_bytes(rows->dtype);
    const size_t first = (size_t)((unsigned char *)rows->data - rows->memory);
    for (size_t i = 0; i < (rows->bytes + 63) / 64 * 64; i++) {
        const bool inside = i >= first && (i - first) / step < rows->rows && (i - first) % step < row_bytes;
        if (!inside && rows->memory[i] != POISON) { fail_msg("%s: byte %zd from row 0 was overwritten", what, (ssize_t)i - (ssize_t)first); }
    }
}

void assert_rows_equal(const char *what, const struct rows *got, const struct rows *want)
{
    assert_int_equal(got->rows, want->rows);
    for (uint32_t row = 0; row < got->rows; row++) {
        if (memcmp(rows_row(got, row), rows_row(want, row), (size_t)got->dim * dtype_bytes(got->dtype)) != 0) {
            for (uint32_t i = 0; i < got->dim; i++) {
                if (rows_at(got, row, i) != rows_at(want, row, i)) {
                    fail_msg("%s: row %u of %u, element %u of %u: %.9g, not %.9g", what, row, got->rows, i, got->dim, rows_at(got, row, i),
                             rows_at(want, row, i));
                }
            }
            fail_msg("%s: row %u: other bits", what, row);
        }
    }
}

void assert_near(const char *what, const struct rows *got, uint32_t row, uint32_t index, double want, double bound)
{
    const double value = rows_at(got, row, index);
    /* Below the normal numbers of f16 a unit is 2^-24, and half of it a rounding. */
    const double floor = got->dtype == DTYPE_F16 ? 0x1p-25 : 0x1p-150;
    const double all = bound + unit_of(got->dtype) * (fabs(want) + bound) + floor;
    if (!(fabs(value - want) <= all)) {
        fail_msg("%s: row %u of %u, element %u of %u: %.9g, not %.9g within %.3g", what, row, got->rows, index, got->dim, value, want, all);
    }
}

void launch(enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args, size_t args_bytes)
{
    struct emu_fault fault = {{0}};
    if (!emu_launch(kernel, shape, args, args_bytes, &fault)) { fail_msg("%s", fault.text); }
}

struct kernels *oracle(void)
{
    struct kernels *kernels = NULL;
    const struct kernels_config config = {.isa = "ref", .threads = 1};
    struct diag diag;
    assert_false(failed(kernels_create(&config, &kernels, &diag)));
    return kernels;
}
