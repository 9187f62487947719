/* device_emulated: a CUDA device of a chip's manners but made of this machine's memory, behind the table of
 * kernels/cuda/driver.h. For tests: what a chip would forgive by luck fails here.
 * Flow:    cuda_backend, device_memory, cables -> driver.h -> [device_emulated] -> tests/cuda/emu.h for kernels
 * Thread:  as driver.h says. Operations run one at a time, on the thread that waits for them, or on the device's own thread
 *          where a callback or another process may wait. A library's work on a stream runs beside them.
 * Memory:  device memory is memfd mappings between guard pages; all is freed by close, which fails loudly if something that
 *          was created is still there.
 *
 * What is held against the host code:
 *   Memory. Device memory starts as NaN (all bits set), and the host may not touch it: it is mapped without access but while
 *     an operation runs. A host address where a device's belongs, a device's or unpinned memory where pinned memory belongs, a
 *     range that leaves its allocation: INVALID_ARGUMENT at once. A kernel's argument that points into host memory too.
 *     Bytes beside an allocation that changed: the process ends with a sentence.
 *   Lateness. What is queued runs when somebody waits for it or behind it, or by chance at once, never in between by
 *     itself; on other streams it then runs or does not, by chance. So whoever forgot an event, or to wait, or overwrote
 *     what a copy had yet to read, has wrong data for some seed. One seed and one thread give the same order always.
 *   Callbacks run on a thread of the device; calling the driver there ends the process with a sentence.
 *   Capture. What is captured does not run and keeps its addresses and argument bytes; a wait, an allocation or a free
 *     by the capturing thread fails and spoils the capture; so do a pageable copy, a batch, a callback, a wait for what is
 *     outside, and a stream that was not joined again. The parts of a graph that do not depend on each other run in any order.
 *   Products. Several algorithms, which sum in different orders, with and without splitting; those of one plan are offered in an
 *     order that depends on the rows, and one of them cannot do every number of rows.
 *   Processes. Memory and events are exported as on the chip, through the memory of both processes; an importer that lives
 *     on while the exporter dies is released from its events, with whatever bytes are there. */
#ifndef BATON_TESTS_CUDA_DEVICE_EMULATED_H
#define BATON_TESTS_CUDA_DEVICE_EMULATED_H

#include <stdint.h>

#include "kernels/cuda/driver.h"

/* All zero: device 0, sm_90, 4 GiB, seed 1, nothing fails. */
struct emulated_options {
    uint64_t seed;         /* of all orders; 0: 1 */
    uint32_t device;       /* the number, and the uuid, which two processes share */
    uint32_t arch;         /* 0: 90 */
    uint32_t sm_count;     /* 0: 4 */
    uint64_t memory_bytes; /* 0: 4 GiB; an allocation beyond it is RESOURCE_EXHAUSTED */
};

/* Returns owned; end with ret->close(ret). Never fails: a test machine without memory ends the process. */
const struct cuda_driver *emulated_device_create(const struct emulated_options *options);

/* What can be made to fail. A call counts when it comes, whatever becomes of it. */
enum emulated_call {
    EMULATED_MEM_ALLOC,
    EMULATED_HOST_ALLOC, /* host_register too */
    EMULATED_COPY,       /* all forms, and fill */
    EMULATED_STREAM,     /* stream_create, stream_wait_event, thread_bind */
    EMULATED_WAIT,       /* stream_sync, event_sync */
    EMULATED_EVENT,      /* event_create, event_record */
    EMULATED_CALLBACK,
    EMULATED_LAUNCH,
    EMULATED_GRAPH,      /* capture_begin, capture_end, graph_launch */
    EMULATED_GEMM,       /* gemm_create, gemm_algorithms, gemm_adopt, gemm_run */
    EMULATED_IPC,        /* exports and imports */
    EMULATED_CALL_COUNT,
};

/* Calls of this kind so far, so that a test can fail number 1 .. of them in turn. */
uint64_t emulated_device_calls(const struct cuda_driver *driver, enum emulated_call call);

/* The `nth` call of the kind from here on (1: the next) fails with this cause, once, and does nothing. 0 for nth: none.
 * Causes: 2 out of memory, 1 invalid value, 999 unknown, 900 capture unsupported; CUDA_CAUSE_CUBLAS + 15 not supported. */
void emulated_device_fail(const struct cuda_driver *driver, enum emulated_call call, uint64_t nth, int32_t cause);

/* The `nth` operation that runs from here on (1: the next) breaks the device, as a kernel's bad address would: it and all
 * after it do nothing, and every call from then on that queues or waits says so. 0: none. */
void emulated_device_break(const struct cuda_driver *driver, uint64_t nth);

/* Operations that have run so far, and those that are queued and have not. */
uint64_t emulated_device_operations_run(const struct cuda_driver *driver);
uint64_t emulated_device_operations_left(const struct cuda_driver *driver);

/* For tests' eyes: reads and writes device memory at once, past all queues. False: not within one allocation. */
bool emulated_device_peek(const struct cuda_driver *driver, const void *device, void *ret_bytes, size_t bytes);
bool emulated_device_poke(const struct cuda_driver *driver, void *device, const void *from, size_t bytes);

/* ---- for a fake of a library that queues its own work, as NCCL does */

/* The device that the calling thread was bound to last (driver.h, thread_bind); NULL: none. */
const struct cuda_driver *emulated_device_bound(void);

/* Queues fn on a stream, handle  what stream_handle gave. It runs once, in the stream's order, on a thread that the stream has
 * for such work: it may wait as long as it likes, which holds up its own stream and who waits for that or for the whole
 * device (mem_free, host_free), and no other. It reaches device memory by peek and poke, and calls nothing else of the driver.
 * It runs on a device that is broken too. */
void emulated_device_stream_run(const struct cuda_driver *driver, void *handle, void (*fn)(void *user), void *user);

/* Device memory that the library takes for itself. False: there is not so much, and none was taken. */
bool emulated_device_take(const struct cuda_driver *driver, uint64_t bytes);
void emulated_device_give_back(const struct cuda_driver *driver, uint64_t bytes);

#endif
