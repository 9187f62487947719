/* rpc_internal: what runtime.c, call.c, server.c and channel.c share. Nobody else includes it.
 *
 * Threads: each rpc thread owns one completion queue, and each call is bound to one queue. So
 * all events of a call come to one thread, one after the other, and the callbacks of a call
 * need no queue and no lock of their own. A lock per call guards what other threads may touch:
 * the send queue, the pause flag, and the batches started on the C core, which asks for that.
 *
 * Lock order: owner, then call. Neither is held while a callback of the user runs. */
#ifndef BATON_RPC_RPC_INTERNAL_H
#define BATON_RPC_RPC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include "rpc/rpc.h"

#define CONTAINER_OF(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

/* What a completion queue hands back: whose event it is. */
struct rpc_tag {
    void (*on_event)(struct rpc_tag *tag, bool ok);
};

/* tsan does not see the hand-over through the C core's queue; these two say where it is: what was
 * written before a tag was handed in is seen by the thread that gets it back. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__) /* how clang says it */
#define __SANITIZE_THREAD__ 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
void __tsan_acquire(void *at);
void __tsan_release(void *at);
#define TAG_HANDED_IN(tag) __tsan_release(tag)
#define TAG_GOT_BACK(tag) __tsan_acquire(tag)
#else
#define TAG_HANDED_IN(tag) ((void)(tag))
#define TAG_GOT_BACK(tag) ((void)(tag))
#endif

struct rpc_loop {
    grpc_completion_queue *cq;
    pthread_t thread;
    struct rpc_runtime *runtime;
};

struct rpc_runtime {
    uint32_t loop_count;
    struct rpc_loop *loops;
    atomic_uint next_loop; /* the queue of the next client call */

    /* Servers, channels and calls that may still start batches; the queues live until it is 0. */
    pthread_mutex_t lock;
    pthread_cond_t idle;
    uint32_t user_count;
};

void runtime_enter(struct rpc_runtime *runtime);
void runtime_leave(struct rpc_runtime *runtime);
/* True on a thread that runs callbacks of `runtime`. */
bool runtime_is_current(const struct rpc_runtime *runtime);

/* What a server and a channel have in common: the calls that are open on them. */
struct rpc_owner {
    struct rpc_runtime *runtime;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* CLOCK_MONOTONIC */
    struct rpc_call *calls; /* linked by call->next; guarded by lock */
    uint32_t call_count;
    uint32_t refs; /* guarded by lock: the maker and every open call */
    void (*destroy)(struct rpc_owner *owner);
};

void owner_init(struct rpc_owner *owner, struct rpc_runtime *runtime, void (*destroy)(struct rpc_owner *));
void owner_fini(struct rpc_owner *owner);
void owner_unref(struct rpc_owner *owner);
void owner_cancel_calls(struct rpc_owner *owner);

/* Messages that wait to be written: a ring that grows up to the caller's bound. */
struct send_queue {
    grpc_slice *slots;
    uint32_t capacity; /* a power of two, or 0 */
    uint32_t head;
    uint32_t count;
    size_t bytes;
};

/* Metadata received: pairs, then their bytes, in one allocation. */
struct metadata_copy {
    struct rpc_metadata *pairs;
    size_t count;
};

/* Metadata to be sent: slices that live until the batch is through. */
struct metadata_out {
    grpc_metadata *pairs;
    size_t count;
};

status_t metadata_check(const struct rpc_metadata *pairs, size_t count, struct diag *diag);
status_t metadata_out_init(struct metadata_out *out, const struct rpc_metadata *pairs, size_t count);
void metadata_out_fini(struct metadata_out *out);
status_t metadata_copy_init(struct metadata_copy *copy, const grpc_metadata_array *array);
void metadata_copy_fini(struct metadata_copy *copy);

