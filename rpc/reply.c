#include "rpc/reply.h"

status_t reply_send(struct rpc_call *call, const ProtobufCMessage *message)
{
    struct rpc_buffer *buffer = NULL;
    uint8_t *bytes = NULL;
    TRY(rpc_buffer_create(protobuf_c_message_get_packed_size(message), &buffer, &bytes));
    (void)protobuf_c_message_pack(message, bytes);
    status_t st = rpc_call_send_buffer(call, buffer);
    if (failed(st)) {
        rpc_buffer_unref(buffer);
    }
    return st;
}

void reply_last(struct rpc_call *call, const ProtobufCMessage *message)
{
    status_t st = reply_send(call, message);
    rpc_call_finish_status(call, st, failed(st) ? "the answer could not be queued" : "", 0);
}

void reply_no_message(void *user, struct rpc_call *call)
{
    (void)user;
    rpc_call_finish_status(call, STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST), "the call ended without a request", 0);
}
