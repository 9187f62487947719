#include "kernels/cuda/cuda_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "kernels/cuda/cuda_attention_check.h"
#include "kernels/cuda/cuda_handle.h"

#define BYTES_PER_MIB 1048576.0

/* ---- memory --------------------------------------------------------------------------------- */

/* Says how much there is where there is not enough. bytes  0: of several things */
static status_t explain_memory(const struct cuda_driver *d, status_t st, size_t bytes, struct diag *diag)
{
    uint64_t left = 0, total = 0;
    if (st.code != ST_RESOURCE_EXHAUSTED || failed(d->memory_left(d, &left, &total, NULL))) { return st; }
    if (bytes != 0) { diag_prefix(diag, "%.0f MiB are asked for", (double)bytes / BYTES_PER_MIB); }
    diag_prefix(diag, "CUDA device %u (%s) has %.0f of %.0f MiB left", d->info.device, d->info.name, (double)left / BYTES_PER_MIB,
                (double)total / BYTES_PER_MIB);
    return st;
}

static status_t buffer_alloc(struct kernels *kernels, size_t bytes, void **ret_buffer, struct diag *diag)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    const struct cuda_driver *d = handle->driver;
    CHECK(handle->graphs.open == NULL);
    void *buffer = NULL;
    status_t st = d->mem_alloc(d, bytes == 0 ? 1 : bytes, &buffer, diag);
    if (failed(st)) { return explain_memory(d, st, bytes, diag); }
    /* Zeroed, as on the CPU, and now: other streams may use it next. */
    st = d->fill(d, buffer, 0, bytes, handle->queue.stream, diag);
    if (!failed(st)) { st = d->stream_sync(d, handle->queue.stream, diag); }
    if (failed(st)) {
        d->mem_free(d, buffer);
        return st;
    }
    *ret_buffer = buffer;
    return STATUS_OK;
}

static void buffer_free(struct kernels *kernels, void *buffer, size_t bytes)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    if (buffer == NULL) { return; }
    CHECK(handle->graphs.open == NULL);
    (void)cuda_gemm_plans_forget(handle->gemms, buffer, bytes);
    cuda_graphs_drop(&handle->graphs); /* who knows which of them name it */
    handle->driver->mem_free(handle->driver, buffer);
}

static status_t pinned_alloc(struct kernels *kernels, size_t bytes, void **ret_host, struct diag *diag)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    CHECK(handle->graphs.open == NULL);
    if (handle->pinned_count == handle->pinned_capacity) {
        uint32_t capacity = handle->pinned_capacity == 0 ? 16 : handle->pinned_capacity * 2;
        struct cuda_pinned *pinned = realloc(handle->pinned, capacity * sizeof(*pinned));
        if (pinned == NULL) {
            diag_set(diag, "no memory to list pinned memory");
            return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        }
        handle->pinned = pinned;
        handle->pinned_capacity = capacity;
    }
    size_t room = bytes == 0 ? 1 : bytes;
    void *host = NULL;
    TRY(handle->driver->host_alloc(handle->driver, room, &host, diag));
    handle->pinned[handle->pinned_count++] = (struct cuda_pinned){.host = host, .bytes = room};
    *ret_host = host;
    return STATUS_OK;
}

static void pinned_free(struct kernels *kernels, void *host, size_t bytes)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    (void)bytes;
    for (uint32_t i = 0; i < handle->pinned_count; i++) {
        if (handle->pinned[i].host != host) { continue; }
        handle->pinned[i] = handle->pinned[--handle->pinned_count];
        /* Copies from or to it may be under way; an error is found by whoever waits for its operations. */
        (void)handle->driver->stream_sync(handle->driver, handle->queue.stream, NULL);
        handle->driver->host_free(handle->driver, host);
        return;
    }
    CHECK(host == NULL); /* not ours */
}

static bool is_pinned(const struct cuda_handle *handle, const void *host, size_t bytes)
{
    for (uint32_t i = 0; i < handle->pinned_count; i++) {
        const struct cuda_pinned *p = &handle->pinned[i];
        if ((uintptr_t)host < (uintptr_t)p->host) { continue; }
        size_t offset = (uintptr_t)host - (uintptr_t)p->host;
        if (offset < p->bytes && bytes <= p->bytes - offset) { return true; }
    }
    return cuda_exchange_find(&handle->exchange, host, bytes) != NULL;
}

