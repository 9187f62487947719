/* driver: what Baton asks of a CUDA device, as one table of calls.
 * Flow:    cuda_backend, device_memory, cables -> [driver.h] -> driver_real.c (libcuda, libcublasLt), or the
 *          emulated device of tests/cuda, which has the same table
 * Thread:  every call from any thread; an implementation makes the device current for the calling thread.
 *          Streams, events, graphs and plans are for one thread at a time, except that any thread may wait for or
 *          synchronize with an event while nobody records or destroys it.
 * Memory:  create and alloc calls allocate, the others do not.
 *
 * Addresses. "device" parameters are addresses in the device's memory; the host must not follow them, and
 * kernels must not be given host addresses. "pinned" parameters lie in memory from host_alloc or
 * host_register: a copy from or to other host memory is refused by the emulated device, because on the chip
 * it would silently stop being asynchronous.
 *
 * Order. What is queued on one stream runs in order; streams are not ordered but through events. Every call
 * that takes a stream only queues. No stream is NULL.
 *
 * Errors. status_t.cause is the CUresult, or CUDA_CAUSE_CUBLAS plus the cublasStatus_t; error_name() says it
 * in words. `diag` may be NULL, and otherwise holds a sentence after every failure. Codes:
 *   RESOURCE_EXHAUSTED (node)   no memory on the device or the host
 *   INVALID_ARGUMENT (node)     the device says that our arguments are wrong: a bug of ours
 *   FAILED_PRECONDITION (node)  not now or not here: a capture is under way; no such device; no code for it
 *   UNIMPLEMENTED (node)        a GEMM that cuBLASLt has no algorithm for
 *   INTERNAL (node)             all else. A kernel that fails does so late: the next call that waits gets the
 *                               error, and so does every call from then on ("sticky"); the process must end. */
#ifndef BATON_KERNELS_CUDA_DRIVER_H
#define BATON_KERNELS_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/dtype.h"
#include "base/status.h"
#include "kernels/cuda/kernel_list.h"
#include "kernels/cuda/launch.h"

#define CUDA_CAUSE_CUBLAS 100000 /* added to a cublasStatus_t; every CUresult is below */

struct cuda_stream; /* all private to the implementation */
struct cuda_event;
struct cuda_graph;
struct cuda_gemm;

struct cuda_device_info {
    char name[128];
    uint32_t device;           /* the number that it was opened by */
    uint32_t arch;             /* compute capability: 90 is sm_90 */
    uint32_t sm_count;
    uint32_t shared_bytes_max; /* dynamic shared memory that a block may have */
    uint32_t l2_bytes;
    uint64_t memory_bytes;
    uint8_t uuid[16];          /* the same in every process, whatever number it has there */
    uint32_t driver_version;   /* 13000 is CUDA 13.0 */
};

enum cuda_event_kind {
    CUDA_EVENT_ORDER = 0,        /* no time stamps: the cheap one */
    CUDA_EVENT_TIMING = 1,       /* for event_elapsed */
    CUDA_EVENT_INTERPROCESS = 2, /* no time stamps; ipc_export_event takes it */
};

/* An allocation or an event, as another process of this machine may open it. Bytes without pointers. */
struct cuda_ipc_handle {
    unsigned char bytes[64];
};

enum cuda_copy_kind { CUDA_COPY_TO_DEVICE = 0, CUDA_COPY_TO_HOST = 1, CUDA_COPY_ON_DEVICE = 2 };

struct cuda_copy {
    void *to;
    const void *from;
    size_t bytes;
};

/* `rows` runs of row_bytes; the pitches are bytes from one run to the next, >= row_bytes. */
struct cuda_copy_2d {
    enum cuda_copy_kind kind;
    void *to;
    size_t to_pitch;
    const void *from;
    size_t from_pitch;
    size_t row_bytes;
    size_t rows;
};

