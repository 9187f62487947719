/* call_send: what a call sends: the queue, its limits, one batch after the other, and the end it states.
 * Flow:    rpc_call_send, _half_close, _finish -> [call_send] -> C core batches -> on_writable
 * Thread:  the public functions anywhere; call_handle_send on the call's rpc thread.
 * Memory:  a ring of slices per call, which grows to what its limits allow. */
#include "rpc/rpc_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_TEXT_MAX 16

/* ---- the send queue ---- */

static bool queue_push(struct send_queue *queue, grpc_slice slice)
{
    if (queue->count == queue->capacity) {
        uint32_t capacity = queue->capacity != 0 ? 2 * queue->capacity : 4;
        grpc_slice *slots = malloc(capacity * sizeof *slots);
        if (slots == NULL) {
            return false;
        }
        for (uint32_t i = 0; i < queue->count; i++) {
            slots[i] = queue->slots[(queue->head + i) & (queue->capacity - 1)];
        }
        free(queue->slots);
        queue->slots = slots;
        queue->capacity = capacity;
        queue->head = 0;
    }
    queue->slots[(queue->head + queue->count) & (queue->capacity - 1)] = slice;
    queue->count++;
    queue->bytes += GRPC_SLICE_LENGTH(slice);
    return true;
}

static grpc_slice queue_pop(struct send_queue *queue)
{
    grpc_slice slice = queue->slots[queue->head];
    queue->head = (queue->head + 1) & (queue->capacity - 1);
    queue->count--;
    queue->bytes -= GRPC_SLICE_LENGTH(slice);
    return slice;
}

void call_queue_clear(struct send_queue *queue)
{
    while (queue->count > 0) {
        grpc_slice_unref(queue_pop(queue));
    }
}

/* Above half of a limit; what is being written counts too. */
static bool queue_is_high(const struct rpc_call *call)
{
    return call->queue.count + call->flying_messages > call->limits.messages_max / 2 ||
           call->queue.bytes + call->flying_bytes > call->limits.bytes_max / 2;
}

/* ---- batches; the call's lock is held ---- */

/* Writes the next thing: initial metadata if still due, one message, the end. */
static void pump(struct rpc_call *call)
{
    if (call->send_in_flight || call->end_started || call->end_seen || call->is_cancelled || call->done) {
        return;
    }
    bool has_message = call->queue.count > 0;
    bool ends = call->end_wanted && call->queue.count <= 1;
    if (!has_message && !ends && (call->head_sent || call->is_server)) {
        return; /* a server's initial metadata travels with what comes first */
    }
    grpc_op ops[3];
    memset(ops, 0, sizeof ops);
    size_t count = 0;
    if (!call->head_sent) {
        ops[count].op = GRPC_OP_SEND_INITIAL_METADATA;
        ops[count].data.send_initial_metadata.count = call->send_head.count;
        ops[count].data.send_initial_metadata.metadata = call->send_head.pairs;
        count++;
        call->head_sent = true;
    }
    if (has_message) {
        grpc_slice slice = queue_pop(&call->queue);
        call->flying_bytes = GRPC_SLICE_LENGTH(slice);
        call->flying_messages = 1;
        grpc_slice_buffer *slices = &call->send_buffer->data.raw.slice_buffer;
        grpc_slice_buffer_reset_and_unref(slices);
        grpc_slice_buffer_add(slices, slice); /* takes our reference */
        ops[count].op = GRPC_OP_SEND_MESSAGE;
        /* With more behind it this one need not reach the socket on its own. */
        ops[count].flags = call->queue.count > 0 ? GRPC_WRITE_BUFFER_HINT : 0;
        ops[count].data.send_message.send_message = call->send_buffer;
        count++;
    }
    if (ends) {
        call->end_started = true;
        if (call->is_server) {
            ops[count].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
            ops[count].data.send_status_from_server.trailing_metadata_count = call->send_trailing.count;
            ops[count].data.send_status_from_server.trailing_metadata = call->send_trailing.pairs;
            ops[count].data.send_status_from_server.status = call->finish_code;
            ops[count].data.send_status_from_server.status_details = &call->finish_details;
        } else {
            ops[count].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        }
        count++;
    }
    call->send_in_flight = true;
    call_start_batch(call, ops, count, &call->on_send);
}

/* ---- the event, on the call's thread ---- */

void call_handle_send(struct rpc_tag *tag, bool ok)
{
    struct rpc_call *call = CONTAINER_OF(tag, struct rpc_call, on_send);
    pthread_mutex_lock(&call->lock);
    call->batches--;
    call->send_in_flight = false;
    call->flying_bytes = 0;
    call->flying_messages = 0;
    call->end_sent = call->end_started && ok;
    if (ok) {
        pump(call);
    } else {
        call_queue_clear(&call->queue); /* the stream is broken; its end is on the way */
    }
    bool is_writable = ok && call->want_writable && !call->done && !queue_is_high(call);
    if (is_writable) {
        call->want_writable = false;
    }
    pthread_mutex_unlock(&call->lock);
    if (is_writable && call->callbacks->on_writable != NULL) {
        call->callbacks->on_writable(call->user, call);
    }
    call_settle(call);
}