static void upload(struct kernels *kernels, void *buffer, const void *host, size_t bytes)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    struct cuda_queue *queue = &handle->queue;
    CHECK(handle->graphs.open == NULL);
    if (bytes == 0 || cuda_queue_failed(queue)) { return; }
    queue->operation = "upload";
    if (cuda_gemm_plans_forget(handle->gemms, buffer, bytes)) { cuda_graphs_drop(&handle->graphs); }
    if (is_pinned(handle, host, bytes)) {
        cuda_queue_copy(queue, CUDA_COPY_TO_DEVICE, buffer, host, bytes);
        return;
    }
    struct diag text = {{0}};
    status_t st = handle->driver->copy_from_pageable(handle->driver, buffer, host, bytes, queue->stream, &text);
    if (failed(st)) { cuda_queue_fail(queue, st, &text); }
}

static void download(struct kernels *kernels, void *host, const void *buffer, size_t bytes)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    struct cuda_queue *queue = &handle->queue;
    CHECK(handle->graphs.open == NULL);
    if (cuda_queue_failed(queue)) { return; }
    queue->operation = "download";
    if (is_pinned(handle, host, bytes)) {
        cuda_queue_copy(queue, CUDA_COPY_TO_HOST, host, buffer, bytes);
        return;
    }
    for (size_t at = 0; at < bytes && !cuda_queue_failed(queue);) { /* memory that the device cannot write: wait for each piece */
        size_t piece = bytes - at < CUDA_STAGING_BYTES ? bytes - at : CUDA_STAGING_BYTES;
        struct diag text = {{0}};
        cuda_queue_copy(queue, CUDA_COPY_TO_HOST, handle->staging, (const uint8_t *)buffer + at, piece);
        status_t st = handle->driver->stream_sync(handle->driver, queue->stream, &text);
        if (failed(st)) { cuda_queue_fail(queue, st, &text); }
        if (!cuda_queue_failed(queue)) { memcpy((uint8_t *)host + at, handle->staging, piece); }
        at += piece;
    }
}

static status_t exchange_alloc(struct kernels *kernels, size_t bytes, void **ret_host, struct diag *diag)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    CHECK(handle->graphs.open == NULL);
    status_t st = cuda_exchange_alloc(&handle->exchange, bytes, ret_host, diag);
    return failed(st) ? explain_memory(handle->driver, st, bytes, diag) : st;
}

static void exchange_free(struct kernels *kernels, void *host, size_t bytes)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    (void)bytes;
    CHECK(handle->graphs.open == NULL);
    cuda_graphs_drop(&handle->graphs);
    (void)handle->driver->stream_sync(handle->driver, handle->queue.stream, NULL);
    cuda_exchange_free(&handle->exchange, host);
}

static void exchange_send(struct kernels *kernels, const void *first, size_t bytes)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    CHECK(handle->graphs.open == NULL);
    if (!cuda_queue_failed(&handle->queue)) { handle->queue.operation = "exchange_send"; }
    cuda_queue_copy(&handle->queue, CUDA_COPY_TO_DEVICE, cuda_exchange_device(&handle->exchange, first, bytes), first, bytes);
}

/* ---- order ---------------------------------------------------------------------------------- */

static status_t sync_all(struct kernels *kernels)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    CHECK(handle->graphs.open == NULL);
    return cuda_queue_sync(&handle->queue);
}

static uint64_t mark(struct kernels *kernels)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    struct cuda_queue *queue = &handle->queue;
    CHECK(handle->graphs.open == NULL);
    /* Nobody may take bytes for final that were never computed. */
    if (cuda_queue_failed(queue)) { cuda_marks_fail(handle->marks); }
    uint64_t ticket = 0;
    struct diag text = {{0}};
    status_t st = cuda_marks_record(handle->marks, queue->stream, &ticket, &text);
    if (failed(st) && !cuda_queue_failed(queue)) {
        queue->operation = "mark";
        cuda_queue_fail(queue, st, &text);
    }
    return ticket;
}

