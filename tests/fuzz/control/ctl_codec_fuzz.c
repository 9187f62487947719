/* Bytes of an Attach stream, as either side reads them. The first byte picks the direction. What
 * decodes is encoded again and decoded again: the two messages must be the same, bit by bit. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "control/ctl_codec.h"
#include "tests/unit/control/ctl_samples.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { LIMIT = 1 << 16 };
    static struct ctl_codec *reader, *again;
    if (size == 0) { return 0; }
    if (!reader && (failed(ctl_codec_create(LIMIT, &reader)) || failed(ctl_codec_create(LIMIT, &again)))) { abort(); }
    enum ctl_direction direction = data[0] & 1 ? CTL_FROM_NODE : CTL_FROM_ROUTER;
    struct ctl_msg msg, copy;
    struct diag diag = {{0}};
    if (failed(ctl_codec_decode(reader, direction, data + 1, size - 1, &msg, &diag))) {
        CHECK(diag.text[0] != '\0');
        return 0;
    }
    const uint8_t *bytes;
    size_t byte_count;
    status_t st = ctl_codec_encode(again, &msg, &bytes, &byte_count);
    if (failed(st)) { /* every field is written, so what came in at the limit may grow past it */
        CHECK(st.code == ST_RESOURCE_EXHAUSTED);
        CHECK(size > LIMIT / 16);
        return 0;
    }
    st = ctl_codec_decode(again, direction, bytes, byte_count, &copy, &diag);
    CHECK(!failed(st));
    CHECK(ctl_difference(&msg, &copy) == NULL);
    return 0;
}
