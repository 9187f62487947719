#include "transfer/link_wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static _Alignas(64) uint8_t scratch[LINK_WIRE_SCRATCH_BYTES];
static uint8_t wire[KV_LINK_MESSAGE_BYTES_MAX];
static struct link_msg msg, out;

static status_t there_and_back(void)
{
    size_t size = link_wire_encode(&msg, wire, sizeof wire);
    assert_true(size > 0);
    memset(&out, 0xdd, sizeof out);
    return link_wire_decode(wire, size, scratch, NULL, &out);
}

/* Bytes that are no message, or one that we do not know, are refused. */
static void strange_bytes_are_refused(void **state)
{
    (void)state;
    assert_int_equal(link_wire_decode("", 0, scratch, NULL, &out).code, ST_INVALID_ARGUMENT);
    assert_int_equal(link_wire_decode("\xff\xff\xff", 3, scratch, NULL, &out).code, ST_INVALID_ARGUMENT);
    assert_int_equal(link_wire_decode("\x7a\x00", 2, scratch, NULL, &out).code, ST_INVALID_ARGUMENT); /* field 15 */
    assert_int_equal(link_wire_decode(wire, sizeof wire + 1, scratch, NULL, &out).code, ST_INVALID_ARGUMENT);
    assert_int_equal(link_wire_decode("\x1a\x00", 2, scratch, NULL, &out).code, ST_INVALID_ARGUMENT); /* a begin of nothing */
}

/* A hello keeps what a peer says of itself; what would break a log line does not survive. */
static void hello_round_trip(void **state)
{
    (void)state;
    memset(&msg, 0, sizeof msg);
    msg.kind = LINK_HELLO;
    msg.body.hello.protocol = LINK_PROTOCOL;
    strcpy(msg.body.hello.node_id, "p0");
    strcpy(msg.body.hello.expect_node_id, "d0\nlevel=error");
    msg.body.hello.boot_epoch = 5;
    msg.body.hello.expect_boot_epoch = UINT64_MAX;
    memset(msg.body.hello.fingerprint, 7, sizeof msg.body.hello.fingerprint);
    strcpy(msg.body.hello.host_id, "host");
    msg.body.hello.cable_count = 2;
    strcpy(msg.body.hello.cables[0], "shm");
    strcpy(msg.body.hello.cables[1], "tcp");
    assert_int_equal(there_and_back().code, ST_OK);
    assert_int_equal(out.kind, LINK_HELLO);
    assert_string_equal(out.body.hello.expect_node_id, "d0?level=error");
    strcpy(out.body.hello.expect_node_id, msg.body.hello.expect_node_id);
    assert_memory_equal(&out.body.hello, &msg.body.hello, sizeof msg.body.hello);
}

/* A refusal brings its reason and nothing else; an acceptance its offers and token. */
static void hello_ack_round_trip(void **state)
{
    (void)state;
    memset(&msg, 0, sizeof msg);
    msg.kind = LINK_HELLO_ACK;
    strcpy(msg.body.hello_ack.node_id, "d0");
    msg.body.hello_ack.offer_count = 1;
    strcpy(msg.body.hello_ack.offers[0].cable, "tcp");
    memset(msg.body.hello_ack.offers[0].offer.bytes, 9, KV_OFFER_BYTES_MAX);
    msg.body.hello_ack.offers[0].offer.size = KV_OFFER_BYTES_MAX;
    memset(msg.body.hello_ack.token, 3, sizeof msg.body.hello_ack.token);
    assert_int_equal(there_and_back().code, ST_OK);
    assert_memory_equal(&out.body.hello_ack, &msg.body.hello_ack, sizeof msg.body.hello_ack);
    msg.body.hello_ack.converts = true;
    memset(msg.body.hello_ack.fingerprint, 5, sizeof msg.body.hello_ack.fingerprint);
    assert_int_equal(there_and_back().code, ST_OK);
    assert_memory_equal(&out.body.hello_ack, &msg.body.hello_ack, sizeof msg.body.hello_ack);
    msg.body.hello_ack.code = ST_FAILED_PRECONDITION;
    strcpy(msg.body.hello_ack.text, "block_tokens: ours 16, theirs 32");
    assert_int_equal(there_and_back().code, ST_OK);
    assert_string_equal(out.body.hello_ack.text, msg.body.hello_ack.text);
    assert_int_equal(out.body.hello_ack.offer_count, 0);
}

