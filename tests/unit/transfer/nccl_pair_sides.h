/* nccl_pair_sides: a pair's two ends over fake_nccl and fake_memory: what the tests of nccl_pair share.
 * Thread:  the test's; facts come on the pairs' own and are waited for with AWAIT.
 * Memory:  a device for each end, freed by nothing_is_left(). */
#ifndef BATON_TESTS_UNIT_TRANSFER_NCCL_PAIR_SIDES_H
#define BATON_TESTS_UNIT_TRANSFER_NCCL_PAIR_SIDES_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/kv_memory/fake_memory.h"
#include "tests/nccl/fake_nccl.h"
#include "transfer/nccl_pair.h"

enum { SLOTS = 4, SLOT_BYTES = 8192, CHANNELS = 2 };
#define MINUTE (60 * NS_PER_S) /* a limit that is not to expire */
#define COMM_BYTES (FAKE_NCCL_BYTES_INIT + CHANNELS * FAKE_NCCL_BYTES_CHANNEL)

/* A pair and what it has told. */
struct owner {
    struct kv_memory *memory;
    struct nccl_pair *pair;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool has_id, is_up, is_broken, is_ended;
    uint8_t id[NCCL_ID_BYTES];
    uint64_t bytes, facts;
    uint32_t passed[SLOTS], passed_all, leaks;
    status_t status;
    char text[256];
};

#define AWAIT(owner, condition)                                                        \
    do {                                                                               \
        pthread_mutex_lock(&(owner)->lock);                                            \
        while (!(condition)) { pthread_cond_wait(&(owner)->changed, &(owner)->lock); } \
        pthread_mutex_unlock(&(owner)->lock);                                          \
    } while (0)

/* Before all tests of a program. */
int sides_setup(void **state);

struct kv_memory *memory_create(uint64_t seed);
uint64_t left_of(struct kv_memory *memory);
void options(struct fake_nccl_options of);

/* id  rank 1's; else NULL. */
void start(struct owner *owner, struct kv_memory *memory, uint32_t rank, const uint8_t *id, uint64_t init_ns, uint64_t stall_ns);
/* After nccl_pair_end(). Of a pair that was up NCCL keeps nothing. */
void finish(struct owner *owner);
void end(struct owner *owner);

/* Two ends in one process, each with a device of its own. */
struct two {
    struct kv_memory *memory_p, *memory_d;
    struct owner p, d;
    uint64_t left;
};
void begin_with(struct two *two, uint64_t init_ns, uint64_t stall_ns);
void begin(struct two *two); /* both are up */
/* Both devices are as before, and NCCL has nothing left. */
void nothing_is_left(struct two *two);
void close_two(struct two *two);

void fill(struct owner *owner, uint32_t slot, uint32_t number, size_t bytes);
bool holds(struct owner *owner, uint32_t slot, uint32_t number, size_t bytes);
/* As the cable does it: the receiver first. */
void move(struct two *two, uint32_t slot_p, uint32_t slot_d, size_t bytes);

#endif
