/* one_gpu_loop: a communicator of one rank sends to itself what was gathered, and it is scattered, on four lanes over two
 * communicators with a stream each. Beside it, in the same run: gathers alone, scatters alone, and the driver's own copies. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/cuda/driver.h"
#include "tests/nccl/one_gpu.h"

enum { COMMS = 2, LANES = 4 };
enum what { LOOP, GATHER_ALONE, SCATTER_ALONE };

struct own {
    nccl_comm_t comm;
    struct kv_memory_queue *queue;
    void *stream;
};

struct lane {
    struct own *own;
    uint8_t *from, *to; /* slots */
    uint64_t frame;
    uint32_t sums[RANGES]; /* of the gather */
    struct kv_memory_op gather, passed, scatter;
};

struct loop {
    struct one_gpu *gpu;
    struct own owns[COMMS];
    struct lane lanes[LANES];
    uint8_t *slots;
    size_t slice_bytes;
    uint32_t pieces;
    enum what what;
    uint64_t half; /* bytes of the pool's halves: from, to */
    uint64_t frames, begun, ended;
};

static void settle(struct loop *loop, struct own *own, const char *call, nccl_result_t result)
{
    struct diag diag = {.text = ""};
    while (result == NCCL_IN_PROGRESS) {
        nccl_result_t got = loop->gpu->api->comm_get_async_error(own->comm, &result);
        if (got != NCCL_SUCCESS) { result = got; }
    }
    if (result != NCCL_SUCCESS) { stop(nccl_api_status(loop->gpu->api, own->comm, call, result, &diag), "NCCL", &diag); }
}

static void own_open(struct loop *loop, struct own *own)
{
    struct one_gpu *gpu = loop->gpu;
    struct diag diag = {.text = ""};
    struct nccl_id id;
    struct nccl_config config = nccl_config_make(4);
    stop(kv_memory_queue_create(gpu->memory, &own->queue, &diag), "a stream", &diag);
    own->stream = kv_memory_queue_handle(gpu->memory, own->queue);
    settle(loop, own, "ncclGetUniqueId", gpu->api->get_unique_id(&id));
    settle(loop, own, "ncclCommInitRankConfig", gpu->api->comm_init_rank_config(&own->comm, 1, id, 0, &config));
}

static void submit(struct loop *loop, struct kv_memory_op *op)
{
    op->done = kv_memory_inbox_put;
    op->user = &loop->gpu->inbox;
    kv_memory_submit(loop->gpu->memory, op);
}

static void scatter(struct loop *loop, struct lane *lane)
{
    lane->scatter = (struct kv_memory_op){.kind = KV_MEMORY_SCATTER, .count = loop->pieces, .range_bytes = loop->slice_bytes, .slot = lane->to};
    one_gpu_scatter(loop->half, loop->half, loop->slice_bytes, lane->frame * loop->pieces, loop->pieces, lane->scatter.offsets);
    submit(loop, &lane->scatter);
}

/* The next frame of a lane, if there is one. */
static void begin(struct loop *loop, struct lane *lane)
{
    if (loop->begun == loop->frames) { return; }
    lane->frame = loop->begun++;
    if (loop->what == SCATTER_ALONE) {
        scatter(loop, lane);
        return;
    }
    lane->gather = (struct kv_memory_op){.kind = KV_MEMORY_GATHER, .count = loop->pieces, .range_bytes = loop->slice_bytes, .slot = lane->from};
    one_gpu_scatter(0, loop->half, loop->slice_bytes, lane->frame * loop->pieces, loop->pieces, lane->gather.offsets);
    submit(loop, &lane->gather);
}

