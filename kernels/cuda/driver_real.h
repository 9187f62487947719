/* driver_real: what the parts of the real driver share. Private to driver_*.c.
 * Flow:    cuda_driver_open -> driver_real.c (device, memory, kernels), driver_queue.c (streams, events, copies, graphs),
 *          driver_gemm.c (cuBLASLt) */
#ifndef BATON_KERNELS_CUDA_DRIVER_REAL_H
#define BATON_KERNELS_CUDA_DRIVER_REAL_H

#include <pthread.h>

#include "kernels/cuda/driver.h"
#include "kernels/cuda/driver_symbols.h"

/* A stream callback on its way: it needs a place for our function and its argument. */
struct real_callback {
    struct real_callback *next;
    struct real_driver *real;
    cuda_done_fn done;
    void *user;
};

struct real_driver {
    struct cuda_driver table;
    struct cuda_api cu;
    struct cublaslt_api lt;
    uint64_t serial; /* of this opening: tells a thread that its current context is of an older one */
    CUdevice device;
    CUcontext context;
    cublasLtHandle_t lt_handle;
    int priority_least, priority_greatest;
    CUmodule *modules; /* [cuda_fatbin_count] */
    CUfunction functions[CUDA_KERNEL_COUNT + 1];
    size_t args_bytes[CUDA_KERNEL_COUNT + 1];
    bool starts_early[CUDA_KERNEL_COUNT + 1];
    pthread_mutex_t callbacks_lock; /* of the list: callbacks come back on libcuda's thread */
    struct real_callback *callbacks_free;
};

static inline struct real_driver *real_of(const struct cuda_driver *self) { return self->context; }

/* Makes the device's primary context current for this thread, once. */
status_t real_enter(struct real_driver *real, struct diag *diag);

/* The status for a failed call, raised at `line`; the diag reads "<what>: CUDA_ERROR_X (sentence)". */
status_t real_raise(const struct real_driver *real, CUresult result, int line, const char *what, struct diag *diag);
status_t real_raise_cublas(const struct real_driver *real, cublasStatus_t result, int line, const char *what,
                           struct diag *diag);

/* Calls into libcuda and leaves with the status where it fails; for functions that hold nothing. */
#define TRY_CU(real, diag, call, ...)                                                          \
    do {                                                                                       \
        CUresult result_ = (real)->cu.call(__VA_ARGS__);                                       \
        if (result_ != CUDA_SUCCESS) { return real_raise(real, result_, __LINE__, #call, diag); } \
    } while (0)

static inline CUdeviceptr device_address(const void *device) { return (CUdeviceptr)(uintptr_t)device; }
static inline CUstream stream_of(struct cuda_stream *stream) { return (CUstream)(void *)stream; }
static inline CUevent event_of(struct cuda_event *event) { return (CUevent)(void *)event; }

/* Fill in the calls of one part. */
void real_queue_calls(struct cuda_driver *table);
void real_gemm_calls(struct cuda_driver *table);

#endif
