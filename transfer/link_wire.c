#include "transfer/link_wire.h"

#include <string.h>

#include "proto/baton/transfer/v1/kv_link.pb-c.h"
#include "transfer/wire_arena.h"

typedef Baton__Transfer__V1__LinkMessage wire_message_t;

static size_t pack(wire_message_t *wire, uint8_t *ret_bytes, size_t capacity)
{
    if (baton__transfer__v1__link_message__get_packed_size(wire) > capacity) { return 0; }
    return baton__transfer__v1__link_message__pack(wire, ret_bytes);
}

/* The generated structs have no const pointers; packing only reads them. */
static ProtobufCBinaryData view(const uint8_t *bytes, size_t size)
{
    return (ProtobufCBinaryData){.len = size, .data = (uint8_t *)(uintptr_t)bytes};
}

static size_t encode_hello(const struct link_hello *hello, uint8_t *ret_bytes, size_t capacity)
{
    wire_message_t wire = BATON__TRANSFER__V1__LINK_MESSAGE__INIT;
    Baton__Transfer__V1__Hello body = BATON__TRANSFER__V1__HELLO__INIT;
    char *cables[LINK_CABLES_MAX];
    for (uint32_t i = 0; i < hello->cable_count; i++) { cables[i] = (char *)(uintptr_t)hello->cables[i]; }
    body.protocol = hello->protocol;
    body.node_id = (char *)(uintptr_t)hello->node_id;
    body.boot_epoch = hello->boot_epoch;
    body.expect_node_id = (char *)(uintptr_t)hello->expect_node_id;
    body.expect_boot_epoch = hello->expect_boot_epoch;
    body.fingerprint = view(hello->fingerprint, sizeof hello->fingerprint);
    body.host_id = (char *)(uintptr_t)hello->host_id;
    body.n_cables = hello->cable_count;
    body.cables = cables;
    wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_HELLO;
    wire.hello = &body;
    return pack(&wire, ret_bytes, capacity);
}

static size_t encode_hello_ack(const struct link_hello_ack *ack, uint8_t *ret_bytes, size_t capacity)
{
    wire_message_t wire = BATON__TRANSFER__V1__LINK_MESSAGE__INIT;
    Baton__Transfer__V1__HelloAck body = BATON__TRANSFER__V1__HELLO_ACK__INIT;
    Baton__Transfer__V1__CableOffer offers[LINK_CABLES_MAX];
    Baton__Transfer__V1__CableOffer *offer_pointers[LINK_CABLES_MAX];
    for (uint32_t i = 0; i < ack->offer_count; i++) {
        baton__transfer__v1__cable_offer__init(&offers[i]);
        offers[i].cable = (char *)(uintptr_t)ack->offers[i].cable;
        offers[i].offer = view(ack->offers[i].offer.bytes, ack->offers[i].offer.size);
        offer_pointers[i] = &offers[i];
    }
    body.code = ack->code;
    body.text = (char *)(uintptr_t)ack->text;
    body.node_id = (char *)(uintptr_t)ack->node_id;
    body.boot_epoch = ack->boot_epoch;
    body.host_id = (char *)(uintptr_t)ack->host_id;
    body.n_offers = ack->offer_count;
    body.offers = offer_pointers;
    body.token = view(ack->token, sizeof ack->token);
    if (ack->converts) { body.fingerprint = view(ack->fingerprint, sizeof ack->fingerprint); }
    wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_HELLO_ACK;
    wire.hello_ack = &body;
    return pack(&wire, ret_bytes, capacity);
}