/* ---- public ---- */

/* Takes slice on success. */
static status_t send_slice(struct rpc_call *call, grpc_slice slice)
{
    status_t st = STATUS_OK;
    size_t len = GRPC_SLICE_LENGTH(slice);
    pthread_mutex_lock(&call->lock);
    uint32_t messages = call->queue.count + call->flying_messages;
    size_t bytes = call->queue.bytes + call->flying_bytes;
    if (call->done || call->end_seen || call->is_cancelled) {
        st = STATUS(ST_CANCELLED, SCOPE_REQUEST);
    } else if (call->end_wanted) {
        st = STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    } else if (messages > 0 && (messages >= call->limits.messages_max || bytes + len > call->limits.bytes_max)) {
        call->want_writable = true;
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    } else if (!queue_push(&call->queue, slice)) {
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    } else {
        if (queue_is_high(call)) {
            call->want_writable = true;
        }
        pump(call);
    }
    pthread_mutex_unlock(&call->lock);
    return st;
}

status_t rpc_call_send(struct rpc_call *call, const void *bytes, size_t len)
{
    if (len > INT32_MAX) {
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    grpc_slice slice = grpc_slice_from_copied_buffer(bytes, len);
    status_t st = send_slice(call, slice);
    if (failed(st)) {
        grpc_slice_unref(slice);
    }
    return st;
}

static void buffer_slice_gone(void *buffer)
{
    rpc_buffer_unref(buffer);
}

status_t rpc_call_send_buffer(struct rpc_call *call, struct rpc_buffer *buffer)
{
    if (buffer->len > INT32_MAX) {
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    /* The slice has a reference of its own, so that a refusal leaves the caller's alone. */
    rpc_buffer_ref(buffer);
    grpc_slice slice = grpc_slice_new_with_user_data(buffer->bytes, buffer->len, buffer_slice_gone, buffer);
    status_t st = send_slice(call, slice);
    if (failed(st)) {
        grpc_slice_unref(slice);
        return st;
    }
    rpc_buffer_unref(buffer);
    return STATUS_OK;
}

void rpc_call_set_send_limits(struct rpc_call *call, const struct rpc_send_limits *limits)
{
    pthread_mutex_lock(&call->lock);
    call->limits = send_limits_or_default(limits);
    pthread_mutex_unlock(&call->lock);
}

void rpc_call_send_queue(struct rpc_call *call, size_t *ret_bytes, uint32_t *ret_messages)
{
    pthread_mutex_lock(&call->lock);
    if (ret_bytes != NULL) {
        *ret_bytes = call->queue.bytes + call->flying_bytes;
    }
    if (ret_messages != NULL) {
        *ret_messages = call->queue.count + call->flying_messages;
    }
    pthread_mutex_unlock(&call->lock);
}

void rpc_call_half_close(struct rpc_call *call)
{
    if (call->is_server) {
        return;
    }
    pthread_mutex_lock(&call->lock);
    call->end_wanted = true;
    pump(call);
    pthread_mutex_unlock(&call->lock);
}

status_t rpc_call_finish(struct rpc_call *call, uint8_t code, const char *message, const struct rpc_metadata *metadata,
                         size_t count)
{
    if (!call->is_server) {
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    }
    struct metadata_out trailing;
    TRY(metadata_check(metadata, count, NULL));
    TRY(metadata_out_init(&trailing, metadata, count));
    status_t st = STATUS_OK;
    pthread_mutex_lock(&call->lock);
    if (call->end_wanted) {
        st = STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    } else if (call->done || call->end_seen || call->is_cancelled) {
        st = STATUS(ST_CANCELLED, SCOPE_REQUEST);
    } else {
        call->end_wanted = true;
        call->finish_code = (grpc_status_code)code;
        call->finish_details = grpc_slice_from_copied_string(message != NULL ? message : "");
        call->send_trailing = trailing;
        pump(call);
    }
    pthread_mutex_unlock(&call->lock);
    if (failed(st)) {
        metadata_out_fini(&trailing);
    }
    return st;
}

void rpc_call_finish_status(struct rpc_call *call, status_t status, const char *message, uint32_t retry_ms)
{
    char text[RETRY_TEXT_MAX];
    int len = snprintf(text, sizeof text, "%u", retry_ms);
    struct rpc_metadata hint = {.key = RPC_RETRY_KEY, .value = text, .value_len = (size_t)len};
    (void)!rpc_call_finish(call, status.code, message, &hint, retry_ms > 0 ? 1 : 0).code;
}
