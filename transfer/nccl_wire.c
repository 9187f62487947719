#include "transfer/nccl_wire.h"

#include <string.h>

#include "base/check.h"
#include "transfer/little_endian.h"

enum { HEAD_BYTES = 16, OPEN_BYTES = 32, SEND_HEAD_BYTES = 40 };
_Static_assert(HEAD_BYTES + SEND_HEAD_BYTES + 4u * KV_FRAME_BLOCKS_MAX <= KV_CABLE_MESSAGE_BYTES_MAX, "a send fits");
_Static_assert(HEAD_BYTES + 8 + NCCL_WIRE_TEXT_CHARS_MAX <= KV_CABLE_MESSAGE_BYTES_MAX, "a text fits");

static void head_write(uint8_t *at, uint32_t kind, uint64_t gen)
{
    le32_store(at, NCCL_WIRE_MAGIC);
    le32_store(at + 4, NCCL_WIRE_VERSION | kind << 16);
    le64_store(at + 8, gen);
}

/* False: not of ours. */
static bool head_read(const uint8_t *at, size_t size, uint32_t *ret_kind, uint64_t *ret_gen)
{
    if (size < HEAD_BYTES || le32_load(at) != NCCL_WIRE_MAGIC || (le32_load(at + 4) & 0xffffu) != NCCL_WIRE_VERSION) { return false; }
    *ret_kind = le32_load(at + 4) >> 16;
    *ret_gen = le64_load(at + 8);
    return true;
}

void nccl_offer_write(const struct nccl_wire_offer *offer, struct kv_cable_offer *ret)
{
    memset(ret->bytes, 0, NCCL_WIRE_OFFER_BYTES);
    head_write(ret->bytes, 0, 0);
    le64_store(ret->bytes + 16, offer->identity);
    le32_store(ret->bytes + 24, offer->nccl_version);
    memcpy(ret->bytes + 32, offer->device, sizeof offer->device);
    ret->size = NCCL_WIRE_OFFER_BYTES;
}

bool nccl_offer_read(const void *bytes, size_t size, struct nccl_wire_offer *ret)
{
    const uint8_t *at = bytes;
    uint32_t kind;
    uint64_t gen;
    if (size != NCCL_WIRE_OFFER_BYTES || !head_read(at, size, &kind, &gen) || kind != 0 || gen != 0 || le32_load(at + 28) != 0) {
        return false;
    }
    ret->identity = le64_load(at + 16);
    ret->nccl_version = le32_load(at + 24);
    memcpy(ret->device, at + 32, sizeof ret->device);
    return true;
}

static size_t text_write(const char *text, uint8_t *at)
{
    size_t chars = strnlen(text, NCCL_WIRE_TEXT_CHARS_MAX);
    memcpy(at, text, chars);
    return chars;
}

static bool text_read(const uint8_t *at, size_t chars, char *ret_text)
{
    if (chars > NCCL_WIRE_TEXT_CHARS_MAX) { return false; }
    for (size_t i = 0; i < chars; i++) { ret_text[i] = at[i] < 0x20 || at[i] >= 0x7f ? '?' : at[i] == '"' ? '\'' : (char)at[i]; }
    ret_text[chars] = '\0';
    return true;
}

static size_t send_write(const struct nccl_wire_msg *msg, uint8_t *at)
{
    const struct kv_frame *frame = &msg->frame;
    CHECK(frame->count >= 1);
    CHECK(frame->count <= KV_FRAME_BLOCKS_MAX);
    le32_store(at, msg->slot);
    memcpy(at + 4, frame->xfer_id.bytes, 16);
    le64_store(at + 20, frame->grant_epoch);
    le32_store(at + 28, frame->layer);
    le32_store(at + 32, frame->first);
    le32_store(at + 36, frame->count);
    for (uint32_t i = 0; i < frame->count; i++) { le32_store(at + SEND_HEAD_BYTES + 4u * i, msg->crc[i]); }
    return SEND_HEAD_BYTES + 4u * frame->count;
}

