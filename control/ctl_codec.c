#include "control/ctl_codec.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "control/ctl_wire.h"

struct ctl_codec {
    size_t message_bytes_max;
    struct arena encode_arena;
    struct arena decode_arena;
};

const char *ctl_kind_name(enum ctl_kind kind)
{
    static const char *const names[CTL_KIND_COUNT] = {
        "NONE", "ROUTER_HELLO", "RESERVE", "PREFILL", "PREFILL_LOST", "CANCEL", "NODE_HELLO", "RESERVED", "REFUSED",
        "PROMPT_LOGPROBS", "TOKENS", "PREFILL_DONE", "PREFILL_FAILED", "LEG_FAILED", "LOAD",
    };
    return (unsigned)kind < CTL_KIND_COUNT ? names[kind] : "?";
}

/* Saturates: where size_t has 32 bits, the product may not fit. */
static size_t times(size_t bytes, size_t factor) { return bytes > SIZE_MAX / factor ? SIZE_MAX : bytes * factor; }

status_t ctl_codec_create(size_t message_bytes_max, struct ctl_codec **ret_codec)
{
    CHECK(message_bytes_max <= CTL_MESSAGE_BYTES_MAX); /* lengths of fields become uint32_t */
    struct ctl_codec *codec = calloc(1, sizeof *codec);
    if (!codec) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    codec->message_bytes_max = message_bytes_max;
    /* A token entry of about 20 wire bytes becomes 200 of structs; a bare submessage of two
     * wire bytes becomes one struct and one pointer, which is the worst ratio there is. */
    arena_init(&codec->encode_arena, times(message_bytes_max, 64));
    arena_init(&codec->decode_arena, times(message_bytes_max, 128));
    *ret_codec = codec;
    return STATUS_OK;
}

void ctl_codec_destroy(struct ctl_codec *codec)
{
    if (!codec) { return; }
    arena_fini(&codec->encode_arena);
    arena_fini(&codec->decode_arena);
    free(codec);
}

status_t ctl_codec_encode(struct ctl_codec *codec, const struct ctl_msg *msg, const uint8_t **ret_bytes,
                          size_t *ret_byte_count)
{
    struct arena *arena = &codec->encode_arena;
    arena_reset(arena);
    pb_router_message from_router = BATON__CONTROL__V1__ROUTER_MESSAGE__INIT;
    pb_node_message from_node = BATON__CONTROL__V1__NODE_MESSAGE__INIT;
    const ProtobufCMessage *base;
    bool built;
    if (msg->kind >= CTL_NODE_HELLO) {
        built = ctl_build_node_message(arena, msg, &from_node);
        base = &from_node.base;
    } else {
        built = ctl_build_router_message(arena, msg, &from_router);
        base = &from_router.base;
    }
    if (!built) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    size_t byte_count = protobuf_c_message_get_packed_size(base);
    uint8_t *bytes = byte_count <= codec->message_bytes_max ? arena_take(arena, byte_count) : NULL;
    if (!bytes) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    protobuf_c_message_pack(base, bytes);
    *ret_bytes = bytes;
    *ret_byte_count = byte_count;
    return STATUS_OK;
}

static void *unpack_alloc(void *arena, size_t bytes) { return arena_take(arena, bytes); }

static void unpack_free(void *arena, void *memory)
{
    (void)arena; /* the reset takes it all back */
    (void)memory;
}

status_t ctl_codec_decode(struct ctl_codec *codec, enum ctl_direction direction, const uint8_t *bytes,
                          size_t byte_count, struct ctl_msg *ret_msg, struct diag *diag)
{
    struct arena *arena = &codec->decode_arena;
    arena_reset(arena);
    if (byte_count > codec->message_bytes_max) { return ctl_malformed(diag, "larger than the limit"); }
    ProtobufCAllocator allocator = {.alloc = unpack_alloc, .free = unpack_free, .allocator_data = arena};
    const ProtobufCMessageDescriptor *descriptor = direction == CTL_FROM_ROUTER
                                                       ? &baton__control__v1__router_message__descriptor
                                                       : &baton__control__v1__node_message__descriptor;
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, &allocator, byte_count, bytes);
    if (!message) { return ctl_malformed(diag, "not a protobuf message of its kind, or larger than the limit"); }
    struct ctl_msg msg;
    memset(&msg, 0, sizeof msg);
    if (direction == CTL_FROM_ROUTER) {
        TRY(ctl_read_router_message(arena, (const pb_router_message *)message, &msg, diag));
    } else {
        TRY(ctl_read_node_message(arena, (const pb_node_message *)message, &msg, diag));
    }
    *ret_msg = msg;
    return STATUS_OK;
}