/* Called once, on a thread of the driver, when all that was queued before it is done or can never be: then
 * `status` is the device's error. It must be short and must call nothing of the driver: post, or write an
 * eventfd. */
typedef void (*cuda_done_fn)(void *user, status_t status);

/* out[rows][n_out] = x[rows][n_in] * weight[n_out][n_in]^T (+ bias[n_out]) (+ out before), all row-major with
 * strides in elements, summed in f32. */
struct cuda_gemm_shape {
    uint32_t rows;
    uint32_t n_out;
    uint32_t n_in;
    enum dtype dtype;       /* of weight and x: F32, BF16 or F16 */
    enum dtype out_dtype;   /* `dtype` or F32; bias has it too */
    uint32_t weight_stride; /* >= n_in */
    uint32_t x_stride;      /* >= n_in */
    uint32_t out_stride;    /* >= n_out */
    bool has_bias;
    bool accumulate;        /* add to what out holds */
    bool deterministic;     /* offer only algorithms that form every sum in one piece: no split over n_in */
};

/* One way to do it: a plain value that lives as long as the process, and that a plan of other rows takes too
 * where gemm_adopt says so. */
struct cuda_gemm_algorithm {
    uint64_t opaque[8];     /* cublasLtMatmulAlgo_t */
    size_t workspace_bytes;
    uint32_t split_k;       /* parts that the sum is formed in; 1 where the shape is deterministic */
    uint32_t id;            /* for logs: kind, tile and stages as the library numbers them */
    uint32_t tile;
    uint32_t stages;
};

#define CUDA_GEMM_ALGORITHMS_MAX 32u

struct cuda_driver {
    void *context; /* the implementation's */
    struct cuda_device_info info;

    /* Frees the table itself too. All that it created must have been destroyed before. */
    void (*close)(const struct cuda_driver *self);

    /* "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_NOT_SUPPORTED"; "?" for what is none. Static text. */
    const char *(*error_name)(const struct cuda_driver *self, int32_t cause);

    /* For a library that asks CUDA by itself, as NCCL does: makes the device the calling thread's, which the calls of this
     * table do on their own. */
    status_t (*thread_bind)(const struct cuda_driver *self, struct diag *diag);

    /* ---- memory ---- */
    status_t (*memory_left)(const struct cuda_driver *self, uint64_t *ret_free, uint64_t *ret_total,
                            struct diag *diag);

    /* Device memory, aligned to 256 bytes or better, of unknown content. Never in the token loop: it may wait
     * for the device. mem_free takes NULL and waits for the device. */
    status_t (*mem_alloc)(const struct cuda_driver *self, size_t bytes, void **ret_device, struct diag *diag);
    void (*mem_free)(const struct cuda_driver *self, void *device);

    /* Pinned host memory, zeroed, page-aligned. host_free takes NULL. */
    status_t (*host_alloc)(const struct cuda_driver *self, size_t bytes, void **ret_pinned, struct diag *diag);
    void (*host_free)(const struct cuda_driver *self, void *pinned);

    /* Pins memory that the caller has and keeps until host_unregister; page-aligned. */
    status_t (*host_register)(const struct cuda_driver *self, void *host, size_t bytes, struct diag *diag);
    void (*host_unregister)(const struct cuda_driver *self, void *host);

    /* Copies and fills, queued. 0 bytes, rows or copies queue nothing. Host memory is pinned and held until
     * the stream has passed. ON_DEVICE takes imported memory too. copy_batch promises no order among its copies:
     * they must not overlap; the array is read before it returns; FAILED_PRECONDITION while the stream is capturing. */
    status_t (*copy)(const struct cuda_driver *self, enum cuda_copy_kind kind, void *to, const void *from,
                     size_t bytes, struct cuda_stream *stream, struct diag *diag);
    status_t (*copy_2d)(const struct cuda_driver *self, const struct cuda_copy_2d *copy,
                        struct cuda_stream *stream, struct diag *diag);
    status_t (*copy_batch)(const struct cuda_driver *self, enum cuda_copy_kind kind,
                           const struct cuda_copy *copies, size_t count, struct cuda_stream *stream,
                           struct diag *diag);
    status_t (*fill)(const struct cuda_driver *self, void *device, uint8_t value, size_t bytes,
                     struct cuda_stream *stream, struct diag *diag);