struct rpc_call {
    atomic_uint refs;
    struct rpc_owner *owner;
    struct rpc_call *prev, *next; /* in owner->calls; guarded by owner->lock */
    bool is_server;
    char *method;
    uint64_t deadline_ns;
    const struct rpc_callbacks *callbacks;
    void *user;
    struct rpc_server *counted_by; /* the server whose accepted_count holds this call */

    struct rpc_tag on_send, on_recv, on_end, on_kick;

    /* Only the call's thread, and written by the C core while a batch is out. */
    grpc_metadata_array head_array, trailing_array;
    struct metadata_copy head; /* what the peer sent first */
    grpc_byte_buffer *recv_buffer;
    grpc_status_code status;
    grpc_slice status_details;
    int cancelled;
    bool head_seen;

    pthread_mutex_t lock; /* guards the rest */
    grpc_call *grpc;      /* NULL once done and drained */
    char *peer;           /* kept for later when grpc goes */
    uint32_t batches;     /* started and not yet back */

    struct rpc_send_limits limits;
    struct send_queue queue;
    size_t flying_bytes; /* of the message being written */
    uint32_t flying_messages;
    grpc_byte_buffer *send_buffer; /* reused for every message */
    bool send_in_flight;
    bool want_writable;
    bool head_sent;        /* initial metadata handed to the core */
    bool end_wanted;       /* half close or finish was called */
    bool end_started;      /* its batch was handed to the core */
    bool end_sent;         /* server: the transport took the status */
    struct metadata_out send_head, send_trailing;
    grpc_slice finish_details;
    grpc_status_code finish_code;

    bool paused;
    bool recv_in_flight;
    bool kick_in_flight;
    bool reads_over;
    bool delivering; /* a message is in the hands of on_message */
    grpc_byte_buffer *held; /* came while paused */

    bool is_cancelled; /* by us */
    bool end_seen;     /* the C core told the outcome */
    bool done;         /* on_done has been called or is about to be */
    bool done_returned;
};

/* A new call in the owner's list, with one reference: the library's. Takes grpc on success. */
status_t call_create(struct rpc_owner *owner, grpc_call *grpc, bool is_server, const grpc_slice *method,
                     const struct rpc_send_limits *limits, struct rpc_call **ret_call);
/* Starts to read and to watch for the end. Server: after the accept callback. */
void call_start_server(struct rpc_call *call, bool with_reads);
void call_start_client(struct rpc_call *call, bool wait_for_ready);

/* call.c, for call_send.c. Hands a batch to the C core; the call's lock is held. */
void call_start_batch(struct rpc_call *call, const grpc_op *ops, size_t count, struct rpc_tag *tag);
/* After every event, without the lock: tells the end when it is due, and gives the call up. */
void call_settle(struct rpc_call *call);
/* call_send.c, for call.c. */
void call_handle_send(struct rpc_tag *tag, bool ok);
void call_queue_clear(struct send_queue *queue);

gpr_timespec deadline_to_gpr(uint64_t deadline_ns);
uint64_t deadline_from_gpr(gpr_timespec deadline);

/* Called by call.c when a call that a server counted is gone. */
void server_call_gone(struct rpc_server *server);

status_t tls_server_credentials(const struct rpc_tls *tls, grpc_server_credentials **ret_creds, struct diag *diag);
status_t tls_channel_credentials(const struct rpc_tls *tls, grpc_channel_credentials **ret_creds, struct diag *diag);

struct rpc_send_limits send_limits_or_default(const struct rpc_send_limits *limits);

/* Channel arguments that servers and channels build up. */
struct arg_list {
    grpc_arg args[24];
    size_t count;
};
void arg_int(struct arg_list *list, const char *key, int value);
void arg_string(struct arg_list *list, const char *key, const char *value);
/* Keepalive and message size: the same on both sides. */
status_t arg_common(struct arg_list *list, const struct rpc_keepalive *keepalive, uint32_t message_bytes_max,
                    struct diag *diag);

struct rpc_buffer {
    atomic_uint refs;
    size_t len;
    uint8_t bytes[];
};

#endif
