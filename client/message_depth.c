#include "client/message_depth.h"

#include <stdbool.h>

/* Of the wire format: protobuf.dev, "Encoding". */
enum { WIRE_VARINT = 0, WIRE_64BIT = 1, WIRE_BYTES = 2, WIRE_32BIT = 5 };

enum shape { SHAPE_GOOD, SHAPE_TOO_DEEP, SHAPE_BROKEN };

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *ret_value)
{
    uint64_t value = 0;
    for (uint32_t shift = 0; shift < 64 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *ret_value = value;
            return true;
        }
    }
    return false;
}

/* Calls itself at most MESSAGE_DEPTH_MAX times. What is broken is not looked behind: then nothing is unpacked. */
static enum shape look(const ProtobufCMessageDescriptor *descriptor, const uint8_t *at, const uint8_t *end, uint32_t depth)
{
    if (depth > MESSAGE_DEPTH_MAX) { return SHAPE_TOO_DEEP; }
    while (at < end) {
        uint64_t tag, len;
        if (!read_varint(&at, end, &tag) || tag > UINT32_MAX) { return SHAPE_BROKEN; }
        switch (tag & 7) {
        case WIRE_VARINT:
            if (!read_varint(&at, end, &len)) { return SHAPE_BROKEN; }
            continue;
        case WIRE_64BIT: len = 8; break;
        case WIRE_32BIT: len = 4; break;
        case WIRE_BYTES:
            if (!read_varint(&at, end, &len)) { return SHAPE_BROKEN; }
            break;
        default: return SHAPE_BROKEN; /* groups: the library refuses them too */
        }
        if (len > (uint64_t)(end - at)) { return SHAPE_BROKEN; }
        const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(descriptor, (unsigned)(tag >> 3));
        if ((tag & 7) == WIRE_BYTES && field && field->type == PROTOBUF_C_TYPE_MESSAGE) {
            enum shape shape = look(field->descriptor, at, at + len, depth + 1);
            if (shape != SHAPE_GOOD) { return shape; }
        }
        at += len;
    }
    return SHAPE_GOOD;
}

status_t message_unpack_shallow(const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes, size_t len,
                                ProtobufCMessage **ret_message, struct diag *diag)
{
    *ret_message = NULL;
    const uint8_t *at = bytes ? bytes : (const uint8_t *)"";
    enum shape shape = look(descriptor, at, at + len, 1);
    if (shape == SHAPE_TOO_DEEP) {
        diag_set(diag, "the router sent a message with more than %u messages in each other; it is broken, or not a router of Baton",
                 MESSAGE_DEPTH_MAX);
        return STATUS(ST_DATA_LOSS, SCOPE_PEER);
    }
    if (shape == SHAPE_GOOD) { *ret_message = protobuf_c_message_unpack(descriptor, NULL, len, at); }
    if (!*ret_message) {
        diag_set(diag, "the router sent a message that cannot be read; is it another version?");
        return STATUS(ST_DATA_LOSS, SCOPE_PEER);
    }
    return STATUS_OK;
}
