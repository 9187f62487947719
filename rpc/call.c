/* call: one gRPC call, either side: its life, the reads, the end. Sends are call_send.c's.
 * Flow:    server.c, channel.c -> [call] -> C core batches -> completion queue -> [call]
 * Thread:  on_* functions run on the call's rpc thread; the public ones anywhere.
 * Memory:  one block per call, a ring for its queue; gone with the last reference.
 *
 * The C core allows one batch of each kind at a time, so there are three lines of batches:
 * sends (initial metadata, messages, then half close or status), reads (one message each), and
 * one that waits for the end. call_settle() looks after every event whether on_done is due, and
 * whether all batches are back so that the C core's call can be given up. */
#include "rpc/rpc_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"

static const struct rpc_callbacks no_callbacks;

static void handle_recv(struct rpc_tag *tag, bool ok);
static void handle_end(struct rpc_tag *tag, bool ok);
static void handle_kick(struct rpc_tag *tag, bool ok);

/* ---- batches; the call's lock is held ---- */

void call_start_batch(struct rpc_call *call, const grpc_op *ops, size_t count, struct rpc_tag *tag)
{
    TAG_HANDED_IN(tag);
    grpc_call_error err = grpc_call_start_batch(call->grpc, ops, count, tag, NULL);
    /* What a caller can get wrong was checked before; what is left is a batch that we may not start. */
    CHECK(err == GRPC_CALL_OK);
    call->batches++;
}

static void read_next(struct rpc_call *call)
{
    if (call->paused || call->recv_in_flight || call->reads_over || call->held != NULL || call->done) {
        return;
    }
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &call->recv_buffer;
    call->recv_in_flight = true;
    call_start_batch(call, &op, 1, &call->on_recv);
}

/* ---- life and end ---- */

