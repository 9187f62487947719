/* emulated_testing: a device of the emulated kind with two streams and some memory, and what tests of it ask.
 * Flow:    emulated_*_test -> [emulated_testing] -> driver.h, device_emulated.h
 * Thread:  the test's; a note is written by the device's. */
#ifndef BATON_TESTS_UNIT_KERNELS_CUDA_EMULATED_TESTING_H
#define BATON_TESTS_UNIT_KERNELS_CUDA_EMULATED_TESTING_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/cuda/device_emulated.h"

#define COUNT 64u
#define SEEDS 64u

struct bench {
    const struct cuda_driver *d;
    struct cuda_stream *a, *b;
    uint32_t *pinned, *device, *other; /* COUNT words each */
};

/* The call, which names `diag`, succeeds; or fails with this code and a sentence that holds `words`. */
void ok(status_t st, const struct diag *diag);
void refused(status_t st, uint8_t code, const struct diag *diag, const char *words);
#define OK(call)                        \
    do {                                \
        struct diag diag = {.text = ""}; \
        ok(call, &diag);                \
    } while (0)
#define REFUSED(code, words, call)               \
    do {                                         \
        struct diag diag = {.text = ""};          \
        status_t refused_ = (call);              \
        refused(refused_, code, &diag, words);   \
    } while (0)

void open_bench(struct bench *t, uint64_t seed);
void close_bench(struct bench *t);

/* What lies there now, past all queues. */
uint32_t word(const struct bench *t, const uint32_t *device, uint32_t at);

status_t to_device(const struct bench *t, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag);
status_t to_host(const struct bench *t, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag);
status_t on_device(const struct bench *t, void *to, const void *from, size_t bytes, struct cuda_stream *stream, struct diag *diag);

/* Two rows of 8 bytes, out[r] = x[from[r]]: a kernel. */
status_t gather(const struct bench *t, const void *x, const void *from, void *out, struct cuda_stream *stream, struct diag *diag);

/* Runs `doing` in a child, which must die by `sig`. */
void dies(void (*doing)(struct bench *t), struct bench *t, int sig);

/* What a mistake reads for a seed: true when it was lucky. */
typedef bool (*lucky_fn)(struct bench *t);
/* The mistake shows for some seed, and the same seed gives the same again. */
void shows(lucky_fn is_lucky);
/* And what is right is right for every seed. */
void holds(lucky_fn is_right);

/* What callbacks of a stream have said. */
struct note {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    uint32_t count;
    status_t status;
    const struct bench *bench;
    _Atomic uint32_t *seen;
};
void note_done(void *user, status_t status);
void wait_for_note(struct note *note, uint32_t count);

#endif