static size_t encode_xfer(enum link_msg_kind kind, const struct link_xfer *xfer, uint8_t *ret_bytes, size_t capacity)
{
    wire_message_t wire = BATON__TRANSFER__V1__LINK_MESSAGE__INIT;
    ProtobufCBinaryData id = view(xfer->xfer_id.bytes, sizeof xfer->xfer_id.bytes);
    Baton__Transfer__V1__Begin begin = BATON__TRANSFER__V1__BEGIN__INIT;
    Baton__Transfer__V1__BeginAck begin_ack = BATON__TRANSFER__V1__BEGIN_ACK__INIT;
    Baton__Transfer__V1__Commit commit = BATON__TRANSFER__V1__COMMIT__INIT;
    Baton__Transfer__V1__Ack ack = BATON__TRANSFER__V1__ACK__INIT;
    Baton__Transfer__V1__Abort abort_body = BATON__TRANSFER__V1__ABORT__INIT;
    Baton__Transfer__V1__AbortAck abort_ack = BATON__TRANSFER__V1__ABORT_ACK__INIT;
    switch (kind) {
    case LINK_BEGIN:
        begin.xfer_id = id;
        begin.grant_epoch = xfer->grant_epoch;
        begin.secret = view(xfer->secret, sizeof xfer->secret);
        begin.block_count = xfer->block_count;
        wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_BEGIN;
        wire.begin = &begin;
        break;
    case LINK_BEGIN_ACK:
        begin_ack.xfer_id = id;
        begin_ack.grant_epoch = xfer->grant_epoch;
        begin_ack.code = xfer->code;
        wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_BEGIN_ACK;
        wire.begin_ack = &begin_ack;
        break;
    case LINK_COMMIT:
        commit.xfer_id = id;
        commit.grant_epoch = xfer->grant_epoch;
        commit.n_layer_slices = xfer->layer_count;
        commit.layer_slices = (uint32_t *)(uintptr_t)xfer->layer_slices;
        commit.bytes_total = xfer->bytes_total;
        commit.payload = view(xfer->payload, xfer->payload_bytes);
        wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_COMMIT;
        wire.commit = &commit;
        break;
    case LINK_ACK:
        ack.xfer_id = id;
        ack.grant_epoch = xfer->grant_epoch;
        wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_ACK;
        wire.ack = &ack;
        break;
    case LINK_ABORT:
        abort_body.xfer_id = id;
        abort_body.grant_epoch = xfer->grant_epoch;
        abort_body.code = xfer->code;
        wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_ABORT;
        wire.abort = &abort_body;
        break;
    case LINK_ABORT_ACK:
        abort_ack.xfer_id = id;
        abort_ack.grant_epoch = xfer->grant_epoch;
        wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_ABORT_ACK;
        wire.abort_ack = &abort_ack;
        break;
    default: return 0;
    }
    return pack(&wire, ret_bytes, capacity);
}

static size_t encode_cable(const struct link_cable_msg *cable, uint8_t *ret_bytes, size_t capacity)
{
    wire_message_t wire = BATON__TRANSFER__V1__LINK_MESSAGE__INIT;
    Baton__Transfer__V1__CableMessage body = BATON__TRANSFER__V1__CABLE_MESSAGE__INIT;
    body.cable = (char *)(uintptr_t)cable->cable;
    body.message = view(cable->bytes, cable->count);
    wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_CABLE;
    wire.cable = &body;
    return pack(&wire, ret_bytes, capacity);
}

size_t link_wire_encode(const struct link_msg *msg, uint8_t *ret_bytes, size_t capacity)
{
    if (msg->kind == LINK_HELLO) { return encode_hello(&msg->body.hello, ret_bytes, capacity); }
    if (msg->kind == LINK_HELLO_ACK) { return encode_hello_ack(&msg->body.hello_ack, ret_bytes, capacity); }
    if (msg->kind == LINK_CABLE) { return encode_cable(&msg->body.cable, ret_bytes, capacity); }
    if (msg->kind == LINK_HEARTBEAT) {
        wire_message_t wire = BATON__TRANSFER__V1__LINK_MESSAGE__INIT;
        Baton__Transfer__V1__Heartbeat body = BATON__TRANSFER__V1__HEARTBEAT__INIT;
        body.sequence = msg->body.heartbeat;
        wire.body_case = BATON__TRANSFER__V1__LINK_MESSAGE__BODY_HEARTBEAT;
        wire.heartbeat = &body;
        return pack(&wire, ret_bytes, capacity);
    }
    return encode_xfer(msg->kind, &msg->body.xfer, ret_bytes, capacity);
}

static status_t refuse(struct diag *diag, const char *what)
{
    diag_set(diag, "link message: %s", what);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER);
}

/* Copies a foreign string; false if it is too long. Control characters become '?': such text
 * is logged. */
static bool take_text(char *ret_text, size_t chars_max, const char *text)
{
    size_t chars = strlen(text);
    if (chars > chars_max) { return false; }
    for (size_t i = 0; i < chars; i++) { ret_text[i] = text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i]; }
    ret_text[chars] = '\0';
    return true;
}

