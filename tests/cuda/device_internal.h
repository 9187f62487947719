/* device_internal: what the parts of the emulated device share. Private to device_*.c.
 * Parts:   device_table.c (the table, faults), device_memory.c (device, pinned and imported memory), device_queue.c (streams,
 *          events), device_copy.c (copies and kernels that they take), device_foreign.c (a library's own work on a stream), device_schedule.c (who runs what and when), device_run.c (what an operation does), device_gemm.c, device_graph.c, device_ipc.c
 * Thread:  `lock` guards everything of a device; an operation itself runs without it, one at a time (`busy`). */
#ifndef BATON_TESTS_CUDA_DEVICE_INTERNAL_H
#define BATON_TESTS_CUDA_DEVICE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/rng.h"
#include "tests/cuda/device_emulated.h"

/* The CUresults that we give; the numbers are cuda.h's. */
enum {
    CAUSE_INVALID_VALUE = 1,
    CAUSE_OUT_OF_MEMORY = 2,
    CAUSE_INVALID_CONTEXT = 201,
    CAUSE_INVALID_HANDLE = 400,
    CAUSE_ILLEGAL_ADDRESS = 700,
    CAUSE_CAPTURE_UNSUPPORTED = 900,
    CAUSE_CAPTURE_INVALIDATED = 901,
    CAUSE_CAPTURE_UNMATCHED = 903,
    CAUSE_CAPTURE_UNJOINED = 904,
    CAUSE_CAPTURE_ISOLATION = 905,
    CAUSE_CAPTURED_EVENT = 907,
    CAUSE_UNKNOWN = 999,
    CAUSE_GEMM_NOT_SUPPORTED = CUDA_CAUSE_CUBLAS + 15,
};

#define NODE_NONE UINT32_MAX

/* One record of an event, as long as anybody refers to it. */
struct record {
    uint32_t refs;
    bool done;
    struct cuda_stream *stream; /* where it waits to be run; NULL when done */
    uint64_t done_ns;
};

/* The part of an interprocess event that both processes map. */
struct shared_event {
    _Atomic uint32_t recorded, completed;
};

/* A mapping of it, as long as an event or an operation refers to it. */
struct event_map {
    uint32_t refs;
    int fd;      /* -1: imported */
    int peer_fd; /* pidfd of the exporter, or -1: our own */
    struct shared_event *shared;
};

struct cuda_event {
    enum cuda_event_kind kind;
    struct record *last;       /* NULL: never recorded */
    struct event_map *map;     /* INTERPROCESS only */
    struct cuda_graph *graph;  /* its last record was captured: where; the capture may have ended since */
    uint32_t node;
};

enum op_kind { OP_COPY, OP_FILL, OP_LAUNCH, OP_GEMM, OP_RECORD, OP_WAIT, OP_CALLBACK, OP_GRAPH, OP_FOREIGN };

struct op {
    struct op *next;
    enum op_kind kind;
    union {
        struct cuda_copy_2d copy; /* `from` may be `tail` */
        struct { void *device; size_t bytes; uint8_t value; } fill;
        struct { enum cuda_kernel kernel; struct cuda_launch shape; size_t args_bytes; } launch; /* args in tail */
        struct {
            struct cuda_gemm_shape shape;
            uint32_t id;
            const void *weight, *x, *bias;
            void *out, *workspace;
            size_t workspace_bytes;
        } gemm;
        struct { struct record *record; struct event_map *map; uint32_t ticket; } mark; /* RECORD and WAIT: one of the two */
        struct { cuda_done_fn done; void *user; } callback;
        struct { void (*run)(void *user); void *user; } foreign;
        struct cuda_graph *graph;
    } u;
    unsigned char tail[] __attribute__((aligned(16)));
};

struct cuda_stream {
    struct cuda_stream *next;
    struct op *head, *tail;
    uint64_t queued, done; /* operations, ever */
    uint64_t drain_until;  /* of `done`: a thread waits for all streams to get so far */
    uint32_t awaited;      /* operations among those queued that somebody outside may wait for */
    bool running;          /* its head is being run */
    bool urgent;
    struct device *device; /* with has_foreign: for the thread that runs what a library queued here */
    pthread_t foreign;
    bool has_foreign, foreign_stops;
    struct cuda_graph *capture; /* NULL: not capturing */
    uint32_t last_node;
};

struct node {
    struct op *op; /* NULL: a meeting of two streams */
    uint32_t after[2];
};

struct cuda_graph {
    uint32_t refs; /* of the capture or graph_destroy, of each launch that has not run, of each event recorded in it */
    bool has_ended;
    struct node *nodes;
    uint32_t count, capacity;
    const char *spoiled; /* why; NULL: it is not */
    struct cuda_stream *origin;
    bool is_chain; /* every node follows the one before it */
};

struct cuda_gemm {
    struct cuda_gemm_shape shape;
};

struct range {
    struct range *next;
    unsigned char *first; /* what the caller has */
    size_t bytes;
    unsigned char *map; /* between the guard pages */
    size_t map_bytes;
    int fd;           /* of the memfd; -1: imported */
    bool is_imported;
};

