/* backend_testing: a backend over the emulated device beside the oracle, and memory on both sides.
 * Flow:    backend_*_test, gemm_plan_test, graph_test -> [backend_testing] -> kernels.h of both
 * Memory:  all that a pair hands out lives until pair_destroy(), which also shows what the backend forgot: the
 *          emulated device ends the process if anything is left when it is closed. */
#ifndef BATON_TESTS_UNIT_KERNELS_CUDA_BACKEND_TESTING_H
#define BATON_TESTS_UNIT_KERNELS_CUDA_BACKEND_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/driver.h"
#include "kernels/kernels.h"
#include "tests/cuda/device_emulated.h"

#define PAIR_ITEMS_MAX 256u
#define PAIR_MEMORY_BYTES ((uint64_t)64 << 20) /* small: every operation shows and hides all of it */
#define PAIR_EXCHANGE_BYTES ((size_t)1 << 20)

struct pair_item {
    void *host;   /* f32 values, of the oracle; or NULL */
    void *device; /* or NULL */
    size_t bytes; /* of device */
};

struct pair {
    const struct cuda_driver *driver; /* the backend's, which closes it */
    struct kernels *cuda, *ref;
    enum dtype act;
    uint64_t random;
    uint8_t *exchange; /* of both: the oracle reads it as it is */
    size_t exchange_used;
    struct pair_item items[PAIR_ITEMS_MAX];
    uint32_t item_count;
};

/* Values in the oracle's f32 and, rounded to a dtype, on the device: the oracle's are rounded alike. */
struct pair_values {
    float *host;
    void *device;
    enum dtype dtype;
    size_t count;
};

struct pair *pair_create(enum dtype act, bool deterministic, uint64_t seed);
void pair_destroy(struct pair *pair);

uint64_t pair_random(struct pair *pair);
float pair_random_float(struct pair *pair); /* -1 .. 1 */
uint32_t pair_random_range(struct pair *pair, uint32_t from, uint32_t to); /* both may come */

/* Zeroed on the host until pair_destroy(). */
void *pair_host(struct pair *pair, size_t bytes);
/* A buffer of the backend. */
void *pair_device(struct pair *pair, size_t bytes);
struct pair_values pair_values(struct pair *pair, size_t count, enum dtype dtype, float factor);

/* A matrix of random weights in rows, for both; `ret_ref` and `ret_cuda` differ in `data`. */
void pair_matrix(struct pair *pair, uint32_t n_out, uint32_t n_in, enum dtype dtype, struct kernels_matrix *ret_ref,
                 struct kernels_matrix *ret_cuda);

/* Part of the exchange, zeroed, 16-byte aligned. */
void *pair_exchange(struct pair *pair, size_t bytes);
/* All of it goes to the device. */
void pair_send(struct pair *pair);

void pair_upload(struct pair *pair, const struct pair_values *values);
/* Waits, and reads `count` elements as f32. */
void pair_download(struct pair *pair, const void *device, enum dtype dtype, size_t count, float *ret_values);

/* What the device has equals what the oracle has within `relative` of its size plus `absolute`, everywhere: gaps
 * between rows too, which nobody may have written. */
void pair_compare(struct pair *pair, const char *what, const struct pair_values *values, double relative, double absolute);

/* One rounding to the dtype, relative. */
double pair_epsilon(enum dtype dtype);

/* Bits as the dtype has them. */
void round_to(enum dtype dtype, const float *from, size_t count, void *to);

#endif