/* Every message about a transfer keeps its fields; the largest commit fits both ways. */
static void xfer_round_trips(void **state)
{
    (void)state;
    static uint32_t layers[LINK_LAYERS_MAX];
    static uint8_t payload[KV_PAYLOAD_BYTES_MAX];
    for (uint32_t i = 0; i < LINK_LAYERS_MAX; i++) { layers[i] = KV_TICKET_BLOCKS_MAX - i; }
    for (uint32_t i = 0; i < KV_PAYLOAD_BYTES_MAX; i++) { payload[i] = (uint8_t)(i * 7); }
    for (enum link_msg_kind kind = LINK_BEGIN; kind < LINK_HEARTBEAT; kind++) {
        memset(&msg, 0, sizeof msg);
        msg.kind = kind;
        struct link_xfer *xfer = &msg.body.xfer;
        memset(xfer->xfer_id.bytes, kind, sizeof xfer->xfer_id.bytes);
        xfer->grant_epoch = UINT64_MAX - (unsigned)kind;
        xfer->code = kind == LINK_BEGIN_ACK || kind == LINK_ABORT ? ST_DATA_LOSS : 0;
        if (kind == LINK_BEGIN) {
            memset(xfer->secret, 5, sizeof xfer->secret);
            xfer->block_count = 99;
        }
        if (kind == LINK_COMMIT) {
            xfer->layer_slices = layers;
            xfer->layer_count = LINK_LAYERS_MAX;
            xfer->bytes_total = UINT64_MAX;
            xfer->payload = payload;
            xfer->payload_bytes = sizeof payload;
        }
        assert_int_equal(there_and_back().code, ST_OK);
        assert_int_equal(out.kind, kind);
        assert_true(kv_xfer_id_equal(out.body.xfer.xfer_id, xfer->xfer_id));
        assert_int_equal(out.body.xfer.grant_epoch, xfer->grant_epoch);
        assert_int_equal(out.body.xfer.code, xfer->code);
        assert_int_equal(out.body.xfer.block_count, xfer->block_count);
        assert_memory_equal(out.body.xfer.secret, xfer->secret, sizeof xfer->secret);
        if (kind == LINK_COMMIT) {
            assert_int_equal(out.body.xfer.layer_count, LINK_LAYERS_MAX);
            assert_memory_equal(out.body.xfer.layer_slices, layers, sizeof layers);
            assert_int_equal(out.body.xfer.payload_bytes, sizeof payload);
            assert_memory_equal(out.body.xfer.payload, payload, sizeof payload);
        }
    }
    msg.kind = LINK_HEARTBEAT;
    msg.body.heartbeat = 1234;
    assert_int_equal(there_and_back().code, ST_OK);
    assert_int_equal(out.body.heartbeat, 1234);
}

/* What one cable says to the other arrives as it was said, empty and as long as may be; a longer one,
 * or a name that no cable has room for, is refused. */
static void cable_messages_are_bounded(void **state)
{
    (void)state;
    static uint8_t bytes[KV_CABLE_MESSAGE_BYTES_MAX + 1];
    for (uint32_t i = 0; i < sizeof bytes; i++) { bytes[i] = (uint8_t)(i * 3 + 1); }
    memset(&msg, 0, sizeof msg);
    msg.kind = LINK_CABLE;
    strcpy(msg.body.cable.cable, "fifteen-letters");
    msg.body.cable.bytes = bytes;
    for (size_t count = 0; count <= KV_CABLE_MESSAGE_BYTES_MAX; count += KV_CABLE_MESSAGE_BYTES_MAX / 2) {
        msg.body.cable.count = count;
        assert_int_equal(there_and_back().code, ST_OK);
        assert_int_equal(out.kind, LINK_CABLE);
        assert_string_equal(out.body.cable.cable, "fifteen-letters");
        assert_int_equal(out.body.cable.count, count);
        if (count) { assert_memory_equal(out.body.cable.bytes, bytes, count); }
    }
    msg.body.cable.count = KV_CABLE_MESSAGE_BYTES_MAX + 1;
    assert_int_equal(there_and_back().code, ST_INVALID_ARGUMENT);
    assert_int_equal(link_wire_decode("\x52\x12\x0a\x10sixteen--letters", 20, scratch, NULL, &out).code, ST_INVALID_ARGUMENT);
    assert_int_equal(link_wire_decode("\x52\x06\x0a\x04tc\np", 8, scratch, NULL, &out).code, ST_OK);
    assert_string_equal(out.body.cable.cable, "tc?p");
}

/* A buffer that is too small gets nothing. */
static void too_small_a_buffer(void **state)
{
    (void)state;
    memset(&msg, 0, sizeof msg);
    msg.kind = LINK_ACK;
    size_t size = link_wire_encode(&msg, wire, sizeof wire);
    assert_int_equal(link_wire_encode(&msg, wire, size), size);
    assert_int_equal(link_wire_encode(&msg, wire, size - 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strange_bytes_are_refused), cmocka_unit_test(hello_round_trip),
        cmocka_unit_test(hello_ack_round_trip),      cmocka_unit_test(xfer_round_trips),
        cmocka_unit_test(cable_messages_are_bounded), cmocka_unit_test(too_small_a_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
