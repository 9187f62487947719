/* pb_wire: the protobuf wire format where protobuf-c does not serve the token path.
 * Flow:    request bytes -> [pb_wire reader]; session -> [pb_wire writer] -> response bytes
 * Thread:  one at a time; pure.
 * Memory:  the writer is one growing buffer, kept between messages: no allocation per token.
 *
 * protobuf-c holds a string as a C string, so a text with a NUL character, which is valid in
 * a prompt and in an answer, would be cut short without a word; and it wants a tree of
 * pointers built for every message of every step. Source: protobuf.dev, "Encoding". */
#ifndef BATON_ROUTER_PB_WIRE_H
#define BATON_ROUTER_PB_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pb_writer {
    uint8_t *bytes; /* [len] */
    size_t len, capacity;
    bool is_broken; /* memory ran out: what is there is not a message */
};

void pb_writer_fini(struct pb_writer *writer);

/* Proto3: zero and empty are not written. */
void pb_put_uint(struct pb_writer *writer, uint32_t field, uint64_t value);
void pb_put_float(struct pb_writer *writer, uint32_t field, float value);
void pb_put_double(struct pb_writer *writer, uint32_t field, double value);
void pb_put_bytes(struct pb_writer *writer, uint32_t field, const void *bytes, size_t len);
/* An element of a repeated string: written also when empty. */
void pb_put_element(struct pb_writer *writer, uint32_t field, const void *bytes, size_t len);
void pb_put_packed(struct pb_writer *writer, uint32_t field, const uint32_t *values, size_t count);

/* A submessage, written also when empty. begin gives what end wants back. */
size_t pb_begin(struct pb_writer *writer, uint32_t field);
void pb_end(struct pb_writer *writer, size_t mark);

struct pb_reader {
    const uint8_t *at, *end;
};

struct pb_field {
    uint32_t number;
    uint32_t wire_type; /* 2: bytes [len] */
    const uint8_t *bytes;
    size_t len;
};

/* The next field; false at the end or where the bytes are malformed. Never reads past end. */
bool pb_next(struct pb_reader *reader, struct pb_field *ret_field);

/* The last length-delimited field of that number: what proto3 says a string's value is. */
bool pb_find_bytes(const uint8_t *bytes, size_t len, uint32_t number, const uint8_t **ret_bytes, size_t *ret_len);

#endif