struct pinned {
    struct pinned *next;
    unsigned char *first;
    size_t bytes;
    unsigned char *map; /* NULL: registered, the caller's */
    size_t map_bytes;
};

struct planned_failure {
    uint64_t at; /* the number of the call; 0: none */
    int32_t cause;
};

struct device {
    struct cuda_driver table;
    struct emulated_options options;
    uint64_t serial; /* no other device, in any process, has it */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* an operation has ended, or was queued for the worker */
    struct rng rng;
    uint32_t eager; /* of 8: how often something runs when something is queued */
    struct cuda_stream *streams;
    struct range *ranges;
    struct pinned *pinned;
    uint64_t memory_used;
    uint32_t events, graphs, gemms; /* that exist */
    bool busy;
    uint32_t unlocked; /* who has device memory mapped in */
    int32_t sticky;    /* cause; 0: sound */
    char sticky_text[640];
    uint64_t operations_run, break_at;
    uint64_t calls[EMULATED_CALL_COUNT];
    struct planned_failure failures[EMULATED_CALL_COUNT];
    pthread_t worker;
    bool worker_runs, stopping;
};

extern _Thread_local bool device_in_callback; /* set while this thread runs a callback of a stream */

static inline struct device *device_of(const struct cuda_driver *self) { return self->context; }

/* Ends the process: what the chip would punish by corrupting something later. */
__attribute__((noreturn, format(printf, 1, 2))) void device_violation(const char *format, ...);

/* A failure's status and sentence. */
__attribute__((format(printf, 4, 5))) status_t device_raise(const struct device *device, int32_t cause, struct diag *diag,
                                                            const char *format, ...);

/* Each call of the table begins here: takes the lock, counts the call, and fails where it was planned to, or where the device is
 * broken. On failure the lock is not held. */
status_t device_enter(struct device *device, enum emulated_call call, struct diag *diag);
static inline void device_leave(struct device *device) { pthread_mutex_unlock(&device->lock); }
/* The same for calls that return nothing: they count as no kind and never fail. */
void device_enter_void(struct device *device);

/* ---- memory (lock held) ---- */
/* The allocation that [address, address + bytes) lies in wholly; NULL: none. */
struct range *device_range_of(struct device *device, const void *address, size_t bytes);
bool device_is_pinned(struct device *device, const void *address, size_t bytes);
/* Lets this process touch device memory until the matching hide. */
void device_show_memory(struct device *device);
void device_hide_memory(struct device *device);
void device_add_range(struct device *device, int fd, bool is_imported, size_t map_bytes, size_t offset, size_t bytes, void **ret_first);
void device_drop_range(struct device *device, struct range *range);
void device_memory_calls(struct cuda_driver *table);

/* ---- queues (lock held) ---- */
struct op *device_op_create(enum op_kind kind, const void *tail, size_t tail_bytes);
/* Takes the operation: to the stream's end, or into the graph that it captures. Then, by chance, runs something. */
void device_queue(struct device *device, struct cuda_stream *stream, struct op *op);
/* Runs what must run, and by chance more, until the stream has done `ticket` operations. */
void device_drive(struct device *device, struct cuda_stream *stream, uint64_t ticket);
void device_drive_all(struct device *device);
void device_op_free(struct device *device, struct op *op);
void device_record_unref(struct record *record);
void device_event_map_unref(struct event_map *map);
/* Fails where this thread captures on `device`: such a call would spoil the capture, and does. */
status_t device_refuse_in_capture(struct device *device, const char *what, struct diag *diag);
/* The stream whose head may run next, for whoever waits for `target`, or for anybody; NULL: none may. */
struct cuda_stream *device_pick(struct device *device, struct cuda_stream *target, bool is_worker);
/* Runs the first operation of a stream, without the lock. */
void device_run_head(struct device *device, struct cuda_stream *stream);
/* One turn of whoever waits for `target`: runs something, or waits until somebody has. */
void device_advance(struct device *device, struct cuda_stream *target);
/* The process that exported the event has ended. */
bool device_peer_is_dead(const struct event_map *map);
void device_queue_calls(struct cuda_driver *table);
void device_copy_calls(struct cuda_driver *table);
void device_stop_worker(struct device *device);
/* Of a stream that has nothing left to run. */
void device_stop_foreign(struct device *device, struct cuda_stream *stream);
void device_foreign_calls(struct cuda_driver *table);

/* ---- graphs (lock held) ---- */
uint32_t device_graph_add(struct device *device, struct cuda_graph *graph, struct op *op, uint32_t after0, uint32_t after1);
void device_graph_unref(struct device *device, struct cuda_graph *graph);
/* The capture that this thread has begun on this device; NULL: none. */
struct cuda_graph *device_capture_here(const struct device *device);
void device_graph_calls(struct cuda_driver *table);

/* ---- running (lock not held) ---- */
/* What one operation does to memory. False: it broke the device; `text` says how. */
bool device_run(struct device *device, const struct op *op, struct rng *rng, char *text, size_t text_bytes);
void device_gemm_compute(const struct op *op);
void device_gemm_calls(struct cuda_driver *table);

void device_ipc_calls(struct cuda_driver *table);
struct event_map *device_event_map_create(void);

#endif
