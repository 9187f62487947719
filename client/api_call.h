/* api_call: one call of baton.v1.Inference from a command line tool's thread.
 * Flow:    command -> [api_call] -> rpc -> router, and back message by message
 * Thread:  the caller's blocks in api_call_next; rpc threads fill the queue.
 * Memory:  a queue of received messages; the sender is held up by flow control when it is long. */
#ifndef BATON_CLIENT_API_CALL_H
#define BATON_CLIENT_API_CALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/diag.h"
#include "base/status.h"

struct api;      /* a connection to one router */
struct api_call;
struct rpc_channel;

struct api_tls {
    const char *cert_file, *key_file, *ca_file; /* all NULL: plain text */
};

/* Errors  INVALID_ARGUMENT (node): the address or a PEM file, diag names it. */
NODISCARD status_t api_open(const char *router, const struct api_tls *tls, struct api **ret_api, struct diag *diag);
void api_close(struct api *api); /* takes NULL */

/* The connection below, for who keeps many calls open at once. Borrowed until api_close. */
struct rpc_channel *api_channel(struct api *api);

/* Starts a call with one request. deadline_ns on clock_now_ns(), UINT64_MAX: none.
 * wait_for_ready  wait for the router to come up instead of failing at once */
NODISCARD status_t api_call_start(struct api *api, const char *method, const ProtobufCMessage *request,
                                  uint64_t deadline_ns, bool wait_for_ready, struct api_call **ret_call,
                                  struct diag *diag);

/* Waits for the next response.
 * ret_message  Returns owned: protobuf_c_message_free_unpacked(); NULL at the end of the call
 * ret_at_ns    when it came in; may be NULL
 * Errors  the call's status, diag has its message and what to do. */
NODISCARD status_t api_call_next(struct api_call *call, const ProtobufCMessageDescriptor *descriptor,
                                 ProtobufCMessage **ret_message, uint64_t *ret_at_ns, struct diag *diag);

/* Cancels where it has not ended. Takes NULL. */
void api_call_end(struct api_call *call);

/* The common case: one request, one response. */
NODISCARD status_t api_unary(struct api *api, const char *method, const ProtobufCMessage *request,
                             const ProtobufCMessageDescriptor *descriptor, uint64_t timeout_ns,
                             ProtobufCMessage **ret_message, struct diag *diag);

#endif
