/* rows_testing: what the tests of the row and KV kernels share: rows at any alignment with poison around them, the
 * oracle, and launches on the emulator. */
#ifndef BATON_TESTS_UNIT_KERNELS_CUDA_ROWS_TESTING_H
#define BATON_TESTS_UNIT_KERNELS_CUDA_ROWS_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/kernels.h"
#include "tests/cuda/emu.h"

#define POISON 0xA5 /* of every byte that nobody wrote */

/* Unit roundoff: what one rounding may add, relative. */
double unit_of(enum dtype dtype);
#define UNIT_F32 (1.0 / 16777216.0)

/* splitmix64. The seed comes from KERNELS_TEST_SEED or is fixed, and is printed with `what`; the emulator gets it too. */
struct random {
    uint64_t state;
};
struct random random_from_environment(const char *what);
uint64_t random_word(struct random *random);
uint32_t random_range(struct random *random, uint32_t from, uint32_t to); /* both may come */
float random_value(struct random *random);                               /* -1 .. 1 */
enum dtype random_dtype(struct random *random);

/* rows of dim elements, `stride` apart, with poison before, between and after them. */
struct rows {
    unsigned char *memory;
    size_t bytes;
    void *data; /* row 0 */
    enum dtype dtype;
    uint32_t rows, dim;
    size_t stride;
};
/* Any stride and alignment, aligned ones in every second case. Ended by rows_free(). */
struct rows rows_poisoned(struct random *random, enum dtype dtype, uint32_t rows, uint32_t dim);
struct rows rows_random(struct random *random, enum dtype dtype, uint32_t rows, uint32_t dim, float factor);
struct rows rows_copy(const struct rows *rows); /* at the same alignment */
void rows_free(struct rows *rows);
double rows_at(const struct rows *rows, uint32_t row, uint32_t index);
void *rows_row(const struct rows *rows, uint32_t row);
/* [rows][dim]; freed with free(). */
float *rows_as_f32(const struct rows *rows);
/* Nothing was written but rows 0 .. rows-1, elements 0 .. dim-1. */
void assert_only_rows_written(const char *what, const struct rows *rows);
/* Equal values, bit for bit. */
void assert_rows_equal(const char *what, const struct rows *got, const struct rows *want);
/* |got - want| <= bound + one rounding to the rows' dtype. */
void assert_near(const char *what, const struct rows *got, uint32_t row, uint32_t index, double want, double bound);

/* Fails the test with the fault. */
void launch(enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args, size_t args_bytes);

/* kernels/ref: freed with kernels_destroy(). */
struct kernels *oracle(void);

#endif