status_t call_create(struct rpc_owner *owner, grpc_call *grpc, bool is_server, const grpc_slice *method,
                     const struct rpc_send_limits *limits, struct rpc_call **ret_call)
{
    struct rpc_call *call = calloc(1, sizeof *call);
    if (call == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    call->method = grpc_slice_to_c_string(*method);
    call->send_buffer = grpc_raw_byte_buffer_create(NULL, 0);
    call->is_server = is_server;
    call->grpc = grpc;
    call->limits = *limits;
    call->callbacks = &no_callbacks;
    call->deadline_ns = RPC_NO_DEADLINE;
    call->on_send.on_event = call_handle_send;
    call->on_recv.on_event = handle_recv;
    call->on_end.on_event = handle_end;
    call->on_kick.on_event = handle_kick;
    call->status_details = grpc_empty_slice();
    call->finish_details = grpc_empty_slice();
    grpc_metadata_array_init(&call->head_array);
    grpc_metadata_array_init(&call->trailing_array);
    atomic_init(&call->refs, 1);
    pthread_mutex_init(&call->lock, NULL);

    call->owner = owner;
    pthread_mutex_lock(&owner->lock);
    owner->refs++;
    owner->call_count++;
    call->next = owner->calls;
    if (call->next != NULL) {
        call->next->prev = call;
    }
    owner->calls = call;
    pthread_mutex_unlock(&owner->lock);
    *ret_call = call;
    return STATUS_OK;
}

void rpc_call_ref(struct rpc_call *call)
{
    atomic_fetch_add_explicit(&call->refs, 1, memory_order_relaxed);
}

void rpc_call_unref(struct rpc_call *call)
{
    if (call == NULL || atomic_fetch_sub_explicit(&call->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    CHECK(call->grpc == NULL); /* the library's reference goes last or after call_release */
    metadata_copy_fini(&call->head);
    gpr_free(call->method);
    gpr_free(call->peer);
    pthread_mutex_destroy(&call->lock);
    free(call);
}

/* All batches are back and on_done has returned: gives up what belongs to the C core. References
 * that users still hold keep only our own memory alive, not a connection. */
static void call_release(struct rpc_call *call)
{
    struct rpc_owner *owner = call->owner;
    pthread_mutex_lock(&call->lock);
    grpc_call *grpc = call->grpc;
    call->peer = grpc_call_get_peer(grpc);
    call->grpc = NULL;
    pthread_mutex_unlock(&call->lock);

    call_queue_clear(&call->queue);
    free(call->queue.slots);
    call->queue.slots = NULL;
    call->queue.capacity = 0;
    grpc_byte_buffer_destroy(call->send_buffer);
    metadata_out_fini(&call->send_head);
    metadata_out_fini(&call->send_trailing);
    grpc_slice_unref(call->finish_details);
    grpc_slice_unref(call->status_details);
    grpc_metadata_array_destroy(&call->head_array);
    grpc_metadata_array_destroy(&call->trailing_array);
    grpc_call_unref(grpc);

    if (call->counted_by != NULL) {
        server_call_gone(call->counted_by);
    }
    pthread_mutex_lock(&owner->lock);
    if (call->prev != NULL) {
        call->prev->next = call->next;
    } else {
        owner->calls = call->next;
    }
    if (call->next != NULL) {
        call->next->prev = call->prev;
    }
    owner->call_count--;
    pthread_cond_broadcast(&owner->changed);
    pthread_mutex_unlock(&owner->lock);
    rpc_call_unref(call);
    owner_unref(owner);
}

static bool done_is_due(const struct rpc_call *call)
{
    if (call->done || !call->end_seen) {
        return false;
    }
    if (call->is_server) {
        /* The batch that carries our status tells whether it was sent; it is never long. */
        return !(call->end_started && call->send_in_flight);
    }
    if (call->reads_over && call->held == NULL) {
        return true;
    }
    return call->paused && call->status != GRPC_STATUS_OK;
}

static void tell_done(struct rpc_call *call)
{
    struct rpc_outcome outcome = {.message = ""};
    struct metadata_copy trailing = {0};
    char *text = NULL;
    if (call->is_server) {
        if (!call->cancelled && call->end_sent) {
            outcome.code = (uint8_t)call->finish_code;
        } else if (call->deadline_ns != RPC_NO_DEADLINE && clock_now_ns() >= call->deadline_ns) {
            outcome.code = ST_DEADLINE_EXCEEDED;
            outcome.message = "the deadline of the call has passed";
        } else {
            outcome.code = ST_CANCELLED;
            outcome.message = "the call was cancelled, or the client went away";
        }
    } else {
        /* A number that is none of gRPC's is a peer's mistake; the C core maps it mostly itself. */
        outcome.code = (uint8_t)(call->status <= GRPC_STATUS_UNAUTHENTICATED ? call->status : GRPC_STATUS_UNKNOWN);
        text = grpc_slice_to_c_string(call->status_details);
        outcome.message = text;
        if (!failed(metadata_copy_init(&trailing, &call->trailing_array))) {
            outcome.metadata = trailing.pairs;
            outcome.metadata_count = trailing.count;
        }
    }
    if (call->callbacks->on_done != NULL) {
        call->callbacks->on_done(call->user, call, &outcome);
    }
    metadata_copy_fini(&trailing);
    gpr_free(text);
}

void call_settle(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    if (done_is_due(call)) {
        call->done = true;
        call_queue_clear(&call->queue);
        if (call->held != NULL) {
            grpc_byte_buffer_destroy(call->held);
            call->held = NULL;
        }
        pthread_mutex_unlock(&call->lock);
        tell_done(call);
        pthread_mutex_lock(&call->lock);
        call->done_returned = true;
    }
    bool is_over = call->done_returned && call->batches == 0;
    pthread_mutex_unlock(&call->lock);
    if (is_over) {
        call_release(call);
    }
}

/* ---- events, on the call's thread ---- */

/* Hands one message over and starts the next read. Takes message. */
static void deliver(struct rpc_call *call, grpc_byte_buffer *message)
{
    if (call->callbacks->on_message != NULL) {
        grpc_slice_buffer *slices = &message->data.raw.slice_buffer;
        if (message->type == GRPC_BB_RAW && slices->count == 1) {
            grpc_slice *slice = &slices->slices[0];
            call->callbacks->on_message(call->user, call, GRPC_SLICE_START_PTR(*slice), GRPC_SLICE_LENGTH(*slice));
        } else {
            grpc_byte_buffer_reader reader;
            int opened = grpc_byte_buffer_reader_init(&reader, message);
            CHECK(opened);
            grpc_slice whole = grpc_byte_buffer_reader_readall(&reader);
            grpc_byte_buffer_reader_destroy(&reader);
            call->callbacks->on_message(call->user, call, GRPC_SLICE_START_PTR(whole), GRPC_SLICE_LENGTH(whole));
            grpc_slice_unref(whole);
        }
    }
    grpc_byte_buffer_destroy(message);
    pthread_mutex_lock(&call->lock);
    read_next(call);
    pthread_mutex_unlock(&call->lock);
}

static void handle_recv(struct rpc_tag *tag, bool ok)
{
    (void)ok; /* no message says the same */
    struct rpc_call *call = CONTAINER_OF(tag, struct rpc_call, on_recv);
    if (!call->is_server && !call->head_seen) {
        call->head_seen = true;
        (void)!metadata_copy_init(&call->head, &call->head_array).code; /* without memory: as if none came */
    }
    pthread_mutex_lock(&call->lock);
    call->batches--;
    call->recv_in_flight = false;
    grpc_byte_buffer *message = call->recv_buffer;
    call->recv_buffer = NULL;
    bool ended = message == NULL;
    bool drops = false;
    if (ended) {
        call->reads_over = true;
    } else if (call->done) {
        drops = true;
    } else if (call->paused) {
        call->held = message;
        message = NULL;
    }
    /* A stream that broke ends like one that was closed; only the core knows which it was. */
    bool half_closed = ended && call->is_server && !call->done && !call->is_cancelled && !call->end_seen &&
                       !grpc_call_failed_before_recv_message(call->grpc);
    pthread_mutex_unlock(&call->lock);
    if (drops) {
        grpc_byte_buffer_destroy(message);
    } else if (message != NULL) {
        deliver(call, message);
    }
    if (half_closed && call->callbacks->on_half_close != NULL) {
        call->callbacks->on_half_close(call->user, call);
    }
    call_settle(call);
}

static void handle_end(struct rpc_tag *tag, bool ok)
{
    (void)ok;
    struct rpc_call *call = CONTAINER_OF(tag, struct rpc_call, on_end);
    pthread_mutex_lock(&call->lock);
    call->batches--;
    call->end_seen = true;
    pthread_mutex_unlock(&call->lock);
    call_settle(call);
}

/* An empty batch, which the C core puts into the queue at once: how another thread makes the
 * call's own thread deliver the message that was held back. */
static void handle_kick(struct rpc_tag *tag, bool ok)
{
    (void)ok;
    struct rpc_call *call = CONTAINER_OF(tag, struct rpc_call, on_kick);
    pthread_mutex_lock(&call->lock);
    call->batches--;
    call->kick_in_flight = false;
    grpc_byte_buffer *message = NULL;
    if (call->held != NULL && !call->paused && !call->done) {
        message = call->held;
        call->held = NULL;
    }
    pthread_mutex_unlock(&call->lock);
    if (message != NULL) {
        deliver(call, message);
    }
    call_settle(call);
}

/* ---- starting ---- */

void call_start_server(struct rpc_call *call, bool with_reads)
{
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &call->cancelled;
    pthread_mutex_lock(&call->lock);
    call_start_batch(call, &op, 1, &call->on_end);
    if (with_reads) {
        read_next(call);
    } else {
        call->reads_over = true;
    }
    pthread_mutex_unlock(&call->lock);
}

void call_start_client(struct rpc_call *call, bool wait_for_ready)
{
    grpc_op ops[2];
    memset(ops, 0, sizeof ops);
    pthread_mutex_lock(&call->lock);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[0].flags = wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY | GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET
                                  : GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET;
    ops[0].data.send_initial_metadata.count = call->send_head.count;
    ops[0].data.send_initial_metadata.metadata = call->send_head.pairs;
    call->head_sent = true;
    call->send_in_flight = true;
    call_start_batch(call, ops, 1, &call->on_send);

    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[0].data.recv_status_on_client.trailing_metadata = &call->trailing_array;
    ops[0].data.recv_status_on_client.status = &call->status;
    ops[0].data.recv_status_on_client.status_details = &call->status_details;
    call_start_batch(call, ops, 1, &call->on_end);

    /* The initial metadata is asked for together with the first message: without it the status
     * above would never complete, and so it is there when the first on_message comes. */
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[0].data.recv_initial_metadata.recv_initial_metadata = &call->head_array;
    ops[1].op = GRPC_OP_RECV_MESSAGE;
    ops[1].data.recv_message.recv_message = &call->recv_buffer;
    call->recv_in_flight = true;
    call_start_batch(call, ops, 2, &call->on_recv);
    pthread_mutex_unlock(&call->lock);
}

/* ---- public ---- */

void rpc_call_pause_reads(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    call->paused = true;
    /* A client whose call has failed already must not wait for a read that nobody starts. */
    if (call->end_seen && !call->done && !call->kick_in_flight) {
        call->kick_in_flight = true;
        call_start_batch(call, NULL, 0, &call->on_kick);
    }
    pthread_mutex_unlock(&call->lock);
}

void rpc_call_resume_reads(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    if (call->paused && !call->done) {
        call->paused = false;
        if (call->held == NULL) {
            read_next(call);
        } else if (!call->kick_in_flight) {
            call->kick_in_flight = true;
            call_start_batch(call, NULL, 0, &call->on_kick);
        }
    }
    pthread_mutex_unlock(&call->lock);
}

void rpc_call_cancel(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    if (!call->done && !call->is_cancelled) {
        call->is_cancelled = true;
        call_queue_clear(&call->queue);
        (void)grpc_call_cancel_with_status(call->grpc, GRPC_STATUS_CANCELLED,
                                           call->is_server ? "cancelled by the server" : "cancelled by the caller",
                                           NULL);
    }
    pthread_mutex_unlock(&call->lock);
}