static status_t wait_mark(struct kernels *kernels, uint64_t ticket)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    struct cuda_queue *queue = &handle->queue;
    CHECK(handle->graphs.open == NULL);
    if (cuda_queue_failed(queue)) { return cuda_queue_sync(queue); } /* which tells it */
    struct diag text = {{0}};
    status_t st = cuda_marks_sync(handle->marks, ticket, &text);
    if (!failed(st)) { return STATUS_OK; }
    diag_prefix(&text, "found while waiting for a mark; the last operation queued was %s", queue->operation);
    queue->operation = "wait";
    cuda_queue_fail(queue, st, &text);
    return cuda_queue_sync(queue);
}

static bool graph_begin(struct kernels *kernels, uint64_t key) { return cuda_graphs_begin(&cuda_handle(kernels)->graphs, key); }
static void graph_end(struct kernels *kernels) { cuda_graphs_end(&cuda_handle(kernels)->graphs); }

const char *cuda_backend_error(const struct kernels *kernels)
{
    const struct cuda_handle *handle = (const struct cuda_handle *)kernels;
    return handle->queue.error_text.text;
}

void cuda_backend_graph_counts(const struct kernels *kernels, uint64_t *ret_launched, uint64_t *ret_captured)
{
    const struct cuda_handle *handle = (const struct cuda_handle *)kernels;
    *ret_launched = handle->graphs.launched;
    *ret_captured = handle->graphs.captured;
}

/* ---- life ----------------------------------------------------------------------------------- */

/* What was built, but for the driver. */
static void handle_end(struct cuda_handle *handle)
{
    const struct cuda_driver *d = handle->driver;
    if (handle->queue.stream != NULL) {
        if (handle->queue.is_capturing) { cuda_queue_capture_abandon(&handle->queue, "the handle is destroyed"); }
        (void)d->stream_sync(d, handle->queue.stream, NULL);
        handle->graphs.open = NULL;
        cuda_graphs_drop(&handle->graphs);
    }
    cuda_gemm_plans_destroy(handle->gemms);
    cuda_scratch_fini(&handle->attention_pieces, d);
    cuda_scratch_fini(&handle->attention_arrivals, d);
    cuda_scratch_fini(&handle->sample_workspace, d);
    cuda_exchange_fini(&handle->exchange);
    cuda_marks_destroy(handle->marks);
    for (uint32_t i = 0; i < handle->pinned_count; i++) { d->host_free(d, handle->pinned[i].host); }
    free(handle->pinned);
    d->host_free(d, handle->staging);
    cuda_queue_fini(&handle->queue);
    free(handle);
}

static void destroy(struct kernels *kernels)
{
    const struct cuda_driver *driver = cuda_handle(kernels)->driver;
    handle_end(cuda_handle(kernels));
    driver->close(driver);
}

static const struct kernels_backend cuda_ops = {
    .destroy = destroy,
    .buffer_alloc = buffer_alloc,
    .buffer_free = buffer_free,
    .upload = upload,
    .download = download,
    .pinned_alloc = pinned_alloc,
    .pinned_free = pinned_free,
    .sync = sync_all,
    .exchange_alloc = exchange_alloc,
    .exchange_free = exchange_free,
    .exchange_send = exchange_send,
    .mark = mark,
    .wait = wait_mark,
    .graph_begin = graph_begin,
    .graph_end = graph_end,
    .gemm = cuda_op_gemm,
    .rmsnorm = cuda_op_rmsnorm,
    .layernorm = cuda_op_layernorm,
    .rope = cuda_op_rope,
    .embed = cuda_op_embed,
    .silu_mul = cuda_op_silu_mul,
    .gemm_silu = cuda_op_gemm_silu,
    .mul = cuda_op_mul,
    .gelu = cuda_op_gelu,
    .gather_rows = cuda_op_gather_rows,
    .kv_write = cuda_op_kv_write,
    .rope_kv = cuda_op_rope_kv,
    .copy_block = cuda_op_copy_block,
    .attention = cuda_op_attention,
    .sample = cuda_op_sample,
};

