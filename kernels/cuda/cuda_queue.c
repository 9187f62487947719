#include "kernels/cuda/cuda_queue.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"

enum call_kind { CALL_LAUNCH, CALL_COPY, CALL_COPY_2D, CALL_FILL, CALL_GEMM };

struct launch_call {
    enum cuda_kernel kernel;
    struct cuda_launch shape;
    size_t args_bytes; /* they follow */
};

struct copy_call {
    enum cuda_copy_kind kind;
    void *to;
    const void *from;
    size_t bytes;
};

struct fill_call {
    void *device;
    size_t bytes;
    uint8_t value;
};

/* One call of a capture, as it is written down. */
struct call {
    enum call_kind kind;
    const char *operation;
    size_t bytes; /* with what follows the struct; a multiple of 16 */
    union {
        struct launch_call launch;
        struct copy_call copy;
        struct cuda_copy_2d copy_2d;
        struct fill_call fill;
        struct cuda_queue_gemm gemm;
    } u;
};

status_t cuda_queue_init(struct cuda_queue *queue, const struct cuda_driver *driver, struct diag *diag)
{
    *queue = (struct cuda_queue){.driver = driver, .operation = "create"};
    return driver->stream_create(driver, false, &queue->stream, diag);
}

void cuda_queue_fini(struct cuda_queue *queue)
{
    if (queue->driver == NULL) { return; }
    if (queue->is_capturing) { /* destroyed inside a graph: nobody wants its operations any more */
        struct cuda_graph *graph = NULL;
        status_t st = queue->driver->capture_end(queue->driver, queue->stream, &graph, NULL);
        if (!failed(st)) { queue->driver->graph_destroy(queue->driver, graph); }
    }
    queue->driver->stream_destroy(queue->driver, queue->stream);
    free(queue->calls);
    *queue = (struct cuda_queue){0};
}

void cuda_queue_fail(struct cuda_queue *queue, status_t st, const struct diag *text)
{
    if (failed(queue->error)) { return; }
    /* Whatever the driver calls it, for the caller of an operation the device is of no more use. */
    queue->error = st.code == ST_RESOURCE_EXHAUSTED ? st : STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, st.cause);
    if (st.cause == 0) { /* ours */
        diag_set(&queue->error_text, "%s: %s", queue->operation, text->text);
        return;
    }
    diag_set(&queue->error_text, "%s: %s: %s", queue->operation, queue->driver->error_name(queue->driver, st.cause), text->text);
}

/* ---- one call ------------------------------------------------------------------------------- */

static status_t call_run(struct cuda_queue *queue, const struct call *call, const void *args, struct diag *diag)
{
    const struct cuda_driver *d = queue->driver;
    switch (call->kind) {
    case CALL_LAUNCH:
        return d->launch(d, call->u.launch.kernel, &call->u.launch.shape, args, call->u.launch.args_bytes, queue->stream, diag);
    case CALL_COPY:
        return d->copy(d, call->u.copy.kind, call->u.copy.to, call->u.copy.from, call->u.copy.bytes, queue->stream, diag);
    case CALL_COPY_2D: return d->copy_2d(d, &call->u.copy_2d, queue->stream, diag);
    case CALL_FILL: return d->fill(d, call->u.fill.device, call->u.fill.value, call->u.fill.bytes, queue->stream, diag);
    default: break;
    }
    const struct cuda_queue_gemm *g = &call->u.gemm;
    return d->gemm_run(d, g->gemm, g->algorithm, g->weight, g->x, g->bias, g->out, g->workspace, g->workspace_bytes, queue->stream,
                       diag);
}

static bool write_down(struct cuda_queue *queue, struct call *call, const void *args, size_t args_bytes)
{
    call->bytes = (sizeof(*call) + args_bytes + 15) / 16 * 16;
    size_t need = queue->calls_bytes + call->bytes;
    if (need > queue->calls_capacity) {
        size_t capacity = queue->calls_capacity == 0 ? (size_t)64 << 10 : queue->calls_capacity * 2;
        while (capacity < need) { capacity *= 2; }
        uint8_t *calls = realloc(queue->calls, capacity);
        if (calls == NULL) { return false; }
        queue->calls = calls;
        queue->calls_capacity = capacity;
    }
    uint8_t *at = queue->calls + queue->calls_bytes;
    memcpy(at, call, sizeof(*call));
    if (args_bytes != 0) { memcpy(at + sizeof(*call), args, args_bytes); }
    queue->calls_bytes = need;
    return true;
}

static void run_or_fail(struct cuda_queue *queue, const struct call *call, const void *args)
{
    struct diag text = {{0}};
    status_t st = call_run(queue, call, args, &text);
    if (failed(st)) { cuda_queue_fail(queue, st, &text); }
}