    /* From any host memory, such as a mapped file; what `host` holds has been read when it returns, and the
     * copy is done in the stream's order. FAILED_PRECONDITION while the stream is capturing. */
    status_t (*copy_from_pageable)(const struct cuda_driver *self, void *device, const void *host, size_t bytes,
                                   struct cuda_stream *stream, struct diag *diag);

    /* ---- streams and events ---- */
    /* urgent: its kernels' blocks are placed before those of other streams. Not ordered with the null stream. */
    status_t (*stream_create)(const struct cuda_driver *self, bool urgent, struct cuda_stream **ret_stream,
                              struct diag *diag);
    void (*stream_destroy)(const struct cuda_driver *self, struct cuda_stream *stream); /* takes NULL; waits */
    status_t (*stream_sync)(const struct cuda_driver *self, struct cuda_stream *stream, struct diag *diag);
    /* The stream as such a library takes it: a CUstream. What it queues there counts as queued for the calls below. */
    void *(*stream_handle)(const struct cuda_driver *self, struct cuda_stream *stream);
    /* What is queued on `stream` from here on runs after the event's last record before this call; an event
     * that was never recorded orders nothing. */
    status_t (*stream_wait_event)(const struct cuda_driver *self, struct cuda_stream *stream,
                                  struct cuda_event *event, struct diag *diag);
    /* Refused while capturing. On failure `done` is not called. What is queued behind it waits for it. */
    status_t (*stream_callback)(const struct cuda_driver *self, struct cuda_stream *stream, cuda_done_fn done,
                                void *user, struct diag *diag);

    status_t (*event_create)(const struct cuda_driver *self, enum cuda_event_kind kind,
                             struct cuda_event **ret_event, struct diag *diag);
    void (*event_destroy)(const struct cuda_driver *self, struct cuda_event *event); /* takes NULL */
    status_t (*event_record)(const struct cuda_driver *self, struct cuda_event *event,
                             struct cuda_stream *stream, struct diag *diag);
    /* At once where it was never recorded. */
    status_t (*event_sync)(const struct cuda_driver *self, struct cuda_event *event, struct diag *diag);
    /* Milliseconds between two TIMING events that are done. */
    status_t (*event_elapsed)(const struct cuda_driver *self, struct cuda_event *first,
                              struct cuda_event *last, float *ret_ms, struct diag *diag);

    /* ---- between processes ---- */
    /* device  what mem_alloc returned: an allocation is exported whole. The importer's device must be the same
     *         one, or a peer of it. An exporter must not free before its importers have closed. A process cannot
     *         import its own memory (FAILED_PRECONDITION). */
    status_t (*ipc_export_memory)(const struct cuda_driver *self, void *device,
                                  struct cuda_ipc_handle *ret_handle, struct diag *diag);
    status_t (*ipc_import_memory)(const struct cuda_driver *self, const struct cuda_ipc_handle *handle,
                                  void **ret_device, struct diag *diag);
    /* Takes NULL. No copy of it may be under way. */
    void (*ipc_close_memory)(const struct cuda_driver *self, void *device);
    /* event_destroy ends an imported event too. */
    status_t (*ipc_export_event)(const struct cuda_driver *self, struct cuda_event *event,
                                 struct cuda_ipc_handle *ret_handle, struct diag *diag);
    status_t (*ipc_import_event)(const struct cuda_driver *self, const struct cuda_ipc_handle *handle,
                                 struct cuda_event **ret_event, struct diag *diag);

