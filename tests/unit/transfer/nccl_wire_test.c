#include "transfer/nccl_wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static uint8_t wire[KV_CABLE_MESSAGE_BYTES_MAX];
static struct nccl_wire_msg msg, out;

static size_t there_and_back(enum nccl_wire_kind kind)
{
    msg.kind = kind;
    msg.gen = UINT64_MAX - (unsigned)kind;
    memset(wire, 0xee, sizeof wire);
    memset(&out, 0xdd, sizeof out);
    size_t size = nccl_wire_write(&msg, wire);
    assert_in_range(size, 1, KV_CABLE_MESSAGE_BYTES_MAX);
    assert_true(nccl_wire_read(wire, size, &out));
    assert_int_equal(out.kind, kind);
    assert_true(out.gen == msg.gen);
    return size;
}

/* Every message keeps its fields, and is refused with one byte less or more. */
static void messages_round_trip(void **state)
{
    (void)state;
    for (enum nccl_wire_kind kind = NCCL_WIRE_OPEN; kind <= NCCL_WIRE_BROKEN; kind++) {
        memset(&msg, 0, sizeof msg);
        msg.open = (struct nccl_wire_open){.identity = 1, .nccl_version = 22809, .slot_count = 8, .slot_bytes = UINT64_C(1) << 40, .dtype = 3, .order = 1};
        memset(msg.id, 0xab, sizeof msg.id);
        msg.slot = 5;
        msg.frame = (struct kv_frame){.xfer_id = {{9, 8}}, .grant_epoch = UINT64_MAX, .layer = 60, .first = UINT32_MAX, .count = KV_FRAME_BLOCKS_MAX};
        for (uint32_t i = 0; i < KV_FRAME_BLOCKS_MAX; i++) { msg.crc[i] = i * 0x01010101u; }
        msg.code = ST_DATA_LOSS;
        msg.retry_ms = 1500;
        strcpy(msg.text, "why");
        size_t size = there_and_back(kind);
        bool has_text = kind == NCCL_WIRE_DENIED || kind == NCCL_WIRE_BROKEN;
        if (kind == NCCL_WIRE_OPEN) { assert_memory_equal(&out.open, &msg.open, sizeof msg.open); }
        if (kind == NCCL_WIRE_ID) { assert_memory_equal(out.id, msg.id, sizeof msg.id); }
        if (kind == NCCL_WIRE_SEND) {
            assert_true(kv_xfer_id_equal(out.frame.xfer_id, msg.frame.xfer_id));
            assert_true(out.frame.grant_epoch == msg.frame.grant_epoch);
            assert_int_equal(out.frame.layer, msg.frame.layer);
            assert_int_equal(out.frame.first, msg.frame.first);
            assert_int_equal(out.frame.count, msg.frame.count);
            assert_memory_equal(out.crc, msg.crc, sizeof msg.crc);
        }
        if (kind == NCCL_WIRE_SEND || kind == NCCL_WIRE_READY || kind == NCCL_WIRE_REFUSED) { assert_int_equal(out.slot, 5); }
        if (has_text) {
            assert_int_equal(out.code, ST_DATA_LOSS);
            assert_string_equal(out.text, "why");
        }
        if (kind == NCCL_WIRE_DENIED) { assert_int_equal(out.retry_ms, 1500); }
        if (has_text) { continue; } /* a text may be of any length */
        assert_false(nccl_wire_read(wire, size - 1, &out));
        assert_false(nccl_wire_read(wire, size + 1, &out));
    }
}

/* What is not of ours, of this version, of a known kind, or within its bounds is refused. */
static void strangers_are_refused(void **state)
{
    (void)state;
    memset(&msg, 0, sizeof msg);
    msg.frame.count = 2;
    size_t size = there_and_back(NCCL_WIRE_SEND);
    for (size_t cut = 0; cut < size; cut++) { assert_false(nccl_wire_read(wire, cut, &out)); }
    static const struct { size_t at; uint8_t value; } wounds[] = {{0, 'X'}, {4, 2}, {6, 0}, {6, 11}, {7, 1}, {16 + 36, 0}, {16 + 36, 3}, {16 + 39, 1}};
    for (size_t i = 0; i < sizeof wounds / sizeof wounds[0]; i++) {
        uint8_t wounded[KV_CABLE_MESSAGE_BYTES_MAX];
        memcpy(wounded, wire, sizeof wounded);
        wounded[wounds[i].at] = wounds[i].value;
        assert_false(nccl_wire_read(wounded, size, &out));
    }
}

/* A text that is too long is cut by its writer and refused by its reader; one with controls or quotes cannot break a log line. */
static void texts_are_bounded(void **state)
{
    (void)state;
    memset(&msg, 0, sizeof msg);
    memset(msg.text, 'x', NCCL_WIRE_TEXT_CHARS_MAX);
    size_t size = there_and_back(NCCL_WIRE_BROKEN);
    assert_int_equal(strlen(out.text), NCCL_WIRE_TEXT_CHARS_MAX);
    wire[size] = 'x';
    assert_false(nccl_wire_read(wire, size + 1, &out));
    strcpy(msg.text, "a\nlevel=error \x1b \x80 \" pid=1 text=\"");
    (void)there_and_back(NCCL_WIRE_DENIED);
    assert_string_equal(out.text, "a?level=error ? ? ' pid=1 text='");
}

/* An offer keeps what D says of itself; anything else is refused. */
static void offers_round_trip(void **state)
{
    (void)state;
    struct nccl_wire_offer offer = {.identity = 77, .nccl_version = 22809}, back;
    struct kv_cable_offer bytes;
    memset(offer.device, 0xcd, sizeof offer.device);
    nccl_offer_write(&offer, &bytes);
    assert_int_equal(bytes.size, NCCL_WIRE_OFFER_BYTES);
    memset(&back, 0, sizeof back);
    assert_true(nccl_offer_read(bytes.bytes, bytes.size, &back));
    assert_true(back.identity == 77);
    assert_int_equal(back.nccl_version, 22809);
    assert_memory_equal(back.device, offer.device, sizeof back.device);
    assert_false(nccl_offer_read(bytes.bytes, bytes.size - 1, &back));
    assert_false(nccl_offer_read(bytes.bytes, bytes.size + 1, &back));
    assert_false(nccl_wire_read(bytes.bytes, bytes.size, &out)); /* an offer is no message */
    bytes.bytes[6] = 1;
    assert_false(nccl_offer_read(bytes.bytes, bytes.size, &back));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_are_refused), cmocka_unit_test(texts_are_bounded), cmocka_unit_test(messages_round_trip),
        cmocka_unit_test(offers_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