static void issue(struct cuda_queue *queue, struct call *call, const void *args, size_t args_bytes)
{
    if (cuda_queue_failed(queue)) { return; }
    call->operation = queue->operation;
    if (queue->is_capturing && !write_down(queue, call, args, args_bytes)) {
        cuda_queue_capture_abandon(queue, "no memory to write its calls down");
    }
    if (!queue->is_capturing) {
        run_or_fail(queue, call, args);
        return;
    }
    struct diag text = {{0}};
    status_t st = call_run(queue, call, args, &text);
    if (!failed(st)) { return; }
    struct diag why;
    diag_set(&why, "%s: %s: %s", queue->operation, queue->driver->error_name(queue->driver, st.cause), text.text);
    cuda_queue_capture_abandon(queue, why.text); /* queues this call too: it has been written down */
}

void cuda_queue_launch(struct cuda_queue *queue, enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args,
                       size_t args_bytes)
{
    struct call call = {.kind = CALL_LAUNCH, .u.launch = {.kernel = kernel, .shape = *shape, .args_bytes = args_bytes}};
    issue(queue, &call, args, args_bytes);
}

void cuda_queue_copy(struct cuda_queue *queue, enum cuda_copy_kind kind, void *to, const void *from, size_t bytes)
{
    struct call call = {.kind = CALL_COPY, .u.copy = {.kind = kind, .to = to, .from = from, .bytes = bytes}};
    issue(queue, &call, NULL, 0);
}

void cuda_queue_copy_2d(struct cuda_queue *queue, const struct cuda_copy_2d *copy)
{
    struct call call = {.kind = CALL_COPY_2D, .u.copy_2d = *copy};
    issue(queue, &call, NULL, 0);
}

void cuda_queue_fill(struct cuda_queue *queue, void *device, uint8_t value, size_t bytes)
{
    struct call call = {.kind = CALL_FILL, .u.fill = {.device = device, .value = value, .bytes = bytes}};
    issue(queue, &call, NULL, 0);
}

void cuda_queue_gemm(struct cuda_queue *queue, const struct cuda_queue_gemm *args)
{
    struct call call = {.kind = CALL_GEMM, .u.gemm = *args};
    issue(queue, &call, NULL, 0);
}

/* ---- captures ------------------------------------------------------------------------------- */

bool cuda_queue_capture_begin(struct cuda_queue *queue)
{
    CHECK(!queue->is_capturing);
    if (cuda_queue_failed(queue)) { return false; }
    status_t st = queue->driver->capture_begin(queue->driver, queue->stream, &queue->abandon_text);
    queue->calls_bytes = 0;
    queue->is_capturing = !failed(st);
    return queue->is_capturing;
}

/* Queues what the capture has recorded and will never run. */
static void replay(struct cuda_queue *queue)
{
    const char *operation = queue->operation;
    for (size_t at = 0; at < queue->calls_bytes && !cuda_queue_failed(queue);) {
        struct call call;
        memcpy(&call, queue->calls + at, sizeof(call));
        queue->operation = call.operation;
        run_or_fail(queue, &call, queue->calls + at + sizeof(call));
        at += call.bytes;
    }
    queue->calls_bytes = 0;
    if (!cuda_queue_failed(queue)) { queue->operation = operation; }
}

struct cuda_graph *cuda_queue_capture_end(struct cuda_queue *queue)
{
    CHECK(queue->is_capturing);
    queue->is_capturing = false;
    struct cuda_graph *graph = NULL;
    status_t st = queue->driver->capture_end(queue->driver, queue->stream, &graph, &queue->abandon_text);
    if (failed(st)) {
        replay(queue);
        return NULL;
    }
    return graph;
}

void cuda_queue_capture_abandon(struct cuda_queue *queue, const char *why)
{
    if (!queue->is_capturing) { return; }
    queue->is_capturing = false;
    struct cuda_graph *graph = NULL;
    status_t st = queue->driver->capture_end(queue->driver, queue->stream, &graph, NULL);
    if (!failed(st)) { queue->driver->graph_destroy(queue->driver, graph); }
    diag_set(&queue->abandon_text, "%s", why);
    replay(queue);
}

status_t cuda_queue_sync(struct cuda_queue *queue)
{
    CHECK(!queue->is_capturing);
    struct diag text = {{0}};
    status_t st = queue->driver->stream_sync(queue->driver, queue->stream, &text);
    if (failed(st) && !cuda_queue_failed(queue)) {
        diag_prefix(&text, "found while waiting; the last operation queued was %s", queue->operation);
        queue->operation = "sync";
        cuda_queue_fail(queue, st, &text);
    }
    if (cuda_queue_failed(queue) && !queue->was_told) { /* the caller gets a status without a sentence */
        queue->was_told = true;
        LOGF(LOG_ERROR, "cuda_failed", "device=%u why=\"%s\"", queue->driver->info.device, queue->error_text.text);
    }
    return queue->error;
}