static void send_to_self(struct loop *loop, struct lane *lane)
{
    const struct nccl_api *api = loop->gpu->api;
    struct own *own = lane->own;
    size_t bytes = loop->pieces * loop->slice_bytes;
    memcpy(lane->sums, lane->gather.crc, sizeof lane->sums);
    settle(loop, own, "ncclGroupStart", api->group_start());
    settle(loop, own, "ncclSend", api->send(lane->from, bytes, NCCL_UINT8, 0, own->comm, own->stream));
    settle(loop, own, "ncclRecv", api->recv(lane->to, bytes, NCCL_UINT8, 0, own->comm, own->stream));
    settle(loop, own, "ncclGroupEnd", api->group_end());
    lane->passed = (struct kv_memory_op){.kind = KV_MEMORY_PASSED, .queue = own->queue};
    submit(loop, &lane->passed);
}

static void advance(struct loop *loop, struct kv_memory_op *op)
{
    struct lane *lane = loop->lanes;
    while (op != &lane->gather && op != &lane->passed && op != &lane->scatter) { lane++; }
    stop(op->status, "an op on the device", NULL);
    if (op == &lane->gather && loop->what == LOOP) {
        send_to_self(loop, lane);
    } else if (op == &lane->passed) {
        scatter(loop, lane);
    } else {
        if (loop->what == LOOP) {
            STOP_UNLESS(memcmp(lane->sums, lane->scatter.crc, loop->pieces * sizeof lane->sums[0]) == 0,
                        "frame %llu: the sums of what was gathered are not those of what came", (unsigned long long)lane->frame);
        }
        loop->ended++;
        begin(loop, lane);
    }
}

/* Bytes a second. */
static double run(struct loop *loop, enum what what)
{
    loop->what = what;
    loop->begun = loop->ended = 0;
    uint64_t start_ns = clock_now_ns();
    for (int i = 0; i < LANES; i++) { begin(loop, &loop->lanes[i]); }
    while (loop->ended < loop->frames) {
        kv_memory_inbox_wait(&loop->gpu->inbox);
        for (struct kv_memory_op *op = kv_memory_inbox_take_all(&loop->gpu->inbox), *next; op; op = next) {
            next = op->next;
            advance(loop, op);
        }
    }
    return (double)(loop->frames * loop->pieces * loop->slice_bytes) / ((double)(clock_now_ns() - start_ns) / (double)NS_PER_S);
}

/* The driver's own copies between two buffers of half a pool: whole, and slice by slice as a frame has them. */
static void copies(const struct loop *loop, double *ret_whole, double *ret_slices)
{
    const struct cuda_driver *d;
    struct diag diag = {.text = ""};
    struct cuda_stream *stream;
    void *from, *to;
    stop(cuda_driver_open(loop->gpu->device, &d, &diag), "copies", &diag);
    stop(d->mem_alloc(d, loop->half, &from, &diag), "copies", &diag);
    stop(d->mem_alloc(d, loop->half, &to, &diag), "copies", &diag);
    stop(d->stream_create(d, false, &stream, &diag), "copies", &diag);
    stop(d->fill(d, from, 0x5a, loop->half, stream, &diag), "copies", &diag);
    for (int warm = 1; warm >= 0; warm--) {
        stop(d->stream_sync(d, stream, &diag), "copies", &diag);
        uint64_t start_ns = clock_now_ns();
        stop(d->copy(d, CUDA_COPY_ON_DEVICE, to, from, loop->half, stream, &diag), "copies", &diag);
        stop(d->stream_sync(d, stream, &diag), "copies", &diag);
        *ret_whole = (double)loop->half / ((double)(clock_now_ns() - start_ns) / (double)NS_PER_S);
        start_ns = clock_now_ns();
        for (uint64_t frame = 0; frame < loop->frames; frame++) {
            struct cuda_copy list[RANGES];
            uint64_t offsets[RANGES];
            one_gpu_scatter(0, loop->half, loop->slice_bytes, frame * loop->pieces, loop->pieces, offsets);
            for (uint32_t i = 0; i < loop->pieces; i++) {
                list[i] = (struct cuda_copy){.to = (uint8_t *)to + offsets[i], .from = (uint8_t *)from + offsets[i], .bytes = loop->slice_bytes};
            }
            stop(d->copy_batch(d, CUDA_COPY_ON_DEVICE, list, loop->pieces, stream, &diag), "copies", &diag);
        }
        stop(d->stream_sync(d, stream, &diag), "copies", &diag);
        *ret_slices = (double)(loop->frames * loop->pieces * loop->slice_bytes) / ((double)(clock_now_ns() - start_ns) / (double)NS_PER_S);
    }
    d->stream_destroy(d, stream);
    d->mem_free(d, from);
    d->mem_free(d, to);
    d->close(d);
}

