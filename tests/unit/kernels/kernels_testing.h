/* kernels_testing: what the tests of kernels/ share: a seeded generator, every instruction set of
 * the machine, guarded buffers, and how wide a comparison with the oracle may be. */
#ifndef BATON_TESTS_UNIT_KERNELS_KERNELS_TESTING_H
#define BATON_TESTS_UNIT_KERNELS_KERNELS_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/kernels.h"

/* Half a unit in the last place of f32, relative: what one rounding may add. */
#define EPS (1.0 / 16777216.0)
/* The same of bf16, which has 8 significant bits where f32 has 24. */
#define EPS_BF16 (1.0 / 256.0)

struct random_state {
    uint64_t state;
};
/* The seed comes from KERNELS_TEST_SEED or is fixed; it is printed with `what`. */
struct random_state random_start(const char *what);
uint64_t random_next(struct random_state *random);
uint32_t random_range(struct random_state *random, uint32_t from, uint32_t to); /* both ends may come */
float random_float(struct random_state *random);                               /* about normal, |x| < 6 */

/* Fills `count` elements with random values of the dtype. */
void random_fill(struct random_state *random, void *data, enum dtype dtype, size_t count, float factor);

double element_at(const void *data, enum dtype dtype, size_t index);

/* Aligned memory of exactly `bytes` (at least 1), so that the address sanitizer sees its end; not
 * zeroed but filled with 0xA5, whose floats are no result of ours. Freed with free(). */
void *poisoned(size_t bytes);

#define ISA_MAX 8
struct isa_list {
    uint32_t count;
    char names[ISA_MAX][16]; /* without "ref" */
};
struct isa_list isa_list_all(void);

/* True of the sets that round activations to bf16 where bf16 weights are multiplied. */
bool isa_rounds_x(const char *isa);

/* True of the sets that do the same operations in the same order, so that their bits are equal. */
bool isa_shares_order(const char *isa);

/* Fails the test if the set cannot be made. */
struct kernels *kernels_for(const char *isa, uint32_t threads);

/* Bytes of got and want are equal; names the first float that is not. */
void assert_same_bits(const char *what, const float *got, const float *want, size_t count);

/* |got - want| <= bound, and neither is NaN. */
void assert_near(const char *what, size_t index, float got, double want, double bound);

#endif
