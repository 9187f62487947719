/* fake_cuda: what a test sees of the fake libcuda.so.1 and libcublasLt.so.13.
 * Flow:    driver_fake_test -> driver_real.c -> dlopen -> [fake_cuda]
 *
 * The libraries have every function of driver_symbols.h with the header's own types. Device memory is the heap's; what is queued is
 * done at once, or only counted while a stream captures; each call leaves a line in the log. They know the meaning of the
 * arguments as NVIDIA's documents have it, columns first and all, and nothing of our code. */
#ifndef BATON_TESTS_CUDA_FAKE_CUDA_H
#define BATON_TESTS_CUDA_FAKE_CUDA_H

struct fake_cuda {
    char log[1 << 20]; /* "cuMemAlloc_v2 4096\n"; names as they are linked */
    unsigned long log_len;
    char fail_name[64]; /* the function of this name fails ... */
    int fail_after;     /* ... after so many calls that do not */
    int fail_code;
    int device_count, driver_version;
    int contexts, allocations, streams, events, graphs, modules, handles, descriptions; /* that exist */
    unsigned char args[4096]; /* of the last launch */
    unsigned long args_bytes;
};

/* In libcuda.so.1; libcublasLt.so.13 is given it by the test, through fake_cublaslt_use(). */
typedef struct fake_cuda *(*fake_cuda_state_fn)(void);
typedef void (*fake_cublaslt_use_fn)(struct fake_cuda *state);

#endif