/* The Hopper kernel where it computes what it should; elsewhere the one for every chip, with a line in the log. */
static status_t pick_attention(struct cuda_handle *handle, const struct kernels_config *config, struct diag *diag)
{
    const struct cuda_driver *d = handle->driver;
    handle->attention = (struct cuda_attention_device){.arch = d->info.arch, .sm_count = d->info.sm_count,
                                                       .shared_bytes_max = d->info.shared_bytes_max,
                                                       .deterministic = config->deterministic};
    /* Should the kernel be what breaks a chip, so that nothing can be said any more: a way round it. */
    const char *choice = getenv("BATON_CUDA_ATTENTION");
    const bool is_unwanted = choice != NULL && strcmp(choice, "mma") == 0;
    if (is_unwanted || d->info.arch != 90 || config->deterministic || config->activations == DTYPE_F32) { return STATUS_OK; }
    struct diag why = {{0}};
    status_t st = cuda_attention_check(d, handle->queue.stream, &handle->attention, config->activations, &why);
    handle->attention.use_sm90 = !failed(st);
    if (!failed(st) || st.code == ST_UNIMPLEMENTED) { return STATUS_OK; }
    if (st.code != ST_FAILED_PRECONDITION) {
        diag_set(diag, "trying the Hopper kernel of attention: %s; BATON_CUDA_ATTENTION=mma does without it", why.text);
        return st;
    }
    LOGF(LOG_WARN, "cuda_attention_sm90_not_used", "device=%u why=\"%s\"", d->info.device, why.text);
    return STATUS_OK;
}

static status_t handle_build(struct cuda_handle *handle, const struct kernels_config *config, struct diag *diag)
{
    const struct cuda_driver *d = handle->driver;
    void *staging = NULL;
    TRY(cuda_queue_init(&handle->queue, d, diag));
    handle->graphs.queue = &handle->queue;
    handle->exchange.driver = d;
    TRY(cuda_marks_create(d, &handle->marks, diag));
    TRY(d->host_alloc(d, CUDA_STAGING_BYTES, &staging, diag));
    handle->staging = staging;
    TRY(cuda_gemm_plans_create(&handle->queue, config->deterministic, &handle->gemms, diag));
    return pick_attention(handle, config, diag);
}

status_t cuda_backend_create_on(const struct cuda_driver *d, const struct kernels_config *config, struct kernels **ret_kernels,
                                struct diag *diag)
{
    struct cuda_handle *handle = calloc(1, sizeof(*handle));
    if (handle == NULL) {
        diag_set(diag, "no memory for the kernels' handle");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    handle->driver = d;
    snprintf(handle->set_name, sizeof(handle->set_name), "cuda-%s-sm%u-%s-v1", dtype_name(config->activations), d->info.arch,
             config->deterministic ? "det" : "fast");
    snprintf(handle->isa_name, sizeof(handle->isa_name), "sm_%u %s", d->info.arch, d->info.name);
    handle->base = (struct kernels){.ops = &cuda_ops, .set_name = handle->set_name, .isa_name = handle->isa_name,
                                    .threads = config->threads, .has_graphs = true, .activations = config->activations,
                                    .weight_order = KERNELS_ORDER_ROWS, .kv_order = KV_ORDER_ROWS};
    status_t st = handle_build(handle, config, diag);
    if (failed(st)) {
        st = explain_memory(d, st, 0, diag);
        handle_end(handle);
        return st;
    }
    uint64_t left = 0, total = 0;
    (void)d->memory_left(d, &left, &total, NULL);
    LOGF(LOG_INFO, "cuda_device", "device=%u name=\"%s\" arch=sm_%u sms=%u memory_mib=%.0f left_mib=%.0f driver=%u set=%s", d->info.device,
         d->info.name, d->info.arch, d->info.sm_count, (double)total / BYTES_PER_MIB, (double)left / BYTES_PER_MIB,
         d->info.driver_version, handle->set_name);
    *ret_kernels = &handle->base;
    return STATUS_OK;
}

status_t cuda_backend_create(const struct kernels_config *config, struct kernels **ret_kernels, struct diag *diag)
{
    const struct cuda_driver *driver = NULL;
    if (cuda_driver_open == NULL) { /* a weak reference */
        diag_set(diag, "this program was linked without a CUDA driver; use --backend=cpu");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    TRY(cuda_driver_open(config->device, &driver, diag));
    status_t st = cuda_backend_create_on(driver, config, ret_kernels, diag);
    if (failed(st)) { driver->close(driver); }
    return st;
}
