/* one_gpu: what its parts share. See one_gpu.c. */
#ifndef BATON_TESTS_NCCL_ONE_GPU_H
#define BATON_TESTS_NCCL_ONE_GPU_H

#include "kv/kv_memory.h"
#include "kv/kv_memory_inbox.h"
#include "transfer/nccl_api.h"

#define RANGES KV_MEMORY_RANGES_MAX

struct one_gpu {
    uint32_t device;
    const char *library;
    uint64_t bytes; /* to move for one figure */
    struct kernels *kernels;
    void *pool;
    size_t pool_bytes;
    struct kv_memory *memory;
    const struct nccl_api *api;
    struct kv_memory_inbox inbox; /* ops that are done */
    uint8_t *host;                /* RANGES * KV_MEMORY_ALIGN or more, of the memory's */
    size_t host_bytes;
};

/* Ends the program with the sentence, if it failed. */
void stop(status_t st, const char *what, const struct diag *diag);
#define STOP_UNLESS(cond, ...)                        \
    do {                                              \
        if (!(cond)) {                                \
            fprintf(stderr, "one_gpu: " __VA_ARGS__); \
            fputc('\n', stderr);                      \
            exit(1);                                  \
        }                                             \
    } while (0)

/* The device, a pool of so many bytes, and NCCL; binds the calling thread. */
void one_gpu_open(struct one_gpu *gpu, size_t pool_bytes);
void one_gpu_close(struct one_gpu *gpu);

/* An op of the memory and its end; for what is not measured. */
void one_gpu_do(struct one_gpu *gpu, struct kv_memory_op *op);

/* Fills bytes [at, at + bytes) of the pool with the pattern of `seed`, or stops where they do not hold it; the pattern goes by the
 * offset from `at`. Both are multiples of 4096. */
void one_gpu_fill(struct one_gpu *gpu, uint64_t at, uint64_t bytes, uint32_t seed);
void one_gpu_verify(struct one_gpu *gpu, uint64_t at, uint64_t bytes, uint32_t seed);

/* Offsets of `count` slices that lie scattered over [at, at + bytes): slices first, first + 1, ... of an order in which each comes
 * once before one comes again, the same for the same numbers. */
void one_gpu_scatter(uint64_t at, uint64_t bytes, size_t slice_bytes, uint64_t first, uint32_t count, uint64_t *ret_offsets);

/* Parts: one JSON line for each figure on standard output. */
void one_gpu_loop(struct one_gpu *gpu);
void one_gpu_pairs(struct one_gpu *gpu, const char *program);
void one_gpu_deaths(struct one_gpu *gpu, const char *program);
void one_gpu_child(struct one_gpu *gpu, int fd, uint32_t rank, uint32_t channels);

#endif
