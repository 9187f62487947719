#include "router/pb_wire.h"

#include <stdlib.h>
#include <string.h>

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

void pb_writer_fini(struct pb_writer *writer)
{
    free(writer->bytes);
    *writer = (struct pb_writer){0};
}

static uint8_t *room(struct pb_writer *writer, size_t more)
{
    if (writer->is_broken) { return NULL; }
    if (writer->len + more > writer->capacity) {
        size_t capacity = writer->capacity ? writer->capacity * 2 : 1024;
        while (capacity < writer->len + more) { capacity *= 2; }
        uint8_t *grown = realloc(writer->bytes, capacity);
        if (!grown) {
            writer->is_broken = true;
            return NULL;
        }
        writer->bytes = grown;
        writer->capacity = capacity;
    }
    return writer->bytes + writer->len;
}

static size_t encode_varint(uint8_t *out, uint64_t value)
{
    size_t len = 0;
    while (value >= 0x80) {
        out[len++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    out[len++] = (uint8_t)value;
    return len;
}

static size_t varint_len(uint64_t value)
{
    size_t len = 1;
    while (value >= 0x80) {
        value >>= 7;
        len++;
    }
    return len;
}

static void put_varint(struct pb_writer *writer, uint64_t value)
{
    uint8_t *out = room(writer, 10);
    if (out) { writer->len += encode_varint(out, value); }
}

static void put_key(struct pb_writer *writer, uint32_t field, uint32_t wire_type)
{
    put_varint(writer, (uint64_t)field << 3 | wire_type);
}

static void put_raw(struct pb_writer *writer, const void *bytes, size_t len)
{
    uint8_t *out = room(writer, len);
    if (!out || len == 0) { return; }
    memcpy(out, bytes, len);
    writer->len += len;
}

void pb_put_uint(struct pb_writer *writer, uint32_t field, uint64_t value)
{
    if (value == 0) { return; }
    put_key(writer, field, WIRE_VARINT);
    put_varint(writer, value);
}

static void put_fixed(struct pb_writer *writer, uint64_t bits, unsigned count)
{
    uint8_t little[8];
    for (unsigned i = 0; i < count; i++) { little[i] = (uint8_t)(bits >> (8 * i)); }
    put_raw(writer, little, count);
}

void pb_put_float(struct pb_writer *writer, uint32_t field, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (bits == 0) { return; }
    put_key(writer, field, WIRE_FIXED32);
    put_fixed(writer, bits, 4);
}

void pb_put_double(struct pb_writer *writer, uint32_t field, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (bits == 0) { return; }
    put_key(writer, field, WIRE_FIXED64);
    put_fixed(writer, bits, 8);
}

void pb_put_element(struct pb_writer *writer, uint32_t field, const void *bytes, size_t len)
{
    put_key(writer, field, WIRE_BYTES);
    put_varint(writer, len);
    put_raw(writer, bytes, len);
}

void pb_put_bytes(struct pb_writer *writer, uint32_t field, const void *bytes, size_t len)
{
    if (len > 0) { pb_put_element(writer, field, bytes, len); }
}

void pb_put_packed(struct pb_writer *writer, uint32_t field, const uint32_t *values, size_t count)
{
    if (count == 0) { return; }
    size_t len = 0;
    for (size_t i = 0; i < count; i++) { len += varint_len(values[i]); }
    put_key(writer, field, WIRE_BYTES);
    put_varint(writer, len);
    uint8_t *out = room(writer, len);
    if (!out) { return; }
    for (size_t i = 0; i < count; i++) { out += encode_varint(out, values[i]); }
    writer->len += len;
}

/* One byte is kept for the length; end makes room where it needs more, which is rare. */
size_t pb_begin(struct pb_writer *writer, uint32_t field)
{
    put_key(writer, field, WIRE_BYTES);
    uint8_t *out = room(writer, 1);
    if (out) { writer->len++; }
    return writer->len;
}

void pb_end(struct pb_writer *writer, size_t mark)
{
    if (writer->is_broken) { return; }
    size_t len = writer->len - mark;
    size_t extra = varint_len(len) - 1;
    if (extra > 0) {
        if (!room(writer, extra)) { return; }
        memmove(writer->bytes + mark + extra, writer->bytes + mark, len);
        writer->len += extra;
    }
    encode_varint(writer->bytes + mark - 1, len);
}

static bool get_varint(struct pb_reader *reader, uint64_t *ret_value)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (reader->at == reader->end) { return false; }
        uint8_t byte = *reader->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *ret_value = value;
            return true;
        }
    }
    return false;
}

bool pb_next(struct pb_reader *reader, struct pb_field *ret_field)
{
    uint64_t key, len = 0;
    if (!get_varint(reader, &key) || key >> 3 == 0 || key >> 3 > UINT32_MAX >> 3) { return false; }
    ret_field->number = (uint32_t)(key >> 3);
    ret_field->wire_type = (uint32_t)(key & 7);
    const uint8_t *start = reader->at;
    size_t left = (size_t)(reader->end - reader->at);
    switch (ret_field->wire_type) {
    case WIRE_VARINT:
        if (!get_varint(reader, &len)) { return false; }
        ret_field->bytes = start;
        ret_field->len = (size_t)(reader->at - start);
        return true;
    case WIRE_FIXED64: len = 8; break;
    case WIRE_FIXED32: len = 4; break;
    case WIRE_BYTES:
        if (!get_varint(reader, &len)) { return false; }
        left = (size_t)(reader->end - reader->at);
        break;
    default: return false;
    }
    if (len > left) { return false; }
    ret_field->bytes = reader->at;
    ret_field->len = (size_t)len;
    reader->at += len;
    return true;
}

bool pb_find_bytes(const uint8_t *bytes, size_t len, uint32_t number, const uint8_t **ret_bytes, size_t *ret_len)
{
    struct pb_reader reader = {.at = bytes, .end = bytes + len};
    struct pb_field field;
    bool found = false;
    while (pb_next(&reader, &field)) {
        if (field.number != number || field.wire_type != WIRE_BYTES) { continue; }
        *ret_bytes = field.bytes;
        *ret_len = field.len;
        found = true;
    }
    return found;
}
