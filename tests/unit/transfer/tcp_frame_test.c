#include "transfer/cable_tcp.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A head comes back as it was written, and any flipped bit in it is noticed before a byte of
 * the frame is placed. */
static void every_bit_of_a_head_counts(void **state)
{
    (void)state;
    const struct kv_frame frame = {.xfer_id = {{1, 2, 3}}, .grant_epoch = 0x123456789abcdefULL, .layer = 31, .first = 1000, .count = 16};
    struct kv_frame out;
    uint32_t crc[KV_FRAME_BLOCKS_MAX];
    uint8_t head[TCP_HEAD_BYTES_MAX];
    for (uint32_t i = 0; i < KV_FRAME_BLOCKS_MAX; i++) { crc[i] = i * 2654435761u; }
    size_t size = tcp_frame_head_write(&frame, 65536, crc, head);
    assert_int_equal(size, TCP_HEADER_BYTES + 64);
    assert_true(tcp_frame_header_read(head, 65536, &out));
    assert_true(tcp_frame_head_check(head, out.count));
    assert_true(kv_xfer_id_equal(out.xfer_id, frame.xfer_id));
    assert_true(out.grant_epoch == frame.grant_epoch);
    assert_int_equal(out.layer, frame.layer);
    assert_int_equal(out.first, frame.first);
    assert_int_equal(out.count, frame.count);
    assert_false(tcp_frame_header_read(head, 4096, &out)); /* of another layout */
    for (size_t bit = 0; bit < 8 * size; bit++) {
        head[bit / 8] ^= (uint8_t)(1u << bit % 8);
        /* A reader takes count from the header, so it may look at another number of sums. */
        assert_false(tcp_frame_header_read(head, 65536, &out) && out.count <= KV_FRAME_BLOCKS_MAX && tcp_frame_head_check(head, out.count));
        head[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* Counts that would run past the head are refused by the header alone. */
static void counts_are_bounded(void **state)
{
    (void)state;
    struct kv_frame frame = {.count = KV_FRAME_BLOCKS_MAX}, out;
    uint32_t crc[KV_FRAME_BLOCKS_MAX] = {0};
    uint8_t head[TCP_HEAD_BYTES_MAX];
    assert_int_equal(tcp_frame_head_write(&frame, 4096, crc, head), TCP_HEAD_BYTES_MAX);
    assert_true(tcp_frame_header_read(head, 4096, &out));
    head[4] = KV_FRAME_BLOCKS_MAX + 1;
    assert_false(tcp_frame_header_read(head, 4096, &out));
    head[4] = 0;
    assert_false(tcp_frame_header_read(head, 4096, &out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_bit_of_a_head_counts), cmocka_unit_test(counts_are_bounded)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
