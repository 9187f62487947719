#include "rpc/small_request.h"

#include "base/diag.h"

void *small_request_unpack(struct rpc_call *call, const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes,
                           size_t len)
{
    struct diag diag;
    if (len > SMALL_REQUEST_BYTES_MAX) {
        diag_set(&diag, "a %s of %zu bytes; at most %u are read", descriptor->name, len, SMALL_REQUEST_BYTES_MAX);
        rpc_call_finish_status(call, STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST), diag.text, 0);
        return NULL;
    }
    void *message = protobuf_c_message_unpack(descriptor, NULL, len, bytes ? bytes : (const uint8_t *)"");
    if (message == NULL) {
        diag_set(&diag, "the message is no %s", descriptor->name);
        rpc_call_finish_status(call, STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST), diag.text, 0);
    }
    return message;
}