void one_gpu_loop(struct one_gpu *gpu)
{
    static const size_t slices[] = {4096, 65536, 1 << 20};
    const size_t frame_bytes_max = (size_t)4 << 20;
    struct loop loop = {.gpu = gpu, .half = (size_t)256 << 20};
    struct diag diag = {.text = ""};
    int version = 0;
    while (loop.half > frame_bytes_max && loop.half > gpu->bytes) { loop.half /= 2; }
    one_gpu_open(gpu, 2 * loop.half);
    stop(nccl_api_check_version(gpu->api, &version, &diag), "NCCL", &diag);
    stop(kv_memory_slots_alloc(gpu->memory, 2 * LANES * frame_bytes_max, &loop.slots, &diag), "slots", &diag);
    for (int i = 0; i < COMMS; i++) { own_open(&loop, &loop.owns[i]); }
    for (int i = 0; i < LANES; i++) {
        loop.lanes[i] = (struct lane){.own = &loop.owns[i % COMMS], .from = loop.slots + (size_t)(2 * i) * frame_bytes_max,
                                      .to = loop.slots + (size_t)(2 * i + 1) * frame_bytes_max};
    }
    for (size_t i = 0; i < sizeof slices / sizeof slices[0]; i++) {
        double whole = 0, by_slices = 0;
        loop.slice_bytes = slices[i];
        loop.pieces = RANGES * slices[i] <= frame_bytes_max ? RANGES : (uint32_t)(frame_bytes_max / slices[i]);
        /* All of the half at least once, so that it can be looked at as a whole. */
        loop.frames = (gpu->bytes > loop.half ? gpu->bytes : loop.half) / (loop.pieces * loop.slice_bytes);
        one_gpu_fill(gpu, 0, loop.half, (uint32_t)i + 1);
        one_gpu_fill(gpu, loop.half, loop.half, 77);
        run(&loop, LOOP);
        one_gpu_verify(gpu, loop.half, loop.half, (uint32_t)i + 1);
        double rate = run(&loop, LOOP), gathered = run(&loop, GATHER_ALONE), scattered = run(&loop, SCATTER_ALONE);
        copies(&loop, &whole, &by_slices);
        printf("{\"bench\":\"nccl_loop\",\"nccl\":%d,\"slice\":%zu,\"pieces\":%u,\"frames\":%llu,\"gb_s\":%.2f,\"gather_gb_s\":%.2f,\"scatter_gb_s\":%.2f,"
               "\"copy_gb_s\":%.2f,\"copy_slices_gb_s\":%.2f,\"verified\":true}\n",
               version, loop.slice_bytes, loop.pieces, (unsigned long long)loop.frames, rate / 1e9, gathered / 1e9, scattered / 1e9, whole / 1e9,
               by_slices / 1e9);
    }
    for (int i = 0; i < COMMS; i++) {
        uint64_t start_ns = clock_now_ns();
        settle(&loop, &loop.owns[i], "ncclCommAbort", gpu->api->comm_abort(loop.owns[i].comm));
        printf("{\"bench\":\"nccl_abort_idle\",\"ranks\":1,\"abort_ms\":%.2f}\n", (double)(clock_now_ns() - start_ns) / 1e6);
        kv_memory_queue_destroy(gpu->memory, loop.owns[i].queue);
    }
    kv_memory_slots_free(gpu->memory, loop.slots);
    one_gpu_close(gpu);
}