static status_t decode_hello(const Baton__Transfer__V1__Hello *wire, struct diag *diag, struct link_hello *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->protocol = wire->protocol;
    ret->boot_epoch = wire->boot_epoch;
    ret->expect_boot_epoch = wire->expect_boot_epoch;
    if (!take_text(ret->node_id, KV_NODE_ID_CHARS_MAX, wire->node_id)) { return refuse(diag, "hello: node_id is too long"); }
    if (!take_text(ret->expect_node_id, KV_NODE_ID_CHARS_MAX, wire->expect_node_id)) {
        return refuse(diag, "hello: expect_node_id is too long");
    }
    if (!take_text(ret->host_id, LINK_HOST_ID_CHARS_MAX, wire->host_id)) { return refuse(diag, "hello: host_id is too long"); }
    if (wire->fingerprint.len != sizeof ret->fingerprint) { return refuse(diag, "hello: fingerprint has the wrong size"); }
    memcpy(ret->fingerprint, wire->fingerprint.data, sizeof ret->fingerprint);
    /* A later version may know more cables than we have room for: take the first ones. */
    for (size_t i = 0; i < wire->n_cables && ret->cable_count < LINK_CABLES_MAX; i++) {
        if (take_text(ret->cables[ret->cable_count], LINK_CABLE_NAME_CHARS_MAX, wire->cables[i])) { ret->cable_count++; }
    }
    return STATUS_OK;
}

static status_t decode_hello_ack(const Baton__Transfer__V1__HelloAck *wire, struct diag *diag, struct link_hello_ack *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->code = wire->code;
    ret->boot_epoch = wire->boot_epoch;
    if (!take_text(ret->node_id, KV_NODE_ID_CHARS_MAX, wire->node_id)) { return refuse(diag, "hello_ack: node_id is too long"); }
    if (!take_text(ret->host_id, LINK_HOST_ID_CHARS_MAX, wire->host_id)) {
        return refuse(diag, "hello_ack: host_id is too long");
    }
    if (!take_text(ret->text, LINK_TEXT_CHARS_MAX, wire->text)) { return refuse(diag, "hello_ack: text is too long"); }
    if (ret->code != 0) { return STATUS_OK; } /* a refusal has no token and no offers */
    if (wire->token.len != sizeof ret->token) { return refuse(diag, "hello_ack: token is not 32 bytes"); }
    memcpy(ret->token, wire->token.data, sizeof ret->token);
    ret->converts = wire->fingerprint.len != 0;
    if (ret->converts && wire->fingerprint.len != sizeof ret->fingerprint) { return refuse(diag, "hello_ack: fingerprint has the wrong size"); }
    if (ret->converts) { memcpy(ret->fingerprint, wire->fingerprint.data, sizeof ret->fingerprint); }
    for (size_t i = 0; i < wire->n_offers && ret->offer_count < LINK_CABLES_MAX; i++) {
        const Baton__Transfer__V1__CableOffer *offer = wire->offers[i];
        if (offer->offer.len > KV_OFFER_BYTES_MAX) { continue; }
        if (!take_text(ret->offers[ret->offer_count].cable, LINK_CABLE_NAME_CHARS_MAX, offer->cable)) { continue; }
        if (offer->offer.len) { memcpy(ret->offers[ret->offer_count].offer.bytes, offer->offer.data, offer->offer.len); }
        ret->offers[ret->offer_count].offer.size = (uint32_t)offer->offer.len;
        ret->offer_count++;
    }
    return STATUS_OK;
}

static status_t decode_cable(const Baton__Transfer__V1__CableMessage *wire, struct diag *diag, struct link_cable_msg *ret)
{
    memset(ret, 0, sizeof *ret);
    if (!take_text(ret->cable, LINK_CABLE_NAME_CHARS_MAX, wire->cable)) { return refuse(diag, "cable: the name is too long"); }
    if (wire->message.len > KV_CABLE_MESSAGE_BYTES_MAX) { return refuse(diag, "cable: the message is too long"); }
    ret->bytes = wire->message.data;
    ret->count = wire->message.len;
    return STATUS_OK;
}