    /* ---- kernels ---- */
    /* args    the kernel's one struct, args_bytes of it; read before it returns. */
    status_t (*launch)(const struct cuda_driver *self, enum cuda_kernel kernel, const struct cuda_launch *shape,
                       const void *args, size_t args_bytes, struct cuda_stream *stream, struct diag *diag);

    /* ---- graphs ---- */
    /* From capture_begin on, what is queued on `stream` is recorded instead of run, as are streams that wait for
     * an event recorded there, which must have joined it again, by an event, before capture_end. Addresses and
     * argument bytes are recorded as they are. Until the end this thread may not alloc, free, or sync with
     * a capturing stream or event: that spoils the capture and capture_end says so. Other threads are free to.
     * capture_end ends a capture whatever happened; on failure there is no graph. */
    status_t (*capture_begin)(const struct cuda_driver *self, struct cuda_stream *stream, struct diag *diag);
    status_t (*capture_end)(const struct cuda_driver *self, struct cuda_stream *stream,
                            struct cuda_graph **ret_graph, struct diag *diag);
    /* A graph runs once at a time: a launch waits for the one before it. */
    status_t (*graph_launch)(const struct cuda_driver *self, struct cuda_graph *graph,
                             struct cuda_stream *stream, struct diag *diag);
    void (*graph_destroy)(const struct cuda_driver *self, struct cuda_graph *graph); /* takes NULL */

    /* ---- matrix products ---- */
    /* UNIMPLEMENTED: none can be had for the shape. Bases are taken to be 16-byte aligned. */
    status_t (*gemm_create)(const struct cuda_driver *self, const struct cuda_gemm_shape *shape,
                            struct cuda_gemm **ret_gemm, struct diag *diag);
    void (*gemm_destroy)(const struct cuda_driver *self, struct cuda_gemm *gemm); /* takes NULL */
    /* Writes up to `capacity` algorithms that need no more than workspace_max bytes, the likely best first.
     * Slow (the library's heuristics): at start-up. UNIMPLEMENTED where there is none. */
    status_t (*gemm_algorithms)(const struct cuda_driver *self, struct cuda_gemm *gemm, size_t workspace_max,
                                uint32_t capacity, struct cuda_gemm_algorithm *ret_algorithms,
                                uint32_t *ret_count, struct diag *diag);
    /* Whether an algorithm found for another shape can do this one. Updates its workspace_bytes.
     * UNIMPLEMENTED: it cannot. */
    status_t (*gemm_adopt)(const struct cuda_driver *self, struct cuda_gemm *gemm,
                           struct cuda_gemm_algorithm *algorithm, struct diag *diag);
    /* bias NULL exactly where the shape has none. workspace: device, 256-byte aligned, at least the algorithm's
     * workspace_bytes; its content before does not matter. Two products that may run at once need two. */
    status_t (*gemm_run)(const struct cuda_driver *self, struct cuda_gemm *gemm,
                         const struct cuda_gemm_algorithm *algorithm, const void *weight, const void *x,
                         const void *bias, void *out, void *workspace, size_t workspace_bytes,
                         struct cuda_stream *stream, struct diag *diag);
};

/* Opens device number `device` of this machine. Which of the implementations it is, is settled by linking: a node names
 * driver_real among its own deps, an emulated node the emulated device. The reference is weak, so that the many programs
 * that link the kernels without either stay free of device code: there it is NULL, and the caller must ask.
 * Returns owned; end with ret->close(ret).
 * Errors   FAILED_PRECONDITION (node): no driver, no cuBLASLt, no such device, or no code for its architecture
 *          in this binary; diag says which, where it was sought, and what to do. */
#ifndef CUDA_DRIVER_IMPLEMENTATION /* who defines it does so strongly, that two in one program are an error */
__attribute__((weak))
#endif
NODISCARD status_t cuda_driver_open(uint32_t device, const struct cuda_driver **ret_driver, struct diag *diag);

#endif
