/* Heads of tcp frames and layout fingerprints: any bytes are taken or refused, nothing is read
 * past them, and what is taken lies within its bounds. */
#include "transfer/cable_tcp.h"
#include "transfer/fingerprint.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kv_fingerprint fingerprint, other;
    struct diag diag;
    char text[128];
    if (!failed(kv_fingerprint_decode(data, size, &diag, &fingerprint))) {
        uint8_t wire[KV_FINGERPRINT_WIRE_BYTES];
        kv_fingerprint_encode(&fingerprint, wire);
        if (memcmp(wire, data, sizeof wire) != 0) { abort(); }
        memset(&other, 0, sizeof other);
        (void)kv_fingerprint_diff(&fingerprint, &other, text, sizeof text);
    }
    struct kv_frame frame;
    if (size < TCP_HEADER_BYTES || !tcp_frame_header_read(data, 4096, &frame)) { return 0; }
    if (frame.count == 0 || frame.count > KV_FRAME_BLOCKS_MAX) { abort(); }
    if (size >= TCP_HEADER_BYTES + 4u * frame.count) { (void)tcp_frame_head_check(data, frame.count); }
    return 0;
}