static bool take_id(struct link_xfer *ret, ProtobufCBinaryData id, uint64_t grant_epoch)
{
    memset(ret, 0, sizeof *ret);
    if (id.len != sizeof ret->xfer_id.bytes) { return false; }
    memcpy(ret->xfer_id.bytes, id.data, sizeof ret->xfer_id.bytes);
    ret->grant_epoch = grant_epoch;
    return true;
}

status_t link_wire_decode(const void *bytes, size_t size, void *scratch, struct diag *diag, struct link_msg *ret_msg)
{
    static const char *const bad_id = "xfer_id is not 16 bytes";
    if (size > KV_LINK_MESSAGE_BYTES_MAX) { return refuse(diag, "longer than any message"); }
    struct wire_arena arena;
    wire_arena_init(&arena, scratch, LINK_WIRE_SCRATCH_BYTES);
    const wire_message_t *wire = baton__transfer__v1__link_message__unpack(&arena.allocator, size, bytes);
    if (!wire) { return refuse(diag, "not a baton.transfer.v1.LinkMessage"); }
    struct link_xfer *xfer = &ret_msg->body.xfer;
    switch (wire->body_case) {
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_HELLO:
        ret_msg->kind = LINK_HELLO;
        return decode_hello(wire->hello, diag, &ret_msg->body.hello);
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_HELLO_ACK:
        ret_msg->kind = LINK_HELLO_ACK;
        return decode_hello_ack(wire->hello_ack, diag, &ret_msg->body.hello_ack);
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_BEGIN:
        ret_msg->kind = LINK_BEGIN;
        if (!take_id(xfer, wire->begin->xfer_id, wire->begin->grant_epoch)) { return refuse(diag, bad_id); }
        if (wire->begin->secret.len != KV_SECRET_BYTES) { return refuse(diag, "begin: secret is not 32 bytes"); }
        memcpy(xfer->secret, wire->begin->secret.data, KV_SECRET_BYTES);
        xfer->block_count = wire->begin->block_count;
        return STATUS_OK;
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_BEGIN_ACK:
        ret_msg->kind = LINK_BEGIN_ACK;
        if (!take_id(xfer, wire->begin_ack->xfer_id, wire->begin_ack->grant_epoch)) { return refuse(diag, bad_id); }
        xfer->code = wire->begin_ack->code;
        return STATUS_OK;
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_COMMIT:
        ret_msg->kind = LINK_COMMIT;
        if (!take_id(xfer, wire->commit->xfer_id, wire->commit->grant_epoch)) { return refuse(diag, bad_id); }
        if (wire->commit->n_layer_slices > LINK_LAYERS_MAX) { return refuse(diag, "commit: too many layers"); }
        if (wire->commit->payload.len > KV_PAYLOAD_BYTES_MAX) { return refuse(diag, "commit: payload is too long"); }
        xfer->layer_slices = wire->commit->layer_slices;
        xfer->layer_count = (uint32_t)wire->commit->n_layer_slices;
        xfer->bytes_total = wire->commit->bytes_total;
        xfer->payload = wire->commit->payload.data;
        xfer->payload_bytes = wire->commit->payload.len;
        return STATUS_OK;
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_ACK:
        ret_msg->kind = LINK_ACK;
        return take_id(xfer, wire->ack->xfer_id, wire->ack->grant_epoch) ? STATUS_OK : refuse(diag, bad_id);
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_ABORT:
        ret_msg->kind = LINK_ABORT;
        if (!take_id(xfer, wire->abort->xfer_id, wire->abort->grant_epoch)) { return refuse(diag, bad_id); }
        xfer->code = wire->abort->code;
        return STATUS_OK;
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_ABORT_ACK:
        ret_msg->kind = LINK_ABORT_ACK;
        return take_id(xfer, wire->abort_ack->xfer_id, wire->abort_ack->grant_epoch) ? STATUS_OK : refuse(diag, bad_id);
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_HEARTBEAT:
        ret_msg->kind = LINK_HEARTBEAT;
        ret_msg->body.heartbeat = wire->heartbeat->sequence;
        return STATUS_OK;
    case BATON__TRANSFER__V1__LINK_MESSAGE__BODY_CABLE:
        ret_msg->kind = LINK_CABLE;
        return decode_cable(wire->cable, diag, &ret_msg->body.cable);
    default: return refuse(diag, "of a kind that this version does not know");
    }
}
