/* The head of a frame of the tcp cable: written and, from foreign bytes, read. */
#include <string.h>

#include "transfer/cable_tcp.h"
#include "base/crc32c.h"
#include "transfer/little_endian.h"

enum { AT_COUNT = 4, AT_XFER = 8, AT_EPOCH = 24, AT_LAYER = 32, AT_FIRST = 36, AT_SLICE_BYTES = 40, AT_CHECK = 44 };
_Static_assert(AT_CHECK + 4 == TCP_HEADER_BYTES, "check is the last field of the header");

static uint32_t head_sum(const uint8_t *head, uint32_t count)
{
    return crc32c(crc32c(0, head, AT_CHECK), head + TCP_HEADER_BYTES, 4u * (size_t)count);
}

size_t tcp_frame_head_write(const struct kv_frame *frame, uint32_t slice_bytes, const uint32_t *crc, uint8_t *ret_head)
{
    le32_store(ret_head, TCP_FRAME_MAGIC);
    le32_store(ret_head + AT_COUNT, frame->count);
    memcpy(ret_head + AT_XFER, frame->xfer_id.bytes, 16);
    le64_store(ret_head + AT_EPOCH, frame->grant_epoch);
    le32_store(ret_head + AT_LAYER, frame->layer);
    le32_store(ret_head + AT_FIRST, frame->first);
    le32_store(ret_head + AT_SLICE_BYTES, slice_bytes);
    for (uint32_t i = 0; i < frame->count; i++) { le32_store(ret_head + TCP_HEADER_BYTES + 4u * i, crc[i]); }
    le32_store(ret_head + AT_CHECK, head_sum(ret_head, frame->count));
    return TCP_HEADER_BYTES + 4u * (size_t)frame->count;
}

bool tcp_frame_header_read(const uint8_t header[TCP_HEADER_BYTES], uint32_t slice_bytes, struct kv_frame *ret_frame)
{
    uint32_t count = le32_load(header + AT_COUNT);
    if (le32_load(header) != TCP_FRAME_MAGIC || count == 0 || count > KV_FRAME_BLOCKS_MAX ||
        le32_load(header + AT_SLICE_BYTES) != slice_bytes) {
        return false;
    }
    memcpy(ret_frame->xfer_id.bytes, header + AT_XFER, 16);
    ret_frame->grant_epoch = le64_load(header + AT_EPOCH);
    ret_frame->layer = le32_load(header + AT_LAYER);
    ret_frame->first = le32_load(header + AT_FIRST);
    ret_frame->count = count;
    return true;
}

bool tcp_frame_head_check(const uint8_t *head, uint32_t count)
{
    return head_sum(head, count) == le32_load(head + AT_CHECK);
}