static bool send_read(const uint8_t *at, size_t size, struct nccl_wire_msg *ret)
{
    struct kv_frame *frame = &ret->frame;
    if (size < SEND_HEAD_BYTES) { return false; }
    ret->slot = le32_load(at);
    memcpy(frame->xfer_id.bytes, at + 4, 16);
    frame->grant_epoch = le64_load(at + 20);
    frame->layer = le32_load(at + 28);
    frame->first = le32_load(at + 32);
    frame->count = le32_load(at + 36);
    if (frame->count < 1 || frame->count > KV_FRAME_BLOCKS_MAX || size != SEND_HEAD_BYTES + 4u * frame->count) { return false; }
    for (uint32_t i = 0; i < frame->count; i++) { ret->crc[i] = le32_load(at + SEND_HEAD_BYTES + 4u * i); }
    return true;
}

size_t nccl_wire_write(const struct nccl_wire_msg *msg, uint8_t *ret_bytes)
{
    uint8_t *at = ret_bytes + HEAD_BYTES;
    head_write(ret_bytes, msg->kind, msg->gen);
    switch (msg->kind) {
    case NCCL_WIRE_OPENED: case NCCL_WIRE_UP: case NCCL_WIRE_CLOSE: return HEAD_BYTES;
    case NCCL_WIRE_OPEN:
        le64_store(at, msg->open.identity);
        le32_store(at + 8, msg->open.nccl_version);
        le32_store(at + 12, msg->open.slot_count);
        le64_store(at + 16, msg->open.slot_bytes);
        le32_store(at + 24, msg->open.dtype);
        le32_store(at + 28, msg->open.order);
        return HEAD_BYTES + OPEN_BYTES;
    case NCCL_WIRE_DENIED:
        le32_store(at, msg->code);
        le32_store(at + 4, msg->retry_ms);
        return HEAD_BYTES + 8 + text_write(msg->text, at + 8);
    case NCCL_WIRE_ID: memcpy(at, msg->id, sizeof msg->id); return HEAD_BYTES + sizeof msg->id;
    case NCCL_WIRE_SEND: return HEAD_BYTES + send_write(msg, at);
    case NCCL_WIRE_READY: case NCCL_WIRE_REFUSED: le32_store(at, msg->slot); return HEAD_BYTES + 4;
    case NCCL_WIRE_BROKEN: le32_store(at, msg->code); return HEAD_BYTES + 4 + text_write(msg->text, at + 4);
    }
    CHECK(false);
    return 0;
}

bool nccl_wire_read(const void *bytes, size_t size, struct nccl_wire_msg *ret)
{
    const uint8_t *at = (const uint8_t *)bytes + HEAD_BYTES;
    uint32_t kind;
    if (size > KV_CABLE_MESSAGE_BYTES_MAX || !head_read(bytes, size, &kind, &ret->gen)) { return false; }
    size -= HEAD_BYTES;
    ret->kind = (enum nccl_wire_kind)kind;
    switch (kind) {
    case NCCL_WIRE_OPENED: case NCCL_WIRE_UP: case NCCL_WIRE_CLOSE: return size == 0;
    case NCCL_WIRE_OPEN:
        if (size != OPEN_BYTES) { return false; }
        ret->open.identity = le64_load(at);
        ret->open.nccl_version = le32_load(at + 8);
        ret->open.slot_count = le32_load(at + 12);
        ret->open.slot_bytes = le64_load(at + 16);
        ret->open.dtype = le32_load(at + 24);
        ret->open.order = le32_load(at + 28);
        return true;
    case NCCL_WIRE_DENIED:
        if (size < 8) { return false; }
        ret->code = le32_load(at);
        ret->retry_ms = le32_load(at + 4);
        return text_read(at + 8, size - 8, ret->text);
    case NCCL_WIRE_ID:
        if (size != sizeof ret->id) { return false; }
        memcpy(ret->id, at, sizeof ret->id);
        return true;
    case NCCL_WIRE_SEND: return send_read(at, size, ret);
    case NCCL_WIRE_READY: case NCCL_WIRE_REFUSED:
        if (size != 4) { return false; }
        ret->slot = le32_load(at);
        return true;
    case NCCL_WIRE_BROKEN:
        if (size < 4) { return false; }
        ret->code = le32_load(at);
        return text_read(at + 4, size - 4, ret->text);
    default: return false;
    }
}
